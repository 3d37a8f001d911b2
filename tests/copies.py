"""Stand-ins for the copies between host and device, which find what is not ordered, and for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsfmanet.engines.cuda import Record, Replay, Run
from vsfmanet.engines.transfers import Event

GARBAGE = 0xFE


@dataclass(kw_only=True)
class Pending:
    """The end of a copy, in a stream in which one copy ends after the other."""

    stream: list[Pending]
    complete: Callable[[], None]
    is_done: bool = False
    asked: int = field(default=0)

    def query(self) -> bool:
        """It is done when it has been asked for the third time."""
        self.asked += 1
        if self.asked > 2:
            self.synchronize()
        return self.is_done

    def synchronize(self) -> None:
        """End the copies of the stream up to this one."""
        while not self.is_done:
            first = self.stream.pop(0)
            first.complete()
            first.is_done = True


class LateCopies:
    """Copies that are done when the host waits for them, or asks often enough, and not before.

    A buffer that is written before the copy that reads it is done, or read or written before the copy that writes it is
    done, is found: by an assertion, or because what is read is garbage. What the device computes is computed at once,
    of what the host's buffer held when the copy was queued. All that is not page-locked lies on the device, unless it
    is among `pageable`.
    """

    def __init__(self) -> None:
        self.ups: list[Pending] = []
        self.downs: list[Pending] = []
        self.memory: list[NDArray[np.uint8]] = []
        self.pageable: list[Tensor] = []

    def page_locked(self, size: int) -> NDArray[np.uint8]:
        """Ordinary memory."""
        self.memory.append(np.full(size, GARBAGE, np.uint8))
        return self.memory[-1]

    def is_there(self, tensor: Tensor) -> bool:
        """Whether a tensor counts as one of the device."""
        place = tensor.untyped_storage().data_ptr()
        locked = any(each.ctypes.data <= place < each.ctypes.data + len(each) for each in self.memory)
        return not locked and not any(tensor is each for each in self.pageable)

    def up(self, host: Tensor) -> tuple[Tensor, Event]:
        """Queue a copy to the device."""
        read, raw = host.clone(), self._raw(host)
        before = raw.copy()

        def complete() -> None:
            assert np.array_equal(raw, before), "a buffer was written to before the copy that reads it was done"

        return read, self._queued(self.ups, complete)

    def down(self, result: Tensor, host: Tensor) -> Event:
        """Queue a copy to the host."""
        raw, made = self._raw(host), result.contiguous().clone().flatten().view(torch.uint8).numpy()
        raw[:] = GARBAGE

        def complete() -> None:
            assert bool((raw == GARBAGE).all()), "a buffer was written to before the copy that writes it was done"
            raw[:] = made

        return self._queued(self.downs, complete)

    def _raw(self, host: Tensor) -> NDArray[np.uint8]:
        """The bytes of a tensor in page-locked memory, which do not keep the tensor alive."""
        [memory] = [each for each in self.memory if each.ctypes.data == host.data_ptr()]
        return memory[: host.nbytes]

    def _queued(self, stream: list[Pending], complete: Callable[[], None]) -> Pending:
        stream.append(Pending(stream=stream, complete=complete))
        return stream[-1]


class Recorder:
    """Records as CUDA does: what is replayed reads and writes the addresses of the recording."""

    def __init__(self) -> None:
        self.made = self.recorded = self.replayed = 0

    def __call__(self) -> Record:
        self.made += 1
        return self._record

    def _record(self, run: Run) -> Replay:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay
