"""Messages and progress on stderr: one updated line on a terminal, plain lines in a log, or JSON for programs.

As JSON, each line is one object with an "event". "note", "warning" and "error" have a "text". "progress" has a "step",
how much of it is "done" of a "total", and "speed" per second and "seconds_left" once they are known. "phase" has a
"name": what a job does where it counts nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from vsfmanet.media import OWN_SLIP
from vsfmanet.media.meter import clock

if TYPE_CHECKING:  # only terminals need it, and it takes long to load
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.status import Status

INTERVAL = 10.0
"""Seconds between two plain lines."""

LOGGERS = ("vsfmanet", "vapoursynth")
"""Loggers whose warnings a user must see."""

JSON_INTERVAL = 1.0
"""Seconds between two lines of JSON."""

BAR = 10
"""Columns of the bar: with the longest state, a line has less than 80."""

PAUSE = 0.5
"""A frame that comes after more than this part of the mean interval begins a new segment; networks return the frames
of a segment all at once."""

MEASURED = 1.0
"""Seconds after the first frame before a speed is judged."""


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Characters that command a terminal, and what is shown of them: anybody may put them into the name of a file."""


class Forgiving:
    """A stream whose reader may go away, as when a terminal closes: later lines are lost, and nothing else.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if there is still a reader."""
        with suppress(OSError, ValueError):  # the second one if it has been closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if there is still a reader."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Report:
    """Writes messages and progress for the user.

    Args:
        stream: Where to write; stderr by default, since stdout is for results.
        as_json: Whether every line is a JSON object.
    """

    def __init__(self, stream: TextIO | None = None, *, as_json: bool = False) -> None:
        self._stream = cast(TextIO, Forgiving(stream or sys.stderr))
        self._as_json = as_json
        self._bar: Progress | None = None
        self._status: Status | None = None
        self._task: TaskID
        self._name = ""
        self._total = self._done = self._before = 0
        self._started = self._printed = 0.0
        self._pace = Pace()
        self._after = 0.0
        self._phase = ""
        self.warnings: list[str] = []
        """Text of each warning so far."""

    @cached_property
    def _console(self) -> Console | None:
        """The terminal, if there is one; not in the constructor, because it takes a tenth of a second to load."""
        if self._as_json or not self._stream.isatty():
            return None
        from rich.console import Console

        console = Console(file=self._stream, highlight=False, markup=False, soft_wrap=True)
        return console if console.is_terminal else None

    def note(self, text: str) -> None:
        """Write a line for the user."""
        self._tell("note", text)

    def warn(self, text: str) -> None:
        """Write a line that the user should not miss."""
        self.warnings.append(text)
        self._tell("warning", text)

    def phase(self, name: str) -> None:
        """Name what is done from here on, where nothing is counted."""
        if self._as_json:
            self._write({"event": "phase", "name": name})
        elif self._console is None:
            if name != self._phase and self._bar is None:
                self.note(f"{name} ...")
        elif self._bar is None:
            if self._status is None:
                self._status = self._console.status(f"{name} ...")
                self._status.start()
            else:
                self._status.update(f"{name} ...")
        self._phase = name

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Write the warnings that are logged meanwhile by vsfmanet, VapourSynth and its filters, once each."""
        handler = _Handler(self)
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield self
        finally:
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(handler)

    def repeat(self, event: Mapping[str, Any] | bytes) -> None:
        """Write an event of a job that runs in another process as if it ran in this one.

        Args:
            event: A line of its JSON, or lines of something else, such as a traceback, which are copied.
        """
        if isinstance(event, bytes):
            self._stream.write(event.decode(errors="replace"))
            self._stream.flush()
        elif self._as_json:
            self._write(event)
        elif event["event"] == "progress":
            self._repeat_progress(event)
        elif event["event"] == "phase":
            self.phase(event["name"])
        elif event["event"] == "warning":
            self.warn(event["text"])
        elif event["event"] == "note":
            self.note(event["text"])

    def _repeat_progress(self, event: Mapping[str, Any]) -> None:
        step, done, total = event["step"], event["done"], event["total"]
        if step != self._name:
            self.close()
            self.begin(step, total)
        last = done == total
        self.show(frames_state(done, total, event.get("speed"), event.get("seconds_left")), done, {}, last=last)
        if last:
            self.close()

    def begin(self, name: str, total: int, *, done: int = 0, after: float = 0.0) -> Self:
        """Start counting frames; used as a context, it stops counting at the end.

        Args:
            name: What is done to them.
            total: How many there are; 0 where that is unknown.
            done: How many were done before; they do not count for the speed.
            after: Seconds that the steps after this one take; the time that is left includes them.
        """
        self._after = after
        self._name, self._total, self._done, self._before = name, total, done, done
        self._started = self._printed = time.monotonic()
        self._pace = Pace()
        if self._as_json:
            self._printed -= JSON_INTERVAL  # the first frame is printed at once
        elif self._console is not None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=BAR), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task(name, total=total or None, state="")
            self._bar.start()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self) -> None:
        """One more frame is done."""
        self._done += 1
        now = time.monotonic()
        speed = self._pace.advance(now)
        if speed is None and self._done == self._total and now > self._started:
            speed = (self._done - self._before) / (now - self._started)
        state, fields = frames_state(self._done, self._total, None, None), dict[str, object]()
        if speed is not None and self._total:
            left = (self._total - self._done) / speed + self._after
            state = frames_state(self._done, self._total, speed, left)
            fields = {"speed": round(speed, 4), "seconds_left": round(left, 1)}
        self.show(state, self._done, fields, last=self._done == self._total)

    def show(
        self, state: str, done: float, fields: Mapping[str, object], *, last: bool = False, brief: str | None = None
    ) -> None:
        """Print how far the work is, unless the last such line is only a moment old.

        Args:
            state: Text for people.
            done: Part of the total that is done.
            fields: Fields for programs, beside the step and what is done of it.
            last: Print in any case.
            brief: For terminals, in place of `state`, at most 60 columns.
        """
        if self._bar is not None:
            text = (state if brief is None else brief).translate(CONTROLS)
            self._bar.update(self._task, completed=done, state=text)
            return
        now = time.monotonic()
        if not last and now - self._printed < (JSON_INTERVAL if self._as_json else INTERVAL):
            return
        self._printed = now
        if self._as_json:
            self._write({"event": "progress", "step": self._name, "done": done, "total": self._total, **fields})
        else:
            self.note(f"{self._name} {state}")

    def close(self) -> None:
        """Remove the progress bar from the terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tell(self, event: str, text: str) -> None:
        """A line that is no progress."""
        if self._as_json:
            self._write({"event": event, "text": text})
            return
        line = (f"warning: {text}" if event == "warning" else text).translate(CONTROLS)
        if self._console is None:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        else:
            self._console.print(line, style="yellow" if event == "warning" else None)

    def _write(self, value: Mapping[str, object]) -> None:
        """A line of JSON."""
        self._stream.write(f"{json.dumps(value)}\n")
        self._stream.flush()


class Pace:
    """Speed of a step, without the wait for its first frame.

    Frames of a segment come at once, after the time that the segment took. So the speed is judged only when a segment
    has begun to come: by the frames before it, and the time since the first of them.
    """

    def __init__(self) -> None:
        self._frames = 0
        self._first = self._last = 0.0
        self._speed: float | None = None

    def advance(self, now: float) -> float | None:
        """Count a frame, and return the speed in frames per second; None if it is not known yet.

        Args:
            now: Seconds on a clock that never goes back.
        """
        if self._frames == 0:
            self._first = self._last = now
        elapsed, gap = now - self._first, now - self._last
        if elapsed >= MEASURED and gap > PAUSE * elapsed / self._frames:
            self._speed = self._frames / elapsed
        self._frames += 1
        self._last = now
        return self._speed


class _Handler(logging.Handler):
    """Passes log records on to a report."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self._report = report
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._seen and OWN_SLIP not in text:
            self._seen.add(text)
            self._report.warn(text)


def frames_state(done: int, total: int, speed: float | None, seconds_left: float | None) -> str:
    """How far a step is, in words."""
    state = f"{done}/{total} frames" if total else f"{done} frames"
    if speed is None or seconds_left is None:
        return state
    return f"{state}, {speed:.3g} frames/s, {clock(seconds_left)} left"
