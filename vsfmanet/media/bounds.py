"""Whether a file is as long as its container declares, to the byte: a tail that was cut off may hold less than a frame.

Sources: RFC 8794 (EBML), RFC 9559 (Matroska), ISO/IEC 14496-12, 4.2 (boxes), and Microsoft's RIFF and OpenDML AVI.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from vsfmanet.media.matroska import CLUSTER, EBML, SEGMENT, element

FRAGMENT = b"moof"
"""Box of MP4 that describes the frames of the box after it. Files without any list all their frames in one place, and
are checked by their number."""

FULL = {b"mdat", FRAGMENT}
"""Boxes of such a file without which frames are missing; others may be cut off without harm."""

UNKNOWN = {0, 0xFFFFFFFF}
"""Sizes in RIFF that mean nothing: the writer did not come back to fill them in."""

LEAST_CLUSTER = 24
"""Bytes of a Matroska cluster with a time and one block; fewer cannot hold a frame."""


def missing_bytes(path: Path) -> int:
    """How many bytes a Matroska, MP4 or AVI file lacks at its end, where they may hold frames; 0 for other files."""
    end = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if int.from_bytes(head[:4]) == EBML:
            declared = _end_of_segment(file, end)
        elif head[:4] == b"RIFF":
            declared = _end_of_riff(file, end)
        elif head[4:8] in FULL | {b"moov", b"ftyp", b"wide", b"free", b"skip", b"sidx", b"styp"}:
            declared = _end_of_fragments(file, end)
        else:
            declared = None
    return 0 if declared is None else max(0, declared - end)


def _end_of_segment(file: BinaryIO, end: int) -> int | None:
    """Where the first segment ends; None if that is open, as in a live recording, or if only an index is cut."""
    file.seek(0)
    segment_end = None
    while file.tell() < end:
        kind, size = element(file)
        if size is None:
            return segment_end if kind != SEGMENT else None
        if kind == SEGMENT:
            segment_end = file.tell() + size
            continue
        inside = file.tell()
        if inside + size > end:  # this one is cut
            whole = kind != CLUSTER and segment_end is not None and inside + size >= segment_end
            return None if whole else segment_end
        file.seek(inside + size)
    return None if segment_end is None or segment_end - end < LEAST_CLUSTER else segment_end


def _end_of_riff(file: BinaryIO, end: int) -> int | None:
    """Where the last of the RIFF chunks ends that begin in the file; an AVI of more than 1 GiB has several.

    None if that one's frames are there, and only its index is cut.
    """
    place, declared = 0, None
    while place < end:
        file.seek(place)
        head = file.read(8)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or size in UNKNOWN:
            break
        if place + 8 + size > end and _has_frames(file, place + 12, end):
            return None
        declared = place = place + 8 + size
    return declared


def _has_frames(file: BinaryIO, place: int, end: int) -> bool:
    """Whether the list of frames ("movi") of a RIFF chunk, whose parts begin at a place, is in the file as a whole."""
    while place + 12 <= end:
        file.seek(place)
        head = file.read(12)
        size = int.from_bytes(head[4:8], "little")
        if head[:4] == b"LIST" and head[8:] == b"movi":
            return size not in UNKNOWN and place + 8 + size <= end
        place += 8 + size + size % 2
    return False


def _end_of_fragments(file: BinaryIO, end: int) -> int | None:
    """Where the last box ends that begins in the file, if frames or their description are in it; None for files that
    are not fragmented.
    """
    place, declared, fragmented = 0, None, False
    while place + 8 <= end:
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16])
        if size < 8:  # 0: up to the end of the file
            break
        place += size
        fragmented = fragmented or kind == FRAGMENT
        declared = place if kind in FULL else declared
    return declared if fragmented else None
