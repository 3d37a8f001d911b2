"""A program that stands in for `vsfmanet`: a batch without weights, and jobs that do what their source says.

The jobs take the real way from a part file to an output with a record, but make it of text, in milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from vsfmanet.errors import VsfmanetError
from vsfmanet.jobs import scratch
from vsfmanet.jobs.child import die_with
from vsfmanet.jobs.files import move_new
from vsfmanet.jobs.record import Fingerprint, Recipe, Record, file_sha256, find_done, job_key, write_record

PAUSE = float(os.environ.get("STUB_PAUSE", "0"))
"""Seconds between the steps of a job, so that a kill can come between any two."""


def stub_recipe(crf: str) -> Recipe:
    """Stands in for the settings of a job."""
    return Recipe(model="stub", weights_sha256="0", settings={"encoder_args": crf}, version="1")


def content(source: Path) -> str:
    """What the output of a source must be."""
    return f"restored {source.read_text()}"


def restore(arguments: list[str]) -> None:
    """Do what the first word of the source says."""
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[:-2])
    source, target = Path(arguments[-2]), Path(arguments[-1])
    die_with(int(options["parent"]))
    recipe = stub_recipe(options["encoder-args"])
    key = job_key(Fingerprint.of(source), recipe.digest())
    if target.exists() and find_done(target, lambda: key):
        return
    word = source.read_text().partition(" ")[0]
    work = scratch.Scratch(attempt=int(options["attempt"]))
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
    work.publish(part, target, record, overwrite="overwrite" in options)


def misbehave(word: str, source: Path) -> None:
    """Fail as the source says."""
    codes = {"disk": 5, "device": 4, "refused": 3, "damaged": 3, "wrong": 6, "bug": 1}
    if word in codes:
        kind = {"refused": "FormatError", "damaged": "DamagedError"}.get(word, "OutputError")
        tell(kind, f"restore: {source.name}: {word}; mend it")
        sys.exit(codes[word])
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "vanish":
        os._exit(0)
    if word == "hang":
        time.sleep(60)
    if word == "flood":
        sys.stderr.write("noise\n" * 500_000)


def tell(kind: str, text: str) -> None:
    """What went wrong, as `--json` has it."""
    sys.stdout.write(json.dumps({"error": kind, "message": text}))


def slow_down() -> None:
    """Pause between the steps of publishing, so that kills come there too."""

    def slow_move(path: Path, target: Path) -> None:
        move_new(path, target)
        time.sleep(PAUSE)

    def slow_write(record: Record, path: Path) -> None:
        write_record(record, path)
        time.sleep(PAUSE)

    vars(scratch).update(move_new=slow_move, write_record=slow_write)


if __name__ == "__main__":
    if sys.argv[1] == "restore":
        slow_down()
        try:
            restore(sys.argv[2:])
        except VsfmanetError as error:
            tell(type(error).__name__, str(error))
            sys.exit(error.exit_code)
    else:
        from vsfmanet.cli import main
        from vsfmanet.jobs import batch, cluster

        batch.PROGRAM = (sys.executable, __file__)
        cluster.weights_sha256 = lambda model: "0"  # type: ignore[attr-defined]
        if "STUB_OTHER_VERSION" in os.environ:  # of a driver; Ray's nodes have the environment of their own start
            cluster.__version__ = "0.0.1"  # type: ignore[attr-defined]
        batch.recipe = lambda job: stub_recipe(job.encoder_args)  # type: ignore[attr-defined]
        cluster.recipe = batch.recipe  # type: ignore[attr-defined]
        sys.exit(main(sys.argv[1:]))
