"""One file restored: inspect, film, try the encoder, process, verify, publish. A final name is a proof that all held.

Until then the result is a part file beside the target, and whatever goes wrong, nothing of it stays behind.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from itertools import chain
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
from vsfmanet.jobs.files import exposure_sidecar, remove_work, settle, sweep
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.ranges import TRIAL_FRAMES, Ranges, why_one_pass
from vsfmanet.jobs.record import (
    Fingerprint,
    Recipe,
    Record,
    find_done,
    job_key,
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
from vsfmanet.media.containers import CONTAINERS
from vsfmanet.media.copying import broken_streams, refused_streams, with_early_subtitles
from vsfmanet.media.decode import trial_frame
from vsfmanet.media.deinterlace import deinterlaced
from vsfmanet.media.feed import Encoder
from vsfmanet.media.ffmpeg import Ffmpeg, find_ffmpeg, takes_hdr, working_presets
from vsfmanet.media.film import Film, cover_file
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import clock
from vsfmanet.media.script import SUFFIX as SCRIPT
from vsfmanet.media.script import is_script, open_script, restored_by
from vsfmanet.media.source import KEPT, Source, Stream, check_unchanged, inspect, is_kept, save_packets
from vsfmanet.media.thumbnails import SUFFIX, read_thumbnails
from vsfmanet.media.timeline import parse_time, time_code
from vsfmanet.media.verify import Needed, check_trial, verify
from vsfmanet.settings import Resolved, RestoreSettings
from vsfmanet.sizes import sample_stretch, with_model

SAME_PIXELS = {"device", "device_index", "backend", "provider", "tile", "segment", "source_path"}
"""Fields of `RestoreSettings` without effect on the result: where and how it is computed."""

SAME_OUTPUT = {"source", "target", "settings", "overwrite", "range_frames", "reserve", "ffmpeg"}
"""Fields of `RestoreJob` that do not make it another job; the record names the FFmpeg that was used."""

THUMBNAILS = f"frames{SUFFIX}"
"""File with the thumbnails of the frames, if the output is made in one pass."""

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
        remove_work(job.target)  # of a run that was killed before it did that
        return record
    ffmpeg = find_ffmpeg(job.ffmpeg)
    report.note(f"restoring {job.source} with FFmpeg {ffmpeg.release[0]}.{ffmpeg.release[1]} ({ffmpeg.path})")
    folder = scratch.make_folder()
    report.phase("reading")
    source, clip = _script(job, folder, report) if is_script(job.source) else _file(job, report)
    fingerprint = Fingerprint.of(job.source)
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
    copied = _copied(job, source, report)
    _check_copying(ffmpeg, source, copied, job.target.suffix.lower(), scratch)
    report.phase("preparing")
    made_with = recipe(job)
    settings = with_model(_settings(job, source, report), clip.node.width, clip.node.height)
    made_by = resolved(settings, weights_sha256(settings.model))
    tally = Tally()
    if job.depth is not None:
        settings = replace(settings, output_format=clips.with_depth(own_format, job.depth).id)
    elif clip.node.format.id != own_format.id:
        settings = replace(settings, output_format=settings.output_format or own_format.id)
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

    part = scratch.make_part(job.target)
    if _check_target(job) is not None:
        raise BusyError(f"{job.target}: another run has made this very file meanwhile; nothing is left to do")
    save_packets(source, {cover.index: folder / cover_file(cover) for cover in copied if cover.kind == "cover"})
    film = _film(job, source, clip, restored, frames, copied, ffmpeg)
    film = with_early_subtitles(film, ffmpeg, folder, launch=scratch.launch)
    key = job_key(fingerprint, made_with.digest())
    report.phase("trying the encoder")
    names = source_digits(job.source, fingerprint), f"{key} {made_by.arithmetic}"
    ranges = _ranges(job, film, ffmpeg, part, restored, frames, names, folder, scratch, report)
    _check_room(job, film, len(frames), None if ranges is None else len(ranges.missing))
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
        _encode(job, film, ffmpeg, part, restored[frames.start : frames.stop], folder, scratch, report, tally)
    else:
        ranges.encode(restored, report, tally)
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
        remove_work(job.target)  # one of the ranges may be wrong
        raise
    report.phase("checking")
    record = Record(
        key=key,
        attempt=scratch.attempt,
        source=str(job.source.absolute()),
        fingerprint=fingerprint,
        recipe=made_with,
        versions=_versions(ffmpeg),
        frames=len(frames),
        width=size[0],
        height=size[1],
        pictures=needed.likeness,
        output_size=part.stat().st_size,
        output_sha256=file_sha256(part),
        warnings=tuple(report.warnings),
        resolved=asdict(made_by),
        ffmpeg=str(ffmpeg.path),
        encoder_args=shlex.join(film.encoder_args),
        exposures=dict(tally.exposures),
        doubtful={str(number): round(error, 4) for number, error in tally.doubtful.items()},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
    )
    check_unchanged(source)
    if is_script(job.source) and Fingerprint.of(job.source) != fingerprint:
        raise SourceError(f"{job.source}: the script or a file that it names changed during the job; run it again")
    try:
        scratch.publish(part, job.target, record, overwrite=job.overwrite)
    except BusyError:
        if find_done(job.target, lambda: key) is not None:  # another run has made it
            remove_work(job.target)
        raise
    remove_work(job.target)
    if tally.doubtful:
        listed = ", ".join(map(str, sorted(tally.doubtful)))
        report.note(f"blurred again, these frames are far from their source; look at them first: {listed}")
    length = float((film.timestamps[-1] - film.timestamps[0]) * film.time_base)
    report.note(f"made {job.target}: {len(frames)} frames of {size[0]}x{size[1]}, {clock(length)}")
    return record


def _forget(job: RestoreJob) -> None:
    """Delete finished ranges of what a refused source held before: nothing else would."""
    with suppress(OSError):
        digits = source_digits(job.source, Fingerprint.of(job.source))
        if not sweep(job.target):
            remove_work(job.target, replaced=digits)


def _file(job: RestoreJob, report: Report) -> tuple[Source, SourceClip]:
    """Inspect and open a video file.

    Raises:
        VsfmanetError: It cannot be used.
    """
    if job.audio_from is not None:
        raise ConfigError(f"--audio-from is for a script ({SCRIPT}), got {job.source}; its own sound is copied")
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
    settings = replace(job.settings, source_path=None if is_script(job.source) else source.path)
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
    target = job.target
    if len(os.fsencode(target.name)) > MAX_NAME:
        raise ConfigError(f"{target}: a file name of at most {MAX_NAME} bytes is needed; choose a shorter one")
    settle(target)
    if not os.path.lexists(target):
        return None
    if job.source.exists() and target.exists() and target.samefile(job.source):
        raise ConfigError(f"{target}: the output must not be the source, which is never replaced; name another")
    if job.source.is_file() and target.is_file():
        record = find_done(target, lambda: job_key(Fingerprint.of(job.source), recipe(job).digest()))
        if record is not None:
            return record
    if not job.overwrite:
        raise ConfigError(f"{target}: the output exists already; name another, or pass --overwrite")
    if not target.is_file():
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


def _check_room(job: RestoreJob, film: Film, frames: int, missing: int | None) -> None:
    """Refuse a job that the disk cannot hold: the output and, if it is made in ranges, the missing ones.

    Raises:
        OutputError: Too little is free.
    """
    expected = output_bytes(
        frames=frames + (missing or 0),
        pixels=film.size[0] * film.size[1],
        pixel_format=film.pixel_format,
        encoder_args=film.encoder_args,
    )
    needed = ROOM * expected / 2**30 + job.reserve
    free = shutil.disk_usage(job.target.absolute().parent).free / 2**30
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
    if reason is None:
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


def _encode(
    job: RestoreJob,
    film: Film,
    ffmpeg: Ffmpeg,
    part: Path,
    restored: vs.VideoNode,
    folder: Path,
    scratch: Scratch,
    report: Report,
    tally: Tally,
) -> None:
    """Feed all restored frames to the encoder.

    Raises:
        VsfmanetError: A frame could not be restored, or not be encoded; the encoder has been killed.
    """
    frames = clips.read_frames(film.source, restored, ahead=clips.frames_ahead(job.settings), tally=tally)
    with report.begin("restoring", len(film.timestamps)) as progress:
        first = next(frames)
        report.phase("encoding")
        film = replace(film, colour=clips.colour(first))  # how the filter wants the samples to be read
        run = whole_run(film, ffmpeg, part, covers=folder)
        with Encoder(run, film, launch=scratch.launch, thumbnails=folder / THUMBNAILS) as encoder:
            for frame in chain([first], frames):
                encoder.write(clips.frame_bytes(frame))
                progress.advance()
            report.phase("finishing")
            encoder.finish()


def _versions(ffmpeg: Ffmpeg) -> dict[str, str]:
    """Versions of what took part in a job."""
    release = ".".join(map(str, ffmpeg.release))
    return {name: version(name) for name in TAKING_PART} | {"python": platform.python_version(), "ffmpeg": release}
