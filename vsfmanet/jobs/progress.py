"""How far a job is: one line that is kept up to date on a terminal, plain lines in a log. All of it on stderr."""

from __future__ import annotations

import sys
import time
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

INTERVAL = 10.0
"""Seconds between two plain lines."""


class Report:
    """What a job tells its user.

    Args:
        stream: Where to; stderr by default, since stdout is for results.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._name = ""
        self._total = self._done = 0
        self._started = self._told = 0.0

    def note(self, text: str) -> None:
        """A line for the user."""
        self._console.print(text)

    def warn(self, text: str) -> None:
        """A line that the user should not miss."""
        self._console.print(f"warning: {text}", style="yellow")

    def begin(self, name: str, total: int) -> Self:
        """Start counting frames; used as a context, it stops counting at the end.

        Args:
            name: What is done to them.
            total: How many there are.
        """
        self._name, self._total, self._done = name, total, 0
        self._started = self._told = time.monotonic()
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(name, total=total, state=self._state())
            self._bar.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self) -> None:
        """One more frame is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, state=self._state())
            return
        now = time.monotonic()
        if now - self._told >= INTERVAL or self._done == self._total:
            self._told = now
            self.note(f"{self._name} {self._state()}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _state(self) -> str:
        """Frames, speed and time left."""
        state = f"{self._done}/{self._total} frames"
        elapsed = time.monotonic() - self._started
        if not self._done or not elapsed:
            return state
        speed = self._done / elapsed
        return f"{state}, {speed:.3g} frames/s, {clock((self._total - self._done) / speed)} left"


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
