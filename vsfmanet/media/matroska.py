"""Checksums in a Matroska file, which muxers write and demuxers ignore.

Source: RFC 8794, sections 4 to 6 (variable-size integers, element IDs and sizes) and 11.3.1 (CRC-32).
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT, CLUSTER, CRC = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0xBF

CRC_BYTES = 6
"""Bytes of a checksum element, the first in the element that it covers."""

PIECE = 1 << 20


def damaged_place(path: Path) -> int | None:
    """Find the first element of a Matroska file that its checksum or its bounds show to be damaged.

    Args:
        path: Any file.

    Returns:
        Offset of the damaged element; None if none is damaged, or the file is not Matroska.
    """
    end = path.stat().st_size
    with path.open("rb") as file:
        if int.from_bytes(file.read(4)) != EBML:
            return None
        file.seek(0)
        while (place := file.tell()) < end:
            kind, size = element(file)
            if kind == SEGMENT:
                continue  # go on with what is inside
            inside = file.tell()
            if size is None or inside + size > end:
                return place
            if not _is_intact(file, size):
                return place
            file.seek(inside + size)
    return None


def element(file: BinaryIO) -> tuple[int, int | None]:
    """Read the ID and the size in bytes of the next element; the size is None if unknown or invalid."""
    kind, _ = _integer(file)
    size, length = _integer(file)
    if not length or not kind:
        return 0, None
    value = size & ((1 << 7 * length) - 1)
    return kind, None if value == (1 << 7 * length) - 1 else value


def _integer(file: BinaryIO) -> tuple[int, int]:
    """Read a variable-size integer with its length marker, and its length in bytes; 0 and 0 if there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return 0, 0
    length = 9 - first[0].bit_length()
    return int.from_bytes(first + file.read(length - 1)), length


def _is_intact(file: BinaryIO, size: int) -> bool:
    """Whether an element's content matches its checksum, or has none."""
    head = file.read(min(size, CRC_BYTES))
    if len(head) < CRC_BYTES or head[0] != CRC or head[1] != 0x84:
        return True
    left, checksum = size - CRC_BYTES, 0
    while left > 0 and (piece := file.read(min(left, PIECE))):
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
    return checksum == int.from_bytes(head[2:], "little")
