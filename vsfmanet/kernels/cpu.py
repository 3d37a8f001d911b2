"""Python side of the C++ kernels for CPUs, which are the `.cpp` files beside this one.

Arguments and results are those of the references in `vsfmanet.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vsfmanet.kernels.build import library
from vsfmanet.ops.convolution import conv3x3_reference, joined
from vsfmanet.ops.path import PathPlaces
from vsfmanet.ops.projection import add_product_reference
from vsfmanet.ops.skip import add_skip_reference as add_skip

__all__ = [
    "SUFFIXES",
    "add_product",
    "add_skip",
    "conv3x3",
    "convolves",
    "feed_forward",
    "head_grams",
    "path_cells",
    "pixel_norm",
    "squared_projection",
    "warp_neighbours",
]

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Supported types, and the endings of the C++ functions' names."""

_FEWEST_INPUTS = 16
"""Number of input channels from which Winograd's algorithm saves more than its transforms cost."""

_MOST_LANES = 16
"""Floats in the widest register of any processor."""


def warp_neighbours(
    feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
) -> Tensor:
    """See `warp_neighbours_reference`; the arguments have been checked."""
    n, channels, h, w = feat.shape
    images = [_packed(image.to(feat.dtype)) for image in (feat, *neighbours)]
    out = _like(feat, 3 * channels)
    place = (c_long * 4)(*origin, *neighbours[0].shape[2:])
    _call("warp_neighbours", feat, *images, _packed(flow.float()), out, place, n, h, w, channels, num_flows)
    return out


def feed_forward(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """See `feed_forward_reference`."""
    n, _, h, w = x.shape
    hidden, outputs = len(pointwise) // 2, len(reduce)
    assert reduce.shape == (outputs, hidden, 1, 1)
    assert shortcut.shape == (n, outputs, h, w)
    out = _like(x, outputs)
    x, weight, taps = _projected_by(x, pointwise, depthwise, matrices=2)
    reduced_by = _prepared("projection", reduce.to(x.dtype), (1, hidden, outputs))
    image, added = _stepped(x), _packed(shortcut.to(x.dtype))
    _call("feed_forward", x, *image, weight, taps, reduced_by, added, out, n, h, w, x.shape[1], hidden, outputs)
    return out


def squared_projection(x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """See `squared_projection_reference`."""
    n, _, h, w = x.shape
    outputs = len(pointwise)
    kernels = library()
    assert kernels is not None
    parts = kernels.projection_parts(*map(c_long, (1, h, w)))
    out, squares = _like(x, outputs), torch.empty(n, parts, outputs)
    x, weight, taps = _projected_by(x, pointwise, depthwise, matrices=1)
    _call("squared_projection", x, *_stepped(x), weight, taps, out, squares, n, h, w, x.shape[1], outputs)
    return out, squares[..., :squared].sum(dim=1)


def _projected_by(x: Tensor, pointwise: Tensor, depthwise: Tensor, *, matrices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prepare the arguments of `projection.cpp`.

    Args:
        x: (N, C, H, W).
        pointwise: (D, C, 1, 1).
        depthwise: (D, 1, 3, 3).
        matrices: Matrices of equal size into which the rows of `pointwise` are packed.

    Returns:
        Image (N, C or C + 1, H, W), packed weights, and taps (9, D), fp32.
    """
    channels, projected = x.shape[1], len(pointwise)
    assert pointwise.shape == (projected, channels, 1, 1)  # a kernel would read beyond it
    assert depthwise.shape == (projected, 1, 3, 3)
    if channels % 2:  # bf16 is multiplied by pairs
        x, pointwise = F.pad(x, (0, 0, 0, 0, 0, 1)), F.pad(pointwise, (0, 0, 0, 0, 0, 1))
    shape = (matrices, x.shape[1], projected // matrices)
    return (
        x,
        _prepared("projection", pointwise.to(x.dtype), shape),
        depthwise.flatten(1).t().float().contiguous(),
    )


def add_product(shortcut: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """See `add_product_reference`."""
    by_pairs = x.shape[1] % 2 == 0 or x.dtype is torch.float32  # bf16 is multiplied by pairs of channels
    if not (by_pairs and shortcut.dtype is x.dtype is matrix.dtype):
        return add_product_reference(shortcut, x, matrix)
    weights = matrix.mT[..., None, None]
    frames = zip(shortcut.split(1), x.split(1), weights, strict=True)
    parts = [_add_pointwise(own, frame, weight) for own, frame, weight in frames]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _add_pointwise(shortcut: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Add `x` (N, C, H, W), mixed by `weight` (D, C, 1, 1), to `shortcut` (N, D, H, W); returns (N, D, H, W)."""
    n, channels, h, w = x.shape
    outputs = len(weight)
    assert weight.shape == (outputs, channels, 1, 1)
    assert shortcut.shape == (n, outputs, h, w)
    x, step = _stepped(x)
    out, packed = _like(x, outputs), _prepared("projection", weight, (1, channels, outputs))
    _call("add_pointwise", x, x, step, packed, _packed(shortcut), out, n * h * w, channels, outputs)
    return out


def head_grams(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """See `head_grams_reference`."""
    n, channels, h, w = query.shape
    own = channels // heads
    assert key.shape == query.shape
    assert own * heads == channels
    kernels = library()
    assert kernels is not None
    sums = torch.empty(n, kernels.head_grams_parts(c_long(h * w)), heads, own, own)
    _call("head_grams", query, *_stepped(query), *_stepped(key), sums, n, h * w, heads, own)
    return sums.sum(dim=1)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """See `pixel_norm_reference`."""
    n, channels, h, w = x.shape
    assert weight.shape == bias.shape == (channels,)
    out = _like(x, channels)
    _call("pixel_norm", x, _packed(x), weight.float(), bias.float(), out, c_float(epsilon), n * h, w, channels)
    return out


def path_cells(
    images: tuple[Tensor, Tensor, Tensor],
    motion: Tensor,
    places: PathPlaces,
    origin: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """See `path_cells_reference`; the arguments have been checked."""
    n, _, rows, columns = motion.shape
    h, w, size = rows * places.grid, columns * places.grid, places.size
    top, left, bottom, right = _reached(motion, places, origin, images[0].shape[-2:])
    packed = torch.empty(3, n, bottom - top + 1, right - left + 1, 4)
    shape = (n, places.channels * size**2, h // size, w // size)
    out = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    part = (top, left, bottom - top, right - left, *images[0].shape[-2:])
    place = (c_long * 10)(*part, *origin, places.grid, size)
    reach = (c_float * 2)(places.own_reach, places.neighbour_reach)
    counts = (c_long * 2)(places.own_count, places.neighbour_count)
    planes = [image.float().contiguous() for image in images]
    numbers = (place, reach, counts, c_float(places.unit), n, h, w)
    _call("path_cells", out, *planes, motion.float().contiguous(), packed, out, *numbers)
    return out


def _reached(
    motion: Tensor, places: PathPlaces, origin: tuple[int, int], sides: torch.Size
) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the part of images of these `sides` that `path_cells` can read."""
    farthest = motion.abs().amax(dim=(0, 2, 3)).view(3, 2)  # NaN if one is
    reach = farthest[1:].amax(dim=0) + farthest[0] * max(places.own_reach, places.neighbour_reach)
    box = []
    for far, start, count, side in zip(reach.flip(0).tolist(), origin, motion.shape[-2:], sides, strict=True):
        margin = int(far) + 3 if far < side else side  # NaN and infinity too
        box.append((max(0, start - margin), min(side, start + count * places.grid + margin)))
    (top, bottom), (left, right) = box
    return top, left, bottom, right


def conv3x3(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: int, slope: float, shuffle: int
) -> Tensor:
    """See `conv3x3_reference`; by Winograd's algorithm where that pays."""
    if _fits_pairs(parts, weight, padding, shuffle):
        return _in_pairs(parts[0], weight, bias, slope)
    if not convolves(parts, weight):
        return conv3x3_reference(parts, weight, bias, padding, slope, shuffle)
    # A register holds channels of one part, and of one pixel after the shuffle.
    apart = all(part.shape[1] % _MOST_LANES == 0 for part in parts[:-1])
    shuffled = shuffle == 1 or len(weight) % (_MOST_LANES * shuffle**2) == 0
    out = _winograd(parts if apart else [joined(parts)], weight, bias, padding, slope, shuffle if shuffled else 1)
    return out if shuffled else F.pixel_shuffle(out, shuffle)


def _fits_pairs(parts: Sequence[Tensor], weight: Tensor, padding: int, shuffle: int) -> bool:
    """Return whether a convolution of few channels pays once two pixels side by side are one of twice the channels."""
    inputs, width = weight.shape[1], parts[0].shape[3]
    fits = len(parts) == padding == shuffle == 1 and weight.dtype is torch.float32 and width % 2 == 0
    return fits and inputs < _FEWEST_INPUTS <= 2 * inputs and parts[0].dtype is weight.dtype


def _in_pairs(x: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    """Convolve pairs of pixels, which fill the registers that single ones leave half empty; see `_winograd`."""
    n, channels, h, w = x.shape
    outputs = len(weight)
    assert weight.shape == (outputs, channels, 3, 3)
    pairs = _packed(x).permute(0, 2, 3, 1).reshape(n, h, w // 2, 2 * channels).permute(0, 3, 1, 2)
    shift = torch.zeros(outputs) if bias is None else bias.float()
    packed = _prepared("conv3x3", weight, (2 * channels, 2 * outputs, 1), _of_pairs)
    out = _run_conv3x3([pairs], packed, shift.repeat(2), 2 * outputs, 1, slope, 1)
    return out.permute(0, 2, 3, 1).reshape(n, h, w, outputs).permute(0, 3, 1, 2)


def _of_pairs(weight: Tensor) -> Tensor:
    """Return the weight (2D, 2C, 3, 3) for pairs of pixels of one (D, C, 3, 3) for pixels."""
    outputs, inputs = weight.shape[:2]
    out = weight.new_zeros(2, outputs, 2, inputs, 3, 3)
    for own in range(2):
        for other in range(2):
            for column in range(3):
                tap = 2 * (column - 1) + other - own + 1
                if 0 <= tap < 3:
                    out[own, :, other, :, :, column] = weight[..., tap]
    return out.flatten(2, 3).flatten(0, 1)


def convolves(parts: Sequence[Tensor], weight: Tensor) -> bool:
    """Return whether Winograd's algorithm pays: not where AMX multiplies, or few channels are read.

    Args:
        parts: (N, C, H, W) each.
        weight: (D, sum of all C, 3, 3).
    """
    alike = all(part.dtype is weight.dtype for part in parts)
    by_tiles = weight.dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return alike and weight.shape[1] >= _FEWEST_INPUTS and not by_tiles


def _winograd(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: int, slope: float, shuffle: int
) -> Tensor:
    """Run the kernel; arguments and result are those of `conv3x3_reference`."""
    n, _, h, w = parts[0].shape
    widths, outputs = [part.shape[1] for part in parts], len(weight)
    assert weight.shape == (outputs, sum(widths), 3, 3)
    assert all(part.shape == (n, width, h, w) for part, width in zip(parts, widths, strict=True))
    assert padding in (0, 1)
    shift = torch.zeros(outputs) if bias is None else bias.float().unflatten(0, (-1, shuffle**2)).t().contiguous()
    packed = _prepared("conv3x3", weight, (sum(widths), outputs, shuffle))
    return _run_conv3x3(parts, packed, shift, outputs, padding, slope, shuffle)


def _run_conv3x3(
    parts: Sequence[Tensor], packed: Tensor, shift: Tensor, outputs: int, padding: int, slope: float, shuffle: int
) -> Tensor:
    """Run the kernel with a packed weight, and a shift for each output in the order of the kernel."""
    n, _, h, w = parts[0].shape
    less = 2 - 2 * padding
    shape = (n, outputs // shuffle**2, (h - less) * shuffle, (w - less) * shuffle)
    out = torch.empty(shape, dtype=parts[0].dtype, memory_format=torch.channels_last)
    images = [_packed(part) for part in parts]
    places = (c_void_p * len(parts))(*(image.data_ptr() for image in images))
    numbers = (c_long * len(parts))(*(part.shape[1] for part in parts))
    settings = (n, h, w, outputs, padding, shuffle)
    _call("conv3x3", out, places, numbers, len(parts), packed, shift, c_float(slope), out, *settings)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prepared:
    """A weight in the layout of a kernel."""

    values: Tensor
    """Bytes in that layout."""
    origin: Tensor
    """The weight that was packed; kept, so that no other weight takes its place in memory."""
    made_for: tuple[object, ...]
    """Kernel, shape, and version of the weight."""


_prepared_weights = WeakTensorKeyDictionary()


def _prepared(
    kernel: str, weight: Tensor, shape: tuple[int, ...], changed: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return a weight in the layout of `kernel` for a `shape`; packed once, and again after it was changed.

    Args:
        kernel: Name of the kernel.
        weight: Its weight.
        shape: Sizes that the kernel's packing takes.
        changed: Applied to the weight before it is packed.
    """
    wanted = (kernel, *shape, 0 if weight.is_inference() else weight._version)
    found: _Prepared | None = _prepared_weights.get(weight)
    if found is None or found.made_for != wanted or found.origin.data_ptr() != weight.data_ptr():
        kernels, name, sizes = library(), SUFFIXES[weight.dtype], [c_long(size) for size in shape]
        assert kernels is not None
        count = kernels[f"{kernel}_packed_bytes_{name}"]
        count.restype = c_long
        values = torch.empty(count(*sizes), dtype=torch.uint8)
        plain = weight.detach().float()
        plain = (plain if changed is None else changed(plain)).contiguous()
        kernels[f"{kernel}_pack_{name}"](c_void_p(plain.data_ptr()), c_void_p(values.data_ptr()), *sizes)
        found = _Prepared(values=values, origin=weight.detach(), made_for=wanted)
        _prepared_weights[weight] = found
    return found.values


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _stepped(x: Tensor) -> tuple[Tensor, int]:
    """Return `x` (N, C, H, W) channels-last and its pixels' distance; channels of a wider image are not copied."""
    _, channels, h, w = x.shape
    step = x.stride(3)
    return (x, step) if x.stride() == (h * w * step, 1, w * step, step) else (_packed(x), channels)


def _like(x: Tensor, channels: int) -> Tensor:
    """Return an uninitialised tensor (N, channels, H, W), channels-last, for `x` (N, C, H, W)."""
    n, _, h, w = x.shape
    return torch.empty(n, channels, h, w, dtype=x.dtype, memory_format=torch.channels_last)


def _call(name: str, x: Tensor, *args: object) -> None:
    """Run the kernel for the dtype of `x`; tensors become addresses, integers C longs; the thread count comes last."""
    kernels = library()
    assert kernels is not None
    passed = [
        c_void_p(arg.data_ptr()) if isinstance(arg, Tensor) else c_long(arg) if isinstance(arg, int) else arg
        for arg in args
    ]
    kernels[f"{name}_{SUFFIXES[x.dtype]}"](*passed, c_int(torch.get_num_threads()))
