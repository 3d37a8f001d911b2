"""The path branch: frames and their neighbours, read along the path that blurred them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet import kernels
from vsfmanet.networks.blocks import Conv3x3, Layers, at_multiples, keep_scale, leaky_relu, zero_init
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.shutter import FLOW_UNIT, ShutterEstimate
from vsfmanet.ops.path import PathPlaces
from vsfmanet.tiling import Box

_HEAD_WIDTH = 32

OWN_REACH, OWN_COUNT = 3.0, 13
"""Places at which a frame is read: the farthest, in units of half the blur, and their number."""

NEIGHBOUR_REACH, NEIGHBOUR_COUNT = 2.0, 5
"""The same for each neighbour, around the pixel that the flow leads to."""

CHANNELS = 3 * (OWN_COUNT + 2 * NEIGHBOUR_COUNT) + 6
"""Channels that the branch reads for each pixel: samples, the pixel itself, and the blur as a vector and a length."""

MIX_WIDTH = 96
"""Channels to which a pointwise convolution brings what the branch reads, before the first 3x3 convolution."""

_SLOPE = 0.1  # of leaky ReLUs

EXPOSURE_CHANNELS = 2
"""Channels that follow an embedding for the path branch: the known exposure, 0 if unknown, and whether it is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """Frames with their neighbours, as the path branch samples them: whole, with sides that the grid divides, fp32."""

    own: Tensor
    """(N, 3, H, W) in [0, 1]."""
    following: Tensor
    """(N, 3, H, W), next frames; where one is missing, the frame itself."""
    previous: Tensor
    """(N, 3, H, W), alike."""

    @classmethod
    def of(cls, lr: Tensor, neighbours: tuple[Tensor, Tensor], grid: int) -> Self:
        """Build from frames (N, 3, H, W) and their next and previous ones, padded to multiples of `grid`."""
        own, following, previous = (at_multiples(image.float(), grid) for image in (lr, *neighbours))
        return cls(own=own, following=following, previous=previous)


class BlurPath(nn.Module):
    """Estimate how each cell moves, and how far while the shutter is open.

    A known exposure is taken as it is, and an unknown one is estimated, see `ShutterEstimate`. The velocity is the mean
    of the flow to the next frame and of that from the previous one, by weights that the features decide, because a
    neighbour may be missing or occluded.

    Args:
        config: Sizes.
        embed_width: Channels of the exposure embeddings, without `EXPOSURE_CHANNELS`; 0 for none.
    """

    def __init__(self, config: FMANetPPConfig, *, embed_width: int) -> None:
        super().__init__()
        self.num_flows, self.grid, self.knows_exposure = config.num_flows, config.grid, embed_width > 0
        self.head = Layers(Conv3x3(config.width + 4, _HEAD_WIDTH), leaky_relu(), last := Conv3x3(_HEAD_WIDTH, 5))
        keep_scale(self.head)
        zero_init(last)
        self.shutter = ShutterEstimate(config)

    def forward(self, image: Tensor, feat: Tensor, flow: Tensor, embed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the motion of each cell.

        Args:
            image: (N, 3, g*h, g*w) in [0, 1], fp32, the frames.
            feat: (N, C, h, w), from the last block.
            flow: (N, 6n, h, w), fp32, in units of a cell.
            embed: (N, U + 2), exposure embeddings with `EXPOSURE_CHANNELS`; None without exposure awareness.

        Returns:
            (N, 6, h, w), fp32, input pixels, right and down each: half of the motion blur, from the middle of the
            exposure to its end, as far as it is to be undone; flow to the next frame; flow to the previous frame. And
            (N,), the estimated exposures, of frames whose exposure is known too.
        """
        pairs = rearrange(flow, "n (d g c) h w -> n d g c h w", d=2, g=self.num_flows)
        flows = self.grid * pairs[:, :, :, :2].mean(dim=2).flatten(1, 2)
        seen = F.softsign(flows / FLOW_UNIT).to(feat.dtype).contiguous(memory_format=torch.channels_last)
        weight, correction = self.head(feat, seen).float().split([1, 4], dim=1)
        weight, flows = weight.sigmoid(), flows + FLOW_UNIT * correction
        velocity = weight * flows[:, :2] - (1 - weight) * flows[:, 2:]
        estimate, exposure = self.shutter(feat, image, velocity)
        if self.knows_exposure:
            assert embed is not None
            given, known = embed[:, -EXPOSURE_CHANNELS:].float().unbind(dim=1)
            exposure = torch.lerp(exposure, given, known)
        return torch.cat([exposure[:, None, None, None] / 2 * velocity, flows], dim=1), estimate


class Pointwise(nn.Conv2d):
    """A 1x1 convolution of several tensors that are one, channel after channel, without putting them together."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(in_width, out_width, 1)

    def forward(self, *parts: Tensor) -> Tensor:
        """Convolve (N, C, H, W) each, whose channels are read one part after the other; returns (N, outputs, H, W)."""
        *weights, last = self.weight.split([part.shape[1] for part in parts], dim=1)
        out = F.conv2d(parts[-1], last, self.bias)
        for part, weight in zip(parts, weights, strict=False):
            out = out + F.conv2d(part, weight)
        return out


class Residual(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Conv3x3(width, width), Conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add to `x` (N, C, H, W)."""
        return x + self.second(self.first(x, slope=_SLOPE))


class PathBranch(nn.Module):
    """Restore detail from samples of a frame and its neighbours along the blur.

    Motion blur of any direction and length is a box over the path that a point takes while the shutter is open. In
    samples at fixed fractions of that path it is always the same box, so that convolutions of one size undo short and
    long blur. Departure from the paper, whose network sees the motion in its features only.

    Args:
        config: Sizes. The branch works on cells of d x d input pixels, d = `path_grid`.
    """

    def __init__(self, config: FMANetPPConfig) -> None:
        super().__init__()
        width, factor = config.path_width, config.scale * config.path_grid
        self.grid = config.grid
        self.places = PathPlaces(
            own_reach=OWN_REACH, own_count=OWN_COUNT, neighbour_reach=NEIGHBOUR_REACH, neighbour_count=NEIGHBOUR_COUNT,
            unit=FLOW_UNIT / 2, grid=config.grid, size=config.path_grid,
        )  # fmt: skip
        shuffle = config.grid // config.path_grid
        self.context = Layers(Conv3x3(config.width, width * shuffle**2), nn.PixelShuffle(shuffle), leaky_relu())
        self.mix = Layers(mixed := Pointwise(width + CHANNELS * config.path_grid**2, MIX_WIDTH), leaky_relu())
        self.body = Layers(
            Conv3x3(MIX_WIDTH, width), *(Residual(width) for _ in range(config.path_blocks)), leaky_relu(),
            last := Conv3x3(width, 3 * factor**2), nn.PixelShuffle(factor),
        )  # fmt: skip
        keep_scale(self)
        zero_init(last)
        with torch.no_grad():
            mixed.weight[:, :width] = 0  # the samples can be learned from alone, before the levels

    def forward(self, feat: Tensor, frames: Frames, motion: Tensor, tile: Box) -> Tensor:
        """Compute an addition to the residual image.

        Args:
            feat: (N, C, h/g, w/g), from the last block, of a tile of h x w pixels.
            frames: Whole frames.
            motion: (N, 6, h/g, w/g), fp32, result of `BlurPath` for the tile.
            tile: The tile, in cells of g x g pixels.

        Returns:
            (N, 3, s*h, s*w).
        """
        origin = self.grid * tile.top, self.grid * tile.left
        images = frames.own, frames.following, frames.previous
        read = kernels.path_cells(images, motion, self.places, origin, feat.dtype)
        return self.body(self.mix(self.context(feat), read))
