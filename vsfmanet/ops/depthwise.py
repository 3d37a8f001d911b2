"""Depthwise convolutions with what follows them at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_depthwise_reference(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise 3x3 convolution; the GELU of the first half of its channels times the second half.

    Args:
        x: (N, 2h, H, W).
        weight: (2h, 1, 3, 3).

    Returns:
        (N, h, H, W).

    Source: Restormer (arXiv 2111.09881), Eq. 3.
    """
    gate, content = F.conv2d(x, weight, padding=1, groups=x.shape[1]).chunk(2, dim=1)
    return F.gelu(gate) * content


def depthwise_squares_reference(x: Tensor, weight: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """Depthwise 3x3 convolution, and the sums over the image of the squares of its first channels.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, 3, 3).
        squared: How many channels are squared, 1 ... C.

    Returns:
        The result (N, C, H, W), and the sums (N, squared), fp32.
    """
    out = F.conv2d(x, weight, padding=1, groups=x.shape[1])
    with torch.autocast(x.device.type, enabled=False):
        # On the CPU a norm over strided pixels takes three times as long.
        return out, out[:, :squared].float().square().sum(dim=(2, 3))
