"""Batches for the exposure extractor: crops at all exposures."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.extent import extent_of_flow
from training.data.pool import Pool
from training.data.symmetry import random_symmetry
from vsfmanet.networks.exposure_extractor import LEVELS

MIN_MOTION = 2.0
"""95th percentile of the motion, in LR pixels per frame, below which a frame's exposure counts as invisible."""

PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
"""Percentiles that describe the lengths of blur in a frame."""


def visible_motion(pool: Pool, position: int) -> NDArray[np.int64]:
    """Return the numbers of the frames of a sequence that move enough to show their exposure."""
    flow = np.asarray(pool.sequence(position).flow, dtype=np.float32)  # (T, 2, 2, h, w)
    speed = np.hypot(flow[:, :, 0], flow[:, :, 1]).max(axis=1)
    return np.flatnonzero(np.percentile(speed, 95, axis=(1, 2)) >= MIN_MOTION)


def draw(
    pool: Pool, moving: list[tuple[int, int]], generator: np.random.Generator, count: int, crop: int
) -> tuple[Tensor, Tensor]:
    """Draw crops at all levels, flipped and transposed at random.

    Args:
        pool: Where they are taken from.
        moving: Sequence and frame of those that may be taken.
        generator: Source of all randomness.
        count: How many.
        crop: Size in LR pixels.

    Returns:
        (count, 5, 3, crop, crop) in [0, 1], and the sequence (count,) that each is of.
    """
    out, sequences = [], []
    for pick in generator.integers(len(moving), size=count):
        position, t = moving[pick]
        sequences.append(position)
        lr = pool.sequence(position).lr
        top, left = (int(generator.integers(side - crop + 1)) for side in lr.shape[-2:])
        patch = torch.from_numpy(lr[:, t, :, top : top + crop, left : left + crop])
        out.append(random_symmetry(generator).planes(patch))
    return torch.stack(out).float() / 255, torch.tensor(sequences)


def true_blur(pool: Pool, frames: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Describe frames by their true lengths of blur; frames without both neighbours are left out.

    Args:
        pool: Where they are.
        frames: Sequence and frame of each.

    Returns:
        (N, 5, P) logarithms of the percentiles of the blur's length in LR pixels at every level, and the sequence (N,).
    """
    told, sequences = [], []
    for position, t in frames:
        flow = pool.sequence(position).flow
        if 0 < t < len(flow) - 1:
            lengths = [np.percentile(extent_of_flow(flow[t], k / LEVELS), PERCENTILES) for k in range(1, LEVELS + 1)]
            told.append(np.log(np.stack(lengths) + 0.05))
            sequences.append(position)
    return torch.from_numpy(np.stack(told)).float(), torch.tensor(sequences)
