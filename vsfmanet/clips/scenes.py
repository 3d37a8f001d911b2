"""Where scenes start, written to every frame, and neighbours of a frame within its scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import vapoursynth as vs

from vsfmanet.clips import detector
from vsfmanet.clips.nodes import shifted
from vsfmanet.segments import scene_around

SCENE_START = "FMANetSceneStart"
"""Inside the filter: 1 on the first frame of a scene, except the clip's first; 0 on the others."""


def mark_scenes(tagged: vs.VideoNode, threshold: float | None) -> vs.VideoNode:
    """Write `SCENE_START` to every frame.

    Frames are marked before windows are formed, because the detector looks further than a window may.

    Args:
        tagged: Clip from `tag_colour`.
        threshold: None for the standard properties, and the detector where a frame has none; a number in (0, 1] for
            the detector with this threshold; 0 for no scenes, and then nothing is written.
    """
    if threshold == 0:
        return tagged
    thumbnail = tagged.resize.Bilinear(detector.THUMBNAIL_WIDTH, detector.THUMBNAIL_HEIGHT, format=vs.GRAYS, matrix=1)
    offsets = range(-detector.REACH_BACK, detector.REACH_AHEAD + 1)

    def starts(n: int, thumbnails: Sequence[vs.VideoFrame]) -> bool:
        if n == 0:
            return False
        if threshold is None:
            own, previous = thumbnails[offsets.index(0)], thumbnails[offsets.index(-1)]
            marked = detector.tagged_start(own.props, previous.props)
            if marked is not None:
                return marked
        inside = [0 <= n + offset < tagged.num_frames for offset in offsets]
        around = [np.asarray(frame[0]) if here else None for frame, here in zip(thumbnails, inside, strict=True)]
        return detector.detected_start(around, detector.DEFAULT_THRESHOLD if threshold is None else threshold)

    def mark(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        frame.props[SCENE_START] = int(starts(n, f[1:]))
        return frame

    return tagged.std.ModifyFrame([tagged, *(shifted(thumbnail, offset) for offset in offsets)], mark)


def starts_scene(frame: vs.VideoFrame) -> bool:
    """Whether a frame of a marked clip starts a scene."""
    return bool(frame.props.get(SCENE_START, 0))


def scene_of(n: int, around: Sequence[vs.VideoFrame], num_frames: int) -> list[vs.VideoFrame | None]:
    """The frames in `around`, with None for those that do not belong to the scene of frame `n`.

    Args:
        n: Number of a frame.
        around: That frame in the middle, and equally many neighbours on each side, as `shifted` delivers them; each
            carries `SCENE_START`.
        num_frames: Length of the clip.
    """
    reach = len(around) // 2
    first, last = max(0, n - reach), min(num_frames - 1, n + reach)
    scene = scene_around(n, first, last, lambda k: starts_scene(around[k - n + reach]))
    return [frame if k in scene else None for k, frame in enumerate(around, start=n - reach)]
