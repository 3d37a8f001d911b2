"""Frames in parts: where the parts lie, how their results are put together, and what to do when memory is short."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vsfmanet.networks.fmanetpp import FMANetPPConfig
from vsfmanet.settings import MIN_TILE

_STEPS = 8
"""Parts at most that a frame is divided into when memory is short; more would spare little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A part of a frame, in pixels."""

    top: int
    left: int
    bottom: int
    """Row after the last."""
    right: int
    """Column after the last."""

    def of(self, image: Tensor, scale: int = 1) -> Tensor:
        """A view of this part of `image` (N, C, scale*H, scale*W)."""
        return image[..., scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]

    def grown(self, reach: int, height: int, width: int) -> Box:
        """This part with `reach` pixels more to each side, as far as the frame goes."""
        return Box(
            top=max(0, self.top - reach),
            left=max(0, self.left - reach),
            bottom=min(height, self.bottom + reach),
            right=min(width, self.right + reach),
        )

    def within(self, outer: Box) -> Box:
        """This part as seen from the corner of another that holds it."""
        return Box(
            top=self.top - outer.top,
            left=self.left - outer.left,
            bottom=self.bottom - outer.top,
            right=self.right - outer.left,
        )


def tiles(size: tuple[int, int], tile: tuple[int, int]) -> Iterator[Box]:
    """Parts of at most `tile` (height, width) that cover a frame of `size` (height, width) once, nearly equal."""
    rows, columns = (math.ceil(whole / part) for whole, part in zip(size, tile, strict=True))
    for row in range(rows):
        for column in range(columns):
            yield Box(
                top=size[0] * row // rows,
                left=size[1] * column // columns,
                bottom=size[0] * (row + 1) // rows,
                right=size[1] * (column + 1) // columns,
            )


def assemble(
    size: tuple[int, int],
    tile: tuple[int, int],
    reach: int,
    run: Callable[[Box], tuple[Tensor, ...]],
    *,
    scale: int = 1,
) -> tuple[Tensor, ...]:
    """Compute images tile by tile: exact for work that looks no further than `reach` pixels.

    Args:
        size: Height and width of the frame.
        tile: Height and width of a tile at most.
        reach: Pixels around a pixel that its result depends on, of which any may be made up beyond the frame's border.
        run: Gives images (N, C, scale*h, scale*w) of a part of the frame, h by w. What lies within `reach` of its
            edges, where those are not the frame's, is thrown away.
        scale: Result's size over the frame's.

    Returns:
        Images of the whole frame, channels-last, of the types and on the devices that `run` gives.
    """
    whole: list[Tensor] = []
    for inner in tiles(size, tile):
        outer = inner.grown(reach, *size)
        parts = run(outer)
        if not whole:
            shapes = [(len(part), part.shape[1], scale * size[0], scale * size[1]) for part in parts]
            whole = [
                torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=torch.channels_last)
                for shape, part in zip(shapes, parts, strict=True)
            ]
        for image, part in zip(whole, parts, strict=True):
            inner.of(image, scale).copy_(inner.within(outer).of(part, scale))
    return tuple(whole)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """How sparing the restorer is. The result is the same, up to rounding, whatever it says."""

    graphs: bool = True
    """Record whole frames as CUDA graphs, each of which keeps the memory of its results; else launch by launch."""
    tile: tuple[int, int] | None = None
    """Height and width of the parts that frames are computed in, input pixels; None for whole frames."""
    offload: bool = False
    """Keep what waits between the levels in the host's memory, not in the device's."""

    def smaller(self, height: int, width: int, *, has_graphs: bool, can_offload: bool) -> MemoryPlan | None:
        """The next more sparing plan for frames of `height` x `width`; None if there is none."""
        if has_graphs and self.graphs and self.tile is None:
            return replace(self, graphs=False)
        rows, columns = (height, width) if self.tile is None else (min(self.tile[0], height), min(self.tile[1], width))
        fewer = math.ceil(rows / 2)
        if fewer >= MIN_TILE and height / fewer <= _STEPS:
            return replace(self, tile=(fewer, max(columns, MIN_TILE)))
        return replace(self, offload=True) if can_offload and not self.offload else None

    def __str__(self) -> str:
        """For the user: size as width x height."""
        whole = "whole frames" if self.graphs else "whole frames without CUDA graphs"
        parts = whole if self.tile is None else f"parts of {self.tile[1]}x{self.tile[0]} pixels"
        return f"{parts}, features kept in the host's memory" if self.offload else parts


def memory_needed(config: FMANetPPConfig, height: int, width: int, dtype: torch.dtype, plan: MemoryPlan) -> int:
    """About how many bytes of device memory a stream of frames takes, beside the weights: counted, not measured.

    Args:
        config: Sizes of the network.
        height: Of an input frame.
        width: Of an input frame.
        dtype: Type of the features.
        plan: How the frames are computed.
    """
    size, channels, levels, grid = dtype.itemsize, config.width, 2 * config.num_blocks, config.grid
    # All counts are bytes per cell, which is a pixel where the grid is 1.
    feat, flow, image = channels * size, 6 * config.num_flows * 4, 3 * 4 * grid**2
    guides = config.num_blocks * feat
    # What a level holds while it works: two frames before its own result, and their flows; guides go along in NetR.
    held = 3 * feat + 2 * flow + 2 * image
    waiting = held if plan.offload else levels * held + (config.num_blocks + 2) * guides
    wide = max(8 * channels, 2 * channels + 3 * config.feed_forward_width, guides // size + 2 * channels) * size
    if config.upsampler == "two_stage":
        last = 3 * 64 * 16 * size + 2 * image * config.scale**2
    else:
        last = (2 * channels + 2 * 3 * (config.scale * grid) ** 2) * size + 2 * image * config.scale**2
    # On the grid of the detail: frame and upsampled features, each beside the detail, and what becomes of both.
    last += 4 * config.detail_width * (grid // config.detail_grid) ** 2 * size
    working = max(wide, last) + 2 * feat + flow
    cells = -(-height // grid) * -(-width // grid)
    if plan.tile is None:
        return cells * (waiting + working)
    reach = 2 * (config.dense_layers + 2)
    rows, columns = (-(-side // grid) + reach for side in plan.tile)
    part = min(-(-height // grid), rows) * min(-(-width // grid), columns)
    return cells * (waiting + 2 * feat + flow) + part * working


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a device or of the host, is what was missing."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "ALLOC_FAILED",
        "ALLOCATION_FAILED",  # cuDNN 9
        "unable to find an engine",  # torch, where cuDNN finds no room for the workspace of any
    )
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
