"""Where scenes start."""

from __future__ import annotations

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.fakes import EnlargingRestorer, drawn_clip, restore_with
from vsfmanet.clips.detector import DEFAULT_THRESHOLD, REACH_AHEAD, REACH_BACK, Thumbnail, detected_start, tagged_start
from vsfmanet.segments import Reach


def scenery(seed: int) -> NDArray[np.float32]:
    """A picture (36, 400) of blotches some ten pixels wide, in [0, 1], to look at through a window 64 pixels wide."""
    coarse = np.random.default_rng(seed).random((5, 41))
    rows = np.linspace(0, 4, 36)
    columns = np.linspace(0, 40, 400)
    tall = np.stack([np.interp(rows, range(5), column) for column in coarse.T], axis=1)
    return np.stack([np.interp(columns, range(41), row) for row in tall]).astype(np.float32)


def view(seed: int, x: int = 0) -> Thumbnail:
    """The window at column `x` of a picture."""
    return scenery(seed)[:, x : x + 64]


def starts(clip: list[Thumbnail], threshold: float = DEFAULT_THRESHOLD) -> list[int]:
    """Frames of a clip that start a scene, by the detector."""

    def around(n: int) -> list[Thumbnail | None]:
        numbers = range(n - REACH_BACK, n + REACH_AHEAD + 1)
        return [clip[m] if 0 <= m < len(clip) else None for m in numbers]

    return [n for n in range(1, len(clip)) if detected_start(around(n), threshold)]


def test_a_still_clip_has_no_cut() -> None:
    assert starts([view(1)] * 8) == []


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 9])
def test_a_cut_is_found_wherever_it_lies(at: int) -> None:
    assert starts([view(1)] * at + [view(2)] * (10 - at)) == [at]


def test_a_cut_is_found_in_a_clip_of_two_frames() -> None:
    assert starts([view(1), view(2)]) == [1]


def test_a_cut_between_moving_scenes_is_found() -> None:
    assert starts([view(1, 2 * n) for n in range(8)] + [view(2, 2 * n) for n in range(8)]) == [8]


def test_a_scene_of_one_frame_has_two_cuts() -> None:
    assert starts([view(1)] * 5 + [view(2)] + [view(3)] * 5) == [5, 6]


@pytest.mark.parametrize("pixels", [1, 4, 12, 20])
def test_a_pan_is_no_cut_however_fast(pixels: int) -> None:
    assert starts([view(1, pixels * n) for n in range(16)]) == []


def test_a_pan_that_sets_in_is_no_cut() -> None:
    assert starts([view(1)] * 6 + [view(1, 15 * n) for n in range(12)]) == []


@pytest.mark.parametrize("frames", [4, 8, 16])
def test_a_dissolve_is_no_cut(frames: int) -> None:
    mixed = [view(1) * (1 - k / frames) + view(2) * (k / frames) for k in range(frames)]
    assert starts([view(1)] * 6 + mixed + [view(2)] * 6) == []


def test_a_fade_to_black_is_no_cut() -> None:
    assert starts([view(1) * (1 - k / 10) for k in range(11)] + [0 * view(1)] * 5) == []


def test_a_flash_of_one_frame_is_no_cut() -> None:
    assert starts([view(1)] * 5 + [np.minimum(view(1) + 0.6, 1)] + [view(1)] * 5) == []


def test_the_threshold_decides_how_much_must_change() -> None:
    clip = [view(1)] * 5 + [view(1) + 0.1] * 5
    assert starts(clip, 0.09) == [5]
    assert starts(clip, 0.11) == []


@pytest.mark.parametrize(
    ("props", "previous", "expected"),
    [
        ({}, {}, None),
        ({"_SceneChangePrev": 1}, {}, True),
        ({"_SceneChangePrev": 0}, {}, False),
        ({}, {"_SceneChangeNext": 1}, True),
        ({}, {"_SceneChangeNext": 0}, False),
        ({"_SceneChangePrev": 0}, {"_SceneChangeNext": 1}, True),
        ({"_SceneChangeNext": 1}, {"_SceneChangePrev": 1}, None),
    ],
)
def test_either_standard_property_marks_a_cut(
    props: dict[str, object], previous: dict[str, object], expected: bool | None
) -> None:
    assert tagged_start(props, previous) is expected


def cuts_seen(clip: vs.VideoNode, sc_threshold: float | None) -> list[int]:
    """Frames that the filter takes for the first of a scene."""
    restored = restore_with(
        clip, EnlargingRestorer(scale=1, reach=Reach(before=1, after=1)), sc_threshold=sc_threshold, segment=3
    )
    return [n for n, frame in enumerate(restored.frames()) if n > 0 and frame.props["FMANetWindowStart"] == n]


def two_scenes(tagged_cut: int | None) -> vs.VideoNode:
    """Ten frames with a visible cut at frame 5, and tags that put it at `tagged_cut`."""
    return drawn_clip(
        lambda n, plane: view(1 if n < 5 else 2).astype(np.float64),
        10,
        width=64,
        height=36,
        props=lambda n: {} if tagged_cut is None else {"_SceneChangePrev": int(n == tagged_cut)},
    )


@pytest.mark.parametrize(
    ("tagged_cut", "sc_threshold", "expected"),
    [
        (None, None, [5]),  # nothing is tagged: the detector
        (7, None, [7]),  # tags are trusted
        (7, 0.05, [5]),  # a number asks for the detector
        (7, 0.9, []),
        (7, 0, []),  # 0 switches cuts off
        (None, 0, []),
    ],
)
def test_tags_are_trusted_unless_a_threshold_asks_for_the_detector(
    tagged_cut: int | None, sc_threshold: float | None, expected: list[int]
) -> None:
    assert cuts_seen(two_scenes(tagged_cut), sc_threshold) == expected


@pytest.mark.parametrize("format", [vs.YUV420P8, vs.GRAY16, vs.RGB24])
def test_the_detector_sees_cuts_in_any_format(format: int) -> None:
    clip = two_scenes(None).resize.Bicubic(format=format, **({} if format == vs.RGB24 else {"matrix": 1}))
    assert cuts_seen(clip, None) == [5]
