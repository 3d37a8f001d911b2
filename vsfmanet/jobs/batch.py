"""Restores all films of a folder, one after the other, each in a process of its own, and keeps a journal of them."""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path

import av
import vapoursynth as vs

from vsfmanet.errors import ConfigError, OutputError, VsfmanetError
from vsfmanet.jobs import supervise
from vsfmanet.jobs.files import pending_records, record_path, remove_work, settle, sweep
from vsfmanet.jobs.job import BatchOptions, recipe
from vsfmanet.jobs.journal import FOLDER as FOLDER
from vsfmanet.jobs.journal import Journal, Row, open_journal, read_states
from vsfmanet.jobs.page import before_and_after, tally, write_page
from vsfmanet.jobs.paths import Pairing, Survey, survey
from vsfmanet.jobs.progress import Report, frames_state
from vsfmanet.jobs.record import Fingerprint, Record, find_done, job_key
from vsfmanet.jobs.supervise import MACHINE, Event, Outcome, Stop, Verdict
from vsfmanet.media import clip as clips
from vsfmanet.media.coding import choose_encoder, output_bytes
from vsfmanet.media.decode import main_track, open_container
from vsfmanet.media.excerpt import excerpt, outline
from vsfmanet.media.meter import clock
from vsfmanet.media.script import is_script
from vsfmanet.settings import RestoreSettings
from vsfmanet.sizes import result_size, with_model

REPORT = "vsfmanet-report.html"

JOURNAL = "journal.sqlite3"

TRIES = 3
"""Failed attempts after which a job is quarantined."""

PRECEDENCE = (1, 2, 4, 5, 8, 7, 6, 3)
"""Exit code of a batch: the first of these that one of its jobs has."""

STATES: dict[Verdict, str] = {"refused": "refused", "damaged": "damaged", "machine": "failed", "busy": "new"}
"""States after an attempt that does not count as failed."""

PICTURES = 500
"""Most pictures in the report, which a browser must be able to open."""


BEFORE = {"reading", "decoding", "indexing", "preparing", "trying the encoder"}
"""Phases of a job before its frames are restored."""

AFTER = {"joining", "verifying"}
"""Steps of a job after its frames are restored."""

NAMED = 8
"""Files that are passed over and named."""

GLANCE = 5
"""Frames that a dry run decodes of each source."""

DOUBTFUL = "blurred again, these frames are far from their source; look at them first: "
"""Beginning of the warning with the frames that the self-check doubts."""

NAME = 20
"""Columns of a file's name on a terminal."""

BUDGET = 60.0
"""Most seconds that a measurement takes, without loading the network."""

SMALLEST = 64
"""Shorter side of the frames of the first measurement, pixels."""

WARM, MEASURED = 4, 8
"""Frames that are restored before the measurement and in it: whole segments."""


def dry_run(options: BatchOptions, report: Report) -> None:
    """Report what a batch would do and how long it would take, by the headers of the sources.

    Args:
        options: The batch.
        report: Receives the lines.

    Raises:
        ConfigError: The batch could not start.
        WeightsError: The model cannot be used.
        DeviceError: There is no such device.
    """
    jobs = find_jobs(options, report)
    settings = options.template.settings
    scale = 1 if settings.resizes else model_scale(settings.named_model)
    template = options.template
    pixel_format = f"yuv420p{template.depth}le" if (template.depth or 8) > 8 else "yuv420p"
    encoder = choose_encoder(template.encoder_args, pixel_format, options.selection.suffix, template.preset)
    states = read_states(journal_path(options), jobs, recipe(options.template).digest())
    counted = frames = pixels = size = 0
    largest, sample = (0, 0), Path()
    for job in jobs:
        why = _why_not(job, states.get(job.source), options)
        if why:
            report.note(f"{job.source}: {why}")
            continue
        text, count, (width, height) = _estimate(job.source, deinterlace=options.template.deinterlace)
        counted += 1
        frames += count
        pixels += count * width * height
        made = result_size(settings, width, height, multiples=(2, 2)) if count else None
        made = made or (scale * width, scale * height)
        size += output_bytes(frames=count, pixels=made[0] * made[1], pixel_format=pixel_format, encoder_args=encoder)
        if width * height > largest[0] * largest[1]:
            largest, sample = (width, height), job.source
        report.note(f"{job.source} -> {job.target}: {text}")
    free = shutil.disk_usage(_existing(options.out_folder)).free
    others = f" to do, {len(jobs) - counted} not" if counted < len(jobs) else ""
    report.note(
        f"{counted} files{others}, about {frames} frames; about {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free"
    )
    if pixels:
        speed, (width, height) = measure_speed(with_model(settings, *largest), largest, sample)
        report.note(
            f"about {clock(pixels / speed)} on this device (measured: {width * height / speed:.3g} s for a frame of "
            f"{width}x{height}, other sizes in proportion)"
        )


def journal_path(options: BatchOptions) -> Path:
    """Where the journal of a batch is."""
    return (options.journal or options.out_folder / FOLDER / options.own(JOURNAL)).absolute()


def _why_not(job: Pairing, known: tuple[str, str] | None, options: BatchOptions) -> str:
    """Why a batch would not do a job, by the journal; empty if it would."""
    state, cause = known or ("new", "")
    if state == "done" and job.target.is_file():
        return f"done, {job.target}"
    if state in ("refused", "damaged", "quarantined") and not options.retry:
        return f"{state} before, --retry tries it again: {cause}"
    return ""


class Batch:
    """Runs a batch.

    Args:
        options: The batch.
        report: Receives messages and progress.
    """

    def __init__(self, options: BatchOptions, report: Report) -> None:
        self._options = options
        self._report = report
        self._recipe = ""
        self._finished = _Finished()
        self._pictures = 0
        self._rows: dict[int, Row] = {}
        self._stop = Stop()
        self._stopped = False
        self._journal = journal_path(options)

    def run(self) -> int:
        """Run every job that is not done.

        Returns:
            The exit code.

        Raises:
            VsfmanetError: The batch cannot start, or its journal cannot be written.
        """
        options = self._options
        found = _surveyed(options, self._report)
        if options.resume and not self._journal.is_file():
            raise ConfigError(f"{self._journal}: a journal to resume is needed, got none; leave --resume out")
        self._recipe = recipe(options.template).digest()
        with open_journal(self._journal) as journal:
            rows = journal.register(found.jobs, self._recipe)
            _refuse([row.job.target for row in rows if row.state != "done" and _is_foreign(row.job.target)])
            self._rows = {row.id: row for row in rows}
            for number, (job, why) in enumerate(found.refused, start=1):
                self._rows[-number] = _refused(job, why, -number)
                self._report.warn(f"{job.source}: refused: {why}")
            self._pictures = sum(bool(row.picture) for row in rows)
            try:
                stopped_by = self._run_all(journal)
            finally:
                if not self._stopped:
                    self._conclude()
        codes = {row.exit_code for row in self._rows.values() if row.state != "done"} | {stopped_by}
        return next((code for code in PRECEDENCE if code in codes), 0)

    def stop(self) -> None:
        """End the running job and write the report. May be called from any thread, at any time."""
        self._stopped = True
        self._stop()
        self._report.close()
        if self._rows:
            self._conclude()

    def _run_all(self, journal: Journal) -> int | None:
        """Run the jobs that are left; return the exit code of a fault of the machine that stopped the batch."""
        queue = deque(self._waiting())
        total = len(queue)
        self._report.note(f"{total} of {len(self._rows)} jobs to do")
        with self._report.begin("batch", total):
            return self._work_off(journal, queue)

    def _work_off(self, journal: Journal, queue: deque[int]) -> int | None:
        """Run a queue of jobs; see `_run_all`."""
        total = len(queue)
        waiting = sum(self._rows[number].job.size for number in queue)
        while queue:
            row = self._rows[queue.popleft()]
            number = total - len(queue)
            started = time.monotonic()
            waiting -= row.job.size
            hear = partial(self._hear, row=row, number=number, total=total, started=started, waiting=waiting)
            earlier = row.attempts
            row = self._rows[row.id] = journal.save(self._attempt(journal, row, hear))
            if row.state == "done" and row.attempts > earlier:  # otherwise its output was there
                self._finished.add(row.job.size, time.monotonic() - started)
            self._add_picture(journal, row)
            place = f"[{number}/{total}] {row.job.source}"
            if row.state == "done":
                self._report.note(f"{place}: done, {row.frames} frames in {clock(row.seconds)}")
                continue
            self._report.warn(f"{place}: {row.state}: {row.cause}")
            if row.exit_code in MACHINE:
                self._report.warn("other jobs would fail alike: the batch stops; mend the cause and run it again")
                return row.exit_code
            if row.state == "failed" and row.exit_code != 1:
                queue.append(row.id)
                waiting += row.job.size
        return None

    def _waiting(self) -> list[int]:
        """Pending jobs; previously failed ones last, so that they do not keep the others waiting."""
        states = ["new", "failed"] + (["refused", "damaged", "quarantined"] if self._options.retry else [])
        for row in self._rows.values():
            if row.state == "done" and not self._is_still_done(row):
                self._report.warn(f"{row.job.target}: was done, but is missing or has changed; it is made again")
                self._rows[row.id] = replace(row, state="new")
            elif self._options.retry:
                self._rows[row.id] = replace(row, failures=0)
        waiting = [row for row in self._rows.values() if row.state in states and row.id > 0]
        return [row.id for row in sorted(waiting, key=lambda row: states.index(row.state))]

    def _is_still_done(self, row: Row) -> bool:
        """Whether an output is unchanged, by its size, or with `recheck` by its bytes."""
        target = row.job.target
        if self._options.recheck:
            return self._find_done(row) is not None
        try:
            return target.stat().st_size == row.output_size
        except OSError:
            return False

    def _find_done(self, row: Row) -> Record | None:
        """Record of a row's output, if it is done and intact."""
        try:
            return find_done(row.job.target, lambda: self._key(row)) if row.job.target.is_file() else None
        except OSError:  # the source or the output cannot be read: the job will report that
            return None

    def _key(self, row: Row) -> str:
        """`job_key` of a row's job."""
        return job_key(Fingerprint.of(row.job.source), self._recipe)

    def _hear(self, event: Event | bytes, *, row: Row, number: int, total: int, started: float, waiting: int) -> None:
        """Pass the warnings of the running job on, and show its progress."""
        if isinstance(event, bytes):
            return
        if event["event"] == "warning":
            self._report.warn(f"{row.job.source}: {event['text']}")
        elif event["event"] == "phase" and event["name"] in BEFORE:
            place = f"{number}/{total} {_shortened(row.job.source.name)}"
            self._report.show(
                f"job {number} of {total}: {event['name']}", number - 1, {}, brief=f"{place}: {event['name']}"
            )
        elif event["event"] == "progress":
            self._show(event, row=row, number=number, total=total, started=started, waiting=waiting)

    def _show(self, event: Event, *, row: Row, number: int, total: int, started: float, waiting: int) -> None:
        """Show the progress of the running job and of the batch; other jobs are assumed to take as long per byte."""
        step, done, job_total = event["step"], event["done"], event["total"]
        speed, job_left = event.get("speed"), event.get("seconds_left")
        state = (
            f"job {number} of {total}, {row.job.source.name}: {step} {frames_state(done, job_total, speed, job_left)}"
        )
        fields: dict[str, object] = {"job": str(row.job.source)}
        fields |= {"job_step": step, "job_done": done, "job_total": job_total}
        if speed is not None and job_left is not None:
            fields |= {"speed": speed, "job_seconds_left": job_left}
        part = done / job_total if step == "restoring" else 1.0 if step in AFTER else 0.0
        brief = f"{number}/{total} {_shortened(row.job.source.name)}: {step} {100 * done // max(1, job_total)} %"
        left = self._finished.seconds_left(
            running=row.job.size, running_left=job_left, spent=time.monotonic() - started, waiting=waiting
        )
        if left is not None:
            state += f"; all jobs: about {clock(left)} left"
            brief += f", all in {clock(left)}"
            fields["seconds_left"] = round(left, 1)
        self._report.show(state, round(number - 1 + part, 4), fields, brief=brief)

    def _add_picture(self, journal: Journal, row: Row) -> None:
        """Add a picture for the report to a done row, which has been stored: the job is done even without one."""
        if row.state == "done" and not row.picture and self._pictures < PICTURES:
            self._pictures += 1
            picture = before_and_after(row.job.source, row.job.target)
            self._rows[row.id] = journal.save(replace(row, picture=picture))

    def _attempt(self, journal: Journal, row: Row, hear: Callable[[Event | bytes], None]) -> Row:
        """Run one job, unless its output is there already; return its new row."""
        settle(row.job.target)
        record = self._find_done(row)
        if record is not None:
            if row.attempts:
                sweep(row.job.target)  # of a run that was killed before it stored that the job is done
                remove_work(row.job.target)
            return _done(row, record, seconds=0)
        try:
            self._prepare(row.job.target.parent)
        except OutputError as error:
            return replace(row, exit_code=error.exit_code, cause=str(error))
        row = self._rows[row.id] = journal.lease(row)
        job = replace(
            self._options.template,
            source=row.job.source,
            target=row.job.target,
            overwrite=os.path.lexists(row.job.target),  # ours, of other settings or damaged; it is kept as `.old1`
        )
        started = time.monotonic()
        try:
            outcome = supervise.supervise(
                job, attempt=row.attempts, stall_limit=self._options.stall_limit, hear=hear, stop=self._stop
            )
        except OutputError as error:
            return replace(row, state="failed", exit_code=error.exit_code, cause=str(error))
        row = replace(row, seconds=time.monotonic() - started, warnings=outcome.warnings)
        if outcome.record is not None and self._is_of(row, outcome.record):
            remove_work(row.job.target)
            return _done(row, outcome.record, seconds=row.seconds)
        return _not_done(row, outcome)

    def _is_of(self, row: Row, record: Record) -> bool:
        """Whether a record is of a row's job."""
        try:
            return record.key == self._key(row)
        except OSError:  # the source cannot be read any more
            return False

    def _prepare(self, folder: Path) -> None:
        """Create the folder of an output, and check the free space.

        Raises:
            OutputError: The folder cannot be created, or less than `reserve` is free.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free / 2**30
        except OSError as error:
            raise OutputError(f"{folder}: the folder must be writable, but {error}; mend its rights") from error
        reserve = self._options.template.reserve
        if free < reserve:
            raise OutputError(
                f"{self._options.out_folder}: {reserve:g} GiB must be free, got {free:.2f}; make room, or lower "
                "--reserve"
            )

    def _conclude(self) -> None:
        """Write the report and the last line on the terminal."""
        rows = list(self._rows.values())
        path = self._options.out_folder / self._options.own(REPORT)
        try:
            write_page(path, rows, self._options, now=datetime.now().astimezone())
            where = f"report: {path}"
        except OSError as error:
            where = f"the report could not be written ({error})"
        self._report.note(f"{tally(rows)}; {where}")


def _shortened(name: str) -> str:
    """The beginning and the end of a name, for a terminal of 80 columns."""
    return name if len(name) <= NAME else f"{name[: NAME - 9]}…{name[-8:]}"


class _Finished:
    """Speed of a batch so far."""

    def __init__(self) -> None:
        self._bytes = 0
        self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Count a job that is done."""
        self._bytes += size
        self._seconds += seconds

    def seconds_left(self, *, running: int, running_left: float | None, spent: float, waiting: int) -> float | None:
        """Estimate the seconds for the rest of a batch; None if nothing is known yet.

        Args:
            running: Size of the running job's source, bytes.
            running_left: Seconds that the running job still needs by its own estimate; None without one.
            spent: Seconds that the running job has taken.
            waiting: Size of the sources of the waiting jobs, bytes.
        """
        if self._bytes:
            rate = self._seconds / self._bytes
        elif running and running_left is not None:
            rate = (spent + running_left) / running
        else:
            return None
        return (max(0.0, rate * running - spent) if running_left is None else running_left) + rate * waiting


def model_scale(model: str) -> int:
    """Output size over input size.

    Raises:
        WeightsError: The model cannot be used.
    """
    from vsfmanet.weights import load_model  # with torch: late

    return load_model(model).scale


def measure_speed(settings: RestoreSettings, size: tuple[int, int], source: Path) -> tuple[float, tuple[int, int]]:
    """Measure the speed of this device with a few frames of a film, or with grey ones if they cannot be read.

    Args:
        settings: Settings of the filter.
        size: Width and height of the film's frames. Those of the measurement are as large as `BUDGET` allows.
        source: The film.

    Returns:
        Input pixels per second, and the width and height of the frames that were measured.

    Raises:
        VsfmanetError: The network or the device cannot be used.
    """
    exposure = "auto" if isinstance(settings.exposure, str) else settings.exposure
    settings = replace(settings, exposure=exposure, segment=WARM, skip=False, height=None, width=None, scale=None)
    node = _sample(source)
    part = min(1.0, SMALLEST / min(size))
    while True:
        width, height = (max(16, round(side * part / 2) * 2) for side in size)
        seconds = _measure(settings, node.resize.Bicubic(width, height))
        larger = min(1.0, 2 * part)
        frames = WARM + MEASURED + 8  # with context
        if part == 1 or seconds * (larger / part) ** 2 * frames > BUDGET:
            return width * height / seconds, (width, height)
        part = larger


def _sample(source: Path) -> vs.VideoNode:
    """Frames in the middle of a film, as many as a measurement takes."""
    from vsfmanet.clips import colour  # with torch: late

    try:
        film = outline(source)
        node = excerpt(film, film.length / 2).node
        if node.format.color_family != vs.YUV or node.format.bits_per_sample > 8:
            node = colour.plain(colour.tag_colour(node), vs.core.get_video_format(vs.YUV420P8), node.width, node.height)
        return node.std.Loop()[: WARM + MEASURED]
    except (VsfmanetError, av.FFmpegError, vs.Error):  # the job will report it
        grey = vs.core.std.BlankClip(width=64, height=64, format=vs.YUV420P8, length=WARM + MEASURED, color=[128] * 3)
        return grey.std.SetFrameProps(_Matrix=1, _Range=1)


def _measure(settings: RestoreSettings, node: vs.VideoNode) -> float:
    """Seconds that a frame of a clip takes."""
    restored = clips.restore_clip(node, settings)
    restored.get_frame(0).close()
    started = time.monotonic()
    for frame in restored[WARM:].frames(prefetch=1, close=True):
        frame.props  # noqa: B018 - it is here
    return (time.monotonic() - started) / MEASURED


def find_jobs(options: BatchOptions, report: Report) -> Sequence[Pairing]:
    """Return the jobs of a batch.

    Raises:
        ConfigError: There are none, names or folders cannot be used, or files that are not ours have an output's name.
    """
    found = _surveyed(options, report)
    for job, why in found.refused:
        report.warn(f"{job.source}: left out: {why}")
    _refuse([job.target for job in found.jobs if _is_foreign(job.target)])
    return found.jobs


def _surveyed(options: BatchOptions, report: Report) -> Survey:
    """Survey the folders of a batch.

    Raises:
        ConfigError: There are no jobs, or names or folders cannot be used.
    """
    found = survey(options.in_folder, options.out_folder, options.selection)
    for text in found.skipped:
        report.warn(f"skipped {text}")
    if found.passed_over:
        more = len(found.passed_over) - NAMED
        named = ", ".join(found.passed_over[:NAMED]) + (f" and {more} more" if more > 0 else "")
        report.note(f"passed over, as no videos by their names (--include): {named}")
    if found.problems:
        lines = "".join(f"\n  {problem}" for problem in found.problems)
        raise ConfigError(f"every name must be usable, got {len(found.problems)} that are not:{lines}")
    if not found.jobs and not found.elsewhere and not found.refused:
        raise ConfigError(f"{options.in_folder}: video files are needed, got none; check IN_DIR and --include")
    return found


def _refused(job: Pairing, why: str, number: int) -> Row:
    """Build a row for a source that is refused for its name; it is not stored, as names can change."""
    return Row(
        id=number,
        job=job,
        state="refused",
        attempts=0,
        failures=0,
        exit_code=3,
        cause=why,
        frames=0,
        output_size=0,
        seconds=0.0,
        picture=b"",
    )


def _refuse(foreign: Sequence[Path]) -> None:
    """Refuse to replace files that vsfmanet did not make.

    Raises:
        ConfigError: There are such files.
    """
    if foreign:
        lines = "".join(f"\n  {path}" for path in foreign)
        raise ConfigError(
            f"outputs must not be there, got {len(foreign)} without a record of vsfmanet; move them, or choose "
            f"another OUT_DIR:{lines}"
        )


def _is_foreign(target: Path) -> bool:
    """Whether a file without a record has the name of an output."""
    return os.path.lexists(target) and not os.path.lexists(record_path(target)) and not pending_records(target)


def _done(row: Row, record: Record, *, seconds: float) -> Row:
    """Build the row of a job whose output is there."""
    warnings = row.warnings
    if record.doubtful:
        text = f"{DOUBTFUL}{', '.join(sorted(record.doubtful, key=int))}"
        warnings = (*(each for each in warnings if not each.startswith(DOUBTFUL)), text)
    return replace(
        row,
        state="done",
        failures=0,
        exit_code=0,
        cause="",
        frames=record.frames,
        output_size=record.output_size,
        seconds=seconds or row.seconds,
        warnings=warnings,
    )


def _not_done(row: Row, outcome: Outcome) -> Row:
    """Build the row of a job whose attempt failed."""
    cause = outcome.cause or "the output is of another job; move it, or choose another OUT_DIR"
    if outcome.verdict in STATES:
        return replace(row, state=STATES[outcome.verdict], exit_code=outcome.code, cause=cause)
    failures = row.failures + 1
    return replace(
        row,
        state="quarantined" if failures >= TRIES else "failed",
        failures=failures,
        exit_code=outcome.code or 6,
        cause=cause,
    )


def _estimate(source: Path, *, deinterlace: bool) -> tuple[str, int, tuple[int, int]]:
    """Read a source's header and first frames: description, number of frames to restore, width and height."""
    if is_script(source):
        try:
            script = outline(source)
        except VsfmanetError as error:
            return f"cannot be used ({error})", 0, (0, 0)
        assert script.node is not None
        size = (script.node.width, script.node.height)
        return f"{script.frames} frames of {size[0]}x{size[1]}, {clock(float(script.length))}", script.frames, size
    try:
        with open_container(source) as container:
            track = main_track(container)
            if track is None:
                return "no video track", 0, (0, 0)
            width, height = track.codec_context.width, track.codec_context.height
            seconds = (container.duration or 0) / 1_000_000
            frames = track.frames or round(seconds * float(track.average_rate or 25))
            woven = any(frame.interlaced_frame for frame in islice(container.decode(track), GLANCE))
    except (av.FFmpegError, OSError) as error:
        return f"cannot be opened ({error.strerror})", 0, (0, 0)
    described = f"{frames} frames of {width}x{height}, {clock(seconds)}"
    if woven and not deinterlace:
        return f"{described}; interlaced, will be refused without --deinterlace", 0, (0, 0)
    return described, frames, (width, height)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    parents: Iterable[Path] = (folder, *folder.absolute().parents)
    return next(parent for parent in parents if parent.exists())
