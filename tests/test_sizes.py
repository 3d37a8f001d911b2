"""Results of a size that is asked for: which size, by which model, and that nothing else of the picture changes."""

from __future__ import annotations

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs
from hypothesis import given
from hypothesis import strategies as st

import vsfmanet
import vsfmanet.restorer
from tests.fakes import EnlargingRestorer, MixingRestorer, noise_clip, planes, same_pixels
from tests.films import H264, ffmpeg, picture, restore
from vsfmanet.clips.colour import check_clip, plain, tag_colour
from vsfmanet.errors import ConfigError
from vsfmanet.filter import restore_with
from vsfmanet.jobs.job import RestoreJob, recipe
from vsfmanet.jobs.record import weights_sha256
from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings
from vsfmanet.sizes import enlargement, result_size, sample_stretch, with_model


def restored(clip: vs.VideoNode, restorer: MixingRestorer | EnlargingRestorer, **settings: object) -> vs.VideoNode:
    return restore_with(check_clip(clip), [restorer], RestoreSettings(**settings))  # type: ignore[arg-type]


# Which size


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ((640, 480), {"height": 1080}, (1440, 1080)),
        ((854, 480), {"height": 1080}, (1922, 1080)),
        ((720, 576), {"height": 1080}, (1350, 1080)),
        ((640, 480), {"width": 1920}, (1920, 1440)),
        ((720, 576), {"width": 1440, "height": 1080}, (1440, 1080)),
        ((640, 480), {"scale": 1.5}, (960, 720)),
        ((642, 362), {"scale": 1.5}, (964, 544)),
        ((640, 480), {"scale": 1}, (640, 480)),
        ((640, 480), {}, None),
    ],
)
def test_sizes(before: tuple[int, int], asked: dict[str, float], after: tuple[int, int] | None) -> None:
    assert result_size(RestoreSettings(**asked), *before, multiples=(2, 2)) == after  # type: ignore[arg-type]


@given(
    st.integers(4, 2000), st.integers(4, 2000), st.integers(4, 2000), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 4)])
)
def test_the_other_side_keeps_the_shape_and_fits_the_chroma(
    width: int, height: int, asked: int, multiples: tuple[int, int]
) -> None:
    asked = asked * multiples[1] * 2
    try:
        size = result_size(RestoreSettings(height=asked), 2 * width, 2 * height, multiples=multiples)
    except ConfigError:
        assert Fraction(width * asked, height) < 12
        return
    assert size is not None
    assert size[1] == asked
    assert size[0] % multiples[0] == 0
    assert abs(size[0] - Fraction(width * asked, height)) <= max(1, multiples[0] / 2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"height": 1081}, "height must be a multiple of 2 for the chroma of this format, got 1081; take 1080 or 1082"),
        ({"width": 15}, "width must be a multiple of 2 .* take 14 or 16"),
        ({"scale": 0.01}, "a result of at least 8x8 pixels is needed, got 6x4 from 640x480"),
    ],
)
def test_sizes_that_cannot_be(asked: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        result_size(RestoreSettings(**asked), 640, 480, multiples=(2, 2))  # type: ignore[arg-type]


def test_samples_keep_their_aspect_unless_the_shape_changes() -> None:
    assert sample_stretch((854, 480), (1922, 1080)) == 1
    assert sample_stretch((854, 480), (1920, 1080)) == 1  # 854 was rounded itself
    assert sample_stretch((720, 576), (1440, 1080)) == Fraction(15, 16)
    assert sample_stretch((640, 480), (1920, 1080)) == Fraction(3, 4)


# Which model


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        ({}, "fmanetpp_x4_fast"),
        ({"height": 1080}, "fmanetpp_x4_fast"),
        ({"height": 960}, "fmanetpp_x2_fast"),
        ({"scale": 1.2}, "fmanetpp_x2_fast"),
        ({"scale": 1}, "fmanetpp_x1_path"),
        ({"height": 240}, "fmanetpp_x1_path"),
        ({"scale": 6}, "fmanetpp_x4_fast"),
        ({"width": 640, "height": 1080}, "fmanetpp_x4_fast"),
        ({"model": "fmanetpp_x4_base", "scale": 1}, "fmanetpp_x4_base"),
    ],
)
def test_the_smallest_scale_that_reaches_the_size(asked: dict[str, object], model: str) -> None:
    assert with_model(RestoreSettings(**asked), 640, 480).model == model  # type: ignore[arg-type]


def test_restore_opens_the_model_of_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Opened(EnlargingRestorer):
        def __init__(self, model: str, **_: object) -> None:
            opened.append(model)
            super().__init__(name=model, scale=int(model.split("_x")[1][0]))

    monkeypatch.setattr(vsfmanet.restorer, "Restorer", Opened)
    clip = vsfmanet.restore(noise_clip(2, width=32, height=24), height=30)
    assert opened == ["fmanetpp_x2_fast"]
    assert (clip.width, clip.height) == (40, 30)
    assert clip.get_frame(1).props["FMANetModel"] == "fmanetpp_x2_fast"


# The pixels


@pytest.mark.parametrize("format", [vs.YUV420P8, vs.YUV422P10, vs.RGB24, vs.GRAY16, vs.RGBS, vs.YUV444PS])
def test_the_enlargement_is_resized_in_the_clips_format(format: vs.PresetVideoFormat) -> None:
    source = noise_clip(3).resize.Bicubic(
        64, 48, format=format, **({} if format in (vs.RGB24, vs.RGBS) else {"matrix": 1})
    )
    made = restored(source, EnlargingRestorer(), height=108)
    assert (made.width, made.height, made.format.id, made.num_frames) == (144, 108, int(format), 3)
    deep = int(format) if format in (vs.RGBS, vs.YUV444PS) else made.format.replace(bits_per_sample=16).id
    whole = restored(source, EnlargingRestorer(), output_format=deep)
    expected = whole.resize.Spline36(144, 108, format=format, dither_type="ordered")
    for found, wanted in zip(made.frames(), expected.frames(), strict=True):
        assert same_pixels(found, wanted)
        assert found.props["FMANetModel"] == "fake"
        assert found.props.get("_Matrix") == wanted.props.get("_Matrix")


def test_a_size_of_the_models_own_scale_changes_nothing() -> None:
    source = noise_clip(3).resize.Bicubic(format=vs.YUV420P8, matrix=1)
    expected = restored(source, MixingRestorer())
    for asked in ({"scale": 4}, {"height": 48}, {"width": 64, "height": 48}):
        made = restored(source, MixingRestorer(), **asked)
        assert all(same_pixels(*pair) for pair in zip(made.frames(), expected.frames(), strict=True))


def test_frames_are_the_same_in_any_order() -> None:
    source = noise_clip(17, cuts={5, 11}).resize.Bicubic(format=vs.YUV420P8, matrix=1)
    expected = list(restored(source, MixingRestorer(), height=18, segment=4).frames())
    order = list(range(17))
    random.Random(1).shuffle(order)
    shuffled = restored(source, MixingRestorer(), height=18, segment=3)
    assert all(same_pixels(shuffled.get_frame(n), expected[n]) for n in order)


def test_what_no_model_reaches_is_interpolated_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = restored(noise_clip(2), EnlargingRestorer(scale=2), height=36)
    assert (made.width, made.height) == (48, 36)
    assert caplog.messages == ["fake enlarges 16x12 to 32x24; the rest, to 48x36, is interpolated"]


def test_the_sample_aspect_ratio_keeps_the_picture_in_shape() -> None:
    square = noise_clip(1)
    wide = square.std.SetFrameProps(_SARNum=16, _SARDen=15)
    for source, asked, after in (
        (wide, {"height": 18}, (16, 15)),
        (wide, {"width": 32, "height": 48}, (32, 15)),
        (square, {"width": 32, "height": 48}, (2, 1)),
        (square, {"height": 18}, (None, None)),
        (square.std.SetFrameProps(_SARNum=0, _SARDen=0), {"width": 32, "height": 48}, (2, 1)),
    ):
        props = restored(source, EnlargingRestorer(), **asked).get_frame(0).props
        assert (props.get("_SARNum"), props.get("_SARDen")) == after


def test_frames_that_are_skipped_have_the_size_too() -> None:
    still = vs.core.std.BlankClip(width=32, height=24, format=vs.YUV420P8, length=20, color=[90, 128, 128])
    made = restored(still.std.SetFrameProps(_Matrix=1), EnlargingRestorer(scale=1), skip=True, scale=1.5)
    for frame in made.frames():
        assert (frame.width, frame.height) == (48, 36)
        assert frame.props["FMANetSkipped"] == 1
        assert {int(value) for value in np.unique(planes(frame)[0])} == {90}


def test_plain_conversion_keeps_what_is_converted_already() -> None:
    tagged = tag_colour(noise_clip(1).resize.Bicubic(format=vs.YUV420P8, matrix=1))
    assert plain(tagged, tagged.format, 16, 12) is tagged
    large = plain(tagged, vs.core.get_video_format(vs.RGB24), 32, 24, scale=4).get_frame(0)
    assert (large.width, large.height, large.format.id) == (32, 24, int(vs.RGB24))


def test_restore_is_a_scaler_of_vs_jetpack(opened: list[str]) -> None:
    """As docs/vapoursynth.md shows it; vsjetpack[kernels] is no dependency, and 2.2.6 was tried."""
    scaler = pytest.importorskip("vsscale").GenericScaler
    fmanet = scaler(lambda clip, width, height, *_, **__: vsfmanet.restore(clip, width=width, height=height))
    source = noise_clip(2, width=64, height=48).resize.Bicubic(format=vs.YUV420P8, matrix=1)
    made = fmanet.scale(source, 96, 72)
    assert (made.width, made.height, made.format.id) == (96, 72, int(vs.YUV420P8))
    assert made.get_frame(1).props["FMANetModel"] == "fmanetpp_x2_fast"
    shifted = fmanet.scale(source, 96, 72, shift=(0.5, 0))
    assert not same_pixels(shifted.get_frame(1), made.get_frame(1))
    assert opened == ["fmanetpp_x2_fast"] * 2


# Files


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """12 frames of 64x48 with samples of 16:15."""
    path = tmp_path / "film.mkv"
    ffmpeg(*picture(0.48), "-vf", "setsar=16/15", *H264, path)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models that were opened; they repeat pixels."""
    opened: list[str] = []

    class Opened(EnlargingRestorer):
        def __init__(self, model: str, **_: object) -> None:
            opened.append(model)
            super().__init__(name=model, scale=int(model.split("_x")[1][0]))

    monkeypatch.setattr(vsfmanet.restorer, "Restorer", Opened)
    return opened


def shape(path: Path) -> tuple[int, int, Fraction]:
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        aspect = track.sample_aspect_ratio or Fraction(1)
        return track.width, track.height, Fraction(aspect.numerator, aspect.denominator)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("ranges", [(), ("--range-frames", "5")])
def test_a_film_of_a_size(film: Path, tmp_path: Path, opened: list[str], ranges: tuple[str, ...]) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made, "--height", "108", *ranges) == 0
    assert shape(made) == (144, 108, Fraction(16, 15))
    record = json.loads(made.with_name("made.mkv.vsfmanet.json").read_text())
    assert (record["width"], record["height"]) == (144, 108)
    assert record["recipe"]["settings"]["height"] == 108
    assert record["recipe"]["model"] == "auto"
    assert record["resolved"]["model"] == "fmanetpp_x4_fast"
    assert record["resolved"]["weights_sha256"] == weights_sha256("fmanetpp_x4_fast")
    assert opened == ["fmanetpp_x4_fast"]
    assert restore(film, made, "--height", "108", *ranges) == 0  # done already
    assert opened == ["fmanetpp_x4_fast"]
    assert restore(film, made, "--height", "96") == 2  # another job
    assert vsfmanet_verify(made, film) == 0


def vsfmanet_verify(made: Path, film: Path) -> int:
    from vsfmanet.cli import main

    return main(["verify", str(made), "--source", str(film)])


@pytest.mark.usefixtures("in_this_process")
def test_a_film_of_another_shape_is_shown_in_the_shape_of_its_source(
    film: Path, tmp_path: Path, opened: list[str]
) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made, "--height", "96", "--width", "160") == 0
    assert shape(made) == (160, 96, Fraction(16, 15) * Fraction(64 * 96, 48 * 160))
    assert opened == ["fmanetpp_x4_fast"]
    assert vsfmanet_verify(made, film) == 0


@pytest.mark.usefixtures("in_this_process")
def test_a_size_that_does_not_fit_the_chroma_is_refused_before_the_work(
    film: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mkv", "--height", "107") == 2
    assert "height must be a multiple of 2" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv"]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ("-vf scale=100:60", (100, 60)),
        ("-vf crop=96:80:8:4", (96, 80)),
        ("-vf transpose=1", (192, 256)),
        ("-s 96x72", (96, 72)),
        ("-c:v ffv1 -s 96x72", (96, 72)),
    ],
)
def test_the_users_own_scaling_and_cropping_works(
    film: Path, tmp_path: Path, opened: list[str], arguments: str, size: tuple[int, int]
) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made, f"--encoder-args={arguments}") == 0
    assert shape(made)[:2] == size
    record = json.loads(made.with_name("made.mkv.vsfmanet.json").read_text())
    assert (record["width"], record["height"]) == size


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("arguments", ["-r 50", "-vf fps=50", "-vf fps=24", "-vf mpdecimate", "-vf setpts=2*PTS"])
def test_options_that_change_timing_are_refused_before_the_work(
    film: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    assert restore(film, tmp_path / "made.mkv", f"--encoder-args={arguments}") == 5
    assert "trial" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mkv"]


def test_a_clip_of_another_size_than_asked_for_is_a_fault(film: Path) -> None:
    from vsfmanet.errors import IncompleteError
    from vsfmanet.media.source import inspect

    node = noise_clip(2)
    with pytest.raises(IncompleteError, match="2 frames of 24x18 are needed, but the filter offers 2 of 32x24"):
        clips.check_restored(inspect(film), node, node.resize.Point(32, 24), RestoreSettings(scale=1.5))


def test_the_size_is_part_of_the_job_and_the_choice_of_the_model_too(tmp_path: Path) -> None:
    def digest(**settings: object) -> str:
        chosen = RestoreSettings(**settings)  # type: ignore[arg-type]
        return recipe(RestoreJob(source=tmp_path, target=tmp_path / "a.mkv", settings=chosen)).digest()

    digests = [digest(), digest(height=1080), digest(height=720), digest(scale=2), digest(width=1080)]
    digests.append(digest(model="fmanetpp_x2_fast", height=720))
    assert max(Counter(digests).values()) == 1
    assert digest(model="fmanetpp_x4_fast") == digest()


def test_the_enlargement_is_that_of_the_side_that_grows_most() -> None:
    assert enlargement(RestoreSettings(width=640, height=960), 640, 480) == 2
    assert enlargement(RestoreSettings(scale=1.5), 640, 480) == Fraction(3, 2)
    assert enlargement(RestoreSettings(), 640, 480) is None
