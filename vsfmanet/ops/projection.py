"""Pointwise convolutions with what follows them: a depthwise 3x3 convolution, or a shortcut. None has a bias.

Source: Restormer (arXiv 2111.09881), Eq. 1-3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.ops.attention import rows


def feed_forward_reference(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """Run a gated feed-forward network, and add a shortcut.

    `x` is projected to 2h channels; GELU of the first half times the second half is mixed to D channels.

    Args:
        shortcut: (N, D, H, W), any range.
        x: (N, C, H, W), of the same type.
        pointwise: (2h, C, 1, 1).
        depthwise: (2h, 1, 3, 3).
        reduce: (D, h, 1, 1).

    Returns:
        (N, D, H, W).

    Source: Restormer (arXiv 2111.09881), Eq. 3.
    """
    gate, content = _project(x, pointwise, depthwise).chunk(2, dim=1)
    return shortcut + F.conv2d(F.gelu(gate) * content, reduce)


def squared_projection_reference(
    x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int
) -> tuple[Tensor, Tensor]:
    """Run a pointwise and a depthwise convolution, and sum the squares of the first channels over the image.

    Args:
        x: (N, C, H, W).
        pointwise: (D, C, 1, 1).
        depthwise: (D, 1, 3, 3).
        squared: Number of channels whose squares are summed, 1 ... D.

    Returns:
        The result (N, D, H, W), and the sums (N, squared), fp32.

    Source: Restormer (arXiv 2111.09881), Eq. 1 and 2.
    """
    out = _project(x, pointwise, depthwise)
    with torch.autocast(x.device.type, enabled=False):
        # On the CPU a norm over strided pixels takes three times as long.
        return out, out[:, :squared].float().square().sum(dim=(2, 3))


def add_product_reference(shortcut: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """Mix the channels of each image by its own matrix, and add a shortcut.

    Args:
        shortcut: (N, D, H, W).
        x: (N, C, H, W).
        matrix: (N, C, D).

    Returns:
        (N, D, H, W).
    """
    pixels = rows(x)
    # For one image, `bmm` would copy slices first.
    product = torch.mm(pixels[0], matrix[0])[None] if len(pixels) == 1 else torch.bmm(pixels, matrix)
    return shortcut + product.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _project(x: Tensor, pointwise: Tensor, depthwise: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(x, pointwise), depthwise, padding=1, groups=len(depthwise))
