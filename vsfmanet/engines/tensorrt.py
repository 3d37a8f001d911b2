"""The network in TensorRT or TensorRT-RTX. TensorRT-RTX builds all engines without a GPU; none has ever been run.

TensorRT builds for the GPU of this machine and takes minutes; TensorRT-RTX builds for an architecture, on any machine,
in a second a part, and the GPU's driver compiles the rest when an engine is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.graph import GraphEngine, Run, engine_spec, export
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.networks.description import ExportPart, LevelNetwork

_log = logging.getLogger(__name__)

_RTX_LIBRARIES = ("libtensorrt_rtx.so.*.*", "libtensorrt_onnxparser_rtx.so.*.*")
"""What the wheel of onnxruntime's execution provider carries, in the order in which it must be loaded."""
_LANES = 8
"""Channels of a pixel lie side by side in TensorRT's HWC8, padded to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Library:
    """The Python bindings of TensorRT or of TensorRT-RTX; what is called here is the same in both."""

    trt: Any
    """The module."""
    rtx: bool
    """Whether it is TensorRT-RTX."""

    @property
    def runtime(self) -> str:
        """Name and version."""
        return f"TensorRT{'-RTX' * self.rtx} {self.trt.__version__}"

    @property
    def architectures(self) -> tuple[str, ...]:
        """GPU architectures for which engines can be built without a GPU, such as "sm_89"; none for TensorRT."""
        known = self.trt.ComputeCapability.__members__ if self.rtx else {}
        return tuple(f"sm_{name.removeprefix('SM')}" for name in known if name.startswith("SM"))

    def builds_for(self, architecture: str) -> bool:
        """Return whether engines can be built for an architecture, in TensorRT's case on a GPU of it."""
        return not self.rtx or architecture in self.architectures


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One part, after `build_ahead` was done with it."""

    part: str
    """Name of the part."""
    seconds: float
    """Time to export and build it; 0 if the cache had its engine."""


def find_library(architecture: str, *, ahead: bool = False) -> Library:
    """Return TensorRT-RTX if it is installed and builds for an architecture, else TensorRT.

    Args:
        architecture: Such as "sm_89".
        ahead: Whether engines are to be built without a GPU, which TensorRT cannot.

    Raises:
        ConfigError: Neither is installed, or TensorRT-RTX does not build for this architecture.
    """
    rtx = _library(rtx=True)
    if rtx is not None and rtx.builds_for(architecture):
        return rtx
    plain = None if ahead else _library(rtx=False)
    if plain is not None:
        return plain
    if rtx is None:
        either = "" if ahead else ", or pip install vsfmanet[tensorrt]"
        raise ConfigError(
            f"engines for {architecture} need TensorRT-RTX{'' if ahead else ' or TensorRT'}, got none that can be "
            f"loaded; pip install vsfmanet[tensorrt-rtx]{either}"
        )
    raise ConfigError(
        f"the architecture must be one of {', '.join(rtx.architectures)} for {rtx.runtime}, got {architecture!r}; "
        + ("choose one of them" if ahead else 'pip install vsfmanet[tensorrt], or use backend="torch"')
    )


@functools.cache
def _library(*, rtx: bool) -> Library | None:
    """Import the bindings of either library; None if they or the library are not installed."""
    if rtx:
        _load_rtx_libraries()
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings") if rtx else ("tensorrt",):
        try:
            return Library(trt=importlib.import_module(name), rtx=rtx)
        except (ImportError, OSError) as error:  # OSError: DLLs on Windows
            _log.debug("%s cannot be loaded: %s", name, error)
    return None


def _load_rtx_libraries() -> None:
    """Load the libraries in the wheel of onnxruntime's execution provider, for bindings that bring none.

    The wheel's own module would write links beside them and change the environment.
    """
    found = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        for pattern in _RTX_LIBRARIES:
            for path in sorted(Path(folder).glob(pattern))[:1]:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def build_engine(model: bytes, library: Library, architecture: str | None) -> bytes:
    """Build an engine.

    The graph carries its types (features half, sampling positions and flow fp32), and TensorRT keeps to them.

    Args:
        model: An ONNX model.
        library: Builds it.
        architecture: What TensorRT-RTX builds for, such as "sm_89"; None for TensorRT, which builds for the current
            CUDA device.

    Raises:
        DeviceError: The library cannot read or build the model.
    """
    trt = library.trt
    logger = _logger(library)
    builder = trt.Builder(logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(model):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise DeviceError(f'{library.runtime} must read the network, got {reasons}; use backend="torch"')
    keep_channels_last(trt, definition)
    config = builder.create_builder_config()
    if library.rtx:
        assert architecture is not None
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, architecture.replace("sm_", "SM")), 0)
    made = builder.build_serialized_network(definition, config)
    if made is None:
        raise DeviceError(
            f'{library.runtime} must build the network, got nothing (the log holds its reason); use backend="torch"'
        )
    return bytes(made)


def keep_channels_last(trt: Any, definition: Any) -> None:
    """Let half-precision features enter and leave channels-last, if their channels need no padding for that."""
    ends = [definition.get_input(index) for index in range(definition.num_inputs)]
    ends += [definition.get_output(index) for index in range(definition.num_outputs)]
    for end in ends:
        if len(end.shape) == 4 and end.shape[1] % _LANES == 0 and end.dtype != trt.DataType.FLOAT:
            end.allowed_formats = 1 << int(trt.TensorFormat.HWC8)


def build_ahead(
    network: LevelNetwork, *, weights_sha256: str, cache: EngineCache, height: int, width: int, architecture: str
) -> Iterator[Built]:
    """Build the engines that `tensorrt_engine` will look for, on a machine without a GPU.

    Args:
        network: Deployed form, in the type that will compute.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of built engines.
        height: Height of an input frame, pixels.
        width: Width of an input frame, pixels.
        architecture: GPU architecture, such as "sm_89".

    Yields:
        Each part, when its engine is in the cache.

    Raises:
        ConfigError: TensorRT-RTX is missing, or does not build for this architecture.
        DeviceError: It cannot build a part.
    """
    library = find_library(architecture, ahead=True)
    for part in network.export_parts(height, width):
        spec = engine_spec(
            part, network.dtype, (height, width), weights_sha256, runtime=library.runtime, device=architecture
        )
        start = time.monotonic()
        built = cache.ensure(spec, partial(_built, part, library, architecture))
        yield Built(part=part.name, seconds=time.monotonic() - start if built else 0.0)


def _built(part: ExportPart, library: Library, architecture: str) -> bytes:
    return build_engine(export(part), library, architecture)


def tensorrt_engine(
    network: LevelNetwork, *, weights_sha256: str, cache: EngineCache, device: torch.device
) -> GraphEngine:
    """Return an engine that runs a network's parts in TensorRT or TensorRT-RTX. What it builds is cached.

    Args:
        network: Deployed form on a CUDA device, in the type that computes.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of built engines.
        device: The CUDA device.

    Raises:
        ConfigError: A package is missing.
    """
    if importlib.util.find_spec("onnxscript") is None:  # torch exports with it
        raise ConfigError('backend="tensorrt" needs onnx and onnxscript, got none; pip install vsfmanet[tensorrt-rtx]')
    properties = torch.cuda.get_device_properties(device)
    architecture = f"sm_{properties.major}{properties.minor}"
    library = find_library(architecture)
    # TensorRT-RTX compiles for this GPU and driver when an engine is loaded; its engines are good for any of them.
    built_for = architecture if library.rtx else f"{properties.name}, {architecture}, driver {_driver()}"
    workspace = Workspace(device)
    names = _torch_types(library.trt)

    def build(model: bytes) -> bytes:
        _log.info("%s: building an engine", library.runtime)
        with torch.cuda.device(device):
            return build_engine(model, library, architecture)

    def load(part: ExportPart, data: bytes) -> Run:
        trt = library.trt
        with torch.cuda.device(device):
            engine = trt.Runtime(_logger(library)).deserialize_cuda_engine(data)
            if engine is None:
                raise ValueError("the engine cannot be loaded")  # the cache has it built anew
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        stream = partial(_current_stream, device)
        return runner(library, engine, context, part, workspace, types=names, stream=stream)

    return GraphEngine(
        network,
        weights_sha256=weights_sha256,
        cache=cache,
        runtime=library.runtime,
        device=built_for,
        build=build,
        load=load,
    )


class Workspace:
    """A block of device memory in which all parts keep their activations, because they run one after the other.

    Args:
        device: Where the block lies.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._block = torch.empty(1, dtype=torch.uint8, device=device)

    def reserve(self, size: int) -> None:
        """Make the block at least `size` bytes large."""
        if size > self._block.numel():
            self._block = torch.empty(size, dtype=torch.uint8, device=self.device)

    def lend_to(self, context: Any) -> None:
        """Let an execution context use the block, for its next run."""
        context.set_device_memory(self._block.data_ptr(), self._block.numel())


def runner(
    library: Library,
    engine: Any,
    context: Any,
    part: ExportPart,
    workspace: Workspace,
    *,
    types: Mapping[Any, torch.dtype],
    stream: Callable[[], int],
) -> Run:
    """Return a function that runs a part on torch's memory and torch's stream.

    Args:
        library: What built the engine.
        engine: The engine.
        context: Its execution context, without memory of its own.
        part: The part; only its names are kept, not its examples, which take memory.
        workspace: Memory for activations; must not be used on another stream.
        types: torch's data types by the library's.
        stream: Returns the address of the CUDA stream to run on.
    """
    channels_last = library.trt.TensorFormat.HWC8
    name, read, written = part.name, tuple(part.inputs), part.outputs
    layouts = {
        each: torch.channels_last if engine.get_tensor_format(each) == channels_last else torch.contiguous_format
        for each in (*read, *written)
    }
    made = {each: (tuple(engine.get_tensor_shape(each)), types[engine.get_tensor_dtype(each)]) for each in written}
    workspace.reserve(engine.device_memory_size_v2)

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = [tensor.contiguous(memory_format=layouts[each]) for each, tensor in zip(read, inputs, strict=True)]
        out = [
            torch.empty(shape, dtype=dtype, device=workspace.device, memory_format=layouts[each])
            for each, (shape, dtype) in made.items()
        ]
        for each, tensor in zip((*read, *written), (*given, *out), strict=True):
            context.set_tensor_address(each, tensor.data_ptr())
        workspace.lend_to(context)
        # `given` may be copies; torch gives their memory away again only in the order of this stream.
        if not context.execute_async_v3(stream()):
            raise DeviceError(f'{library.runtime} must run {name}, but failed; use backend="torch"')
        return out

    return run


@functools.cache
def _logger(library: Library) -> Any:
    """Return a log for the library, which passes its errors on; it has one for all builders and runtimes."""
    trt = library.trt

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                _log.warning("%s: %s", library.runtime, text)

    return Log()


def _torch_types(trt: Any) -> dict[Any, torch.dtype]:
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }


def _current_stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _driver() -> int:
    """The newest CUDA that the driver knows, such as 13000: another driver, another engine."""
    version: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return version
