"""Frames in, restored frames out, in any order, with the same pixels. Knows no VapourSynth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vsfmanet.devices import free_memory, pick_backend, pick_device, pick_precision
from vsfmanet.engines import Engine
from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.eager import EagerEngine, TiledEngine
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.kernels.build import cache_folder
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.tiling import MemoryPlan, check_tile, is_out_of_memory, memory_needed
from vsfmanet.weights import load_model

_log = logging.getLogger(__name__)


class FrameSource(Protocol):
    """What a restorer reads. It asks only for frames within `context` of those that it is to restore."""

    num_frames: int
    """Frames of the clip."""

    def frame(self, n: int) -> Tensor:
        """Frame `n`: (3, H, W) RGB, fp32 on the CPU, nominal range [0, 1]."""
        ...

    def exposure(self, n: int) -> float | None:
        """Open-shutter time of frame `n` over the frame interval, in (0, 1]; None if unknown."""
        ...

    def starts_scene(self, n: int) -> bool:
        """Whether a cut lies between frames n-1 and n (n >= 1)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """One restored frame."""

    index: int
    """Number of the frame in the clip."""
    frame: Tensor
    """(3, scale*H, scale*W) RGB, fp32, nominal range [0, 1]."""
    exposure: float
    """Exposure the network worked with: the one given, or the extractor's reading, in (0, 1]."""
    confidence: float
    """1 for a given exposure; for a reading, how clearly it stands out, in [0, 1]."""


class FrameRestorer(Protocol):
    """What the filter needs of a restorer; tests put a fake here."""

    scale: int
    """Output size over input size."""
    context: int
    """Frames read before and after a frame to restore it."""

    def restore(self, source: FrameSource, first: int, stop: int) -> list[Restored]:
        """Restore frames `first` ... `stop - 1` of the source, in order."""
        ...

    def close(self) -> None:
        """Release the state, the network and the worker thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A frame on its way through the levels."""

    index: int
    lr: Tensor
    """(1, 3, H, W), fp32."""
    embed: Tensor | None
    """(1, U)."""
    exposure: float
    confidence: float
    feat: Tensor
    """(1, C, H, W), channels-last: what the next level reads."""
    flow: Tensor | None = None
    """(1, 6n, H, W), fp32; None before the first level."""
    guides: tuple[Tensor, ...] = ()
    """Of each restoration block, (1, C, H, W)."""


type _Stream = Iterator[_Record]


class Restorer:
    """FMA-Net++ as a stream: every level sees every frame once, and keeps two frames.

    Each level is a generator that holds back one frame until it has seen the next; the chain of 2M levels pulls as many
    frames as it needs. When the frames asked for follow those given before, the chain goes on; any other frame starts
    a new chain 2M frames earlier, which recomputes just the triangle of levels that the frame depends on. Frames go
    through the levels one at a time, so the arithmetic is the same whichever way they come: so are the pixels, to the
    last bit.

    All work runs in one thread of its own: torch keeps a pool of threads per calling thread, and VapourSynth calls from
    many.

    When the device's memory is short, the restorer becomes more sparing, step by step and for good: frames in 2, 4 and
    8 parts, then features kept in the host's memory. The frame at which that happens, and all after it, are the same
    up to rounding. What was changed is told through `notify`.

    Args:
        model: Name in the manifest, or path of a safetensors file.
        device: "auto" (a CUDA device if there is one), "cpu" or "cuda".
        device_index: Which CUDA device.
        precision: "auto", "fp32", "bf16" or "fp16".
        backend: "auto" (torch), "torch", "onnx" or "tensorrt"; the latter two are built when the first frame comes.
        tile: Width and height in input pixels of the parts in which frames are computed, 16 or more; None for whole
            frames while memory lasts. The result is the same up to rounding.
        notify: Called with a line for the user, from the thread that calls `restore`; the log by default.

    Raises:
        WeightsError: The model is unknown or its file is not usable.
        DeviceError: There is no such device. `restore` raises it where memory is too small whatever is done.
        ConfigError: An argument is none of those listed, or the device has no such precision.

    Source: FMA-Net++ (arXiv 2512.04390); the streaming form is ours, and exact because no level is recurrent.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        device_index: int = 0,
        precision: str = "auto",
        backend: str = "auto",
        tile: tuple[int, int] | None = None,
        notify: Callable[[str], None] = _log.warning,
    ) -> None:
        self._plan = MemoryPlan(tile=check_tile(tile))
        self._backend = pick_backend(backend)
        if self._plan.tile is not None and self._backend != "torch":
            raise ConfigError(f"restore: tile is for backend 'torch', got {backend!r}; leave one of them out")
        self.device = pick_device(device, device_index, backend=self._backend)
        self.dtype = pick_precision(precision, self.device, backend=self._backend)
        loaded = load_model(model)
        self.name, self.sha256, self.scale = loaded.name, loaded.sha256, loaded.scale
        self.context = loaded.network.config.context
        self._network: FMANetPP | None = loaded.network
        # The extractor stays in fp32: it is cheap, and levels differ by little.
        loaded.network.to(self.device)
        for part in (loaded.network.degradation, loaded.network.restoration):
            part.to(self.dtype).to(memory_format=torch.channels_last)
        self._engine: Engine | None = self._engine_for(self._plan)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vsfmanet")
        self._source: FrameSource | None = None
        self._stream: _Stream | None = None
        self._next = -1
        self._notify = notify
        self._notices: list[str] = []
        self.level_evaluations = 0
        """Levels computed so far, over all frames; 2M per frame when they come in order."""

    def restore(self, source: FrameSource, first: int, stop: int) -> list[Restored]:
        """Restore frames `first` ... `stop - 1` of `source`, in order; see `FrameRestorer`."""
        try:
            return self._thread.submit(self._restore, source, first, stop).result()
        finally:
            while self._notices:
                self._notify(self._notices.pop(0))

    def close(self) -> None:
        """Release state, network and thread; the restorer cannot be used after that."""
        self._thread.shutdown()
        self._stream = self._source = self._network = self._engine = None

    def __enter__(self) -> Restorer:
        """Use as a context manager, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @torch.inference_mode()
    def _restore(self, source: FrameSource, first: int, stop: int) -> list[Restored]:
        self._source = source
        try:
            return [self._frame(n) for n in range(first, stop)]
        except BaseException:
            self._stream = None
            raise
        finally:
            self._source = None

    def _frame(self, n: int) -> Restored:
        """Frame `n`, by the first plan from the present one on for which memory is enough."""
        while True:
            try:
                return self._advance(n)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or "out of memory"
            # Not inside the handler: the error would keep alive what is to be released.
            self._stream = None
            self._be_more_sparing(n, reason)

    def _advance(self, n: int) -> Restored:
        """Frame `n`, by the chain that is there if it comes next."""
        if self._stream is None or self._next != n:
            self._stream = self._open(n)
        record = next(self._stream, None)
        if record is None:  # the scene ended before n: a new one starts with it
            self._stream = self._open(n)
            record = next(self._stream)
        while record.index < n:  # the scene starts less than 2M frames before n
            record = next(self._stream)
        finished = self._finish(record)
        self._next = n + 1
        return finished

    def _be_more_sparing(self, n: int, reason: str) -> None:
        """Take the next plan, after frame `n` met a lack of memory.

        Raises:
            DeviceError: There is none.
        """
        assert self._source is not None
        assert self._network is not None
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
        height, width = self._source.frame(n).shape[1:]
        free = free_memory(self.device)
        needed = memory_needed(self._network.config, height, width, self.dtype, self._plan)
        plan = self._plan.smaller(height, width, can_offload=on_gpu)
        if plan is None:
            share = math.sqrt(min(1.0, free / needed)) if free else 0.5
            raise DeviceError(
                f"restore: about {needed >> 20} MiB of memory are needed for {width}x{height} in {self._plan}, got "
                f"{'an unknown amount' if free is None else f'{free >> 20} MiB'} free on {self.device} ({reason}); a "
                f"clip of {_even(width * share)}x{_even(height * share)} fits: scale or crop it, free memory, or use "
                + ("device='cpu'" if on_gpu else "a machine with more")
            )
        self._plan, self._engine = plan, self._engine_for(plan)
        self._notices.append(
            f"restore: out of memory at frame {n}: from here on {plan}, with the same result up to rounding ({reason})"
        )

    def _engine_for(self, plan: MemoryPlan) -> Engine:
        assert self._network is not None
        if plan.tile is not None:
            return TiledEngine(self._network, plan.tile)
        if self._backend == "torch":
            return EagerEngine(self._network)
        cache = EngineCache(cache_folder("engines"))
        if self._backend == "onnx":
            from vsfmanet.engines.onnx import onnx_engine

            return onnx_engine(self._network, weights_sha256=self.sha256, cache=cache)
        from vsfmanet.engines.tensorrt import tensorrt_engine

        return tensorrt_engine(self._network, weights_sha256=self.sha256, cache=cache, device=self.device)

    def _finish(self, record: _Record) -> Restored:
        assert self._engine is not None
        frame = self._engine.finish(record.lr, record.feat.to(self.device))[0]
        return Restored(index=record.index, frame=frame.cpu(), exposure=record.exposure, confidence=record.confidence)

    def _open(self, n: int) -> _Stream:
        """Return a chain of levels that gives frame `n`, after any frames of its scene that lie within 2M before it."""
        assert self._source is not None
        assert self._network is not None
        first = n
        while first > max(0, n - self.context) and not self._source.starts_scene(first):
            first -= 1
        at_start = first == 0 or first > n - self.context or self._source.starts_scene(first)
        return self._chain(first, whole=at_start)

    def _chain(self, first: int, *, whole: bool) -> _Stream:
        """Frames `first` ... end of its scene through all levels; without `whole`, 2M frames are only context."""
        assert self._network is not None
        config = self._network.config
        records = self._read(first)
        for level in range(2 * config.num_blocks):
            if level == config.num_blocks:
                records = map(self._bridge, records)
            records = self._level(level, records, whole=whole)
        return records

    def _read(self, first: int) -> _Stream:
        """Frames of one scene, ready for the first level."""
        assert self._network is not None
        assert self._engine is not None
        n = first
        while self._source is not None and n < self._source.num_frames:
            if n > first and self._source.starts_scene(n):
                return
            lr = self._source.frame(n).to(self.device, torch.float32).clamp(0, 1)[None]
            given = self._source.exposure(n)
            known = None if given is None else torch.tensor([given], device=self.device)
            embed = self._network.embed(lr, known)
            exposure, confidence = given or 0.0, float(given is not None)
            if given is None and embed is not None:
                exposure, confidence = (float(value) for value in self._network.read_exposure(embed))
            feat = self._resting(self._engine.stem(lr))
            embed = None if embed is None else embed.to(self.dtype)
            yield _Record(index=n, lr=lr, embed=embed, exposure=exposure, confidence=confidence, feat=feat)
            n += 1

    def _level(self, level: int, records: _Stream, *, whole: bool) -> _Stream:
        """One level for all frames of a stream: each with the one before and the one after it."""
        assert self._network is not None
        blocks = self._network.config.num_blocks
        initial_flow = self._network.degradation.initial_flow
        before: _Record | None = None
        own: _Record | None = None

        def run(before: _Record | None, own: _Record, after: _Record) -> _Record:
            assert self._engine is not None
            self.level_evaluations += 1
            before = before or own
            feat, flow = self._engine.level(
                level,
                own.feat.to(self.device),
                (after.feat.to(self.device), before.feat.to(self.device)),
                initial_flow(own.lr, (after.lr, before.lr)) if own.flow is None else own.flow.to(self.device),
                own.embed,
                own.guides[level - blocks].to(self.device) if level >= blocks else None,
            )
            return replace(own, feat=self._resting(feat), flow=self._resting(flow))

        for after in records:
            if own is not None and (whole or before is not None):
                yield run(before, own, after)
            before, own = own, after
        if own is not None and (whole or before is not None):
            yield run(before, own, own)

    def _bridge(self, record: _Record) -> _Record:
        """From the last level of NetD to the first of NetR."""
        assert self._engine is not None
        feat, guides = self._engine.bridge(record.lr, record.feat.to(self.device))
        return replace(record, feat=self._resting(feat), guides=tuple(map(self._resting, guides)))

    def _resting(self, waiting: Tensor) -> Tensor:
        """A tensor where it is to wait for the neighbours of its frame."""
        return waiting.cpu() if self._plan.offload else waiting


def _even(side: float) -> int:
    """The next smaller even number, for chroma's sake; at least 8."""
    return max(8, int(side) // 2 * 2)
