"""Other tasks than deblurring, at the input's size: what a network is given instead of blurred frames."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

type Task = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Blurred and sharp frames, (..., 3, H, W) in [0, 1] each, and a source of randomness, to frames of the same shape."""


def deblur(blurred: Tensor, sharp: Tensor, generator: torch.Generator) -> Tensor:
    """Give the blurred frames."""
    return blurred


def denoise(blurred: Tensor, sharp: Tensor, generator: torch.Generator, *, sigma: tuple[float, float]) -> Tensor:
    """Give sharp frames with Gaussian noise, whose deviation is drawn for each clip.

    Args:
        blurred: Not used.
        sharp: (B, T, 3, H, W).
        generator: On the CPU.
        sigma: Smallest and largest deviation, code values of 8 bits.
    """
    least, most = (value / 255 for value in sigma)
    clips = (len(sharp), 1, 1, 1, 1)
    deviation = least + (most - least) * torch.rand(clips, generator=generator)
    return sharp + (deviation * torch.randn(sharp.shape, generator=generator)).to(sharp.device)


def super_resolve(blurred: Tensor, sharp: Tensor, generator: torch.Generator, *, scale: int = 4) -> Tensor:
    """Give sharp frames made smaller by `scale`, rounded to 8 bits, and enlarged again, both bicubic.

    Args:
        blurred: Not used.
        sharp: (B, T, 3, H, W).
        generator: Not used.
        scale: HR size over LR size; divides H and W.
    """
    flat, size = sharp.flatten(0, 1), sharp.shape[-2:]
    small = F.interpolate(flat, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)
    small = (small * 255).round() / 255
    return F.interpolate(small, size=size, mode="bicubic").unflatten(0, sharp.shape[:2])
