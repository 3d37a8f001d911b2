"""Errors that FFmpeg's libraries log: often the only sign that a demuxer or decoder conceals damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import av

type Message = tuple[int, str, str]
"""Level, origin (name of a demuxer or decoder) and text."""


class Log:
    """The errors since it was opened. A file's own are told by their origin: FFmpeg has one log for a process."""

    def __init__(self) -> None:
        self._found: list[Message] = []

    def add(self, messages: list[Message]) -> None:
        """Append messages."""
        self._found += messages

    def take(self) -> list[Message]:
        """Remove the messages so far, of all threads, and return them."""
        with _lock:
            _hand_out()
            taken, self._found = self._found, []
        return taken


_lock = Lock()
_capture = av.logging.Capture(local=False)
_messages: list[Message] = []
_open: list[Log] = []
_before: tuple[int | None, bool] = None, True


@contextmanager
def logged() -> Iterator[Log]:
    """Collect errors while this is open.

    Several may be open at once, and may be closed in any order, as those of generators are. (PyAV's own captures are a
    stack: the newest takes all messages, and is taken away by whichever is closed first.)
    """
    log = Log()
    with _lock:
        if not _open:
            _start()
        _hand_out()
        _open.append(log)
    try:
        yield log
    finally:
        with _lock:
            _hand_out()
            _open.remove(log)
            if not _open:
                _stop()


def _start() -> None:
    global _before, _messages  # FFmpeg's log is of the process too
    _before = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # it would also skip a message that another file has caused
    _messages = _capture.__enter__()


def _stop() -> None:
    level, repeated = _before
    _capture.__exit__(None, None, None)
    _messages.clear()
    av.logging.set_skip_repeated(repeated)
    av.logging.set_level(level)


def _hand_out() -> None:
    """Give each open log what has arrived; more may arrive from decoders' threads meanwhile, and stays for later."""
    new = _messages[: len(_messages)]
    del _messages[: len(new)]
    for log in _open:
        log.add(new)
