"""The kernels for CPUs, in C++ (`cpu.cpp`, `conv3x3.cpp`): what hands them their tensors.

Arguments are those of the twins in `vsfmanet.ops`.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vsfmanet.kernels.build import library

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""What is computed, and how the C++ functions are named."""

_FEWEST_INPUTS = 16
"""Channels from which Winograd's algorithm saves more than its transforms cost."""


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


def gated_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """See `gated_depthwise_reference`."""
    n, channels, h, w = x.shape
    out = _like(x, channels // 2)
    _call("gated_depthwise", x, _packed(x), _taps(weight, channels), out, n, h, w, channels)
    return out


def depthwise_squares(x: Tensor, weight: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """See `depthwise_squares_reference`."""
    n, channels, h, w = x.shape
    out, squares = _like(x, channels), torch.empty(n, h, channels)
    _call("depthwise_squares", x, _packed(x), _taps(weight, channels), out, squares, n, h, w, channels)
    return out, squares[..., :squared].sum(dim=1)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """See `pixel_norm_reference`."""
    n, channels, h, w = x.shape
    assert weight.shape == bias.shape == (channels,)
    out = _like(x, channels)
    _call("pixel_norm", x, _packed(x), weight.float(), bias.float(), out, c_float(epsilon), n * h, w, channels)
    return out


def convolves(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is the quickest for `x` and `weight`: not where AMX multiplies, or few channels are read."""
    by_tiles = x.dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported()
    return weight.dtype is x.dtype and weight.shape[1] >= _FEWEST_INPUTS and not by_tiles


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `vsfmanet.kernels.conv3x3`."""
    n, channels, h, w = x.shape
    outputs = len(weight)
    assert weight.shape == (outputs, channels, 3, 3)
    out, shift = _like(x, outputs), torch.zeros(outputs) if bias is None else bias.float()
    _call("conv3x3", x, _packed(x), _evaluated(weight), shift, out, n, h, w, channels, outputs)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluated:
    """Weights at the points of Winograd's algorithm, and what they were made from."""

    values: Tensor
    origin: Tensor
    """Kept, so that no other weight takes its place in memory."""
    version: int


_evaluations = WeakTensorKeyDictionary()


def _evaluated(weight: Tensor) -> Tensor:
    """Weight (outputs, inputs, 3, 3) as `conv3x3.cpp` packs it; made once, and again when it has changed."""
    version = 0 if weight.is_inference() else weight._version
    found: _Evaluated | None = _evaluations.get(weight)
    if found is None or found.version != version or found.origin.data_ptr() != weight.data_ptr():
        kernels, name, (outputs, inputs) = library(), SUFFIXES[weight.dtype], weight.shape[:2]
        assert kernels is not None
        size = kernels[f"conv3x3_packed_bytes_{name}"]
        size.restype = c_long
        values = torch.empty(size(c_long(inputs), c_long(outputs)), dtype=torch.uint8)
        taps = weight.detach().float().contiguous()
        pointers = c_void_p(taps.data_ptr()), c_void_p(values.data_ptr())
        kernels[f"conv3x3_pack_{name}"](*pointers, c_long(inputs), c_long(outputs))
        found = _Evaluated(values=values, origin=weight.detach(), version=version)
        _evaluations[weight] = found
    return found.values


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _like(x: Tensor, channels: int) -> Tensor:
    """Uninitialised (N, channels, H, W), channels-last."""
    n, _, h, w = x.shape
    return torch.empty(n, channels, h, w, dtype=x.dtype, memory_format=torch.channels_last)


def _taps(weight: Tensor, channels: int) -> Tensor:
    """Depthwise weight (C, 1, 3, 3) as (9, C), fp32."""
    assert weight.shape == (channels, 1, 3, 3)  # a kernel would read beyond it
    return weight.flatten(1).t().float().contiguous()


def _call(name: str, x: Tensor, *args: object) -> None:
    """Run the kernel for the dtype of `x`; tensors go as addresses, integers as C longs, the thread count last."""
    kernels = library()
    assert kernels is not None
    passed = [
        c_void_p(arg.data_ptr()) if isinstance(arg, Tensor) else c_long(arg) if isinstance(arg, int) else arg
        for arg in args
    ]
    kernels[f"{name}_{SUFFIXES[x.dtype]}"](*passed, c_int(torch.get_num_threads()))
