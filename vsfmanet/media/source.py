"""Read a source file without decoding: its streams, chapters and names, and whether it is whole."""

from __future__ import annotations

import hashlib
import math
import re
import stat
import statistics
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
from av.audio.codeccontext import AudioCodecContext
from av.container import InputContainer
from av.packet import Packet
from av.rational import AVRational
from av.stream import AttachmentStream, Disposition
from av.stream import Stream as AvStream
from av.video.stream import VideoStream

from vsfmanet.errors import SourceError
from vsfmanet.media.bounds import missing_bytes
from vsfmanet.media.decode import demuxer, first_frame, main_track, open_container
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.log import Message, logged

DECLARING = {"asf", "avi", "flv", "matroska", "mov", "nut"}
"""Demuxers whose duration is stored in the file; elsewhere it is computed from the packets, and proves nothing."""

CONTIGUOUS = {"avi", "flv", "matroska"}
"""Demuxers whose packets follow each other in the file, but for their headers."""

FRAMING = 1024
"""Most bytes of headers and indexes between two packets of such a file."""

BROKEN = re.compile(
    "exceeds containing master element|Duplicate element|exceeds max length|invalid as first byte|as invalid data|"
    "Packet mismatch|must have been damaged|checksum mismatch|CRC mismatch|partial file|wrong sample count|"
    "contradictionary|(replic_size|frag_size|packet_obj_size|fragment position).* invalid|"
    "(packet_length|packet header length).* invalid|invalid (packet_length|packet header length)|"
    "unexpected packet_replic_size|with fragment offset|freeing incomplete packet|"
    "wrong during header parsing|unable to compute the size of the last packet"
)
"""Errors that demuxers of Matroska, FLV, NUT, Ogg, MP4, ASF, AVI and MXF log, and that no whole file causes."""

DIGEST = 8
"""Bytes of the hash of a packet; two hours of sound have 3 MB of hashes."""

CUT, LATEST = -(1 << 63), (1 << 63) - 1
"""In place of the times of packets that are cut, or have no time."""

KEPT = {"audio": "audio", "subtitle": "subtitles", "attachment": "attachments", "cover": "attachments"}
"""Kinds of streams that are copied, each with the option that switches it."""


LONGEST_PRIMING = Fraction(1, 10)
"""Seconds with which a decoder of sound starts, at most: 1024 samples by FFmpeg for AAC. Longer ones are a cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One stream of a file."""

    index: int
    """Number in the file."""
    kind: str
    """One of "video", "cover", "audio", "subtitle", "attachment", "data"."""
    codec: str
    """Decoder's name; "unknown" where there is none."""
    tags: Mapping[str, str]
    """Language, title, file name and the like, with keys in lower case."""
    content: bytes
    """Hashes of what its packets hold, `DIGEST` bytes each, cut ones too; of an attachment, of the file. Video has
    none."""
    needed: bytes
    """`content` without the packets that are cut, and those before picture and sound, which a copy may lack: packets
    that begin earlier, or of subtitles, end earlier."""
    joined: bytes
    """A hash of what all packets hold that are not cut, one after the other: the same where they are divided anew."""
    packets: int
    """Packets that hold something and are shown or heard."""
    cut: int
    """Packets that an edit list cuts away; copied to Matroska, they would be heard. Without those that start the
    decoder."""
    spans: tuple[tuple[Fraction, Fraction], ...]
    """Of subtitles: when each packet begins and ends, seconds; empty where one of them does not say."""
    path: Path | None
    """Another file to copy it from, in place of the source; None if there is none."""
    first: Fraction | None
    """Earliest timestamp, seconds."""
    end: Fraction | None
    """Where the last packet ends, seconds."""

    def __str__(self) -> str:
        return f"{self.kind} stream {self.index} ({self.codec})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chapter:
    """A chapter."""

    start: Fraction
    """Seconds."""
    end: Fraction
    """Seconds."""
    title: str
    """Empty if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source file, read once from end to end without decoding."""

    path: Path
    """Absolute."""
    fingerprint: tuple[int, int]
    """Size in bytes and modification time in ns, to detect changes during the job."""
    video: Stream
    """The track to restore."""
    others: tuple[Stream, ...]
    """Every other stream, in order."""
    chapters: tuple[Chapter, ...]
    """In order."""
    title: str
    """Of the file as a whole; empty if there is none."""
    size: tuple[int, int]
    """Width and height as stored, before the rotation."""
    aspect: Fraction
    """Width over height of a sample as stored (SAR)."""
    time_base: Fraction
    """Unit of the video's timestamps, seconds."""
    rate: Fraction
    """Frames per second, as far as it has one; the timestamps decide."""
    crop: tuple[int, int, int, int]
    """Pixels that the container hides at the left, right, top and bottom of the stored picture (clean aperture)."""
    packet_times: tuple[int, ...]
    """Timestamps of the packets that show a picture, ascending; empty where the container stores none."""
    first_key: int | None
    """Timestamp of the first key frame, in units of `time_base`; None where none is known."""
    starts_open: bool
    """Whether the recording starts inside a group of pictures: packets come before, or are shown before, the first key
    frame, and cannot be decoded."""
    rotation: int
    """Degrees in the display matrix; the source filter turns the picture."""
    turn: tuple[int, int, int, int]
    """Signs of the display matrix, as in `FirstFrame`."""
    hdr: Hdr
    """HDR metadata of the first frame."""
    disposition: tuple[str, ...]
    """Flags of the video track, such as "default"."""
    faults: tuple[str, ...]
    """Signs of damage, each with its place; empty for a whole file."""
    remarks: tuple[str, ...]
    """The first error that the demuxer logged, if it proves no damage."""

    @property
    def start(self) -> Fraction:
        """Earliest timestamp of picture and sound, seconds, not below 0."""
        return _start(stream.first for stream in (self.video, *self.of_kind("audio")))

    def of_kind(self, *kinds: str) -> list[Stream]:
        """The other streams of these kinds, in order."""
        return [stream for stream in self.others if stream.kind in kinds]


def is_kept(stream: Stream) -> bool:
    """Whether a stream beside the video can be copied: neither a second video, nor data, nor of an unknown codec."""
    return stream.kind in KEPT and (stream.codec != "unknown" or stream.kind == "attachment")


def check_unchanged(source: Source) -> None:
    """Check that a source file is unchanged since `inspect`.

    Raises:
        SourceError: It has changed, or is gone.
    """
    try:
        unchanged = _fingerprint(source.path) == source.fingerprint
    except OSError:
        unchanged = False
    if not unchanged:
        raise SourceError(f"{source.path}: the source changed during the job; run it again when it is at rest")


def inspect(path: Path) -> Source:
    """Read a source file from end to end without decoding it.

    Args:
        path: A regular file. Playlists, folders, pipes, devices and URLs are refused.

    Raises:
        SourceError: Not a regular file, empty, unreadable, or without a video track.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: the source cannot be found ({error.strerror}); check the path") from error
    if not stat.S_ISREG(status.st_mode):  # before opening: a pipe would hang
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise SourceError(f"{path}: the source must be a regular file, got {kind}; name a video file")
    if status.st_size == 0:
        raise SourceError(f"{path}: the file is empty (0 bytes); copy it again from its origin")
    try:
        return _read(path.absolute())
    except (av.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path}: a video file is needed, but this one cannot be opened ({error.strerror}); if it is a "
            "video, it was cut short before its index was written, or may not be read: copy or repair it"
        ) from error


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in ns."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@dataclass(kw_only=True, slots=True)
class _Tally:
    """Findings of one pass over a stream's packets; times in units of the stream's time base."""

    packets: int = 0
    cut: int = 0
    first: int | None = None
    end: int | None = None
    content: bytearray = field(default_factory=bytearray)
    times: array[int] = field(default_factory=lambda: array("q"))  # of the packets in `content`
    ends: array[int] = field(default_factory=lambda: array("q"))
    joined: Any = field(default_factory=hashlib.sha256)

    def add(self, payload: bytes, time: int | None, duration: int | None = None, *, cut: bool = False) -> None:
        """Note what a packet holds, when it begins, and how long it lasts."""
        self.content += hashlib.blake2b(payload, digest_size=DIGEST).digest()
        self.times.append(CUT if cut else LATEST if time is None else time)
        self.ends.append(CUT if cut else LATEST if time is None else time + (duration or 0))
        if not cut:
            self.joined.update(payload)

    def content_from(self, time: int, *, lasting: bool) -> bytes:
        """`content` of packets that begin at some time or later, or last beyond it, and are not cut."""
        kept = (
            begins >= time or (lasting and ends > time and begins != CUT)
            for begins, ends in zip(self.times, self.ends, strict=True)
        )
        places = (DIGEST * number for number, keep in enumerate(kept) if keep)
        return b"".join(self.content[place : place + DIGEST] for place in places)

    def spans(self, base: Fraction) -> tuple[tuple[Fraction, Fraction], ...]:
        """When each packet begins and ends, seconds; empty if one has no time, no duration, or is cut."""
        pairs = list(zip(self.times, self.ends, strict=True))
        known = all(begins not in (CUT, LATEST) and ends > begins for begins, ends in pairs)
        return tuple((begins * base, ends * base) for begins, ends in pairs) if known else ()


@dataclass(frozen=True, slots=True)
class Shown:
    """A packet that shows a picture."""

    time: int
    """Timestamp."""
    duration: int
    """In the same unit; 0 where it is unknown."""
    place: int
    """Byte at which it begins; -1 where that is unknown."""


@dataclass(kw_only=True, slots=True)
class _Order:
    """Findings of one pass about the main track and the file; times in units of the track's time base."""

    shown: list[Shown] = field(default_factory=list)
    started: bool = False
    """Whether a key frame has been seen."""
    first_key: int | None = None
    starts_open: bool = False
    holes: list[tuple[int, int]] = field(default_factory=list)
    """Bytes from and to which nothing belongs to any packet."""
    cut: int = 0
    """Packets of which a part is missing."""
    incomplete: list[tuple[int, int]] = field(default_factory=list)
    """Numbers and times of the main track's packets of which a part is missing, from the first key frame on."""
    keys: dict[int, int] = field(default_factory=dict)
    """For each key frame's packet, how much later it is shown than all frames before it."""
    is_declared: bool = False
    """Whether the container is written as a whole, and not recorded from somewhere in the middle."""
    _end: int | None = None
    _count: int = 0
    _highest: int | None = None

    def add(self, packet: Packet[Any]) -> None:
        """Note a packet of any stream, in the order of the file."""
        self.cut += packet.is_corrupt
        if packet.pos is None or packet.pos < 0:
            return
        if self._end is not None and packet.pos > self._end + FRAMING:
            self.holes.append((self._end, packet.pos))
        self._end = packet.pos + packet.size

    def add_shown(self, packet: Packet[Any]) -> None:
        """Note a packet of the main track, also one that is cut."""
        if packet.is_keyframe and not self.started:
            self.started, self.first_key = True, packet.pts
        early = packet.pts is not None and self.first_key is not None and packet.pts < self.first_key
        self.starts_open = self.starts_open or early or not (self.started or self.is_declared)
        self._count += 1
        if packet.pts is not None:
            if packet.is_corrupt and self.started:
                self.incomplete.append((self._count, packet.pts))
            if packet.is_keyframe and self._highest is not None:
                self.keys[self._count] = packet.pts - self._highest
            self._highest = packet.pts if self._highest is None else max(self._highest, packet.pts)
        if packet.pts is not None and not packet.is_discard:
            place = -1 if packet.pos is None else packet.pos
            self.shown.append(Shown(packet.pts, packet.duration or 0, place))

    def has_hole(self, one: int, other: int) -> bool:
        """Whether bytes are missing between two places in the file, as far as that is known."""
        low, high = min(one, other), max(one, other)
        return low < 0 or any(start < high and end > low for start, end in self.holes)


def _read(path: Path) -> Source:
    """`inspect`, after the checks of the path."""
    identity = _fingerprint(path)
    with logged() as log, open_container(path) as container:
        track = main_track(container)
        if track is None:
            raise SourceError(f"{path}: the file has no video track; name a video file")
        guess = track.guessed_rate or track.average_rate
        rate = Fraction(guess.numerator, guess.denominator) if guess else Fraction(25)
        tallies, order, faults = _tally(container, track)
        streams = _streams(container, track, tallies)
        shown = sorted(order.shown, key=lambda each: each.time)
        time_base = Fraction(track.time_base.numerator, track.time_base.denominator)
        faults += _missing_end(container, track, streams, rate) or _missing_bytes(path)
        if order.cut and not faults and demuxer(container) == "mov":  # elsewhere decoding shows whether it matters
            faults.append(f"{order.cut} packets are cut short; the end is missing")
        structure, remarks = _structure(log.take(), container.format.name)
        faults += structure
        if demuxer(container) == "mpegts":
            faults += _missing_parts(order, shown, time_base)
        faults += _gaps(shown, time_base, hole=order.has_hole if demuxer(container) in CONTIGUOUS else None)
        first = first_frame(path)
        return Source(
            path=path,
            fingerprint=identity,
            video=streams[track.index],
            others=tuple(stream for stream in streams if stream.index != track.index),
            chapters=_chapters(container),
            title=container.metadata.get("title", ""),
            size=(track.codec_context.width, track.codec_context.height),
            aspect=_fraction(track.sample_aspect_ratio) or Fraction(1),
            time_base=time_base,
            rate=rate,
            crop=_crop(track),
            packet_times=tuple(each.time for each in shown),
            first_key=order.first_key,
            starts_open=order.starts_open,
            rotation=first.rotation,
            turn=first.turn,
            hdr=first.hdr,
            disposition=tuple(flag.name for flag in Disposition if flag in track.disposition and flag.name),
            faults=tuple(faults),
            remarks=remarks,
        )


def _tally(container: InputContainer, track: VideoStream) -> tuple[list[_Tally], _Order, list[str]]:
    """Read every packet once: a tally for each stream, their order, and where the reading failed, if it did."""
    order = _Order(is_declared=demuxer(container) in DECLARING)
    tallies = [_Tally() for _ in container.streams]
    codecs = {stream.index: stream.codec_context.name for stream in container.streams if _is_hashed(stream)}
    for stream in container.streams:
        if isinstance(stream, AttachmentStream):
            tallies[stream.index].add(bytes(stream.data or b""), None)
    try:
        for packet in container.demux():
            if not packet.size or packet.stream_index >= len(tallies):  # the end, or a stream that begins midway
                continue
            tally = tallies[packet.stream_index]
            order.add(packet)
            if packet.stream_index == track.index:
                order.add_shown(packet)
            time = packet.pts if packet.pts is not None else packet.dts
            codec = codecs.get(packet.stream_index)
            is_cut = packet.is_discard and (tally.cut > 0 or not _is_priming(packet))
            if codec is not None:
                payload = _payload(codec, bytes(packet))
                if not payload:
                    continue
                tally.add(payload, time, packet.duration, cut=is_cut)
            if is_cut:  # by an edit list
                tally.cut += 1
                continue
            tally.packets += 1
            if time is not None:
                tally.first = time if tally.first is None else min(tally.first, time)
                tally.end = max(tally.end or 0, time + (packet.duration or 0))
    except av.FFmpegError as error:
        return (
            tallies,
            order,
            [f"reading fails after {sum(tally.packets for tally in tallies)} packets ({error.strerror})"],
        )
    return tallies, order, []


def _is_priming(packet: Packet[Any]) -> bool:
    """Whether a packet holds only samples with which a decoder of sound starts, and which containers say to skip.

    A copy needs them: without them, players skip as much of the sound itself.
    """
    context = packet.stream.codec_context
    if not isinstance(context, AudioCodecContext) or packet.pts is None or not context.sample_rate:
        return False
    base = _fraction(packet.stream.time_base) or Fraction(0)
    padding = Fraction(context.initial_padding, context.sample_rate)  # FFmpeg counts all that an edit list cuts
    return padding <= LONGEST_PRIMING and -padding <= packet.pts * base < 0


def _start(firsts: Iterable[Fraction | None]) -> Fraction:
    """Earliest timestamp of some streams, seconds, not below 0."""
    return max(Fraction(0), min((first for first in firsts if first is not None), default=Fraction(0)))


def _streams(container: InputContainer, track: VideoStream, tallies: Sequence[_Tally]) -> list[Stream]:
    """Describe the streams of a container."""
    streams = []
    timed = [
        (stream, tally, _fraction(stream.time_base) or Fraction(0))
        for stream, tally in zip(container.streams, tallies, strict=False)
    ]
    start = _start(
        None if tally.first is None else tally.first * base
        for stream, tally, base in timed
        if stream.type == "audio" or stream.index == track.index
    )
    for stream, tally, base in timed:
        streams.append(
            Stream(
                index=stream.index,
                kind="cover" if Disposition.attached_pic in stream.disposition else stream.type,
                codec=stream.codec_context.name if stream.codec_context else "unknown",
                tags=_tags(stream.metadata),
                content=bytes(tally.content),
                needed=tally.content_from(math.ceil(start / base) if base else 0, lasting=stream.type == "subtitle"),
                spans=tally.spans(base) if stream.type == "subtitle" else (),
                path=None,
                joined=tally.joined.digest(),
                packets=tally.packets,
                cut=tally.cut,
                first=None if tally.first is None else tally.first * base,
                end=None if tally.end is None else tally.end * base,
            )
        )
    return streams


def _fraction(ratio: AVRational | None) -> Fraction | None:
    """Convert a ratio; None without one."""
    return Fraction(ratio.numerator, ratio.denominator) if ratio else None


def _tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Tags under the same keys for all containers: FFmpeg calls a track's title "name" where it reads MP4."""
    tags = {key.lower(): value for key, value in metadata.items()}
    title = tags.get("title") or tags.pop("name", "")
    return tags | ({"title": title} if title else {})


def _chapters(container: InputContainer) -> tuple[Chapter, ...]:
    """The chapters of a container."""
    return tuple(
        Chapter(
            start=entry["start"] * Fraction(entry["time_base"].numerator, entry["time_base"].denominator),
            end=entry["end"] * Fraction(entry["time_base"].numerator, entry["time_base"].denominator),
            title=entry["metadata"].get("title", ""),
        )
        for entry in container.chapters()
    )


def _is_hashed(stream: AvStream) -> bool:
    """Whether a stream's packets may be copied to another file."""
    return stream.codec_context is not None and (
        stream.type in ("audio", "subtitle") or Disposition.attached_pic in stream.disposition
    )


def _payload(codec: str, packet: bytes) -> bytes:
    """The content of a packet without its container's framing; empty for one that only fills a gap.

    AAC has a header of 7 bytes, or 9 with a checksum, before each packet in transport streams and none elsewhere (ADTS,
    ISO/IEC 14496-3, 1.A.2.2). MP4 has packets without text between subtitles.
    """
    if codec == "aac" and len(packet) > 9 and packet[0] == 0xFF and packet[1] & 0xF6 == 0xF0:
        return packet[7 if packet[1] & 1 else 9 :]
    if codec == "mov_text" and packet == b"\0\0":
        return b""
    return packet


def _missing_end(container: InputContainer, track: VideoStream, streams: Sequence[Stream], rate: Fraction) -> list[str]:
    """Whether the file ends before its declared duration or number of packets."""
    found = max((stream.end for stream in streams if stream.end is not None), default=Fraction(0))
    tolerance = max(0.5, 2 / float(rate))  # seconds; headers round, and streams differ in length
    if container.duration is not None and demuxer(container) in DECLARING:
        declared = container.duration / 1_000_000
        if found < declared - tolerance:
            return [f"declared {declared:.1f} s, found {float(found):.1f} s; the end is missing"]
    if demuxer(container) == "avi":  # counts frames that were dropped, too
        return []
    for stream, read in zip(container.streams, streams, strict=True):
        packets = read.packets + read.cut
        counts = demuxer(container) == "mxf" and stream is track and (_fraction(stream.time_base) or 0) * rate == 1
        if counts and (stream.duration or 0) > packets:
            return [f"declared {stream.duration} frames, found {packets}; some are missing"]
        edited = read.cut and stream is not track  # where an edit list cuts sound, FFmpeg passes over whole packets
        if stream.frames > packets and read.kind in ("video", "audio") and not edited and not _lasts(stream, read):
            name = "frames" if stream is track else f"packets of {read}"
            return [f"declared {stream.frames} {name}, found {packets}; the end is missing"]
    return []


def _lasts(stream: AvStream, read: Stream) -> bool:
    """Whether a sound track is as long as declared: a packet of PCM holds many of the samples that are declared."""
    if read.kind != "audio" or not stream.duration or read.first is None or read.end is None:
        return False
    declared = stream.duration * (_fraction(stream.time_base) or Fraction(0))
    return read.end - read.first >= declared - (read.end - read.first) / (2 * read.packets)


def _structure(log: Sequence[Message], name: str) -> tuple[list[str], tuple[str, ...]]:
    """Look in the log for what the demuxer of that name found in the file.

    Returns:
        A fault if the file contradicts itself (the demuxer skips what follows); else the first error of another kind.
    """
    texts = [text.strip() for _, origin, text in log if origin == name and text.strip()]
    broken = next((text for text in texts if BROKEN.search(text)), None)
    if broken is not None:
        return [f"its structure is damaged ({broken})"], ()
    return [], tuple(texts[:1])


def _missing_parts(order: _Order, shown: Sequence[Shown], time_base: Fraction) -> list[str]:
    """Whether a transport stream has lost packets before or in some frames, by its counters, which no decoder sees.

    Where two recordings were joined, the counters jump too: one or, with a parser, two packets before a key frame that
    is shown when it is due, or that starts the timestamps anew.
    """
    steps = [later.time - earlier.time for earlier, later in pairwise(shown)]
    due = 1.5 * statistics.median(steps) if steps else 0
    joints = {number for number, later in order.keys.items() if later <= due}
    times = [time for number, time in order.incomplete if joints.isdisjoint((number + 1, number + 2))]
    if not times:
        return []
    return [f"packets are lost at {len(times)} frames, the first at {float(times[0] * time_base):.2f} s"]


def _missing_bytes(path: Path) -> list[str]:
    """Whether the file is shorter than declared, by however little."""
    missing = missing_bytes(path)
    return [f"its last {missing} bytes are missing"] if missing else []


def _gaps(shown: Sequence[Shown], time_base: Fraction, *, hole: Callable[[int, int], bool] | None) -> list[str]:
    """Find holes in a file of constant rate.

    A pause is no hole: its packet lasts until the next one, or no bytes are missing between the two. Files of variable
    rate have no holes.

    Args:
        shown: The packets, by time.
        time_base: Unit of their times, seconds.
        hole: Whether bytes are missing between two places; None where the container does not show it.
    """
    pairs = list(pairwise(shown))
    steps = [later.time - earlier.time for earlier, later in pairs]
    if not steps:
        return []
    usual = statistics.median(steps)
    if sum(step > 1.5 * usual for step in steps) > max(1, len(steps) / 50):
        return []
    return [
        f"no frames between {float(one.time * time_base):.2f} s and {float(other.time * time_base):.2f} s"
        for (one, other), step in zip(pairs, steps, strict=True)
        if step > 3 * usual and one.duration < step - usual / 2 and (hole is None or hole(one.place, other.place))
    ]


def _crop(track: VideoStream) -> tuple[int, int, int, int]:
    """Pixels that the container hides: left, right, top, bottom. Source: AV_PKT_DATA_FRAME_CROPPING, libavcodec."""
    data = track.codec_context.coded_side_data.get("frame_cropping", b"")
    if len(data) != 16:
        return 0, 0, 0, 0
    top, bottom, left, right = struct.unpack("=4I", data)
    return left, right, top, bottom


def save_packets(source: Source, files: Mapping[int, Path]) -> None:
    """Write the first packet of some streams to files: for a cover picture, that is the picture.

    Args:
        source: What `inspect` found.
        files: Where each stream's packet goes, by the stream's number.
    """
    wanted = dict(files)
    with open_container(source.path) as container:
        for packet in container.demux(tuple(container.streams[index] for index in files)) if files else ():
            if packet.size and packet.stream_index in wanted:
                wanted.pop(packet.stream_index).write_bytes(bytes(packet))
            if not wanted:
                return
