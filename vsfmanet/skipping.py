"""Frames that moved too little while the shutter was open to be blurred, passed through instead of restored.

Whether a frame is sharp is told by its motion to its neighbours times its exposure, not by the blur that shows: on
rendered scenes, that length is within 0.1 pixel of the truth where it is small, while the blur analyser, which sees
single frames, takes half a pixel for two and flat places for sharp. Where the exposure is not known, the whole motion
counts, which is never less.

A frame is passed through in a run of frames of its scene, each of which is sharp together with those around it: so
nothing flickers between the two, and frame n depends on frames n-12 ... n+12 alone, and on what
tells their exposures.
"""

from __future__ import annotations

import weakref

import numpy as np
import vapoursynth as vs

from vsfmanet.blur import motion, picture_of, reduced, scene_around, starts_scene
from vsfmanet.devices import Worker, pick_device
from vsfmanet.exposures import Exposures
from vsfmanet.filter import SCENE_START, shifted
from vsfmanet.settings import Device

SKIPPED = "FMANetSkipped"
"""On every frame: 1 if it was passed through, 0 if it was restored."""

SHARP_BELOW = 0.5
"""Pixels of motion while the shutter is open, under which restoring makes a picture no better."""

BLURRED_PART = 0.005
"""Part of a picture that may move further: more than that is worth restoring."""

AROUND = 4
"""Frames before and after a frame of its scene that must be sharp with it."""

SHORTEST = 8
"""Frames of a scene in a row that are passed through at least."""

_MOTION, _EXTENT = "FMANetMotion", "FMANetExtent"
_REACH = AROUND + SHORTEST - 1
_KEPT = 1000  # frames of one pixel: what they tell takes time to find out, and no room


def pass_sharp_frames(
    restored: vs.VideoNode,
    passed: vs.VideoNode,
    marked: vs.VideoNode,
    known: Exposures,
    *,
    device: Device,
    device_index: int,
) -> vs.VideoNode:
    """The restored clip, but sharp frames from another: those that are passed through are never restored.

    Args:
        restored: what the network makes.
        passed: the frames as they came, in the format of `restored`.
        marked: the clip from `frames.tag_colour`, whose frames say by `SCENE_START` where scenes start.
        known: what can know their exposures.
        device: "auto", "cpu" or "cuda".
        device_index: which of several devices.

    Raises:
        DeviceError: there is no such device.
    """
    worker, small = Worker(pick_device(device, device_index)), reduced(marked)
    enlarged = np.array([marked.width / small.width, marked.height / small.height], np.float32).reshape(2, 1, 1)
    dot = small.std.BlankClip(width=1, height=1, format=vs.GRAY8, keep=True)

    def move(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """How far things move from frame n to the next of its scene, in pixels of the clip."""
        frame = f[0].copy()
        if n + 1 < marked.num_frames and not starts_scene(f[2]):
            own, other = (picture_of(one, k).to(worker.device) for one, k in ((f[1], n), (f[2], n + 1)))
            flow = worker.run(lambda: motion(own, other)).numpy() * enlarged
            lengths = np.hypot(flow[:, 0], flow[:, 1]).reshape(2, -1)
            frame.props[_MOTION] = float(np.quantile(lengths, 1 - BLURRED_PART, axis=1).max())
        return frame

    def expose(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """How far things move while the shutter is open in frame n, as far as its neighbours tell."""
        frame = f[0].copy()
        frame.props[SCENE_START] = int(n > 0 and starts_scene(f[1]))
        steps = [one.props[_MOTION] for one in (f[2:] if n else f[3:]) if _MOTION in one.props]
        if steps:
            exposure = known.resolve(n, f[1].props)
            frame.props[_EXTENT] = max(map(float, steps)) * (1.0 if exposure is None else exposure.value)
        return frame

    def decide(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        frame.props[SKIPPED] = int(_is_passed(_sharp_in_scene(n, f[1:], marked.num_frames)))
        return frame

    def pick(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return through if f.props[SKIPPED] else done

    motions = dot.std.ModifyFrame([dot, small, shifted(small, 1)], move)
    extents = dot.std.ModifyFrame([dot, marked, shifted(motions, -1), motions], expose)
    for each in (motions, extents):
        each.std.SetVideoCache(mode=1, fixedsize=1, maxsize=_KEPT)
    around = [shifted(extents, offset) for offset in range(-_REACH, _REACH + 1)]
    decided = dot.std.ModifyFrame([dot, *around], decide)
    through, done = (clip.std.SetFrameProps(**{SKIPPED: k}) for clip, k in ((passed, 1), (restored, 0)))
    weakref.finalize(move, worker.close)
    return restored.std.FrameEval(pick, prop_src=[decided], clip_src=[through, done])


def _sharp_in_scene(n: int, around: list[vs.VideoFrame], num_frames: int) -> list[bool | None]:
    """Whether frames n-`_REACH` ... n+`_REACH` are sharp; None outside the scene of frame n."""
    inside = scene_around(n, around, num_frames)
    return [
        frame.props.get(_EXTENT, np.inf) < SHARP_BELOW if k in inside else None
        for k, frame in enumerate(around, start=n - _REACH)
    ]


def _is_passed(sharp: list[bool | None]) -> bool:
    """Whether the frame in the middle is passed through.

    Args:
        sharp: of `_REACH` frames to each side of it and of itself; None for those outside its scene.
    """
    calm = [own and False not in sharp[max(0, k - AROUND) : k + AROUND + 1] for k, own in enumerate(sharp)]
    runs = range(_REACH - SHORTEST + 1, _REACH + 1)
    return any(all(calm[start : start + SHORTEST]) for start in runs)
