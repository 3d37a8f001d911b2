"""Integer planes to RGB and back, in plain torch, so that a frame crosses to its device as it lies in the file.

The arithmetic is that of zimg (VapourSynth's `resize.Bicubic`) in fp32: matrix and range by ITU-T H.273, chroma by a
cubic with b = 0 and c = 0.5 that is widened where it makes planes smaller and mirrors them at their edges, and, on the
way back, the ordered dither of 16x16 places. Both directions only enqueue work: no value is looked at on the host.

All steps are sums of shifted slices, not convolutions or matrix products, which a GPU may compute in TF32: its 10 bits
are too few for 10 bit video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vsfmanet.errors import ShapeError

YCGCO = 8
_KR_KB = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Share of red and of blue in luma by MatrixCoefficients. Source: ITU-T H.273, table 4."""

MATRICES = (*_KR_KB, YCGCO)
"""Supported MatrixCoefficients; RGB is a family of its own."""

_DITHER_SIDE = 16

type Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """Meaning of the code values of a frame."""

    family: Literal["rgb", "yuv", "gray"]
    """Planes R, G, B; or luma, Cb, Cr (Cg, Co); or luma."""
    bits: int
    """Depth, 8 ... 16; uint8 for 8, else uint16."""
    matrix: int = 1
    """MatrixCoefficients, one of `MATRICES`; without effect for "rgb"."""
    full: bool
    """Whether code values use the full range."""
    subsampling: tuple[int, int] = (0, 0)
    """Binary logarithm of luma width over chroma width, and of the heights."""
    location: int = 0
    """Chroma sample location: 0 left, 1 centre, 2 top left, 3 top, 4 bottom left, 5 bottom."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the code values."""
        return torch.uint8 if self.bits == 8 else torch.uint16

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return height and width of each plane of a frame of this size in pixels, which the subsampling divides."""
        across, down = self.subsampling
        chroma = [] if self.family == "gray" else 2 * [(height >> down, width >> across)]
        return [(height, width), *chroma]

    def size(self, height: int, width: int) -> int:
        """Return the number of samples of a frame of this size in pixels."""
        return sum(rows * columns for rows, columns in self.shapes(height, width))

    def planes(self, packed: Tensor, height: int, width: int) -> list[Tensor]:
        """Return the planes of a frame as views.

        Args:
            packed: Vector (K,) of `dtype`: the planes one after the other, and perhaps more behind them.
            height: Height of the frame, pixels.
            width: Width of the frame, pixels.

        Returns:
            Planes (rows, columns) of the shapes that `shapes` returns.

        Raises:
            ShapeError: `packed` is not a vector of `dtype` with enough elements.
        """
        size = self.size(height, width)
        if packed.dtype != self.dtype or packed.ndim != 1 or len(packed) < size:
            raise ShapeError(
                f"a vector of at least {size} {self.dtype} is needed, "
                f"got {tuple(packed.shape)} {packed.dtype}; give the frame's own coding and size"
            )
        shapes = self.shapes(height, width)
        parts = packed[:size].split([rows * columns for rows, columns in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def decode(self, packed: Tensor, height: int, width: int) -> Tensor:
        """Convert the planes of a frame to RGB.

        Args:
            packed: Vector (K,) of `dtype`: the planes one after the other.
            height: Height of the frame, pixels.
            width: Width of the frame, pixels.

        Returns:
            (3, height, width), fp32, nominal range [0, 1], not clamped.

        Raises:
            ShapeError: `packed` is not a vector of `dtype` with enough elements.
        """
        planes = [
            plane.to(torch.float32).sub_(zero).div_(one)
            for plane, (zero, one) in zip(self.planes(packed, height, width), self._levels, strict=False)
        ]
        if self.family == "rgb":
            return torch.stack(planes)
        if self.family == "gray":
            return planes[0].expand(3, -1, -1)
        luma, chroma = planes[0], torch.stack(planes[1:])
        for dim, factor, shift in self._chroma_grid:
            chroma = _enlarged(chroma, dim, factor, shift)
        return torch.stack([_mixed((luma, *chroma), row) for row in _inverse(_matrix(self.matrix))])

    def encode(self, rgb: Tensor) -> Tensor:
        """Convert RGB to the planes of a frame, with ordered dither.

        Args:
            rgb: (3, H, W), fp32, nominal range [0, 1]; the subsampling divides H and W.

        Returns:
            Vector of `dtype`: the planes one after the other, then a 1, or a 0 if any value of `rgb` is NaN or
            infinite, which code values cannot express.
        """
        height, width = rgb.shape[1:]
        packed = torch.empty(self.size(height, width) + 1, dtype=self.dtype, device=rgb.device)
        packed[-1:].copy_(rgb.sum().isfinite())
        for number, (plane, target) in enumerate(
            zip(self._components(rgb), self.planes(packed, height, width), strict=True)
        ):
            zero, one = self._levels[number]
            codes = _dither(number, plane.shape, plane.device).add(plane, alpha=one).add_(zero)
            target.copy_(codes.clamp_(0, 2**self.bits - 1).round_())
        return packed

    def decoding_numbers(self) -> list[float]:
        """Return what a kernel needs to know to decode: code values of 0 (3), their distances to those of 1 (3), matrix
        (3, 3), and for each phase of chroma across, then down, the first sample and four weights.
        """
        phases: list[float] = []
        for factor, shift in self._chroma_filters:
            for phase in range(factor):
                phases += _dense(_taps((phase + 0.5 - shift) / factor, 1) if factor > 1 else [(0, 1.0)], 4)
        matrix = _inverse(_matrix(self.matrix)) if self.family == "yuv" else [[0.0] * 3] * 3
        return [*self._level_numbers, *(weight for row in matrix for weight in row), *phases]

    def encoding_numbers(self) -> list[float]:
        """Return what a kernel needs to know to encode: code values of 0 (3), their distances to those of 1 (3), matrix
        (3, 3), for chroma across, then down, the first sample and 16 weights, and the dither (3, 16, 16).
        """
        filters: list[float] = []
        for factor, shift in self._chroma_filters:
            filters += _dense(_taps(0.5 * factor + shift, factor) if factor > 1 else [(0, 1.0)], 16)
        dither = torch.stack([_dither_table(number, torch.device("cpu")) for number in range(3)])
        matrix = [weight for row in _matrix(self.matrix) for weight in row]
        return [*self._level_numbers, *matrix, *filters, *dither.flatten().tolist()]

    @property
    def _level_numbers(self) -> list[float]:
        levels = self._levels
        return [*(zero for zero, _ in levels), *(one for _, one in levels)]

    @property
    def _chroma_filters(self) -> list[tuple[int, float]]:
        """Factor and shift of chroma across, then down; factor 1 where it is not subsampled."""
        known = {dim: (factor, shift) for dim, factor, shift in self._chroma_grid}
        return [known.get(dim, (1, 0.0)) for dim in (-1, -2)]

    @property
    def _levels(self) -> list[tuple[float, float]]:
        """Code value of 0, and its distance to the code value of 1, for each plane."""
        unit = 2.0 ** (self.bits - 8)
        luma = (0.0, 2.0**self.bits - 1) if self.full else (16 * unit, 219 * unit)
        if self.family != "yuv":
            return [luma] * 3
        # All three planes of YCgCo have the range of luma, as in zimg and H.273.
        span = luma[1] if self.full or self.matrix == YCGCO else 224 * unit
        return [luma, (128 * unit, span), (128 * unit, span)]

    @property
    def _chroma_grid(self) -> list[tuple[int, int, float]]:
        """Subsampled dimensions of chroma: dimension, factor, and shift to the right or down in luma pixels."""
        across, down = self.subsampling
        side = -1 if self.location in (0, 2, 4) else 0
        level = {2: -1, 3: -1, 4: 1, 5: 1}.get(self.location, 0)
        grid = ((-1, 1 << across, side), (-2, 1 << down, level))
        return [(dim, factor, where * (factor - 1) / 2) for dim, factor, where in grid if factor > 1]

    def _components(self, rgb: Tensor) -> list[Tensor]:
        """Convert `rgb` (3, H, W) to the components of the planes, fp32; chroma is in [-0.5, 0.5]."""
        channels = tuple(rgb)
        if self.family == "rgb":
            return list(channels)
        luma, *differences = _matrix(self.matrix)
        if self.family == "gray":
            return [_mixed(channels, luma)]
        chroma = torch.stack([_mixed(channels, row) for row in differences])
        for dim, factor, shift in reversed(self._chroma_grid):  # rows first: they lie together in memory
            chroma = _reduced(chroma, dim, factor, shift)
        return [_mixed(channels, luma), *chroma]


def _matrix(code: int) -> Matrix:
    """Return the matrix from R, G and B to luma and chroma. Source: ITU-T H.273, equations of MatrixCoefficients."""
    if code == YCGCO:
        return (0.25, 0.5, 0.25), (-0.25, 0.5, -0.25), (0.5, 0.0, -0.5)
    red, blue = _KR_KB[code]
    green = 1 - red - blue
    to_blue, to_red = 2 * (1 - blue), 2 * (1 - red)
    return (
        (red, green, blue),
        (-red / to_blue, -green / to_blue, 0.5),
        (0.5, -green / to_red, -blue / to_red),
    )


def _inverse(matrix: Matrix) -> list[list[float]]:
    return [
        [round(weight, 12) for weight in row] for row in torch.tensor(matrix, dtype=torch.float64).inverse().tolist()
    ]  # rounded, so that zeros are exactly zero


def _mixed(planes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum of planes."""
    first, *others = [(plane, weight) for plane, weight in zip(planes, weights, strict=True) if weight]
    total = first[0] * first[1]
    for plane, weight in others:
        total.add_(plane, alpha=weight)
    return total


def _cubic(x: float) -> float:
    """Keys' cubic of parameter -0.5, which is b = 0, c = 0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _taps(position: float, widening: int) -> list[tuple[int, float]]:
    """Return the samples and weights of the value at a position, where sample k lies at k + 0.5.

    Args:
        position: On the grid of the samples.
        widening: Factor by which the cubic is widened.
    """
    first = math.floor(position - 2 * widening + 0.5)
    weights = [(k, _cubic((k + 0.5 - position) / widening)) for k in range(first, first + 4 * widening)]
    total = sum(weight for _, weight in weights)
    return [(k, weight / total) for k, weight in weights if abs(weight) > 1e-12]


def _dense(taps: list[tuple[int, float]], count: int) -> list[float]:
    """Return the first sample of some taps, and the weights of `count` samples from there on."""
    first, weights = taps[0][0], dict(taps)
    return [float(first), *(weights.get(first + k, 0.0) for k in range(count))]


def _mirrored(planes: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad planes (..., H, W) along a dimension by mirrored samples; the outermost ones are doubled."""
    first, last = planes.narrow(dim, 0, before), planes.narrow(dim, planes.shape[dim] - after, after)
    return torch.cat([first.flip(dim), planes, last.flip(dim)], dim=dim)


def _filtered(planes: Tensor, dim: int, taps: Sequence[tuple[int, float]], count: int, step: int) -> Tensor:
    """Return `count` weighted sums of the samples along a dimension, each `step` samples after the one before."""
    before = max(0, -taps[0][0])
    after = max(0, taps[-1][0] + (count - 1) * step + 1 - planes.shape[dim])
    padded = _mirrored(planes, dim, before, after)

    def at(k: int) -> Tensor:
        part = padded.narrow(dim, before + k, (count - 1) * step + 1)
        return part[..., ::step] if dim == -1 else part[..., ::step, :]

    (first, weight), *others = taps
    total = at(first) * weight
    for k, weight in others:
        total.add_(at(k), alpha=weight)
    return total


def _enlarged(planes: Tensor, dim: int, factor: int, shift: float) -> Tensor:
    """Enlarge planes along a dimension.

    Args:
        planes: (..., H, W).
        dim: Dimension, -1 or -2.
        factor: 2 or 4.
        shift: Distance of a sample to the middle of its `factor` output samples, in output samples.
    """
    phases = [
        _filtered(planes, dim, _taps((phase + 0.5 - shift) / factor, 1), planes.shape[dim], 1)
        for phase in range(factor)
    ]
    if dim == -1:
        return torch.stack(phases, dim=-1).flatten(-2)
    return torch.stack(phases, dim=-2).flatten(-3, -2)


def _reduced(planes: Tensor, dim: int, factor: int, shift: float) -> Tensor:
    """Reduce planes (..., H, W) along a dimension; arguments are those of `_enlarged`."""
    return _filtered(planes, dim, _taps(0.5 * factor + shift, factor), planes.shape[dim] // factor, factor)


@lru_cache(maxsize=24)  # 1 KiB each: three planes on every device of a machine
def _dither_table(number: int, device: torch.device) -> Tensor:
    """Return Bayer's matrix (16, 16) in (-0.5, 0.5), flipped differently for each plane, so that planes differ."""
    place = torch.arange(_DITHER_SIDE)
    row, column = place[:, None], place[None, :]
    rank = sum(4 ** (3 - k) * (2 * ((row ^ column) >> k & 1) + (column >> k & 1)) for k in range(4))
    assert isinstance(rank, Tensor)
    table = (rank + 1) / (_DITHER_SIDE**2 + 1) - 0.5
    return (table, table.flip(1), table.flip(0))[number].contiguous().to(device)


def _dither(number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return the dither (H, W) of plane `number`, to be added before rounding. Source: zimg, `DitherType::ORDERED`."""
    height, width = shape
    table = _dither_table(number, device)
    return table.repeat(-(-height // _DITHER_SIDE), -(-width // _DITHER_SIDE))[:height, :width]
