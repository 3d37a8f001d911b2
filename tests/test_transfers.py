"""Copies between host and device: when a buffer is used again, and what waits for what."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.copies import GARBAGE, LateCopies
from vsfmanet.engines import transfers as module
from vsfmanet.engines.transfers import CudaCopies, Ring, Transfers

CPU = torch.device("cpu")


def test_on_a_cpu_there_is_nothing_to_copy() -> None:
    transfers, frame = Transfers(CPU), torch.rand(3, 4, 5)
    assert transfers.upload(frame) is frame
    assert transfers.download(frame) is frame
    transfers.wait()
    buffer = transfers.buffer(7, torch.uint16)
    assert (buffer.shape, buffer.dtype, buffer.is_pinned()) == ((7,), torch.uint16, False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 6), (), (0, 3)])
def test_buffers_have_any_shape_and_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    taken = Ring(LateCopies()).take(shape, dtype)
    assert (taken.shape, taken.dtype) == (shape, dtype)


def test_planes_are_copied_once_into_the_memory_that_is_copied_to_the_device() -> None:
    copies = LateCopies()
    transfers = Transfers(CPU, copies)
    buffer = transfers.buffer(6, torch.uint16)
    assert len(copies.memory) == 1
    np.copyto(buffer.view(2, 3).numpy(), np.arange(6, dtype=np.uint16).reshape(2, 3))
    assert copies.memory[0].view(np.uint16).tolist() == [*range(6)]
    assert transfers.upload(buffer).tolist() == [*range(6)]
    assert len(copies.memory) == 1
    there = transfers.upload(buffer)
    assert transfers.upload(there) is there


def test_a_frame_in_ordinary_memory_is_copied_into_page_locked_memory_first() -> None:
    copies, frame = LateCopies(), torch.rand(3, 4, 5)
    copies.pageable.append(frame)
    moved = Transfers(CPU, copies).upload(frame)
    assert moved is not frame
    assert torch.equal(moved, frame)
    assert copies.memory[0].view(np.float32).tolist() == frame.flatten().tolist()


def test_a_buffer_is_used_again_when_nobody_holds_it_and_its_copy_is_done() -> None:
    copies = LateCopies()
    transfers = Transfers(CPU, copies)
    first = transfers.buffer(4, torch.uint8)
    place, view = first.data_ptr(), first[1:].view(3, 1)
    transfers.upload(first)
    del first
    [pending] = copies.ups
    assert transfers.buffer(4, torch.uint8).data_ptr() != place  # a part of it is held
    pending.synchronize()
    assert transfers.buffer(4, torch.uint8).data_ptr() != place
    del view
    held = [transfers.buffer(4, torch.uint8) for _ in range(2)]
    assert place in {each.data_ptr() for each in held}


def test_a_buffer_whose_copy_is_not_done_is_left_alone() -> None:
    copies = LateCopies()
    transfers = Transfers(CPU, copies)
    first = transfers.upload(transfers.buffer(4, torch.uint8))
    [pending] = copies.ups
    held = [transfers.buffer(4, torch.uint8) for _ in range(2)]
    assert pending.asked
    assert not pending.is_done
    assert len(copies.memory) == 3
    del first, held


def test_frames_that_follow_each_other_use_few_buffers_and_wait_for_the_first() -> None:
    copies = LateCopies()
    transfers = Transfers(CPU, copies)
    for n in range(40):
        transfers.upload(transfers.buffer(8, torch.uint8).fill_(n))
    assert len(copies.memory) == module._WAITING
    for pending in [*copies.ups]:
        pending.synchronize()  # asserts that nothing was overwritten


def test_buffers_of_several_sizes_are_used_again_in_any_order() -> None:
    copies = LateCopies()
    ring = Ring(copies)
    for _ in range(3):
        held = [ring.take((size,), torch.uint8) for size in (3, 5, 7)]
        del held
        for size in (7, 3, 5):
            ring.take((size,), torch.uint8)
    assert len(copies.memory) == 3


def test_results_that_are_held_keep_their_values() -> None:
    copies = LateCopies()
    transfers = Transfers(CPU, copies)
    held = [transfers.download(torch.full((3, 4), float(n))) for n in range(9)]
    assert all(bool((each.view(torch.uint8) == GARBAGE).all()) for each in held)
    transfers.wait()
    assert [float(each[2, 3]) for each in held] == [*map(float, range(9))]
    assert len(copies.memory) == 9
    del held
    gc.collect()
    again = [transfers.download(torch.full((3, 4), float(n))) for n in range(9)]
    transfers.wait()
    assert [float(each[0, 0]) for each in again] == [*map(float, range(9))]
    assert len(copies.memory) == 9


def test_no_more_spare_buffers_are_kept_than_a_clip_needs() -> None:
    copies = LateCopies()
    ring = Ring(copies)
    for size in range(1, 3 * module._SPARE):
        ring.take((size,), torch.uint8)
    assert len(ring._free) == module._SPARE
    assert not ring._lent


class Careless(Ring):
    """Uses buffers again at once."""

    def _spare(self, size: int) -> Any:
        return self._free.pop() if self._free else None


@pytest.mark.parametrize("ring", [Ring, Careless])
def test_the_stand_in_finds_a_buffer_that_is_written_to_too_early(
    ring: type[Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Ring", ring)
    copies = LateCopies()
    transfers = Transfers(CPU, copies)

    def frames() -> None:
        for n in range(7):
            transfers.upload(transfers.buffer(8, torch.uint8).fill_(n))
            transfers.download(torch.full((8,), n, dtype=torch.uint8))
        for pending in [*copies.ups, *copies.downs]:
            pending.synchronize()

    if ring is Careless:
        with pytest.raises(AssertionError, match="was written to before the copy"):
            frames()
    else:
        frames()


class Clock:
    """A stream, or a point of one, that knows what of each stream comes before it."""

    current: Clock

    def __init__(self, name: str, known: Counter[str] | None = None) -> None:
        self.name, self.known = name, known or Counter()

    def work(self) -> None:
        self.known[self.name] += 1

    def record_event(self) -> Clock:
        return Clock(self.name, Counter(self.known))

    def wait_event(self, event: Clock) -> None:
        self.known |= event.known

    def wait_stream(self, stream: Clock) -> None:
        self.known |= stream.known


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Streams of `CudaCopies` whose order can be looked at; a copy is work in the current one."""
    names = iter(["up", "down"])
    computing = Clock("computing")
    found = SimpleNamespace(computing=computing, current=computing, copied=[], lent=[])

    @contextmanager
    def stream(other: Clock) -> Iterator[None]:
        before, found.current = found.current, other
        yield
        found.current = before

    plain = torch.Tensor.copy_

    def copy(to: Tensor, given: Tensor, non_blocking: bool = False) -> Tensor:
        assert non_blocking, "the host would wait"
        found.current.work()
        found.copied.append(found.current.record_event())
        return plain(to, given)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Clock(next(names)))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, by: found.lent.append((tensor, by.name)))
    monkeypatch.setattr(module, "find_cupy", lambda: None)
    return found


def test_computation_waits_for_a_copy_up_and_for_no_more(clocks: SimpleNamespace) -> None:
    copies, host = CudaCopies(CPU), torch.rand(5)
    clocks.computing.work()
    moved, done = copies.up(host)
    [copy] = clocks.copied
    assert torch.equal(moved, host)
    assert copy.known == Counter(up=1)  # the copy did not wait for the computation
    assert clocks.computing.known["up"] == 1
    assert isinstance(done, Clock)
    assert done.known == copy.known
    assert [(each is moved, name) for each, name in clocks.lent] == [(True, "computing")]


def test_a_copy_down_waits_for_what_was_computed_before_it(clocks: SimpleNamespace) -> None:
    copies, result, host = CudaCopies(CPU), torch.rand(5), torch.zeros(5)
    clocks.computing.work()
    done = copies.down(result, host)
    [copy] = clocks.copied
    assert torch.equal(host, result)
    assert copy.known == Counter(computing=1, down=1)
    assert clocks.computing.known["down"] == 0  # computation goes on
    assert isinstance(done, Clock)
    assert done.known == copy.known
    assert [(each is result, name) for each, name in clocks.lent] == [(True, "down")]


def test_page_locked_memory_is_cupys(clocks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def allocate(size: int) -> bytearray:
        asked.append(size)
        return bytearray(512)  # CuPy's are as large as the next power of two

    monkeypatch.setattr(
        module, "find_cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(alloc_pinned_memory=allocate))
    )
    memory = CudaCopies(CPU).page_locked(300)
    assert (asked, memory.shape, memory.flags.writeable) == ([300], (300,), True)
