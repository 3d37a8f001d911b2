"""Streams to copy: whether a container can hold them, and subtitles that begin before the output."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from vsfmanet.errors import ConfigError, DamagedError, OutputError
from vsfmanet.media.commands import PATIENCE, early_run
from vsfmanet.media.containers import CONTAINERS
from vsfmanet.media.feed import Feed, Launch, NutStream
from vsfmanet.media.ffmpeg import Ffmpeg
from vsfmanet.media.film import Film
from vsfmanet.media.source import Source, Stream


def refused_streams(ffmpeg: Ffmpeg, source: Source, streams: Sequence[Stream], suffix: str) -> list[Stream]:
    """Find the streams of a source that an FFmpeg cannot copy to a container, by copying them beside one small frame.

    Args:
        ffmpeg: Program that will copy them.
        source: File with the streams.
        streams: Streams to try.
        suffix: Suffix of the container.

    Raises:
        OutputError: FFmpeg cannot even write the frame.
    """
    if not streams or not _failure(ffmpeg, source, streams, suffix):
        return []
    if failure := _failure(ffmpeg, source, [], suffix):
        raise OutputError(f"a trial file must be written, but FFmpeg reports: {failure}; check the temporary disk")
    return [stream for stream in streams if _failure(ffmpeg, source, [stream], suffix)] or list(streams)


def broken_streams(
    ffmpeg: Ffmpeg, source: Source, streams: Sequence[Stream], suffix: str, *, launch: Launch
) -> tuple[list[Stream], str]:
    """Find the streams that an FFmpeg cannot copy from end to end: at some damaged packets it stops, after hours.

    Args:
        ffmpeg: Program that will copy them.
        source: File with the streams.
        streams: Streams to try.
        suffix: Suffix of the container.
        launch: As for `Feed`.

    Returns:
        The streams, and FFmpeg's error; none and "" if all can be copied.

    Raises:
        OutputError: FFmpeg was killed.
    """
    said = _failure(ffmpeg, source, streams, suffix, launch=launch) if streams else ""
    if not said:
        return [], ""
    broken = [stream for stream in streams if _failure(ffmpeg, source, [stream], suffix, launch=launch)]
    return broken or list(streams), said


def _failure(
    ffmpeg: Ffmpeg, source: Source, streams: Sequence[Stream], suffix: str, *, launch: Launch | None = None
) -> str:
    """FFmpeg's error when it copies some streams to a container; empty if it succeeds.

    Without `launch` it copies the beginning to a file; with it, all of them to the null device.
    """
    small = NutStream(size=(64, 64), pixel_format="yuv420p", rate=Fraction(25), time_base=Fraction(1, 25))
    frame = small.frame(bytes(64 * 64 * 3 // 2), 0) + small.end()
    line = [str(ffmpeg.path), "-hide_banner", "-nostats", "-y", "-loglevel", "error", "-f", "nut", "-i", "pipe:0"]
    line += ["-t", "1"] if launch is None else []
    line += ["-protocol_whitelist", "file", "-i", f"file:{source.path}", "-map", "0:v:0", "-c", "copy"]
    for stream in streams:
        covers = stream.kind == "cover" and suffix == ".mkv"  # they become attachments, which all can be
        line += [] if covers else ["-map", f"1:{stream.index}"]
    line += ["-c:v:0", "mpeg4", *PATIENCE, *(["-shortest"] if launch is None else []), "-f", CONTAINERS[suffix]]
    if launch is not None:
        with launch([*line, f"file:{os.devnull}"]) as process:
            said = process.communicate(frame)[1]
        if process.returncode < 0:
            raise OutputError(f"FFmpeg must read {source.path} to its end, but was killed ({process.returncode})")
        return _first_words(said, process.returncode)
    with tempfile.TemporaryDirectory(prefix="vsfmanet-") as folder:
        run = subprocess.run([*line, f"file:{folder}/trial{suffix}"], input=frame, capture_output=True, check=False)
    return _first_words(run.stderr, run.returncode)


def _first_words(said: bytes, code: int) -> str:
    """The first line of a program that has failed, without its origin; empty if it has not failed."""
    lines = said.decode(errors="replace").strip().splitlines()
    return "" if code == 0 else re.sub(r"^\[[^]]*\] *", "", lines[0]) if lines else f"exit code {code}"


def check_copying(ffmpeg: Ffmpeg, source: Source, copied: Sequence[Stream], suffix: str, *, launch: Launch) -> None:
    """Refuse a container that cannot hold what is to be copied, and streams that cannot be copied to their end.

    Args:
        ffmpeg: Program.
        source: Source of the streams.
        copied: The streams.
        suffix: Suffix of the output, such as .mkv.
        launch: As for `Feed`.

    Raises:
        ConfigError: The container cannot; the message names the streams, and the containers that can.
        DamagedError: The streams cannot.
    """
    broken, said = broken_streams(ffmpeg, source, copied, suffix, launch=launch)
    if not broken:
        return
    leave_out = "with --no-audio, --no-subtitles or --no-attachments"
    refused = refused_streams(ffmpeg, source, copied, suffix)
    if not refused:
        raise DamagedError(
            f"{source.path}: all packets must be copied, but FFmpeg stops at {', '.join(map(str, broken))} ({said}); "
            f"repair the file, or leave them out {leave_out}"
        )
    others = [other for other in CONTAINERS if not refused_streams(ffmpeg, source, copied, other)]
    instead = f"write to {' or '.join(others)}, or " if others else ""
    raise ConfigError(
        f"{source.path}: {suffix} must hold what is copied, but cannot hold {', '.join(map(str, refused))}; "
        f"{instead}leave out what it cannot hold {leave_out}"
    )


def with_early_subtitles(film: Film, ffmpeg: Ffmpeg, folder: Path, *, launch: Launch) -> Film:
    """Keep the subtitles that are shown already when the output begins.

    FFmpeg drops every packet that begins before a cut. Those streams are therefore copied to a separate file first,
    where such packets begin at the cut.

    Args:
        film: Specification of the output.
        ffmpeg: Program.
        folder: Folder for the file.
        launch: As for `Feed`.

    Returns:
        The film, with these streams taken from the new file.

    Raises:
        OutputError: The file cannot be written.
    """
    start = film.start
    early = [
        stream
        for stream in film.copied
        if start is not None and any(begin < start < end for begin, end in stream.spans)
    ]
    if not early:
        return film
    path = folder / f"early{film.suffix}"
    with Feed(early_run(film, ffmpeg, path, early), film, launch=launch) as feed:
        feed.finish()
    moved = {stream.index: replace(stream, path=path, index=n) for n, stream in enumerate(early)}
    return replace(film, copied=tuple(moved.get(stream.index, stream) for stream in film.copied))
