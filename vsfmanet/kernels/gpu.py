"""The kernels for CUDA, in Triton, which comes with torch's wheels for CUDA. Products of heads are cuBLAS's own;
convolutions and products with a matrix are torch's.

Images are channels-last, as on the CPU; sums are taken in fp32 and rounded once. A program computes a block of pixels,
with all of their channels or a block of those. Results do not depend on the order in which programs run. Arguments and
results are those of the references in `vsfmanet.ops`.

Compared with the references in Triton's interpreter (`TRITON_INTERPRET=1`, set before this module is imported), and
compiled for GPUs of capability 7.5 to 12.0; never run on one.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from vsfmanet.ops.attention import head_grams_reference, heads_alone, rows
from vsfmanet.ops.convolution import conv3x3_reference as conv3x3
from vsfmanet.ops.projection import add_product_reference as add_product

__all__ = [
    "add_product",
    "conv3x3",
    "feed_forward",
    "head_grams",
    "pixel_norm",
    "squared_projection",
    "warp_neighbours",
]

_ELEMENTS = 1024
"""Pixels times channels of one program."""
_WIDEST = 128
"""Channels of one program, where a kernel does not need all channels of a pixel at once."""


@triton.jit
def _warp(
    feat, next_feat, previous_feat, flow, out, pixels, height, width, top, left, whole_height, whole_width,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Axis 0: blocks of pixels; axis 1: next, then previous frame. The first also copies the frame itself."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, WIDE)[None, :]
    inside = (pixel < pixels) & (channel < CHANNELS)
    side = tl.program_id(1)
    n, y, x = pixel // (height * width), pixel // width % height, pixel % width
    larger: tl.constexpr = CHANNELS % GROUPS  # groups that have one channel more
    small: tl.constexpr = CHANNELS // GROUPS
    edge: tl.constexpr = larger * (small + 1)
    group = tl.where(channel < edge, channel // (small + 1), larger + (channel - edge) // small)
    pair = flow + ((pixel * 2 + side) * GROUPS + group) * 3
    column = tl.load(pair, inside, 0.0) + (x + left).to(tl.float32)
    line = tl.load(pair + 1, inside, 0.0) + (y + top).to(tl.float32)
    seen = 1 / (1 + tl.exp(-tl.load(pair + 2, inside, 0.0)))
    # A NaN becomes 0: never an address outside the image.
    column = tl.where(column > 0, tl.where(column < whole_width - 1, column, (whole_width - 1) * 1.0), 0.0)
    line = tl.where(line > 0, tl.where(line < whole_height - 1, line, (whole_height - 1) * 1.0), 0.0)
    first_column, first_line = column.to(tl.int32), line.to(tl.int32)
    right_share, low_share = column - first_column.to(tl.float32), line - first_line.to(tl.float32)
    second_column = tl.minimum(first_column + 1, whole_width - 1)
    second_line = tl.minimum(first_line + 1, whole_height - 1)
    if side == 0:
        image = next_feat
        own = tl.load(feat + pixel * CHANNELS + channel, inside)
        tl.store(out + pixel * 3 * CHANNELS + channel, own, inside)
    else:
        image = previous_feat
    above = (n * whole_height + first_line) * whole_width
    below = (n * whole_height + second_line) * whole_width
    a = tl.load(image + (above + first_column) * CHANNELS + channel, inside, 0.0).to(tl.float32)
    b = tl.load(image + (above + second_column) * CHANNELS + channel, inside, 0.0).to(tl.float32)
    c = tl.load(image + (below + first_column) * CHANNELS + channel, inside, 0.0).to(tl.float32)
    d = tl.load(image + (below + second_column) * CHANNELS + channel, inside, 0.0).to(tl.float32)
    upper = a + right_share * (b - a)
    lower = c + right_share * (d - c)
    found = seen * (upper + low_share * (lower - upper))
    tl.store(out + pixel * 3 * CHANNELS + (1 + side) * CHANNELS + channel, found.to(out.dtype.element_ty), inside)


@triton.jit
def _depthwise(
    image, weight, pixel, channel, inside, height, width,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A 3x3 depthwise convolution with zeros outside, at `pixel` (PIXELS, 1), `channel` (1, WIDE); `weight` (9, C)."""
    total = tl.zeros((PIXELS, WIDE), tl.float32)
    y, x = pixel // width % height, pixel % width
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        there = inside & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        value = tl.load(image + (pixel + down * width + right) * CHANNELS + channel, there, 0.0)
        total += value.to(tl.float32) * tl.load(weight + tap * CHANNELS + channel, channel < CHANNELS, 0.0)
    return total


@triton.jit
def _gated(
    image, weight, out, pixels, height, width, HALF: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Axis 0: blocks of pixels; axis 1: blocks of the channels of the result."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    inside = (pixel < pixels) & (channel < HALF)
    gate = _depthwise(image, weight, pixel, channel, inside, height, width, 2 * HALF, PIXELS, WIDE)
    content = _depthwise(image, weight, pixel, channel + HALF, inside, height, width, 2 * HALF, PIXELS, WIDE)
    gated = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476)) * content
    tl.store(out + pixel * HALF + channel, gated.to(out.dtype.element_ty), inside)


@triton.jit
def _squares(
    image, weight, out, squares, height, width, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Axis 0: blocks of pixels of one frame; axis 1: blocks of channels; axis 2: frames.

    A sum for every block of pixels, because sums by atomics would differ from run to run.
    """
    n = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    inside = (place < height * width) & (channel < CHANNELS)
    pixel = n * height * width + place
    total = _depthwise(image, weight, pixel, channel, inside, height, width, CHANNELS, PIXELS, WIDE)
    stored = total.to(out.dtype.element_ty)
    tl.store(out + pixel * CHANNELS + channel, stored, inside)
    value = tl.where(inside, stored.to(tl.float32), 0.0)
    row = squares + (n * tl.num_programs(0) + tl.program_id(0)) * CHANNELS
    tl.store(row + channel, tl.sum(value * value, axis=0)[None, :], channel < CHANNELS)


@triton.jit
def _norm(
    image, weight, bias, out, epsilon, pixels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Axis 0: blocks of pixels."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, WIDE)[None, :]
    here = channel < CHANNELS
    inside = (pixel < pixels) & here
    value = tl.load(image + pixel * CHANNELS + channel, inside, 0.0).to(tl.float32)
    mean = tl.sum(value, axis=1)[:, None] / CHANNELS
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / CHANNELS
    scaled = centred / tl.sqrt(variance + epsilon) * tl.load(weight + channel, here, 0.0)
    scaled += tl.load(bias + channel, here, 0.0)
    tl.store(out + pixel * CHANNELS + channel, scaled.to(out.dtype.element_ty), inside)


def warp_neighbours(
    feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
) -> Tensor:
    """See `warp_neighbours_reference`; the arguments have been checked."""
    n, channels, height, width = feat.shape
    own, following, previous = (_packed(image.to(feat.dtype)) for image in (feat, *neighbours))
    out = _like(feat, 3 * channels)
    wide = triton.next_power_of_2(channels)
    pixels = max(1, _ELEMENTS // wide)
    with _on(feat):
        _warp[triton.cdiv(n * height * width, pixels), 2](
            own, following, previous, _packed(flow.float()), out, n * height * width, height, width, *origin,
            *neighbours[0].shape[2:], CHANNELS=channels, GROUPS=num_flows, PIXELS=pixels, WIDE=wide,
        )  # fmt: skip
    return out


def feed_forward(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """See `feed_forward_reference`."""
    x = F.conv2d(x, pointwise)
    n, channels, height, width = x.shape
    half = channels // 2
    gated = _like(x, half)
    pixels, wide = _block(half)
    with _on(x):
        _gated[triton.cdiv(n * height * width, pixels), triton.cdiv(half, wide)](
            _packed(x), _taps(depthwise), gated, n * height * width, height, width, HALF=half, PIXELS=pixels, WIDE=wide
        )
    return shortcut + F.conv2d(gated, reduce)


def squared_projection(x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """See `squared_projection_reference`."""
    x = F.conv2d(x, pointwise)
    n, channels, height, width = x.shape
    out = _like(x, channels)
    pixels, wide = _block(channels)
    blocks = triton.cdiv(height * width, pixels)
    squares = torch.empty(n, blocks, channels, device=x.device)
    with _on(x):
        _squares[blocks, triton.cdiv(channels, wide), n](
            _packed(x), _taps(depthwise), out, squares, height, width, CHANNELS=channels, PIXELS=pixels, WIDE=wide
        )
    return out, squares[..., :squared].sum(dim=1)


def head_grams(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """See `head_grams_reference`. cuBLAS returns the fp32 sums that it accumulates, without rounding them."""
    if not query.is_cuda or query.dtype == torch.float32:
        return head_grams_reference(query, key, heads)
    left, right = rows(query), rows(key)
    if len(left) == 1:  # `bmm` would copy slices first
        gram = torch.mm(left[0].T, right[0], out_dtype=torch.float32)[None]
    else:
        gram = torch.bmm(left.mT, right, out_dtype=torch.float32)
    return heads_alone(gram, heads)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """See `pixel_norm_reference`."""
    n, channels, height, width = x.shape
    out = _like(x, channels)
    wide = triton.next_power_of_2(channels)
    pixels = max(1, _ELEMENTS // wide)
    with _on(x):
        _norm[(triton.cdiv(n * height * width, pixels),)](
            _packed(x), weight.float(), bias.float(), out, epsilon, n * height * width,
            CHANNELS=channels, PIXELS=pixels, WIDE=wide,
        )  # fmt: skip
    return out


def _block(channels: int) -> tuple[int, int]:
    """Pixels and channels of a program that need not see all channels."""
    wide = min(_WIDEST, triton.next_power_of_2(channels))
    return max(1, _ELEMENTS // wide), wide


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor, channels: int) -> Tensor:
    """Uninitialised (N, channels, H, W), channels-last."""
    n, _, height, width = x.shape
    return torch.empty(n, channels, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _taps(weight: Tensor) -> Tensor:
    """Depthwise weight (C, 1, 3, 3) as (9, C), fp32."""
    return weight.flatten(1).t().float().contiguous()


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch on the device of `x`, which need not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
