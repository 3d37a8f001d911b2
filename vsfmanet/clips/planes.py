"""Planes to tensors and back, on the host."""

from __future__ import annotations

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet.errors import FormatError


def read_rgb(frame: vs.VideoFrame, n: int) -> Tensor:
    """Copy an RGBS frame to a tensor.

    Args:
        frame: RGBS, nominal range [0, 1].
        n: Its number, for the message.

    Returns:
        (3, H, W) RGB, fp32, not clamped, on the CPU.

    Raises:
        FormatError: A sample is NaN or infinite.
    """
    rgb = torch.from_numpy(np.stack([np.asarray(frame[plane]) for plane in range(3)]))  # rows of planes are padded
    if not is_finite(rgb):
        raise FormatError(f"finite samples are needed, got NaN or infinity in frame {n} of the clip; repair the source")
    return rgb


def read_clamped(frame: vs.VideoFrame, n: int) -> Tensor:
    """Copy an RGBS frame to a batch of one, (1, 3, H, W) RGB in [0, 1]; see `read_rgb`."""
    rgb = read_rgb(frame, n)
    np.clip(rgb.numpy(), 0, 1, out=rgb.numpy())  # by numpy, see `Worker`
    return rgb[None]


def write_rgb(rgb: Tensor) -> vs.VideoFrame:
    """Create an RGBS frame without properties from `rgb`, (3, H, W), fp32, on the CPU."""
    _, height, width = rgb.shape
    frame = vs.core.create_video_frame(vs.core.get_video_format(vs.RGBS), width, height)
    for plane in range(3):
        np.copyto(np.asarray(frame[plane]), rgb[plane].numpy())
    return frame


def is_finite(values: Tensor) -> bool:
    """Whether a tensor on the CPU holds neither NaN nor infinity. By numpy, because callbacks ask: see `Worker`."""
    return bool(np.isfinite(values.numpy()).all())
