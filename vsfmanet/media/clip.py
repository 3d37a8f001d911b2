"""The VapourSynth side of a video file: its source clip, the restored clip, and the restored frames as bytes."""

from __future__ import annotations

import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import psutil
import vapoursynth as vs
from av.video.format import VideoFormat

from vsfmanet import errors
from vsfmanet.errors import ConfigError, DamagedError, FormatError, IncompleteError, SourceError, VsfmanetError
from vsfmanet.media.decode import ASPECT, Change, Decoded, decode_all
from vsfmanet.media.edges import Edges, hidden, padded
from vsfmanet.media.meter import Meters
from vsfmanet.media.source import Source, check_unchanged
from vsfmanet.media.thumbnails import Kept, thumbnail
from vsfmanet.media.timeline import TIME_CODE_ERROR, Timeline, frame_shown, is_ascending, repaired
from vsfmanet.settings import RestoreSettings
from vsfmanet.sizes import result_size

AHEAD = 8
"""Frames requested ahead of the encoder, and finished frames that may wait for it: a 4K frame is 12 to 48 MiB."""

AHEAD_EACH = 24
"""`AHEAD` for each of several devices: a segment is 16 frames by default, and every device must have one to do."""

AHEAD_BYTES = 1 << 30
"""Most bytes of frames ahead of the encoder: very large frames are requested one by one."""

MOST_PIXELS = (1 << 31) // 8
"""Most pixels of a frame, padded by 128 to each side, that FFmpeg takes (`av_image_check_size`)."""

MOST_AT_ONCE = 4
"""Frames in memory at once even if requested one by one: in the filter, in VapourSynth, and twice on the way out."""

LIVELY = 8.0
"""Least standard deviation, in code values of 8 bits, of a frame that is clearly not of one colour."""

FAR = 2.0
"""Reblur error over that of the median frame, above which a frame is listed."""

LEAST_FAR = 0.02
"""Least reblur error of a frame that is listed: five code values of 8 bits."""

MOST_DOUBTFUL = 50
"""Most frames that are listed."""

HIDDEN_FRAMES = {"libdav1d", "mpeg4", "msmpeg4v2", "msmpeg4v3", "vp8", "vp9"}
"""Codecs whose packets may show no frame, or two: their numbers need not be equal."""

NO_TIMESTAMP = -(1 << 63)
"""BestSource's value for a frame without a timestamp."""

UNTAGGED = {"yuv440p10le", "yuv440p12le"}
"""Pixel formats without a tag in NUT: its reader takes them for others."""

UNSPECIFIED = 2
"""Value of an unknown matrix, transfer or primaries (ITU-T H.273)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceClip:
    """The frames of a source and when each is shown."""

    node: vs.VideoNode
    """Upright (rotation applied), of constant format and size, without the edges that the container hides as far as
    they can be cut off."""
    edges: Edges
    """Pixels of `node` that do not belong to the picture, to be cut off after the restoration."""
    timestamps: tuple[int, ...]
    """Time of every frame, strictly ascending, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""
    anchors: tuple[tuple[int, Fraction], ...]
    """The first and the last frame with a timestamp of its own, and that time in seconds. Read by another decoder than
    `timestamps`, and never repaired."""
    aspect: Fraction
    """Width over height of a sample (SAR), of the first frame."""
    faults: tuple[str, ...]
    """Signs of damage, each with its place."""
    notices: tuple[str, ...]
    """What the user should know."""
    aspects: tuple[Change, ...] = ()
    """Changes of `aspect`."""

    def frame_at(self, time: Fraction) -> int:
        """Number of the frame that is shown at some time in seconds, or that begins so soon that players show the same
        time code; the number of frames once they are over.
        """
        return frame_shown(self.timestamps, (time + TIME_CODE_ERROR) / self.time_base)

    def aspect_of(self, source: Source, frames: range) -> Fraction:
        """Width over height of a sample (SAR) of some frames.

        Raises:
            FormatError: They have several.
        """
        aspect = self.aspect
        for change in self.aspects:
            if frames.start < change.number < frames.stop:
                raise _changing(source, change)
            aspect = change.aspect if change.number <= frames.start else aspect
        return aspect


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What the properties of restored frames say, for the record."""

    exposures: Counter[str] = field(default_factory=Counter)
    """How many frames had their exposure from which source: "argument", "prop", "telemetry", "estimate", "network", or
    "unknown"."""
    reblur_errors: dict[int, float] = field(default_factory=dict)
    """`FMANetReblurError` of the frames that carry it, by their numbers."""

    def add(self, number: int, props: Mapping[str, Any]) -> None:
        """Take note of the properties of a frame."""
        self.exposures[str(props.get("FMANetExposureSource", "unknown"))] += 1
        if "FMANetReblurError" in props:
            self.reblur_errors[number] = float(props["FMANetReblurError"])

    @property
    def doubtful(self) -> dict[int, float]:
        """Frames that are far from their source when blurred again, the farthest first, with the distance."""
        if not self.reblur_errors:
            return {}
        usual = statistics.median(self.reblur_errors.values())
        least = max(FAR * usual, LEAST_FAR)
        far = {number: error for number, error in self.reblur_errors.items() if error > least}
        return dict(sorted(far.items(), key=lambda item: -item[1])[:MOST_DOUBTFUL])


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """Colour tags, as numbers of ITU-T H.273 and FFmpeg; None for an unknown one."""

    range: int | None
    """1 limited, 2 full."""
    primaries: int | None
    transfer: int | None
    matrix: int | None
    chroma_location: int | None
    """1 left, 2 centre, 3 top left ..."""


def open_clip(
    source: Source, *, threads: int, interlaced: bool = False, parts: bool = False, meters: Meters | None = None
) -> SourceClip:
    """Decode a source once to check it, and open it with BestSource.

    BestSource's index is not kept: it would be trusted next time, also for another file of the same name, and costs
    little to make beside the network.

    Args:
        source: What `inspect` found.
        threads: Decoder threads; 0 for one per core. Damaged files decode reproducibly only with 1.
        interlaced: Whether interlaced video is accepted.
        parts: Whether several aspects of a sample are accepted; see `SourceClip.aspect_of`.
        meters: Show progress.

    Raises:
        DamagedError: The video cannot be decoded.
        FormatError: Size, format, aspect or colour changes midway, the video is interlaced and must not be, timestamps
            start again beside sound, or no encoder takes the format.
    """
    if not hasattr(vs.core, "bs"):
        raise ConfigError("the plug-in BestSource is needed, got none; pip install vapoursynth-bestsource")
    decoded = _decode(source, meters)
    if meters is not None:
        meters.phase("indexing")
    _check_constant(source, decoded, parts=parts)
    if source.rotation % 90:
        raise FormatError(
            f"{source.path}: unsupported: the display matrix turns the picture by {source.rotation} degrees, multiples "
            "of 90 are needed; turn it first, for example with FFmpeg's filter rotate"
        )
    try:
        opened = vs.core.bs.VideoSource(
            os.fsencode(source.path), track=source.video.index, cachemode=0, threads=threads, exporttimestamps=True
        )
        node, edges = padded(source, opened["clip"], len(decoded.times))
        edges += hidden(source)
        _check_format(source, node, edges - hidden(source))
        frames = [node.get_frame(n) for n in sorted({k * (node.num_frames - 1) // 4 for k in range(5)})]
    except vs.Error as error:
        if not decoded.faults and decoded.times:
            raise FormatError(
                f"{source.path}: unsupported: {_last_line(error)}; convert the file first, for example to FFV1 in .mkv"
            ) from error
        found = "; ".join(decoded.faults) or repr(_last_line(error))
        raise DamagedError(
            f"{source.path}: the video track must decode, got {found}; copy or repair the file; --on-damage salvage "
            "decodes in one thread, which gets further"
        ) from error
    if not interlaced:
        _check_progressive(source, decoded)
    stored = _stored_times(opened)
    timestamps, time_base, notices = _timestamps(source, opened, stored, decoded)
    props = frames[0].props
    if "_Alpha" in props:
        notices += ("the transparency channel is not carried over",)
    if "Dolby Vision" in source.hdr.dynamic and props.get("_Transfer", UNSPECIFIED) == UNSPECIFIED:
        raise FormatError(
            f"{source.path}: a picture that can be seen without Dolby Vision is needed, got one of profile 5, whose "
            "colours only Dolby Vision can restore; convert it to HDR10 first, for example with libplacebo"
        )
    notices += tuple(f"the {kind} metadata of single frames is not carried over" for kind in source.hdr.dynamic)
    notices += tuple(f"FFmpeg reports of the file: {remark}" for remark in source.remarks)
    faults, late_start = _missing_frames(source, node.num_frames, stored, time_base)
    faults += decoded.faults or _disagreement(source, node.num_frames, len(decoded.times))
    cut = edges.even(node.format)
    return SourceClip(
        node=cut.cut_off(node),
        edges=edges - cut,
        timestamps=timestamps,
        time_base=time_base,
        anchors=_anchors(source, decoded, node.num_frames),
        aspect=source.aspect if source.rotation % 180 == 0 else 1 / source.aspect,
        aspects=decoded.changes,
        faults=faults,
        notices=notices + late_start,
    )


def _decode(source: Source, meters: Meters | None) -> Decoded:
    """Decode a source once, with progress."""

    def decode(advance: Callable[[], None]) -> Decoded:
        return decode_all(
            source.path,
            index=source.video.index,
            time_base=source.time_base,
            open_start=source.starts_open,
            advance=advance,
        )

    if meters is None or not source.video.packets:
        return decode(lambda: None)
    with meters.begin("decoding", source.video.packets) as meter:
        return decode(meter.advance)


def restore_clip(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
    """Apply `vsfmanet.restore` to a clip. Tests replace this function by a light stand-in for the network.

    Raises:
        VsfmanetError: Settings, clip, device or weights cannot be used.
    """
    from vsfmanet import restore  # with torch: late, so that a bad source is refused at once

    try:
        return restore(node, **{each.name: getattr(settings, each.name) for each in fields(settings)})
    except vs.Error as error:
        if isinstance(error.__cause__, VsfmanetError):
            raise error.__cause__ from error
        raise


def converted(node: vs.VideoNode, output_format: int | None) -> vs.VideoNode:
    """A clip in another format, converted as the filter does; as it is without one, or in its own."""
    if output_format is None or output_format == node.format.id:
        return node
    from vsfmanet.clips import colour as conversion  # with torch: late

    target = vs.core.get_video_format(output_format)
    return conversion.plain(conversion.tag_colour(node), target, node.width, node.height)


def check_restored(source: Source, node: vs.VideoNode, restored: vs.VideoNode, settings: RestoreSettings) -> None:
    """Check that a restored clip has all frames, of the size asked for, and that its frames fit into memory.

    Without such a size it must be a whole multiple of that of the source.

    Raises:
        IncompleteError: A frame or part of one is missing.
        FormatError: The frames are too large.
    """
    made, scale = restored.format, restored.width // node.width
    size = result_size(
        settings, node.width, node.height, multiples=(1 << made.subsampling_w, 1 << made.subsampling_h)
    ) or (scale * node.width, scale * node.height)
    if restored.num_frames != node.num_frames or (restored.width, restored.height) != size:
        wanted = f"{size[0]}x{size[1]}" if settings.resizes else f"a multiple of {node.width}x{node.height}"
        raise IncompleteError(
            f"{source.path}: {node.num_frames} frames of {wanted} are needed, but the filter "
            f"offers {restored.num_frames} of {restored.width}x{restored.height}; report this as a bug"
        )
    if (restored.width + 128) * (restored.height + 128) >= MOST_PIXELS:
        raise FormatError(
            f"{source.path}: frames of at most {MOST_PIXELS // 10**6} million pixels are needed, which FFmpeg "
            f"can take, got {restored.width}x{restored.height}; cut the picture into parts, or scale it down first"
        )
    needed, there = MOST_AT_ONCE * bytes_of(restored), memory_bytes()
    if needed > there:
        raise FormatError(
            f"{source.path}: {needed / 2**20:.0f} MiB of memory are needed for frames of {restored.width}x"
            f"{restored.height}, got {there / 2**20:.0f} MiB; cut the picture into parts, or scale it down first"
        )


def without_edges(clip: SourceClip, restored: vs.VideoNode) -> tuple[vs.VideoNode, str | None]:
    """Cut off a restored clip what does not belong to the picture; return it with a notice if not all of it can be."""
    edges = clip.edges.times(restored.width // clip.node.width)
    cut = edges.even(restored.format)
    made, shown = (each.inside(restored.width, restored.height) for each in (cut, edges))
    notice = None
    if made != shown:
        notice = (
            f"the output is {made[0]}x{made[1]}, although the picture is {shown[0]}x{shown[1]}: with subsampled chroma "
            "a column or row too many is left at its edge"
        )
    return cut.cut_off(restored), notice


def without_padding(clip: SourceClip) -> SourceClip:
    """A clip without its edges, for a result of another size, from which they could not be cut off.

    Where subsampled chroma leaves no room for the size, it is enlarged, in 16 bits.
    """
    if not clip.edges:
        return clip
    full = vs.core.query_video_format(vs.YUV, vs.INTEGER, 16, 0, 0)
    node = clip.node.resize.Spline36(format=full.id).std.CopyFrameProps(clip.node)  # with the place of the chroma
    return replace(clip, node=clip.edges.cut_off(node), edges=Edges())


def for_encoder(restored: vs.VideoNode) -> vs.VideoNode:
    """Convert a restored clip to a format that NUT can carry.

    4:4:0 of 10 and 12 bits becomes 4:4:4 with doubled rows of chroma, which loses nothing; others stay as they are.
    """
    if pixel_format(restored.format) not in UNTAGGED:
        return restored
    full = vs.core.query_video_format(vs.YUV, vs.INTEGER, restored.format.bits_per_sample, 0, 0)
    return restored.resize.Point(format=full.id)


def with_depth(video_format: vs.VideoFormat, depth: int) -> vs.VideoFormat:
    """Format like another with some number of bits per sample."""
    return video_format.replace(bits_per_sample=depth, sample_type=vs.INTEGER)


def memory_bytes() -> int:
    """Memory of this machine in bytes."""
    return int(psutil.virtual_memory().total)


def frames_ahead(settings: RestoreSettings) -> int:
    """Number of frames to request ahead of the encoder, before the limit of `AHEAD_BYTES`."""
    devices = len(settings.device_indices)
    return AHEAD if devices == 1 else AHEAD_EACH * devices


def read_frames(
    source: Source,
    restored: vs.VideoNode,
    *,
    ahead: int = AHEAD,
    first: int = 0,
    tally: Tally | None = None,
) -> Iterator[vs.VideoFrame]:
    """Yield the frames of a restored clip in order, computed a few ahead.

    Args:
        source: Source of the clip, for messages.
        restored: The clip.
        ahead: Most frames to compute ahead.
        first: Number of the first one, for messages.
        tally: Takes note of each frame's properties.

    Raises:
        IncompleteError: The filter failed at a frame.
        SourceError: It failed, and the source has changed.
        VsfmanetError: The filter raised it, for example for a lost device.
    """
    number = first
    try:
        ahead = max(1, min(ahead, AHEAD_BYTES // bytes_of(restored)))
        for frame in restored.frames(prefetch=ahead, backlog=ahead, close=True):
            if tally is not None:
                tally.add(number, frame.props)
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
            f"{source.path}: all frames are needed, but the filter failed at {place}: {_last_line(error)}; "
            "nothing was written. Try again, and report it if it comes back"
        ) from error


def lively_frames(node: vs.VideoNode, frames: range) -> set[int]:
    """Find which of the first, middle and last of some frames are clearly not of one colour.

    Args:
        node: A source.
        frames: Numbers of the frames in the source.

    Returns:
        Numbers counted from the first of `frames`.
    """
    lively = set()
    for n in (frames.start, frames[len(frames) // 2], frames.stop - 1):
        frame = node.get_frame(n)
        if np.asarray(frame[0]).std() > LIVELY * 2 ** (frame.format.bits_per_sample - 8):
            lively.add(n - frames.start)
    return lively


def frame_bytes(frame: vs.VideoFrame) -> bytes:
    """The samples of a frame in FFmpeg's layout: plane after plane, rows without padding, RGB as G, B, R."""
    return b"".join(np.asarray(frame[plane]).tobytes() for plane in _order(frame.format))


def _order(video_format: vs.VideoFormat) -> Sequence[int]:
    """Numbers of the planes in FFmpeg's order, where RGB is G, B, R."""
    return (1, 2, 0) if video_format.color_family == vs.RGB else range(video_format.num_planes)


def thumbnails(clip: SourceClip) -> Iterator[Kept]:
    """The thumbnail of the picture in each frame, in order."""
    node, edges = clip.node, clip.edges
    width, height = edges.inside(node.width, node.height)
    kind = VideoFormat(pixel_format(node.format), width, height)
    for number, frame in enumerate(node.frames(close=True)):
        planes = []
        for plane, part in zip(_order(frame.format), kind.components, strict=True):
            ratios = round(width / part.width), round(height / part.height)
            left, top = edges.left // ratios[0], edges.top // ratios[1]
            planes.append(np.asarray(frame[plane])[top : top + part.height, left : left + part.width])
        yield Kept(thumbnail(planes, depth=frame.format.bits_per_sample, number=number), number, kind)


def pixel_format(video_format: vs.VideoFormat) -> str:
    """FFmpeg's name of a VapourSynth format.

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
        raise FormatError(f"8 to 16 bit YUV, RGB or Gray is needed, got {video_format.name}; convert the source first")
    return name


def colour(frame: vs.VideoFrame) -> Colour:
    """Read the colour tags in a frame's properties."""
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


def bytes_of(node: vs.VideoNode) -> int:
    """Bytes of a frame, without the padding of rows."""
    chroma = (node.format.num_planes - 1) / 2 ** (node.format.subsampling_w + node.format.subsampling_h)
    return round(node.width * node.height * node.format.bytes_per_sample * (1 + chroma))


def _check_constant(source: Source, decoded: Decoded, *, parts: bool) -> None:
    """Refuse a picture whose size, format, aspect or colour changes: the output has one of each.

    Args:
        source: The source.
        decoded: Its frames.
        parts: Whether the aspect may change; see `SourceClip.aspect_of`.

    Raises:
        FormatError: One of them changes; the message has the time.
    """
    for change in decoded.changes:
        if change.what != ASPECT or not parts:
            raise _changing(source, change)


def _changing(source: Source, change: Change) -> FormatError:
    """The error for a picture that changes."""
    place = "within the track" if change.time is None else f"at {float(change.time):.2f} s"
    way = "cut the file there and restore the parts"
    if change.what == ASPECT:
        way = f"restore the parts: --end {change.number}, and --start {change.number}"
    return FormatError(f"{source.path}: one {change.what} throughout is needed, but it changes {place}; {way}")


def _check_format(source: Source, node: vs.VideoNode, added: Edges) -> None:
    """Check that size and format are constant, that nothing is missing, and that FFmpeg has the format."""
    if not node.width or not node.height or not node.format.id:
        raise FormatError(
            f"{source.path}: one size and format throughout is needed, but they change within the track; cut the file "
            "there and restore the parts"
        )
    size = source.size if source.rotation % 180 == 0 else source.size[::-1]
    if added.inside(node.width, node.height) != size:
        raise FormatError(
            f"{source.path}: all of the picture is needed, but of {size[0]}x{size[1]} the source filter returns "
            f"{node.width}x{node.height}: odd sizes cannot be subsampled; convert the file to 4:4:4 first"
        )
    pixel_format(node.format)


def _check_progressive(source: Source, decoded: Decoded) -> None:
    """Refuse interlaced video."""
    if decoded.interlaced is not None:
        raise FormatError(
            f"{source.path}: progressive video is needed, got interlaced{decoded.interlaced}; --deinterlace makes "
            "whole frames of it with bwdif, or deinterlace it first, for example with QTGMC (VapourSynth)"
        )


def _stored_times(opened: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The timestamp of each frame as BestSource read it; None for a frame without one."""
    given = opened["timestamps"]
    stored = tuple(given) if isinstance(given, list) else (given,)  # one frame: VapourSynth returns a bare number
    return tuple(None if time == NO_TIMESTAMP else time for time in stored)


def _timestamps(
    source: Source, opened: Mapping[str, Any], stored: Sequence[int | None], decoded: Decoded
) -> tuple[tuple[int, ...], Fraction, tuple[str, ...]]:
    """Choose the timestamps; return them with their unit and notices about replaced ones.

    Raises:
        SourceError: The source has neither timestamps nor a rate.
        FormatError: The timestamps start again beside sound or subtitles.
    """
    node = opened["clip"]
    unit = Fraction(opened["timebasenum"], opened["timebaseden"])
    rate = node.fps if node.fps else source.rate
    made = repaired(stored, step=1 / (rate * unit)) if len(stored) == node.num_frames and rate else None
    if made is not None and not made.replaced and not made.restarts:
        return made.times, unit, ()
    computed = [time for time in decoded.times if time is not None]
    if len(computed) == node.num_frames and is_ascending(decoded.times):
        return tuple(computed), source.time_base, ("the source has no timestamps: they are computed from its flags",)
    if made is not None:
        return made.times, unit, _repairs(source, made, stored, unit)
    if not node.fps:
        raise SourceError(
            f"{source.path}: timestamps or a frame rate are needed, got neither; remux the file to Matroska"
        )
    notice = f"the source has no usable timestamps: its frames are taken as {float(node.fps):.6g} per second"
    return tuple(range(node.num_frames)), 1 / node.fps, (notice,)


def _repairs(source: Source, made: Timeline, stored: Sequence[int | None], unit: Fraction) -> tuple[str, ...]:
    """Notices about repaired timestamps.

    Raises:
        FormatError: They start again beside sound or subtitles, whose timestamps would have to be moved alike.
    """
    notices = []
    if made.restarts:
        n = made.restarts[0]
        before, after = (float((stored[k] or 0) * unit) for k in (n - 1, n))
        found = f"start again at frame {n}, from {before:.2f} s to {after:.2f} s"
        if source.of_kind("audio", "subtitle"):
            raise FormatError(
                f"{source.path}: timestamps that rise are needed, but they {found}: as in two recordings that were "
                "joined; remux the file first (ffmpeg -i IN -map 0 -c copy OUT.mkv), which moves all streams alike"
            )
        notices.append(f"the timestamps {found}; the frames from there on follow the frames before")
    if made.replaced:
        count, first = len(made.replaced), made.replaced[0]
        notices.append(
            f"{count} of {len(stored)} frames have no usable timestamp, the first is frame {first}; theirs are "
            "computed from their neighbours', all others are kept"
        )
    return tuple(notices)


def _anchors(source: Source, decoded: Decoded, count: int) -> tuple[tuple[int, Fraction], ...]:
    """`SourceClip.anchors`."""
    if len(decoded.times) != count:  # another decoder shows other frames at a damaged beginning
        return ()
    known = [(n, time * source.time_base) for n, time in enumerate(decoded.times) if time is not None]
    return (known[0], known[-1]) if known else ()


def _missing_frames(
    source: Source, num_frames: int, stored: Sequence[int | None], time_base: Fraction
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Faults and notices about packets without a decoded frame."""
    if source.video.codec in HIDDEN_FRAMES:
        return (), ()
    shown = {time for time in stored if time is not None}
    if not shown or time_base != source.time_base or len(source.packet_times) < source.video.packets:
        lost = source.video.packets - num_frames
        fault = f"{lost} of {source.video.packets} frames cannot be decoded"
        return ((fault,) if lost > 0 else ()), ()
    begin = min(shown) if source.starts_open or source.first_key is None else source.first_key
    begun = [time for time in source.packet_times if time >= begin]
    late = len(source.packet_times) - len(begun)
    notice = f"the recording starts inside a group of pictures: its first {late} frames cannot be decoded"
    absent = sorted(set(begun).difference(shown))
    fault = f"{len(absent)} of {len(begun)} frames cannot be decoded, the first at "
    faults = (f"{fault}{float(absent[0] * time_base):.2f} s",) if len(begun) > num_frames and absent else ()
    return faults, ((notice,) if late else ())


def _disagreement(source: Source, num_frames: int, decoded: int) -> tuple[str, ...]:
    """A fault if BestSource shows another number of frames of a whole film than FFmpeg.

    Their numbers may differ only where a recording starts inside a group of pictures.
    """
    if source.starts_open or num_frames == decoded:
        return ()
    return (f"BestSource shows {num_frames} frames, but FFmpeg decodes {decoded}",)


def _last_line(error: vs.Error) -> str:
    """The message of an error, without the traceback that VapourSynth puts before it."""
    return str(error).strip().rpartition("\n")[2].strip().removeprefix("VideoSource: ")
