"""Opening a video file, that file alone and read-only, and decoding its track with the errors that are logged."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsfmanet.errors import OutputError
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.log import Message, logged

PLAYLISTS = {"concat", "dash", "hls", "image2", "imf", "rtsp", "sdp", "tty", "vapoursynth", "webm_dash_manifest"}
"""Demuxers that open other files, run code, or draw text: never used for a source. `image2` reads `a%03d.png` as a
series of files, and nothing else."""

HOLDING_ASPECT = {"asf", "matroska", "mov", "mxf", "nut"}
"""Demuxers whose containers store the aspect of a sample; it wins over that of the codec."""

HARMLESS = re.compile(r"\bSEI\b|mmco|\bVPS\b|\bAPP fields|\bICC\b|\bE[Xx][Ii][Ff]\b|A53|timecode")
"""Logged errors that do not affect the picture: user data, metadata, unused references."""

ASPECT = "aspect of a sample (SAR)"
"""Name of a property that may change between two parts of a file."""

UPRIGHT = (1, 0, 0, 1)
"""Signs of a display matrix that turns nothing."""

UNNAMED = {"matrix": 2, "primaries": 2, "transfer": 2, "range": 0}
"""Values that stand for an unknown colour: the first three of ITU-T H.273, the range of FFmpeg."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One packet and the decoder's output. With several threads, that may belong to earlier packets."""

    packet: Packet[VideoStream]
    """The packet; an empty one at the end of the track."""
    frames: tuple[VideoFrame, ...]
    """Decoded frames, in display order."""
    complaint: str
    """The first error that the decoder returned or logged; empty if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A property of the picture that is not the same throughout a track."""

    what: str
    """Its name."""
    time: Fraction | None
    """When it changes, seconds; None for a track without timestamps."""
    number: int
    """Number of the frame from which it holds."""
    aspect: Fraction
    """Width over height of a sample from there on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """Findings from decoding every frame of a track."""

    faults: tuple[str, ...]
    """Signs of damage."""
    interlaced: str | None
    """Place of the first interlaced frame, in words; None if there is none."""
    times: tuple[int | None, ...]
    """When each frame is shown, in units of the track's time base; None for a frame without a timestamp. Bare streams
    have times that FFmpeg computes, from flags for frames that are to be shown longer (pulldown)."""
    changes: tuple[Change, ...]
    """Changes of size, format, aspect or colour, in order."""


def open_container(path: Path) -> InputContainer:
    """Open a file for reading; playlists and network addresses are refused.

    Raises:
        FFmpegError: No demuxer takes it.
        OSError: It cannot be read.
    """
    allowed = ",".join(sorted(av.formats_available - PLAYLISTS))
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": allowed})


def main_track(container: InputContainer) -> VideoStream | None:
    """The video track that players show, which is no cover picture; None without one that can be decoded."""
    track = container.streams.best("video")
    if not isinstance(track, VideoStream) or Disposition.attached_pic in track.disposition:
        return None
    return track if _decodes(track) else None


def _decodes(track: VideoStream) -> bool:
    """Whether FFmpeg knows the codec of a track; PyAV has no codec context for others."""
    return bool(track.codec_context)


def demuxer(container: InputContainer) -> str:
    """The first of FFmpeg's names of a container's format."""
    return container.format.name.split(",")[0]


def decode(container: InputContainer, track: VideoStream) -> Iterator[Step]:
    """Decode a track packet by packet. Some decoders conceal damage, and only their log shows it.

    Raises:
        FFmpegError: A packet cannot be read.
    """
    track.thread_type = "AUTO"
    name, is_open = track.codec_context.name, False  # a decoder that has closed itself has no name, and PyAV crashes
    with logged() as log:
        try:
            for packet in container.demux(track):
                if packet.size == 0 and packet.pts is not None:  # Theora: the frame before is shown on
                    continue
                error = ""
                frames: list[VideoFrame] = []
                try:
                    frames = packet.decode()
                    is_open = bool(frames) or is_open
                except av.FFmpegError as failure:
                    error = failure.strerror or str(failure)
                except ValueError as failure:  # the decoder has closed itself
                    error, is_open = str(failure), False
                yield Step(packet=packet, frames=tuple(frames), complaint=_complaint(log.take(), name) or error)
        finally:
            if is_open:
                track.codec_context.flush_buffers()  # lets its threads end; they would wait for the interpreter to log


def decode_all(
    path: Path, *, index: int, time_base: Fraction, open_start: bool, advance: Callable[[], None] = lambda: None
) -> Decoded:
    """Decode a track once, to find concealed damage, interlaced frames, and changes of the picture.

    One wrong byte can tear a frame that still counts as decoded. A recording that starts inside a group of pictures is
    not damaged: errors before its first clean frame are ignored.

    Args:
        path: The file.
        index: Number of the track.
        time_base: Unit of its timestamps, seconds.
        open_start: Whether it has packets before, or shown before, its first key frame.
        advance: Called after each frame.
    """
    broken: dict[int | None, None] = {}
    interlaced: str | None = None
    times: list[int | None] = []
    looks: list[tuple[_Look, int]] = []
    keys: list[int] = []
    begun = False
    with open_container(path) as container, suppress(av.FFmpegError):  # `inspect` has reported where reading fails
        track = container.streams[index]
        assert isinstance(track, VideoStream)
        for step in decode(container, track):
            if step.complaint and (begun or not open_start):
                broken[step.packet.pts] = None
            for frame in step.frames:
                if frame.key_frame:
                    keys.append(len(times))
                times.append(frame.pts)
                advance()
                if frame.interlaced_frame and interlaced is None:
                    interlaced = _place(frame.pts, time_base, " at ")
                if frame.is_corrupt and (begun or not open_start):
                    broken[frame.pts] = None
                begun = begun or not frame.is_corrupt
                look = _Look.of(frame, container, track)
                if not looks or look != looks[-1][0]:
                    looks.append((look, len(times) - 1))
    first = next(iter(broken), None)
    fault = f"{len(broken)} frames decode with errors{_place(first, time_base, ', the first near ')}"
    return Decoded(
        faults=(fault,) if broken else (),
        interlaced=interlaced,
        times=tuple(times),
        changes=tuple(_changes(looks, keys, times, time_base)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstFrame:
    """What the first frame says of all."""

    rotation: int = 0
    """Degrees in the display matrix."""
    turn: tuple[int, int, int, int] = UPRIGHT
    """Signs of a, b, c and d of the display matrix, by which x of the upright picture is a x + c y of the stored one,
    and y is b x + d y."""
    hdr: Hdr = Hdr()  # noqa: RUF009 - it is frozen
    """HDR metadata."""


def first_frame(path: Path) -> FirstFrame:
    """Read the display matrix and the metadata of the first frame; none where it cannot be decoded."""
    with open_container(path) as container, suppress(av.FFmpegError):
        track = main_track(container)
        for frame in container.decode(track) if track else ():
            turned = int(frame.rotation)  # a matrix of zeros has the least number
            return FirstFrame(rotation=turned if abs(turned) <= 360 else 0, turn=_turn(frame), hdr=Hdr.of(frame))
    return FirstFrame()


def _turn(frame: VideoFrame) -> tuple[int, int, int, int]:
    """`FirstFrame.turn`. Source of the layout: libavutil/display.h."""
    if Type.DISPLAYMATRIX not in frame.side_data:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(frame.side_data[Type.DISPLAYMATRIX]))
    signs = tuple((number > 0) - (number < 0) for number in (a, b, c, d))
    return signs if [abs(sign) for sign in signs] in ([1, 0, 0, 1], [0, 1, 1, 0]) else UPRIGHT


def trial_frame(path: Path) -> tuple[tuple[int, int], Hdr]:
    """Width, height and HDR metadata of the first frame of a trial output.

    Raises:
        OutputError: No frame of it decodes.
    """
    try:
        with open_container(path) as container:
            track = main_track(container)
            for frame in container.decode(track) if track else ():
                return (frame.width, frame.height), Hdr.of(frame)
    except (av.FFmpegError, OSError) as error:
        raise OutputError(f"the encoder's output must decode, got {error}; check --encoder-args") from error
    raise OutputError("the encoder must write each frame, but a trial has none; leave filters that drop frames out")


@dataclass(frozen=True, slots=True)
class _Look:
    """Properties of a frame that must not change."""

    shape: tuple[int, int, str]
    """Width, height and pixel format."""
    aspect: Fraction
    """Width over height of a sample, where the container has none; else 1."""
    colour: tuple[int, ...]
    """Matrix, primaries, transfer and range, in FFmpeg's numbers."""

    @classmethod
    def of(cls, frame: VideoFrame, container: InputContainer, track: VideoStream) -> _Look:
        ratio = None if demuxer(container) in HOLDING_ASPECT else track.codec_context.sample_aspect_ratio
        colour = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        return cls(
            shape=(frame.width, frame.height, frame.format.name),
            aspect=Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(1),
            colour=tuple(int(value) for value in colour),
        )

    def difference(self, other: _Look) -> str | None:
        """Name of the property that differs; None if none does. An unknown colour equals any other."""
        if self.shape != other.shape:
            return "size and format"
        if self.aspect != other.aspect:
            return ASPECT
        for (name, unnamed), one, two in zip(UNNAMED.items(), self.colour, other.colour, strict=True):
            if one != two and unnamed not in (one, two):
                return f"colour {name}"
        return None


def _changes(
    looks: Sequence[tuple[_Look, int]], keys: Sequence[int], times: Sequence[int | None], time_base: Fraction
) -> Iterator[Change]:
    """Yield the changes among looks, each with the number of the frame that showed it first.

    The aspect is a property of the decoder, not of its frames; it may change a frame early, as frames come out later
    than they go in. It can change at key frames only.
    """
    for (before, _), (after, number) in pairwise(looks):
        what = after.difference(before)
        if what is None:
            continue
        if what == ASPECT:
            number = next((key for key in keys if key >= number), number)
        time = times[number]
        yield Change(what=what, time=None if time is None else time * time_base, number=number, aspect=after.aspect)


def _place(stamp: int | None, time_base: Fraction, before: str) -> str:
    return "" if stamp is None else f"{before}{float(stamp * time_base):.2f} s"


def _complaint(log: list[Message], decoder: str) -> str:
    """The first message of a decoder that means damage; empty if there is none."""
    texts = (text.strip() for _, origin, text in log if origin == decoder)
    return next((text for text in texts if text and not HARMLESS.search(text)), "")
