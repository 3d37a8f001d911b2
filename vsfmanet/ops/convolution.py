"""3x3 convolutions with what follows them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3x3_reference(
    parts: Sequence[Tensor], weight: Tensor, bias: Tensor | None, padding: int, slope: float, shuffle: int
) -> Tensor:
    """Convolve images by 3x3 with stride 1, then apply a leaky ReLU and a pixel shuffle.

    Args:
        parts: (N, C, H, W) each, of one type, any range; their channels are read one part after the other.
        weight: (D, sum of all C, 3, 3).
        bias: (D,), or None.
        padding: Zeros around the image, 1 or 0.
        slope: Factor for values below zero, from 0 to 1; 1 for no leaky ReLU.
        shuffle: Factor of the pixel shuffle; 1 for none.

    Returns:
        (N, D / shuffle^2, shuffle * H, shuffle * W) with padding 1; H - 2 and W - 2 in the place of H and W without.
    """
    out = F.conv2d(joined(parts), weight, bias, padding=padding)
    if slope != 1:
        out = F.leaky_relu(out, slope, inplace=True)
    return F.pixel_shuffle(out, shuffle) if shuffle > 1 else out


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate images (N, C, H, W) along their channels; returns (N, sum of all C, H, W). One is not copied."""
    return torch.cat([*parts], dim=1) if len(parts) > 1 else parts[0]
