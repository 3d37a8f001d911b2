"""The learning rate over a run."""

import math
from collections.abc import Sequence


def learning_rate_factor(step: int, *, steps: int, warmup: int, decay: float, halvings: Sequence[float] = ()) -> float:
    """Part of the full learning rate: a linear rise, a plateau, and a cosine fall to zero at the end.

    A plateau lets a run be ended earlier or later than planned by naming other `steps`.

    Args:
        step: From 0.
        steps: Length of the run.
        warmup: Steps of the rise.
        decay: Part of the run that falls, in [0, 1].
        halvings: Parts of the run, in [0, 1], after each of which the rate is halved, as in FMA-Net++.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, steps * decay)
    halved = 0.5 ** sum(step >= part * steps for part in halvings)
    return rise * halved * (0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, fall))))
