"""A finished file against its source: every frame, every timestamp, every stream. Exit codes and logs prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vsfmanet.errors import IncompleteError, SourceError
from vsfmanet.jobs.hdr import Hdr
from vsfmanet.jobs.matroska import damaged_place
from vsfmanet.jobs.source import Source, Stream, inspect, main_track, open_container

TIME_TOLERANCE = Fraction(1, 1000)
"""Seconds that a timestamp may be off, beside the rounding of the container's own unit."""

SOUND_TOLERANCE = Fraction(1, 10)
"""Seconds that the ends of a sound track may move against the picture: releases count a codec's priming differently."""


FLAT = 2
"""Code values of 8 bits from the darkest to the brightest pixel of a frame that is all of one colour."""


def verify(
    part: Path,
    *,
    size: tuple[int, int],
    hdr: Hdr,
    times: Sequence[Fraction],
    lively: Collection[int],
    copied: Sequence[Stream],
    whole: bool,
    advance: Callable[[], None],
    remedy: str,
) -> None:
    """Decode a file and compare it with what it must hold.

    Args:
        part: The file.
        size: Width and height of the frames.
        hdr: What must be said about the light of the whole film, at least.
        times: When each frame is shown, seconds on the source's clock.
        lively: Numbers of frames that must not be of one colour, as after a fault of the device.
        copied: Streams of the source that must be there too.
        whole: Whether the sound was copied whole, so that both of its ends must be where they were.
        advance: Called after each frame.
        remedy: What to do if it does not.

    Raises:
        IncompleteError: Something is missing, misplaced or of the wrong size.
    """
    try:
        place = damaged_place(part)
        if place is not None:
            raise _Mismatch(f"bytes as they were written are needed, but those after byte {place} are damaged")
        _check_frames(part, size, times, lively, advance)
        made = inspect(part)
        if lacking := made.hdr.lacks(hdr):
            raise _Mismatch(f"for HDR10 {lacking} is needed, got {made.hdr}")
        _check_streams(made, copied)
        if whole:
            _check_sound(times[0], made, [stream for stream in copied if stream.kind == "audio"])
    except (av.FFmpegError, SourceError) as error:
        raise IncompleteError(
            f"verify: {part}: a file that decodes to its end is needed, got {error}; {remedy}"
        ) from error
    except _Mismatch as mismatch:
        raise IncompleteError(f"verify: {part}: {mismatch}; {remedy}") from mismatch


class _Mismatch(Exception):
    """What is needed, and what came."""


def _check_frames(
    part: Path,
    size: tuple[int, int],
    times: Sequence[Fraction],
    lively: Collection[int],
    advance: Callable[[], None],
) -> None:
    """Count the frames, and compare size and timestamp of each, apart from a shift common to all."""
    count = 0
    with open_container(part) as container:
        track = main_track(container)
        if track is None:
            raise _Mismatch("a video track is needed, got none")
        track.thread_type = "AUTO"
        tick = Fraction(track.time_base.numerator, track.time_base.denominator)
        first = Fraction(0)
        for count, frame in enumerate(container.decode(track), start=1):
            if frame.is_corrupt:
                raise _Mismatch(f"frames without errors are needed, but frame {count - 1} is damaged")
            if (frame.width, frame.height) != size:
                raise _Mismatch(f"frames of {size[0]}x{size[1]} are needed, got {frame.width}x{frame.height}")
            if count - 1 in lively and np.ptp(frame.to_ndarray(format="gray")) <= FLAT:
                raise _Mismatch(f"a picture is needed in frame {count - 1}, as in the source, got one colour")
            if count > len(times) or frame.pts is None:
                continue  # too many frames, or a container without timestamps: both are told below
            shown = frame.pts * tick
            if count == 1:
                first = shown
            if abs((shown - first) - (times[count - 1] - times[0])) > TIME_TOLERANCE + tick:
                raise _Mismatch(
                    f"frame {count - 1} is needed at {float(times[count - 1] - times[0]):.3f} s from the first, "
                    f"got {float(shown - first):.3f} s"
                )
            advance()
    if count != len(times):
        raise _Mismatch(f"{len(times)} frames are needed, got {count}")


def _check_streams(made: Source, copied: Sequence[Stream]) -> None:
    """Compare what there is beside the video."""
    needed, present = _kinds(copied), _kinds(made.others)
    if needed != present:
        raise _Mismatch(f"the streams {needed} are needed beside the video, got {present}")


def _check_sound(first: Fraction, made: Source, tracks: Sequence[Stream]) -> None:
    """Compare where each sound track starts and ends against the first frame."""
    if made.video.first is None:
        return
    for before, after in zip(tracks, made.of_kind("audio"), strict=True):
        for place, old, new in (("start", before.first, after.first), ("end", before.end, after.end)):
            if old is None or new is None:
                continue
            moved = (new - made.video.first) - (old - first)
            if abs(moved) > SOUND_TOLERANCE:
                raise _Mismatch(f"the {place} of {before} must keep its place, but moved by {float(moved):+.3f} s")


def _kinds(streams: Sequence[Stream]) -> str:
    """What there is to hear, read and keep, in words that can be compared. Matroska keeps covers as attachments."""
    kinds = ["attachment" if stream.kind == "cover" else stream.kind for stream in streams]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("audio", "subtitle", "attachment"))
