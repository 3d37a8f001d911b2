"""The command line: `vsfmanet restore`, `batch`, `cluster`, `verify`, `probe`, `models`, `doctor`."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from vsfmanet.errors import ConfigError, VsfmanetError

if TYPE_CHECKING:
    from vsfmanet.jobs.job import RestoreJob
    from vsfmanet.jobs.paths import Selection

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
The result appears under its name once every frame of it has been decoded again, and all that was copied compared
packet by packet with the source: until then it is a hidden part file beside it. The source is only read. A record
(OUT.vsfmanet.json) says what the result was made of: run again on a job that is done, the command checks the record and
makes nothing new.

A film of more than --range-frames frames is made in ranges, each in a file of its own in a hidden folder beside OUT,
which are joined in the end without coding them again: a job that was killed goes on after the last whole range. While
it runs that takes twice the room of OUT. Encoder options with which ranges may not fit together (filters, two passes,
unknown ones) are told, and the film is made in one pass.

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

The journal and a report (vsfmanet-report.html, with pictures before and after) are in OUT_DIR.

Two machines with a shared folder, without a scheduler:

  vsfmanet batch IN_DIR OUT_DIR --journal LOCAL_FILE --shard 1/2      on the first
  vsfmanet batch IN_DIR OUT_DIR --journal LOCAL_FILE --shard 2/2      on the second

A file is always in the same share, which its path in IN_DIR decides. Each share has a journal and a report of its own
(vsfmanet-report-1-of-2.html). When both have ended, the command without --shard finds what they have done, does what
they have not, and writes the report on all.

exit codes: the first that applies of 128+n stopped by signal n, 1 bug, 2 usage, 4 device, 5 output or disk, 8 weights,
7 another batch is running, 6 a job failed, 3 sources refused or damaged, 0 all done and verified
"""

CLUSTER_NOTES = """\
Each job is one command, `vsfmanet cluster run LIST NUMBER`, which does nothing if the output is there and intact. So
the same command again, or the same script submitted again, does what is left. When all has ended, `vsfmanet batch`
with the same folders and options checks that every output is there, does what is not, and writes the report.

exit codes: as of `vsfmanet batch`; of one job those of `vsfmanet restore`, after three attempts
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names need not be text
    parser = _parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given, argparse.Namespace(given=given))
    if options.command is None:
        parser.print_help()
        return 0
    try:
        return int(options.command(options))
    except VsfmanetError as error:
        if getattr(options, "progress", "") == "json":
            _write_line(sys.stderr, json.dumps({"event": "error", "text": str(error)}))
        else:
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
    cluster = commands.add_parser(
        "cluster",
        help="restore all video files of a folder on several machines",
        description="Restore all video files of a folder into another folder, on the machines of Ray, Slurm or "
        "Kubernetes. Both folders must be under the same path on all of them.",
        epilog=CLUSTER_NOTES,
        formatter_class=layout,
    )
    _add_cluster_options(cluster)
    verify = commands.add_parser(
        "verify",
        help="check a finished file against its record or its source",
        description="Check that a restored file is unchanged since it was verified, or verify it against its source: "
        "every frame with its time, sample aspect ratio, chapters, attachments, titles and languages, and every packet "
        "of sound and subtitles, which must have been copied.",
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
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="estimate the exposure from blur and motion where the camera did not record it (slow); a plot shows both",
    )
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
    _add_progress_option(parser)
    _add_stall_option(parser)
    parser.add_argument("--attempt", type=int, default=1, help=argparse.SUPPRESS)  # these two are for who starts it
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

    _add_file_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--dry-run", action="store_true", help="say what would be done, with frames, sizes and time")
    _add_progress_option(run)
    run.add_argument("--resume", action="store_true", help="go on with a batch; refuse to begin one")
    run.add_argument("--retry", action="store_true", help="try again what was refused, damaged or quarantined")
    run.add_argument("--recheck", action="store_true", help="compare every byte of results that are done")
    run.add_argument(
        "--journal", type=Path, metavar="FILE", help="on a local disk (default: OUT_DIR/.vsfmanet/journal.sqlite3)"
    )
    run.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="do only share I of N of the files, and leave the others to other machines (see below)",
    )
    _add_stall_option(run)
    _add_job_options(parser)
    parser.set_defaults(reserve=2.0)


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    """Which files are meant, and what becomes of their names."""
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


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet cluster` and of its engines."""
    engines = parser.add_subparsers(title="engines", metavar="ENGINE", required=True)
    told = {
        "ray": "do the jobs as tasks of a Ray cluster, or on all devices of this machine",
        "slurm": "write a script for sbatch to stdout",
        "kubernetes": "write an Indexed Job for kubectl to stdout",
    }
    for name, help_text in told.items():
        engine = engines.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        engine.add_argument("source", metavar="IN_DIR", type=Path, help="folder of videos; it is only read")
        engine.add_argument("target", metavar="OUT_DIR", type=Path, help="folder for the results")
        _add_file_options(engine)
        where = engine.add_argument_group("cluster")
        where.add_argument("--gpus", type=int, default=1, metavar="N", help="for each job (default: %(default)s)")
        where.add_argument("--cpus", type=int, default=4, metavar="N", help="for each job (default: %(default)s)")
        if name == "ray":
            where.add_argument(
                "--address",
                default=os.environ.get("RAY_ADDRESS"),
                metavar="HOST:PORT",
                help="of the Ray head, which must ask for a token; auto for one on this machine (default: RAY_ADDRESS, "
                "else this machine alone)",
            )
        else:
            where.add_argument(
                "--at-once", type=int, default=8, metavar="N", help="jobs at one time (default: %(default)s)"
            )
        if name == "kubernetes":
            where.add_argument("--image", required=True, help="container with vsfmanet")
            where.add_argument("--claim", required=True, help="persistent volume claim with IN_DIR and OUT_DIR")
            where.add_argument("--mount", required=True, type=Path, metavar="DIR", help="its place, here and in pods")
        _add_job_options(engine)
        engine.set_defaults(command=_cluster, engine=name, start=0, end=None, overwrite=False, reserve=2.0)
    one = engines.add_parser("run", help="do one job of a list: what the engines call")
    one.add_argument("list", metavar="LIST", type=Path, help="in OUT_DIR/.vsfmanet, written by an engine's command")
    one.add_argument(
        "number",
        metavar="NUMBER",
        type=int,
        nargs="?",
        default=os.environ.get("JOB_COMPLETION_INDEX"),
        help="of the job (default: JOB_COMPLETION_INDEX, else only check that this machine can do them)",
    )
    one.add_argument("--json", action="store_true", help="the outcome as JSON on stdout")
    one.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    one.set_defaults(command=_cluster_run)


def _add_progress_option(parser: argparse._ActionsContainer) -> None:
    """How progress is told."""
    parser.add_argument(
        "--progress",
        default="auto",
        choices=("auto", "json"),
        help="on stderr: for people, or one JSON object a line, each second, for programs (default: %(default)s)",
    )


def _add_stall_option(parser: argparse._ActionsContainer) -> None:
    """What is called hanging."""
    parser.add_argument(
        "--stall-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="stop a job without progress (default: %(default)g)",
    )


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet verify`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="restored video")
    parser.add_argument(
        "--source", type=Path, metavar="SOURCE", help="decode FILE and compare it with this; default: with its record"
    )
    parser.add_argument("--json", action="store_true", help="the verdict as JSON on stdout")
    _add_stream_options(parser)


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet restore` that `batch` and `cluster` have too."""
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
        metavar="auto|estimate|X|FILE",
        help="open-shutter time over frame interval: a number in (0, 1] (0.5 is a 180 degree shutter), or of one film "
        "a .csv or .json file with one for each frame, as `vsfmanet probe --export` writes it; auto takes "
        "film.exposure.csv or .json beside film.mkv, then the camera's telemetry (GoPro, Sony, DJI, Insta360), then "
        "what the network sees; estimate measures blur and motion before the network is asked (default: %(default)s)",
    )
    network.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to compute (default: %(default)s)"
    )
    network.add_argument(
        "--device-index",
        default=0,
        type=_device_index,
        metavar="N[,N...]",
        help="which CUDA device, or several that take turns at each film, with the same pixels (default: 0)",
    )
    network.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the network's features (default: %(default)s, the fastest that the device computes well)",
    )
    network.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "torch", "onnx", "tensorrt"),
        help="what runs the network; onnx is for the CPU, tensorrt is unverified (default: %(default)s, torch)",
    )
    network.add_argument(
        "--tile",
        type=_tile,
        metavar="WxH",
        help="compute frames in parts of this many input pixels, to spare memory; same result up to rounding "
        "(default: whole frames, and parts from where memory runs out)",
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
    network.add_argument(
        "--skip",
        action="store_true",
        help="pass frames through that are sharp already, because hardly anything moves while the shutter is open; "
        "for models of scale 1",
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
        choices=("stop", "salvage", "as-is"),
        help="what to do with a damaged source: refuse it; restore the frames that decode, at their own times; or "
        "restore them one after the other at the nominal rate, whatever their times (default: %(default)s)",
    )
    output.add_argument(
        "--deinterlace",
        action="store_true",
        help="make whole frames of interlaced ones with bwdif, as many and at the same times, rather than refuse them",
    )
    output.add_argument(
        "--range-frames",
        type=int,
        default=500,
        metavar="N",
        help="a longer film is made in ranges of at most N frames, which end at scene cuts where there are some: a job "
        "that is killed goes on after the last whole one. Same pixels; 0 for one pass (default: %(default)s)",
    )
    output.add_argument(
        "--reserve",
        type=float,
        default=0.0,
        metavar="GIB",
        help="disk that must stay free, beside 1.2 times what an output is expected to take (default: %(default)g)",
    )
    _add_stream_options(output)


def _add_stream_options(parser: argparse._ActionsContainer) -> None:
    """Which streams go along."""
    for name, what in (("audio", "sound"), ("subtitles", "subtitles"), ("attachments", "fonts and cover pictures")):
        parser.add_argument(f"--no-{name}", dest=name, action="store_false", help=f"without {what}")


def _exposure(text: str) -> float | str:
    """Read `auto`, `estimate`, the path of a sidecar file, or a number, whose range the filter checks."""
    from vsfmanet.settings import EXPOSURE_WORDS, SIDECAR_SUFFIXES

    if text in EXPOSURE_WORDS or Path(text).suffix.lower() in SIDECAR_SUFFIXES:
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"auto, estimate, a number or a {' or '.join(SIDECAR_SUFFIXES)} file is needed, got {text!r}"
        ) from None


def _device_index(text: str) -> int | tuple[int, ...]:
    """Read N or N,N..., whose range is checked where the devices are."""
    try:
        return tuple(map(int, text.split(","))) if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, or several such as 0,1, got {text!r}") from None


def _shard(text: str) -> tuple[int, int]:
    """Read I/N, whose range `Selection` checks."""
    number, _, count = text.partition("/")
    try:
        return int(number), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"share and number of shares are needed, such as 1/2, got {text!r}") from None


def _tile(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, whose range the filter checks."""
    width, _, height = text.partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"width x height is needed, such as 640x360, got {text!r}") from None


def _job(options: argparse.Namespace, source: Path, target: Path) -> RestoreJob:
    """What the options of `restore` or `batch` ask for."""
    from vsfmanet.jobs.job import RestoreJob
    from vsfmanet.settings import RestoreSettings

    return RestoreJob(
        source=source,
        target=target,
        settings=RestoreSettings(
            model=options.model,
            exposure=options.exposure,
            device=options.device,
            device_index=options.device_index,
            precision=options.precision,
            backend=options.backend,
            tile=options.tile,
            segment=options.segment,
            sc_threshold=options.sc_threshold,
            skip=options.skip,
        ),
        start=options.start,
        end=options.end,
        encoder_args=options.encoder_args,
        audio=options.audio,
        subtitles=options.subtitles,
        attachments=options.attachments,
        on_damage=options.on_damage,
        deinterlace=options.deinterlace,
        overwrite=options.overwrite,
        range_frames=options.range_frames,
        reserve=options.reserve,
    )


def _restore(options: argparse.Namespace) -> int:
    """`vsfmanet restore`: the job runs in a process of its own, which is this one if its parent says so."""
    if options.parent is None:
        return _restore_guarded(options)
    from vsfmanet.jobs.child import die_with

    die_with(options.parent)
    options.progress, options.json = "json", True
    return _restore_here(options)


def _restore_guarded(options: argparse.Namespace) -> int:
    """`vsfmanet restore` in another process, and what became of it."""
    from vsfmanet.jobs.guard import GuardedJob

    job = GuardedJob(
        options.given[1:],
        target=options.target,
        stall_limit=options.stall_limit,
        as_json=options.progress == "json",
    )
    outcomes: list[tuple[int, bytes]] = []
    _run_until_stopped(lambda: outcomes.append(job.run()), job.stop)
    [(code, said)] = outcomes
    if options.json:
        sys.stdout.write(said.decode(errors="replace"))
    if code > 128:
        _tell_stopped(code - 128)
    return code


def _restore_here(options: argparse.Namespace) -> int:
    """`vsfmanet restore` in this process."""
    from vsfmanet.jobs.progress import Report
    from vsfmanet.jobs.record import Record
    from vsfmanet.jobs.runner import run
    from vsfmanet.jobs.scratch import Scratch

    job = _job(options, options.source, options.target)
    report, scratch = Report(as_json=options.progress == "json"), Scratch(attempt=options.attempt)
    records: list[Record] = []

    def clear_up() -> None:
        report.close()
        if scratch.discard():
            report.note("the ranges that are finished stay: the same command goes on after them")

    _run_until_stopped(
        lambda: records.append(run(job, report, scratch)), clear_up, told_by_parent=options.parent is not None
    )
    if options.json:
        _print_json(asdict(records[0]))
    return 0


def _selection(options: argparse.Namespace) -> Selection:
    """Which files a batch or a cluster takes."""
    from vsfmanet.jobs.paths import VIDEOS, Selection

    include = options.include or VIDEOS
    return Selection(
        include=include,
        exclude=options.exclude,
        order=options.order,
        suffix=f".{options.container}",
        shard=getattr(options, "shard", (1, 1)),  # the engines of clusters share jobs out themselves
    )


def _batch(options: argparse.Namespace) -> int:
    """`vsfmanet batch`."""
    from vsfmanet.jobs.batch import Batch, BatchOptions, dry_run
    from vsfmanet.jobs.progress import Report

    suffix = f".{options.container}"
    asked = BatchOptions(
        in_folder=options.source,
        out_folder=options.target,
        template=_job(options, options.source, options.target / f"any{suffix}"),
        selection=_selection(options),
        journal=options.journal,
        resume=options.resume,
        retry=options.retry,
        recheck=options.recheck,
        stall_limit=options.stall_limit,
    )
    report = Report(as_json=options.progress == "json")
    if options.dry_run:
        _run_until_stopped(lambda: dry_run(asked, report), report.close)
        return 0
    batch = Batch(asked, report)
    codes: list[int] = []
    _run_until_stopped(lambda: codes.append(batch.run()), batch.stop)
    return codes[0]


def _cluster(options: argparse.Namespace) -> int:
    """`vsfmanet cluster ray`, `slurm` and `kubernetes`."""
    from vsfmanet.jobs import cluster
    from vsfmanet.jobs.batch import BatchOptions
    from vsfmanet.jobs.progress import Report

    report = Report()
    counts = [options.gpus, options.cpus - 1, getattr(options, "at_once", 1) - 1]
    if min(counts) < 0:
        raise ConfigError("cluster: --gpus from 0, and --cpus and --at-once from 1 are needed; mend them")
    path = cluster.write_plan(
        BatchOptions(
            in_folder=options.source,
            out_folder=options.target,
            template=_job(options, options.source, options.target / f"any.{options.container}"),
            selection=_selection(options),
        ),
        report,
    )
    sizes = {"gpus": options.gpus, "cpus": options.cpus}
    if options.engine == "ray":
        engine = cluster.RayRun(path, report, address=options.address, **sizes)
        codes: list[int] = []
        _run_until_stopped(lambda: codes.append(engine.run()), engine.conclude)
        return codes[0]
    if options.engine == "slurm":
        text = cluster.slurm_script(path, at_once=options.at_once, **sizes)
    else:
        text = cluster.kubernetes_manifest(
            path, image=options.image, claim=options.claim, mount=options.mount, at_once=options.at_once, **sizes
        )
    sys.stdout.write(text)
    return 0


def _cluster_run(options: argparse.Namespace) -> int:
    """`vsfmanet cluster run`."""
    if options.parent is not None:
        from vsfmanet.jobs.child import die_with

        die_with(options.parent)
    from vsfmanet.jobs.cluster import OneJob, Outcome, answer

    if options.number is None:
        found = answer(options.list)
        if options.json:
            _print_json(dict(found))
        else:
            Path(found["canary"]).unlink()
            _tell(f"{found['node']} can do the jobs of {options.list}")
        return 0
    job = OneJob(options.list, options.number)
    outcomes: list[Outcome] = []
    _run_until_stopped(lambda: outcomes.append(job.run()), job.stop)
    [outcome] = outcomes
    if options.json:
        _print_json(asdict(outcome))
    result = f"done, {outcome.frames} frames" if outcome.code == 0 else outcome.cause
    _tell(f"{outcome.source}: {result}")
    return outcome.code


def _verify(options: argparse.Namespace) -> int:
    """`vsfmanet verify`."""
    from vsfmanet.jobs.record import check_against_record

    frames: list[int] = []
    if options.source is None:
        _run_until_stopped(lambda: frames.append(check_against_record(options.file).frames), lambda: None)
    else:
        from vsfmanet.jobs.check import check_against_source
        from vsfmanet.jobs.progress import Report
        from vsfmanet.media.source import KEPT

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
    from vsfmanet.jobs.progress import Report

    check_outputs(export=options.export, plot=options.plot)
    found: list[Findings] = []
    estimate = Report() if options.estimate else None
    _run_until_stopped(lambda: found.append(probe(options.source, estimate=estimate)), lambda: None)
    [findings] = found
    if options.export is not None:
        export(findings, options.export)
    if options.plot is not None:
        plot(findings, options.plot)
    lines = [json.dumps(as_table(findings), indent=2)] if options.json else as_lines(findings)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _run_until_stopped(work: Callable[[], None], clear_up: Callable[[], None], *, told_by_parent: bool = False) -> None:
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
        if not told_by_parent:
            _tell_stopped(number)
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


def _tell_stopped(number: int) -> None:
    _tell(f"stopped by {signal.Signals(number).name}; what was unfinished has been removed")


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
        _print_json(listed)
        return 0
    table = Table(box=None, pad_edge=False)
    exposures = {"5_1": "5:1", "5_5": "5:5", "re": "RE"}
    for heading in ("name", "scale", *(f"dB {shown}" for shown in exposures.values()), "MB", "licence", "description"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        gains = (entry.gain(condition) for condition in exposures)
        table.add_row(
            entry.name,
            str(entry.scale),
            *("" if gain is None else f"{gain:+.2f}" for gain in gains),
            f"{entry.size / 1e6:.1f}",
            entry.licence,
            entry.description,
        )
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        "dB: mean PSNR above bicubic, at scale 1 above the input, where the shutter is open for a fifth of the frame "
        "interval (5:1), all of it (5:5) or changing (RE). All scores: --json. How they were measured: models/NAME.md.",
        highlight=False,
    )
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
    _write_line(sys.stderr, f"vsfmanet: {text}")


def _write_line(stream: TextIO, text: str) -> None:
    """A line, if there is still somebody to read it."""
    with suppress(OSError):
        stream.write(f"{text}\n")
