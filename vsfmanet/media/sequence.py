"""Numbered pictures, PNG or TIFF: as a source, and as an output whose pictures are decoded and compared."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import vapoursynth as vs
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vsfmanet.atomic import write_new, write_whole
from vsfmanet.errors import FormatError, IncompleteError, SourceError
from vsfmanet.media.clip import SourceClip, frame_bytes, pixel_format
from vsfmanet.media.containers import PICTURES, numbered, pictures
from vsfmanet.media.meter import Meters
from vsfmanet.media.script import open_node
from vsfmanet.media.source import Source
from vsfmanet.media.thumbnails import Planes, frame_planes

STRICT = {"err_detect": "crccheck+explode"}
"""Options with which the decoder of PNG refuses wrong checksums. TIFF has none, and its decoder would then refuse tags
that it does not know."""

GRAY = {"gray": "gray", "ya8": "gray", "monob": "gray", "monow": "gray", "gray16": "gray16le", "ya16": "gray16le"}
"""Pixel formats without colour and without the byte order, with the planar one that holds them."""

RGB = {
    **dict.fromkeys(("rgb24", "rgba", "pal8", "gbrp", "gbrap"), "gbrp"),
    **dict.fromkeys(("rgb48", "rgba64"), "gbrp16le"),
}
"""The same for pixel formats with colour."""

WRITTEN = {
    (".png", "gray16le"): "gray16be",
    (".png", "gbrp16le"): "rgb48be",
    (".tif", "gbrp16le"): "rgb48le",
    (".tiff", "gbrp16le"): "rgb48le",
    **{(suffix, "gbrp"): "rgb24" for suffix in PICTURES},
}
"""Pixel formats in files, where they are not that of the frame."""

SAMPLES = "samples.txt"
"""File with a hash of the samples of each finished picture."""

UNFINISHED = ".unfinished.tmp"
"""Name of a picture that is being written."""

AT_ONCE = 4
"""Pictures that are compressed at one time, at most."""


def open_sequence(
    pattern: Path, *, rate: Fraction, audio_from: Path | None, folder: Path, meters: Meters
) -> tuple[Source, SourceClip, tuple[int, ...]]:
    """Decode numbered pictures once to check them, and open them as a clip.

    Args:
        pattern: Their name, as `frames/%06d.png`. The lowest number is the first frame.
        rate: Frames per second.
        audio_from: As for `open_script`.
        folder: As for `open_script`.
        meters: Show progress.

    Returns:
        As `open_script`, with the number of each picture. Missing and damaged pictures are among the faults; the others
        have their own times.

    Raises:
        SourceError: There are no pictures, or none that decodes.
        FormatError: Their size or format differs, or is none that can be restored.
    """
    try:
        there = pictures(pattern)
    except OSError as error:
        raise SourceError(f"{pattern}: the folder of the pictures must be readable ({error.strerror})") from error
    if not there:
        raise SourceError(f"{pattern}: numbered pictures are needed, got none of this name; check path and digits")
    absent = [n for n in range(min(there), max(there)) if n not in there]
    faults = [f"{_span(pattern, gap)} missing" for gap in _gaps(absent)]
    good: dict[int, Path] = {}
    first: VideoFrame | None = None
    notices: dict[str, None] = {}
    with meters.begin("decoding", len(there)) as meter:
        for number, path in there.items():
            try:
                frame = decode_picture(path)
            except (av.FFmpegError, OSError, ValueError) as error:
                faults.append(f"{path.name} cannot be decoded ({error})")
                continue
            first = first or frame
            _check_like(path, frame, first)
            if any(part.is_alpha for part in frame.format.components):
                notices["the transparency channel is not carried over"] = None
            good[number] = path
            meter.advance()
    if first is None:
        raise SourceError(f"{pattern}: pictures that decode are needed, got {'; '.join(faults[:3])}; copy them again")
    node = _clip(list(good.values()), first, rate)
    begin = min(there)
    source, clip = open_node(
        pattern,
        node,
        audio_from=audio_from,
        folder=folder,
        interlaced=False,
        places=[number - begin for number in good],
        notices=tuple(notices),
        faults=tuple(faults),
    )
    return source, clip, tuple(good)


def decode_picture(path: Path) -> VideoFrame:
    """Decode a picture, all of whose bytes must be right.

    Raises:
        FFmpegError, OSError, ValueError: It cannot be read, or is damaged.
    """
    context = av.CodecContext.create(PICTURES[path.suffix.lower()], "r")
    assert isinstance(context, VideoCodecContext)
    if context.name == "png":
        context.options = STRICT
    packet = av.Packet(path.read_bytes())
    frames = [*context.decode(packet), *context.decode(None)]
    if not frames:
        raise ValueError("no picture in it")
    return frames[0]


def planar(frame: VideoFrame) -> VideoFrame:
    """A picture in the planar format that holds all of it but transparency.

    Raises:
        ValueError: There is none.
    """
    held = _held(frame)
    if held is None:
        raise ValueError(f"samples of {frame.format.name}")
    return frame if frame.format.name == held else frame.reformat(format=held)


class PictureWriter:
    """Writes numbered pictures, each whole or not at all, so that a killed job goes on after the last one.

    Args:
        pattern: Name of the pictures.
        work: Folder of the job. The pictures are in its folder `pictures`.
    """

    def __init__(self, pattern: Path, work: Path) -> None:
        self.folder = work / "pictures"
        self._pattern = self.folder / pattern.name
        self._samples = work / SAMPLES
        self.folder.mkdir(exist_ok=True)
        self._hashes = self._finished()

    def done(self, numbers: Sequence[int]) -> int:
        """How many of some pictures, from the first on, are finished."""
        return next((count for count, number in enumerate(numbers) if number not in self._hashes), len(numbers))

    def write(self, frames: Iterable[vs.VideoFrame], numbers: Iterable[int], advance: Callable[[], None]) -> None:
        """Write pictures; several are compressed at a time, and named in order.

        Args:
            frames: RGB or Gray, 8 or 16 bit.
            numbers: Of the pictures.
            advance: Called after each.

        Raises:
            OSError: The disk does not take one.
        """
        suffix, temporary = self._pattern.suffix.lower(), self.folder / UNFINISHED
        waiting: deque[tuple[int, str, Future[bytes]]] = deque()
        with self._samples.open("a", encoding="ascii") as samples, ThreadPoolExecutor(_threads()) as pool:

            def name_first() -> None:
                number, digest, coded = waiting.popleft()
                data = coded.result()
                samples.write(f"{number} {digest}\n")
                samples.flush()
                os.fsync(samples.fileno())
                write_new(temporary, data)
                temporary.replace(numbered(self._pattern, number))
                self._hashes[number] = digest
                advance()

            for number, frame in zip(numbers, frames, strict=False):
                made = np.stack([np.asarray(frame[plane]) for plane in range(frame.format.num_planes)], axis=-1)
                format_name = pixel_format(frame.format)
                digest = hashlib.sha1(frame_bytes(frame), usedforsecurity=False).hexdigest()
                waiting.append((number, digest, pool.submit(encode_picture, made, format_name, suffix)))
                if len(waiting) >= _threads():
                    name_first()
            while waiting:
                name_first()

    def verify(self, numbers: Sequence[int], size: tuple[int, int], advance: Callable[[], None]) -> None:
        """Decode all pictures, and compare every sample with the frame that was written.

        Args:
            numbers: Of all pictures that must be there; no others may.
            size: Width and height of each.
            advance: Called after each.

        Raises:
            IncompleteError: A picture is missing, damaged or another.
        """
        there = {path.name for path in self.folder.iterdir()}
        needed = {numbered(self._pattern, number).name for number in numbers}
        if there != needed:
            odd = sorted(there ^ needed)[:3]
            raise IncompleteError(f"{self.folder}: the pictures that were made are needed, and no others; see {odd}")
        for number in numbers:
            path = numbered(self._pattern, number)
            try:
                frame = planar(decode_picture(path))
            except (av.FFmpegError, OSError, ValueError) as error:
                raise IncompleteError(f"{path.name}: a picture that decodes is needed, got {error}") from error
            if (frame.width, frame.height) != size:
                raise IncompleteError(
                    f"{path.name}: {size[0]}x{size[1]} pixels are needed, got {frame.width}x{frame.height}"
                )
            if _hash(frame_planes(frame)) != self._hashes[number]:
                raise IncompleteError(f"{path.name}: the very samples that were written are needed, got others")
            advance()

    def _finished(self) -> dict[int, str]:
        """Hashes of the pictures that are there; what is unfinished is deleted."""
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        try:
            lines = self._samples.read_text(encoding="ascii").split("\n")[:-1]  # a kill can cut the last one
            noted = {int(number): digest for number, digest in (line.split(" ") for line in lines)}
        except (OSError, ValueError):
            noted = {}
        found = {number: digest for number, digest in noted.items() if numbered(self._pattern, number).is_file()}
        write_whole(self._samples, "".join(f"{number} {digest}\n" for number, digest in found.items()))
        return found


def encode_picture(samples: NDArray[Any], format_name: str, suffix: str) -> bytes:
    """Encode a picture.

    Args:
        samples: (H, W, 3) RGB or (H, W, 1), 8 or 16 bit.
        format_name: FFmpeg's name of the planar format.
        suffix: Of the file.
    """
    written = WRITTEN.get((suffix, format_name), format_name)
    rows = samples[..., 0] if samples.shape[-1] == 1 else samples
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(rows), format=written)
    context = av.CodecContext.create(PICTURES[suffix], "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = frame.width, frame.height, written
    context.time_base = Fraction(1, 25)
    return b"".join(bytes(packet) for packet in (*context.encode(frame), *context.encode(None)))


def _threads() -> int:
    return min(AT_ONCE, os.cpu_count() or 1)


def _check_like(path: Path, frame: VideoFrame, first: VideoFrame) -> None:
    """Check that a picture can be restored, and is like the first one.

    Raises:
        FormatError: It is not.
    """
    if _held(frame) is None:
        raise FormatError(
            f"{path}: gray or RGB of 8 or 16 bit is needed, got {frame.format.name}; convert the pictures first"
        )
    if (frame.width, frame.height, frame.format.name) != (first.width, first.height, first.format.name):
        raise FormatError(
            f"{path}: one size and format throughout is needed, but this picture has {frame.width}x{frame.height} "
            f"{frame.format.name}, and the first {first.width}x{first.height} {first.format.name}; convert them first"
        )


def _held(frame: VideoFrame) -> str | None:
    """Planar format that holds all of a picture but transparency; None if there is none."""
    name = frame.format.name.removesuffix("le").removesuffix("be")
    return GRAY.get(name) or RGB.get(name)


def _clip(paths: Sequence[Path], first: VideoFrame, rate: Fraction) -> vs.VideoNode:
    """A clip that decodes a picture for each frame."""
    held = planar(first).format
    family = vs.GRAY if held.name.startswith("gray") else vs.RGB
    kind = vs.core.query_video_format(family, vs.INTEGER, held.components[0].bits, 0, 0)
    blank = vs.core.std.BlankClip(
        width=first.width, height=first.height, format=kind.id, length=len(paths), fpsnum=rate.numerator,
        fpsden=rate.denominator, keep=True,
    )  # fmt: skip
    order = (1, 2, 0) if family == vs.RGB else (0,)

    def load(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        try:
            planes = frame_planes(planar(decode_picture(paths[n])))
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{paths[n]}: the picture must decode as before, got {error}; has it changed?") from error
        frame = f.copy()
        for plane, samples in zip(order, planes, strict=True):
            np.copyto(np.asarray(frame[plane]), samples)
        frame.props.update(_Range=1, _Matrix=int(vs.MATRIX_RGB if family == vs.RGB else vs.MATRIX_BT709))
        return frame

    return blank.std.ModifyFrame(blank, load)


def _gaps(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of numbers that follow each other."""
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        found = [number for _, number in run]
        yield found[0], found[-1]


def _span(pattern: Path, gap: tuple[int, int]) -> str:
    """A run of pictures, and the verb that follows."""
    first, last = (numbered(pattern, number).name for number in gap)
    return f"{first} is" if gap[0] == gap[1] else f"{first} to {last} are"


def _hash(planes: Planes) -> str:
    """Hash of the samples of a picture, as of `frame_bytes`."""
    digest = hashlib.sha1(usedforsecurity=False)
    for plane in planes:
        digest.update(np.ascontiguousarray(plane))
    return digest.hexdigest()
