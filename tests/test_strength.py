"""Strength and grain: exact at both ends, the same in any order, and as much noise as was removed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.fakes import EnlargingRestorer, MixingRestorer, drawn_clip, noise_clip, planes, same_pixels
from vsfmanet.clips.colour import check_clip, tag_colour
from vsfmanet.clips.grain import noise_map
from vsfmanet.engines.transfers import Transfers
from vsfmanet.filter import restore_with
from vsfmanet.restorer import FrameRestorer
from vsfmanet.settings import RestoreSettings

LENGTH = 13
FORMATS = (vs.YUV420P8, vs.YUV422P10, vs.YUV444P16, vs.RGB24, vs.GRAY8, vs.RGBS, vs.RGBH, vs.YUV444PS)


def clip(format: vs.PresetVideoFormat = vs.YUV420P8) -> vs.VideoNode:
    matrix = {} if format in (vs.RGB24, vs.RGBS, vs.RGBH) else {"matrix": 1}
    return noise_clip(LENGTH, cuts={5}).resize.Bicubic(format=format, **matrix)


def restored(source: vs.VideoNode, restorer: FrameRestorer | None = None, **settings: Any) -> vs.VideoNode:
    return restore_with(check_clip(source), [restorer or MixingRestorer()], RestoreSettings(**settings))


def resized(source: vs.VideoNode, width: int, height: int) -> vs.VideoNode:
    return source.resize.Spline36(width, height, dither_type="ordered")


def props_of(frame: vs.VideoFrame) -> dict[str, object]:
    return {name: value for name, value in frame.props.items() if name != "FMANetStrength"}


@pytest.mark.parametrize("format", FORMATS)
def test_at_full_strength_the_pixels_are_those_of_the_network(format: vs.PresetVideoFormat) -> None:
    source = clip(format)
    expected = restored(source)
    for strength in (1.0, lambda n, props: 1, lambda n, props: None):
        made = restored(source, strength=strength)
        for found, wanted in zip(made.frames(), expected.frames(), strict=True):
            assert same_pixels(found, wanted)
            assert props_of(found) == props_of(wanted)


@pytest.mark.parametrize("format", FORMATS)
def test_at_no_strength_the_pixels_are_those_of_a_resize(format: vs.PresetVideoFormat) -> None:
    source = clip(format)
    for asked, size in (({}, (64, 48)), ({"height": 30}, (40, 30))):
        restorer = MixingRestorer()
        expected = resized(tag_colour(source), *size)
        for strength in (0, lambda n, props: 0.0):
            made = restored(source, restorer, strength=strength, **asked)
            assert made.format.id == int(format)
            for found, wanted in zip(made.frames(), expected.frames(), strict=True):
                assert same_pixels(found, wanted)
                assert props_of(found) == props_of(wanted)
        assert restorer.calls == []


@pytest.mark.parametrize("format", FORMATS)
def test_between_them_the_code_values_are_blended(format: vs.PresetVideoFormat) -> None:
    source = clip(format)
    none, all_ = restored(source, strength=0), restored(source)
    unit = 1 if none.format.sample_type == vs.INTEGER else 0.002
    for found, zero, one in zip(restored(source, strength=0.3).frames(), none.frames(), all_.frames(), strict=True):
        for mixed, plain, full in zip(planes(found), planes(zero), planes(one), strict=True):
            assert np.abs(mixed - (0.7 * plain + 0.3 * full)).max() <= unit
        assert found.props["FMANetStrength"] == pytest.approx(0.3)
        assert found.props["FMANetModel"] == "fake"


def test_another_family_of_colours_is_blended_in_the_matrix_of_the_restored_frames() -> None:
    """A frame that the network leaves alone is the same at any strength, but for the kernels of two enlargements."""
    grey = vs.core.std.BlankClip(width=64, height=160, format=vs.RGB24, length=2, color=[200, 40, 90])
    for asked in ({}, {"height": 300}):
        frames = [
            restored(grey, EnlargingRestorer(), output_format=vs.YUV420P8, strength=s, **asked).get_frame(1)
            for s in (0, 0.5, 1)
        ]
        assert {frame.props["_Matrix"] for frame in frames} == {1}
        for frame in frames:
            assert all(np.abs(a - b).max() <= 1 for a, b in zip(planes(frame), planes(frames[2]), strict=True))


def by_number(n: int, props: Any) -> float | None:
    return (0.0, 0.25, None, 1.0)[n % 4]


def test_a_function_or_a_property_decides_for_each_frame_in_any_order() -> None:
    source = clip()
    alone = {s: list(restored(source, strength=s).frames()) for s in (0.0, 0.25, 1.0)}

    def write(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        value = by_number(n, {})
        frame.props["Much"] = 1.0 if value is None else value
        return frame

    marked = source.std.ModifyFrame(source, write)
    order = list(range(LENGTH))
    random.Random(2).shuffle(order)
    for made in (restored(source, strength=by_number), restored(marked, strength="Much")):
        for n in order:
            value = by_number(n, {})
            wanted = alone[1.0 if value is None else value][n]
            found = made.get_frame(n)
            assert same_pixels(found, wanted)
            assert found.props["FMANetStrength"] == (1.0 if value is None else value)


def test_a_function_sees_the_properties_of_the_source() -> None:
    made = restored(clip().std.SetFrameProps(Mine=0.5), strength=lambda n, props: props["Mine"])
    assert made.get_frame(3).props["FMANetStrength"] == 0.5


@pytest.mark.parametrize(
    ("strength", "message"),
    [
        (
            lambda n, props: 2,
            "must be a number from 0 to 1 for every frame, got 2 from the function for frame 4",
        ),
        ("Mine", "got None from the property Mine for frame 4; set one with std.SetFrameProps"),
    ],
)
def test_what_is_no_strength_is_refused_at_its_frame(strength: str | Callable[..., float], message: str) -> None:
    with pytest.raises(vs.Error, match=message):
        restored(clip(), strength=strength).get_frame(4)


def test_strength_works_on_a_device_too() -> None:
    import torch

    source = clip()
    restorer = MixingRestorer(colour_transfers=Transfers(torch.device("cpu")))
    found, wanted = (restored(source, each, strength=0.4).get_frame(7) for each in (restorer, MixingRestorer()))
    assert all(np.abs(a - b).max() <= 1 for a, b in zip(planes(found), planes(wanted), strict=True))


# Grain

SIDE = 192


def ramp(width: int = SIDE, height: int = SIDE) -> NDArray[np.float64]:
    """Luma from 0.1 to 0.9."""
    return np.broadcast_to(np.linspace(0.1, 0.9, width), (height, width)).copy()


def noisy(deviation: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, plane: int) -> NDArray[np.float64]:
    luma = ramp()
    rng = np.random.default_rng((5, n))
    value = luma + deviation(luma) * rng.standard_normal(luma.shape)
    return np.clip(np.round(16 + 219 * value), 0, 255) if plane == 0 else np.full((SIDE // 2, SIDE // 2), 128.0)


def grainy(
    deviation: Callable[[NDArray[np.float64]], NDArray[np.float64]], amount: float, *, scale: int = 1, length: int = 4
) -> list[vs.VideoFrame]:
    """Frames of which a restorer removed all noise and `with_grain` gave some back."""
    from vsfmanet.clips.grain import with_grain

    size = {"width": SIDE, "height": SIDE, "format": vs.YUV420P8, "props": lambda n: {"_Matrix": 1, "_Range": 0}}
    source = drawn_clip(lambda n, p: noisy(deviation, n, p), length, **size)
    clean = drawn_clip(lambda n, p: noisy(np.zeros_like, n, p), length, **size)
    if scale > 1:
        clean = clean.resize.Spline36(scale * SIDE, scale * SIDE, format=vs.YUV420P16)
        clean = clean.resize.Point(format=vs.YUV420P8, dither_type="ordered")
    return list(with_grain(clean, source, amount).frames())


def by_luma(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise of 1.5 % in the dark and 4.5 % in the light."""
    return 0.015 + 0.03 * luma


@pytest.mark.parametrize("amount", [0.5, 1.0])
def test_grain_is_as_strong_as_what_was_removed_at_each_brightness(amount: float) -> None:
    clean = np.round(16 + 219 * ramp())
    noise = np.stack([planes(frame)[0] for frame in grainy(by_luma, amount)]) - clean
    for columns in (slice(10, 40), slice(80, 110), slice(150, 180)):
        wanted = amount * 219 * by_luma(ramp()[:, columns]).mean()
        assert noise[..., columns].std() == pytest.approx(wanted, rel=0.12)
        assert abs(noise[..., columns].mean()) < 0.15


def test_the_grains_of_an_enlargement_are_those_of_the_enlarged_source() -> None:
    [frame] = grainy(by_luma, 1.0, scale=2, length=1)
    clean = np.round(16 + 219 * np.broadcast_to(np.linspace(0.1, 0.9, 2 * SIDE), (2 * SIDE, 2 * SIDE)))
    source = vs.core.std.BlankClip(width=SIDE, height=SIDE, format=vs.GRAYS, length=1)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        luma = ramp()
        np.copyto(np.asarray(out[0]), by_luma(luma) * np.random.default_rng(9).standard_normal(luma.shape))
        return out

    enlarged = source.std.ModifyFrame(source, draw).resize.Spline36(2 * SIDE, 2 * SIDE).get_frame(0)
    added, expected = planes(frame)[0] - clean, 219 * planes(enlarged)[0]
    inside = (slice(20, -20), slice(20, -20))
    assert added[inside].std() == pytest.approx(expected[inside].std(), rel=0.1)
    steps = [np.diff(noise[inside], axis=1).std() / noise[inside].std() for noise in (added, expected)]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)


def test_no_noise_is_added_where_none_was_removed() -> None:
    clean = [planes(frame)[0] for frame in grainy(np.zeros_like, 1.0)]
    assert all(np.array_equal(luma, np.round(16 + 219 * ramp())) for luma in clean)


def test_detail_that_was_restored_is_not_taken_for_noise() -> None:
    after = ramp().astype(np.float32)
    after[:, ::24] += 0.3  # sharp lines
    before = after.copy()
    before[:, 1::24] += 0.1  # that were smeared
    before[:, ::24] -= 0.1
    rng = np.random.default_rng(3)
    found = noise_map(before + rng.normal(0, 0.02, before.shape).astype(np.float32), after)
    assert np.median(found) == pytest.approx(0.02, rel=0.25)


def test_chroma_has_no_grain_and_frames_keep_their_properties() -> None:
    for frame in grainy(by_luma, 1.0, length=2):
        assert all((plane == 128).all() for plane in planes(frame)[1:])
        assert frame.props["_Matrix"] == 1
        assert frame.props["FMANetGrain"] == pytest.approx(0.03, rel=0.15)


@pytest.mark.parametrize("format", FORMATS)
def test_grain_depends_on_the_number_of_the_frame_alone(format: vs.PresetVideoFormat) -> None:
    source = clip(format).resize.Spline36(64, 48)
    expected = list(restored(source, grain=1, strength=0.5, segment=4).frames())
    shuffled = restored(source, grain=1, strength=0.5, segment=3)
    order = list(range(LENGTH))
    random.Random(3).shuffle(order)
    assert all(same_pixels(shuffled.get_frame(n), expected[n]) for n in order)
    without = list(restored(source, strength=0.5).frames())
    assert not any(same_pixels(*pair) for pair in zip(expected, without, strict=True))
    assert not np.array_equal(
        planes(expected[2])[0] - planes(without[2])[0], planes(expected[3])[0] - planes(without[3])[0]
    )


def test_without_grain_and_strength_nothing_is_built() -> None:
    source = clip()
    for found, wanted in zip(restored(source, grain=0, strength=1).frames(), restored(source).frames(), strict=True):
        assert same_pixels(found, wanted)
        assert "FMANetGrain" not in found.props
        assert "FMANetStrength" not in found.props
