"""Whether a file is as long as its container says, to the byte: a tail that was cut off may hold less than a frame.

Sources: RFC 8794 (EBML), ISO/IEC 14496-12, 4.2 (boxes), and Microsoft's RIFF and OpenDML AVI.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from vsfmanet.media.matroska import EBML, SEGMENT, element

FULL = {b"mdat", b"moov", b"moof"}
"""Boxes of MP4 without which frames are missing; others may be cut off without harm."""

UNTOLD = {0, 0xFFFFFFFF}
"""Sizes in RIFF that say nothing: the writer did not come back to fill them in."""


def missing_bytes(path: Path) -> int:
    """How many bytes a Matroska, MP4 or AVI file lacks at its end, by what it says of itself; 0 for any other file."""
    end = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if int.from_bytes(head[:4]) == EBML:
            said = _end_of_segment(file)
        elif head[:4] == b"RIFF":
            said = _end_of_riff(file, end)
        elif head[4:8] in FULL | {b"ftyp", b"wide", b"free", b"skip"}:
            said = _end_of_boxes(file, end)
        else:
            said = None
    return 0 if said is None else max(0, said - end)


def _end_of_segment(file: BinaryIO) -> int | None:
    """Where the first segment ends; None if that is left open, as in a recording that goes on."""
    file.seek(0)
    while True:
        kind, size = element(file)
        if size is None:
            return None
        if kind == SEGMENT:
            return file.tell() + size
        file.seek(size, 1)


def _end_of_riff(file: BinaryIO, end: int) -> int | None:
    """Where the last of the RIFF chunks ends that begin in the file; an AVI of more than 1 GiB has several."""
    place, said = 0, None
    while place < end:
        file.seek(place)
        head = file.read(8)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or size in UNTOLD:
            break
        said = place = place + 8 + size
    return said


def _end_of_boxes(file: BinaryIO, end: int) -> int | None:
    """Where the last box ends that begins in the file, if frames or their index are in it."""
    place, said = 0, None
    while place + 8 <= end:
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16])
        if size < 8:  # 0: up to the end of the file
            break
        place += size
        said = place if kind in FULL else said
    return said
