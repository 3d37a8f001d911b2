"""A running FFmpeg that is fed from Python, and killed unless all has come.

Frames travel as raw video in NUT, which carries a timestamp for each. FFmpeg reads the source file beside it and copies
sound, subtitles and the rest.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import av

from vsfmanet.errors import OutputError
from vsfmanet.media.ffmpeg import Run, kill
from vsfmanet.media.film import Film
from vsfmanet.media.thumbnails import ThumbnailWriter

Launch = Callable[[list[str]], subprocess.Popen[bytes]]
"""Starts a command line in a process group of its own, with pipes for stdin and stderr."""

LOG_BYTES = 65536
"""Bytes kept of FFmpeg's log, so that it can fill neither pipe nor memory."""


class Feed:
    """A running FFmpeg. If its context is left without `finish`, it is killed, and cannot complete a partial file.

    Args:
        run: Program, arguments and files.
        film: Specification of the output, for messages.
        launch: Starts its command line.
    """

    def __init__(self, run: Run, film: Film, *, launch: Launch) -> None:
        self.written = 0
        self._film = film
        self._log = b""
        self._process = launch(run.line)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill(self._process)
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            with suppress(OSError):  # closing flushes what nobody reads any more
                _opened(pipe).close()

    def send(self, data: bytes) -> None:
        """Send a piece of its input.

        Raises:
            OutputError: FFmpeg has stopped reading.
        """
        try:
            pipe = _opened(self._process.stdin)
            pipe.write(data)
            pipe.flush()
        except OSError as error:
            raise self._failure() from error

    def finish(self) -> None:
        """Close FFmpeg's input, and wait until it has completed the file.

        Raises:
            OutputError: FFmpeg failed.
        """
        with suppress(OSError):
            _opened(self._process.stdin).close()
        if self._process.wait() != 0:
            raise self._failure()

    def _drain(self) -> None:
        """Read FFmpeg's log, and keep the end of it."""
        pipe = _opened(self._process.stderr)
        while chunk := pipe.read(1024):
            self._log = (self._log + chunk)[-LOG_BYTES:]

    def _failure(self) -> OutputError:
        """Build an error with the last lines of FFmpeg's log."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)  # it has closed its end, and is about to go
        code = kill(self._process)
        self._reader.join()
        said = self._log.decode(errors="replace").splitlines()[-20:] or ["nothing"]
        return OutputError(
            f"{self._film.source.path}: the encoder must take all frames, but it ended after {self.written} "
            f"of {len(self._film.timestamps)} with exit code {code}; check --encoder-args and the disk. FFmpeg's "
            "last lines:\n" + "\n".join(f"  {line}" for line in said)
        )


class Encoder(Feed):
    """An FFmpeg that is fed with frames.

    Args:
        run: As for `Feed`.
        film: As for `Feed`.
        launch: As for `Feed`.
        thumbnails: File for the thumbnails of the frames, with which the output is compared; None for none.
    """

    def __init__(
        self,
        run: Run,
        film: Film,
        *,
        launch: Launch,
        thumbnails: Path | None = None,
    ) -> None:
        super().__init__(run, film, launch=launch)
        self._thumbnails = thumbnails and ThumbnailWriter(
            thumbnails,
            size=film.size,
            pixel_format=film.pixel_format,
            hashed=film.likeness == "exact",
        )
        self._nut = NutStream(size=film.size, pixel_format=film.pixel_format, rate=film.rate, time_base=film.time_base)

    def write(self, samples: bytes) -> None:
        """Send the next frame.

        Args:
            samples: As returned by `frame_bytes`.

        Raises:
            OutputError: FFmpeg has stopped reading.
        """
        self.send(self._nut.frame(samples, self._film.timestamps[self.written] - self._film.timestamps[0]))
        self.written += 1
        if self._thumbnails:
            self._thumbnails.add(samples)

    def finish(self) -> None:
        """As for `Feed`."""
        self.send(self._nut.end())
        super().finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._thumbnails:
            self._thumbnails.close()
            if kind is not None:
                self._thumbnails.path.unlink(missing_ok=True)


class NutStream:
    """A NUT stream of raw frames, written piece by piece."""

    def __init__(self, *, size: tuple[int, int], pixel_format: str, rate: Fraction, time_base: Fraction) -> None:
        self._sink = Sink()
        self._time_base = time_base
        self._container = av.open(self._sink, "w", format="nut")
        self._stream = self._container.add_stream(
            "rawvideo",
            rate=rate.limit_denominator(100_000),
            width=size[0],
            height=size[1],
            pix_fmt=pixel_format,
            time_base=time_base,
        )

    def frame(self, samples: bytes, timestamp: int) -> bytes:
        """The next piece of the stream: one frame, and the header before the first."""
        packet = av.Packet(samples)
        packet.stream = self._stream
        packet.time_base = self._time_base
        packet.pts = packet.dts = timestamp
        packet.is_keyframe = True
        self._container.mux(packet)
        return self._sink.take()

    def end(self) -> bytes:
        """The last piece of the stream."""
        self._container.close()
        return self._sink.take()


class Sink:
    """A file object for PyAV that keeps what is written; errors of FFmpeg's pipe can then be raised in Python."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Copy a piece; PyAV reuses the memory."""
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return all pieces since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    """Narrow the type of a pipe that `launch` has opened."""
    assert pipe is not None
    return pipe
