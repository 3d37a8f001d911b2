"""Normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pixel_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Apply LayerNorm to the channels of each pixel.

    Args:
        x: (N, C, H, W), any range.
        weight: (C,).
        bias: (C,).
        epsilon: Added to the variance.

    Returns:
        (N, C, H, W).

    Source: Ba et al. (arXiv 1607.06450).
    """
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, epsilon).permute(0, 3, 1, 2)
