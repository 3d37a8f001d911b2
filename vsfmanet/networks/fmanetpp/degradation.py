"""NetD of FMA-Net++."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet.networks.blocks import (
    Conv3x3,
    Layers,
    ResidualDenseBlock,
    at_multiples,
    cells,
    keep_scale,
    leaky_relu,
    zero_init,
)
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.level import HRBABlock
from vsfmanet.ops.matching import match_frames

_OPEN_MASK = 4.0  # sigmoid(4) = 0.982: nearly open, with a gradient that can still close it


class NetD(nn.Module):
    """NetD: learns how each frame was blurred and made smaller, and how it moves.

    Source: FMA-Net++, Sec. 3.2, Fig. 3. Paper silent on the heads: two 3x3 convolutions each; kernels start as a
    Gaussian around the pixel, weaker in the neighbouring frames, instead of a flat window; the image flow is the mean
    of the pairs plus what its head adds. Without that mean, head and flow updates both start at zero and neither has a
    gradient to leave it: the flow was not learned at all in 2,700 steps.

    Departure with a grid of g > 1: the stem reads cells of g x g pixels, after a pixel-unshuffle. Features and flow are
    of cells, (H/g, W/g) rounded up, the flow in units of a cell; frames that g does not divide are padded by their
    border.

    Args:
        config: Sizes.
        embed_width: Channels U of the exposure embeddings; 0 for no exposure modulation.
        deployed: Leave out the heads that only training needs.
    """

    def __init__(self, config: FMANetPPConfig, *, embed_width: int, deployed: bool) -> None:
        super().__init__()
        width, flow_width = config.width, 6 * config.num_flows
        self.num_flows = config.num_flows
        self._first_flow = match_frames if config.initial_flow == "matching" else _no_motion
        self.grid = config.grid
        self.stem = Layers(
            Conv3x3(3 * config.grid**2, width),
            leaky_relu(),
            ResidualDenseBlock(width, config.dense_growth, config.dense_layers),
        )
        if config.grid > 1:
            keep_scale(self.stem)
        self.blocks = nn.ModuleList(
            HRBABlock(config, embed_width=embed_width, flow_features=config.flow_features)
            for _ in range(config.num_blocks)
        )
        self.kernel_feat = Layers(Conv3x3(width, width), leaky_relu())
        self.image_flow: Layers | None = None
        self.to_kernels: nn.Conv2d | None = None
        if not deployed:
            self.image_flow = Layers(Conv3x3(flow_width, flow_width), leaky_relu(), Conv3x3(flow_width, 6))
            size = config.kernel_head_size
            self.to_kernels = nn.Conv2d(width, 3 * config.kernel_size**2, size, padding=size // 2)
            self._init_heads(config)

    def _init_heads(self, config: FMANetPPConfig) -> None:
        """Start with the mean flow, and an anti-alias kernel of plausible width."""
        assert self.image_flow is not None
        assert self.to_kernels is not None
        last = self.image_flow[2]
        assert isinstance(last, nn.Conv2d)
        zero_init(last)
        with torch.no_grad():
            self.to_kernels.weight.mul_(0.1)
            side = torch.arange(config.kernel_size) - (config.kernel_size - 1) / 2
            own = -(side[:, None] ** 2 + side**2) / (2 * (config.scale / 2) ** 2)
            assert self.to_kernels.bias is not None
            self.to_kernels.bias.copy_(torch.stack([own - 2, own, own - 2]).flatten())

    def enter(self, lr: Tensor) -> Tensor:
        """Compute the features that the first block reads.

        Args:
            lr: (N, 3, H, W) in [0, 1], in the type of the weights.

        Returns:
            (N, C, H/g, W/g).
        """
        return self.stem(cells(lr, self.grid))

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """Estimate the flow that the first level reads, the same for all pairs, with open masks.

        Departure with `initial_flow="matching"`, as in `base` and `fast` (the paper's flow starts at zero): a matched
        start needs no parameters, and to learn the motion from nothing takes longer than a short training.

        Args:
            lr: (N, 3, H, W) in [0, 1].
            neighbours: Next and previous frame, each (N, 3, H, W); where one is missing, `lr`.

        Returns:
            (N, 6n, H/g, W/g), fp32, channels-last, in units of a cell.
        """
        images = tuple(at_multiples(image, self.grid) for image in (lr, *neighbours))
        fine = max(1, self.grid // 2)  # half a cell: small motion would not be seen in whole ones
        own, following, previous = (F.avg_pool2d(image, fine) if fine > 1 else image for image in images)
        flows = self._first_flow(torch.cat([own, own]), torch.cat([following, previous]))
        if self.grid > 1:
            flows = F.avg_pool2d(flows, self.grid // fine) * (fine / self.grid)
        mask = torch.full((len(lr), 1, *flows.shape[2:]), _OPEN_MASK, device=lr.device)
        both = torch.cat([part for flow in flows.split(len(lr)) for part in [flow, mask] * self.num_flows], dim=1)
        return both.contiguous(memory_format=torch.channels_last)

    def sharp_flow(self, flow: Tensor) -> Tensor:
        """Compute the flow-mask pair between sharp frames. Training form only.

        Args:
            flow: (N, 6n, H/g, W/g), of the last block.

        Returns:
            (N, 6, H, W), fp32, for every pixel, in LR pixels; H and W are multiples of g.
        """
        assert self.image_flow is not None
        mean = rearrange(flow, "n (d g c) h w -> n d g c h w", d=2, g=self.num_flows).mean(dim=2)
        of_cells = mean.flatten(1, 2) + self.image_flow(flow).float()
        if self.grid == 1:
            return of_cells
        of_pixels = F.interpolate(of_cells, scale_factor=self.grid, mode="bilinear", align_corners=False)
        unit = of_pixels.new_tensor([self.grid, self.grid, 1.0] * 2)  # masks have no unit
        return of_pixels * unit[:, None, None]

    def kernels(self, kernel_feat: Tensor) -> Tensor:
        """Compute the logits of the degradation kernels. Training form only.

        Args:
            kernel_feat: (N, C, H/g, W/g), h_K.

        Returns:
            (N, 3*kd^2, H, W), for every pixel; H and W are multiples of g.
        """
        assert self.to_kernels is not None
        of_cells = self.to_kernels(kernel_feat)
        if self.grid == 1:
            return of_cells
        return F.interpolate(of_cells, scale_factor=self.grid, mode="bilinear", align_corners=False)


def _no_motion(own: Tensor, other: Tensor) -> Tensor:
    """Return the zero flow (N, 2, H, W), fp32, for `own` (N, 3, H, W); see `match_frames`."""
    return torch.zeros(len(own), 2, *own.shape[2:], device=own.device)
