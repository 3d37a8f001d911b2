"""Networks on CUDA: parts as CUDA graphs, one launch instead of hundreds.

Never run on a GPU; keys, buffers and the fallback are tested with stand-ins.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vsfmanet.networks.description import NamedParts, Parts, run_part
from vsfmanet.tiling import is_out_of_memory

_TURNS = 3
"""Frames whose results wait: a frame and its two neighbours."""

type Run = Callable[[], object]
type Replay = Callable[[], None]
type Record = Callable[[Run], Replay]
"""Records what a function does, and returns a function that does it again at the same addresses."""

_log = logging.getLogger(__name__)


_capturing = threading.Lock()
"""torch allows one capture at a time in a process."""


def give_back_memory() -> None:
    """Release the CUDA memory that torch keeps cached, but not while another thread records a graph."""
    with _capturing:
        torch.cuda.empty_cache()


class Capture:
    """Records CUDA graphs. All of one capture share memory: no two run at once, and none leaves results there.

    Args:
        device: Current device of the calling thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)  # torch's own capture stream belongs to the first device that captured

    def __call__(self, run: Run) -> Replay:
        """Record a graph of `run`, which must read and write the same addresses every time, and has run before.

        Raises:
            RuntimeError: The operations cannot be recorded, or memory is short.
        """
        now = torch.cuda.current_stream()
        self._aside.wait_stream(now)
        with torch.cuda.stream(self._aside):
            run()
        now.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of another filter, may use CUDA meanwhile.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._aside, capture_error_mode="thread_local")
        try:
            with _capturing, recording:
                run()
        except BaseException:
            # Before 2.12, torch does not undo these two when a capture fails at its end.
            torch.cuda.set_stream(now)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(now.device_index, self._pool)
            raise
        return graph.replay


class CudaGraphEngine(NamedParts):
    """Runs parts as CUDA graphs; see `Parts`.

    A graph reads and writes fixed addresses. So that nothing has to be copied into or out of it, the results of a part
    lie in turn in `_TURNS` slots, for as many frames wait for their neighbours, and there is a graph for each slot,
    which reads the slots of the part before. The order of `LevelStreams` guarantees that a result is overwritten only
    when the level above has read it; those of the bridge, which later levels read, have more slots. What comes from
    elsewhere (frames, embeddings) is copied to a fixed place first, and restored frames are copied out.

    The first and the last frame of a scene, which are neighbours of themselves, are launched operation by operation: a
    graph for each such case would be recorded in the middle of a film. If recording fails for another reason than a
    lack of memory, all parts are launched so, and a warning is logged.

    Args:
        parts: The parts in torch, on a CUDA device.
        recorder: Builds what records the graphs of frames of one size; a `Capture`. A new one for each size: the memory
            of the last one is freed with its graphs.
    """

    def __init__(self, parts: Parts, recorder: Callable[[], Record]) -> None:
        self._parts, self._recorder = parts, recorder
        self._record: Record | None = recorder()
        self._shapes: dict[str, tuple[object, ...]] = {}
        self._graphs: dict[tuple[object, ...], Replay] = {}
        self._results: dict[tuple[str, int], tuple[Tensor, ...]] = {}
        self._turns: dict[int, int] = {}
        self._last: dict[str, int] = {}
        self._staged: dict[tuple[object, ...], Tensor] = {}

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `NamedParts`."""
        if self._record is None:
            return run_part(self._parts, name, inputs)
        shapes = tuple((given.shape, given.dtype) for given in inputs.values())
        if self._shapes.setdefault(name, shapes) != shapes:  # frames of another size: the old graphs are useless
            self._forget()
            self._record, self._shapes[name] = self._recorder(), shapes
        turn = self._turn(name, inputs)
        given = {key: self._at_fixed_place(key, tensor) for key, tensor in inputs.items()}
        places = {key: tensor.data_ptr() for key, tensor in given.items()}
        if name.startswith("level") and places["feat"] in (places["next"], places["previous"]):
            return self._written(name, turn, given)
        key = (name, turn, *places.values())
        replay = self._graphs.get(key)
        if replay is None:
            self._written(name, turn, given)  # compiles kernels and chooses algorithms, which no recording may meet
            try:
                replay = self._record(lambda: self._written(name, turn, given))
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                _log.warning("no CUDA graphs, operations are launched one by one: %s", str(error).partition("\n")[0])
                self._record = None
                self._forget()
                return run_part(self._parts, name, inputs)
            self._graphs[key] = replay
        replay()
        results = self._results[name, turn]
        return tuple(result.clone() for result in results) if name == "finish" else results

    def _written(self, name: str, turn: int, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run a part and write its results to their slots; return these."""
        read = {tensor.data_ptr() for tensor in inputs.values()}
        # Without a flow that the level did not change.
        found = [each for each in run_part(self._parts, name, inputs) if each.data_ptr() not in read]
        slots = self._results.get((name, turn))
        if slots is None:
            slots = self._results[name, turn] = tuple(torch.empty_like(each) for each in found)
            self._turns |= {slot.data_ptr(): turn for slot in slots}
        for slot, result in zip(slots, found, strict=True):
            slot.copy_(result)
        return slots

    def _turn(self, name: str, inputs: Mapping[str, Tensor]) -> int:
        """Return the number of the slots for the results: that of the features that the part reads, up to `_TURNS`."""
        slots = 1 if name in ("initial flow", "finish") else _TURNS  # both are read at once
        if name == "bridge" and (name, self._last.get(name)) in self._results:
            guides = len(self._results[name, self._last[name]]) - 1
            slots = -(-(guides + 1) // _TURNS) * _TURNS  # the last level reads its guide so many frames later
        following = (self._last.get(name, -1) + 1) % slots
        if "feat" in inputs:
            wanted = self._turns.get(inputs["feat"].data_ptr(), following)
            following = (following + (wanted - following) % _TURNS) % slots
        self._last[name] = following
        return following

    def _at_fixed_place(self, name: str, given: Tensor) -> Tensor:
        """Return an input where it is if that is a slot; else copy it to a place that all parts share."""
        if given.data_ptr() in self._turns:
            return given
        key = (name, given.shape, given.dtype)
        if key not in self._staged:
            self._staged[key] = torch.empty_like(given)
        return self._staged[key].copy_(given)

    def _forget(self) -> None:
        for known in (self._shapes, self._graphs, self._results, self._turns, self._last, self._staged):
            known.clear()
