"""Timestamps that are repaired: those that can be used stay, others are computed from them."""

from __future__ import annotations

import itertools
import time
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfmanet.errors import ConfigError
from vsfmanet.media.timeline import frame_shown, is_ascending, parse_time, repaired, time_code

STEP = Fraction(40)


def whole(times: list[int | None]) -> list[int]:
    """The repaired times."""
    made = repaired(times, step=STEP)
    assert made is not None
    return list(made.times)


@pytest.mark.parametrize(
    ("times", "expected", "replaced"),
    [
        ([0, 40, 80, 120], [0, 40, 80, 120], []),
        ([0, 100, 200, 200, 300], [0, 100, 200, 250, 300], [3]),  # doubled, in a variable rate
        ([0, 40, 40, 40, 160], [0, 40, 80, 120, 160], [2, 3]),
        ([0, 40, 9000, 120, 160], [0, 40, 80, 120, 160], [2]),  # one far off
        ([0, 40, 80, 20, 160, 200], [0, 40, 80, 120, 160, 200], [3]),
        ([None, None, 20, 60, 100], [-60, -20, 20, 60, 100], [0, 1]),
        ([0, 40, None, 120, None], [0, 40, 80, 120, 160], [2, 4]),
        ([7, 8, 8, 9], [7, 8, 9, 10], [2, 3]),  # no room: the next one moves too
        ([None, 5, None], [-35, 5, 45], [0, 2]),  # the nominal step, where nothing shows another
    ],
)
def test_only_timestamps_that_cannot_be_used_are_replaced(
    times: list[int | None], expected: list[int], replaced: list[int]
) -> None:
    made = repaired(times, step=STEP)
    assert made is not None
    assert list(made.times) == expected
    assert list(made.replaced) == replaced
    assert made.restarts == ()


def test_timestamps_that_start_again_go_on_behind_those_before() -> None:
    made = repaired([100, 140, 180, 220, 100, 150, 190, 230], step=STEP)
    assert made is not None
    assert made.restarts == (4,)
    assert list(made.times) == [100, 140, 180, 220, 260, 310, 350, 390]
    assert made.replaced == ()


def test_a_track_without_any_timestamp_has_no_timeline() -> None:
    assert repaired([None, None], step=STEP) is None
    assert not is_ascending([])


@given(st.lists(st.one_of(st.none(), st.integers(-(10**9), 10**9)), min_size=1, max_size=60))
def test_repaired_times_always_rise_and_good_ones_are_kept(times: list[int | None]) -> None:
    made = repaired(times, step=STEP)
    if made is None:
        assert set(times) == {None}
        return
    assert len(made.times) == len(times)
    assert all(earlier < later for earlier, later in pairwise(made.times))
    if not made.restarts:
        assert all(made.times[n] == times[n] for n in range(len(times)) if n not in made.replaced)
    if is_ascending(times):
        assert list(made.times) == times


# Time codes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00:00", 0),
        ("00:01:00", 60),
        ("1:30.5", Fraction("90.5")),
        ("90.5s", Fraction("90.5")),
        ("90:00", 5400),
        ("100:00:00.001", 360000 + Fraction(1, 1000)),
    ],
)
def test_a_time_is_read_in_all_its_notations(text: str, seconds: Fraction) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "1.5",
        "0:60",
        "0:60:00",
        "0:00:60",
        "1:2:3:4",
        "0:00:01:12",
        "-1s",
        "-0:01",
        "1:00s",
        "0:01,5",
        "٣s",
        "s",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a frame number or a time is needed"):
        parse_time(text)


def test_a_clock_that_is_too_coarse_for_its_frames_takes_time_in_proportion_to_them() -> None:
    """One timestamp in 25 is doubled, and there is no room for it before the end: 0.5 s, and five hours if each of them
    were looked for from the beginning.
    """
    times: list[int | None] = [n * 24 // 25 for n in range(100_000)]
    begun = time.process_time()
    made = repaired(times, step=Fraction(24, 25))
    assert time.process_time() - begun < 10
    assert made is not None
    assert made.times == tuple(range(100_000))
    assert len(made.replaced) > 90_000


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 2))
def test_of_timestamps_without_room_those_go_that_come_too_early(steps: list[int], first: int) -> None:
    times = list(itertools.accumulate(steps, initial=first))
    made = repaired([*times], step=Fraction(1))
    assert made is not None
    kept = [n for n in range(len(times)) if n not in made.replaced]
    assert all(made.times[n] == times[n] for n in kept)
    for n in made.replaced:  # it has no place between the last one that is kept and itself
        before = max(each for each in kept if each < n)
        assert times[n] - times[before] < n - before


@given(st.decimals(0, 10**6, places=9))
def test_a_time_code_is_read_as_the_time_that_was_written(decimal: Decimal) -> None:
    time = Fraction(decimal)
    assert parse_time(time_code(time)) == time
    assert parse_time(f"{decimal:f}s") == time


@given(st.fractions(0, 10**6), st.fractions(0, 10**6))
def test_a_time_code_is_near_its_time_and_keeps_the_order(one: Fraction, other: Fraction) -> None:
    assert abs(parse_time(time_code(one)) - one) <= Fraction(1, 2 * 10**9)
    if one <= other:
        assert parse_time(time_code(one)) <= parse_time(time_code(other))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True).map(sorted), st.integers(-10, 10**6 + 10))
def test_the_frame_that_is_shown_is_the_last_one_that_has_begun(times: list[int], time: int) -> None:
    n = frame_shown(times, time)
    if n == len(times):
        assert time > times[-1]
        return
    assert time >= times[n] or n == 0
    assert n + 1 == len(times) or time < times[n + 1]


def test_parts_between_the_same_times_have_every_frame_once() -> None:
    times = [0, 33, 67, 100, 500, 540, 900]  # of variable rate
    cuts = [frame_shown(times, time) for time in (0, 34, 300, 539, 899, 1300)]
    assert cuts == [0, 1, 3, 4, 5, 7]
