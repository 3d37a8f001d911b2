"""The grid of segments."""

from __future__ import annotations

import pytest

from vsfmanet.segments import MAX_FRAMES, Reach, SegmentGrid, default_length
from vsfmanet.settings import MAX_SEGMENT

GRIDS = [
    SegmentGrid(num_frames=num_frames, length=length, reach=reach)
    for num_frames in (1, 8, 9, 23)
    for length in (1, 3, 8)
    for reach in (
        Reach(before=0, after=0),
        Reach(before=2, after=2),
        Reach(before=9, after=1),
        Reach(before=3, after=2, period=5),
    )
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_segments_cover_every_frame_once_and_in_order(grid: SegmentGrid) -> None:
    covered = [n for segment in range(grid.count) for n in range(*grid.bounds(segment))]
    assert covered == list(range(grid.num_frames))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_window_is_its_segment_with_context_inside_the_clip(grid: SegmentGrid) -> None:
    for segment in range(grid.count):
        first, stop = grid.bounds(segment)
        ends = [grid.reach.of(n) for n in range(first, stop)]
        inside = {n for earliest, latest in ends for n in range(earliest, latest + 1) if 0 <= n < grid.num_frames}
        assert inside <= set(grid.window(segment)) <= set(range(grid.num_frames))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_slots_of_the_padded_clip_carry_the_windows(grid: SegmentGrid) -> None:
    before, after = grid.padding
    padded = [0] * before + list(range(grid.num_frames)) + [grid.num_frames - 1] * after
    slots = [padded[i :: grid.length][: grid.count] for i in range(grid.slots)]
    assert all(len(slot) == grid.count for slot in slots)
    for segment in range(grid.count):
        for n in grid.window(segment):
            assert slots[grid.slot(segment, n)][segment] == n


def test_the_longest_clip_can_be_padded_within_31_bits() -> None:
    grid = SegmentGrid(num_frames=MAX_FRAMES, length=MAX_SEGMENT, reach=Reach(before=16, after=16))
    assert MAX_FRAMES + sum(grid.padding) < 2**31
    assert grid.count * grid.length < 2**31


@pytest.mark.parametrize(
    ("width", "height", "length"), [(64, 64, 8), (1920, 1080, 8), (3840, 2160, 4), (7680, 4320, 1), (30000, 30000, 1)]
)
def test_large_pictures_take_shorter_segments(width: int, height: int, length: int) -> None:
    assert default_length(width, height) == length
    assert default_length(width, height, devices=2) == default_length(width, height, devices=3) == 2 * length


def test_a_state_is_built_up_from_a_fixed_grid() -> None:
    reach = Reach(before=3, after=2, period=5)
    assert [reach.of(n) for n in (0, 4, 5, 9)] == [(-3, 2), (-3, 6), (2, 7), (2, 11)]
    assert reach.furthest == max(n - reach.of(n)[0] for n in range(10))
