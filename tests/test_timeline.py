"""Timestamps that are repaired: those that can be used stay, others are computed from them."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfmanet.media.timeline import is_ascending, repaired

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
