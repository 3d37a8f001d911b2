"""Frames that are sharp are passed through, in runs, and all others are as they would be without."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.fakes import MixingRestorer, counted, drawn_clip, planes, restore_with, same_pixels
from vsfmanet.clips.skipping import SKIPPED

LENGTH = 48
STEP = 2.0
"""Pixels per frame of what moves."""


def moving_clip(
    positions: Sequence[float], *, cuts: Sequence[int] = (), part: int = 48, exposure: float | None = None
) -> vs.VideoNode:
    """Waves at a place each frame, of which the first `part` of 48 rows move."""

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        y, x = np.mgrid[:48, :64]
        moved = x + np.where(y < part, positions[n], 0.0)
        return 0.5 + 0.2 * np.sin(moved / 2.5 + y / 4 + plane) + 0.2 * np.sin(moved / 7 - y / 3)

    def props(n: int) -> dict[str, object]:
        scene: dict[str, object] = {"_SceneChangePrev": int(n in cuts), "_SceneChangeNext": int(n + 1 in cuts)}
        return scene if exposure is None else {**scene, "FMANetExposure": exposure}

    return drawn_clip(draw, len(positions), width=64, height=48, props=props)


def way(moving: range, step: float = STEP, length: int = LENGTH) -> list[float]:
    """Positions of something that moves to the next frame in `moving`, and else rests."""
    return np.cumsum([0.0, *(step * (n in moving) for n in range(length - 1))]).tolist()


def skipped(clip: vs.VideoNode) -> list[int]:
    return [n for n, frame in enumerate(clip.frames()) if frame.props[SKIPPED]]


def test_frames_at_rest_are_passed_through_untouched_and_the_others_are_as_without() -> None:
    clip = moving_clip(way(range(20, 26)))
    plain, chosen = (restore_with(clip, MixingRestorer(scale=1), skip=skip) for skip in (False, True))
    # Frames 20 to 26 have motion to a neighbour, and 4 on each side are kept with them.
    assert skipped(chosen) == [*range(16), *range(31, LENGTH)]
    for n in range(LENGTH):
        own, expected = chosen.get_frame(n), (clip if n < 16 or n > 30 else plain).get_frame(n)
        assert same_pixels(own, expected)
        assert ("FMANetModel" in own.props) == (16 <= n <= 30)


def test_where_everything_moves_the_result_is_the_same_as_without() -> None:
    clip = moving_clip(way(range(LENGTH)))
    plain, chosen = (restore_with(clip, MixingRestorer(scale=1), skip=skip) for skip in (False, True))
    assert skipped(chosen) == []
    assert all(same_pixels(a, b) for a, b in zip(plain.frames(), chosen.frames(), strict=True))


def test_segments_without_frames_to_restore_never_reach_the_network() -> None:
    restorer = MixingRestorer(scale=1)
    assert len(list(restore_with(moving_clip(way(range(20, 26))), restorer, skip=True, segment=4).frames())) == LENGTH
    assert restorer.calls == [(16, 20), (20, 24), (24, 28), (28, 32)]


@pytest.mark.parametrize("prefetch", [1, 8, 32])
def test_reading_forward_reads_each_frame_once(prefetch: int) -> None:
    vs.core.num_threads = 2  # few, so that a window is read long after its frames were asked for
    clip, asked = counted(moving_clip(way(range(20, 100), length=120)))
    for _ in restore_with(clip, MixingRestorer(scale=1), skip=True, segment=5).frames(prefetch=prefetch):
        pass
    assert len(asked) <= 120 * 1.05


def test_the_order_of_requests_has_no_effect() -> None:
    clip = moving_clip(way(range(20, 26)))
    expected = list(restore_with(clip, MixingRestorer(scale=1), skip=True).frames())
    shuffled = restore_with(clip, MixingRestorer(scale=1), skip=True, segment=3)
    for n in random.Random(1).sample(range(LENGTH), LENGTH):
        frame = shuffled.get_frame(n)
        assert same_pixels(frame, expected[n])
        assert frame.props[SKIPPED] == expected[n].props[SKIPPED]


def test_a_short_rest_is_restored_with_what_is_around_it() -> None:
    # At rest from frame 12 to frame 26: without 4 frames at each end, that is a run of 7.
    positions = np.cumsum([0.0, *(STEP * (not 12 <= n < 26) for n in range(LENGTH - 1))]).tolist()
    assert skipped(restore_with(moving_clip(positions), MixingRestorer(scale=1), skip=True)) == []


@pytest.mark.parametrize(("exposure", "passed"), [(0.1, True), (0.9, False), (None, False)])
def test_slow_motion_is_sharp_if_the_shutter_was_open_for_a_short_time(exposure: float | None, passed: bool) -> None:
    clip = moving_clip(way(range(LENGTH)), exposure=exposure)
    assert bool(skipped(restore_with(clip, MixingRestorer(scale=1), skip=True))) == passed


def test_a_small_part_that_moves_is_enough_to_restore_the_frame() -> None:
    # 8 of 48 rows; a window of the motion's estimate is 7 pixels high.
    clip = moving_clip(way(range(LENGTH)), part=8)
    assert skipped(restore_with(clip, MixingRestorer(scale=1), skip=True)) == []


def test_scenes_do_not_look_at_each_other() -> None:
    # The second scene moves all the time, the first and the third rest; the jumps between them are no motion.
    positions = [0.0] * 16 + [40 + STEP * n for n in range(16)] + [200.0] * 16
    chosen = restore_with(moving_clip(positions, cuts=(16, 32)), MixingRestorer(scale=1), skip=True)
    assert skipped(chosen) == [*range(16), *range(32, 48)]


def test_frames_passed_through_have_the_output_format() -> None:
    clip = moving_clip(way(range(0)))
    chosen = restore_with(clip, MixingRestorer(scale=1), skip=True, output_format=vs.RGB24)
    frame = chosen.get_frame(20)
    assert (frame.format.id, frame.props[SKIPPED]) == (vs.RGB24, 1)
    for own, source in zip(planes(frame), planes(clip.get_frame(20)), strict=True):
        np.testing.assert_allclose(own, 255 * source, atol=1.01)


def test_networks_that_enlarge_cannot_pass_frames_through() -> None:
    with pytest.raises(Exception, match="skip is for models of scale 1, got fake of scale 4"):
        restore_with(moving_clip([0.0] * 9), MixingRestorer(), skip=True)
    with pytest.raises(Exception, match="skip must be True or False, got 2"):
        restore_with(moving_clip([0.0] * 9), MixingRestorer(scale=1), skip=2)  # type: ignore[arg-type]


def test_without_scenes_the_whole_clip_is_one() -> None:
    positions = [0.0] * 16 + [40.0] * 16  # at rest before and after a jump
    chosen = restore_with(moving_clip(positions, cuts=(16,)), MixingRestorer(scale=1), skip=True, sc_threshold=0)
    assert skipped(chosen) == [*range(11), *range(21, 32)]
