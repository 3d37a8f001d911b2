"""Thumbnails of the encoded frames, compared with the decoded frames of the finished file.

A thumbnail samples 16x9 patches of 8x8 pixels: of each, the mean of every plane and the detail of the first. The
patches move from frame to frame, so that the whole picture is sampled in time. A thumbnail has some 600 bytes and takes
less than a millisecond at any frame size. For lossless encoders a hash of all samples is stored with it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vsfmanet.errors import IncompleteError

SUFFIX = ".thumbnails"
"""Of files of thumbnails."""

COLUMNS, ROWS, SIDE = 16, 9, 8
"""Patches across and down, at most, and their side in pixels of the first plane."""

HASH = 16
"""Bytes of the hash of a frame."""

PLAIN = re.compile(r"(yuvj?4\d\dp|gbrp|gray)((9|1\d)le)?")
"""Pixel formats with a plane for each component."""

UNREADABLE = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""Errors that garbled files of thumbnails cause."""

Planes = Sequence[NDArray[Any]]

Likeness = Literal["exact", "near", "fair", "coarse", "rough", "restored", "unknown"]
"""How closely a frame must match the one it was made from. "exact": every sample is equal. "near", "fair", "coarse": as
after coding at high, usual and low quality. "rough": equal colours and not more detail, as after coding at any quality.
"restored": equal colours, as a restored frame and its source. "unknown": not compared, because filters may have changed
it."""

STRONG = 10
"""One in this many patches counts as one of those with the most detail."""

FAINT = 8
"""Detail, in 8-bit code values, that is added to both sides of a comparison: that of faint noise is soon lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """Largest allowed differences between two thumbnails, in 8-bit code values."""

    mean: float
    """Mean difference of the patches in any one plane."""
    most: float
    """Greatest difference of one patch."""
    detail: tuple[float, float]
    """Least and greatest ratio of the detail after to that before."""
    strong: float = 0.0
    """Least ratio in the patches with the most detail before, where edges are and not noise alone."""


BOUNDS: dict[Likeness, Bounds] = {
    "exact": Bounds(mean=2.0, most=12.0, detail=(0.4, 1.6), strong=0.75),  # where the pixel format has changed
    "near": Bounds(mean=2.0, most=12.0, detail=(0.4, 1.6), strong=0.75),
    "fair": Bounds(mean=4.0, most=255.0, detail=(0.0, 1.6), strong=0.62),
    "coarse": Bounds(mean=10.0, most=255.0, detail=(0.0, 1.6)),
    "rough": Bounds(mean=16.0, most=255.0, detail=(0.0, 2.0)),
    "restored": Bounds(mean=16.0, most=255.0, detail=(0.0, math.inf)),
}
"""Measured with x264 and x265 at CRF 16 on thirteen real clips, patterns, noise, grain and darkness: mean below 1.1,
most below 5, detail 0.46 to 1.03, strong at least 0.81. On the same at the lowest quality of "fair" (CRF 32, with AV1
40, MPEG q 15): mean up to 2.4, strong 0.67; of "coarse" (CRF 40, 63, q 31): mean 5.7, and 8.0 for white noise. Single
patches are not bounded: one may be off by 87 where something small moves fast (AV1 at preset 12). A box blur of 7x7 or
5x5 pixels is found at "near" and "fair" but where hardly any detail is to lose: in two very soft clips and in darkness;
of 3x3, in a third of the films at "near". A hue of 60 degrees has a mean of at least 4.9, a crop of 8 pixels one of
5.3, grey 4.4, inversion 82. Below "fair" a blur is not told from the loss of quality that was asked for."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One frame."""

    means: NDArray[np.uint8]
    """(planes, rows, columns): mean of each patch, in code values of 8 bits."""
    detail: NDArray[np.uint8]
    """(rows, columns): mean difference between neighbours of the first plane, each the mean of 2x2 samples, in code
    values of 8 bits. Coding at low quality loses the finest detail, and a blur this too."""
    hash: bytes
    """Hash of all samples; empty without one."""


def thumbnail(planes: Planes, *, depth: int, number: int, scale: int = 1) -> Thumbnail:
    """Sample a frame.

    Args:
        planes: (H, W) each, 8 or 16 bit unsigned; the first has the size of the frame, others that or a part of it.
        depth: Bits of a sample.
        number: Of the frame, which decides where the patches lie.
        scale: The frame is this much larger than the one that it is to be compared with; patches grow alike.
    """
    height, width = planes[0].shape
    rows, down = _places(height // scale, ROWS, number * 7 + 3)
    columns, across = _places(width // scale, COLUMNS, number)
    means = []
    detail = np.zeros((len(rows), len(columns)))
    for place, plane in enumerate(planes):
        ratios = round(height / plane.shape[0]), round(width / plane.shape[1])
        y = _samples(rows * scale, down * scale, ratios[0], plane.shape[0])
        x = _samples(columns * scale, across * scale, ratios[1], plane.shape[1])
        patches = plane[np.ix_(y.ravel(), x.ravel())].astype(np.float32).reshape(*y.shape, *x.shape)
        patches /= 1 << (depth - 8)
        means.append(patches.mean(axis=(1, 3)))
        if place == 0:
            for axis in (1, 3):
                if patches.shape[axis] > 3:
                    patches = _halved(patches, axis)
            for axis in (1, 3):
                if patches.shape[axis] > 1:
                    detail += np.abs(np.diff(patches, axis=axis)).mean(axis=(1, 3))
    return Thumbnail(_rounded(np.stack(means)), _rounded(detail), b"")


def difference(before: Thumbnail, after: Thumbnail, bounds: Bounds) -> str | None:
    """Describe a difference beyond the bounds between two thumbnails; None if there is none.

    Planes that only one of them has (a grey picture coded in colour) are left out.
    """
    count = min(len(before.means), len(after.means))
    off = np.abs(before.means[:count].astype(int) - after.means[:count].astype(int))
    mean, most = float(off.mean(axis=(1, 2)).max()), int(off.max())
    if mean > bounds.mean or most > bounds.most:
        return (
            f"colours within {bounds.mean:g} of 255 on average and {bounds.most:g} anywhere, got {mean:.1f} and {most}"
        )
    ratio = (float(after.detail.mean()) + 1) / (float(before.detail.mean()) + 1)
    low, high = bounds.detail
    if not low <= ratio <= high:
        return f"detail of {low:g} to {high:g} times as much, got {ratio:.2f}"
    most_detailed = np.argsort(before.detail, axis=None)[-max(1, before.detail.size // STRONG) :]
    sharp, found = (float(each.detail.ravel()[most_detailed].mean()) + FAINT for each in (before, after))
    if found / sharp < bounds.strong:
        return f"at least {bounds.strong:g} times the detail of the sharpest parts, got {found / sharp:.2f}"
    return None


class ThumbnailWriter:
    """A file of the thumbnails of frames, in order.

    Args:
        path: The file; replaced if it exists.
        size: Width and height of the frames.
        pixel_format: FFmpeg's name, of a planar format of 8 to 16 bits.
        hashed: Whether the samples are hashed too.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], pixel_format: str, hashed: bool) -> None:
        self.path = path
        self._layout = _Layout(VideoFormat(pixel_format, *size))
        self._hashed = hashed
        self._count = itertools.count()
        self._file = path.open("wb")
        self._file.write(json.dumps({"size": size, "format": pixel_format, "hashed": hashed}).encode() + b"\n")

    def close(self) -> None:
        """Write what is left, with all of it on the disk."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def add(self, samples: bytes) -> None:
        """Write the thumbnail of the next frame.

        Args:
            samples: Its planes one after the other, without padding.
        """
        made = thumbnail(self._layout.planes(samples), depth=self._layout.depth, number=next(self._count))
        self._file.write(_hash([samples]) if self._hashed else b"")
        self._file.write(made.means.tobytes() + made.detail.tobytes())


@dataclass(frozen=True, slots=True)
class Kept:
    """The thumbnail of a frame, with the data to compare another version of the frame."""

    thumbnail: Thumbnail
    """Of the frame."""
    number: int
    """Of the frame in its file, for `thumbnail`."""
    format: VideoFormat
    """Size and pixel format of the frame."""

    def difference(self, frame: VideoFrame, likeness: Likeness) -> str | None:
        """Describe a difference beyond the allowed ones between a frame and the thumbnail; None if there is none.

        Args:
            frame: Of the size of the first, a whole multiple, or any other, which costs more.
            likeness: How closely it must match, not "unknown".
        """
        same = frame.format.name == self.format.name
        if likeness == "exact" and self.thumbnail.hash and same:
            digest = _hash([np.ascontiguousarray(plane) for plane in frame_planes(frame)])
            return None if digest == self.thumbnail.hash else "the very samples that were encoded, got others"
        if likeness in ("exact", "near") and frame.format.is_rgb != self.format.is_rgb:
            likeness = "rough"  # colours are converted there and back
        if not is_plain(frame.format) or frame.format.is_rgb != self.format.is_rgb:
            frame = frame.reformat(format=self.format.name)
        depth = frame.format.components[0].bits
        scale = max(1, frame.width // self.format.width)
        if (frame.width, frame.height) != (scale * self.format.width, scale * self.format.height):
            frame, scale = frame.reformat(self.format.width, self.format.height), 1
        found = thumbnail(frame_planes(frame), depth=depth, number=self.number, scale=scale)
        verdict = difference(self.thumbnail, found, BOUNDS[likeness])
        if verdict is not None and frame.format.name.startswith("yuvj"):  # FFmpeg may have widened the range for it
            return difference(self.thumbnail, _narrowed(found), BOUNDS[likeness])
        return verdict


def read_thumbnails(paths: Sequence[Path]) -> Iterator[Kept]:
    """Yield the thumbnails of some files, one file after the other.

    Raises:
        IncompleteError: A file is missing, or is not one of thumbnails.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline())
                kind = VideoFormat(head["format"], *head["size"])
                layout = _Layout(kind)
                number = 0
                while record := file.read(layout.record(hashed=head["hashed"])):
                    yield Kept(layout.read(record, hashed=head["hashed"]), number, kind)
                    number += 1
        except UNREADABLE as error:
            raise IncompleteError(f"{path}: thumbnails of the encoded frames are needed, got {error}") from error


def count_thumbnails(path: Path) -> int | None:
    """Number of whole thumbnails in a file; None if it is not a file of thumbnails."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            size = _Layout(VideoFormat(head["format"], *head["size"])).record(hashed=head["hashed"])
            return (path.stat().st_size - file.tell()) // size
    except UNREADABLE:
        return None


def frame_planes(frame: VideoFrame) -> Planes:
    """Views of the planes of a frame of a planar format, in FFmpeg's order."""
    kind = np.dtype(np.uint8 if frame.format.components[0].bits == 8 else np.uint16)
    planes = []
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // kind.itemsize)
        planes.append(rows[: component.height, : component.width])
    return planes


class _Layout:
    """Memory layout of frames of a planar format, and file layout of their thumbnails."""

    def __init__(self, kind: VideoFormat) -> None:
        self.depth = kind.components[0].bits
        self._shapes = [(component.height, component.width) for component in kind.components]
        height, width = self._shapes[0]
        self._grid = len(_places(height, ROWS, 0)[0]), len(_places(width, COLUMNS, 0)[0])

    def planes(self, samples: bytes) -> Planes:
        """The planes in the samples of a frame."""
        kind = np.dtype(np.uint8 if self.depth == 8 else np.uint16)
        planes, start = [], 0
        for height, width in self._shapes:
            plane = np.frombuffer(samples, kind, height * width, start)
            planes.append(plane.reshape(height, width))
            start += plane.nbytes
        return planes

    def record(self, *, hashed: bool) -> int:
        """Bytes of one thumbnail."""
        return (len(self._shapes) + 1) * self._grid[0] * self._grid[1] + (HASH if hashed else 0)

    def read(self, record: bytes, *, hashed: bool) -> Thumbnail:
        """A thumbnail from its bytes."""
        start = HASH if hashed else 0
        values = np.frombuffer(record, np.uint8, offset=start).reshape(len(self._shapes) + 1, *self._grid)
        return Thumbnail(values[:-1], values[-1], record[:start])


def _places(length: int, count: int, number: int) -> tuple[NDArray[np.intp], int]:
    """Where patches begin along one side of a frame, and their length; even, so that they fit subsampled planes."""
    side = min(SIDE, length)
    count = max(1, min(count, length // side))
    cell = length // count
    shift = (number * 2654435761 >> 7) % (cell - side + 1) // 2 * 2  # Knuth's multiplicative hash
    return np.arange(count) * cell + shift, side


def _samples(begins: NDArray[np.intp], side: int, ratio: int, length: int) -> NDArray[np.intp]:
    """(patches, samples): where the samples of each patch lie in a plane that is smaller by a ratio."""
    places = begins[:, None] // ratio + np.arange(max(1, side // ratio))
    return np.minimum(places, length - 1)


def _narrowed(wide: Thumbnail) -> Thumbnail:
    """A thumbnail of full range as one of limited range."""
    means = wide.means.astype(np.float32)
    means[0] = 16 + means[0] * (219 / 255)
    means[1:] = 128 + (means[1:] - 128) * (224 / 255)
    return Thumbnail(_rounded(means), _rounded(wide.detail * (219 / 255)), wide.hash)


def _halved(patches: NDArray[Any], axis: int) -> NDArray[Any]:
    """Means of pairs of neighbours; an odd last one is left out."""
    even = patches.shape[axis] // 2 * 2
    first, second = (patches.take(range(start, even, 2), axis) for start in (0, 1))
    return (first + second) / 2


def _rounded(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _hash(pieces: Sequence[bytes | NDArray[Any]]) -> bytes:
    """A hash of samples; SHA-1, which processors compute in hardware, guards against faults and not against intent."""
    digest = hashlib.sha1(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()[:HASH]


def is_plain(kind: VideoFormat) -> bool:
    """Whether each component of a format has a plane of its own, of 8 to 16 bits in this machine's order."""
    return PLAIN.fullmatch(kind.name) is not None
