"""Motion blur from motion: what a shutter adds up while things move through a sharp frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vsfmanet.errors import ShapeError
from vsfmanet.ops.warp import flow_warp

MOST_STEPS = 32
"""Most steps along the longest path; of longer ones, steps are longer than a pixel."""


@torch.no_grad()
def blur_along(image: Tensor, motion: Tensor, exposure: float) -> Tensor:
    """Average an image along a straight path through each pixel, as a shutter does that opens around the frame's time.

    Pixel p becomes the mean of the image at p + t * motion(p), for t from -exposure / 2 to exposure / 2: the motion at
    p is taken for that of everything that passes p. Steps are at most a pixel long, up to `MOST_STEPS`.

    Args:
        image: (N, C, H, W), any range.
        motion: (N, 2, H, W) in pixels a frame interval; channel 0 points right, channel 1 down.
        exposure: Open-shutter time over frame interval, in [0, 1].

    Returns:
        (N, C, H, W), fp32. Outside the image lies its border.

    Raises:
        ShapeError: `motion` is not (N, 2, H, W) for the N, H, W of `image`.
    """
    n, _, h, w = image.shape
    if motion.shape != (n, 2, h, w):
        raise ShapeError(f"motion must be {(n, 2, h, w)}, got {tuple(motion.shape)}; resize it to the image")
    image = image.float()
    longest = exposure * float(motion.norm(dim=1).max())
    steps = min(MOST_STEPS, 2 * math.ceil(longest / 2))  # even, so that the frame's own time is among them
    total = image.clone()
    for k in range(1, steps // 2 + 1):
        way = motion * (exposure * k / steps)
        weight = 0.5 if k == steps // 2 else 1.0  # the ends of the path, by the trapezoidal rule
        total += weight * (flow_warp(image, way, padding="border") + flow_warp(image, -way, padding="border"))
    return total / max(1, steps)
