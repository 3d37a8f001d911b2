"""A program that stands in for `vsfmanet`: a batch without weights, and jobs that do what their source says.

The jobs take the real way from a part file to an output with a record, but make it of text, in milliseconds. Where a
process of their own is not the point, `stand_in` does them in that of the batch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from vsfmanet.errors import VsfmanetError
from vsfmanet.jobs import scratch
from vsfmanet.jobs.files import move_new
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.record import (
    Fingerprint,
    Recipe,
    Record,
    find_done,
    job_key,
    write_pending,
    write_record,
)
from vsfmanet.jobs.supervise import Event, Outcome, Stop, die_with
from vsfmanet.manifest import file_sha256

PAUSE = float(os.environ.get("STUB_PAUSE", "0"))
"""Seconds between the steps of a job, so that a kill can come between any two."""


def stub_recipe(crf: str) -> Recipe:
    """Stands in for the settings of a job."""
    return Recipe(model="stub", weights_sha256="0", settings={"encoder_args": crf}, version="1")


def content(source: Path) -> str:
    """What the output of a source must be."""
    return f"restored {source.read_text()}"


def restore(job: RestoreJob, attempt: int) -> Record:
    """Do what the first word of the source says."""
    source, target = job.source, job.target
    recipe = stub_recipe(job.encoder_args)
    key = job_key(Fingerprint.of(source), recipe.digest())
    if target.exists() and (record := find_done(target, lambda: key)):
        return record
    word = source.read_text().partition(" ")[0]
    work = scratch.Scratch(attempt=attempt)
    try:
        part = work.make_part(target)
        time.sleep(PAUSE)
        misbehave(word, source)
        part.write_text(content(source))
        time.sleep(PAUSE)
        record = Record(
            key=key,
            attempt=work.attempt,
            source=str(source),
            fingerprint=Fingerprint.of(source),
            recipe=recipe,
            versions={},
            frames=1,
            width=4,
            height=4,
            output_size=part.stat().st_size,
            output_sha256=file_sha256(part),
        )
        work.publish(part, target, record, overwrite=job.overwrite)
    finally:
        work.discard()
    return record


class Fault(Exception):
    """A fault that a job reports: class of the error, message, exit code."""


def misbehave(word: str, source: Path) -> None:
    """Fail as the source says."""
    codes = {"disk": 5, "device": 4, "refused": 3, "damaged": 3, "wrong": 6}
    if word in codes:
        kind = {"refused": "FormatError", "damaged": "DamagedError"}.get(word, "OutputError")
        raise Fault(kind, f"{source.name}: {word}; mend it", codes[word])
    if word == "bug":
        raise ZeroDivisionError(f"{source.name}: {word}; mend it")
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "vanish":
        os._exit(0)
    if word == "hang":
        time.sleep(60)
    if word == "flood":
        sys.stderr.write("noise\n" * 500_000)
    if word == "warn":
        sys.stderr.write(json.dumps({"event": "warning", "text": "look at this"}) + "\n")


def stand_in(
    job: RestoreJob,
    *,
    attempt: int = 1,
    stall_limit: float = 0,
    hear: Callable[[Event | bytes], None] = lambda _: None,
    stop: Stop | None = None,
    own_group: bool = True,
) -> Outcome:
    """`supervise` without a process, for jobs that end by themselves."""
    try:
        return Outcome(code=0, record=restore(job, attempt))
    except Fault as fault:
        error, cause, code = fault.args
    except VsfmanetError as caught:
        error, cause, code = type(caught).__name__, str(caught), caught.exit_code
    except ZeroDivisionError as bug:
        error, cause, code = "", f"Traceback ... {bug}", 1
    return Outcome(code=code, error=error, cause=cause)


def slow_down() -> None:
    """Pause between the steps of publishing, so that kills come there too."""

    def slow_move(path: Path, target: Path) -> None:
        move_new(path, target)
        time.sleep(PAUSE)

    def slow_write(record: Record, path: Path) -> None:
        write_record(record, path)
        time.sleep(PAUSE)

    def slow_pending(record: Record, path: Path) -> None:
        write_pending(record, path)
        time.sleep(PAUSE)

    vars(scratch).update(move_new=slow_move, write_record=slow_write, write_pending=slow_pending)


def answer(told: Mapping[str, object]) -> None:
    """Write a result, as `--json` does."""
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    if sys.argv[1] == "restore":
        attempt, parent = (int(word.partition("=")[2]) for word in sys.argv[4:])
        die_with(parent)
        slow_down()
        try:
            answer(asdict(restore(RestoreJob.from_json(json.load(sys.stdin)), attempt)))
        except Fault as fault:
            error, message, code = fault.args
            answer({"error": error, "message": message, "exit_code": code})
            sys.exit(code)
        except VsfmanetError as caught:
            answer({"error": type(caught).__name__, "message": str(caught), "exit_code": caught.exit_code})
            sys.exit(caught.exit_code)
    else:
        from vsfmanet.cli import main
        from vsfmanet.cluster import joblist
        from vsfmanet.jobs import batch, supervise

        supervise.PROGRAM = (sys.executable, __file__)
        if "STUB_INSIDE" in os.environ:
            slow_down()
            supervise.supervise = stand_in
        joblist.weights_sha256 = lambda model: "0"  # type: ignore[attr-defined]
        if "STUB_OTHER_VERSION" in os.environ:  # of a driver; Ray's nodes have the environment of their own start
            joblist.__version__ = "0.0.1"  # type: ignore[attr-defined]
        batch.recipe = lambda job: stub_recipe(job.encoder_args)  # type: ignore[attr-defined]
        joblist.recipe = batch.recipe  # type: ignore[attr-defined]
        sys.exit(main(sys.argv[1:]))
