"""Copies between host and device that run beside the computation.

Frames lie in page-locked memory of the host: VapourSynth's planes are copied into it once, seen by numpy, and from
there to the device; results come back into such memory, and from there into VapourSynth's frames. A buffer goes from
one frame to the next once nobody holds it and the copy that used it is done.

Page-locked memory comes from CuPy. Copies are queued by torch, on streams that torch and CuPy share.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsfmanet.devices import find_cupy

_WAITING = 4
"""Buffers of a size that may wait for their copies; the next one to be asked for waits for the first of them."""
_SPARE = 32
"""Buffers of all sizes that are kept for later frames."""


class Event(Protocol):
    """A point in the work of a stream."""

    def query(self) -> bool:
        """Return whether the work before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


class Copies(Protocol):
    """What copies need of torch and CuPy: a stream up, a stream down, and the computing one of the calling thread."""

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        """Return page-locked memory of so many bytes."""
        ...

    def is_there(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies on the device."""
        ...

    def up(self, host: Tensor) -> tuple[Tensor, Event]:
        """Queue a copy to the device, for which later computation waits; return it, and when `host` has been read."""
        ...

    def down(self, result: Tensor, host: Tensor) -> Event:
        """Queue a copy of what is computed until now to the host; return when it is there."""
        ...


class CudaCopies:
    """Streams and page-locked memory of a CUDA device; see `Copies`. Never run: see `Unverified` in docs/benchmarks.md.

    Args:
        device: CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._cupy = find_cupy()

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        """See `Copies`; from torch if CuPy is not installed."""
        if self._cupy is None:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return np.frombuffer(self._cupy.cuda.alloc_pinned_memory(size), np.uint8, size)

    def is_there(self, tensor: Tensor) -> bool:
        """See `Copies`."""
        return tensor.is_cuda

    def up(self, host: Tensor) -> tuple[Tensor, Event]:
        """See `Copies`."""
        with torch.cuda.stream(self._up):  # which memory of the result belongs to: computation need not be waited for
            moved = torch.empty(host.shape, dtype=host.dtype, device=self._device)
            moved.copy_(host, non_blocking=True)
        done = self._up.record_event()
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(done)
        moved.record_stream(computing)
        return moved, done

    def down(self, result: Tensor, host: Tensor) -> Event:
        """See `Copies`."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            host.copy_(result, non_blocking=True)
        result.record_stream(self._down)
        return self._down.record_event()


@dataclass(kw_only=True, slots=True, eq=False)
class _Slot:
    """A buffer of a ring."""

    memory: NDArray[np.uint8]
    """Page-locked."""
    event: Event | None = None
    """When the last copy that read or wrote it is done."""


class Ring:
    """Page-locked buffers that are used in turn.

    Args:
        copies: Where the memory comes from.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._free: deque[_Slot] = deque()
        self._lent: dict[int, _Slot] = {}
        self._lock = threading.RLock()  # a collection of garbage may return a buffer while one is taken

    def take(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor on the host; its memory is used again when the last view of it is gone."""
        size = max(1, torch.Size(shape).numel()) * dtype.itemsize
        with self._lock:
            slot = self._spare(size) or _Slot(memory=self._copies.page_locked(size))
            slot.event = None
            array = slot.memory[:]
            self._lent[array.ctypes.data] = slot
        tensor = torch.from_numpy(array)[: torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape)
        weakref.finalize(array, self._give_back, slot).atexit = False
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one from `take`."""
        return tensor.data_ptr() in self._lent

    def used_until(self, tensor: Tensor, event: Event) -> None:
        """Note when a copy that uses a tensor from `take` is done."""
        self._lent[tensor.data_ptr()].event = event

    def _spare(self, size: int) -> _Slot | None:
        """Take a buffer of so many bytes from those that nobody holds, if there is one to be had."""
        fitting = [slot for slot in self._free if len(slot.memory) == size]
        found = next((slot for slot in fitting if slot.event is None or slot.event.query()), None)
        if found is None and len(fitting) >= _WAITING:
            found = fitting[0]
            assert found.event is not None
            found.event.synchronize()
        if found is not None:
            self._free.remove(found)
        return found

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            del self._lent[slot.memory.ctypes.data]
            self._free.append(slot)
            while len(self._free) > _SPARE:
                oldest = self._free.popleft()
                if oldest.event is not None:
                    oldest.event.synchronize()


class Transfers:
    """Copies frames to the device and results back; no copies on the CPU.

    Args:
        device: Device on which the network computes.
        copies: Streams and memory of the device; those of CUDA if not given.
    """

    def __init__(self, device: torch.device, copies: Copies | None = None) -> None:
        self.device = device
        if copies is None and device.type == "cuda":
            copies = CudaCopies(device)
        self._copies = copies
        self._ring = None if copies is None else Ring(copies)
        self._last: Event | None = None

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised vector (size,) on the CPU, page-locked if the device is CUDA."""
        return torch.empty(size, dtype=dtype) if self._ring is None else self._ring.take((size,), dtype)

    def upload(self, given: Tensor) -> Tensor:
        """Copy a tensor of any shape to the device; later work on the current stream waits for the copy.

        Returns:
            The copy; `given` itself if it is on the device already.
        """
        if self._copies is None or self._ring is None or self._copies.is_there(given):
            return given
        host = given if self._ring.holds(given) else self._ring.take(given.shape, given.dtype).copy_(given)
        moved, done = self._copies.up(host)
        self._ring.used_until(host, done)
        return moved

    def download(self, result: Tensor) -> Tensor:
        """Copy a tensor of any shape to the CPU.

        Returns:
            The copy, whose values are valid after the next `wait`; `result` itself if it is on the CPU already.
        """
        if self._copies is None or self._ring is None or not self._copies.is_there(result):
            return result  # frames in tiles are assembled on the CPU
        host = self._ring.take(result.shape, result.dtype)
        self._last = self._copies.down(result, host)
        self._ring.used_until(host, self._last)
        return host

    def wait(self) -> None:
        """Wait until all downloads so far are done."""
        if self._last is not None:
            self._last.synchronize()
