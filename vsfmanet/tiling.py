"""Frames in tiles: where the tiles lie, how results are assembled, and which plan comes next when memory is short."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vsfmanet.settings import MIN_TILE

_STEPS = 8
"""Most parts into which a frame is divided when memory is short; more would save little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A part of a frame, in pixels, or in cells of a network that computes on a coarser grid."""

    top: int
    left: int
    bottom: int
    """Row after the last."""
    right: int
    """Column after the last."""

    def of(self, image: Tensor, scale: int = 1) -> Tensor:
        """Return a view of this part of `image` (..., scale*H, scale*W)."""
        return image[..., scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]

    def grown(self, reach: int, height: int, width: int) -> Box:
        """Return this part with `reach` pixels more on each side, within a frame of `height` x `width`."""
        return Box(
            top=max(0, self.top - reach),
            left=max(0, self.left - reach),
            bottom=min(height, self.bottom + reach),
            right=min(width, self.right + reach),
        )

    def within(self, outer: Box) -> Box:
        """Return this part in the coordinates of another one that contains it."""
        return Box(
            top=self.top - outer.top,
            left=self.left - outer.left,
            bottom=self.bottom - outer.top,
            right=self.right - outer.left,
        )


def tiles(size: tuple[int, int], tile: tuple[int, int]) -> Iterator[Box]:
    """Yield nearly equal parts of at most `tile` (height, width) that cover a frame of `size` (height, width) once."""
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
    """Compute images tile by tile; exact if a pixel depends on no more than `reach` pixels around it.

    Args:
        size: Height and width of the frame.
        tile: Largest height and width of a tile.
        reach: Receptive field in pixels; `run` may pad beyond the frame's border.
        run: Computes images (N, C, scale*h, scale*w) of a part of the frame, h by w. A border of `reach` pixels around
            the tile, except at the frame's border, is discarded.
        scale: Size of the result over that of the frame.

    Returns:
        Images (N, C, scale*H, scale*W) of the whole frame, channels-last, of the types and on the devices of `run`.
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
    """How frames are computed, with how much memory. Restored frames are the same up to rounding if tiles are exact."""

    graphs: bool = True
    """Run whole frames as CUDA graphs, each of which keeps the memory of its results, where there are any."""
    tile: tuple[int, int] | None = None
    """Height and width of the parts in which frames are computed, input pixels; None for whole frames."""
    offload: bool = False
    """Keep features that wait between the levels in the host's memory, not in the device's."""

    def smaller(self, height: int, width: int, *, has_graphs: bool, can_offload: bool) -> MemoryPlan | None:
        """Return the plan that needs the next less memory for frames of `height` x `width`; None if there is none."""
        if has_graphs and self.graphs and self.tile is None:
            return replace(self, graphs=False)
        rows, columns = (height, width) if self.tile is None else (min(self.tile[0], height), min(self.tile[1], width))
        fewer = math.ceil(rows / 2)
        if fewer >= MIN_TILE and height / fewer <= _STEPS:
            return replace(self, tile=(fewer, max(columns, MIN_TILE)))
        return replace(self, offload=True) if can_offload and not self.offload else None

    def __str__(self) -> str:
        """Describe the plan for the user, with sizes as width x height."""
        whole = "whole frames" if self.graphs else "whole frames without CUDA graphs"
        parts = whole if self.tile is None else f"parts of {self.tile[1]}x{self.tile[0]} pixels"
        return f"{parts}, features kept in the host's memory" if self.offload else parts


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is a lack of memory, on a device or the host."""
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
