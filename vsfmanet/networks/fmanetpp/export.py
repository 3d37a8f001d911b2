"""The parts of FMA-Net++ as functions of tensors alone, for ONNX. See `ExportPart`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vsfmanet.networks.description import ExportPart
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.degradation import NetD
from vsfmanet.networks.fmanetpp.parts import EagerParts
from vsfmanet.networks.fmanetpp.restoration import NetR


class _Stem(nn.Module):
    def __init__(self, degradation: NetD, dtype: torch.dtype) -> None:
        super().__init__()
        self.degradation, self.dtype = degradation, dtype

    def forward(self, lr: Tensor) -> Tensor:
        return self.degradation.enter(lr.to(self.dtype))


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
    def __init__(self, degradation: NetD, restoration: NetR, dtype: torch.dtype) -> None:
        super().__init__()
        self.degradation, self.restoration, self.dtype = degradation, restoration, dtype

    def forward(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, ...]:
        guides = self.restoration.guides(self.degradation.kernel_feat(feat), self.degradation.to_kernels)
        return self.restoration.enter(lr.to(self.dtype), feat), *guides


class _Finish(nn.Module):
    def __init__(self, parts: EagerParts, names: Sequence[str]) -> None:
        super().__init__()
        self.netr, self.parts, self.names = parts.restoration, parts, tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        lr, feat = given["lr"], given["feat"]
        neighbours = given.get("next", lr), given.get("previous", lr)
        return self.parts.finish(lr, neighbours, feat, given.get("flow", feat), given.get("embed"))


def export_parts(
    degradation: NetD, restoration: NetR, config: FMANetPPConfig, embed_width: int, height: int, width: int
) -> Iterator[ExportPart]:
    """Yield all parts but the initial flow for frames of one size, with examples of plausible values.

    Args:
        degradation: NetD in the type that will compute, on any device.
        restoration: NetR, alike.
        config: Sizes.
        embed_width: Channels of the exposure embeddings; 0 for a network without them.
        height: Height of an input frame, pixels.
        width: Width of an input frame, pixels.
    """
    weight = next(degradation.parameters())
    dtype, device = weight.dtype, weight.device
    whole = EagerParts(degradation, restoration)
    rows, columns = -(-height // config.grid), -(-width // config.grid)
    generator = torch.Generator().manual_seed(0)

    def picture() -> Tensor:
        return torch.rand(1, 3, height, width, generator=generator).to(device)

    def feat() -> Tensor:
        return torch.randn(1, config.width, rows, columns, generator=generator).to(device, dtype)

    def embedding() -> Tensor:
        vector = nn.functional.normalize(torch.randn(1, embed_width, generator=generator), dim=1)
        if config.path_width:
            vector = torch.cat([vector, torch.tensor([[0.5, 1.0]])], dim=1)
        return vector.to(device, dtype)

    flow = (3 * torch.randn(1, 6 * config.num_flows, rows, columns, generator=generator)).to(device)
    yield ExportPart(name="stem", module=_Stem(degradation, dtype), inputs={"lr": picture()}, outputs=("feat_out",))
    for index, block in enumerate(whole.blocks):
        inputs = {"feat": feat(), "next": feat(), "previous": feat(), "flow": flow}
        if embed_width:
            inputs["embed"] = embedding()
        if index >= config.num_blocks:
            inputs["guide"] = feat()
        updates = whole.updates_flow(index)
        module = _Level(block, list(inputs), update_flow=updates)
        outputs = ("feat_out", "flow_out") if updates else ("feat_out",)
        yield ExportPart(name=f"level {index}", module=module, inputs=inputs, outputs=outputs)
    both = {"lr": picture(), "feat": feat()}
    guides = tuple(f"guide{block}" for block in range(config.num_blocks))
    yield ExportPart(
        name="bridge", module=_Bridge(degradation, restoration, dtype), inputs=both, outputs=("feat_out", *guides)
    )
    if config.path_width:
        both = {"lr": both["lr"], "next": picture(), "previous": picture(), "feat": both["feat"], "flow": flow}
        if embed_width:
            both["embed"] = embedding()
    yield ExportPart(name="finish", module=_Finish(whole, list(both)), inputs=both, outputs=("frame",))
