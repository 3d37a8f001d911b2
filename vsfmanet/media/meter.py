"""Progress of long steps, as whoever calls this library shows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Meter(Protocol):
    """Counts the frames of one step."""

    def advance(self) -> None:
        """Count a frame."""


class Meters(Protocol):
    """Starts a meter for each step."""

    def begin(self, name: str, total: int) -> AbstractContextManager[Meter]:
        """Start counting the frames of a step.

        Args:
            name: What is done to them, such as "verifying".
            total: How many there are.
        """

    def phase(self, name: str) -> None:
        """Name what is done from here on, where nothing is counted."""


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
