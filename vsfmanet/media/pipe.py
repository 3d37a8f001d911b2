"""Frames through stdin and stdout, as YUV4MPEG2 (y4m), which vspipe and FFmpeg write and read.

What comes in is first written to a temporary file without loss: the network needs to know where the clip ends, and
frames are read more than once. y4m carries a constant rate, and neither colour tags nor sound.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsfmanet.errors import DamagedError, FormatError, OutputError, SourceError

FRAME = b"FRAME\n"
"""Beginning of a frame."""

LONGEST_HEADER = 4096
"""Bytes of a header, at most."""

LENGTH = re.compile(r"XLENGTH=(\d+)")
"""Number of frames, which vspipe writes into the header."""

ASPECT = re.compile(rb" A(\d+):(\d+)[ \n]")
"""Width over height of a sample in the header; 0:0 where it is unknown."""

CHROMA = {
    "gray": "mono",
    "yuv411p": "411",
    "yuv420p": "420jpeg",
    "yuv422p": "422",
    "yuv444p": "444",
    **{f"gray{bits}le": f"mono{bits}" for bits in (9, 10, 12, 16)},
    **{f"yuv{kind}p{bits}le": f"{kind}p{bits}" for kind in ("420", "422", "444") for bits in (9, 10, 12, 14, 16)},
}
"""Names of pixel formats in the header, by FFmpeg's."""

LOCATIONS = {1: "420mpeg2", 3: "420paldv"}
"""Names of 8 bit 4:2:0 by the place of the chroma, in FFmpeg's numbers."""


def receive(stream: BinaryIO, path: Path, advance: Callable[[], None]) -> tuple[Fraction, Fraction]:
    """Write a y4m stream to a file, coded without loss (FFV1).

    Args:
        stream: Read to its end.
        path: File to make.
        advance: Called after each frame.

    Returns:
        Frames per second, and width over height of a sample.

    Raises:
        SourceError: The stream is empty or is no y4m.
        DamagedError: It ends within a frame, or before the last frame that its header announces.
    """
    counted = _Counted(stream)
    try:
        with av.open(counted, "r", format="yuv4mpegpipe") as source:
            track = source.streams.video[0]
            guess = track.average_rate
            rate = Fraction(guess.numerator, guess.denominator) if guess else Fraction(25)
            count = _copy(source.decode(track), track, rate, path, advance)
            data = VideoFormat(track.codec_context.pix_fmt or "", track.width, track.height)
    except (av.FFmpegError, IndexError) as error:
        found = counted.header.decode("ascii", "replace") or "nothing"
        raise SourceError(
            f"stdin: y4m is needed, as vspipe -c y4m and ffmpeg -f yuv4mpegpipe write it, got {found[:60]!r} ({error})"
        ) from error
    header = counted.header
    left = (counted.total - len(header)) % (len(FRAME) + _bytes(data))
    announced = LENGTH.search(header.decode("ascii", "replace"))
    if left or (announced and int(announced[1]) != count):
        place = f"{'within' if left else 'after'} frame {count}" + (f" of {announced[1]}" if announced else "")
        raise DamagedError(
            f"stdin: all frames are needed, but the stream ends {place}; see what the program before the pipe says"
        )
    if not count:
        raise SourceError("stdin: frames are needed, got a header without any; see what the program before it says")
    named = ASPECT.search(header)
    return rate, Fraction(int(named[1]) or 1, int(named[2]) or 1) if named else Fraction(1)


class Y4mWriter:
    """Writes frames as y4m.

    Args:
        stream: Where to.
        size: Width and height of the frames.
        pixel_format: FFmpeg's name.
        rate: Frames per second.
        aspect: Width over height of a sample.
        frames: Number of frames, for the header.
        full_range: Whether the samples use all code values; None where that is unknown.
        chroma_location: In FFmpeg's numbers; None where it is unknown.

    Raises:
        FormatError: y4m has no such format.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        size: tuple[int, int],
        pixel_format: str,
        rate: Fraction,
        aspect: Fraction,
        frames: int,
        full_range: bool | None,
        chroma_location: int | None,
    ) -> None:
        if pixel_format not in CHROMA:
            raise FormatError(f"y4m takes {', '.join(CHROMA)}, got {pixel_format}; write a film instead")
        chroma = CHROMA[pixel_format]
        if pixel_format == "yuv420p":
            chroma = LOCATIONS.get(chroma_location or 0, chroma)
        header = (
            f"YUV4MPEG2 W{size[0]} H{size[1]} F{rate.numerator}:{rate.denominator} Ip "
            f"A{aspect.numerator}:{aspect.denominator} C{chroma}"
        )
        if full_range is not None:
            header += f" XCOLORRANGE={'FULL' if full_range else 'LIMITED'}"
        self.bytes = 0
        """Bytes written."""
        self._stream = stream
        self._digest = hashlib.sha256()
        self._put(f"{header} XLENGTH={frames}\n".encode())

    @property
    def sha256(self) -> str:
        """Of all bytes written."""
        return self._digest.hexdigest()

    def write(self, samples: bytes) -> None:
        """Write the next frame.

        Args:
            samples: As returned by `frame_bytes`.

        Raises:
            OutputError: Nobody reads any more.
        """
        self._put(FRAME + samples)

    def finish(self) -> None:
        """Have all bytes on their way.

        Raises:
            OutputError: Nobody reads any more.
        """
        self._put(b"")

    def _put(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()
        except (OSError, ValueError) as error:
            raise OutputError(
                f"stdout must take all frames, but the program behind the pipe has ended ({error}); see what it says"
            ) from error
        self.bytes += len(data)
        self._digest.update(data)


class _Counted:
    """A stream that counts its bytes, and keeps its header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.total = 0
        self.header = b""

    def read(self, size: int) -> bytes:
        """Read some bytes; fewer only at the end."""
        data = self._stream.read(size)
        self.total += len(data)
        if not self.header.endswith(b"\n") and len(self.header) < LONGEST_HEADER:
            line, end, _ = data.partition(b"\n")
            self.header += line + end
        return data


def _copy(
    frames: Iterable[VideoFrame], track: VideoStream, rate: Fraction, path: Path, advance: Callable[[], None]
) -> int:
    """Encode frames to a file; returns how many."""
    count = 0
    with av.open(str(path), "w", format="nut") as container:
        made = container.add_stream("ffv1", rate=rate, options={"level": "3", "slices": "4", "slicecrc": "1"})
        made.width, made.height, made.pix_fmt = track.width, track.height, track.codec_context.pix_fmt
        made.codec_context.time_base = 1 / rate
        for frame in frames:
            frame.pts, frame.time_base = count, 1 / rate
            try:
                container.mux(made.encode(frame))
            except OSError as error:
                raise OutputError(
                    f"{path}: the frames from stdin must be kept in a temporary file, but {error}; make room, or set "
                    "TMPDIR to a folder on another disk"
                ) from error
            count += 1
            advance()
        container.mux(made.encode(None))
    return count


def _bytes(kind: VideoFormat) -> int:
    """Bytes of a frame."""
    return sum(part.width * part.height * ((part.bits + 7) // 8) for part in kind.components)
