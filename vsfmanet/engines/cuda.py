"""Networks on CUDA: parts as CUDA graphs, one launch instead of hundreds.

Never run on a GPU; keys, buffers and the fallback are tested with stand-ins.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vsfmanet.networks.description import Parts
from vsfmanet.tiling import is_out_of_memory

_WARM_UPS = 2  # the first compiles kernels and chooses algorithms, which a capture must not meet

type Run = Callable[[], tuple[Tensor, ...]]
type Recorded = tuple[Callable[[], None], tuple[Tensor, ...]]
"""A function that computes again, and the tensors that hold its results afterwards."""

_log = logging.getLogger(__name__)


_capturing = threading.Lock()
"""torch allows one capture at a time in a process."""


def give_back_memory() -> None:
    """Release the CUDA memory that torch keeps cached, but not while another thread records a graph."""
    with _capturing:
        torch.cuda.empty_cache()


class Capture:
    """Records CUDA graphs. All of one capture share memory: no two run at once, and results are copied out.

    Args:
        device: Current device of the calling thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)  # torch's own capture stream belongs to the first device that captured

    def __call__(self, run: Run) -> Recorded:
        """Record a graph of `run`, which must read and write the same addresses every time.

        Raises:
            RuntimeError: The operations cannot be recorded, or memory is short.
        """
        now = torch.cuda.current_stream()
        self._aside.wait_stream(now)
        with torch.cuda.stream(self._aside):
            for _ in range(_WARM_UPS):
                run()
        now.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of another filter, may use CUDA meanwhile.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._aside, capture_error_mode="thread_local")
        try:
            with _capturing, recording:
                results = run()
        except BaseException:
            # Before 2.12, torch does not undo these two when a capture fails at its end.
            torch.cuda.set_stream(now)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(now.device_index, self._pool)
            raise
        return graph.replay, results


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graph:
    key: tuple[object, ...]
    inputs: tuple[Tensor | None, ...]
    replay: Callable[[], None]
    results: tuple[Tensor, ...]


class CudaGraphEngine:
    """Runs the parts of a network as CUDA graphs (see `Parts`). Each part is recorded once for each shape of inputs.

    If recording fails for another reason than a lack of memory, all parts are launched operation by operation, and a
    warning is logged.

    Args:
        parts: The parts in torch, on a CUDA device.
        record: Records the operations of a function as a CUDA graph; usually a `Capture`.
    """

    def __init__(self, parts: Parts, record: Callable[[Run], Recorded]) -> None:
        self._parts = parts
        self._record: Callable[[Run], Recorded] | None = record
        self._graphs: dict[str, _Graph] = {}
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def stem(self, lr: Tensor) -> Tensor:
        """See `Parts`."""
        [feat] = self._run("stem", lambda lr: (self._parts.stem(lr),), lr)
        return feat

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Parts`."""

        def run(lr: Tensor, following: Tensor, previous: Tensor) -> tuple[Tensor]:
            return (self._parts.initial_flow(lr, (following, previous)),)

        [flow] = self._run("initial flow", run, lr, *neighbours)
        return flow

    def level(
        self,
        index: int,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        embed: Tensor | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Parts`."""
        out, flow = self._run(
            f"level {index}",
            lambda feat, following, previous, flow, embed, guide: self._parts.level(
                index, feat, (following, previous), flow, embed, guide
            ),
            feat,
            *neighbours,
            flow,
            embed,
            guide,
        )
        return out, flow

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Parts`."""

        def run(lr: Tensor, feat: Tensor) -> tuple[Tensor, ...]:
            out, guides = self._parts.bridge(lr, feat)
            return out, *guides

        out, *guides = self._run("bridge", run, lr, feat)
        return out, tuple(guides)

    def finish(
        self, lr: Tensor, neighbours: tuple[Tensor, Tensor], feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> Tensor:
        """See `Parts`."""

        def run(
            lr: Tensor, following: Tensor, previous: Tensor, feat: Tensor, flow: Tensor, embed: Tensor | None
        ) -> tuple[Tensor]:
            return (self._parts.finish(lr, (following, previous), feat, flow, embed),)

        [frame] = self._run("finish", run, lr, *neighbours, feat, flow, embed)
        return frame

    def _run(self, name: str, part: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Replay the graph of a part; record it first if there is none for these shapes."""
        key = tuple(None if given is None else (given.shape, given.dtype) for given in inputs)
        graph = self._graphs.get(name)
        if graph is not None and graph.key != key:  # frames of another size: the old graphs are useless
            self._graphs.clear()
            self._buffers.clear()
            graph = None
        if graph is None and self._record is not None:
            buffers = tuple(None if given is None else self._buffer(place, given) for place, given in enumerate(inputs))
            _fill(buffers, inputs)
            try:
                replay, results = self._record(lambda: part(*buffers))
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                _log.warning("no CUDA graphs, operations are launched one by one: %s", str(error).partition("\n")[0])
                self._record = None
                self._graphs.clear()
                self._buffers.clear()
            else:
                graph = self._graphs[name] = _Graph(key=key, inputs=buffers, replay=replay, results=results)
        if graph is None:
            return part(*inputs)
        _fill(graph.inputs, inputs)
        graph.replay()
        # Copies, because the frame waits for its neighbours while the graph is replayed for others.
        return tuple(result.clone() for result in graph.results)

    def _buffer(self, place: int, given: Tensor) -> Tensor:
        """Return the buffer for input number `place`, which all parts share, for they run one after the other."""
        key = (place, given.shape, given.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(given)
        return self._buffers[key]


def _fill(buffers: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> None:
    for buffer, given in zip(buffers, inputs, strict=True):
        if buffer is not None and given is not None:
            buffer.copy_(given)
