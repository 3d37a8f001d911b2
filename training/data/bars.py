"""Bars of one colour over a part of the picture or all of it, in input and truth alike: letterboxes, titles, fades.

Photographs have hardly any place of one colour, and a network that never saw one returns it with a border of its own.
"""

import numpy as np
import torch
from torch import Tensor

WHOLE_CHANCE = 0.4
"""Of bars that cover the whole picture."""

BLACK_CHANCE = 0.5
"""Of black ones; the others have any colour."""


def add_bars(
    generator: np.random.Generator, part: float, lr: Tensor, hr: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay a bar along one side of a part of some square clips.

    Args:
        generator: Source of all randomness; not used at all if `part` is 0.
        part: Chance of each clip, in [0, 1].
        lr: (B, T, 3, h, h) 8-bit code values.
        hr: (B, T, 3, s*h, s*h) 8-bit code values.
        visible: (B, T, 2, h, h); 0 under a bar, where nothing moves with the picture's flow.

    Returns:
        The three, changed copies; themselves if `part` is 0.
    """
    if not part:
        return lr, hr, visible
    lr, hr, visible = lr.clone(), hr.clone(), visible.clone()
    side = lr.shape[-1]
    scale = hr.shape[-1] // side
    for clip in range(len(lr)):
        if generator.random() >= part:
            continue
        whole, black = generator.random(2) < (WHOLE_CHANCE, BLACK_CHANCE)
        colour = torch.from_numpy(generator.integers(256, size=3) * (not black)).to(lr)[:, None, None]
        width = side if whole else int(generator.integers(1, side))
        axis = int(generator.choice((-2, -1)))
        start = int(generator.choice((0, side - width)))
        lr[clip].narrow(axis, start, width)[:] = colour
        hr[clip].narrow(axis, scale * start, scale * width)[:] = colour
        visible[clip].narrow(axis, start, width)[:] = 0
    return lr, hr, visible
