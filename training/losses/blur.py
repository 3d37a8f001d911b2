"""The losses of the blur analyser, and of the prior of MMP-RNN."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.frames import gradient_length
from vsfmanet.networks.mmpnet import SHARP_BELOW


def magnitude_loss(scaled: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The terms of Wang et al. (arXiv 2207.13374), weighted: l1, and 0.5 l1 of the gradient's length.

    Args:
        scaled: (N, 1, H, W) answer in (0, 1).
        target: (N, 1, H, W) what `scaled` is to be.
        weight: (N, 1, H, W) of each pixel.
    """
    slopes = (gradient_length(scaled) - gradient_length(target)).abs()
    return {
        "extent": _mean((scaled - target).abs(), weight),
        "gradient": 0.5 * _mean(slopes, weight[..., 1:-1, 1:-1]),
    }


def sharp_loss(sharp: Tensor, extent: Tensor, weight: Tensor) -> Tensor:
    """0.2 times the cross-entropy of being sharp, a scalar.

    Args:
        sharp: (N, 1, H, W) logit.
        extent: (N, 1, H, W) pixels.
        weight: (N, 1, H, W) of each pixel.
    """
    truth = (extent < SHARP_BELOW).float()
    return 0.2 * _mean(F.binary_cross_entropy_with_logits(sharp, truth, reduction="none"), weight)


def _mean(errors: Tensor, weight: Tensor) -> Tensor:
    return (errors * weight).sum() / weight.sum()
