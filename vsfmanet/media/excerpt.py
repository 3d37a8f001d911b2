"""A few frames of a film around a moment, as a clip: nothing else of the film is decoded."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import vapoursynth as vs
from av.container import InputContainer
from av.rational import AVRational
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsfmanet.errors import FormatError, SourceError
from vsfmanet.media.decode import main_track, open_container
from vsfmanet.media.script import is_script, run_script
from vsfmanet.media.thumbnails import PLAIN, frame_planes
from vsfmanet.media.timeline import TIME_CODE_ERROR

AROUND = 16
"""Frames before a moment and after it: as many as most networks read. MMP-RNN carries its memory from further back."""


DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)", re.ASCII)
"""Tag of Matroska tracks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What the headers of a film say of it."""

    path: Path
    """The file."""
    begin: Fraction
    """Time at which picture or sound begins, seconds on the file's clock; from there on players count."""
    length: Fraction
    """Seconds from there to the end."""
    frames: int
    """Number of frames, computed from the length where the headers have none."""
    rate: Fraction
    """Frames per second; of a film of variable rate, about."""
    aspect: Fraction
    """Width over height of a sample (SAR), as stored."""
    node: vs.VideoNode | None = None
    """Output of a script, in place of a film's frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Excerpt:
    """The frames around a moment."""

    node: vs.VideoNode
    """They, upright, with their colour tags."""
    place: int
    """Number in `node` of the frame that is shown at the moment."""
    time: Fraction
    """Time of that frame on the file's clock, seconds."""
    before: Fraction
    """Time of the first frame of `node` on that clock, seconds."""


def outline(path: Path) -> Outline:
    """Read the headers of a film, or run a script.

    Raises:
        SourceError: It is no video file, or too short to have frames; or the script fails.
        FormatError: The clip of the script has no constant size, format or rate.
    """
    if is_script(path):
        return _of_script(path)
    if not path.is_file():
        raise SourceError(f"{path}: a video file is needed, got none; check the name")
    try:
        with open_container(path) as container:
            track = main_track(container)
            if track is None:
                raise SourceError(f"{path}: the file has no video track; name a video file")
            starts = [
                stream.start_time * _fraction(stream.time_base)
                for stream in container.streams
                if stream.start_time is not None and stream.time_base and (stream is track or stream.type == "audio")
            ]
            begin = min(starts, default=Fraction(0))
            ratio = track.sample_aspect_ratio
            rate = _fraction(track.average_rate or track.guessed_rate or Fraction(25))
            return Outline(
                path=path,
                begin=begin,
                length=Fraction(container.duration or 0, 1_000_000),
                frames=_count(container, track, begin, rate),
                rate=rate,
                aspect=_fraction(ratio) if ratio else Fraction(1),
            )
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"{path}: a video file is needed that FFmpeg can open, got: {error}; check it") from error


def _of_script(path: Path) -> Outline:
    """Run a script, and describe its clip."""
    node = run_script(path)
    if not (node.width and node.height and node.format and node.fps):
        raise FormatError(f"{path}: one size, format and rate throughout is needed; call std.AssumeFPS and resize")
    rate, props = Fraction(node.fps), node.get_frame(0).props
    return Outline(
        path=path,
        begin=Fraction(0),
        length=node.num_frames / rate,
        frames=node.num_frames,
        rate=rate,
        aspect=Fraction(int(props.get("_SARNum", 0)) or 1, int(props.get("_SARDen", 0)) or 1),
        node=node,
    )


def _count(container: InputContainer, track: VideoStream, begin: Fraction, rate: Fraction) -> int:
    """Number of frames of a track by its headers: their number, or its length, or that of the file."""
    if track.frames:
        return track.frames
    start = begin if track.start_time is None else track.start_time * _fraction(track.time_base)
    end = begin + Fraction(container.duration or 0, 1_000_000)
    told = DURATION.fullmatch(track.metadata.get("DURATION", ""))
    if told:  # of Matroska: the end on the file's clock
        end = min(end, int(told[1]) * 3600 + int(told[2]) * 60 + Fraction(told[3]))
    return max(1, round((end - start) * rate))


def frame_times(film: Outline) -> list[Fraction]:
    """Times of all frames on the file's clock, seconds, ascending: packets are read, none is decoded.

    Raises:
        FFmpegError: A packet cannot be read.
    """
    if film.node is not None:
        return [n / film.rate for n in range(film.frames)]
    with open_container(film.path) as container:
        track = main_track(container)
        assert track is not None
        unit = _fraction(track.time_base)
        packets = (packet for packet in container.demux(track) if packet.size and not packet.is_discard)
        return sorted(packet.pts * unit for packet in packets if packet.pts is not None)


def excerpt(film: Outline, time: Fraction) -> Excerpt:
    """Decode the frames around a moment.

    Args:
        film: What `outline` has read.
        time: Seconds from the beginning of the film.

    Raises:
        SourceError: There is no frame at that time, or it cannot be decoded.
        FormatError: The video is interlaced, or changes size or format there.
    """
    wanted = film.begin + time + TIME_CODE_ERROR
    if film.node is not None:
        number = min(math.floor(wanted * film.rate), film.frames - 1)
        first = max(0, number - AROUND)
        around = film.node[first : number + AROUND + 1]
        if around.get_frame(number - first).props.get("_FieldBased", 0):
            raise FormatError(f"{film.path}: progressive video is needed, got interlaced; deinterlace it in the script")
        return Excerpt(node=around, place=number - first, time=number / film.rate, before=first / film.rate)
    early = wanted - (AROUND + 2) / film.rate
    try:
        frames, place = _frames_around(film, wanted, seek_to=early)
        if not frames or (_time(frames[0]) > early and _time(frames[0]) > film.begin + 1 / film.rate):
            frames, place = _frames_around(film, wanted, seek_to=None)  # seeking came too late, as in raw streams
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"{film.path}: the frames at {float(time):.3f} s must decode, but {error}") from error
    if not frames:
        raise SourceError(f"{film.path}: frames at {float(time):.3f} s are needed, got none; name an earlier moment")
    if any(frame.interlaced_frame for frame in frames):
        raise FormatError(
            f"{film.path}: progressive video is needed, got interlaced at {float(time):.3f} s; restore a part of it "
            'with --deinterlace, losslessly with --encoder-args="-c:v ffv1" and a model of scale 1, and compare that'
        )
    return Excerpt(node=_clip(film, frames), place=place, time=_time(frames[place]), before=_time(frames[0]))


def _fraction(ratio: AVRational | Fraction) -> Fraction:
    return Fraction(ratio.numerator, ratio.denominator)


def _time(frame: VideoFrame) -> Fraction:
    """Time of a frame, seconds."""
    assert frame.pts is not None
    return frame.pts * _fraction(frame.time_base)


def _frames_around(film: Outline, wanted: Fraction, *, seek_to: Fraction | None) -> tuple[list[VideoFrame], int]:
    """Frames around the last one that has begun at a time, and its place among them."""
    before: deque[VideoFrame] = deque(maxlen=AROUND + 1)
    after: list[VideoFrame] = []
    with open_container(film.path) as container:
        track = main_track(container)
        assert track is not None
        track.thread_type = "AUTO"
        if seek_to is not None:
            container.seek(math.floor(seek_to / _fraction(track.time_base)), stream=track)
        for frame in _timed(container.decode(track)):
            if not before or _time(frame) <= wanted:
                before.append(frame)
            else:
                after.append(frame)
            if len(after) == AROUND:
                break
    return [*before, *after], len(before) - 1


def _timed(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """The whole frames that have a time; others are passed over, such as those before the first key frame."""
    for frame in frames:
        if frame.pts is not None and not frame.is_corrupt:
            yield frame


def _clip(film: Outline, frames: Sequence[VideoFrame]) -> vs.VideoNode:
    """A clip of decoded frames.

    Raises:
        FormatError: They differ in size or format, or VapourSynth has no such format.
    """
    plain = [_plain(frame) for frame in frames]
    first = plain[0]
    if any(
        (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name)
        for frame in plain
    ):
        raise FormatError(
            f"{film.path}: one size and format is needed, but they change near {float(_time(frames[0])):.2f} s; name "
            "another moment"
        )
    kind = _format(first)
    order = (1, 2, 0) if kind.color_family == vs.RGB else range(kind.num_planes)
    blank = vs.core.std.BlankClip(
        format=kind.id,
        width=first.width,
        height=first.height,
        length=len(plain),
        fpsnum=film.rate.numerator,
        fpsden=film.rate.denominator,
        keep=True,
    )

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made = f.copy()
        for place, samples in zip(order, frame_planes(plain[n]), strict=True):
            np.copyto(np.asarray(made[place]), samples)
        made.props.update(_props(frames[n], subsampled=kind.subsampling_w > 0 or kind.subsampling_h > 0))
        return made

    return _upright(blank.std.ModifyFrame(blank, fill), round(first.rotation / 90) % 4)


def _plain(frame: VideoFrame) -> VideoFrame:
    """A frame in a format with a plane for each component: the same samples, where there is such a format."""
    kind = frame.format
    if PLAIN.fullmatch(kind.name):
        return frame
    parts = av.VideoFormat(kind.name, 64, 64).components
    depth = max(8, max(part.bits for part in parts))
    if kind.is_rgb or kind.has_palette:
        name = "gbrp" if depth == 8 else "gbrp16le"
    elif len(parts) < 3:
        name = "gray" if depth == 8 else f"gray{depth}le"
    else:
        ratio = {(32, 32): "420", (32, 64): "422", (16, 64): "411"}.get((parts[1].width, parts[1].height), "444")
        name = f"yuv{ratio}p" + ("" if depth == 8 else f"{depth}le")
    made = frame.reformat(format=name)
    made.pts, made.time_base = frame.pts, frame.time_base
    return made


def _format(frame: VideoFrame) -> vs.VideoFormat:
    """VapourSynth's format for a frame with a plane for each component."""
    kind = frame.format
    family = vs.RGB if kind.is_rgb else vs.YUV if len(kind.components) == 3 else vs.GRAY
    parts = av.VideoFormat(kind.name, 64, 64).components
    across, down = (0, 0) if family != vs.YUV else ((64 // parts[1].width) >> 1, (64 // parts[1].height) >> 1)
    return vs.core.query_video_format(family, vs.INTEGER, parts[0].bits, across, down)


def _props(frame: VideoFrame, *, subsampled: bool) -> dict[str, int]:
    """Frame properties with the colour tags, in the numbers of ITU-T H.273; unknown ones are left out."""
    named = {"_Matrix": frame.colorspace, "_Primaries": frame.color_primaries, "_Transfer": frame.color_trc}
    props = {name: int(value) for name, value in named.items() if int(value) != 2}
    if frame.format.is_rgb:
        props["_Matrix"] = 0
    full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    if full or int(frame.color_range) == 1:
        props["_Range"] = int(full)
    if subsampled and int(frame.chroma_location):
        props["_ChromaLocation"] = int(frame.chroma_location) - 1
    return props


def _upright(node: vs.VideoNode, quarters: int) -> vs.VideoNode:
    """A clip turned counterclockwise by some quarters."""
    if quarters == 2:
        return node.std.Turn180()
    if quarters == 1:
        return node.std.Transpose().std.FlipVertical()
    return node.std.Transpose().std.FlipHorizontal() if quarters == 3 else node
