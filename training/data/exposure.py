"""Exposure levels, and how they change within a clip."""

import numpy as np
from numpy.typing import NDArray

from vsfmanet.errors import ConfigError
from vsfmanet.networks.exposure_extractor import LEVELS

RANDOM_INTERVALS = (2, 3, 4, 5, 6, 7)
"""Frames between exposure changes that training draws from; wider than the test set's {5, 7}."""


def exposure_walk(generator: np.random.Generator, frames: int, start: int, interval: int) -> NDArray[np.int64]:
    """Draw one exposure level per frame: a random walk that may step every `interval` frames.

    Args:
        generator: Source of all randomness.
        frames: Number of frames, at least 1.
        start: Level before the first draw, in 1..5.
        interval: Frames between draws, at least 1; frame 0 draws too.

    Returns:
        (frames,) levels in 1..5.

    Source: FMA-Net++ (arXiv 2512.04390), Algorithm S1.
    """
    levels = np.empty(frames, dtype=np.int64)
    level = start
    for index in range(frames):
        if index % interval == 0:
            level = int(np.clip(level + generator.integers(-1, 2), 1, LEVELS))
        levels[index] = level
    return levels


def random_exposure(generator: np.random.Generator, frames: int, mode: str) -> NDArray[np.int64]:
    """Draw one exposure level per frame for a training clip.

    Args:
        generator: Source of all randomness.
        frames: Number of frames, at least 1.
        mode: "constant" (one level per clip), "walk" (Algorithm S1) or "mixed" (half of the clips each).

    Returns:
        (frames,) levels in 1..5.

    Raises:
        ConfigError: `mode` is none of the three.
    """
    match mode:
        case "constant":
            return np.full(frames, generator.integers(1, LEVELS + 1))
        case "walk":
            start = int(generator.integers(1, LEVELS + 1))
            return exposure_walk(generator, frames, start, int(generator.choice(RANDOM_INTERVALS)))
        case "mixed":
            return random_exposure(generator, frames, "constant" if generator.random() < 0.5 else "walk")
        case _:
            raise ConfigError(f"random_exposure: mode must be constant, walk or mixed, got {mode!r}")
