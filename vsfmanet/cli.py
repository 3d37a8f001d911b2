"""The command line: `vsfmanet restore`, `batch`, `verify`, `probe`, `models`, `doctor`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vsfmanet.errors import VsfmanetError

if TYPE_CHECKING:
    from vsfmanet.jobs.runner import RestoreJob

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that stop a job; Windows has no SIGHUP."""

EXAMPLES = """\
examples:
  vsfmanet restore film.mkv restored.mkv
  vsfmanet restore clip.mp4 clip_x4.mp4 --exposure 0.5 --device cuda --precision fp16
  vsfmanet restore film.mkv part.mkv --start 1000 --end 1250
  vsfmanet restore film.mkv archive.mkv --encoder-args="-c:v ffv1 -level 3"
  vsfmanet restore -- -odd-name.mkv out.mkv
  vsfmanet probe film.mp4 --export film.csv
  vsfmanet restore film.mp4 restored.mkv --exposure film.csv
  vsfmanet batch archive restored --exclude "*sample*" --dry-run
  vsfmanet verify restored/film.mkv
  vsfmanet models --json
  vsfmanet doctor
"""

RESTORE_NOTES = """\
Sound, subtitles, chapters, attachments, tags and timestamps are copied; colour tags and sample aspect ratio are kept.
The result appears under its name once every frame of it has been decoded again and compared with the source: until
then it is a hidden part file beside it. The source is only read. A record (OUT.vsfmanet.json) says what the result was
made of: run again on a job that is done, the command checks the record and makes nothing new.

With --start and --end, what is copied is cut to the same time, at the limits of packets: sound begins within one packet
(some 20 ms) after the first frame, at its right place; a subtitle that began before is left out.

exit codes: 0 done and verified, 1 bug, 2 usage, 3 source, 4 device, 5 output or encoder, 6 result incomplete,
7 busy: another run makes the same output, 8 weights, 128+n stopped by signal n
"""


BATCH_NOTES = """\
The same command again goes on where the last one ended, however it ended: what is done stays done, everything else is
done again. One bad file never stops the others; a full disk or a lost device stops the batch. A job with other options,
another version or a changed source is another job: its result takes the name, and the old one is kept as OUT.old1.
Names that cannot work, and files that are in the way, are all listed before anything starts (exit code 2).

The journal and a report (vsfmanet-report.html) are in OUT_DIR.

exit codes: the first that applies of 128+n stopped by signal n, 1 bug, 2 usage, 4 device, 5 output or disk, 8 weights,
7 another batch is running, 6 a job failed, 3 sources refused or damaged, 0 all done and verified
"""

PROBE_NOTES = """\
A file of exposures is a table with the columns frame (from 0) and exposure, separated by commas, or the same as JSON:

  frame,exposure          {"exposure": [0.5, 0.48, null]}
  0,0.5
  1,0.48
  2,

Every frame of the video is there once; other columns and keys are ignored. An exposure is the time that the shutter was
open over the time from frame to frame, in (0, 1]. Where it is left empty, restore takes the camera's telemetry, else
what the network sees. --export fills in what is known; the rest is for you.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        The exit code.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.command(options))
    except VsfmanetError as error:
        _tell(f"error: {error}")
        if getattr(options, "json", False):
            _print_json({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception:
        _tell(f"{traceback.format_exc()}error: this is a bug in vsfmanet; please report it with the lines above")
        return 1


def _parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="vsfmanet",
        description="Video super-resolution and deblurring with FMA-Net++, aware of motion and exposure.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=f"vsfmanet {version('vsfmanet')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    restore = commands.add_parser(
        "restore",
        help="restore one video file",
        description="Restore one video file.",
        epilog=f"{RESTORE_NOTES}\n{EXAMPLES}",
        formatter_class=layout,
    )
    _add_restore_options(restore)
    restore.set_defaults(command=_restore)
    batch = commands.add_parser(
        "batch",
        help="restore all video files of a folder",
        description="Restore all video files of a folder and of the folders in it into another folder, one by one.",
        epilog=BATCH_NOTES,
        formatter_class=layout,
    )
    _add_batch_options(batch)
    batch.set_defaults(command=_batch)
    verify = commands.add_parser(
        "verify",
        help="check a finished file against its record or its source",
        description="Check that a restored file is unchanged since it was verified, or verify it against its source.",
        epilog="exit codes: 0 verified, 2 usage, 3 source, 6 not whole, changed, or without a record",
    )
    _add_verify_options(verify)
    verify.set_defaults(command=_verify)
    probe = commands.add_parser(
        "probe",
        help="say what a video file is, and what is known about its exposure",
        description="Say what a video file is, whether it can be restored, and what is known about its exposure.",
        epilog=PROBE_NOTES,
        formatter_class=layout,
    )
    _add_probe_options(probe)
    probe.set_defaults(command=_probe)
    models = commands.add_parser("models", help="list the models", description="List the models.")
    models.add_argument("--json", action="store_true", help="as JSON, for programs")
    models.set_defaults(command=_models)
    doctor = commands.add_parser(
        "doctor",
        help="check the installation",
        description="Say what is found, what is not, and what to do. Exits with 0 if all that a job needs is there.",
    )
    doctor.set_defaults(command=_doctor)
    return parser


def _add_probe_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet probe`."""
    parser.add_argument("source", metavar="IN", type=Path, help="video file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw exposure over time: .svg")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write the exposure of each frame: .csv or .json")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def _add_restore_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet restore`."""
    parser.add_argument("source", metavar="IN", type=Path, help="video file")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to make: .mkv, .mp4 or .mov")
    parser.add_argument(
        "--overwrite", action="store_true", help="take the place of OUT, once verified; the old one becomes OUT.old1"
    )
    parser.add_argument("--json", action="store_true", help="the record, or the error, as JSON on stdout")
    parser.add_argument("--attempt", type=int, default=1, help=argparse.SUPPRESS)  # these two are for `batch`
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    frames = parser.add_argument_group("range of frames")
    frames.add_argument("--start", default=0, type=int, metavar="N", help="first frame (default: %(default)s)")
    frames.add_argument("--end", type=int, metavar="N", help="frame to stop before (default: the end)")
    _add_job_options(parser)


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet batch`."""
    parser.add_argument("source", metavar="IN_DIR", type=Path, help="folder of videos; it is only read")
    parser.add_argument("target", metavar="OUT_DIR", type=Path, help="folder for the results, with the same folders")
    parser.set_defaults(start=0, end=None, overwrite=False)

    files = parser.add_argument_group("files")
    files.add_argument(
        "--include",
        action="append",
        metavar="GLOB",
        help="take files whose name or path in IN_DIR fits; may be repeated (default: all common video suffixes)",
    )
    files.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="leave out files and folders that fit"
    )
    files.add_argument(
        "--order",
        default="natural",
        choices=("natural", "shortest"),
        help="by name, or the smallest file first (default: %(default)s)",
    )
    files.add_argument(
        "--container",
        default="mkv",
        choices=("mkv", "mp4", "mov"),
        help="suffix of the results (default: %(default)s, which holds everything)",
    )

    run = parser.add_argument_group("run")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, with frames and sizes")
    run.add_argument("--resume", action="store_true", help="go on with a batch; refuse to begin one")
    run.add_argument("--retry", action="store_true", help="try again what was refused, damaged or quarantined")
    run.add_argument("--recheck", action="store_true", help="compare every byte of results that are done")
    run.add_argument(
        "--journal", type=Path, metavar="FILE", help="on a local disk (default: OUT_DIR/.vsfmanet/journal.sqlite3)"
    )
    run.add_argument(
        "--stall-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="stop a job without progress (default: %(default)g)",
    )
    run.add_argument(
        "--reserve", type=float, default=2.0, metavar="GIB", help="disk that must stay free (default: %(default)g)"
    )
    _add_job_options(parser)


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet verify`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="restored video")
    parser.add_argument(
        "--source", type=Path, metavar="SOURCE", help="decode FILE and compare it with this; default: with its record"
    )
    parser.add_argument("--json", action="store_true", help="the verdict as JSON on stdout")
    _add_stream_options(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet restore` and `vsfmanet batch` that change a result."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "--model",
        default="fmanetpp_x4_fast",
        metavar="NAME",
        help="a name from `vsfmanet models`, or a .safetensors file (default: %(default)s)",
    )
    network.add_argument(
        "--exposure",
        default="auto",
        type=_exposure,
        metavar="auto|X|FILE",
        help="open-shutter time over frame interval: a number in (0, 1] (0.5 is a 180 degree shutter), or a .csv or "
        ".json file with one for each frame, as `vsfmanet probe --export` writes it; auto takes the camera's "
        "telemetry (GoPro), else what the network sees (default: %(default)s)",
    )
    network.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: %(default)s)"
    )
    network.add_argument(
        "--device-index", default=0, type=int, metavar="N", help="which CUDA device (default: %(default)s)"
    )
    network.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the network's features (default: %(default)s, the fastest that the device computes well)",
    )
    network.add_argument(
        "--segment",
        type=int,
        metavar="N",
        help="frames per run of the network, 1 to 64; same pixels (default: by size)",
    )
    network.add_argument(
        "--sc-threshold",
        type=float,
        metavar="X",
        help="a new scene starts where luma changes by this much, in (0, 1]; 0 for never (default: built in)",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--encoder-args",
        default="",
        metavar="ARGS",
        help="FFmpeg's options for the video, in one string, after an equals sign. Without -c:v they are added to "
        'the default: "-c:v libx264 -preset medium -crf 16" for 8 bits, libx265 alike for more, chroma as in IN',
    )
    output.add_argument(
        "--on-damage",
        default="stop",
        choices=("stop", "salvage"),
        help="what to do with a damaged source: refuse it, or restore the frames that decode (default: %(default)s)",
    )
    _add_stream_options(output)


def _add_stream_options(parser: argparse._ActionsContainer) -> None:
    """Which streams go along."""
    for name, what in (("audio", "sound"), ("subtitles", "subtitles"), ("attachments", "fonts and cover pictures")):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"without {what}")


def _exposure(text: str) -> float | str:
    """Read `auto`, the path of a sidecar file, or a number, whose range the filter checks."""
    from vsfmanet.exposures.sidecar import SUFFIXES

    if text == "auto" or Path(text).suffix.lower() in SUFFIXES:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"auto, a number or a {' or '.join(SUFFIXES)} file is needed, got {text!r}"
        ) from None


def _job(options: argparse.Namespace, source: Path, target: Path) -> RestoreJob:
    """What the options of `restore` or `batch` ask for."""
    from vsfmanet.jobs.clip import RestoreSettings
    from vsfmanet.jobs.runner import RestoreJob

    return RestoreJob(
        source=source,
        target=target,
        settings=RestoreSettings(
            model=options.model,
            exposure=options.exposure,
            device=options.device,
            device_index=options.device_index,
            precision=options.precision,
            segment=options.segment,
            sc_threshold=options.sc_threshold,
        ),
        start=options.start,
        end=options.end,
        encoder_args=options.encoder_args,
        audio=options.audio,
        subtitles=options.subtitles,
        attachments=options.attachments,
        salvage=options.on_damage == "salvage",
        overwrite=options.overwrite,
    )


def _restore(options: argparse.Namespace) -> int:
    """`vsfmanet restore`."""
    if options.parent is not None:
        from vsfmanet.jobs.child import die_with

        die_with(options.parent)
    from vsfmanet.jobs.progress import Report
    from vsfmanet.jobs.record import Record
    from vsfmanet.jobs.runner import run
    from vsfmanet.jobs.scratch import Scratch

    job = _job(options, options.source, options.target)
    report, scratch = Report(), Scratch(attempt=options.attempt)
    records: list[Record] = []

    def clear_up() -> None:
        report.close()
        scratch.discard()

    _run_until_stopped(lambda: records.append(run(job, report, scratch)), clear_up)
    if options.json:
        _print_json(asdict(records[0]))
    return 0


def _batch(options: argparse.Namespace) -> int:
    """`vsfmanet batch`."""
    from vsfmanet.jobs.batch import Batch, BatchOptions, dry_run
    from vsfmanet.jobs.paths import VIDEOS, Selection
    from vsfmanet.jobs.progress import Report

    suffix = f".{options.container}"
    asked = BatchOptions(
        in_folder=options.source,
        out_folder=options.target,
        template=_job(options, options.source, options.target / f"any{suffix}"),
        selection=Selection(
            include=options.include or VIDEOS, exclude=options.exclude, order=options.order, suffix=suffix
        ),
        journal=options.journal,
        resume=options.resume,
        retry=options.retry,
        recheck=options.recheck,
        stall_limit=options.stall_limit,
        reserve=options.reserve,
    )
    if options.dry_run:
        _run_until_stopped(lambda: dry_run(asked, Report()), lambda: None)
        return 0
    batch = Batch(asked, Report())
    codes: list[int] = []
    _run_until_stopped(lambda: codes.append(batch.run()), batch.stop)
    return codes[0]


def _verify(options: argparse.Namespace) -> int:
    """`vsfmanet verify`."""
    from vsfmanet.jobs.record import check_against_record

    frames: list[int] = []
    if options.source is None:
        _run_until_stopped(lambda: frames.append(check_against_record(options.file).frames), lambda: None)
    else:
        from vsfmanet.jobs.check import check_against_source
        from vsfmanet.jobs.progress import Report
        from vsfmanet.jobs.runner import KEPT

        kinds = [kind for kind, option in KEPT.items() if getattr(options, option)]
        _run_until_stopped(
            lambda: frames.append(check_against_source(options.file, options.source, kinds=kinds, report=Report())),
            lambda: None,
        )
    if options.json:
        _print_json({"verdict": "verified", "file": str(options.file), "frames": frames[0]})
    else:
        _tell(f"{options.file}: verified, {frames[0]} frames")
    return 0


def _probe(options: argparse.Namespace) -> int:
    """`vsfmanet probe`."""
    from vsfmanet.jobs.probe import Findings, as_lines, as_table, check_outputs, export, plot, probe

    check_outputs(export=options.export, plot=options.plot)
    found: list[Findings] = []
    _run_until_stopped(lambda: found.append(probe(options.source)), lambda: None)
    [findings] = found
    if options.export is not None:
        export(findings, options.export)
    if options.plot is not None:
        plot(findings, options.plot)
    lines = [json.dumps(as_table(findings), indent=2)] if options.json else as_lines(findings)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _run_until_stopped(work: Callable[[], None], clear_up: Callable[[], None]) -> None:
    """Do `work`; at a signal clear up and leave the process at once, with 128 + its number.

    The work runs in a thread of its own, because a signal is handled between two steps of the main thread, and one step
    of the work (to index a film, to run the network) can take minutes.
    """
    result: Future[None] = Future()

    def worker() -> None:
        try:
            work()
            result.set_result(None)
        except BaseException as error:
            result.set_exception(error)

    def stop(number: int, _: FrameType | None) -> None:
        if result.done():
            return
        for name in before:
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # to clear up takes less than a second
        clear_up()
        _tell(f"stopped by {signal.Signals(number).name}; what was unfinished has been removed")
        os._exit(128 + number)

    before = {name: signal.signal(getattr(signal, name), stop) for name in STOPPING if hasattr(signal, name)}
    try:
        threading.Thread(target=worker, daemon=True).start()
        while not wait([result], timeout=0.5).done:  # on Windows no signal ends a wait without a limit
            pass
        result.result()
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _models(options: argparse.Namespace) -> int:
    """`vsfmanet models`."""
    from rich.console import Console
    from rich.table import Table

    from vsfmanet.weights import list_models

    entries = list_models()
    if options.json:
        listed = [
            {field.name: getattr(entry, field.name) for field in fields(entry)}
            | {"path": str(entry.path), "scores": dict(entry.scores)}
            for entry in entries
        ]
        sys.stdout.write(f"{json.dumps(listed, indent=2)}\n")
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "scale", "preset", "MB", "licence", "scores", "description"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        scores = ", ".join(f"{name} {score:g}" for name, score in entry.scores.items())
        size = f"{entry.size / 1e6:.1f}"
        table.add_row(entry.name, str(entry.scale), entry.preset, size, entry.licence, scores, entry.description)
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _doctor(_: argparse.Namespace) -> int:
    """`vsfmanet doctor`."""
    from vsfmanet.doctor import examine

    checks = examine()
    for check in checks:
        sys.stdout.write(f"{check}\n")
    lacking = [check for check in checks if not check.found and check.exit_code]
    verdict = f"missing: {', '.join(check.name for check in lacking)}" if lacking else "all essentials are there"
    sys.stdout.write(f"{verdict}\n")
    return lacking[0].exit_code if lacking else 0


def _print_json(value: object) -> None:
    """A result for programs."""
    sys.stdout.write(f"{json.dumps(value, indent=2)}\n")


def _tell(text: str) -> None:
    """A line for the user; stdout is for results."""
    sys.stderr.write(f"vsfmanet: {text}\n")
