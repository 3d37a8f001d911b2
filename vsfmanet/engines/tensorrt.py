"""The network in TensorRT. Written to the documentation of TensorRT 10 and never run: unverified."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.graph import GraphEngine, Run
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.networks.description import ExportPart, LevelNetwork

_log = logging.getLogger(__name__)


def tensorrt_engine(
    network: LevelNetwork, *, weights_sha256: str, cache: EngineCache, device: torch.device
) -> GraphEngine:
    """Return an engine that runs a network's parts in TensorRT. Building takes minutes; the result is cached.

    The graphs carry their types (features half, sampling positions and flow fp32), and TensorRT keeps to them.

    Args:
        network: Deployed form on a CUDA device, in the type that computes.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of built engines.
        device: The CUDA device.

    Raises:
        ConfigError: A package is missing.
    """
    try:
        import onnxscript  # noqa: F401 (torch exports with it)
        import tensorrt as trt
    except ImportError as error:
        raise ConfigError(
            f'backend="tensorrt" needs tensorrt, onnx and onnxscript, got none ({error}); '
            "pip install vsfmanet[tensorrt]"
        ) from error
    logger = trt.Logger(trt.Logger.ERROR)
    properties = torch.cuda.get_device_properties(device)

    def build(model: bytes) -> bytes:
        _log.info("tensorrt: building an engine")
        builder = trt.Builder(logger)
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(definition, logger)
        if not parser.parse(model):
            reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
            raise DeviceError(f'TensorRT must read the network, got {reasons}; use backend="torch"')
        with torch.cuda.device(device):
            made = builder.build_serialized_network(definition, builder.create_builder_config())
        if made is None:
            raise DeviceError('TensorRT must build the network, but gave nothing; use backend="torch"')
        return bytes(made)

    def load(part: ExportPart, data: bytes) -> Run:
        with torch.cuda.device(device):
            engine = trt.Runtime(logger).deserialize_cuda_engine(data)
            if engine is None:
                raise ValueError("tensorrt: the engine cannot be loaded")  # the cache has it built anew
            context = engine.create_execution_context()
        return _runner(engine, context, part, device, _types(trt))

    return GraphEngine(
        network,
        weights_sha256=weights_sha256,
        cache=cache,
        runtime=f"TensorRT {trt.__version__}",
        device=f"{properties.name}, {properties.major}.{properties.minor}, driver {_driver()}",
        build=build,
        load=load,
    )


def _runner(engine: Any, context: Any, part: ExportPart, device: torch.device, types: dict[Any, torch.dtype]) -> Run:
    """A part on torch's memory and torch's stream."""
    name, read, written = part.name, tuple(part.inputs), part.outputs  # not the examples, which take memory

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = [tensor.contiguous() for tensor in inputs]
        out = [
            torch.empty(tuple(engine.get_tensor_shape(each)), dtype=types[engine.get_tensor_dtype(each)], device=device)
            for each in written
        ]
        for each, tensor in zip((*read, *written), (*given, *out), strict=True):
            context.set_tensor_address(each, tensor.data_ptr())
        # `given` may be copies; torch gives their memory away again only in the order of this stream.
        if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise DeviceError(f'TensorRT must run {name}, but failed; use backend="torch"')
        return out

    return run


def _types(trt: Any) -> dict[Any, torch.dtype]:
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }


def _driver() -> int:
    """The newest CUDA that the driver knows, such as 13000: another driver, another engine."""
    version: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return version
