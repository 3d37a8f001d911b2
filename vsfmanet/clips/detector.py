"""Where scenes start: the standard properties, or a detector of our own. Knows no VapourSynth.

Whether a scene starts at frame n depends on frames n-3 ... n+2 alone, so it is the same in any order of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

THUMBNAIL_WIDTH = 64
THUMBNAIL_HEIGHT = 36
"""The detector compares pictures of this size: small enough to forgive grain and motion inside the picture."""

REACH_BACK = 3
REACH_AHEAD = 2
"""Frames before and after a frame that the detector looks at."""

DEFAULT_THRESHOLD = 0.06
"""Mean absolute difference of luma, of [0, 1], from which on two frames can belong to different scenes."""

_PROMINENCE = 3.0
"""How far a cut stands above the mean difference of the frames around it. A pan, however fast, does not."""

Thumbnail = NDArray[np.float32]


def tagged_start(props: Mapping[str, object], previous: Mapping[str, object]) -> bool | None:
    """Whether the standard properties say that a scene starts.

    Args:
        props: properties of a frame; `_SceneChangePrev` says whether it starts a scene.
        previous: properties of the frame before it; `_SceneChangeNext` says whether that one ends a scene.

    Returns:
        True if either says so, False if one speaks and none says so, None if neither is there.
    """
    said = [props.get("_SceneChangePrev"), previous.get("_SceneChangeNext")]
    flags = [bool(flag) for flag in said if flag is not None]
    return any(flags) if flags else None


def detected_start(around: Sequence[Thumbnail | None], threshold: float = DEFAULT_THRESHOLD) -> bool:
    """Whether the pictures say that a scene starts at frame n.

    Three things must hold. The frame differs from the one before. The difference stands out among those of the two
    frames on either side, so pans, fades and dissolves do not count. And the frames on both sides of n-1 and of n
    differ as well, so a flash of one frame does not count, while a scene of one frame does.

    Args:
        around: luma thumbnails of frames n-3 ... n+2, (36, 64) in [0, 1]; None outside the clip.
        threshold: mean absolute difference that counts, in (0, 1].
    """
    assert len(around) == REACH_BACK + 1 + REACH_AHEAD

    def difference(first: int, second: int) -> float | None:
        """Mean absolute difference of two frames, by their distance from n; None if one is outside the clip."""
        a, b = around[first + REACH_BACK], around[second + REACH_BACK]
        return None if a is None or b is None else float(np.abs(a - b).mean())

    step = difference(-1, 0)
    if step is None or step < threshold:
        return False
    neighbours = [value for k in (-2, -1, 1, 2) if (value := difference(k - 1, k)) is not None]
    if neighbours and step < _PROMINENCE * sum(neighbours) / len(neighbours):
        return False
    across = [difference(-2, 0), difference(-1, 1)]
    return all(value is None or value >= threshold for value in across)
