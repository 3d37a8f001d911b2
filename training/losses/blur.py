"""The losses of the blur analyser."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.frames import gradient_length
from vsfmanet.networks.mmpnet import SHARP_BELOW


def blur_loss(scaled: Tensor, sharp: Tensor, target: Tensor, extent: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The three terms, weighted: l1 of the scaled extent, 0.5 l1 of its gradient's length, 0.2 cross-entropy.

    Args:
        scaled: (N, 1, H, W) answer in (0, 1).
        sharp: (N, 1, H, W) logit.
        target: (N, 1, H, W) what `scaled` is to be.
        extent: (N, 1, H, W) pixels.
        weight: (N, 1, H, W) of each pixel.
    """

    def mean(errors: Tensor, of: Tensor = weight) -> Tensor:
        return (errors * of).sum() / of.sum()

    slopes = (gradient_length(scaled) - gradient_length(target)).abs()
    doubt = F.binary_cross_entropy_with_logits(sharp, (extent < SHARP_BELOW).float(), reduction="none")
    return {
        "extent": mean((scaled - target).abs()),
        "gradient": 0.5 * mean(slopes, weight[..., 1:-1, 1:-1]),
        "sharp": 0.2 * mean(doubt),
    }
