"""The symmetries of a square: the augmentation of all trainings."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Symmetry:
    """One of the eight symmetries of a square; mirrors come before the transposition."""

    horizontal: bool = False
    """Mirror left and right."""
    vertical: bool = False
    """Mirror top and bottom."""
    transposed: bool = False
    """Swap rows and columns."""

    def planes(self, planes: Tensor) -> Tensor:
        """Apply to (..., H, W)."""
        flips = [axis for axis, wanted in ((-1, self.horizontal), (-2, self.vertical)) if wanted]
        mirrored = planes.flip(flips) if flips else planes
        return mirrored.mT if self.transposed else mirrored

    def vectors(self, vectors: Tensor) -> Tensor:
        """Apply to vectors (..., 2, H, W), channels right, down."""
        right, down = self.planes(vectors).unbind(-3)
        right, down = -right if self.horizontal else right, -down if self.vertical else down
        return torch.stack([down, right] if self.transposed else [right, down], dim=-3)


def random_symmetry(generator: np.random.Generator) -> Symmetry:
    """Draw one of the eight."""
    horizontal, vertical, transposed = (bool(one < 0.5) for one in generator.random(3))
    return Symmetry(horizontal=horizontal, vertical=vertical, transposed=transposed)
