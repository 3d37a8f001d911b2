"""Restores frames in any order, with the same pixels. Knows no VapourSynth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vsfmanet import kernels
from vsfmanet.caches import cache_folder
from vsfmanet.devices import (
    PRECISIONS,
    Worker,
    device_name,
    free_memory,
    pick_backend,
    pick_device,
    pick_precision,
)
from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.cuda import Capture, CudaGraphEngine, give_back_memory
from vsfmanet.engines.transfers import Transfers
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.networks.description import LevelNetwork, Parts, SequenceNetwork
from vsfmanet.segments import Reach
from vsfmanet.settings import Backend, Device, Precision, Provider, Resolved, Runtime, check_provider, check_tile
from vsfmanet.streams import FrameSource, Restored, Streams
from vsfmanet.streams.levels import LevelStreams
from vsfmanet.streams.windows import WindowStreams
from vsfmanet.tiling import MemoryPlan, is_out_of_memory
from vsfmanet.weights import load_model

_log = logging.getLogger(__name__)

type Encode = Callable[[int, Tensor], Tensor]
"""Converts restored frame n, RGB (3, s*H, s*W), fp32, on the device before it is copied to the host, to a tensor of any
shape and type. It must not wait for the device."""


class FrameRestorer(Protocol):
    """The border between windows and networks: `clips.windows` uses nothing else of a restorer."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def scale(self) -> int:
        """Output size over input size."""
        ...

    @property
    def reach(self) -> Reach:
        """Frames that a restored frame's pixels depend on."""
        ...

    @property
    def colour_transfers(self) -> Transfers | None:
        """Copies to and from the device, if colour is to be converted there; None to convert it on the host."""
        ...

    def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
        """Restore frames of a clip.

        Args:
            source: The clip.
            first: Number of the first frame.
            stop: Number of the frame after the last.
            encode: Converts each restored frame on the device; None for RGB.

        Returns:
            Frames `first` ... `stop - 1` in order, on the CPU.
        """
        ...

    def exact(self) -> FrameRestorer | None:
        """Build an fp32 restorer, for frames whose half-precision result is NaN or infinite; None if this is fp32."""
        ...

    def close(self) -> None:
        """Release state, network and worker; the restorer cannot be used afterwards."""
        ...


def resolve(
    model: str,
    *,
    weights_sha256: str,
    backend: Runtime,
    device: torch.device,
    dtype: torch.dtype,
    provider: Provider = "auto",
) -> Resolved:
    """Describe what computes the pixels; builds the kernels for `device`, if they are not built yet."""
    picked = None
    if backend == "onnx":
        from vsfmanet.engines.onnx import pick_provider

        picked = pick_provider(provider).provider
    return Resolved(
        model=model,
        weights_sha256=weights_sha256,
        backend=backend,
        device="cpu" if device.type == "cpu" else "cuda",
        device_name=device_name(device),
        precision=next(name for name, known in PRECISIONS.items() if known == dtype),
        kernels=kernels.kind_for(device, dtype) if backend == "torch" else None,
        provider=picked,
    )


class Restorer:
    """Runs a network over a clip; the pixels do not depend on the order of requests.

    When the requested frames follow the last ones, the stream of restored frames goes on; any other frame starts a new
    stream as far back as it depends on. Frames pass through the network one at a time, so the arithmetic, and with it
    every bit of the pixels, is the same for any order.

    All work is done in the thread of the device, see `Worker`.

    When the device's memory is short, the restorer takes measures, one after the other and permanently: on CUDA no
    graphs; then frames in 2, 4 and 8 parts; then, on CUDA, features kept in the host's memory. The frame at which that
    happens and all after it are the same up to rounding if the network's tiles are exact (`exact_tiles`); other
    networks see less around each part. Each measure is logged as a warning, from the thread that calls `restore`.

    Args:
        model: Name in the manifest, or path of a safetensors file.
        device: "auto" (a CUDA device if there is one), "cpu" or "cuda".
        device_index: Number of the CUDA device, from 0.
        precision: "auto", "fp32", "bf16" or "fp16".
        backend: "auto" (torch), "torch", "onnx" or "tensorrt"; the latter two are for FMA-Net++ and are built when the
            first frame is requested.
        provider: For "onnx", what onnxruntime computes with: "auto" (the first that works), "cpu", "cuda", "migraphx",
            "directml", "coreml", "openvino" or "webgpu". The CPU, with a warning, takes the place of one that is
            missing.
        tile: Width and height in input pixels of the parts in which frames are computed, 16 or more; None for whole
            frames while memory lasts.

    Raises:
        WeightsError: The model is unknown or its file is not usable.
        DeviceError: There is no such device. `restore` raises it when memory is too small in spite of all measures.
        ConfigError: An argument is none of those listed, or the device or the model does not support the precision or
            backend.
    """

    def __init__(
        self,
        model: str,
        *,
        device: Device = "auto",
        device_index: int = 0,
        precision: Precision = "auto",
        backend: Backend = "auto",
        provider: Provider = "auto",
        tile: tuple[int, int] | None = None,
    ) -> None:
        check_tile(tile)
        check_provider(provider, backend)
        self._plan = MemoryPlan(tile=None if tile is None else (tile[1], tile[0]))
        self._backend, self._provider = pick_backend(backend), provider
        if self._plan.tile is not None and self._backend != "torch":
            raise ConfigError(f"tile is for backend 'torch', got {backend!r}; leave one of them out")
        self._fp32 = partial(Restorer, model, device=device, device_index=device_index, precision="fp32", tile=tile)
        self.device = pick_device(device, device_index, backend=self._backend)
        self.dtype = pick_precision(precision, self.device, backend=self._backend)
        self._worker = Worker(self.device)
        loaded = self._worker.run(partial(load_model, model))
        self.name, self.sha256, self.scale = loaded.name, loaded.sha256, loaded.scale
        network = loaded.network
        self.reach = network.reach
        if self._backend != "torch" and not network.has_parts:
            raise ConfigError(f"backend {backend!r} is for FMA-Net++, got model {model!r}; leave it out")
        self._worker.run(partial(network.place, self.device, self.dtype))
        self._network = network
        self.transfers = Transfers(self.device)
        """Copies to and from the device."""
        self._streams: Streams | None = self._make_streams()
        self._source = _SourceInUse()
        self._stream: Iterator[Restored] | None = None
        self._next = -1
        self._notices: list[str] = []

    @property
    def resolved(self) -> Resolved:
        """What this restorer runs; the same for every frame."""
        describe = partial(
            resolve,
            self.name,
            weights_sha256=self.sha256,
            backend=self._backend,
            device=self.device,
            dtype=self.dtype,
            provider=self._provider,
        )
        return self._worker.run(describe)

    def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
        """See `FrameRestorer`; `encode` is called in the worker's thread.

        Raises:
            DeviceError: The device fails, or memory is too small in spite of all measures.
        """
        try:
            return self._worker.run(partial(self._restore, source, first, stop, encode))
        finally:
            while self._notices:
                _log.warning(self._notices.pop(0))

    @property
    def colour_transfers(self) -> Transfers | None:
        """Copies to and from a CUDA device; None on the CPU, where colour is converted by VapourSynth."""
        return self.transfers if self.device.type == "cuda" else None

    def exact(self) -> Restorer | None:
        """Build an fp32 restorer of the same model on the same device; None if this one is fp32."""
        return None if self.dtype == torch.float32 else self._fp32()

    def close(self) -> None:
        """See `FrameRestorer`."""
        self._worker.close()
        self._stream = self._streams = None
        del self._network

    def __enter__(self) -> Restorer:
        """Use as a context manager, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @torch.inference_mode()
    def _restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None) -> list[Restored]:
        self._source.lent = source
        try:
            restored = [self._frame(n, encode) for n in range(first, stop)]
            self.transfers.wait()
            return restored
        except BaseException:
            self._stream = None
            raise
        finally:
            self._source.lent = None

    def _frame(self, n: int, encode: Encode | None) -> Restored:
        """Restore frame `n` and start its copy to the host; change the plan until memory suffices."""
        while True:
            try:
                return self._sent(n, encode)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0] or "out of memory"
            # Not inside the handler, where the error keeps tensors alive that are to be released.
            self._stream = None
            self._save_memory(n, reason)

    def _sent(self, n: int, encode: Encode | None) -> Restored:
        """Restore frame `n` and start its copy to the host."""
        restored = self._advance(n)
        frame = restored.frame if encode is None else encode(n, restored.frame)
        return replace(restored, frame=self.transfers.download(frame))

    def _advance(self, n: int) -> Restored:
        """Restore frame `n`, with the open stream if `n` comes next there."""
        restored = next(self._stream, None) if self._stream is not None and self._next == n else None
        if restored is None:
            assert self._streams is not None
            self._stream = self._streams.open(self._source, n)
            restored = next(self._stream)
        assert restored.index == n
        self._next = n + 1
        return restored

    def _save_memory(self, n: int, reason: str) -> None:
        """Take the plan that needs the next less memory, after it was short at frame `n`.

        Raises:
            DeviceError: There is no such plan.
        """
        assert self._streams is not None
        on_gpu = self.device.type == "cuda"
        height, width = self._source.size or self._source.frame(n).shape[1:]
        can_offload = on_gpu and self._streams.can_offload
        plan = self._plan.smaller(height, width, has_graphs=self._has_graphs, can_offload=can_offload)
        now = replace(self._plan, graphs=self._plan.graphs and self._has_graphs)
        needed = self._network.memory_needed(height, width, self.dtype, now)
        self._plan, self._streams = plan or self._plan, None
        if on_gpu:
            give_back_memory()
        self._streams = self._make_streams()
        if plan is None:
            free = free_memory(self.device)
            amount = "more memory is" if needed is None else f"about {needed >> 20} MiB of memory are"
            share = math.sqrt(min(1.0, free / needed)) if needed else 0.5
            raise DeviceError(
                f"{amount} needed for {width}x{height} in {self._plan}, got "
                f"{free >> 20} MiB free on {self.device} ({reason}); a "
                f"clip of {_even(width * share)}x{_even(height * share)} fits: scale or crop it, free memory, or use "
                + ("device='cpu'" if on_gpu else "a machine with more")
            )
        same = "with the same result up to rounding" if self._network.exact_tiles else "with a slight change"
        self._notices.append(f"out of memory at frame {n}: from here on {plan}, {same} ({reason})")

    @property
    def _has_graphs(self) -> bool:
        """Whether the network can run as CUDA graphs, while memory lasts."""
        return self.device.type == "cuda" and self._backend == "torch" and self._network.has_parts

    def _make_streams(self) -> Streams:
        """Build the streams of the network for the current plan."""
        return self._network.streamed(levels=self._level_streams, windows=self._window_streams)

    def _level_streams(self, network: LevelNetwork) -> Streams:
        return LevelStreams(network, self._parts(network), self.transfers, plan=self._plan)

    def _window_streams(self, network: SequenceNetwork) -> Streams:
        return WindowStreams(network, self.transfers, plan=self._plan)

    def _parts(self, network: LevelNetwork) -> Parts:
        """Return what runs the parts of a network."""
        if self._backend == "torch":
            parts = network.parts(self._plan.tile)
            recorded = self._has_graphs and self._plan.graphs and self._plan.tile is None
            return CudaGraphEngine(parts, partial(Capture, self.device)) if recorded else parts
        cache = EngineCache(cache_folder("engines"))
        if self._backend == "onnx":
            from vsfmanet.engines.onnx import onnx_engine

            return onnx_engine(network, weights_sha256=self.sha256, cache=cache, provider=self._provider)
        from vsfmanet.engines.tensorrt import tensorrt_engine

        return tensorrt_engine(network, weights_sha256=self.sha256, cache=cache, device=self.device)


class _SourceInUse:
    """The source of the current request, for streams, which outlive requests."""

    lent: FrameSource | None = None
    size: tuple[int, int] | None = None
    """Height and width of the last frame read."""

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self._now.num_frames

    def frame(self, n: int) -> Tensor:
        """See `FrameSource`."""
        frame = self._now.frame(n)
        self.size = frame.shape[1], frame.shape[2]
        return frame

    def exposure(self, n: int) -> float | None:
        """See `FrameSource`."""
        return self._now.exposure(n)

    def starts_scene(self, n: int) -> bool:
        """See `FrameSource`."""
        return self._now.starts_scene(n)

    @property
    def _now(self) -> FrameSource:
        assert self.lent is not None
        return self.lent


def _even(side: float) -> int:
    """Round down to an even number of at least 8, so that chroma can be subsampled."""
    return max(8, int(side) // 2 * 2)
