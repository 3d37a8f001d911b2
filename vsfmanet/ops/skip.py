"""What ends a restoration: the residual image, put in order and added to the enlarged frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_skip_reference(lr: Tensor, residual: Tensor, scale: int, shuffle: int) -> Tensor:
    """Add a residual image to frames that are enlarged bilinearly.

    Args:
        lr: (N, 3, H, W), fp32, any range.
        residual: (N, 3 * shuffle^2, h, w), for a pixel shuffle; what lies beyond the result at the right and bottom is
            left out.
        scale: Size of the result over that of `lr`, 1, 2 or 4.
        shuffle: Factor of the pixel shuffle; 1 for none.

    Returns:
        (N, 3, scale * H, scale * W), fp32.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. 8.
    """
    height, width = scale * lr.shape[2], scale * lr.shape[3]
    if shuffle > 1:
        residual = F.pixel_shuffle(residual, shuffle)
    skip = F.interpolate(lr.float(), scale_factor=scale, mode="bilinear", align_corners=False)
    return skip + residual[..., :height, :width].float()
