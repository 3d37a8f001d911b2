"""Checkpoints, and the averaged weights in them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vsfmanet.atomic import replacing


class AveragedWeights[N: nn.Module]:
    """Exponential moving average of a network's parameters and buffers, which is evaluated and shipped."""

    def __init__(self, network: N, decay: float = 0.999) -> None:
        self.network: N = deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network`; faster in the first steps, when the average is still mostly the random start."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        theirs = [value for value in network.state_dict().values() if value.is_floating_point()]
        torch._foreach_lerp_(mine, theirs, weight)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, so that a kill leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only, no code."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state
