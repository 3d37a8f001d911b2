"""Where scenes start: from the standard properties, or by a detector on thumbnails. Imports no VapourSynth.

Whether a scene starts at frame n depends on frames n-3 ... n+2 alone, so it is the same in any order of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

THUMBNAIL_WIDTH = 64
THUMBNAIL_HEIGHT = 36
"""Size of the thumbnails that are compared; too small for grain, and for motion within the picture, to count."""

REACH_BACK = 3
REACH_AHEAD = 2
"""Frames before and after a frame that the detector uses."""

DEFAULT_THRESHOLD = 0.06
"""Smallest mean absolute difference of luma, in [0, 1], between frames of different scenes."""

_PROMINENCE = 3.0
"""Least ratio of the difference at a cut to the mean difference around it. A pan stays below, at any speed."""

Thumbnail = NDArray[np.float32]


def tagged_start(props: Mapping[str, object], previous: Mapping[str, object]) -> bool | None:
    """Whether a frame starts a scene, by the standard properties.

    Args:
        props: Properties of the frame; `_SceneChangePrev` is 1 if it starts a scene.
        previous: Properties of the frame before it; `_SceneChangeNext` is 1 if that one ends a scene.

    Returns:
        True if either is set to 1, False if neither is but one is there, None if neither is there.
    """
    tags = [props.get("_SceneChangePrev"), previous.get("_SceneChangeNext")]
    flags = [bool(tag) for tag in tags if tag is not None]
    return any(flags) if flags else None


def detected_start(around: Sequence[Thumbnail | None], threshold: float = DEFAULT_THRESHOLD) -> bool:
    """Whether frame n starts a scene, by its thumbnail and those around it.

    Three things must hold. The frame differs from the one before. The difference stands out among those of the two
    frames on either side, so pans, fades and dissolves do not count. And the frames on both sides of n-1 and of n
    differ as well, so a flash of one frame does not count, while a scene of one frame does.

    Args:
        around: Luma thumbnails of frames n-3 ... n+2, (36, 64) in [0, 1]; None outside the clip.
        threshold: Mean absolute difference of two frames from which they differ, in (0, 1].
    """
    assert len(around) == REACH_BACK + 1 + REACH_AHEAD

    def difference(first: int, second: int) -> float | None:
        """Mean absolute difference of two frames, given as offsets from n; None if one is outside the clip."""
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
