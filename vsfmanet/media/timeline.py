"""Time codes, and repair of timestamps: missing and wrong ones are replaced, all others kept."""

from __future__ import annotations

import bisect
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from vsfmanet.errors import ConfigError

TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)(s?)", re.ASCII)
"""A time code: H:MM:SS, MM:SS or SSs, each with decimals."""

TIME_CODE_ERROR = Fraction(1, 1000)
"""Most seconds between a frame's timestamp and the time code of three decimals that players show for it."""

LONG_RUN = 3
"""Least number of timestamps that rise from an earlier time, to count as a restart; fewer are stray ones."""


def parse_time(text: str) -> Fraction:
    """Read a time code.

    Args:
        text: H:MM:SS, MM:SS or SSs, each with decimals: "0:01:30.5", "1:30.5" and "90.5s" are the same.

    Returns:
        Seconds.

    Raises:
        ConfigError: It is no time code.
    """
    match = TIME.fullmatch(text)
    hours, minutes, seconds, unit = match.groups() if match else (None, None, "0", "")
    is_clock = minutes is not None
    sixties = [minutes if hours is not None else None, seconds if is_clock else None]
    if match is None or is_clock == bool(unit) or any(part is not None and Fraction(part) >= 60 for part in sixties):
        raise ConfigError(
            f"a frame number or a time is needed, such as 1500, 0:01:00.5 or 60.5s, got {text!r}; minutes and seconds "
            "are below 60"
        )
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + Fraction(seconds)


def time_code(time: Fraction) -> str:
    """Format a time, in seconds from 0, as H:MM:SS with as many decimals as it needs, at most nine."""
    minutes, rest = divmod(round(time, 9), 60)
    whole, decimals = divmod(rest, 1)
    fraction = f"{round(decimals * 10**9):09}".rstrip("0")
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}" + (f".{fraction}" if fraction else "")


def frame_shown(times: Sequence[int], time: Fraction | int) -> int:
    """Find the frame that is shown at some time.

    Args:
        times: When each frame is shown, ascending.
        time: In the same unit.

    Returns:
        Its number; 0 before the first frame, and the number of frames once the last one has been shown for as long as
        the one before.
    """
    last = times[-1] - times[-2] if len(times) > 1 else 1
    return len(times) if time >= times[-1] + last else max(0, bisect.bisect_right(times, time) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """When each frame is shown."""

    times: tuple[int, ...]
    """Strictly ascending."""
    replaced: tuple[int, ...]
    """Numbers of the frames whose own timestamp is missing or cannot be used."""
    restarts: tuple[int, ...]
    """Numbers of the frames at which the timestamps start again; the frames from there on are moved behind those
    before."""


def is_ascending(times: Sequence[int | None]) -> bool:
    """Whether every frame has a timestamp above the one before."""
    known = [time for time in times if time is not None]
    return len(known) == len(times) > 0 and all(earlier < later for earlier, later in pairwise(known))


def repaired(times: Sequence[int | None], *, step: Fraction) -> Timeline | None:
    """Replace the timestamps that cannot be used, and keep all others.

    Missing ones at the beginning are counted back from the first known one; those at the end are counted on; others are
    spread evenly between their neighbours.

    Args:
        times: Of each frame, in the order of showing; None where there is none.
        step: Nominal time from frame to frame, used where the timestamps do not show it; above 0.

    Returns:
        The timeline; None without any timestamp.
    """
    if all(time is None for time in times):
        return None
    steps = [later - earlier for earlier, later in pairwise(times) if earlier is not None and later is not None]
    rising = [each for each in steps if each > 0]
    usual = Fraction(statistics.median_low(rising)) if rising else max(step, Fraction(1))
    joined, restarts = _continued(times, usual)
    kept = _with_room(joined, _longest_rise(joined))
    replaced = sorted(set(range(len(times))) - set(kept))
    return Timeline(times=tuple(_filled(joined, kept, usual)), replaced=tuple(replaced), restarts=restarts)


def _continued(times: Sequence[int | None], usual: Fraction) -> tuple[list[int | None], tuple[int, ...]]:
    """Shift the timestamps after each restart behind those before it; return them and the frames of the restarts."""
    moved, restarts, shift = list[int | None](times), [], 0
    highest: int | None = None
    for n, time in enumerate(times):
        if time is None:
            continue
        if (
            highest is not None
            and time + shift <= highest
            and _rises_long(times[n : n + 2 * LONG_RUN], highest - shift)
        ):
            restarts.append(n)
            shift = highest + round(usual) - time
        moved[n] = time + shift
        highest = time + shift if highest is None else max(highest, time + shift)
    return moved, tuple(restarts)


def _rises_long(times: Sequence[int | None], below: int) -> bool:
    """Whether the next timestamps rise and stay below a time."""
    known = [time for time in times if time is not None][:LONG_RUN]
    return len(known) == LONG_RUN and is_ascending(known) and known[-1] <= below


def _longest_rise(times: Sequence[int | None]) -> list[int]:
    """Numbers of the frames of a longest rising subsequence; of equal timestamps the first."""
    tails: list[int] = []  # the least last time of a rise of each length
    places: list[int] = []
    before: dict[int, int] = {}
    for n, time in enumerate(times):
        if time is None:
            continue
        length = bisect.bisect_left(tails, time)
        if length < len(tails) and tails[length] == time:
            continue
        if length:
            before[n] = places[length - 1]
        tails[length : length + 1] = [time]
        places[length : length + 1] = [n]
    chain = [places[-1]]
    while chain[-1] in before:
        chain.append(before[chain[-1]])
    return chain[::-1]


def _with_room(times: Sequence[int | None], numbers: Sequence[int]) -> list[int]:
    """Those of some frames with rising timestamps that leave a unit of time for each frame between them."""
    kept = list(numbers[:1])
    for n in numbers[1:]:
        if _known(times, n) - _known(times, kept[-1]) >= n - kept[-1]:
            kept.append(n)
    return kept


def _filled(times: Sequence[int | None], kept: Sequence[int], usual: Fraction) -> list[int]:
    """Times for all frames: kept ones unchanged, others interpolated."""
    made: list[int] = []
    for n in range(len(times)):
        place = bisect.bisect_left(kept, n)
        after = kept[place] if place < len(kept) else None
        earlier = kept[place - 1] if place else None
        if after == n or (after is not None and earlier is None):
            made.append(round(_known(times, after) - (after - n) * usual))
        elif earlier is not None and after is not None:
            start, end = _known(times, earlier), _known(times, after)
            made.append(start + (end - start) * (n - earlier) // (after - earlier))
        else:
            assert earlier is not None
            made.append(round(_known(times, earlier) + (n - earlier) * usual))
    return made


def _known(times: Sequence[int | None], n: int) -> int:
    time = times[n]
    assert time is not None
    return time
