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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path

import vapoursynth as vs

from vsfmanet.atomic import MAX_NAME
from vsfmanet.errors import (
    BusyError,
    ConfigError,
    FormatError,
    IncompleteError,
    OutputError,
    SourceError,
)
from vsfmanet.jobs.files import record_path, remove_work, settle, work_path
from vsfmanet.jobs.job import RestoreJob, recipe
from vsfmanet.jobs.opening import Opened, check_same, forget, is_restored, open_source, settings_for
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.ranges import TRIAL_FRAMES, Ranges, why_one_pass
from vsfmanet.jobs.record import (
    Fingerprint,
    Record,
    content,
    find_done,
    job_key,
    read_record,
    source_digits,
    weights_sha256,
)
from vsfmanet.jobs.scratch import Scratch
from vsfmanet.manifest import file_sha256
from vsfmanet.media import clip as clips
from vsfmanet.media.clip import Tally
from vsfmanet.media.coding import choose_encoder, output_bytes
from vsfmanet.media.commands import whole_run
from vsfmanet.media.containers import PIPE, is_sequence
from vsfmanet.media.copying import check_copying, with_early_subtitles
from vsfmanet.media.decode import trial_frame
from vsfmanet.media.feed import Encoder
from vsfmanet.media.ffmpeg import Ffmpeg, find_ffmpeg, takes_hdr, working_presets
from vsfmanet.media.film import Film, cover_file
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import clock
from vsfmanet.media.pipe import Y4mWriter
from vsfmanet.media.sequence import PictureWriter
from vsfmanet.media.source import KEPT, Source, Stream, is_kept, save_packets
from vsfmanet.media.thumbnails import SUFFIX, Likeness
from vsfmanet.media.verify import Needed, check_trial, verify
from vsfmanet.settings import Resolved, RestoreSettings
from vsfmanet.sizes import sample_stretch, with_model

TRIALS = 2
"""How often the encoder is tried for ranges: one that a signal ends, as when memory is short, decides nothing."""

THUMBNAILS = f"frames{SUFFIX}"
"""File with the thumbnails of the frames, if the output is made in one pass."""

PICTURE_SHARE = 0.6
"""Size of a picture over that of the frame in memory."""

ROOM = 1.2
"""Free space that a job needs, over its expected size."""

TAKING_PART = ("vapoursynth", "vapoursynth-bestsource", "torch", "av")
"""Packages whose versions are recorded."""


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
        forget(job)
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
    opened = open_source(job, folder, report)
    source, clip, frames = opened.source, opened.clip, opened.frames
    if source.hdr.is_static:
        ffmpeg = find_ffmpeg(job.ffmpeg, for_hdr=True)
    own_format = clip.node.format
    if job.settings.resizes:
        clip = clips.without_padding(clip)
    copied = _copied(job, source, report) if job.makes_film else []
    if job.makes_film:
        check_copying(ffmpeg, source, copied, job.target.suffix.lower(), launch=scratch.launch)
    report.phase("preparing")
    made_with = recipe(job)
    settings = with_model(settings_for(job, source, report), clip.node.width, clip.node.height)
    made_by = resolved(settings, weights_sha256(settings.model))
    output_format = _output_format(job, own_format)
    if output_format is None and clip.node.format.id != own_format.id:
        output_format = own_format.id
    settings = replace(settings, output_format=output_format)
    if is_restored(job, clip, report):
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
        opened=replace(opened, clip=clip),
        restored=restored,
        key=job_key(opened.fingerprint, made_with.digest()),
        digits=source_digits(job.source, opened.fingerprint),
        arithmetic=made_by.arithmetic,
        checking=opened.reading * len(frames) * restored.width * restored.height / (clip.node.width * clip.node.height),
        tally=Tally(),
        folder=folder,
        scratch=scratch,
        report=report,
    )
    if job.target == PIPE:
        made = _stream(task)
    elif is_sequence(job.target):
        made = _pictures(task, _part(task))
    else:
        made = _whole_film(task, _part(task), ffmpeg, copied)
    record = Record(
        key=task.key,
        attempt=scratch.attempt,
        source=job.source_name,
        fingerprint=opened.fingerprint,
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
    check_same(job, opened, folder)
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
    opened: Opened
    """Source of the job."""
    restored: vs.VideoNode
    """The restored clip, whole."""
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
        frames = self.opened.frames
        left = self.restored[frames.start + done : frames.stop]
        ahead = clips.frames_ahead(self.job.settings)
        return clips.read_frames(self.opened.source, left, ahead=ahead, first=done, tally=self.tally)


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
    job, source, frames, report = task.job, task.opened.source, task.opened.frames, task.report
    folder = task.folder
    save_packets(source, {cover.index: folder / cover_file(cover) for cover in copied if cover.kind == "cover"})
    film = _film(task, copied, ffmpeg)
    film = with_early_subtitles(film, ffmpeg, folder, launch=task.scratch.launch)
    report.phase("trying the encoder")
    ranges = _ranges(task, film, ffmpeg, part)
    in_ranges = 0 if ranges is None else len(ranges.missing)
    expected = output_bytes(
        frames=len(frames) + in_ranges,
        pixels=film.size[0] * film.size[1],
        pixel_format=film.pixel_format,
        encoder_args=film.encoder_args,
    )
    _check_room(job, expected, len(frames))
    trial = _try_encoder(task, film, ffmpeg) if ranges is None else ranges.trial
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
        ranges.encode(task.restored, report, task.tally, after=task.checking)
        ranges.join(report)
    report.phase("checking")
    try:
        with report.begin("verifying", len(frames)) as progress:
            thumbnails = [folder / THUMBNAILS] if ranges is None else ranges.thumbnails
            needed = Needed.of(film, task.opened.clip, frames, size=size, hdr=hdr, thumbnails=thumbnails)
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


def _pictures(task: _Task, part: Path) -> _Made:
    """Make numbered pictures and verify them.

    Args:
        task: The job.
        part: Its part file, which is only locked.

    Raises:
        VsfmanetError: There is no result.
    """
    job, report, frames = task.job, task.report, task.opened.frames
    count = len(frames)
    _warn_of_losses(task)
    named = task.opened.numbers[frames.start : frames.stop]
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
    report, count = task.report, len(task.opened.frames)
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
            rate=task.opened.source.rate,
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
    source, clip, report = task.opened.source, task.opened.clip, task.report
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
    clip, after = task.opened.clip, task.restored
    stretch = sample_stretch((clip.node.width, clip.node.height), (after.width, after.height))
    return clip.aspect * stretch if task.job.settings.resizes else clip.aspect


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


def _copied(job: RestoreJob, source: Source, report: Report) -> list[Stream]:
    """Streams of the source to copy; warns of each that cannot be copied."""
    copied = []
    for stream in source.others:
        if not is_kept(stream):
            report.warn(f"{stream} is not carried over")
        elif getattr(job, KEPT[stream.kind]):
            copied.append(stream)
    return copied


def _film(task: _Task, copied: Sequence[Stream], ffmpeg: Ffmpeg) -> Film:
    """What the encoder is to make. The clock of the output starts with the first thing in it."""
    job, source, clip, frames = task.job, task.opened.source, task.opened.clip, task.opened.frames
    begin = clip.timestamps[frames.start] * clip.time_base
    if len(frames) == clip.node.num_frames:
        begin = max(Fraction(0), min(source.start, begin))
    last = frames.stop == clip.node.num_frames
    pixel_format = clips.pixel_format(task.restored.format)
    return Film(
        source=source,
        size=(task.restored.width, task.restored.height),
        pixel_format=pixel_format,
        colour=clips.colour(clip.node.get_frame(0)),
        hdr=source.hdr if source.hdr.is_static and takes_hdr(ffmpeg) else Hdr(),
        aspect=_aspect(task),
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


def _ranges(task: _Task, film: Film, ffmpeg: Ffmpeg, part: Path) -> Ranges | None:
    """The ranges that the output is made in; None for a short one, and for one that must be made in one pass."""
    job, frames = task.job, task.opened.frames
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
        folder=task.folder,
        scratch=task.scratch,
    )
    reason = why_one_pass(film)
    for _ in range(TRIALS if reason is None else 0):
        try:
            ranges.open(task.digits, f"{task.key} {task.arithmetic}", _blank(task.restored))
            return ranges
        except (OutputError, IncompleteError) as error:  # if the encoder cannot work at all, one pass will say so
            reason = str(error)
    task.report.warn(f"the film is made in one pass, which begins anew after a kill: {reason}")
    return None


def _blank(restored: vs.VideoNode) -> bytes:
    """Samples of a blank frame."""
    return clips.frame_bytes(vs.core.std.BlankClip(restored, length=1, keep=True).get_frame(0))


def _try_encoder(task: _Task, film: Film, ffmpeg: Ffmpeg) -> Path:
    """Encode some blank frames, to find a wrong option or a missing encoder now and not after hours.

    Returns:
        A film of these frames.

    Raises:
        OutputError: The encoder cannot work. For a preset, the message lists those that can.
    """
    trial = replace(film, timestamps=film.timestamps[:TRIAL_FRAMES], copied=())
    output = task.folder / f"trial{film.suffix}"
    try:
        with Encoder(
            whole_run(trial, ffmpeg, output, covers=task.folder), trial, launch=task.scratch.launch
        ) as encoder:
            blank = _blank(task.restored)
            for _ in trial.timestamps:
                encoder.write(blank)
            encoder.finish()
    except OutputError as error:
        if task.job.preset == "default":
            raise
        working = ", ".join(working_presets(ffmpeg))
        raise OutputError(
            f"the preset {task.job.preset} must work with FFmpeg {ffmpeg.path} and this output; those that work here "
            f"are {working}. {error}"
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
