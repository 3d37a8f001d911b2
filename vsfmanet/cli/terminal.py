"""Lines for the user on stderr, results on stdout, and an orderly end at a signal."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from types import FrameType
from typing import TextIO

from vsfmanet.errors import OutputError
from vsfmanet.jobs.progress import CONTROLS

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that stop a job; Windows has no SIGHUP."""


def mend_inheritance() -> None:
    """Undo what a parent may have left that would harm: closed standard streams, whose numbers the next files would
    get, with messages in them; children whose exit codes are dropped; blocked signals.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    if sys.platform != "win32":
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {getattr(signal, name) for name in STOPPING})


def print_json(value: object) -> None:
    """Print a result for programs."""
    put(f"{json.dumps(value, indent=2)}\n")


def put(text: str) -> None:
    """Write a result to stdout.

    Raises:
        OutputError: It cannot be written, as on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _let_go(sys.stdout)
        raise OutputError(f"stdout must take the result, but {error.strerror}; make room, and run it again") from error


def drop_unread_messages() -> None:
    """Drop what stderr still holds, if nobody reads it any more."""
    try:
        sys.stderr.flush()
    except OSError:
        _let_go(sys.stderr)


def _let_go(stream: TextIO) -> None:
    """Drop what a stream's buffer holds, which Python would otherwise fail to write at its end, and exit with 120."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell_result(value: Mapping[str, object]) -> None:
    """Print a result as an event, where stdout carries frames."""
    write_line(sys.stderr, json.dumps({"event": "result", "value": value}))


def tell_error(text: str, *, as_json: bool) -> None:
    """Print an error for the user, or as an event for programs."""
    if as_json:
        write_line(sys.stderr, json.dumps({"event": "error", "text": text}))
    else:
        tell(f"error: {text}")


def tell(text: str) -> None:
    """Print a line for the user; stdout is for results."""
    write_line(sys.stderr, f"vsfmanet: {text}".translate(CONTROLS))


def write_line(stream: TextIO, text: str) -> None:
    """Print a line, if there is still somebody to read it."""
    with suppress(OSError):
        stream.write(f"{text}\n")


def run_until_stopped[T](
    work: Callable[[], T], clear_up: Callable[[], None] = lambda: None, *, is_child: bool = False
) -> T:
    """Run `work`, and return its result; at a signal clear up and leave the process at once, with 128 + its number.

    The work runs in a thread of its own, because a signal is handled between two steps of the main thread, and one step
    of the work (to index a film, to run the network) can take minutes. A signal that was ignored at the start, as
    `nohup` ignores SIGHUP, stays ignored.

    Args:
        work: What to run.
        clear_up: Called at a signal; must take less than a second.
        is_child: Whether the process that started this one prints that it was stopped.
    """
    result: Future[T] = Future()

    def worker() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    def stop(number: int, _: FrameType | None) -> None:
        if result.done():
            return
        for name in before:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        clear_up()
        if not is_child:
            tell_stopped(number)
        os._exit(128 + number)

    numbers = {name: getattr(signal, name) for name in STOPPING if hasattr(signal, name)}
    before = {
        name: signal.signal(number, stop)
        for name, number in numbers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        threading.Thread(target=worker, daemon=True).start()
        while not wait([result], timeout=0.5).done:  # on Windows no signal ends a wait without a limit
            pass
        return result.result()
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def tell_stopped(number: int) -> None:
    """Print which signal stopped the job."""
    tell(f"stopped by {signal.Signals(number).name}; what was unfinished has been removed")
