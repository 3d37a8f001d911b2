"""Fast forms of the operations that cost most: in C++ on CPUs, in Triton on CUDA.

Their twins in `vsfmanet.ops` say what they mean.

One rule picks: `kernels_for`. Training, exports, and machines without a compiler or Triton run the twin.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.kernels import cpu
from vsfmanet.kernels.build import library
from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.projection import (
    add_product_reference,
    feed_forward_reference,
    squared_projection_reference,
)
from vsfmanet.ops.warp import check_neighbours, warp_neighbours_reference

_CUDA_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}

_log = logging.getLogger(__name__)


class Kernels(Protocol):
    """The operations, as a module for one kind of device offers them."""

    def warp_neighbours(
        self, feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
    ) -> Tensor:
        """See `warp_neighbours_reference`; the arguments have been checked."""
        ...

    def feed_forward(self, shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
        """See `feed_forward_reference`."""
        ...

    def squared_projection(
        self, x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int
    ) -> tuple[Tensor, Tensor]:
        """See `squared_projection_reference`."""
        ...

    def head_grams(self, query: Tensor, key: Tensor, heads: int) -> Tensor:
        """See `head_grams_reference`."""
        ...

    def pixel_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `pixel_norm_reference`."""
        ...


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels that work on `x`; None where a twin has to.

    There are some on the CPU in fp32 or bf16 if a compiler was found, and on CUDA in fp32, bf16 or fp16 if Triton is
    there and gives what the twins give; not where gradients are taken or a graph is exported.
    `VSFMANET_NO_KERNELS=1` in the environment says no to all.
    """
    if (
        type(x) is not Tensor  # a fake tensor has nothing to read
        or x.device.type not in ("cpu", "cuda")
        or torch.compiler.is_compiling()
        or torch.onnx.is_in_onnx_export()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(x.device.type)
        or os.environ.get("VSFMANET_NO_KERNELS") == "1"
    ):
        return None
    if x.device.type == "cpu" and x.dtype in cpu.SUFFIXES and library() is not None:
        return cast(Kernels, cpu)
    if x.device.type == "cuda" and x.dtype in _CUDA_TYPES:
        return cuda_kernels(x.device, x.dtype)
    return None


def kind_for(device: torch.device, dtype: torch.dtype) -> Literal["cpp", "triton"] | None:
    """Return which kernels compute on a device in a type at inference; None where torch does."""
    with torch.inference_mode():
        kernels = kernels_for(torch.empty(1, dtype=dtype, device=device))
    return None if kernels is None else "cpp" if device.type == "cpu" else "triton"


@functools.cache
def cuda_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels for a CUDA device, once they were compiled for it and agreed with their twins; a warning if not."""
    try:
        from vsfmanet.kernels import gpu
    except ImportError as error:
        _log.info("kernels: Triton is not there, torch does their work: %s", error)
        return None
    kernels = cast(Kernels, gpu)
    try:
        with torch.inference_mode():
            _probe(kernels, device, dtype)
    except Exception as error:  # whatever a driver, a compiler or a C compiler that is missing may raise
        _log.warning("kernels: not usable on %s, torch does their work: %s", device, str(error).strip() or repr(error))
        return None
    return kernels


def _probe(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Run every kernel on little.

    Raises:
        RuntimeError: One differs from its twin. Others come from Triton, which does not say which.
    """
    generator = torch.Generator().manual_seed(0)

    def like(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    feat, following, previous = like(1, 8, 5, 6), like(1, 8, 5, 6), like(1, 8, 5, 6)
    pair, flow, gain = (following, previous), like(1, 12, 5, 6).float(), like(8)
    mix, taps = like(8, 8, 1, 1), like(8, 1, 3, 3)
    found = {
        "warp_neighbours": (
            kernels.warp_neighbours(feat, pair, flow, 2, (0, 0)),
            warp_neighbours_reference(feat, pair, flow, 2),
        ),
        "feed_forward": (
            kernels.feed_forward(feat, feat, mix, taps, mix[:, :4]),
            feed_forward_reference(feat, feat, mix, taps, mix[:, :4]),
        ),
        "squared_projection": (
            kernels.squared_projection(feat, mix, taps, 8)[0],
            squared_projection_reference(feat, mix, taps, 8)[0],
        ),
        "head_grams": (kernels.head_grams(feat, following, 2), head_grams_reference(feat, following, 2)),
        "pixel_norm": (kernels.pixel_norm(feat, gain, gain, 1e-5), pixel_norm_reference(feat, gain, gain, 1e-5)),
    }
    for name, (own, twin) in found.items():
        off = (own.float() - twin.float()).abs().max() / twin.float().abs().max()
        if not off <= _PROBE_TOLERANCE[dtype]:  # NaN too
            raise RuntimeError(f"{name} is off by {float(off):.2g} of what torch gives")


def warp_neighbours(
    feat: Tensor,
    neighbours: tuple[Tensor, Tensor],
    flow: Tensor,
    num_flows: int,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Frames beside their warped neighbours, ready to be fused; see `warp_neighbours_reference`."""
    kernels = kernels_for(feat)
    if kernels is None:
        return warp_neighbours_reference(feat, neighbours, flow, num_flows, origin)
    check_neighbours(feat, neighbours, flow, num_flows, origin)
    return kernels.warp_neighbours(feat, neighbours, flow, num_flows, origin)


def feed_forward(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """A gated network of a pixel and those around it, added to a shortcut; see `feed_forward_reference`."""
    kernels = kernels_for(x)
    if kernels is None:
        return feed_forward_reference(shortcut, x, pointwise, depthwise, reduce)
    return kernels.feed_forward(shortcut, x, pointwise, depthwise, reduce)


def squared_projection(x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """Pointwise and depthwise convolution, and sums of squares; see `squared_projection_reference`."""
    kernels = kernels_for(x)
    if kernels is None:
        return squared_projection_reference(x, pointwise, depthwise, squared)
    return kernels.squared_projection(x, pointwise, depthwise, squared)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """LayerNorm over the channels of each pixel; see `pixel_norm_reference`."""
    kernels = kernels_for(x)
    if kernels is None:
        return pixel_norm_reference(x, weight, bias, epsilon)
    return kernels.pixel_norm(x, weight, bias, epsilon)


def _is_for_cpu(x: Tensor) -> bool:
    """Whether the kernels that there are for CPUs alone work on `x`."""
    return x.device.type == "cpu" and kernels_for(x) is not None


def add_product(shortcut: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """A product with a matrix of each image, added to a shortcut; on CUDA torch's. See `add_product_reference`."""
    if _is_for_cpu(x) and cpu.adds(shortcut, x, matrix):
        weights = matrix.mT[..., None, None]
        frames = zip(shortcut.split(1), x.split(1), weights, strict=True)
        parts = [cpu.add_pointwise(own, frame, weight) for own, frame, weight in frames]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    return add_product_reference(shortcut, x, matrix)


def head_grams(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Products of the channels of each head, summed; see `head_grams_reference`."""
    kernels = kernels_for(query)
    if kernels is None or query.dtype is not key.dtype:
        return head_grams_reference(query, key, heads)
    return kernels.head_grams(query, key, heads)


def conv3x3(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    padding: int = 1,
    *,
    slope: float = 1.0,
    shuffle: int = 1,
) -> Tensor:
    """A 3x3 convolution of stride 1 and what follows it: torch's, but on CPUs by Winograd's algorithm where that pays.

    In fp32 the two agree to 1e-5. In bf16, which is rounded after the transforms too, a single convolution is off by
    1 % (torch's by 0.2 %), and restored frames of `fast` by -66 dB (-68 dB) of what fp32 gives.

    Args:
        parts: (N, C, H, W) each, of one type: what is convolved, in tensors whose channels are read one after the
            other. They are not copied into one on CPUs, where all but the last have a multiple of 16 channels.
        weight: (outputs, sum of all C, 3, 3).
        bias: (outputs,) or None.
        padding: Zeros outside, 1 or 0.
        slope: What values below zero are multiplied by, from 0 to 1: a leaky ReLU.
        shuffle: Factor of a pixel shuffle.

    Returns:
        (N, outputs, H, W), or (N, outputs, H - 2, W - 2) without padding; shuffled, (N, outputs / shuffle^2,
        shuffle * height, shuffle * width).
    """
    if _is_for_cpu(parts[0]) and cpu.convolves(parts, weight):
        images = parts if cpu.reads_apart(parts) else [_joined(parts)]
        at_once = shuffle if cpu.shuffles(weight, shuffle) else 1
        out = cpu.conv3x3(images, weight, bias, padding, slope, at_once)
        return out if at_once == shuffle else F.pixel_shuffle(out, shuffle)
    out = F.conv2d(_joined(parts), weight, bias, padding=padding)
    if slope != 1:
        out = F.leaky_relu(out, slope, inplace=True)
    return F.pixel_shuffle(out, shuffle) if shuffle > 1 else out


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([*parts], dim=1) if len(parts) > 1 else parts[0]
