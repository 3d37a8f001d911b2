"""The network in onnxruntime, on the CPU: proof that the exported graphs compute what torch does."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.graph import GraphEngine, Run
from vsfmanet.errors import ConfigError
from vsfmanet.networks.description import ExportPart, LevelNetwork


def onnx_engine(network: LevelNetwork, *, weights_sha256: str, cache: EngineCache) -> GraphEngine:
    """Return an engine that runs a network's parts in onnxruntime.

    Args:
        network: Deployed form, fp32, on the CPU.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of exported graphs.

    Raises:
        ConfigError: A package is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch exports with it)
    except ImportError as error:
        raise ConfigError(
            f'backend="onnx" needs onnx, onnxscript and onnxruntime, got none ({error}); pip install vsfmanet[onnx]'
        ) from error

    def load(part: ExportPart, data: bytes) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        read, written = tuple(part.inputs), list(part.outputs)  # not the examples, which take memory

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = {name: tensor.contiguous().numpy() for name, tensor in zip(read, inputs, strict=True)}
            return [torch.from_numpy(array) for array in session.run(written, given)]

        return run

    return GraphEngine(
        network,
        weights_sha256=weights_sha256,
        cache=cache,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        device=f"cpu {os.cpu_count()}",
        build=lambda model: model,
        load=load,
    )
