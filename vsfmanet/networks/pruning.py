"""Convolutions that are computed only inside a mask: pixel by pixel, tile by tile, or densely.

All three have the same result up to rounding, `y = mask * conv3x3(x)`; the cost of the first two is proportional to the
area of the mask. Pixels outside the mask are read, but never written.

Source: M2AENet (arXiv 2507.07708) prunes sharp pixels by turning convolutions of 3x3 into convolutions of 1x1. The form
here is ours: a weight (Co, Ci, 3, 3) is a weight (9 Ci, Co) on nine gathered neighbours, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet import kernels

type Pruning = Literal["none", "pixel", "tile"]
"""How a mask is applied: to a dense result, by gathering pixels, or by gathering tiles (dense if most are active)."""

type Pair = tuple[nn.Conv2d, nn.Conv2d]
"""Two 3x3 convolutions of a residual block."""

TILE = 32
"""Side of a tile in pixels of the feature map."""

_TILES_AT_ONCE = 32
"""Tiles that pass a residual block together: few enough for the caches, many enough for a device."""

_DENSE_FROM = 0.6
"""Proportion of active tiles from which a dense result costs less than gathering."""

_PIXELS_AT_ONCE = 2**15
"""Pixels whose neighbours are gathered together, which takes nine times their memory."""

_REACH = 2
"""Pixels around a tile that a residual block of two 3x3 convolutions reads."""


class Area:
    """The active part of feature maps of one size.

    Args:
        mask: (N, 1, H, W), of the type of the features: 1 or 0. Values between, and gradients, only with "none".
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    @cached_property
    def pixels(self) -> Tensor:
        """Indices (P,) of the active pixels in maps (N, H, W), flattened."""
        return self.mask.flatten().nonzero()[:, 0]

    def padded_pixels(self, border: int) -> Tensor:
        """Return the indices (P,) of the active pixels in maps (N, H + 2 border, W + 2 border), flattened."""
        height, width = self.mask.shape[2:]
        row, column = self.pixels // width, self.pixels % width
        frame, row = row // height, row % height
        return (frame * (height + 2 * border) + row + border) * (width + 2 * border) + column + border

    @cached_property
    def tiles(self) -> tuple[Tensor, Tensor, Tensor]:
        """Frame, row and column (P,) each of the tiles that hold an active pixel."""
        held = F.max_pool2d(self.mask, TILE, ceil_mode=True)[:, 0]
        frame, row, column = held.nonzero().unbind(1)
        return frame, row, column

    @cached_property
    def crowded(self) -> bool:
        """Whether so many tiles are active that gathering does not pay."""
        count, _, height, width = self.mask.shape
        return len(self.tiles[0]) >= _DENSE_FROM * count * math.ceil(height / TILE) * math.ceil(width / TILE)

    @cached_property
    def tile_masks(self) -> Tensor:
        """The mask (P, 1, TILE + 2, TILE + 2) of each active tile with one pixel around it."""
        padded = padded_to_tiles(self.mask, 1)
        return tile_views(padded, 1)[self.tiles].permute(0, 3, 1, 2)


def padded_to_tiles(x: Tensor, border: int) -> Tensor:
    """Pad features with zeros to whole tiles and a border.

    Args:
        x: (N, C, H, W).
        border: Pixels on each side.

    Returns:
        (N, h, w, C), h and w multiples of `TILE` plus two borders.
    """
    count, channels, height, width = x.shape
    rows, columns = (-(-side // TILE) * TILE + 2 * border for side in (height, width))
    out = x.new_zeros(count, rows, columns, channels)
    out[:, border : border + height, border : border + width] = x.permute(0, 2, 3, 1)
    return out


def tile_views(padded: Tensor, reach: int) -> Tensor:
    """Return tiles with `reach` pixels around them.

    Args:
        padded: (N, h, w, C) from `padded_to_tiles`, with a border of `reach`.
        reach: Pixels around a tile.

    Returns:
        A view (N, rows, columns, TILE + 2 reach, TILE + 2 reach, C).
    """
    side = TILE + 2 * reach
    return padded.unfold(1, side, TILE).unfold(2, side, TILE).permute(0, 1, 2, 4, 5, 3)


def residual_blocks(x: Tensor, blocks: Sequence[Pair], area: Area, pruning: Pruning) -> Tensor:
    """Run `x + mask * second(relu(mask * first(x)))` for each of `blocks`.

    Args:
        x: (N, C, H, W).
        blocks: 3x3 convolutions C to C with bias.
        area: Active part of maps of the size of `x`.
        pruning: How the mask is applied.

    Returns:
        (N, C, H, W), channels-last; equal to `x` outside the mask.
    """
    if pruning == "pixel":
        return _residual_pixels(x, blocks, area)
    if pruning == "tile" and not area.crowded:
        return _residual_tiles(x, blocks, area)
    for first, second in blocks:
        x = x + area.mask * second(F.relu(area.mask * first(x)))
    return x


def masked_conv(x: Tensor, conv: nn.Conv2d, area: Area, pruning: Pruning) -> Tensor:
    """Compute `mask * conv(x)`.

    Args:
        x: (N, Ci, H, W).
        conv: 3x3 convolution Ci to Co.
        area: Active part of maps of the size of `x`.
        pruning: How the mask is applied.

    Returns:
        (N, Co, H, W).
    """
    count, _, height, width = x.shape
    if pruning == "none" or (pruning == "tile" and area.crowded):
        return area.mask * conv(x)
    if pruning == "pixel":
        out = x.new_zeros(count * height * width, conv.out_channels)
        values = _at_pixels(_padded(x).flatten(0, 2), conv, area.padded_pixels(1), width + 2)
        out[area.pixels] = values
        return out.view(count, height, width, -1).permute(0, 3, 1, 2)
    source, target = padded_to_tiles(x, 1), x.new_zeros(count, *_whole(height, width), conv.out_channels)
    for chosen, mask in _chunks(area):
        tiles = tile_views(source, 1)[chosen].permute(0, 3, 1, 2)
        tile_views(target, 0)[chosen] = (mask[..., 1:-1, 1:-1] * _valid(tiles, conv)).permute(0, 2, 3, 1)
    return target[:, :height, :width].permute(0, 3, 1, 2)


def _residual_pixels(x: Tensor, blocks: Sequence[Pair], area: Area) -> Tensor:
    padded = _padded(x)
    rows, hidden = padded.flatten(0, 2), torch.zeros_like(padded).flatten(0, 2)
    index, stride = area.padded_pixels(1), x.shape[3] + 2
    for first, second in blocks:
        hidden[index] = F.relu(_at_pixels(rows, first, index, stride))
        rows.index_add_(0, index, _at_pixels(hidden, second, index, stride))
    return padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def _padded(x: Tensor) -> Tensor:
    """Copy features `x` (N, C, H, W) into a border of one zero; returns (N, H + 2, W + 2, C)."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()


def _at_pixels(rows: Tensor, conv: nn.Conv2d, index: Tensor, stride: int) -> Tensor:
    """Compute a 3x3 convolution as a 1x1 convolution on nine neighbours.

    Args:
        rows: (n, Ci), features of pixels in memory order.
        conv: Ci to Co.
        index: (P,), indices of the pixels to compute.
        stride: Pixels in a row of the map.

    Returns:
        (P, Co).
    """
    weight = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.out_channels)  # (9 Ci, Co)
    step = torch.arange(-1, 2, device=rows.device)
    taps = (step[:, None] * stride + step).flatten()
    assert conv.bias is not None
    parts = [
        torch.addmm(conv.bias, rows.index_select(0, (part[:, None] + taps).flatten()).view(-1, len(weight)), weight)
        for part in index.split(_PIXELS_AT_ONCE)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _residual_tiles(x: Tensor, blocks: Sequence[Pair], area: Area) -> Tensor:
    # Tiles read their neighbours as they were before the block, so source and target are two maps; inactive pixels are
    # equal in both.
    source = padded_to_tiles(x, _REACH)
    target = source.clone()
    for first, second in blocks:
        inner = tile_views(target[:, _REACH:-_REACH, _REACH:-_REACH], 0)
        for chosen, mask in _chunks(area):
            tiles = tile_views(source, _REACH)[chosen].permute(0, 3, 1, 2)
            hidden = F.relu(_valid(tiles, first)) * mask
            change = _valid(hidden, second) * mask[..., 1:-1, 1:-1]
            own = tiles[..., _REACH:-_REACH, _REACH:-_REACH]
            inner[chosen] = (own + change).permute(0, 2, 3, 1)
        source, target = target, source
    height, width = x.shape[2:]
    return source[:, _REACH : _REACH + height, _REACH : _REACH + width].permute(0, 3, 1, 2)


def _chunks(area: Area) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """Split the active tiles and their masks into chunks."""
    splits = (index.split(_TILES_AT_ONCE) for index in area.tiles)
    return list(zip(zip(*splits, strict=True), area.tile_masks.split(_TILES_AT_ONCE), strict=True))


def _valid(tiles: Tensor, conv: nn.Conv2d) -> Tensor:
    """Convolve `tiles` (P, Ci, H, W) by 3x3 without padding; returns (P, Co, H - 2, W - 2)."""
    return kernels.conv3x3([tiles], conv.weight, conv.bias, padding=0)


def _whole(height: int, width: int) -> tuple[int, int]:
    """Round height and width up to whole tiles."""
    return -(-height // TILE) * TILE, -(-width // TILE) * TILE


def sample_rows(rows: Tensor, position: Tensor, frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample maps at single points, bilinearly, zero outside; as `flow_warp` does for every pixel.

    Args:
        rows: (N H W, C), features of pixels in memory order.
        position: (P, 2), fp32: column and row in pixels.
        frame: (P,), index of the map, 0 ... N - 1.
        size: H and W.

    Returns:
        (P, C).
    """
    height, width = size
    corner = position.floor()
    part = position - corner
    index, weight = [], []
    for down in (0, 1):
        for right in (0, 1):
            column, row = corner[:, 0] + right, corner[:, 1] + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (part[:, 0] if right else 1 - part[:, 0]) * (part[:, 1] if down else 1 - part[:, 1])
            weight.append(share * inside)
            index.append((frame * height + row.clamp(0, height - 1).long()) * width + column.clamp(0, width - 1).long())
    weights = torch.stack(weight, dim=1).to(rows.dtype)
    return F.embedding_bag(torch.stack(index, dim=1), rows, mode="sum", per_sample_weights=weights)
