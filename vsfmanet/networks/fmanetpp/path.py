"""The path branch: frames and their neighbours, read along the path that blurred them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet import kernels
from vsfmanet.networks.blocks import Conv3x3, Layers, at_multiples, cells, keep_scale, leaky_relu, zero_init
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.ops.path import PathPlaces
from vsfmanet.ops.warp import sample_path
from vsfmanet.tiling import Box

_HEAD_WIDTH = 32
_FLOW_UNIT = 8.0  # pixels
_UNKNOWN = 0.6  # exposure that a fresh network takes where none is known: the middle of the levels

OWN_REACH, OWN_COUNT = 3.0, 13
"""Places at which a frame is read: the farthest, in units of half the blur, and their number."""

NEIGHBOUR_REACH, NEIGHBOUR_COUNT = 2.0, 5
"""The same for each neighbour, around the pixel that the flow leads to."""

CHANNELS = 3 * (OWN_COUNT + 2 * NEIGHBOUR_COUNT) + 6
"""Channels that the branch reads for each pixel: samples, the pixel itself, and the blur as a vector and a length."""

SHUTTER_REACH, SHUTTER_COUNT = 1.5, 13
"""Places at which an unknown exposure is looked for: the farthest, in units of half the way to the next frame."""

MIX_WIDTH = 96
"""Channels to which a pointwise convolution brings what the branch reads, before the first 3x3 convolution."""

_SLOPE = 0.1  # of leaky ReLUs
_SHUTTER_WIDTH = 48
_FAINT = 2e-3  # contrast below which differences along the path are mostly noise

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


class ShutterEstimate(nn.Module):
    """Estimate a frame's exposure from how it looks along the motion, and across: one number for all of the frame.

    Motion blurs along the motion alone. Every cell has a vote, read from samples along the path that a point takes from
    frame to frame and from samples across it, and a weight; a verdict on the weighted mean of the features that the
    votes are read from corrects the mean vote.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FMANetPPConfig) -> None:
        super().__init__()
        self.grid, self.stride = config.grid, min(2, config.grid)
        places = (2 * SHUTTER_COUNT + 1) * (config.grid // self.stride) ** 2
        width = _SHUTTER_WIDTH
        self.look = Layers(Conv3x3(places + 3, width), leaky_relu(), Conv3x3(width, width), leaky_relu())
        self.features = Layers(joint := Conv3x3(config.width + width, width), leaky_relu())
        self.vote = Conv3x3(width, 2)
        self.verdict = nn.Sequential(nn.Linear(width, width), leaky_relu(), last := nn.Linear(width, 2))
        keep_scale(self)
        for layer in (self.vote, last):
            zero_init(layer)
        with torch.no_grad():
            joint.weight[:, : config.width] = 0  # the samples can be learned from alone, before the levels
            assert self.vote.bias is not None
            self.vote.bias[0] = torch.tensor(_UNKNOWN).logit()

    def forward(self, feat: Tensor, image: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate exposures.

        Args:
            feat: (N, C, h, w), from the last block.
            image: (N, 3, g*h, g*w) in [0, 1], fp32, the frames.
            velocity: (N, 2, h, w), fp32, motion in pixels a frame interval.

        Returns:
            Open-shutter time over frame interval, fp32, in (0, 1), (N,) each: the estimate, and the exposure to restore
            by, which is learned from restored frames alone. It is the smaller where the estimate may be wrong, because
            blur that is there and stays costs less than blur that is undone and was not there.
        """
        path = velocity / 2
        if self.grid > self.stride:
            path = F.interpolate(path, scale_factor=self.grid // self.stride, mode="nearest")
        across = torch.stack([-path[:, 1], path[:, 0]], dim=1)
        green = image[:, 1:2]
        own = green[..., None, :: self.stride, :: self.stride]
        looks = [sample_path(green, way, SHUTTER_REACH, SHUTTER_COUNT, stride=self.stride) for way in (path, across)]
        seen = (torch.cat(looks, dim=2) - own).flatten(1, 2)
        contrast = seen.square().mean(dim=1, keepdim=True).add(_FAINT**2).sqrt()
        seen = torch.cat([seen / contrast, contrast.log() / 2 + 2], dim=1)
        seen = cells(seen.to(feat.dtype), self.grid // self.stride)
        length = velocity.square().sum(dim=1, keepdim=True).add(1e-2).log() / 2
        told = torch.cat([F.softsign(velocity / _FLOW_UNIT), length], dim=1).to(feat.dtype)
        features = self.features(feat, self.look(seen, told.contiguous(memory_format=torch.channels_last)))
        vote, weight = self.vote(features).float().flatten(2).unbind(dim=1)
        weight = weight.softmax(dim=1)
        mean = (features.float().flatten(2) * weight[:, None]).sum(dim=2)
        correction, caution = self.verdict(mean.to(feat.dtype)).float().unbind(dim=1)
        logit = (vote * weight).sum(dim=1) + correction
        return logit.sigmoid(), (logit - caution).sigmoid()


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
        seen = F.softsign(flows / _FLOW_UNIT).to(feat.dtype).contiguous(memory_format=torch.channels_last)
        weight, correction = self.head(feat, seen).float().split([1, 4], dim=1)
        weight, flows = weight.sigmoid(), flows + _FLOW_UNIT * correction
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
            unit=_FLOW_UNIT / 2, grid=config.grid, size=config.path_grid,
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
