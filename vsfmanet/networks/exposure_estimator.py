"""A small network that estimates an exposure from the edge profiles of moving objects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 0.1
"""Largest error of an exposure that counts as correct, for the confidence."""


class ExposureEstimator(nn.Module):
    """Two layers that estimate an exposure and its error.

    Args:
        inputs: Length of the description of a frame, from `vsfmanet.exposures.estimate.profile`.
        hidden: Hidden channels.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, inputs: int, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, 2)  # exposure, log of its mean error

    def forward(self, profile: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the exposure of frames described by `profile` (N, inputs).

        Returns:
            Exposure (N,) in (0, 1), and the log of its expected error (N,) in [-4, 0].
        """
        feat = F.gelu(self.hidden((profile - self.centre) / self.spread))
        exposure, log_error = self.out(feat).unbind(dim=-1)
        return torch.sigmoid(exposure), log_error.clamp(-4, 0)


def confidence(log_error: Tensor) -> Tensor:
    """Return the probability that an error is below `TOLERANCE`, for Laplace-distributed errors.

    Args:
        log_error: Any shape: log of the expected error of an exposure.

    Returns:
        Same shape, in [0, 1].
    """
    return 1 - torch.exp(-TOLERANCE / log_error.exp())
