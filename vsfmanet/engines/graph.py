"""The network's parts as ONNX graphs of one shape, and the engine that runs whatever is built from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vsfmanet import __version__
from vsfmanet.engines.cache import EngineCache, EngineSpec
from vsfmanet.errors import DeviceError
from vsfmanet.networks.fmanetpp import FMANetPP

type Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A part, ready: tensors in, tensors out, in the order of `Part`."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Root mean square of what a part may be off, over that of what eager torch gives."""

_OPSET = 20  # GridSample with today's names


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the network as a function of tensors alone."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Example of each, of the shape and type that it will have."""
    outputs: tuple[str, ...]


class _Stem(nn.Module):
    def __init__(self, network: FMANetPP, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network.degradation, dtype

    def forward(self, lr: Tensor) -> Tensor:
        return self.network.enter(lr.to(self.dtype))


class _Level(nn.Module):
    def __init__(self, block: nn.Module, names: Sequence[str], *, update_flow: bool) -> None:
        super().__init__()
        self.block, self.names, self.update_flow = block, tuple(names), update_flow

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        neighbours = (given["next"], given["previous"])
        feat, flow = self.block(
            given["feat"],
            neighbours,
            given["flow"],
            given.get("embed"),
            given.get("guide"),
            update_flow=self.update_flow,
        )
        return (feat, flow) if self.update_flow else (feat,)


class _Bridge(nn.Module):
    def __init__(self, network: FMANetPP, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, ...]:
        out, _, guides = self.network.bridge(lr.to(self.dtype), feat)
        return out, *guides


class _Finish(nn.Module):
    def __init__(self, network: FMANetPP) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor, feat: Tensor) -> Tensor:
        return self.network.finish(lr, feat)


def parts(network: FMANetPP, height: int, width: int) -> Iterator[Part]:
    """All parts of a network for frames of one size, with fixed inputs of plausible values, one part's at a time.

    Args:
        network: Deployed form; its two networks in the type that is to compute, on any device.
        height: Of an input frame.
        width: Of an input frame.
    """
    weight = next(network.degradation.parameters())
    dtype, device, config = weight.dtype, weight.device, network.config
    rows, columns = -(-height // config.grid), -(-width // config.grid)
    generator = torch.Generator().manual_seed(0)

    def picture() -> Tensor:
        return torch.rand(1, 3, height, width, generator=generator).to(device)

    def feat() -> Tensor:
        return torch.randn(1, config.width, rows, columns, generator=generator).to(device, dtype)

    flow = (3 * torch.randn(1, 6 * config.num_flows, rows, columns, generator=generator)).to(device)
    yield Part(name="stem", module=_Stem(network, dtype), inputs={"lr": picture()}, outputs=("feat_out",))
    levels = 2 * config.num_blocks
    for index, block in enumerate(network.blocks):
        inputs = {"feat": feat(), "next": feat(), "previous": feat(), "flow": flow}
        if network.extractor is not None:
            embed = torch.randn(1, network.extractor.embed_width, generator=generator)
            inputs["embed"] = nn.functional.normalize(embed, dim=1).to(device, dtype)
        if index >= config.num_blocks:
            inputs["guide"] = feat()
        updates = index < levels - 1
        module = _Level(block, list(inputs), update_flow=updates)
        outputs = ("feat_out", "flow_out") if updates else ("feat_out",)
        yield Part(name=f"level {index}", module=module, inputs=inputs, outputs=outputs)
    both = {"lr": picture(), "feat": feat()}
    guides = tuple(f"guide{block}" for block in range(config.num_blocks))
    yield Part(name="bridge", module=_Bridge(network, dtype), inputs=both, outputs=("feat_out", *guides))
    yield Part(name="finish", module=_Finish(network), inputs=both, outputs=("frame",))


def export(part: Part) -> bytes:
    """A part as an ONNX model with its weights inside. Kernels of ours are not in it, but their twins."""
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


class GraphEngine:
    """Parts built for one frame size, when the first frame comes; see `Engine`.

    Args:
        network: Deployed form, its two networks in the type that computes.
        weights_sha256: Of the weights file.
        cache: Where built engines are kept.
        runtime: Name and version of what builds and runs.
        device: Name of the device, its capability and its driver.
        build: Makes an engine of an ONNX model.
        load: Makes an engine ready to run, for inputs and outputs named as in the part.

    Raises:
        DeviceError: From its methods: a part gives something else than eager torch.
    """

    def __init__(
        self,
        network: FMANetPP,
        *,
        weights_sha256: str,
        cache: EngineCache,
        runtime: str,
        device: str,
        build: Callable[[bytes], bytes],
        load: Callable[[Part, bytes], Run],
    ) -> None:
        self._network = network
        self._weights_sha256 = weights_sha256
        self._cache = cache
        self._runtime, self._device = runtime, device
        self._build, self._load = build, load
        self._size: tuple[int, int] | None = None
        self._runs: dict[str, Run] = {}

    def stem(self, lr: Tensor) -> Tensor:
        """See `Engine`."""
        if self._size != lr.shape[2:]:
            self._prepare(lr.shape[2], lr.shape[3])
        [feat] = self._runs["stem"]([lr])
        return feat

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Engine`; by torch, for it has no weights."""
        return self._network.degradation.initial_flow(lr, neighbours)

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
        given = [tensor for tensor in (feat, *neighbours, flow, embed, guide) if tensor is not None]
        out, *updated = self._runs[f"level {index}"](given)
        return out, updated[0] if updated else flow

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Engine`."""
        out, *guides = self._runs["bridge"]([lr, feat])
        return out, tuple(guides)

    def finish(self, lr: Tensor, feat: Tensor) -> Tensor:
        """See `Engine`."""
        [frame] = self._runs["finish"]([lr, feat])
        return frame

    @torch.inference_mode(mode=False)  # an export does not work there
    def _prepare(self, height: int, width: int) -> None:
        """Fetch or build all parts for a frame size, and hold each against eager torch."""
        precision = str(next(self._network.degradation.parameters()).dtype).removeprefix("torch.")
        runs = {}
        for part in parts(self._network, height, width):
            spec = EngineSpec(
                part=part.name,
                weights_sha256=self._weights_sha256,
                height=height,
                width=width,
                precision=precision,
                runtime=self._runtime,
                device=self._device,
                versions=f"vsfmanet {__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}",
            )
            run = self._cache.fetch(spec, partial(self._made, part), partial(self._load, part))
            self._check(part, run)
            runs[part.name] = run
        self._runs, self._size = runs, (height, width)

    def _made(self, part: Part) -> bytes:
        return self._build(export(part))

    def _check(self, part: Part, run: Run) -> None:
        with torch.inference_mode():
            expected = part.module(*part.inputs.values())
            found = run(list(part.inputs.values()))
        expected = [expected] if isinstance(expected, Tensor) else expected
        allowed = TOLERANCE[next(self._network.degradation.parameters()).dtype]
        for name, theirs, ours in zip(part.outputs, expected, found, strict=True):
            norm = theirs.float().square().mean().sqrt()
            off = float((ours.float() - theirs.float()).square().mean().sqrt() / norm.clamp_min(1e-6))
            if not off <= allowed:  # so that a NaN is refused too
                raise DeviceError(
                    f"restore: {self._runtime} must agree with torch to {allowed:.0e}, but {name} of {part.name} is "
                    f'off by {off:.1e}; use backend="torch"'
                )
