"""Estimates the exposure of a frame from its profile, see `vsfmanet.exposures.estimate`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 0.1
"""Error of the exposure up to which an estimate counts as right, for the confidence."""


class ExposureEstimator(nn.Module):
    """Two layers, from a profile to the exposure and its expected error.

    Args:
        inputs: Length of a profile.
        hidden: Width of the hidden layer.
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
        """Estimate the exposure in (0, 1) and the log of its expected error, (N,) each, from `profile` (N, inputs)."""
        feat = F.gelu(self.hidden((profile - self.centre) / self.spread))
        exposure, log_error = self.out(feat).unbind(dim=-1)
        return torch.sigmoid(exposure), log_error.clamp(-4, 0)


def confidence(log_error: Tensor) -> Tensor:
    """Probability of an error below `TOLERANCE`, for errors with Laplace's distribution; any shape."""
    return 1 - torch.exp(-TOLERANCE / log_error.exp())
