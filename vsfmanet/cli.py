"""The command line: `vsfmanet restore`, `vsfmanet models`, `vsfmanet doctor`."""

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
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from vsfmanet.errors import VsfmanetError

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that stop a job; Windows has no SIGHUP."""

EXAMPLES = """\
examples:
  vsfmanet restore film.mkv restored.mkv
  vsfmanet restore clip.mp4 clip_x4.mp4 --exposure 0.5 --device cuda --precision fp16
  vsfmanet restore film.mkv part.mkv --start 1000 --end 1250
  vsfmanet restore film.mkv archive.mkv --encoder-args="-c:v ffv1 -level 3"
  vsfmanet restore -- -odd-name.mkv out.mkv
  vsfmanet models --json
  vsfmanet doctor
"""

RESTORE_NOTES = """\
Sound, subtitles, chapters, attachments, tags and timestamps are copied; colour tags and sample aspect ratio are kept.
The result appears under its name once every frame of it has been decoded again and compared with the source: until
then it is a hidden part file beside it. The source is only read.

With --start and --end, what is copied is cut to the same time, at the limits of packets: sound begins within one packet
(some 20 ms) after the first frame, at its right place; a subtitle that began before is left out.

exit codes: 0 done and verified, 1 bug, 2 usage, 3 source, 4 device, 5 output or encoder, 6 result incomplete,
7 output taken by another run, 8 weights, 128+n stopped by signal n
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


def _add_restore_options(parser: argparse.ArgumentParser) -> None:
    """The options of `vsfmanet restore`."""
    parser.add_argument("source", metavar="IN", type=Path, help="video file")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to make: .mkv, .mp4 or .mov")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, once the new one is verified")

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
        metavar="auto|X",
        help="open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter (default: %(default)s)",
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

    frames = parser.add_argument_group("range of frames")
    frames.add_argument("--start", default=0, type=int, metavar="N", help="first frame (default: %(default)s)")
    frames.add_argument("--end", type=int, metavar="N", help="frame to stop before (default: the end)")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--encoder-args",
        default="",
        metavar="ARGS",
        help="FFmpeg's options for the video, in one string, after an equals sign. Without -c:v they are added to "
        'the default: "-c:v libx264 -preset medium -crf 16" for 8 bits, libx265 alike for more, chroma as in IN',
    )
    output.add_argument("--no-audio", dest="audio", action="store_false", help="do not copy sound")
    output.add_argument("--no-subtitles", dest="subtitles", action="store_false", help="do not copy subtitles")
    output.add_argument(
        "--no-attachments", dest="attachments", action="store_false", help="do not copy fonts and cover pictures"
    )
    output.add_argument(
        "--on-damage",
        default="stop",
        choices=("stop", "salvage"),
        help="what to do with a damaged source: refuse it, or restore the frames that decode (default: %(default)s)",
    )


def _exposure(text: str) -> float | str:
    """Read `auto` or a number, whose range the filter checks."""
    return text if text == "auto" else float(text)


def _restore(options: argparse.Namespace) -> int:
    """`vsfmanet restore`."""
    from vsfmanet.jobs.clip import RestoreSettings
    from vsfmanet.jobs.progress import Report
    from vsfmanet.jobs.runner import RestoreJob, run
    from vsfmanet.jobs.scratch import Scratch

    job = RestoreJob(
        source=options.source,
        target=options.target,
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
    report, scratch = Report(), Scratch()

    def clear_up() -> None:
        report.close()
        scratch.discard()

    _run_until_stopped(lambda: run(job, report, scratch), clear_up)
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


def _tell(text: str) -> None:
    """A line for the user; stdout is for results."""
    sys.stderr.write(f"vsfmanet: {text}\n")
