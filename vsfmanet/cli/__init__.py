"""The command line, with the commands of `COMMANDS`.

Each command is a module of its own, which is loaded when it is called. Its options are the fields of dataclasses, and
its help is the strings under them.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from cyclopts import App, CycloptsError

from vsfmanet import __version__
from vsfmanet.cli.options import PARAMETERS, STANDARD
from vsfmanet.cli.terminal import (
    drop_unread_messages,
    mend_inheritance,
    print_json,
    put,
    tell,
    tell_error,
    tell_result,
)
from vsfmanet.errors import ConfigError, OutputError, VsfmanetError

EXAMPLES = """\
Examples:

    vsfmanet restore film.mkv restored.mkv
    vsfmanet restore clip.mp4 clip_x4.mp4 --exposure 0.5 --device cuda
    vsfmanet restore film.mkv part.mkv --start 0:01:00 --end 1750
    vsfmanet restore film.mkv archive.mkv --encoder-args="-c:v ffv1 -level 3"
    vsfmanet restore -- -odd-name.mkv out.mkv
    vsfmanet compare film.mkv --at 0:10:00 --model fmanetpp_x4_fast --model fmanetpp_x4_base
    vsfmanet probe film.mp4 --export film.csv
    vsfmanet restore film.mp4 restored.mkv --exposure film.csv
    vsfmanet batch archive restored --exclude "*sample*" --dry-run
    vsfmanet verify restored/film.mkv
    vsfmanet models --json
    vsfmanet doctor
"""

COMMANDS = {
    "restore": "Restore one video file.",
    "batch": "Restore all video files of a folder.",
    "cluster": "Restore all video files of a folder on several machines.",
    "compare": "Show some moments of a film before and after, by one model or several.",
    "verify": "Check a finished file against its record or its source.",
    "probe": "Show what a video file is, and what is known about its exposure.",
    "models": "List the models.",
    "engines": "Build TensorRT-RTX engines ahead of time.",
    "doctor": "Check the installation.",
    "completion": "Complete commands and options in a shell.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None for those of the process.

    Returns:
        The exit code.
    """
    mend_inheritance()
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "utf-8" if sys.platform == "win32" else None  # a pipe there has a code page without most letters
        sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")  # names need not be text
    given = sys.argv[1:] if arguments is None else list(arguments)
    code = _run(given)
    try:
        put("")  # whatever stdout still holds
    except OutputError as error:
        code = code or _fail(error, given)
    drop_unread_messages()
    return code


def _run(given: Sequence[str]) -> int:
    """Run a command, and return its exit code."""
    try:
        return int(grammar()(_with_pipes(given)) or 0)
    except CycloptsError as error:
        return _fail(ConfigError(f"{str(error).rstrip('.')}; see --help"), given)
    except VsfmanetError as error:
        return _fail(error, given)
    except Exception:
        tell(f"{traceback.format_exc()}error: this is a bug in vsfmanet; please report it with the lines above")
        return 1


def _with_pipes(given: Sequence[str]) -> list[str]:
    """Arguments with `STANDARD` for each "-" that is a source or a target."""
    if "--job" in given:
        return list(given)
    count = given.index("--") if "--" in given else len(given)
    return [STANDARD if word == "-" else word for word in given[:count]] + list(given[count:])


def grammar() -> App:
    """Build the grammar of the command line."""
    app = App(
        name="vsfmanet",
        help="Video super-resolution and deblurring with FMA-Net++, aware of motion and exposure.",
        help_epilogue=EXAMPLES,
        version=f"vsfmanet {__version__}",
        default_parameter=PARAMETERS,
        help_format="markdown",
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for number, (name, text) in enumerate(COMMANDS.items()):
        app.command(f"vsfmanet.cli.{name}:app", name=name, help=text, sort_key=number)
    return app


def _fail(error: VsfmanetError, given: Sequence[str]) -> int:
    """Print an error in the form that the options ask for, and return its exit code."""
    options = given[: given.index("--")] if "--" in given else given
    text = str(error)
    as_job = options[:2] == ["restore", "--job"]
    tell_error(text, as_json=as_job or "--progress=json" in options or ("--progress", "json") in pairwise(options))
    if as_job or "--json" in options:
        value = {"error": type(error).__name__, "message": text, "exit_code": error.exit_code}
        if as_job and options[2:3] != ["-"]:  # stdout is for frames
            tell_result(value)
            return error.exit_code
        with suppress(OutputError):  # it may be stdout that is full
            print_json(value)
    return error.exit_code
