"""Frames that are sharp already, passed through instead of restored.

A frame counts as sharp by its motion to its neighbours times its exposure, not by the blur that it shows: on rendered
scenes, that length is within 0.1 pixel of the truth where it is small, while the blur analyser, which sees single
frames, takes half a pixel for two, and flat areas for sharp. Where the exposure is unknown it counts as 1, so the
length is never too small.

A frame is passed through only in a run of sharp frames of its scene, so that the picture does not flicker between
restored and original frames. Whether frame n is, depends on frames n-12 ... n+12 and their exposures alone.
"""

from __future__ import annotations

import numpy as np
import vapoursynth as vs

from vsfmanet.clips.exposure import EXPOSURE
from vsfmanet.clips.motion import Motion, read_flow
from vsfmanet.clips.nodes import keep_frames, shifted
from vsfmanet.clips.scenes import SCENE_START, scene_of

SKIPPED = "FMANetSkipped"
"""On every frame: 1 if it was passed through, 0 if it was restored."""

SHARP_BELOW = 0.5
"""Pixels of motion while the shutter is open, below which restoration does not improve a frame."""

BLURRED_PART = 0.005
"""Part of a frame whose motion is disregarded."""

AROUND = 4
"""Frames before and after a frame of its scene that must be sharp with it."""

SHORTEST = 8
"""Shortest run of frames that is passed through."""

_LENGTH, _EXTENT = "Length", "Extent"
_REACH = AROUND + SHORTEST - 1
_KEPT = 1000  # frames of one pixel: their properties take long to compute and no memory


def pass_sharp_frames(
    restored: vs.VideoNode, passed: vs.VideoNode, source: vs.VideoNode, motion: Motion
) -> vs.VideoNode:
    """Replace sharp frames of a restored clip; the network never runs for a segment of which none is left.

    Args:
        restored: The restored clip.
        passed: The frames as they were, in the format of `restored`.
        source: The same frames with scenes marked and, where known, exposures.
        motion: Of `source`.

    Returns:
        The restored clip with frames of `passed` in it; every frame carries `SKIPPED`.
    """
    small = motion.reduced
    enlargement = np.array([source.width / small.width, source.height / small.height], np.float32).reshape(2, 1, 1)

    def measure(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """Length of the motion from frame n to the next of its scene, in pixels of the clip."""
        frame = f[0].copy()
        flow = read_flow(f[1])
        if flow is not None:
            vectors = flow.numpy() * enlargement
            lengths = np.hypot(vectors[:, 0], vectors[:, 1]).reshape(2, -1)
            frame.props[_LENGTH] = float(np.quantile(lengths, 1 - BLURRED_PART, axis=1).max())
        return frame

    def expose(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """Length of the motion while the shutter is open in frame n, if it has a neighbour in its scene."""
        frame = f[0].copy()
        lengths = [one.props[_LENGTH] for one in (f[1:] if n else f[2:]) if _LENGTH in one.props]
        if lengths:
            frame.props[_EXTENT] = max(lengths) * frame.props.get(EXPOSURE, 1.0)
        return frame

    def decide(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        scene = scene_of(n, f[1:], source.num_frames)
        sharp = [None if one is None else one.props.get(_EXTENT, np.inf) < SHARP_BELOW for one in scene]
        frame = f[0].copy()
        frame.props[SKIPPED] = int(_is_passed(sharp))
        return frame

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return through if f.props[SKIPPED] else done

    dot = motion.dot
    lengths = keep_frames(dot.std.ModifyFrame([dot, motion.flows], measure), _KEPT)
    known = dot.std.CopyFrameProps(source, props=[SCENE_START, EXPOSURE])
    extents = keep_frames(known.std.ModifyFrame([known, shifted(lengths, -1), lengths], expose), _KEPT)
    around = [shifted(extents, offset) for offset in range(-_REACH, _REACH + 1)]
    decided = dot.std.ModifyFrame([dot, *around], decide)
    through, done = (clip.std.SetFrameProps(**{SKIPPED: k}) for clip, k in ((passed, 1), (restored, 0)))
    return restored.std.FrameEval(choose, prop_src=[decided], clip_src=[through, done])


def _is_passed(sharp: list[bool | None]) -> bool:
    """Whether a frame is passed through.

    Args:
        sharp: Whether each of `_REACH` frames before it, itself, and `_REACH` frames after it is sharp; None for those
            outside its scene.
    """
    calm = [own and False not in sharp[max(0, k - AROUND) : k + AROUND + 1] for k, own in enumerate(sharp)]
    runs = range(_REACH - SHORTEST + 1, _REACH + 1)
    return any(all(calm[start : start + SHORTEST]) for start in runs)
