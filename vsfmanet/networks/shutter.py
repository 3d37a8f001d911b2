"""From what the profiles of moving things look like to the exposure."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 0.1
"""Error of the exposure within which an answer counts as right, for the confidence."""


class ShutterReader(nn.Module):
    """Two layers: the exposure, and how far off it may be.

    Args:
        inputs: Numbers that describe a frame, those of `vsfmanet.exposures.estimate.profile`.
        hidden: Width.
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
        """Exposure in (0, 1) and log of its expected error, (N,) each, of `profile` (N, inputs)."""
        feat = F.gelu(self.hidden((profile - self.centre) / self.spread))
        exposure, log_error = self.out(feat).unbind(dim=-1)
        return torch.sigmoid(exposure), log_error.clamp(-4, 0)


def confidence(log_error: Tensor) -> Tensor:
    """Chance that the answer is right within `TOLERANCE`, if errors fall off exponentially (Laplace); any shape."""
    return 1 - torch.exp(-TOLERANCE / log_error.exp())
