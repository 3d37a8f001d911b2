"""Fast forms of the operations that cost most on a CPU. Each has a twin in `vsfmanet.ops`, which is its meaning.

One rule picks: `use_kernel`. Training, exports and machines without a compiler run the twin.
"""

from __future__ import annotations

import os
from ctypes import c_float, c_int, c_long, c_void_p

import torch
from torch import Tensor

from vsfmanet.kernels.build import library
from vsfmanet.ops.depthwise import depthwise_squares_reference, gated_depthwise_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.warp import check_neighbours, warp_neighbours_reference

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def use_kernel(x: Tensor) -> bool:
    """Whether kernels work on `x`: on the CPU, fp32 or bf16, no gradients, no export, and a compiler was found.

    `VSFMANET_NO_KERNELS=1` in the environment says no to all.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.onnx.is_in_onnx_export()
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in _SUFFIXES
        and not torch.is_autocast_enabled("cpu")
        and os.environ.get("VSFMANET_NO_KERNELS") != "1"
        and library() is not None
    )


def warp_neighbours(
    feat: Tensor,
    neighbours: tuple[Tensor, Tensor],
    flow: Tensor,
    num_flows: int,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Frames beside their warped neighbours, ready to be fused; see `warp_neighbours_reference`."""
    if not use_kernel(feat):
        return warp_neighbours_reference(feat, neighbours, flow, num_flows, origin)
    n, channels, h, w = feat.shape
    check_neighbours(feat, neighbours, flow, num_flows, origin)
    images = [_packed(image.to(feat.dtype)) for image in (feat, *neighbours)]
    flow = flow.float()
    out = _like(feat, 3 * channels)
    strides = (c_long * 4)(*flow.stride())
    place = (c_long * 4)(*origin, *neighbours[0].shape[2:])
    _call("warp_neighbours", feat, *images, flow, out, strides, place, n, h, w, channels, num_flows)
    return out


def gated_depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise convolution, then a GELU gate; see `gated_depthwise_reference`."""
    if not use_kernel(x):
        return gated_depthwise_reference(x, weight)
    n, channels, h, w = x.shape
    out = _like(x, channels // 2)
    _call("gated_depthwise", x, _packed(x), _taps(weight, channels), out, n, h, w, channels)
    return out


def depthwise_squares(x: Tensor, weight: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """Depthwise convolution and the sums of its squares; see `depthwise_squares_reference`."""
    if not use_kernel(x):
        return depthwise_squares_reference(x, weight, squared)
    n, channels, h, w = x.shape
    out, squares = _like(x, channels), torch.empty(n, h, channels)
    _call("depthwise_squares", x, _packed(x), _taps(weight, channels), out, squares, n, h, w, channels)
    return out, squares[..., :squared].sum(dim=1)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm over the channels of each pixel; see `pixel_norm_reference`."""
    if not use_kernel(x):
        return pixel_norm_reference(x, weight, bias, epsilon)
    n, channels, h, w = x.shape
    assert weight.shape == bias.shape == (channels,)
    out = _like(x, channels)
    _call("pixel_norm", x, _packed(x), weight.float(), bias.float(), out, c_float(epsilon), n * h, w, channels)
    return out


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
    kernels[f"{name}_{_SUFFIXES[x.dtype]}"](*passed, c_int(torch.get_num_threads()))
