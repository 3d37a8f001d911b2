"""The path branch: frames read along the path that blurred them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet.networks.blocks import Conv3x3, Layers, keep_scale, leaky_relu, zero_init
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.ops.warp import PATH_SAMPLES, sample_path

_HEAD_WIDTH = 32
_FLOW_UNIT = 8.0  # pixels
_UNKNOWN = 0.6  # exposure that a fresh network takes where none is known: the middle of the levels

EXPOSURE_CHANNELS = 2
"""Channels that follow an embedding for the path branch: the known exposure, 0 if unknown, and whether it is known."""


class BlurPath(nn.Module):
    """Estimate the motion of each cell while the shutter was open: flow times exposure.

    A known exposure is taken as it is. Where it is unknown, it is estimated for each cell from the features. The
    velocity is the mean of the flow to the next frame and of that from the previous one, by weights that the features
    decide (a neighbour may be missing or occluded), plus a correction.

    Args:
        config: Sizes.
        embed_width: Channels of the exposure embeddings, without `EXPOSURE_CHANNELS`; 0 for none.
    """

    def __init__(self, config: FMANetPPConfig, *, embed_width: int) -> None:
        super().__init__()
        self.num_flows, self.grid, self.knows_exposure = config.num_flows, config.grid, embed_width > 0
        self.head = Layers(Conv3x3(config.width + 4, _HEAD_WIDTH), leaky_relu(), last := Conv3x3(_HEAD_WIDTH, 4))
        keep_scale(self.head)
        zero_init(last)
        self.usual = nn.Parameter(torch.tensor(_UNKNOWN).logit())

    def forward(self, feat: Tensor, flow: Tensor, embed: Tensor | None) -> Tensor:
        """Compute half of the motion blur as a vector, from the middle of the exposure to its end.

        Args:
            feat: (N, C, H/g, W/g), from the last block.
            flow: (N, 6n, H/g, W/g), fp32, in units of a cell.
            embed: (N, U + 2), exposure embeddings with `EXPOSURE_CHANNELS`; None without exposure awareness.

        Returns:
            (N, 2, H/g, W/g), fp32, input pixels: right, down.
        """
        pairs = rearrange(flow, "n (d g c) h w -> n d g c h w", d=2, g=self.num_flows)
        flows = self.grid * pairs[:, :, :, :2].mean(dim=2)  # (N, 2, 2, h, w): next, previous
        seen = F.softsign(flows.flatten(1, 2) / _FLOW_UNIT).to(feat.dtype)
        weight, exposure, correction = self.head(feat, seen).float().split([1, 1, 2], dim=1)
        weight, exposure = weight.sigmoid(), (exposure + self.usual).sigmoid()
        if self.knows_exposure:
            assert embed is not None
            given, known = rearrange(embed[:, -EXPOSURE_CHANNELS:].float(), "n c -> c n 1 1 1")
            exposure = torch.lerp(exposure, given, known)
        velocity = weight * flows[:, 0] - (1 - weight) * flows[:, 1] + _FLOW_UNIT * correction
        return exposure / 2 * velocity


class PathBranch(nn.Module):
    """Restore detail from samples of the frame along its blur.

    Motion blur of any direction and length is a box over the path that a point takes while the shutter is open. In
    samples at fixed fractions of that path it is always the same box, so that shallow convolutions of one size undo
    short and long blur. Departure from the paper, whose network sees the motion in its features only.

    Args:
        config: Sizes. The branch works on cells of d x d input pixels, d = `path_grid`.
    """

    def __init__(self, config: FMANetPPConfig) -> None:
        super().__init__()
        width, factor = config.path_width, config.scale * config.path_grid
        self.grid, self.path_grid = config.grid, config.path_grid
        channels = (3 * PATH_SAMPLES + 3) * config.path_grid**2
        self.body = Layers(
            Conv3x3(width + channels, width), leaky_relu(),
            Conv3x3(width, width), leaky_relu(),
            Conv3x3(width, width), leaky_relu(),
            Conv3x3(width, width), leaky_relu(),
            last := Conv3x3(width, 3 * factor**2), nn.PixelShuffle(factor),
        )  # fmt: skip
        keep_scale(self.body)
        zero_init(last)

    def forward(self, context: Tensor, image: Tensor, blur: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
        """Compute the residual image.

        Args:
            context: (N, D, h/d, w/d), features of the levels, of the frames or of a tile of them.
            image: (N, 3, H, W) in [0, 1], fp32, whole frames whose sides g divides.
            blur: (N, 2, h/g, w/g), fp32, result of `BlurPath` for the tile.
            origin: Row and column of `image` where the tile begins.

        Returns:
            (N, 3, s*h, s*w).
        """
        if self.grid > 1:
            blur = F.interpolate(blur, scale_factor=self.grid, mode="bilinear", align_corners=False)
        samples = sample_path(image, blur, origin)
        length = blur.square().sum(dim=1, keepdim=True).add(1e-2).log() / 2
        read = torch.cat([samples, F.softsign(blur / (_FLOW_UNIT / 2)), length], dim=1).to(context.dtype)
        if self.path_grid > 1:
            read = F.pixel_unshuffle(read, self.path_grid)
        return self.body(context, read.contiguous(memory_format=torch.channels_last))
