"""A network's parts as ONNX graphs of one shape, and the engine that runs what a runtime builds of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from vsfmanet import __version__
from vsfmanet.engines.cache import EngineCache, EngineSpec
from vsfmanet.errors import DeviceError
from vsfmanet.networks.description import ExportPart, LevelNetwork, NamedParts, run_part

type Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Runs a part: inputs and outputs are in the order of `ExportPart`."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference from eager torch, by type: root mean square of the difference over that of torch's result."""

_OPSET = 20  # GridSample with today's names


def export(part: ExportPart) -> bytes:
    """Export a part as an ONNX model with its weights inside; it holds the references, not kernels of this package."""
    with torch.no_grad():
        program = torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def engine_spec(
    part: ExportPart, dtype: torch.dtype, size: tuple[int, int], weights_sha256: str, *, runtime: str, device: str
) -> EngineSpec:
    """Describe the engine of a part, for the cache.

    Args:
        part: The part.
        dtype: Data type of the features.
        size: Height and width of an input frame, pixels.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        runtime: Name and version of the library that builds and runs it.
        device: What it is built for.
    """
    return EngineSpec(
        part=part.name,
        weights_sha256=weights_sha256,
        height=size[0],
        width=size[1],
        precision=str(dtype).removeprefix("torch."),
        runtime=runtime,
        device=device,
        # Graphs do not depend on which CUDA torch is built for, so that a machine without a GPU can build them.
        versions=f"vsfmanet {__version__}, torch {torch.__version__.partition('+')[0]}",
    )


class GraphEngine(NamedParts):
    """Runs parts that are built for one frame size when the first frame of that size comes; see `Parts`.

    Args:
        network: Deployed form, in the type that computes.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of built engines.
        runtime: Name and version of the library that builds and runs them.
        device: Name of the device, its capability and its driver.
        build: Builds an engine of an ONNX model.
        load: Makes an engine ready to run, with inputs and outputs named as in the part.

    Raises:
        DeviceError: `stem` raises it if a part's result differs from that of eager torch.
    """

    def __init__(
        self,
        network: LevelNetwork,
        *,
        weights_sha256: str,
        cache: EngineCache,
        runtime: str,
        device: str,
        build: Callable[[bytes], bytes],
        load: Callable[[ExportPart, bytes], Run],
    ) -> None:
        self._network, self._parts = network, network.parts()
        self._weights_sha256 = weights_sha256
        self._cache = cache
        self._runtime, self._device = runtime, device
        self._build, self._load = build, load
        self._size: tuple[int, int] | None = None
        self._runs: dict[str, tuple[Run, tuple[str, ...]]] = {}

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """See `NamedParts`. The initial flow is computed by torch, for it has no weights."""
        if name == "initial flow":
            return run_part(self._parts, name, inputs)
        if name == "stem" and self._size != inputs["lr"].shape[2:]:
            self._prepare(*inputs["lr"].shape[2:])
        run, read = self._runs[name]
        return tuple(run([inputs[each] for each in read]))

    @torch.inference_mode(mode=False)  # an export does not work there
    def _prepare(self, height: int, width: int) -> None:
        """Fetch or build all parts for a frame size, and compare each with eager torch.

        Raises:
            DeviceError: A part differs.
        """
        size, sha256, dtype = (height, width), self._weights_sha256, self._network.dtype
        runs = {}
        for part in self._network.export_parts(height, width):
            spec = engine_spec(part, dtype, size, sha256, runtime=self._runtime, device=self._device)
            run = self._cache.fetch(spec, partial(self._built, part), partial(self._load, part))
            self._check(part, run)
            runs[part.name] = run, tuple(part.inputs)  # not all networks read all of them
        self._runs, self._size = runs, (height, width)

    def _built(self, part: ExportPart) -> bytes:
        return self._build(export(part))

    def _check(self, part: ExportPart, run: Run) -> None:
        with torch.inference_mode():
            expected = part.module(*part.inputs.values())
            found = run(list(part.inputs.values()))
        expected = [expected] if isinstance(expected, Tensor) else expected
        allowed = TOLERANCE[self._network.dtype]
        for name, theirs, ours in zip(part.outputs, expected, found, strict=True):
            norm = theirs.float().square().mean().sqrt()
            off = float((ours.float() - theirs.float()).square().mean().sqrt() / norm.clamp_min(1e-6))
            if not off <= allowed:  # so that a NaN is refused too
                raise DeviceError(
                    f"{self._runtime} must agree with torch to {allowed:.0e}, but {name} of {part.name} is "
                    f'off by {off:.1e}; use backend="torch"'
                )
