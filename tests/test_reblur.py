"""Restored frames blurred again: by exactly their motion, to one shutter, and compared with their source."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray

import vsfmanet.restorer
from tests.fakes import EnlargingRestorer, drawn_clip, planes, same_pixels
from tests.films import H264, ffmpeg, restore
from vsfmanet.clips.colour import check_clip
from vsfmanet.clips.reblur import reblur_error
from vsfmanet.errors import ShapeError
from vsfmanet.filter import restore_with
from vsfmanet.media.clip import Tally
from vsfmanet.ops.reblur import blur_along
from vsfmanet.settings import RestoreSettings

WIDTH, HEIGHT, LENGTH, SPEED = 96, 64, 9, 4

TEXTURE = np.random.default_rng(4).random((HEIGHT // 4, 64)).repeat(4, axis=0).repeat(4, axis=1)
"""A wall of squares of 4 pixels, past which the camera moves."""


def wall(left: float, shutter: float = 0.0) -> NDArray[np.float64]:
    """The wall from a place on, with what a shutter adds up."""
    ways = [0.0] if shutter == 0 else np.linspace(-shutter / 2, shutter / 2, 33)
    columns = np.arange(TEXTURE.shape[1])
    seen = [np.stack([np.interp(left + SPEED * t + np.arange(WIDTH), columns, row) for row in TEXTURE]) for t in ways]
    return np.asarray(np.mean(seen, axis=0))


def moving(
    *, shutter: float = 0.0, format: vs.PresetVideoFormat = vs.YUV420P8, cuts: frozenset[int] = frozenset()
) -> vs.VideoNode:
    """The camera moves by `SPEED` pixels a frame to the right; a cut goes back to the beginning."""

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        since = n - max((cut for cut in cuts if cut <= n), default=0)
        return np.round(16 + 219 * wall(20 + SPEED * since, shutter)) if plane == 0 else np.full((1, 1), 128.0)

    def props(n: int) -> dict[str, object]:
        return {
            "_Matrix": 1, "_Range": 0, "FMANetExposure": max(shutter, 0.01),
            "_SceneChangePrev": int(n in cuts), "_SceneChangeNext": int(n + 1 in cuts),
        }  # fmt: skip

    clip = drawn_clip(draw, LENGTH, width=WIDTH, height=HEIGHT, format=vs.YUV420P8, props=props)
    return clip if format == vs.YUV420P8 else clip.resize.Bicubic(format=format)


def restored(source: vs.VideoNode, scale: int = 1, **settings: Any) -> vs.VideoNode:
    return restore_with(check_clip(source), [EnlargingRestorer(scale=scale)], RestoreSettings(**settings))


# The operation


def test_nothing_that_stands_still_is_blurred() -> None:
    image = torch.rand(1, 2, 9, 11)
    assert torch.equal(blur_along(image, torch.zeros(1, 2, 9, 11), 1.0), image)
    assert torch.equal(blur_along(image, torch.ones(1, 2, 9, 11), 0.0), image)


@pytest.mark.parametrize("way", [(6.0, 0.0), (0.0, 4.0), (-3.0, 5.0)])
def test_a_dot_becomes_its_path(way: tuple[float, float]) -> None:
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 16] = 1
    motion = torch.tensor(way).view(1, 2, 1, 1).expand(1, 2, 33, 33)
    blurred = blur_along(image, motion, 0.5)[0, 0]
    assert float(blurred.sum()) == pytest.approx(1, abs=0.05)
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    assert float((blurred * columns).sum()) == pytest.approx(0, abs=0.05)
    assert float((blurred * columns.abs()).sum()) == pytest.approx(
        abs(way[0]) / 8, abs=0.2
    )  # the mean of half its half
    assert float((blurred * rows.abs()).sum()) == pytest.approx(abs(way[1]) / 8, abs=0.2)


def test_motion_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"motion must be \(1, 2, 9, 11\), got \(1, 2, 9, 10\)"):
        blur_along(torch.rand(1, 1, 9, 11), torch.zeros(1, 2, 9, 10), 0.5)


# One shutter


@pytest.mark.parametrize("shutter", [0.5, 1.0])
def test_a_sharp_clip_gets_the_blur_of_the_shutter(shutter: float) -> None:
    made = restored(moving(), shutter=shutter)
    truth, sharp = moving(shutter=shutter), moving()
    inside = (slice(8, -8), slice(16, -16))
    for n in range(1, LENGTH - 1):
        found, wanted, before = (planes(clip.get_frame(n))[0][inside] for clip in (made, truth, sharp))
        assert np.abs(found - wanted).mean() < 0.2 * np.abs(before - wanted).mean()
        assert made.get_frame(n).props["FMANetShutter"] == shutter


@pytest.mark.parametrize("format", [vs.YUV420P8, vs.RGB24, vs.GRAY16, vs.RGBS, vs.YUV444PH])
def test_every_format_and_scale_is_blurred_alike(format: vs.PresetVideoFormat) -> None:
    matrix = {"matrix": 1} if format == vs.GRAY16 else {}
    source = moving().resize.Bicubic(format=format, **matrix) if matrix else moving(format=format)
    made, without = restored(source, 2, shutter=1.0), restored(source, 2)
    frame, sharp = made.get_frame(4), without.get_frame(4)
    assert (frame.width, frame.height, frame.format.id) == (2 * WIDTH, 2 * HEIGHT, int(format))
    steps = [np.diff(planes(each)[0], axis=1) for each in (frame, sharp)]
    assert np.square(steps[0]).mean() < 0.3 * np.square(steps[1]).mean()
    assert np.abs(planes(frame)[0].mean() / planes(sharp)[0].mean() - 1) < 0.02


def test_cuts_are_not_blurred_into_each_other_and_still_frames_keep_their_pixels() -> None:
    cuts = frozenset({4, 5})
    made, plain = restored(moving(cuts=cuts), shutter=1.0), restored(moving(cuts=cuts))
    assert same_pixels(made.get_frame(4), plain.get_frame(4))  # alone in its scene
    assert not same_pixels(made.get_frame(3), plain.get_frame(3))
    still = vs.core.std.Loop(moving()[0], 5).std.SetFrameProps(_SceneChangePrev=0, _SceneChangeNext=0)
    assert same_pixels(restored(still, shutter=1.0).get_frame(2), restored(still).get_frame(2))


def test_frames_are_the_same_in_any_order() -> None:
    options: dict[str, Any] = {"shutter": 0.5, "self_check": True, "height": 96}
    expected = list(restored(moving(), 2, segment=4, **options).frames())
    order = list(range(LENGTH))
    random.Random(5).shuffle(order)
    shuffled = restored(moving(), 2, segment=3, **options)
    for n in order:
        frame = shuffled.get_frame(n)
        assert same_pixels(frame, expected[n])
        assert frame.props["FMANetReblurError"] == expected[n].props["FMANetReblurError"]


# The check


def test_what_fits_its_source_when_blurred_again_has_a_small_error() -> None:
    """The sharp wall is right for a source with any shutter; the blurred one is wrong where it is blurred again."""
    sharp, blurred = (torch.from_numpy(wall(40, shutter)[:, 8:-8]).float() for shutter in (0.0, 1.0))
    flow = torch.zeros(2, *sharp.shape)
    flow[0] = SPEED
    right = reblur_error(blurred, sharp, flow, exposures=(1.0,))
    assert right < 0.03
    assert reblur_error(blurred, blurred, flow, exposures=(1.0,)) > 2 * right
    assert reblur_error(blurred, sharp, flow, exposures=(0.1,)) > 2 * right
    assert reblur_error(blurred, sharp, flow, exposures=(0.0, 0.25, 0.5, 0.75, 1.0)) == right
    assert reblur_error(sharp, sharp, None, exposures=(1.0,)) == 0


def test_a_frame_with_something_else_in_it_stands_out() -> None:
    class Inventing(EnlargingRestorer):
        """Adds a dark square to frame 5."""

        def restore(self, source: Any, first: int, stop: int, encode: Any = None) -> Any:
            class Painted:
                num_frames = source.num_frames

                def frame(self, n: int) -> torch.Tensor:
                    frame = source.frame(n).clone()
                    if n == 5:
                        frame[:, 20:36, 40:56] = 0
                    return frame

            return super().restore(Painted(), first, stop, encode)  # type: ignore[arg-type]

    made = restore_with(check_clip(moving()), [Inventing(scale=1)], RestoreSettings(self_check=True))
    tally = Tally()
    for n, frame in enumerate(made.frames()):
        tally.add(n, frame.props)
    assert set(tally.doubtful) == {5}
    assert len(tally.reblur_errors) == LENGTH


def test_a_few_frames_are_listed_the_farthest_first() -> None:
    tally = Tally()
    for n, error in enumerate([0.01] * 200 + [0.03, 0.05, 0.015]):
        tally.add(n, {"FMANetReblurError": error, "FMANetExposureSource": "network"})
    assert tally.doubtful == {201: 0.05, 200: 0.03}
    assert list(tally.doubtful) == [201, 200]
    assert tally.exposures == {"network": 203}
    assert Tally().doubtful == {}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("ranges", [(), ("--range-frames", "4")])
def test_the_record_lists_the_frames_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ranges: tuple[str, ...]
) -> None:
    class Opened(EnlargingRestorer):
        def __init__(self, model: str, **_: object) -> None:
            super().__init__(name=model, scale=1)

        def restore(self, source: Any, first: int, stop: int, encode: Any = None) -> Any:
            class Painted:
                def frame(self, n: int) -> torch.Tensor:
                    return source.frame(n) * (0.5 if n == 3 else 1)

            return super().restore(Painted(), first, stop, encode)  # type: ignore[arg-type]

    monkeypatch.setattr(vsfmanet.restorer, "Restorer", Opened)
    film, made = tmp_path / "film.mkv", tmp_path / "made.mkv"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.36", *H264, film)
    assert restore(film, made, "--self-check", "--shutter", "0.5", *ranges) == 0
    record = json.loads(made.with_name("made.mkv.vsfmanet.json").read_text())
    assert list(record["doubtful"]) == ["3"]
    assert "these frames are far from their source; look at them first: 3" in capsys.readouterr().err
