"""Optical flow without a network: where the pixels of one frame are found in another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.errors import ShapeError
from vsfmanet.ops.warp import flow_warp

_COARSEST = 12  # pixels of the shorter side below which the pyramid ends
_ITERATIONS = 3  # per level
_WINDOW = 7  # pixels over which the motion is held constant
_NOISE = 1e-4  # gradient energy, on a range of 1, below which a coarser level's answer is kept


@torch.no_grad()
def match_frames(own: Tensor, other: Tensor) -> Tensor:
    """Estimate the motion from `own` to `other` by a pyramid of least squares.

    At each level, from coarse to fine, the flow is refined three times by the shift that best explains what is left of
    the difference in a window around each pixel. Where nothing can be seen to move, the answer of the coarser level
    stands. No gradient flows through it.

    Args:
        own: (N, 3, H, W) RGB in [0, 1].
        other: (N, 3, H, W), the neighbouring frames.

    Returns:
        (N, 2, H, W), fp32, pixels: channel 0 right, 1 down. Pixel p of `own` is found at p + flow(p) in `other`.

    Raises:
        ShapeError: The two differ in shape.

    Source: Lucas and Kanade (IJCAI 1981), with the pyramid of Bouguet (2001), at every pixel.
    """
    if own.shape != other.shape:
        raise ShapeError(f"match_frames: both must have one shape, got {tuple(own.shape)} and {tuple(other.shape)}")
    with torch.autocast(own.device.type, enabled=False):
        pyramid = [(_luma(own.float()), _luma(other.float()))]
        while min(pyramid[-1][0].shape[-2:]) >= 2 * _COARSEST:
            pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
        flow = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
        for first, second in reversed(pyramid):
            flow = _enlarged(flow, first.shape[-2:])
            for _ in range(_ITERATIONS):
                flow = _refined(first, second, flow)
    return flow


def _luma(rgb: Tensor) -> Tensor:
    """(N, 1, H, W) of (N, 3, H, W). Numbers and no tensor: to bring one to a GPU would wait for all its work."""
    red, green, blue = rgb.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _halved(image: Tensor) -> Tensor:
    """Half the size, rounded down, after a small blur."""
    return F.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)


def _enlarged(flow: Tensor, size: torch.Size) -> Tensor:
    """Flow at another size, its values scaled alike."""
    if flow.shape[-2:] == size:
        return flow
    enlarged = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
    enlarged[:, 0] *= size[1] / flow.shape[-1]
    enlarged[:, 1] *= size[0] / flow.shape[-2]
    return enlarged


def _refined(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """One step of least squares: first, second (N, 1, H, W), flow (N, 2, H, W)."""
    moved = flow_warp(second, flow, padding="border")
    difference = moved - first
    gx, gy = _gradient((moved + first) / 2)
    products = torch.cat([gx * gx, gx * gy, gy * gy, gx * difference, gy * difference], dim=1)
    xx, xy, yy, xt, yt = _mean(products).split(1, dim=1)
    xx, yy = xx + _NOISE, yy + _NOISE
    determinant = xx * yy - xy * xy
    step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant
    return _mean(flow + step.clamp(-1, 1), 3)


def _gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and down, (N, 1, H, W) each."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    return (
        (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2,
        (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2,
    )


def _mean(x: Tensor, window: int = _WINDOW) -> Tensor:
    """Mean over a square window of odd size, over what of it lies inside."""
    if x.is_cuda:  # one launch
        return F.avg_pool2d(x, window, stride=1, padding=window // 2, count_include_pad=False)
    for dim in (3, 2):  # on a CPU that is ten times as fast: whole rows are added, and not number by number
        size, reach = x.shape[dim], window // 2
        padded = F.pad(x, [reach, reach] if dim == 3 else [0, 0, reach, reach])
        total = padded.narrow(dim, 0, size).clone()
        for shift in range(1, window):
            total += padded.narrow(dim, shift, size)
        place = torch.arange(size)
        inside = (place + reach).clamp_max(size - 1) - (place - reach).clamp_min(0) + 1
        x = total / (inside if dim == 3 else inside[:, None])
    return x
