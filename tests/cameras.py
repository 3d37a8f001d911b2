"""What cameras other than a GoPro write beside their pictures, made after the descriptions in `exposures.cameras`."""

from __future__ import annotations

import struct
from collections.abc import Sequence

LENS, CAMERA = "060E2B34025301010C02010101010000", "060E2B34025301010C02010102010000"
"""Keys of sets in Sony's packets."""


def sony_packet(seconds: tuple[int, int] | None, *, rate: tuple[int, int] | None = None, degrees: float = 0.0) -> bytes:
    """A packet of the track rtmd: a set of the lens, then one of the camera with what is not None or 0."""
    lens = _tag(0x8000, b"\xd0\x00") + _tag(0x8004, b"\xd1\x23")
    camera = _tag(0x8104, struct.pack(">H", 35_600))
    if rate is not None:
        camera += _tag(0x8106, struct.pack(">II", *rate))
    if degrees:
        camera += _tag(0x8108, struct.pack(">I", round(60 * degrees)))
    if seconds is not None:
        camera += _tag(0x8109, struct.pack(">II", *seconds))
    camera += _tag(0x810B, struct.pack(">H", 800))
    sets = [
        bytes.fromhex(key) + b"\x83" + len(content).to_bytes(3, "big") + content
        for key, content in ((LENS, lens), (CAMERA, camera))
    ]
    return b"\x00\x1c\x01\x00" + bytes(24) + b"".join(sets) + bytes(64)


def dji_packet(
    shutter: tuple[int, int], *, clock: float | None, product: str | None = None, field: int = 4, packed: bool = True
) -> bytes:
    """A packet of the track "DJI meta": the product in the first one, then clock, aperture and shutter time."""
    clip = _message(1, _message(1, _message(1, f"dvtm_{product}.proto".encode()))) if product else b""
    header = _number(1, 7) + (_number(2, round(1e6 * clock)) if clock is not None else b"")
    values = _message(1, b"".join(map(_varint, shutter))) if packed else b"".join(_number(1, one) for one in shutter)
    aperture = _message(1, _varint(28) + _varint(10))
    camera = b"".join(_message(n, values if n == field else aperture) for n in (3, 4, 10))
    speed = b"\x2d" + struct.pack("<f", 59.94)  # field 5, of 4 bytes
    return clip + _message(3, _message(1, header) + _message(2, speed + camera))


def insta360_tail(clocks: Sequence[int], shutter: Sequence[float], *, first: int, indexed: bool) -> bytes:
    """What stands behind the end of an Insta360 file: information, shutter times, other records, a footer.

    Args:
        clocks: of the shutter times, in the camera's unit.
        shutter: seconds.
        first: clock of the film's first frame.
        indexed: with gaps and an index, as newer cameras write it.
    """
    entries = b"".join(struct.pack("<Qd", *entry) for entry in zip(clocks, shutter, strict=True))
    info = _message(2, b"Insta360 Ten") + b"\xc9\x01" + bytes(8) + _number(24, first)  # field 25 has 8 bytes
    tail, slots = b"", [bytes(10)] * 5
    for kind, content in ((1, info), (4, entries), (3, b"gyro" * 20)):
        tail += bytes(100) if indexed else b""
        slots[kind] = struct.pack("<BBII", kind, 1, len(content), len(tail))
        tail += content + struct.pack("<BBI", 1, kind, len(content))
    if indexed:
        tail += bytes(50) + b"".join(slots) + struct.pack("<BBI", 0, 0, 50)
    return tail + bytes(32) + struct.pack("<II", len(tail) + 72, 3) + b"8db42d694ccc418790edff439fe026bf"


def subtitles(lines: Sequence[str], *, seconds: float) -> str:
    """An .SRT file with a line for every so many seconds."""

    def stamp(number: int) -> str:
        milliseconds = round(1000 * number * seconds)
        return f"00:{milliseconds // 60_000:02}:{milliseconds // 1000 % 60:02},{milliseconds % 1000:03}"

    cues = [f"{n + 1}\r\n{stamp(n)} --> {stamp(n + 1)}\r\n{line}\r\n" for n, line in enumerate(lines)]
    return "\ufeff" + "\r\n".join(cues)


def _tag(tag: int, value: bytes) -> bytes:
    return struct.pack(">HH", tag, len(value)) + value


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    rest = value >> 7
    return bytes([value & 0x7F | (0x80 if rest else 0)]) + (_varint(rest) if rest else b"")
