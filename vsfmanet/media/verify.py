"""Verify a finished file: every frame, timestamp and packet is read. Exit codes and logs prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsfmanet.errors import IncompleteError, OutputError, SourceError
from vsfmanet.media.clip import SourceClip, lively_frames
from vsfmanet.media.coding import has_filters, has_option, sets_aspect
from vsfmanet.media.copied import Anchor, Mismatch, check_chapters, check_names, check_sound, check_streams
from vsfmanet.media.decode import decode, main_track, open_container
from vsfmanet.media.film import Film
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.matroska import damaged_place
from vsfmanet.media.source import Source, Stream, inspect
from vsfmanet.media.thumbnails import Kept, Likeness, read_thumbnails

TIME_TOLERANCE = Fraction(1, 1000)
"""Most seconds that a timestamp may be off, beside the rounding to the container's unit."""

ASPECT_TOLERANCE = Fraction(1, 200)
"""Most relative error of the sample aspect ratio, beside a pixel of the display width: FFmpeg limits the terms of such
ratios to 255."""

FLAT = 2
"""Most code values of 8 bits between the darkest and brightest pixel of a frame of one colour."""


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Requirements on the frames of a file."""

    size: tuple[int, int]
    """Width and height of the frames."""
    times: Sequence[Fraction]
    """Time of each frame, seconds on the source's clock."""
    pictures: Iterator[Kept] | None = None
    """Thumbnails that the frames are compared with, in order; None for no comparison."""
    likeness: Likeness = "unknown"
    """How closely each frame must match its thumbnail."""
    anchors: Sequence[tuple[int, Fraction]] = ()
    """Numbers of frames in the file, ascending, with their own timestamp in the source, seconds. Sound is compared with
    them; computed times are not among them."""
    lively: Collection[int] = ()
    """Numbers of frames that must not be of one colour, as they are after some device faults."""


@dataclass(frozen=True, kw_only=True)
class Needed(_Frames):
    """Requirements on a file."""

    source: Source
    """Source of the file."""
    aspect: Fraction | None
    """Width over height of a sample (SAR); None if the user's options may have set another."""
    hdr: Hdr
    """HDR metadata that must be present."""
    copied: Sequence[Stream]
    """Streams of the source that must have been copied."""
    extent: str
    """Copied extent: "whole", "part" (the time of the frames), or "damaged" if the source is."""
    chapters: bool
    """Whether chapters must be those of the source."""
    names: bool
    """Whether titles, languages and names of attachments must be those of the source."""

    @classmethod
    def of(
        cls,
        film: Film,
        clip: SourceClip,
        frames: range,
        *,
        size: tuple[int, int],
        hdr: Hdr,
        thumbnails: Sequence[Path],
    ) -> Self:
        """What the file of a film must hold; what the user has set with --encoder-args is as the user has it.

        Args:
            film: Specification of the file.
            clip: The source's frames.
            frames: Numbers of those in the film.
            size: Width and height that the encoder makes.
            hdr: HDR metadata that the encoder writes.
            thumbnails: Files of the thumbnails of the frames, in order.
        """
        own, source = film.encoder_args, film.source
        filtered = has_filters(own)
        extent = "whole" if len(frames) == clip.node.num_frames else "part"
        return cls(
            source=source,
            size=size,
            aspect=None if sets_aspect(own) or size != film.size else film.aspect,
            pictures=read_thumbnails(thumbnails),
            likeness=film.likeness if size == film.size or film.likeness == "unknown" else "rough",
            hdr=hdr,
            anchors=[(n - frames.start, time) for n, time in clip.anchors if n in frames],
            times=[timestamp * film.time_base for timestamp in film.timestamps],
            lively=set() if filtered else lively_frames(clip.node, frames),
            copied=film.copied,
            extent="damaged" if source.faults or clip.faults else extent,
            chapters=not has_option(own, "map_chapters"),
            names=not has_option(own, "metadata", "map_metadata"),
        )


def verify(part: Path, needed: Needed, *, advance: Callable[[], None], remedy: str) -> None:
    """Decode a file and check all requirements.

    Args:
        part: The file.
        needed: The requirements.
        advance: Called after each frame.
        remedy: Advice for the error message.

    Raises:
        IncompleteError: A requirement is not met.
    """
    try:
        place = damaged_place(part)
        if place is not None:
            raise Mismatch(f"bytes as they were written are needed, but those after byte {place} are damaged")
        shown = _check_frames(part, needed, advance)
        made = inspect(part)
        if lacking := made.hdr.lacks(needed.hdr):
            raise Mismatch(f"for HDR10 {lacking} is needed, got {made.hdr}")
        _check_aspect(made, needed)
        check_streams(made, needed.copied, extent=needed.extent)
        if needed.extent == "whole" and shown:
            check_sound(shown[0], shown[-1], made, needed.source, needed.copied)
        if needed.chapters:
            check_chapters(made, needed.source.chapters, needed.times)
        if needed.names:
            check_names(made, needed.source, needed.copied)
    except (av.FFmpegError, SourceError) as error:
        raise IncompleteError(f"{part}: a file that decodes to its end is needed, got {error}; {remedy}") from error
    except Mismatch as mismatch:
        raise IncompleteError(f"{part}: {mismatch}; {remedy}") from mismatch


def check_trial(trial: Path, size: tuple[int, int], times: Sequence[Fraction]) -> None:
    """Decode a trial output, and compare count, size and times of its frames.

    Args:
        trial: The file.
        size: Width and height of its first frame.
        times: Time of each frame that it was made of, seconds.

    Raises:
        OutputError: Something differs, as it would in the whole output.
    """
    needed = _Frames(size=size, times=times)
    try:
        _check_frames(trial, needed, lambda: None)
    except (av.FFmpegError, Mismatch) as error:
        raise OutputError(
            f"the encoder must write each frame at its time, but in a trial {error}; leave those of --encoder-args out "
            "that change timing or number of frames (-r, -vf fps=...)"
        ) from error


def _check_frames(part: Path, needed: _Frames, advance: Callable[[], None]) -> list[Anchor]:
    """Count the frames, and compare size and timestamp of each, apart from a shift common to all.

    Returns:
        Times of the frames of `Needed.anchors`.
    """
    size, times, count = needed.size, needed.times, 0
    own, found = dict(needed.anchors), []
    with open_container(part) as container:
        track = main_track(container)
        if track is None:
            raise Mismatch("a video track is needed, got none")
        tick = Fraction(track.time_base.numerator, track.time_base.denominator)
        first = Fraction(0)
        for count, frame in enumerate(_decoded(container, track), start=1):
            if (frame.width, frame.height) != size:
                raise Mismatch(f"frames of {size[0]}x{size[1]} are needed, got {frame.width}x{frame.height}")
            if count - 1 in needed.lively and np.ptp(frame.to_ndarray(format="gray")) <= FLAT:
                raise Mismatch(f"a picture is needed in frame {count - 1}, as in the source, got one colour")
            if count > len(times):
                continue  # the count is compared below
            _check_picture(frame, count - 1, needed)
            if frame.pts is None:
                raise Mismatch(f"timestamps are needed, but frame {count - 1} has none")
            shown = frame.pts * tick
            if count - 1 in own:
                found.append(Anchor(before=own[count - 1], after=shown))
            if count == 1:
                first = shown
            if abs((shown - first) - (times[count - 1] - times[0])) > TIME_TOLERANCE + tick:
                raise Mismatch(
                    f"frame {count - 1} is needed at {float(times[count - 1] - times[0]):.3f} s from the first, "
                    f"got {float(shown - first):.3f} s"
                )
            advance()
    if count != len(times):
        raise Mismatch(f"{len(times)} frames are needed, got {count}")
    return found


def _decoded(container: InputContainer, track: VideoStream) -> Iterator[VideoFrame]:
    """The frames of a track.

    Raises:
        Mismatch: The decoder logs an error, or has concealed damage.
    """
    count = 0
    for step in decode(container, track):
        if step.complaint:
            raise Mismatch(
                f"frames without errors are needed, but near frame {count} the decoder reports: {step.complaint}"
            )
        for frame in step.frames:
            if frame.is_corrupt:
                raise Mismatch(f"frames without errors are needed, but frame {count} is damaged")
            yield frame
            count += 1


def _check_picture(frame: VideoFrame, number: int, needed: _Frames) -> None:
    """Compare a frame with its thumbnail."""
    if needed.pictures is None or needed.likeness == "unknown":
        return
    kept = next(needed.pictures, None)
    if kept is None:
        raise Mismatch(f"a thumbnail of frame {number} is needed, got none")
    if verdict := kept.difference(frame, needed.likeness):
        before = "its source" if needed.likeness == "restored" else "what was encoded"
        raise Mismatch(f"frame {number} must show {before}: {verdict}")


def _check_aspect(made: Source, needed: Needed) -> None:
    """Compare the sample aspect ratio."""
    if needed.aspect is None:
        return
    tolerance = ASPECT_TOLERANCE + Fraction(1, needed.size[0])
    if abs(made.aspect / needed.aspect - 1) > tolerance:
        raise Mismatch(f"samples of the aspect ratio {needed.aspect} (SAR) are needed, got {made.aspect}")
