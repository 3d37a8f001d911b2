"""Everything of a job that touches VapourSynth: the source clip, the restored clip, and its frames as bytes."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import vapoursynth as vs

from vsfmanet import errors
from vsfmanet.errors import ConfigError, DamagedError, FormatError, IncompleteError, SourceError, VsfmanetError
from vsfmanet.media.source import Decoded, Source, check_unchanged, decode_all, first_change
from vsfmanet.settings import RestoreSettings

AHEAD = 8
"""Frames asked for ahead of the encoder, and finished frames that may wait for it: a 4K frame is 12 to 48 MiB."""

AHEAD_EACH = 24
"""The same for each of several devices: a segment is 16 frames by default, and all are to be busy."""

AHEAD_BYTES = 1 << 30
"""What frames ahead of the encoder may take: very large ones come one by one."""

MOST_PIXELS = (1 << 31) // 8
"""Of a frame with 128 more to each side: the limit of FFmpeg's libraries (`av_image_check_size`)."""

MOST_AT_ONCE = 4
"""Frames that are in memory together even so: in the filter, in VapourSynth's hands, and twice on the way out."""

LIVELY = 8.0
"""Standard deviation from which a picture, in code values of 8 bits, is clearly not of one colour."""

HIDDEN_FRAMES = {"mpeg4", "msmpeg4v2", "msmpeg4v3", "vp8"}
"""Codecs with packets that show no picture, or two: packets need not equal frames."""

NO_TIMESTAMP = -(1 << 63)
"""What BestSource gives for a frame without one."""

UNSPECIFIED = 2
"""Of matrix, transfer and primaries alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceClip:
    """The frames of a source and when each is shown."""

    node: vs.VideoNode
    """Upright (a rotation tag has been applied), of constant format and size, progressive."""
    timestamps: tuple[int, ...]
    """Of every frame, strictly ascending, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""
    aspect: Fraction
    """Width over height of a sample (SAR)."""
    faults: tuple[str, ...]
    """Signs of damage, each with its place."""
    notices: tuple[str, ...]
    """What the user should know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """How samples are to be read, as numbers of ITU-T H.273 and FFmpeg; None where the clip does not say."""

    range: int | None
    """1 limited, 2 full."""
    primaries: int | None
    transfer: int | None
    matrix: int | None
    chroma_location: int | None
    """1 left, 2 centre, 3 top left ..."""


@contextmanager
def messages_to(warn: Callable[[str], None]) -> Iterator[None]:
    """Hand the warnings of VapourSynth and its filters, which it gives to `logging`, to `warn`, once each."""
    told: set[str] = set()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            # The second condition is a slip of BestSource 22, whose `exporttimestamps` works but is not declared.
            if text not in told and "no return value(s) named" not in text:
                told.add(text)
                warn(text)

    logger, handler = logging.getLogger("vapoursynth"), Handler(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def open_clip(source: Source, *, threads: int, interlaced: bool = False) -> SourceClip:
    """Index a source with BestSource, which decodes it once, and check what it gives.

    No index is kept: it would be trusted next time, also for another file of the same name, and to make it costs
    little beside the network.

    Args:
        source: What `inspect` found.
        threads: Decoder threads; 0 for one per core. Damaged files decode reproducibly only with 1.
        interlaced: Whether interlaced video is taken.

    Raises:
        DamagedError: The video cannot be decoded.
        FormatError: Its size or format changes, it is interlaced and must not be, or an encoder cannot take its format.
    """
    if not hasattr(vs.core, "bs"):
        raise ConfigError("restore: the plug-in BestSource is needed, got none; pip install vapoursynth-bestsource")
    try:
        opened = vs.core.bs.VideoSource(
            os.fsencode(source.path), track=source.video.index, cachemode=0, threads=threads, exporttimestamps=True
        )
        node = opened["clip"]
        _check_format(source, node)
        frames = [node.get_frame(n) for n in sorted({k * (node.num_frames - 1) // 4 for k in range(5)})]
    except vs.Error as error:
        found = "; ".join(decode_all(source).faults) or repr(_last_line(error))
        raise DamagedError(
            f"restore: {source.path}: the video track must decode, got {found}; copy or repair the file; --on-damage "
            "salvage decodes in one thread, which gets further"
        ) from error
    decoded = decode_all(source)
    if not interlaced:
        _check_progressive(source, decoded)
    timestamps, time_base, notices = _timestamps(source, opened, decoded)
    props = frames[0].props
    if "_Alpha" in props:
        notices += ("the transparency channel is not carried over",)
    if "Dolby Vision" in source.hdr.dynamic and props.get("_Transfer", UNSPECIFIED) == UNSPECIFIED:
        raise FormatError(
            f"restore: {source.path}: a picture that can be seen without Dolby Vision is needed, got one of profile 5, "
            "whose colours only Dolby Vision can tell; convert it to HDR10 first, for example with libplacebo"
        )
    notices += tuple(f"the {kind} metadata of single frames is not carried over" for kind in source.hdr.dynamic)
    faults, late_start = _missing_frames(source, node.num_frames, timestamps, time_base)
    faults += decoded.faults
    return SourceClip(
        node=node,
        timestamps=timestamps,
        time_base=time_base,
        aspect=_aspect(props, source.rotation),
        faults=faults,
        notices=notices + late_start,
    )


def restore_clip(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
    """Put the filter on a clip. The one seam between a job and the networks; tests put something light here.

    Raises:
        VsfmanetError: Settings, clip, device or weights cannot be used.
    """
    from vsfmanet import restore  # with torch: late, so that a bad source is refused at once

    try:
        return restore(node, **{field.name: getattr(settings, field.name) for field in fields(settings)})
    except vs.Error as error:
        if isinstance(error.__cause__, VsfmanetError):
            raise error.__cause__ from error
        raise


def check_restored(source: Source, node: vs.VideoNode, restored: vs.VideoNode) -> None:
    """A restored clip has all frames, its size is a whole multiple, and memory can hold what must be there at once.

    Raises:
        IncompleteError: A frame or part of one is missing.
        FormatError: The frames are too large.
    """
    scale = restored.width // node.width
    if restored.num_frames != node.num_frames or (restored.width, restored.height) != (
        scale * node.width,
        scale * node.height,
    ):
        raise IncompleteError(
            f"restore: {source.path}: {node.num_frames} frames of a multiple of {node.width}x{node.height} are needed, "
            f"but the filter offers {restored.num_frames} of {restored.width}x{restored.height}; report this as a bug"
        )
    if (restored.width + 128) * (restored.height + 128) >= MOST_PIXELS:
        raise FormatError(
            f"restore: {source.path}: frames of at most {MOST_PIXELS // 10**6} million pixels are needed, which FFmpeg "
            f"can take, got {restored.width}x{restored.height}; cut the picture into parts, or scale it down first"
        )
    needed, there = MOST_AT_ONCE * _frame_bytes(restored), memory_bytes()
    if there is not None and needed > there:
        raise FormatError(
            f"restore: {source.path}: {needed / 2**20:.0f} MiB of memory are needed for frames of {restored.width}x"
            f"{restored.height}, got {there / 2**20:.0f} MiB; cut the picture into parts, or scale it down first"
        )


def memory_bytes() -> int | None:
    """Memory of this machine; None where that cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def frames_ahead(settings: RestoreSettings) -> int:
    """How many frames are asked for ahead of the encoder, if memory has room for them."""
    devices = len(settings.device_indices)
    return AHEAD if devices == 1 else AHEAD_EACH * devices


def read_frames(
    source: Source, restored: vs.VideoNode, *, ahead: int = AHEAD, first: int = 0
) -> Iterator[vs.VideoFrame]:
    """Frames in order, computed a few ahead.

    Args:
        source: Where they come from.
        restored: The frames.
        ahead: How many at most.
        first: Number of the first one, for messages.

    Raises:
        IncompleteError: The filter fails at a frame.
        SourceError: It fails because the source has changed.
        VsfmanetError: It fails for a reason of ours, such as a lost device.
    """
    number = first
    try:
        ahead = max(1, min(ahead, AHEAD_BYTES // _frame_bytes(restored)))
        for frame in restored.frames(prefetch=ahead, backlog=ahead, close=True):
            yield frame
            number += 1
    except vs.Error as error:
        check_unchanged(source)  # if it has changed, that is why
        place = f"frame {number} of {first + restored.num_frames}"
        own = re.findall(r"^vsfmanet\.errors\.(\w+): (.*)$", str(error), re.MULTILINE)
        if own:
            kind, text = own[-1]
            raise getattr(errors, kind, IncompleteError)(f"{text} ({source.path}, {place})") from error
        raise IncompleteError(
            f"restore: {source.path}: all frames are needed, but the filter failed at {place}: {_last_line(error)}; "
            "nothing was written. Try again, and report it if it comes back"
        ) from error


def lively_frames(node: vs.VideoNode, frames: range) -> set[int]:
    """Which of the first, the middle and the last one of some frames are clearly not of one colour.

    Args:
        node: A source.
        frames: Their numbers in it; those that are returned count from the first of them.
    """
    lively = set()
    for n in (frames.start, frames[len(frames) // 2], frames.stop - 1):
        frame = node.get_frame(n)
        if np.asarray(frame[0]).std() > LIVELY * 2 ** (frame.format.bits_per_sample - 8):
            lively.add(n - frames.start)
    return lively


def frame_bytes(frame: vs.VideoFrame) -> bytes:
    """The samples of a frame as FFmpeg wants them: plane after plane, rows without padding, RGB as G, B, R."""
    order = (1, 2, 0) if frame.format.color_family == vs.RGB else range(frame.format.num_planes)
    return b"".join(np.asarray(frame[plane]).tobytes() for plane in order)


def pixel_format(video_format: vs.VideoFormat) -> str:
    """FFmpeg's name of a format.

    Raises:
        FormatError: FFmpeg has none.
    """
    depth = "" if video_format.bits_per_sample == 8 else f"{video_format.bits_per_sample}le"
    if video_format.color_family == vs.YUV:
        ratios = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
        ratio = ratios.get((video_format.subsampling_w, video_format.subsampling_h), "?")
        name = f"yuv{ratio}p{depth}"
    else:
        name = f"{'gbrp' if video_format.color_family == vs.RGB else 'gray'}{depth}"
    try:
        av.VideoFormat(name)
    except ValueError:
        name = ""
    if not name or video_format.sample_type == vs.FLOAT:
        raise FormatError(
            f"restore: 8 to 16 bit YUV, RGB or Gray is needed, got {video_format.name}; convert the source first"
        )
    return name


def colour(frame: vs.VideoFrame) -> Colour:
    """What the properties of a frame say about its colour."""
    props = frame.props

    def tag(name: str, unknown: int | None = UNSPECIFIED) -> int | None:
        value = props.get(name)
        return int(value) if isinstance(value, int) and value != unknown else None

    scale, location = tag("_Range", None), tag("_ChromaLocation", None)
    subsampled = frame.format.subsampling_w > 0 or frame.format.subsampling_h > 0
    return Colour(
        range=None if scale is None else scale + 1,
        primaries=tag("_Primaries"),
        transfer=tag("_Transfer"),
        matrix=tag("_Matrix"),
        chroma_location=location + 1 if subsampled and location is not None else None,
    )


def _frame_bytes(node: vs.VideoNode) -> int:
    """Memory that a frame takes, without the padding of rows."""
    chroma = (node.format.num_planes - 1) / 2 ** (node.format.subsampling_w + node.format.subsampling_h)
    return round(node.width * node.height * node.format.bytes_per_sample * (1 + chroma))


def _check_format(source: Source, node: vs.VideoNode) -> None:
    """Refuse what a fixed raw stream cannot carry."""
    if not node.width or not node.height or not node.format.id:
        change = first_change(source)
        place = "within the track" if change is None else f"at {float(change):.2f} s"
        raise FormatError(
            f"restore: {source.path}: one size and format is needed, but they change {place}; cut the file there and "
            "restore the parts"
        )
    size = source.size if source.rotation % 180 == 0 else source.size[::-1]
    if (node.width, node.height) != size:
        raise FormatError(
            f"restore: {source.path}: all of the picture is needed, but of {size[0]}x{size[1]} the source filter gives "
            f"{node.width}x{node.height}: odd sizes cannot be subsampled; convert the file to 4:4:4 first"
        )
    pixel_format(node.format)


def _check_progressive(source: Source, decoded: Decoded) -> None:
    """Refuse fields woven into frames."""
    if decoded.interlaced is not None:
        raise FormatError(
            f"restore: {source.path}: progressive video is needed, got interlaced{decoded.interlaced}; --deinterlace "
            "makes whole frames of it with bwdif, or deinterlace it first, for example with QTGMC (VapourSynth)"
        )


def _timestamps(
    source: Source, opened: Mapping[str, Any], decoded: Decoded
) -> tuple[tuple[int, ...], Fraction, tuple[str, ...]]:
    """Timestamps, their unit, and a notice where the source has none that can be used."""
    node, given = opened["clip"], opened["timestamps"]
    stored = tuple(given) if isinstance(given, list) else (given,)  # one frame: VapourSynth gives a bare number
    if _are_times(stored, node.num_frames):
        return stored, Fraction(opened["timebasenum"], opened["timebaseden"]), ()
    if _are_times(decoded.times, node.num_frames):
        return decoded.times, source.time_base, ("the source has no timestamps: they are reckoned from its flags",)
    if not node.fps:
        raise SourceError(
            f"restore: {source.path}: timestamps or a frame rate are needed, got neither; remux the file to Matroska"
        )
    notice = f"the source has no usable timestamps: its frames are taken as {float(node.fps):.6g} per second"
    return tuple(range(node.num_frames)), 1 / node.fps, (notice,)


def _are_times(times: Sequence[int], count: int) -> bool:
    """Whether these can be the times of `count` frames."""
    ascending = all(earlier < later for earlier, later in pairwise(times))
    return len(times) == count and ascending and times[0] != NO_TIMESTAMP


def _missing_frames(
    source: Source, num_frames: int, timestamps: tuple[int, ...], time_base: Fraction
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Faults and notices about packets that gave no frame."""
    if source.video.codec in HIDDEN_FRAMES:
        return (), ()
    if time_base != source.time_base or len(source.packet_times) < source.video.packets:
        lost = source.video.packets - num_frames
        fault = f"{lost} of {source.video.packets} frames cannot be decoded"
        return ((fault,) if lost > 0 else ()), ()
    begun = [time for time in source.packet_times if time >= timestamps[0]]
    late = len(source.packet_times) - len(begun)
    notice = f"the recording starts inside a group of pictures: its first {late} frames cannot be decoded"
    absent = sorted(set(begun).difference(timestamps))
    fault = f"{len(absent)} of {len(begun)} frames cannot be decoded, the first at "
    faults = (f"{fault}{float(absent[0] * time_base):.2f} s",) if len(begun) > num_frames and absent else ()
    return faults, ((notice,) if late else ())


def _aspect(props: vs.FrameProps, rotation: int) -> Fraction:
    """Sample aspect ratio of the upright picture. BestSource turns the picture but not its ratio."""
    width, height = props.get("_SARNum", 1), props.get("_SARDen", 1)
    if not isinstance(width, int) or not isinstance(height, int) or width <= 0 or height <= 0:
        return Fraction(1)
    return Fraction(width, height) if rotation % 180 == 0 else Fraction(height, width)


def _last_line(error: vs.Error) -> str:
    """What went wrong, without the traceback that VapourSynth puts before it."""
    return str(error).strip().rpartition("\n")[2].strip()
