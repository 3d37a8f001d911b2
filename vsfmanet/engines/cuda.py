"""FMA-Net++ on CUDA: every part as a CUDA graph, one launch instead of hundreds; and copies beside the computing.

Never run on a GPU: what does not need one (keys, buffers, fallback, the order of waiting) is tested with stand-ins.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vsfmanet.engines.eager import EagerEngine
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.tiling import is_out_of_memory

_WARM_UPS = 2  # the first compiles kernels and chooses algorithms, which a capture must not meet

type Run = Callable[[], tuple[Tensor, ...]]
type Recorded = tuple[Callable[[], None], tuple[Tensor, ...]]
"""What computes anew, and the tensors in which the results then are."""

_log = logging.getLogger(__name__)


_capturing = threading.Lock()
"""torch allows one capture at a time in a process."""


def give_back_memory() -> None:
    """Give back what torch keeps of CUDA's memory for later, but not while another thread records."""
    with _capturing:
        torch.cuda.empty_cache()


class Capture:
    """Records what CUDA is asked to do. All graphs share memory: no two run at once, and results are copied out.

    Args:
        device: The one that the calling thread works on.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream(device)  # torch's own for captures is of the device that was the first

    def __call__(self, run: Run) -> Recorded:
        """Record `run`, which must read and write the same addresses every time."""
        now = torch.cuda.current_stream()
        self._aside.wait_stream(now)
        with torch.cuda.stream(self._aside):
            for _ in range(_WARM_UPS):
                run()
        now.wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads do with CUDA meanwhile, such as another filter, is their own affair.
        recording = torch.cuda.graph(graph, pool=self._pool, stream=self._aside, capture_error_mode="thread_local")
        try:
            with _capturing, recording:
                results = run()
        except BaseException:
            # Before 2.12, torch does not take these two back from a recording that failed at its end.
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


class CudaGraphEngine(EagerEngine):
    """The modules of the network, each part recorded when it is first run with inputs of some shape.

    Where recording fails, for another reason than a lack of memory, all parts run as in `EagerEngine`, with a warning.

    Args:
        network: As for `EagerEngine`, on a CUDA device.
        record: Makes a graph of a function; `Capture` by default.
    """

    def __init__(self, network: FMANetPP, record: Callable[[Run], Recorded] | None = None) -> None:
        super().__init__(network)
        self._record: Callable[[Run], Recorded] | None = record or Capture(next(network.parameters()).device)
        self._graphs: dict[str, _Graph] = {}
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def stem(self, lr: Tensor) -> Tensor:
        """See `Engine`."""
        [feat] = self._run("stem", lambda lr: (super(CudaGraphEngine, self).stem(lr),), lr)
        return feat

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Engine`."""

        def run(lr: Tensor, following: Tensor, previous: Tensor) -> tuple[Tensor]:
            return (super(CudaGraphEngine, self).initial_flow(lr, (following, previous)),)

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
        """See `Engine`."""
        out, flow = self._run(
            f"level {index}",
            lambda feat, following, previous, flow, embed, guide: super(CudaGraphEngine, self).level(
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
        """See `Engine`."""

        def run(lr: Tensor, feat: Tensor) -> tuple[Tensor, ...]:
            out, guides = super(CudaGraphEngine, self).bridge(lr, feat)
            return out, *guides

        out, *guides = self._run("bridge", run, lr, feat)
        return out, tuple(guides)

    def finish(self, lr: Tensor, feat: Tensor) -> Tensor:
        """See `Engine`."""
        [frame] = self._run("finish", lambda lr, feat: (super(CudaGraphEngine, self).finish(lr, feat),), lr, feat)
        return frame

    def _run(self, name: str, part: Callable[..., tuple[Tensor, ...]], *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Run a part by its graph, which is recorded first if need be."""
        key = tuple(None if given is None else (given.shape, given.dtype) for given in inputs)
        graph = self._graphs.get(name)
        if graph is not None and graph.key != key:  # frames of another size: nothing of the old ones is of use
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
                _log.warning("cuda: no graphs, parts are launched one by one: %s", str(error).partition("\n")[0])
                self._record = None
                self._graphs.clear()
                self._buffers.clear()
            else:
                graph = self._graphs[name] = _Graph(key=key, inputs=buffers, replay=replay, results=results)
        if graph is None:
            return part(*inputs)
        _fill(graph.inputs, inputs)
        graph.replay()
        # Copies, because the frame waits for its neighbours while the graph is run for others.
        return tuple(result.clone() for result in graph.results)

    def _buffer(self, place: int, given: Tensor) -> Tensor:
        """Where input number `place` of any part lies; parts are run one after the other."""
        key = (place, given.shape, given.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(given)
        return self._buffers[key]


def _fill(buffers: tuple[Tensor | None, ...], inputs: tuple[Tensor | None, ...]) -> None:
    for buffer, given in zip(buffers, inputs, strict=True):
        if buffer is not None and given is not None:
            buffer.copy_(given)


class Transfers:
    """Frames to the device and results back, on two streams beside that which computes; on a CPU nothing to do.

    Memory of the host that takes part is page-locked. torch keeps it for the next frame once the copy is done, so that
    a few buffers go round.

    Args:
        device: Where the network computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._down = torch.cuda.Stream(device) if device.type == "cuda" else None

    def buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised vector on the CPU, from which an upload need not copy first."""
        return torch.empty(size, dtype=dtype, pin_memory=self._up is not None)

    def upload(self, given: Tensor) -> Tensor:
        """What is given on the device, if it is not there; what is computed from then on waits for it."""
        if self._up is None or given.is_cuda:
            return given
        with torch.cuda.stream(self._up):
            moved = given.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._up)
        moved.record_stream(computing)
        return moved

    def download(self, result: Tensor) -> Tensor:
        """`result` on the CPU, where its values are valid after the next `wait`."""
        if self._down is None or not result.is_cuda:  # in tiles, frames are put together on the CPU
            return result
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        with torch.cuda.stream(self._down):
            host.copy_(result, non_blocking=True)
        result.record_stream(self._down)
        return host

    def wait(self) -> None:
        """Until all downloads so far are done."""
        if self._down is not None:
            self._down.synchronize()
