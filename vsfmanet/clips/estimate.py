"""Exposures estimated from blur and motion, for frames whose exposure is not known."""

from __future__ import annotations

import vapoursynth as vs

from vsfmanet.clips.exposure import EXPOSURE, with_exposure
from vsfmanet.clips.motion import Motion, read_flow
from vsfmanet.clips.nodes import keep_frames, shifted
from vsfmanet.clips.planes import read_clamped
from vsfmanet.clips.scenes import SCENE_START, scene_of
from vsfmanet.exposures import KnownExposure
from vsfmanet.exposures.estimate import REACH, Estimate, Step, estimate_exposure, settle
from vsfmanet.weights import load_estimator

KEPT = 2 * REACH + 8
"""Estimates and flows to cache, so that none is computed twice while frames are asked for in order."""

_VALUE, _CONFIDENCE = "Value", "Confidence"


def write_estimates(clip: vs.VideoNode, motion: Motion) -> vs.VideoNode:
    """Write estimated exposures to the frames that carry no exposure and allow an estimate; the others are unchanged.

    The estimate of frame n depends on frames n-12 ... n+12 of its scene alone. It is computed only where it is asked
    for: around frames without an exposure.

    Args:
        clip: From `write_exposures`, with scenes marked.
        motion: Of the same frames.

    Raises:
        WeightsError: The weights of the estimator are missing.
    """
    network = load_estimator()

    def estimate(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """Estimate from frame n alone, and the motion around it."""
        two_before, one_before, own, one_after = f[2:]
        after, before = _steps([own, one_after]), _steps([one_before, two_before][:n], backwards=True)
        found = Estimate(value=1.0, confidence=0.0)
        if after or before:
            picture = read_clamped(f[1], n)
            found = motion.worker.run(lambda: estimate_exposure(picture, after, before, network))
        frame = f[0].copy()
        frame.props.update({_VALUE: found.value, _CONFIDENCE: found.confidence})
        return frame

    dot = motion.dot.std.CopyFrameProps(clip, props=[SCENE_START])
    flows = [shifted(motion.flows, offset) for offset in (-2, -1, 0, 1)]
    single = keep_frames(dot.std.ModifyFrame([dot, motion.reduced, *flows], estimate), KEPT)

    def write(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        scene = scene_of(n, f[1:], clip.num_frames)
        settled = settle([None if one is None else _estimate_in(one) for one in scene], REACH)
        if settled is None:
            return f[0]
        known = KnownExposure(value=settled.value, source="estimate", confidence=settled.confidence)
        return with_exposure(f[0], known)

    around = [shifted(single, offset) for offset in range(-REACH, REACH + 1)]
    estimated = clip.std.ModifyFrame([clip, *around], write)

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return clip if EXPOSURE in f.props else estimated

    return clip.std.FrameEval(choose, prop_src=[clip], clip_src=[clip, estimated])


def _estimate_in(frame: vs.VideoFrame) -> Estimate:
    return Estimate(value=frame.props[_VALUE], confidence=frame.props[_CONFIDENCE])


def _steps(flows: list[vs.VideoFrame], *, backwards: bool = False) -> list[Step]:
    """Read flows in the order in which they lead away from a frame, up to the end of its scene."""
    steps = []
    for frame in flows:
        flow = read_flow(frame)
        if flow is None:
            break
        there, back = flow[:, None]
        steps.append(Step(there=back, back=there) if backwards else Step(there=there, back=back))
    return steps
