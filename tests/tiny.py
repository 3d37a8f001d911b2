"""Toy networks in which every part matters, a random clip for them, their cost, and scripts run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig
from vsfmanet.networks.jffra import JFFRA, JFFRAConfig
from vsfmanet.networks.m2aenet import M2AENet, M2AENetConfig
from vsfmanet.networks.mmprnn import MMPRNN, MMPRNNConfig

TINY = FMANetPPConfig(
    width=12, num_blocks=2, num_flows=3, heads=2, feed_forward_width=16, fuse_convs=1, dense_growth=4, dense_layers=2,
    extractor_width=4, modulation_width=6, kernel_head_size=1, upsampler="lr", last_flow_update=False,
)  # fmt: skip
CELLS = replace(TINY, grid=4, path_width=4, initial_flow="matching", flow_features=True, learned_exposures=True)
"""On a grid of 4, with a path branch at full size."""
TINY_JFFRA = JFFRAConfig(width=16, depth=2, bottom_depth=2, flow_width=8, flow_features=True)
TINY_M2AENET = M2AENetConfig(width=8, depth=1, motion_width=2, blur_width=2)
TINY_MMPRNN = MMPRNNConfig(cell_blocks=1, decoder_blocks=1, width=4, prior_width=4)


def awake(config: FMANetPPConfig, seed: int = 0) -> FMANetPP:
    """FMA-Net++ in which nothing is zero: a fresh one returns the bilinear image whatever else it computes."""
    torch.manual_seed(seed)
    network = FMANetPP(config)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if not value.any():
                value.normal_(std=0.05)
            if "flow_update" in name and name.endswith("2.bias"):
                value.normal_(std=1.5)  # real motion, so that a wrong neighbour shows
        if network.extractor is not None:
            network.anchors.copy_(F.normalize(torch.randn_like(network.anchors), dim=1))
    return network.eval()


def awake_jffra(config: JFFRAConfig = TINY_JFFRA, *, moving: bool = True) -> JFFRA:
    """JFFRA in which nothing is zero; with `moving` False, all but the last layers of the flow heads."""
    torch.manual_seed(0)
    network = JFFRA(config)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if not value.any() and (moving or "flow_head" not in name):
                value.normal_(std=0.1)
    return network.eval()


def awake_m2aenet(config: M2AENetConfig = TINY_M2AENET) -> M2AENet:
    """M2AENet in which nothing is zero, with paths of some pixels."""
    torch.manual_seed(0)
    network = M2AENet(config)
    with torch.no_grad():
        network.restorer.leave.weight.normal_(std=0.1)
        if network.motion is not None:
            assert network.motion.last.bias is not None
            network.motion.last.bias.copy_(torch.tensor([-5.0, 2.0, 4.0, -1.0]))
            network.motion.last.weight.normal_(std=0.5)
    return network.eval()


def awake_mmprnn(config: MMPRNNConfig = TINY_MMPRNN, seed: int = 0) -> MMPRNN:
    """MMP-RNN all of whose parts matter, in eval mode."""
    torch.manual_seed(seed)
    network = MMPRNN(config).eval()
    nn.init.normal_(network.decoder.last.weight, std=1)
    return network


def clip(frames: int = 5, height: int = 17, width: int = 13, seed: int = 1) -> Tensor:
    """Noise (1, frames, 3, height, width) in [0, 1]."""
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


FRAMES = 19
CUTS = (6, 7, 13)


class NoiseSource:
    """A clip of noise with cuts and two known exposures; remembers what was read of it."""

    num_frames = FRAMES

    def __init__(self) -> None:
        self.frames = torch.rand(FRAMES, 3, 11, 14, generator=torch.Generator().manual_seed(3))
        self.given: dict[int, float] = {2: 0.3, 9: 1.0}
        self.read: list[int] = []

    def frame(self, n: int) -> Tensor:
        self.read.append(n)
        return self.frames[n]

    def exposure(self, n: int) -> float | None:
        return self.given.get(n)

    def starts_scene(self, n: int) -> bool:
        return n in CUTS


def run(main: Callable[[], None], *arguments: object) -> None:
    """Run a script's `main` as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, arguments)])
        main()


class Multiplications(TorchFunctionMode):
    """Counts those of convolutions and products of matrices while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.conv3d):
            self.total += out.numel() * args[1][0].numel()
        elif func is F.conv_transpose2d:
            self.total += args[0].numel() * args[1][0].numel()
        elif func in (F.linear, torch.addmm):
            self.total += out.numel() * args[1].shape[1]
        elif func is torch.bmm:
            self.total += out.numel() * args[0].shape[2]
        elif func is F.scaled_dot_product_attention:
            self.total += 2 * args[0].numel() * args[1].shape[2]
        return out
