"""The source of a job: opened, checked, and the frames of it that are to be restored."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from vsfmanet.errors import ConfigError, DamagedError, SourceError
from vsfmanet.jobs.files import exposure_sidecar, remove_work, sweep
from vsfmanet.jobs.job import RestoreJob, parse_rate
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.record import Fingerprint, script_files, source_digits
from vsfmanet.media import clip as clips
from vsfmanet.media.clip import SourceClip
from vsfmanet.media.containers import PIPE, is_sequence
from vsfmanet.media.deinterlace import deinterlaced
from vsfmanet.media.pipe import receive
from vsfmanet.media.script import SUFFIX as SCRIPT
from vsfmanet.media.script import TICKS, is_script, open_node, open_script, restored_by
from vsfmanet.media.sequence import open_sequence
from vsfmanet.media.source import Source, check_unchanged, inspect
from vsfmanet.media.timeline import parse_time, time_code
from vsfmanet.settings import RestoreSettings

DEFAULT_RATE = "25"
"""Frames per second of pictures without --fps."""

RECEIVED = "stdin.nut"
"""Temporary file with the frames from stdin."""

PAST_END = 1
"""Seconds after the last frame that --end may name: sound may last longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A source with its frames."""

    source: Source
    """All but its frames."""
    clip: SourceClip
    """Its frames, all of them."""
    numbers: Sequence[int]
    """Number of each in the source: pictures have numbers of their own."""
    frames: range
    """Numbers of the frames to restore, in the clip."""
    fingerprint: Fingerprint
    """Of the file; of stdin, that of its frames."""
    reading: float
    """Seconds that one frame took to read."""


def open_source(job: RestoreJob, folder: Path, report: Report) -> Opened:
    """Open the source of a job, and find the frames that are to be restored.

    Args:
        job: The job.
        folder: For temporary files.
        report: Receives messages and progress.

    Raises:
        VsfmanetError: The source cannot be used.
    """
    report.phase("reading")
    began = time.monotonic()
    source, clip, numbers = _read(job, folder, report)
    reading = (time.monotonic() - began) / clip.node.num_frames
    fingerprint = _fingerprint(job, folder)
    for notice in clip.notices:
        report.warn(notice)
    if job.deinterlace:
        clip = replace(clip, node=deinterlaced(clip.node))
    frames = _range(job, source, clip)
    clip = replace(clip, aspect=clip.aspect_of(source, frames), aspects=())
    return Opened(source=source, clip=clip, numbers=numbers, frames=frames, fingerprint=fingerprint, reading=reading)


def check_same(job: RestoreJob, opened: Opened, folder: Path) -> None:
    """Check that the source is still what was opened.

    Raises:
        SourceError: A file of it has changed.
    """
    check_unchanged(opened.source)
    if (is_script(job.source) or is_sequence(job.source)) and _fingerprint(job, folder) != opened.fingerprint:
        raise SourceError(f"{job.source}: a file of the source changed during the job; run it again")


def _read(job: RestoreJob, folder: Path, report: Report) -> tuple[Source, SourceClip, Sequence[int]]:
    """Open a source.

    Returns:
        All but its frames, its frames, and their numbers in the source.

    Raises:
        VsfmanetError: It cannot be used.
    """
    if is_sequence(job.source):
        rate = parse_rate(job.fps or DEFAULT_RATE)
        source, clip, numbers = open_sequence(
            job.source, rate=rate, audio_from=job.audio_from, folder=folder, meters=report
        )
        _check_whole(job, clip.faults, report)
        if job.fps is None and not is_sequence(job.target) and clip.time_base == 1 / (rate * TICKS):
            report.warn(f"the pictures are taken as {DEFAULT_RATE} per second; --fps sets another rate")
        return source, clip, numbers
    if job.source == PIPE:
        source, clip = _pipe(job, folder, report)
    elif is_script(job.source):
        source, clip = _script(job, folder, report)
    else:
        source, clip = _file(job, report)
    return source, clip, range(clip.node.num_frames)


def _pipe(job: RestoreJob, folder: Path, report: Report) -> tuple[Source, SourceClip]:
    """Read stdin to its end, and open its frames.

    Raises:
        VsfmanetError: They cannot be used.
    """
    report.note(f"stdin is first kept in {folder}; it cannot be read twice, so that a job that is stopped begins anew")
    path = folder / RECEIVED
    with report.begin("reading stdin", 0) as progress:
        rate, aspect = receive(sys.stdin.buffer, path, progress.advance)
    clip = clips.open_clip(inspect(path), threads=0, interlaced=job.deinterlace, meters=report)
    node = clip.node.std.AssumeFPS(fpsnum=rate.numerator, fpsden=rate.denominator)
    node = node.std.SetFrameProps(_SARNum=aspect.numerator, _SARDen=aspect.denominator)
    return open_node(path, node, audio_from=job.audio_from, folder=folder, interlaced=job.deinterlace)


def _fingerprint(job: RestoreJob, folder: Path) -> Fingerprint:
    """Fingerprint of the source; of stdin, that of its frames."""
    if job.source == PIPE:
        return replace(Fingerprint.of(folder / RECEIVED), mtime_ns=0)
    return Fingerprint.of(job.source)


def forget(job: RestoreJob) -> None:
    """Delete finished ranges of what a refused source held before: nothing else would."""
    if not (is_sequence(job.source) or job.source.is_file()):  # a pipe would wait for ever
        return
    with suppress(OSError):
        digits = source_digits(job.source, Fingerprint.of(job.source))
        if not sweep(job.output):
            remove_work(job.output, replaced=digits)


def _file(job: RestoreJob, report: Report) -> tuple[Source, SourceClip]:
    """Inspect and open a video file.

    Raises:
        VsfmanetError: It cannot be used.
    """
    if job.audio_from is not None:
        raise ConfigError(
            f"--audio-from is for a script ({SCRIPT}), pictures or stdin, got {job.source}; its own sound is copied"
        )
    source = inspect(job.source)
    _check_whole(job, source.faults, report)
    report.phase("decoding")
    threads = 0 if job.on_damage == "stop" else 1
    clip = clips.open_clip(source, threads=threads, interlaced=job.deinterlace, parts=True, meters=report)
    _check_whole(job, clip.faults, report)
    if job.on_damage == "as-is":
        step = 1 / (source.rate * clip.time_base)
        evenly = tuple(clip.timestamps[0] + round(n * step) for n in range(len(clip.timestamps)))
        clip = replace(clip, timestamps=evenly, anchors=clip.anchors[:1])
    return source, clip


def _script(job: RestoreJob, folder: Path, report: Report) -> tuple[Source, SourceClip]:
    """Run a script and open its clip.

    Raises:
        VsfmanetError: It cannot be used.
    """
    if not job.source.is_file():
        raise SourceError(f"{job.source}: the script cannot be found; check the path")
    source, clip = open_script(job.source, audio_from=job.audio_from, folder=folder, interlaced=job.deinterlace)
    _check_whole(job, source.faults, report)
    named = ", ".join(path.name for path in script_files(job.source)) or "none"
    report.note(
        f"files that the script names, whose hash the record has: {named}. If it depends on anything else, such as the "
        "time, another run or a continued one may differ"
    )
    return source, clip


def is_restored(job: RestoreJob, clip: SourceClip, report: Report) -> bool:
    """Whether a script has restored its frames; warns, because the options of the network are not used then.

    Raises:
        ConfigError: It has, and another size is asked for.
    """
    model = restored_by(clip.node) if is_script(job.source) else None
    if model is None:
        return False
    if job.settings.resizes:
        raise ConfigError(f"{job.source}: the script restores by itself; set the size in it, not by an option")
    report.warn(f"the script restores its frames by itself, with {model}: they are encoded as they are")
    return True


def settings_for(job: RestoreJob, source: Source, report: Report) -> RestoreSettings:
    """Settings of the filter, with the source and the exposures beside it."""
    is_film = not (is_script(job.source) or is_sequence(job.source) or job.source == PIPE)
    settings = replace(job.settings, source_path=source.path if is_film else None)
    sidecar = exposure_sidecar(job.source) if settings.exposure == "auto" else None
    if sidecar is None:
        return settings
    report.note(f"exposures from {sidecar}")
    return replace(settings, exposure=str(sidecar))


def _check_whole(job: RestoreJob, faults: Sequence[str], report: Report) -> None:
    """Refuse a damaged source, or warn if the user wants the rest of it.

    Raises:
        DamagedError: The source is damaged, and --on-damage is "stop".
    """
    if not faults:
        return
    text = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    if job.on_damage == "stop":
        raise DamagedError(
            f"{job.source}: the file is damaged: {text}. Copy it again or repair it; --on-damage salvage "
            "restores the frames that are there, at their own times"
        )
    report.warn(f"the source is damaged: {text}; the frames that decode are restored")


def _range(job: RestoreJob, source: Source, clip: SourceClip) -> range:
    """Numbers of the frames to restore.

    Raises:
        ConfigError: The source does not have them.
    """
    count = clip.node.num_frames
    begin = min(source.start, clip.timestamps[0] * clip.time_base)
    length = clip.timestamps[-1] * clip.time_base - begin

    def number(place: int | str) -> int:
        if isinstance(place, int):
            return place
        time = parse_time(place)
        return count + 1 if time > length + PAST_END else clip.frame_at(begin + time)

    frames = range(number(job.start), count if job.end is None else number(job.end))
    if not frames or frames.stop > count:
        raise ConfigError(
            f"{job.source}: --start and --end must lie within its {count} frames ({time_code(round(length, 3))}) and "
            f"have a frame between them, got {job.start} to {'the end' if job.end is None else job.end}; leave --end "
            "out for the last frame"
        )
    return frames
