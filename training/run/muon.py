"""Muon for weights of any shape."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MatrixSteps:
    """Muon for weights that can be read as matrices, one row for each output: all but biases and the like.

    A step has the directions of the momentum with equal lengths, so that what is rare in the gradients is learnt too.

    Args:
        weights: Those of fewer than two dimensions are left to another optimizer.
        rate: Learning rate.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); torch has it for matrices.
    """

    def __init__(self, weights: Sequence[Tensor], rate: float) -> None:
        self._weights = [weight for weight in weights if weight.dim() > 1]
        self._views = [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in self._weights]
        assert all(view.data_ptr() == own.data_ptr() for view, own in zip(self._views, self._weights, strict=True))
        self.optimizer = torch.optim.Muon(self._views, rate, weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Move the weights, and take their gradients away so that no other optimizer moves them too."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for weight, view in zip(self._weights, self._views, strict=True):
            view.grad = None if weight.grad is None else _as_matrix(weight.grad, weight)
            weight.grad = None
        self.optimizer.step()


def _as_matrix(value: Tensor, weight: Tensor) -> Tensor:
    """A weight, or its gradient, as (rows, rest); of the weight itself a view."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    return value.reshape(len(value), -1)
