"""One file restored: inspect, film, try the encoder, process, verify, publish. A final name is a proof that all held.

Until then the result is a part file beside the target, and whatever goes wrong, nothing of it stays behind.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path

import vapoursynth as vs

from vsfmanet import __version__
from vsfmanet.atomic import MAX_NAME
from vsfmanet.errors import (
    BusyError,
    ConfigError,
    DamagedError,
    FormatError,
    IncompleteError,
    OutputError,
    SourceError,
)
from vsfmanet.jobs.files import exposure_sidecar, record_path, remove_work, settle, sweep, work_path
from vsfmanet.jobs.job import RestoreJob, parse_rate
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.ranges import TRIAL_FRAMES, Ranges, why_one_pass
from vsfmanet.jobs.record import (
    Fingerprint,
    Recipe,
    Record,
    content,
    find_done,
    job_key,
    read_record,
    script_files,
    source_digits,
    weights_sha256,
)
from vsfmanet.jobs.scratch import Scratch
from vsfmanet.manifest import file_sha256
from vsfmanet.media import clip as clips
from vsfmanet.media.clip import SourceClip, Tally
from vsfmanet.media.coding import choose_encoder, has_filters, has_option, output_bytes, sets_aspect
from vsfmanet.media.commands import whole_run
from vsfmanet.media.containers import CONTAINERS, PIPE, is_sequence
from vsfmanet.media.copying import broken_streams, refused_streams, with_early_subtitles
from vsfmanet.media.decode import trial_frame
from vsfmanet.media.deinterlace import deinterlaced
from vsfmanet.media.feed import Encoder
from vsfmanet.media.ffmpeg import Ffmpeg, find_ffmpeg, takes_hdr, working_presets
from vsfmanet.media.film import Film, cover_file
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import clock
from vsfmanet.media.pipe import Y4mWriter, receive
from vsfmanet.media.script import SUFFIX as SCRIPT
from vsfmanet.media.script import TICKS, is_script, open_node, open_script, restored_by
from vsfmanet.media.sequence import PictureWriter, open_sequence
from vsfmanet.media.source import KEPT, Source, Stream, check_unchanged, inspect, is_kept, save_packets
from vsfmanet.media.thumbnails import SUFFIX, Likeness, read_thumbnails
from vsfmanet.media.timeline import parse_time, time_code
from vsfmanet.media.verify import Needed, check_trial, verify
from vsfmanet.settings import Resolved, RestoreSettings
from vsfmanet.sizes import sample_stretch, with_model

SAME_PIXELS = {"device", "device_index", "backend", "provider", "tile", "segment", "source_path"}
"""Fields of `RestoreSettings` without effect on the result: where and how it is computed."""

SAME_OUTPUT = {"source", "target", "settings", "overwrite", "range_frames", "reserve", "ffmpeg"}
"""Fields of `RestoreJob` that do not make it another job; the record names the FFmpeg that was used."""

TRIALS = 2
"""How often the encoder is tried for ranges: one that a signal ends, as when memory is short, decides nothing."""

DEFAULT_RATE = "25"
"""Frames per second of pictures without --fps."""

RECEIVED = "stdin.nut"
"""Temporary file with the frames from stdin."""

THUMBNAILS = f"frames{SUFFIX}"
"""File with the thumbnails of the frames, if the output is made in one pass."""

PICTURE_SHARE = 0.6
"""Size of a picture over that of the frame in memory."""

ROOM = 1.2
"""Free space that a job needs, over its expected size."""

PAST_END = 1
"""Seconds after the last frame that --end may name: sound may last longer."""

TAKING_PART = ("vapoursynth", "vapoursynth-bestsource", "torch", "av")
"""Packages whose versions are recorded."""


def recipe(job: RestoreJob) -> Recipe:
    """What decides the result of a job, apart from its source: all fields but `SAME_PIXELS` and `SAME_OUTPUT`.

    Raises:
        WeightsError: There is no such model.
    """
    settings = {name: value for name, value in job.settings.to_json().items() if name not in SAME_PIXELS | {"model"}}
    own = {name: value for name, value in job.to_json().items() if name not in SAME_OUTPUT}
    exposure = job.settings.exposure
    if isinstance(exposure, str | os.PathLike) and Path(exposure).is_file():
        own["exposure_sha256"] = file_sha256(Path(exposure))
    if is_sequence(job.target):
        own["pictures"] = job.target.name
    if job.audio_from is not None and job.audio_from.is_file():
        own["audio_from"] = asdict(Fingerprint.of(job.audio_from))
    return Recipe(
        model=job.settings.named_model,
        weights_sha256=weights_sha256(job.settings.named_model),
        settings=settings | own,
        version=__version__,
    )


def resolved(settings: RestoreSettings, weights: str) -> Resolved:
    """What will compute the pixels on this machine.

    Args:
        settings: With "auto" for what the machine decides.
        weights: Sha256 of the weights file.

    Raises:
        DeviceError: There is no such device.
        ConfigError: Device, precision and backend do not fit together.
    """
    from vsfmanet.devices import pick_backend, pick_device, pick_precision  # with torch: late
    from vsfmanet.restorer import resolve

    backend = pick_backend(settings.backend)
    device = pick_device(settings.device, settings.device_indices[0], backend=backend)
    dtype = pick_precision(settings.precision, device, backend=backend)
    return resolve(
        Path(settings.model).stem,
        weights_sha256=weights,
        backend=backend,
        device=device,
        dtype=dtype,
        provider=settings.provider,
    )


def run(job: RestoreJob, report: Report, scratch: Scratch) -> Record:
    """Restore one file, unless it is done already.

    Args:
        job: The job.
        report: Receives messages and progress.
        scratch: A new one, which owns the files of the job and is discarded at its end.

    Returns:
        The record of the target.

    Raises:
        VsfmanetError: There is no result. The target is as it was before.
    """
    try:
        with report.listening():
            return _run(job, report, scratch)
    except (SourceError, FormatError):
        _forget(job)
        raise
    except OSError as error:
        raise OutputError(
            f"{job.target}: files of the job must be written, but {error}; make room or check the disk"
        ) from error
    finally:
        scratch.discard()


def _run(job: RestoreJob, report: Report, scratch: Scratch) -> Record:
    """See `run`, which discards the scratch."""
    started = time.monotonic()
    record = _check_target(job)
    if record is not None:
        report.note(f"already done: {job.target} is verified and unchanged, {record.frames} frames")
        remove_work(job.output)  # of a run that was killed before it did that
        return record
    ffmpeg = find_ffmpeg(job.ffmpeg)
    with_it = f" with FFmpeg {ffmpeg.release[0]}.{ffmpeg.release[1]} ({ffmpeg.path})" if job.makes_film else ""
    report.note(f"restoring {job.source_name if job.source == PIPE else job.source}{with_it}")
    folder = scratch.make_folder()
    report.phase("reading")
    began = time.monotonic()
    source, clip, numbers = _open(job, folder, report)
    reading = (time.monotonic() - began) / clip.node.num_frames
    fingerprint = _fingerprint(job, folder)
    if source.hdr.is_static:
        ffmpeg = find_ffmpeg(job.ffmpeg, for_hdr=True)
    for notice in clip.notices:
        report.warn(notice)
    if job.deinterlace:
        clip = replace(clip, node=deinterlaced(clip.node))
    frames = _range(job, source, clip)
    clip = replace(clip, aspect=clip.aspect_of(source, frames), aspects=())
    own_format = clip.node.format
    if job.settings.resizes:
        clip = clips.without_padding(clip)
    copied = _copied(job, source, report) if job.makes_film else []
    if job.makes_film:
        _check_copying(ffmpeg, source, copied, job.target.suffix.lower(), scratch)
    report.phase("preparing")
    made_with = recipe(job)
    settings = with_model(_settings(job, source, report), clip.node.width, clip.node.height)
    made_by = resolved(settings, weights_sha256(settings.model))
    output_format = _output_format(job, own_format)
    if output_format is None and clip.node.format.id != own_format.id:
        output_format = own_format.id
    settings = replace(settings, output_format=output_format)
    if _is_restored(job, clip, report):
        restored = clips.converted(clip.node, settings.output_format)
    else:
        restored = clips.restore_clip(clip.node, settings)
    clips.check_restored(source, clip.node, restored, settings)
    if not settings.resizes:
        restored, too_large = clips.without_edges(clip, restored)
        if too_large:
            report.warn(too_large)
    restored = clips.for_encoder(restored)

    task = _Task(
        job=job,
        source=source,
        clip=clip,
        restored=restored,
        frames=frames,
        key=job_key(fingerprint, made_with.digest()),
        digits=source_digits(job.source, fingerprint),
        arithmetic=made_by.arithmetic,
        checking=reading * len(frames) * restored.width * restored.height / (clip.node.width * clip.node.height),
        tally=Tally(),
        folder=folder,
        scratch=scratch,
        report=report,
    )
    if job.target == PIPE:
        made = _stream(task)
    elif is_sequence(job.target):
        made = _pictures(task, _part(task), numbers)
    else:
        made = _whole_film(task, _part(task), ffmpeg, copied)
    record = Record(
        key=task.key,
        attempt=scratch.attempt,
        source=job.source_name,
        fingerprint=fingerprint,
        recipe=made_with,
        versions=_versions(ffmpeg),
        frames=len(frames),
        width=made.size[0],
        height=made.size[1],
        pictures=made.likeness,
        output_size=made.bytes,
        output_sha256=made.sha256,
        warnings=tuple(report.warnings),
        resolved=asdict(made_by),
        ffmpeg=str(ffmpeg.path) if job.makes_film else "",
        encoder_args=shlex.join(made.encoder_args),
        exposures=dict(task.tally.exposures),
        doubtful={str(number): round(error, 4) for number, error in task.tally.doubtful.items()},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
    )
    check_unchanged(source)
    if (is_script(job.source) or is_sequence(job.source)) and _fingerprint(job, folder) != fingerprint:
        raise SourceError(f"{job.source}: a file of the source changed during the job; run it again")
    if made.part is not None:
        try:
            scratch.publish(made.part, job.output, record, overwrite=job.overwrite, pictures=made.pictures)
        except BusyError:
            if find_done(job.output, lambda: task.key) is not None:  # another run has made it
                remove_work(job.output)
            raise
        remove_work(job.output)
    if task.tally.doubtful:
        listed = ", ".join(map(str, sorted(task.tally.doubtful)))
        report.note(f"blurred again, these frames are far from their source; look at them first: {listed}")
    length = float((clip.timestamps[frames.stop - 1] - clip.timestamps[frames.start]) * clip.time_base)
    name = "stdout" if job.target == PIPE else job.target
    report.note(f"made {name}: {len(frames)} frames of {made.size[0]}x{made.size[1]}, {clock(length)}")
    return record


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A job with its restored clip."""

    job: RestoreJob
    source: Source
    clip: SourceClip
    restored: vs.VideoNode
    """The restored clip, whole."""
    frames: range
    """Numbers of the frames to make, in the clip."""
    key: str
    """`job_key`."""
    digits: str
    """`source_digits`."""
    arithmetic: str
    """`Resolved.arithmetic`."""
    checking: float
    """Seconds that the verification takes, judged by how long the source took to read."""
    tally: Tally
    folder: Path
    """For temporary files."""
    scratch: Scratch
    report: Report

    def read(self, done: int = 0) -> Iterator[vs.VideoFrame]:
        """Yield the restored frames behind those that are done."""
        left = self.restored[self.frames.start + done : self.frames.stop]
        ahead = clips.frames_ahead(self.job.settings)
        return clips.read_frames(self.source, left, ahead=ahead, first=done, tally=self.tally)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """An output that has no name yet."""

    part: Path | None
    """Part file; None for a stream."""
    pictures: Path | None = None
    """Folder of pictures that gets the name in place of the part file."""
    size: tuple[int, int]
    """Width and height."""
    bytes: int
    sha256: str
    likeness: Likeness
    """How closely the output was found to match what was encoded."""
    encoder_args: tuple[str, ...] = ()


def _part(task: _Task) -> Path:
    """Create the part file of a job.

    Raises:
        BusyError: Another run is making the output, or has made it meanwhile.
    """
    part = task.scratch.make_part(task.job.output)
    if find_done(task.job.output, lambda: task.key) is not None:
        raise BusyError(f"{task.job.target}: another run has made this very file meanwhile; nothing is left to do")
    return part


def _whole_film(task: _Task, part: Path, ffmpeg: Ffmpeg, copied: Sequence[Stream]) -> _Made:
    """Make a film and verify it.

    Raises:
        VsfmanetError: There is no result.
    """
    job, source, clip, frames, report = task.job, task.source, task.clip, task.frames, task.report
    restored, folder, scratch = task.restored, task.folder, task.scratch
    save_packets(source, {cover.index: folder / cover_file(cover) for cover in copied if cover.kind == "cover"})
    film = _film(job, source, clip, restored, frames, copied, ffmpeg)
    film = with_early_subtitles(film, ffmpeg, folder, launch=scratch.launch)
    report.phase("trying the encoder")
    names = task.digits, f"{task.key} {task.arithmetic}"
    ranges = _ranges(job, film, ffmpeg, part, restored, frames, names, folder, scratch, report)
    in_ranges = 0 if ranges is None else len(ranges.missing)
    expected = output_bytes(
        frames=len(frames) + in_ranges,
        pixels=film.size[0] * film.size[1],
        pixel_format=film.pixel_format,
        encoder_args=film.encoder_args,
    )
    _check_room(job, expected, len(frames))
    trial = _try_encoder(job, film, ffmpeg, restored, folder, scratch) if ranges is None else ranges.trial
    report.phase("preparing")
    size, hdr = trial_frame(trial)
    check_trial(
        trial if ranges is None else ranges.coded,
        size,
        [time * film.time_base for time in film.timestamps[:TRIAL_FRAMES]],
    )
    if lacking := hdr.lacks(source.hdr):
        report.warn(_not_carried(lacking, source.hdr))
    if ranges is None:
        _encode(task, film, ffmpeg, part)
    else:
        ranges.encode(restored, report, task.tally, after=task.checking)
        ranges.join(report)
    report.phase("checking")
    try:
        with report.begin("verifying", len(frames)) as progress:
            thumbnails = [folder / THUMBNAILS] if ranges is None else ranges.thumbnails
            needed = _needed(source, clip, frames, film, size, hdr, thumbnails)
            verify(
                part,
                needed,
                advance=progress.advance,
                remedy="it has been deleted. Leave those of --encoder-args out that change timing, size or streams "
                "(-r, -s, -map, -t), or write to .mkv, which holds most; and report it if it comes back",
            )
    except IncompleteError:
        remove_work(job.output)  # one of the ranges may be wrong
        raise
    report.phase("checking")
    return _Made(
        part=part,
        size=size,
        bytes=part.stat().st_size,
        sha256=file_sha256(part),
        likeness=needed.likeness,
        encoder_args=film.encoder_args,
    )


def _pictures(task: _Task, part: Path, numbers: Sequence[int]) -> _Made:
    """Make numbered pictures and verify them.

    Args:
        task: The job.
        part: Its part file, which is only locked.
        numbers: Of the frames of the source.

    Raises:
        VsfmanetError: There is no result.
    """
    job, report, count = task.job, task.report, len(task.frames)
    _warn_of_losses(task)
    named = numbers[task.frames.start : task.frames.stop]
    if job.start_number is not None:
        named = range(job.start_number, job.start_number + count)
    text = f"{task.key} {task.arithmetic} {job.target.name}"
    work = work_path(job.output, task.digits, hashlib.sha256(text.encode()).hexdigest()[:8])
    work.mkdir(exist_ok=True)
    if work.is_symlink():
        raise OutputError(f"{work}: a folder is needed for finished pictures, got a symbolic link; remove it")
    writer = PictureWriter(job.target, work)
    done = writer.done(named)
    task.scratch.has_ranges = True
    if done:
        report.note(f"{done} of {count} pictures are there; going on")
    _check_room(job, PICTURE_SHARE * (count - done) * clips.bytes_of(task.restored), count)
    size = (task.restored.width, task.restored.height)
    with report.begin("restoring", count, done=done, after=task.checking) as progress:
        if done < count:
            writer.write(task.read(done), named[done:], progress.advance)
    report.phase("checking")
    try:
        with report.begin("verifying", count) as progress:
            writer.verify(named, size, progress.advance)
    except IncompleteError:
        remove_work(job.output)
        raise
    report.phase("checking")
    total, digest = content(writer.folder)
    return _Made(part=part, pictures=writer.folder, size=size, bytes=total, sha256=digest(), likeness="exact")


def _stream(task: _Task) -> _Made:
    """Write the frames to stdout.

    Raises:
        VsfmanetError: Not all frames are written.
    """
    _warn_of_losses(task)
    report, count = task.report, len(task.frames)
    report.warn("a stream cannot be read back and compared, and cannot be continued: check the result behind the pipe")
    frames = task.read()
    with report.begin("restoring", count) as progress:
        first = next(frames)
        colour = clips.colour(first)
        size = (task.restored.width, task.restored.height)
        writer = Y4mWriter(
            sys.stdout.buffer,
            size=size,
            pixel_format=clips.pixel_format(task.restored.format),
            rate=task.source.rate,
            aspect=_aspect(task),
            frames=count,
            full_range=None if colour.range is None else colour.range == 2,
            chroma_location=colour.chroma_location,
        )
        for frame in chain([first], frames):
            writer.write(clips.frame_bytes(frame))
            progress.advance()
    return _Made(part=None, size=size, bytes=writer.bytes, sha256=writer.sha256, likeness="unknown")


def _warn_of_losses(task: _Task) -> None:
    """Warn of what pictures and streams do not carry."""
    source, clip, report = task.source, task.clip, task.report
    pictures = is_sequence(task.job.target)
    kind = "pictures" if pictures else "a stream"
    lost = ", ".join(dict.fromkeys(stream.kind for stream in source.others if is_kept(stream)))
    if lost:
        report.warn(f"{kind} carry no {lost}" if pictures else f"{kind} carries no {lost}; take it from the source")
    steps = {after - before for before, after in pairwise(clip.timestamps)}
    if steps and (max(steps) - min(steps)) * clip.time_base > Fraction(2, 1000):
        report.warn(f"the source has a variable rate, which {kind} {'do' if pictures else 'does'} not carry")
    if source.hdr.is_static:
        report.warn(f"HDR10 metadata is not carried over to {kind}")
    if pictures and _aspect(task) != 1:
        report.warn(f"pictures do not carry the sample aspect ratio, {_aspect(task)}")


def _aspect(task: _Task) -> Fraction:
    """Sample aspect ratio of the result."""
    before, after = task.clip.node, task.restored
    stretch = sample_stretch((before.width, before.height), (after.width, after.height))
    return task.clip.aspect * stretch if task.job.settings.resizes else task.clip.aspect


def _output_format(job: RestoreJob, video_format: vs.VideoFormat) -> int | None:
    """Format of the restored frames; None for that of the source.

    Pictures are RGB or Gray of 8 or 16 bit, streams YUV or Gray. A film made of pictures in colour is 4:2:0, which
    players show, but for the preset "archive".
    """
    family, depth = video_format.color_family, job.depth or video_format.bits_per_sample
    query = vs.core.query_video_format
    if is_sequence(job.target):
        depth = 8 if depth == 8 else 16
        return query(family if family == vs.GRAY else vs.RGB, vs.INTEGER, depth, 0, 0).id
    if family == vs.RGB and job.target == PIPE:
        return query(vs.YUV, vs.INTEGER, depth, 0, 0).id
    if family == vs.RGB and is_sequence(job.source) and job.preset != "archive":
        depth = job.depth or (8 if depth == 8 else 10)
        return query(vs.YUV, vs.INTEGER, depth, 1, 1).id
    return None if job.depth is None else clips.with_depth(video_format, job.depth).id


def _open(job: RestoreJob, folder: Path, report: Report) -> tuple[Source, SourceClip, Sequence[int]]:
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


def _forget(job: RestoreJob) -> None:
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


def _is_restored(job: RestoreJob, clip: SourceClip, report: Report) -> bool:
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


def _needed(
    source: Source,
    clip: SourceClip,
    frames: range,
    film: Film,
    size: tuple[int, int],
    hdr: Hdr,
    thumbnails: Sequence[Path],
) -> Needed:
    """What the output must hold; what the user has set with --encoder-args is as the user has it."""
    own = film.encoder_args
    filtered = has_filters(own)
    extent = "whole" if len(frames) == clip.node.num_frames else "part"
    return Needed(
        source=source,
        size=size,
        aspect=None if sets_aspect(own) or size != film.size else film.aspect,
        pictures=read_thumbnails(thumbnails),
        likeness=film.likeness if size == film.size or film.likeness == "unknown" else "rough",
        hdr=hdr,
        anchors=[(n - frames.start, time) for n, time in clip.anchors if n in frames],
        times=[timestamp * film.time_base for timestamp in film.timestamps],
        lively=set() if filtered else clips.lively_frames(clip.node, frames),
        copied=film.copied,
        extent="damaged" if source.faults or clip.faults else extent,
        chapters=not has_option(own, "map_chapters"),
        names=not has_option(own, "metadata", "map_metadata"),
    )


def _settings(job: RestoreJob, source: Source, report: Report) -> RestoreSettings:
    """Settings of the filter, with the source and the exposures beside it."""
    is_film = not (is_script(job.source) or is_sequence(job.source) or job.source == PIPE)
    settings = replace(job.settings, source_path=source.path if is_film else None)
    sidecar = exposure_sidecar(job.source) if settings.exposure == "auto" else None
    if sidecar is None:
        return settings
    report.note(f"exposures from {sidecar}")
    return replace(settings, exposure=str(sidecar))


def _check_target(job: RestoreJob) -> Record | None:
    """Refuse a target that is the source, exists already, or has too long a name.

    Returns:
        The record of the target, if it is the finished result of this job.

    Raises:
        ConfigError: It is one of these.
    """
    if job.target == PIPE:
        return None
    target = job.output
    if len(os.fsencode(target.name)) > MAX_NAME:
        raise ConfigError(f"{target}: a file name of at most {MAX_NAME} bytes is needed; choose a shorter one")
    beside = record_path(target)
    if beside.exists() and not beside.is_file():
        raise ConfigError(f"{beside}: the record of the output needs this name, got a folder, pipe or device; move it")
    settle(target)
    if not os.path.lexists(target) or (is_sequence(job.target) and target.is_dir() and not any(target.iterdir())):
        return None
    if job.source.exists() and target.exists() and target.samefile(job.source):
        raise ConfigError(f"{target}: the output must not be the source, which is never replaced; name another")
    if (is_sequence(job.source) or job.source.is_file()) and target.exists():
        record = find_done(target, lambda: job_key(Fingerprint.of(job.source), recipe(job).digest()))
        if record is not None:
            return record
    if not job.overwrite:
        raise ConfigError(f"{target}: the output exists already; name another, or pass --overwrite")
    if is_sequence(job.target) and read_record(record_path(target)) is None:
        raise ConfigError(
            f"{target}: this folder has files that are not of vsfmanet, and is left as it is; name another"
        )
    if not is_sequence(job.target) and not target.is_file():
        raise ConfigError(f"{target}: only a regular file can be overwritten; name another output")
    return None


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


def _copied(job: RestoreJob, source: Source, report: Report) -> list[Stream]:
    """Streams of the source to copy; warns of each that cannot be copied."""
    copied = []
    for stream in source.others:
        if not is_kept(stream):
            report.warn(f"{stream} is not carried over")
        elif getattr(job, KEPT[stream.kind]):
            copied.append(stream)
    return copied


def _check_copying(ffmpeg: Ffmpeg, source: Source, copied: Sequence[Stream], suffix: str, scratch: Scratch) -> None:
    """Refuse a container that cannot hold what is to be copied, and streams that cannot be copied to their end.

    Raises:
        ConfigError: The container cannot; the message names the streams, and the containers that can.
        DamagedError: The streams cannot.
    """
    broken, said = broken_streams(ffmpeg, source, copied, suffix, launch=scratch.launch)
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


def _film(
    job: RestoreJob,
    source: Source,
    clip: SourceClip,
    restored: vs.VideoNode,
    frames: range,
    copied: Sequence[Stream],
    ffmpeg: Ffmpeg,
) -> Film:
    """What the encoder is to make. The clock of the output starts with the first thing in it."""
    begin = clip.timestamps[frames.start] * clip.time_base
    if len(frames) == clip.node.num_frames:
        begin = max(Fraction(0), min(source.start, begin))
    last = frames.stop == clip.node.num_frames
    pixel_format = clips.pixel_format(restored.format)
    return Film(
        source=source,
        size=(restored.width, restored.height),
        pixel_format=pixel_format,
        colour=clips.colour(clip.node.get_frame(0)),
        hdr=source.hdr if source.hdr.is_static and takes_hdr(ffmpeg) else Hdr(),
        aspect=clip.aspect * sample_stretch((clip.node.width, clip.node.height), (restored.width, restored.height))
        if job.settings.resizes
        else clip.aspect,
        rate=source.rate,
        timestamps=clip.timestamps[frames.start : frames.stop],
        time_base=clip.time_base,
        start=begin if begin > 0 or any(stream.cut for stream in copied) else None,
        duration=None if last else clip.timestamps[frames.stop] * clip.time_base - begin,
        copied=tuple(copied),
        encoder_args=choose_encoder(job.encoder_args, pixel_format, job.target.suffix.lower(), job.preset),
        suffix=job.target.suffix.lower(),
    )


def _check_room(job: RestoreJob, expected: float, frames: int) -> None:
    """Refuse a job whose files, of so many bytes, the disk cannot hold.

    Raises:
        OutputError: Too little is free.
    """
    needed = ROOM * expected / 2**30 + job.reserve
    free = shutil.disk_usage(job.output.absolute().parent).free / 2**30
    if free < needed:
        raise OutputError(
            f"{job.target}: {needed:.3g} GiB must be free ({ROOM:g} times what {frames} frames are expected "
            f"to take, and {job.reserve:g} GiB of reserve), got {free:.3g}; make room, or choose another disk"
        )


def _ranges(
    job: RestoreJob,
    film: Film,
    ffmpeg: Ffmpeg,
    part: Path,
    restored: vs.VideoNode,
    frames: range,
    names: tuple[str, str],
    folder: Path,
    scratch: Scratch,
    report: Report,
) -> Ranges | None:
    """The ranges that the output is made in; None for a short one, and for one that must be made in one pass.

    Finished ones are found by their `names`: see `Ranges.open`.
    """
    if job.range_frames == 0 or len(frames) <= job.range_frames:
        return None
    ranges = Ranges(
        film,
        ffmpeg=ffmpeg,
        output=part,
        ahead=clips.frames_ahead(job.settings),
        frames=frames,
        length=job.range_frames,
        target=job.target,
        folder=folder,
        scratch=scratch,
    )
    reason = why_one_pass(film)
    for _ in range(TRIALS if reason is None else 0):
        try:
            ranges.open(*names, _blank(restored))
            return ranges
        except (OutputError, IncompleteError) as error:  # if the encoder cannot work at all, one pass will say so
            reason = str(error)
    report.warn(f"the film is made in one pass, which begins anew after a kill: {reason}")
    return None


def _blank(restored: vs.VideoNode) -> bytes:
    """Samples of a blank frame."""
    return clips.frame_bytes(vs.core.std.BlankClip(restored, length=1, keep=True).get_frame(0))


def _try_encoder(
    job: RestoreJob, film: Film, ffmpeg: Ffmpeg, restored: vs.VideoNode, folder: Path, scratch: Scratch
) -> Path:
    """Encode some blank frames, to find a wrong option or a missing encoder now and not after hours.

    Returns:
        A film of these frames.

    Raises:
        OutputError: The encoder cannot work. For a preset, the message lists those that can.
    """
    trial = replace(film, timestamps=film.timestamps[:TRIAL_FRAMES], copied=())
    output = folder / f"trial{film.suffix}"
    try:
        with Encoder(whole_run(trial, ffmpeg, output, covers=folder), trial, launch=scratch.launch) as encoder:
            blank = _blank(restored)
            for _ in trial.timestamps:
                encoder.write(blank)
            encoder.finish()
    except OutputError as error:
        if job.preset == "default":
            raise
        working = ", ".join(working_presets(ffmpeg))
        raise OutputError(
            f"the preset {job.preset} must work with FFmpeg {ffmpeg.path} and this output; those that work here are "
            f"{working}. {error}"
        ) from error
    return output


def _not_carried(lacking: str, hdr: Hdr) -> str:
    """Warning that the output lacks metadata of HDR10, with what to do."""
    x265 = {"master-display": hdr.master_display, "max-cll": hdr.max_cll}
    options = ":".join(f"{name}={value}" for name, value in x265.items() if value is not None)
    return (
        f"of the HDR10 metadata, {lacking} is not carried over by this FFmpeg with these --encoder-args; FFmpeg 9.0 "
        f'carries it over with most encoders, or set it yourself: --encoder-args="-c:v libx265 -x265-params {options}"'
    )


def _encode(task: _Task, film: Film, ffmpeg: Ffmpeg, part: Path) -> None:
    """Feed all restored frames to the encoder.

    Raises:
        VsfmanetError: A frame could not be restored, or not be encoded; the encoder has been killed.
    """
    frames, report, folder = task.read(), task.report, task.folder
    with report.begin("restoring", len(film.timestamps), after=task.checking) as progress:
        first = next(frames)
        report.phase("encoding")
        film = replace(film, colour=clips.colour(first))  # how the filter wants the samples to be read
        run = whole_run(film, ffmpeg, part, covers=folder)
        with Encoder(run, film, launch=task.scratch.launch, thumbnails=folder / THUMBNAILS) as encoder:
            for frame in chain([first], frames):
                encoder.write(clips.frame_bytes(frame))
                progress.advance()
            report.phase("finishing")
            encoder.finish()


def _versions(ffmpeg: Ffmpeg) -> dict[str, str]:
    """Versions of what took part in a job."""
    release = ".".join(map(str, ffmpeg.release))
    return {name: version(name) for name in TAKING_PART} | {"python": platform.python_version(), "ffmpeg": release}
