"""Parsers of the shutter times that cameras record: bytes and text in, seconds out.

- GoPro: stream SHUT in the GPMF track of an MP4 file, several samples a packet, spread evenly over it.
- Sony: the track `rtmd`, a packet a frame: sets of SMPTE RDD 18 (tags of 2 bytes), in XAVC S and XAVC HS.
- DJI: the track "DJI meta", a packet a frame (protocol buffers, whose layout depends on the product), or lines of text
  as a subtitle track or an .SRT file beside the film, a frame or a second each.
- Insta360: records after the end of the MP4 or INSV file.

Files are foreign: no bytes make a parser raise, take more than linear time, or read far beyond what it needs. A parser
stops where data are not as described, because a wrong shutter time does more harm than none.

Source: GPMF introduction (github.com/gopro/gpmf-parser, docs); SMPTE RDD 18; tables of ExifTool (DJI.pm, Sony.pm,
QuickTimeStream.pl) and of telemetry-parser for what the makers do not publish. The Python package of the latter returns
shutter times of GoPro and Sony without the packets' times, and none of DJI, so they could be matched by counting only.
All parsers but GoPro's were checked on files made after these descriptions, not on recordings.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CLOCKS = {b"STMP": 1e6, b"TICK": 1e3}
"""GoPro's keys of the camera's clock at a packet's first sample, and its ticks per second."""

_SONY_HEADER = 0x1C
_SONY_SET = bytes.fromhex("060E2B34025301010C020101")
_SONY_CAPTURE_RATE, _SONY_SHUTTER_ANGLE, _SONY_SHUTTER_TIME = 0x8106, 0x8108, 0x8109

DJI_TRACK = "DJI meta"
"""Part of the name of the track that holds DJI's protocol buffers."""

_DJI_SHUTTER_FIELDS = {
    **dict.fromkeys(("ac203", "ac204", "AVATA2", "dji_neo", "oq101", "ow001", "wm169"), 4),
    **dict.fromkeys(("wm265e", "pm320"), 3),
    "Mini4_Pro": 10,
}
"""Number of the field that holds the shutter time, by product; in other products it holds the aperture."""

_SHUTTER = re.compile(r"\b(?:shutter\s*:\s*|SS\s+)(1/)?(\d+(?:\.\d+)?)", re.IGNORECASE)
"""Shutter times as drones of several years write them: `[shutter : 1/120.0]`, `Shutter:120`, `SS 120.5`, in 1/s."""

_TIME = r"(\d{1,3}):(\d\d):(\d\d)[,.](\d{3})"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}", re.ASCII)
"""First line of a subtitle in an .SRT file, after its number."""

_INSTA_MAGIC = b"8db42d694ccc418790edff439fe026bf"
_INSTA_FOOTER = 72
_INSTA_INFO, _INSTA_EXPOSURE = 1, 4
_INSTA_FIRST_FRAME = 24
_INSTA_MAX_RECORDS, _INSTA_MAX_BYTES = 256, 1 << 28  # limits for foreign files; real ones have about ten records


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """Shutter times that were recorded together."""

    start: float
    """Seconds from the film's beginning."""
    duration: float
    """Seconds; 0 if the file does not say."""
    shutter: Sequence[float] | NDArray[np.float32]
    """Seconds, as recorded and unchecked. Each holds for its share of the duration."""
    clock: float | None = None
    """The camera's own clock at the first sample, seconds; None without one."""
    capture_rate: float | None = None
    """Frames that the camera took each second, which differs from the film's rate in slow and quick motion; None if
    the file does not say."""


@dataclass(slots=True)
class TrackReader:
    """Parses the packets of one data track, of any of the cameras."""

    is_dji: bool
    """Whether the track's name contains `DJI_TRACK`."""
    _dji_field: int | None = field(default=None, init=False)
    """Number of the field that holds the shutter time, once a packet has named the product."""

    def read(self, data: bytes, start: float, duration: float) -> Packet | None:
        """Parse the shutter times in a packet; None if it has none.

        Args:
            data: The packet.
            start: Of the packet, in seconds.
            duration: Of the packet, in seconds; 0 if the file does not say.
        """
        if self.is_dji:
            return self._read_dji(data, start, duration)
        if data[:2] == b"\x00\x1c":
            return _read_sony(data, start, duration)
        return _read_gopro(data, start, duration)

    def _read_dji(self, data: bytes, start: float, duration: float) -> Packet | None:
        name = _field(data, 1, 1, 1)  # the schema's, for example dvtm_ac203.proto; not in every packet
        if isinstance(name, bytes):
            product = name.decode("latin-1").removeprefix("dvtm_").removesuffix(".proto")
            self._dji_field = _DJI_SHUTTER_FIELDS.get(product)
        if self._dji_field is None:
            return None
        pair = _field(data, 3, 2, self._dji_field)
        numbers = _rational(pair) if isinstance(pair, bytes) else None
        if numbers is None:
            return None
        microseconds = _field(data, 3, 1, 2)
        clock = microseconds / 1e6 if isinstance(microseconds, int) else None
        return Packet(start=start, duration=duration, shutter=[numbers[0] / numbers[1]], clock=clock)


def read_text(text: str, start: float, duration: float) -> Packet | None:
    """Parse the shutter time in a drone's subtitle; None if it has none.

    Args:
        text: Of one subtitle.
        start: Of the subtitle, in seconds.
        duration: Of the subtitle, in seconds.
    """
    found = _SHUTTER.search(text)
    number = float(found[2]) if found else 0.0
    return Packet(start=start, duration=duration, shutter=[1 / number]) if number > 0 else None


def read_srt(path: Path) -> list[Packet]:
    """Parse the shutter times in a subtitle file, in order; none from a file with other subtitles."""
    cues: list[tuple[float, float, list[str]]] = []
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for line in lines:
            found = _CUE.match(line)
            if found is not None:
                h0, m0, s0, ms0, h1, m1, s1, ms1 = map(int, found.groups())
                start, end = 3600 * h0 + 60 * m0 + s0 + ms0 / 1000, 3600 * h1 + 60 * m1 + s1 + ms1 / 1000
                cues.append((start, max(0.0, end - start), []))
            elif cues:
                cues[-1][2].append(line)
    packets = [read_text("".join(text), start, duration) for start, duration, text in cues]
    return sorted((packet for packet in packets if packet is not None), key=lambda packet: packet.start)


def read_insta360(path: Path) -> list[Packet]:
    """Parse the shutter times in the records after the end of an Insta360 file, in order; none from another file.

    A record is followed by its format, kind and size. Newer cameras leave gaps between records, and an index (kind 0)
    as the last one. Clocks count microseconds, in older cameras milliseconds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _INSTA_FOOTER))
        footer = file.read()
        if len(footer) < _INSTA_FOOTER or not footer.endswith(_INSTA_MAGIC):
            return []
        begin = size - int.from_bytes(footer[32:36], "little")
        places: dict[int, tuple[int, int]] = {}
        end = size - _INSTA_FOOTER
        for _ in range(_INSTA_MAX_RECORDS):
            if not 0 <= begin <= end - 6:
                break
            file.seek(end - 6)
            _, kind, length = struct.unpack("<BBI", file.read(6))
            end -= 6 + length
            if end < begin:
                break
            if kind == 0 and not places:
                file.seek(end)
                slots = struct.iter_unpack("<BBII", file.read(min(length // 10, _INSTA_MAX_RECORDS) * 10))
                places = {slot[0]: (begin + slot[3], slot[2]) for slot in slots if slot[2]}
                break
            places.setdefault(kind, (end, length))

        def record(kind: int) -> bytes:
            place, length = places.get(kind, (0, 0))
            file.seek(place)
            return file.read(min(length, _INSTA_MAX_BYTES))

        first, data = _field(record(_INSTA_INFO), _INSTA_FIRST_FRAME), record(_INSTA_EXPOSURE)
    entries = np.frombuffer(data[: len(data) // 16 * 16], dtype=[("clock", "<u8"), ("shutter", "<f8")])
    if not isinstance(first, int) or len(entries) < 2:
        return []
    steps = np.diff(entries["clock"].astype(np.float64))
    unit = 1e-6 if np.median(steps) >= 1000 else 1e-3
    starts = (entries["clock"].astype(np.float64) - first) * unit
    held = unit * np.append(steps, np.median(steps))
    rows = zip(starts.tolist(), held.tolist(), entries["shutter"].tolist(), strict=True)
    # The first entries belong to frames before the first that was kept.
    packets = [Packet(start=start, duration=hold, shutter=[one]) for start, hold, one in rows if start > -hold / 2]
    return sorted(packets, key=lambda packet: packet.start)


def _read_gopro(data: bytes, start: float, duration: float) -> Packet | None:
    """Parse the first stream of shutter times in a GPMF packet; a camera with two lenses writes two."""
    devices = [value for key, _, value in _items(data) if key == b"DEVC"]
    streams = [value for device in devices for key, _, value in _items(device) if key == b"STRM"]
    for stream in streams:
        items = {key: (kind, value) for key, kind, value in _items(stream)}
        kind, value = items.get(b"SHUT", (b"", b""))
        # Cameras write plain floats. What another type or a scale means is not documented.
        if kind == b"f" and value and b"SCAL" not in items:
            stamps = [(items[key][1], rate) for key, rate in _CLOCKS.items() if key in items]
            clocks = [int.from_bytes(stamp, "big") / rate for stamp, rate in stamps if len(stamp) <= 8]
            shutter = np.frombuffer(value, dtype=">f4").astype(np.float32)
            return Packet(start=start, duration=duration, shutter=shutter, clock=clocks[0] if clocks else None)
    return None


def _items(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Key, type and value of consecutive GPMF items, up to the first that is cut off."""
    place = 0
    while place + 8 <= len(data):
        key, kind, size, count = struct.unpack_from(">4scBH", data, place)
        value = data[place + 8 : place + 8 + size * count]
        if len(value) < size * count or (kind == b"f" and size % 4):
            return
        yield key, kind, value
        place += 8 + (size * count + 3) // 4 * 4


def _read_sony(data: bytes, start: float, duration: float) -> Packet | None:
    """Parse the shutter time in a packet of `rtmd`, in seconds or as an angle of the capture interval."""
    tags: dict[int, bytes] = {}
    place = _SONY_HEADER
    while data[place : place + 12] == _SONY_SET and place + 20 <= len(data):
        long_form, length = data[place + 16], int.from_bytes(data[place + 17 : place + 20], "big")
        content = data[place + 20 : place + 20 + length]
        if long_form != 0x83 or len(content) < length:
            break
        tags.update(_sony_tags(content))
        place += 20 + length
    rate = _ratio(tags.get(_SONY_CAPTURE_RATE, b""))
    seconds = _ratio(tags.get(_SONY_SHUTTER_TIME, b""))
    angle = tags.get(_SONY_SHUTTER_ANGLE, b"")
    if seconds is None and rate is not None and len(angle) == 4:
        seconds = int.from_bytes(angle, "big") / 60 / 360 / rate  # minutes of arc
    if seconds is None:
        return None
    return Packet(start=start, duration=duration, shutter=[seconds], capture_rate=rate)


def _sony_tags(content: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(content):
        tag, length = struct.unpack_from(">HH", content, place)
        value = content[place + 4 : place + 4 + length]
        if len(value) < length:
            return
        yield tag, value
        place += 4 + length


def _ratio(value: bytes) -> float | None:
    """Ratio of two whole numbers of 4 bytes; None if either is 0."""
    numbers = struct.unpack(">II", value) if len(value) == 8 else (0, 0)
    return numbers[0] / numbers[1] if all(numbers) else None


def _field(message: bytes, *path: int) -> int | bytes | None:
    """The first value at a path of field numbers in a protocol buffer; None if there is none."""
    value: int | bytes = message
    for number in path:
        if isinstance(value, int):
            return None
        inner = next((one for key, one in _fields(value) if key == number), None)
        if inner is None:
            return None
        value = inner
    return value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields that are whole numbers or bytes, up to the first that is cut off."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            if place <= len(message):
                yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            length, place = _varint(message, place)
        if length < 0 or place + length > len(message):
            return
        if kind == 2:
            yield key >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A whole number at a place, and the place after it, which lies beyond the end if the number is cut off."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(message):
            break
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
    return 0, len(message) + 1


def _rational(message: bytes) -> tuple[int, int] | None:
    """Two positive whole numbers in field 1, packed or not; None if it holds anything else."""
    values: list[int] = []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            place = 0
            while place < len(value):
                one, place = _varint(value, place)
                values.append(one)
        elif number == 1 and isinstance(value, int):
            values.append(value)
    return (values[0], values[1]) if len(values) == 2 and min(values) > 0 else None
