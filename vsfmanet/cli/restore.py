"""`vsfmanet restore`."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from vsfmanet.cli.options import END, OUTPUT, RUN, JobOptions, job_of
from vsfmanet.cli.terminal import print_json, run_until_stopped, tell_error, tell_result
from vsfmanet.errors import ConfigError
from vsfmanet.jobs.job import STALL_LIMIT, RestoreJob
from vsfmanet.media.containers import PIPE

NOTES = """\
Sound, subtitles, chapters, attachments, tags and timestamps are copied; colour tags and sample aspect ratio are kept.
The result appears under its name once every frame of it has been decoded again, and all that was copied has been
compared packet by packet with the source; until then it is a hidden part file beside it. The source is only read. A
record (OUT.vsfmanet.json) states what the result was made of: run again on a job that is done, the command checks the
record and makes nothing new.

A film of more than --range-frames frames is made in ranges, each in a file of its own in a hidden folder beside OUT,
which are joined in the end without coding them again: a job that was killed continues after the last whole range. While
it runs that takes twice the disk space of OUT. With encoder options that may prevent joining (filters, two passes,
unknown ones), the film is made in one pass and a warning explains why.

With --start and --end, what is copied is cut to the same time, at the limits of packets: sound begins within one packet
(some 20 ms) after the first frame, at its right place; a subtitle that is shown already is kept from there on.

A VapourSynth script is run inside the job, and its output 0 is restored, encoded and verified as the frames of a film
are; if it restores its frames by itself, they are encoded as they are. The record has a hash of the script, of the
modules beside it and of the files that its text names. A script can depend on more than that, such as the time or other
files: then another run, and ranges that go on after a kill, may differ, and nobody can notice.

Numbered pictures are PNG or TIFF of 8 or 16 bit. As an output they get the name of their folder once all of them have
been decoded again and are, sample by sample, what was written; until then they are in a hidden folder beside it, where
a job that was killed goes on. Frames from stdin are first kept in a temporary file, without loss. A job with stdin or
stdout cannot go on after a kill, and nobody can check here what becomes of stdout.

Exit codes: 0 done and verified, 1 bug, 2 usage, 3 source, 4 device, 5 output or encoder, 6 result incomplete, 7 busy:
another run makes the same output, 8 weights, 128+n stopped by signal n

Examples:

    vsfmanet restore film.mkv restored.mkv
    vsfmanet restore clip.mp4 clip_x4.mp4 --exposure 0.5 --device cuda
    vsfmanet restore film.mkv part.mkv --start 0:01:00 --end 1750
    vsfmanet restore film.mkv archive.mkv --encoder-args="-c:v ffv1 -level 3"
    vsfmanet restore script.vpy restored.mkv --audio-from film.mkv
    vsfmanet restore frames/%06d.png restored/%06d.png
    vspipe -c y4m script.vpy - | vsfmanet restore - restored.mkv
    vsfmanet restore -- -odd-name.mkv out.mkv
"""

app = App(name="restore", help_epilogue=NOTES)


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """How a job reports."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the record, or the error, as JSON on stdout."""
    progress: Literal["auto", "json"] = "auto"
    """Progress on stderr: for people, or one JSON object a line, each second, for programs."""


_JOB, _REPORTING = JobOptions(), Reporting()


@app.default
def restore(
    source: Annotated[Path, END, Parameter(name="IN")],
    target: Annotated[Path, END, Parameter(name="OUT")],
    /,
    *,
    job: Annotated[JobOptions, Parameter(name="*", group=OUTPUT)] = _JOB,
    reporting: Annotated[Reporting, Parameter(name="*", group=RUN)] = _REPORTING,
    stall_limit: Annotated[float, Parameter(group=RUN, metavar="SECONDS")] = STALL_LIMIT,
) -> int:
    """Restore one video file.

    Args:
        source: Video file, VapourSynth script (.vpy), numbered pictures such as frames/%06d.png, or "-" for y4m on
            stdin; it is only read.
        target: File to make: .mkv, .mp4 or .mov; numbered pictures such as restored/%06d.png, in a folder of their own;
            or "-" for y4m on stdout.
        stall_limit: Stop a job that makes no progress for so long.
    """
    return _guarded(job_of(job, source, target), reporting, stall_limit=stall_limit)


@app.command(name="--job", show=False)
def run_job(file: Annotated[str, Parameter(allow_leading_hyphen=True)], /, *, attempt: int = 1, parent: int) -> int:
    """Run a job for the process that supervises this one, and print its record or its error as JSON.

    Args:
        file: File with the job, as `RestoreJob.to_json` writes it; "-" for stdin.
        attempt: Number of the attempt, for the record.
        parent: Process whose end ends this one.
    """
    try:
        table = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--job must name a job as JSON, got {error}") from error
    return _as_child(RestoreJob.from_json(table), attempt=attempt, parent=parent)


def _guarded(job: RestoreJob, reporting: Reporting, *, stall_limit: float) -> int:
    """Run a job in another process, which this one supervises.

    Raises:
        ConfigError: stdout would carry frames and JSON.
    """
    from vsfmanet.jobs.progress import Report
    from vsfmanet.jobs.supervise import Outcome, Stop, supervise

    if job.target == PIPE and reporting.as_json:
        raise ConfigError("stdout carries the frames, so that --json cannot be printed there; leave it out")
    report, stop = Report(as_json=reporting.progress == "json"), Stop()
    report.phase("loading")

    def work() -> Outcome:
        outcome = supervise(job, stall_limit=stall_limit, hear=report.repeat, stop=stop, own_group=False)
        report.close()
        return outcome

    def clear_up() -> None:
        report.close()
        stop()

    outcome = run_until_stopped(work, clear_up)
    if outcome.cause:
        tell_error(outcome.cause, as_json=reporting.progress == "json")
    if reporting.as_json:
        print_json(outcome.to_json())
    return outcome.code


def _as_child(job: RestoreJob, *, attempt: int, parent: int) -> int:
    """Run a job in this process, which ends with its parent."""
    from vsfmanet.jobs.supervise import die_with

    die_with(parent)
    return _here(job, Reporting(as_json=True, progress="json"), attempt=attempt, is_child=True)


def _here(
    job: RestoreJob,
    reporting: Reporting,
    *,
    attempt: int = 1,
    is_child: bool = False,
) -> int:
    """Run a job in this process."""
    from vsfmanet.jobs.progress import Report
    from vsfmanet.jobs.runner import run
    from vsfmanet.jobs.scratch import Scratch

    report, scratch = Report(as_json=reporting.progress == "json"), Scratch(attempt=attempt)

    def clear_up() -> None:
        report.close()
        if scratch.discard():
            report.note("the ranges that are finished stay: the same command continues after them")

    record = run_until_stopped(lambda: run(job, report, scratch), clear_up, is_child=is_child)
    if PIPE in (job.source, job.target) and is_child:
        tell_result(asdict(record))
    elif reporting.as_json:
        print_json(asdict(record))
    return 0
