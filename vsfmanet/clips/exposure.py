"""The exposure of each frame, from the first source that knows it, written as properties."""

from __future__ import annotations

import logging
import os

import vapoursynth as vs

from vsfmanet.exposures import Exposures, KnownExposure, gather
from vsfmanet.settings import ExposureArgument

EXPOSURE, SOURCE, CONFIDENCE = EXPOSURE_PROPS = ("FMANetExposure", "FMANetExposureSource", "FMANetExposureConfidence")
"""Properties that hold an exposure in (0, 1], where it comes from, and the confidence in it, in [0, 1]."""

_log = logging.getLogger(__name__)


def gather_exposures(
    clip: vs.VideoNode, argument: ExposureArgument, source_path: str | os.PathLike[str] | None
) -> Exposures:
    """Gather the sources that can know the exposures of a clip; a warning explains why telemetry is not used.

    Raises:
        ExposureError: The argument, its file or the path cannot be used.
    """
    gathered = gather(
        argument,
        num_frames=clip.num_frames,
        nominal_interval=1 / clip.fps if clip.fps else None,
        source_path=source_path,
    )
    if gathered.notice is not None:
        _log.warning("%s", gathered.notice)
    return gathered


def write_exposures(clip: vs.VideoNode, sources: Exposures) -> vs.VideoNode:
    """Write `EXPOSURE_PROPS` to the frames whose exposure is known; the others are unchanged.

    A callback raises ExposureError for a frame whose property, or function's result, is no exposure.
    """

    def write(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        known = sources.resolve(n, f.props)
        return f if known is None else with_exposure(f, known)

    return clip.std.ModifyFrame(clip, write)


def with_exposure(frame: vs.VideoFrame, known: KnownExposure) -> vs.VideoFrame:
    """Copy a frame, with `EXPOSURE_PROPS`."""
    copy = frame.copy()
    copy.props.update({EXPOSURE: known.value, SOURCE: known.source, CONFIDENCE: known.confidence})
    return copy
