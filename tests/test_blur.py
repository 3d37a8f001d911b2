"""Blur: its networks, its training targets, its map, and the exposure estimated from it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor

import vsfmanet
from tests.fakes import MixingRestorer, drawn_clip, noise_clip, restore_with, same_pixels
from training.data.extent import extent_of_flow, path_extent
from training.data.motion import Path as MotionPath
from training.data.render import render_flow
from training.data.scene import Layer, Scene
from vsfmanet.clips import blur_map, estimate, motion
from vsfmanet.errors import WeightsError
from vsfmanet.exposures.estimate import HELD, INPUTS, Estimate, Step, estimate_exposure, profile, settle
from vsfmanet.networks.exposure_estimator import ExposureEstimator, confidence
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig, MMPNet, fold
from vsfmanet.weights import load_analyser, load_estimator, parameter_count

# Networks


def test_the_parameters_are_those_of_the_published_network_and_of_one_head_more() -> None:
    assert parameter_count(MMPNet()) == 851_417
    assert parameter_count(BlurAnalyser(BlurConfig())) == 851_434


@pytest.fixture(scope="module")
def analyser() -> BlurAnalyser:
    """A small one with random weights, whose normalisations have seen data."""
    torch.manual_seed(0)
    network = BlurAnalyser(BlurConfig(width=4)).train()
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))
    return network.eval().requires_grad_(False)


def test_folded_normalisations_change_nothing(analyser: BlurAnalyser) -> None:
    frames = torch.rand(2, 3, 37, 50)
    for before, after in zip(analyser(frames), fold(analyser)(frames), strict=True):
        torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (33, 47)])
def test_any_size_comes_back_as_it_was(analyser: BlurAnalyser, height: int, width: int) -> None:
    frames = torch.rand(1, 3, height, width)
    assert analyser.extent(frames).shape == (1, 1, height, width)
    assert MMPNet(4).eval()(frames).shape == (1, 1, height, width)


def test_an_extent_survives_the_scale_of_the_network(analyser: BlurAnalyser) -> None:
    extent = torch.tensor([0.0, 0.5, 7.0, 64.0, 99.0])
    scaled = analyser.scaled(extent)
    assert scaled[0] == 0
    assert scaled[3] == scaled[4] == 1
    back = torch.expm1(scaled * math.log1p(analyser.config.max_extent))
    torch.testing.assert_close(back, extent.clamp(max=64))


def test_tiles_agree_with_the_whole_frame_at_a_halo_of_144_pixels(analyser: BlurAnalyser) -> None:
    frames = torch.rand(1, 3, 32, 352)
    whole = analyser.extent(frames)[..., 160:192]
    tile = analyser.extent(frames[..., 16:336])[..., 144:176]
    torch.testing.assert_close(tile, whole, rtol=0, atol=1e-5 * BlurConfig().max_extent)


# Targets


def steady(velocity: tuple[float, float]) -> Scene:
    """A picture that moves steadily, HR pixels per frame, without turning."""
    path = MotionPath(
        drift=np.array([*velocity, 0, 0, 0, 0]),
        frequency=np.ones(1),
        amplitude=np.zeros((6, 1)),
        phase=np.zeros((6, 1)),
        origin_time=1.0,
    )
    background = Layer(texture=torch.rand(3, 64, 64), path=path, centre=(15.5, 15.5), anchor=(31.5, 31.5))
    return Scene(layers=(background,), height=32, width=32, frames=3)


@pytest.mark.parametrize("exposure", [0.2, 0.6, 1.0])
def test_the_extent_is_speed_times_open_time_by_the_path_and_by_the_flow(exposure: float) -> None:
    scene = steady((6, -8))  # 10 HR pixels per frame
    np.testing.assert_allclose(path_extent(scene, 1, exposure, scale=4), exposure * 10 / 4, rtol=1e-5)
    flow, _ = render_flow(scene, 4)
    np.testing.assert_allclose(extent_of_flow(flow[1], exposure), exposure * 10 / 4, rtol=1e-3)


def test_the_extent_does_not_depend_on_the_number_of_sub_frames() -> None:
    scene = steady((6, -8))
    shaking = MotionPath(
        drift=scene.layers[0].path.drift,
        frequency=np.array([0.3]),
        amplitude=np.full((6, 1), 2.0) * np.array([[1], [1], [0.01], [0.01], [0], [0]]),
        phase=np.zeros((6, 1)),
        origin_time=1.0,
    )
    layer = scene.layers[0]
    curved = Layer(texture=layer.texture, path=shaking, centre=layer.centre, anchor=layer.anchor)
    curved_scene = Scene(layers=(curved,), height=32, width=32, frames=3)
    coarse, fine = (path_extent(curved_scene, 1, 0.8, scale=1, steps=steps) for steps in (20, 2000))
    np.testing.assert_allclose(coarse, fine, rtol=2e-3)
    assert np.ptp(fine) > 0.5  # it turns, so the rim moves more than the middle


# Estimating the exposure


def picture(height: int = 48, width: int = 64) -> Tensor:
    """Texture everywhere."""
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def uniform(x: float, y: float, height: int = 48, width: int = 64) -> Tensor:
    """A flow that is the same everywhere."""
    return torch.tensor([x, y], dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, height, width).clone()


def smeared(exposure: float, speed: float) -> Tensor:
    """Noise that moved steadily to the right, open for `exposure` of the time; made along x by an exact box."""
    fine = 20  # samples a pixel
    rows = torch.rand(48, 2, 64 * fine // (fine // 2), generator=torch.Generator().manual_seed(1)).mean(dim=1)
    signal = F.interpolate(rows[:, None], size=64 * fine, mode="linear")
    width = max(1, round(exposure * speed * fine)) | 1
    blurred = F.avg_pool1d(signal, width, stride=1, padding=width // 2, count_include_pad=False)
    return F.avg_pool1d(blurred, fine).permute(1, 0, 2)[None].expand(1, 3, 48, 64)


def steadily(speed: float) -> tuple[list[Step], list[Step]]:
    """Steps after and before a frame of something that moves to the right."""
    right, left = uniform(speed, 0), uniform(-speed, 0)
    return [Step(there=right, back=left)] * 2, [Step(there=left, back=right)] * 2


@pytest.mark.parametrize("exposure", [0.3, 0.5, 0.8])
def test_slopes_along_the_motion_are_opposed_at_the_distance_of_the_exposure(exposure: float) -> None:
    described = profile(smeared(exposure, 8), *steadily(8))
    assert described is not None
    assert described.shape == (INPUTS,)
    along = described[:15]  # at 0.1, 0.2 ... 1.5 steps
    assert 0.1 * (1 + int(along.argmin())) == pytest.approx(exposure)
    assert along.min() < -0.3
    assert described[-1] == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("after", "before"),
    [
        steadily(1),  # no motion
        (steadily(6)[0], []),  # no neighbour on one side
        ([Step(there=uniform(6, 0), back=uniform(6, 0))], steadily(6)[1]),  # there and back contradict each other
        (steadily(6)[0], steadily(20)[1]),  # the motion changes
        steadily(90),  # out of the picture
    ],
)
def test_what_cannot_be_followed_has_no_confidence(after: list[Step], before: list[Step]) -> None:
    assert profile(picture(), after, before) is None
    assert estimate_exposure(picture(), after, before, ExposureEstimator(INPUTS)).confidence == 0


@pytest.mark.parametrize(("after", "before", "exact"), [(2, 2, True), (2, 1, False), (1, 1, False)])
def test_the_speed_is_that_of_the_frames_own_instant(after: int, before: int, exact: bool) -> None:
    def place(t: float) -> float:
        return 6 * t + 0.5 * t**2 - 0.4 * t**3  # 6 pixels per frame at 0

    def steps(sign: int, count: int) -> list[Step]:
        ends = [place(sign * k) for k in range(count + 1)]
        ways = [later - earlier for earlier, later in pairwise(ends)]
        return [Step(there=uniform(way, 0), back=uniform(-way, 0)) for way in ways]

    described = profile(picture(), steps(1, after), steps(-1, before))
    assert described is not None
    speed = math.exp(described[-1])
    assert speed == pytest.approx(6, rel=1e-4 if exact else 0.1)
    assert exact or speed != pytest.approx(6, rel=1e-4)


def test_confidence_is_the_chance_of_an_error_below_a_tenth() -> None:
    assert confidence(torch.tensor(0.1).log()) == pytest.approx(1 - math.exp(-1))
    assert confidence(torch.tensor(0.01).log()) > 0.99 > 0.2 > confidence(torch.tensor(0.5).log())


def sure(value: float) -> Estimate:
    return Estimate(value=value, confidence=0.9)


BLIND = Estimate(value=1.0, confidence=0.1)


def settled(estimates: list[Estimate | None], own: int) -> tuple[float, float] | None:
    found = settle(estimates, own)
    return None if found is None else (found.value, found.confidence)


def test_an_outlier_is_outvoted_by_its_neighbours() -> None:
    assert settled([sure(0.4), sure(0.4), sure(0.9), sure(0.4), sure(0.4)], 2) == (0.4, 0.9)


def test_a_frame_that_shows_no_exposure_gets_that_of_the_nearest_with_its_own_confidence() -> None:
    assert settled([sure(0.4), *[BLIND] * HELD], HELD) == (0.4, 0.1)
    assert settled([sure(0.4), *[BLIND] * (HELD + 1)], HELD + 1) is None
    assert settled([sure(0.2), BLIND, BLIND, sure(0.6)], 2) == (0.6, 0.1)
    assert settled([sure(0.2), BLIND, sure(0.6)], 1) == (0.2, 0.1)  # of two, the earlier


def test_nothing_is_taken_from_another_scene() -> None:
    assert settled([None, None, BLIND, None], 2) is None


# Clips


class Seeing:
    """Stand-in for the analyser: the extent is the picture's blue plane, in 64 px."""

    config = BlurConfig()

    def to(self, *_: object, **__: object) -> Seeing:
        return self

    def extent(self, frames: Tensor) -> Tensor:
        return (frames[:, 2:, :1, :1] * 64).expand(-1, 1, *frames.shape[-2:])


def estimate_by_blue(frame: Tensor, after: list[Step], before: list[Step], network: object) -> Estimate:
    """Stand-in for the estimate: the blur that the picture's blue plane holds, over the speed."""
    described = profile(frame, after, before)
    if described is None:
        return BLIND
    return Estimate(value=float(frame[0, 2, 0, 0]) * 64 / math.exp(described[-1]), confidence=0.9)


@pytest.fixture
def seeing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blur_map, "load_analyser", Seeing)
    monkeypatch.setattr(estimate, "load_estimator", object)
    monkeypatch.setattr(estimate, "estimate_exposure", estimate_by_blue)


WIDTH, HEIGHT, SPEED = 96, 64, 4
TEXTURE = np.clip(
    0.5
    + sum(
        np.outer(np.cos(0.11 * k * np.arange(HEIGHT) + k * k), np.cos(0.09 * k * np.arange(600) + 3 * k)) / 8
        for k in range(1, 7)
    ),
    0,
    1,
)


def moving_clip(exposures: list[float], *, cuts: tuple[int, ...] = (), still: tuple[int, ...] = ()) -> vs.VideoNode:
    """A picture that moves by 4 pixels per frame; its blue plane holds its blur in 64 px."""
    steps = [0 if n in still else SPEED for n in range(len(exposures))]
    places = np.cumsum(steps)

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        if plane == 2:
            return np.full((HEIGHT, WIDTH), exposures[n] * SPEED / 64)
        return TEXTURE[:, places[n] : places[n] + WIDTH]

    def props(n: int) -> dict[str, object]:
        return {"_SceneChangePrev": int(n in cuts), "_SceneChangeNext": int(n + 1 in cuts)}

    return drawn_clip(draw, len(exposures), width=WIDTH, height=HEIGHT, props=props)


def exposure_of(clip: vs.VideoNode, n: int) -> tuple[object, ...]:
    props = clip.get_frame(n).props
    return tuple(props.get(name) for name in ("FMANetExposure", "FMANetExposureSource"))


@pytest.mark.usefixtures("seeing")
def test_exposures_are_estimated_from_the_clip_and_change_at_a_cut() -> None:
    clip = moving_clip([0.5] * 6 + [0.25] * 6, cuts=(6,))
    tagged = vsfmanet.exposure(clip, exposure="estimate")
    for n in (11, 5, 6, 0):
        value, source = exposure_of(tagged, n)
        assert source == "estimate"
        assert value == pytest.approx(0.5 if n < 6 else 0.25, abs=0.05), n


@pytest.mark.usefixtures("seeing")
def test_wide_frames_are_reduced_before_their_motion_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "MAX_WIDTH", WIDTH * 2 // 3)
    tagged = vsfmanet.exposure(moving_clip([0.4] * 3), exposure="estimate")
    # The stand-in sees the blur of the whole frame, so the motion by itself must be two thirds.
    assert tagged.get_frame(1).props["FMANetExposure"] == pytest.approx(0.6, abs=0.05)


@pytest.mark.usefixtures("seeing")
def test_what_stands_still_keeps_the_exposure_of_what_moved_but_not_across_a_cut() -> None:
    clip = moving_clip([0.5] * 5 + [0.1] * 9, still=tuple(range(5, 14)), cuts=(10,))
    tagged = vsfmanet.exposure(clip, exposure="estimate")
    frame = tagged.get_frame(8)
    assert frame.props["FMANetExposure"] == pytest.approx(0.5, abs=0.05)
    assert frame.props["FMANetExposureConfidence"] == BLIND.confidence
    assert exposure_of(tagged, 12) == (None, None)


@pytest.mark.usefixtures("seeing")
def test_other_sources_come_before_the_estimate_and_the_network_after_it() -> None:
    clip = moving_clip([0.5] * 8, still=(5, 6, 7), cuts=(5,))
    given = clip.std.ModifyFrame(clip, lambda n, f: _with(f, FMANetExposure=0.3) if n == 1 else f)
    restored = restore_with(given, MixingRestorer(), exposure="estimate")
    assert [exposure_of(restored, n)[1] for n in range(8)] == ["estimate", "prop", *["estimate"] * 3, *["network"] * 3]
    assert exposure_of(restore_with(clip, MixingRestorer()), 2)[1] == "network"  # not asked for
    added = {name for n in range(8) for name in set(restored.get_frame(n).props) - set(given.get_frame(n).props)}
    assert {name for name in added if name.startswith("FMANet")} == {
        "FMANetExposure",
        "FMANetExposureSource",
        "FMANetExposureConfidence",
        "FMANetModel",
        "FMANetWindowStart",
        "FMANetWindowEnd",
    }


def _with(frame: vs.VideoFrame, **props: float) -> vs.VideoFrame:
    copy = frame.copy()
    copy.props.update(props)
    return copy


@pytest.mark.usefixtures("seeing")
def test_restored_frames_are_the_same_in_any_order_with_an_estimate() -> None:
    clip = moving_clip([0.2, 0.4, 0.6, 0.8] * 4, cuts=(9,), still=(3, 12))

    def restored(order: list[int], segment: int) -> list[vs.VideoFrame]:
        node = restore_with(clip, MixingRestorer(), exposure="estimate", segment=segment)
        found = {n: node.get_frame(n) for n in order}
        return [found[n] for n in range(16)]

    reference = restored(list(range(16)), 4)
    shuffled = np.random.default_rng(0).permutation(16).tolist()
    for frames in (restored(shuffled, 4), restored(list(range(15, -1, -1)), 5)):
        for a, b in zip(reference, frames, strict=True):
            assert same_pixels(a, b)
            assert a.props["FMANetExposure"] == b.props["FMANetExposure"]
            assert a.props["FMANetExposureConfidence"] == b.props["FMANetExposureConfidence"]


@pytest.mark.usefixtures("seeing")
def test_the_map_is_in_pixels_and_its_properties_sum_it_up() -> None:
    clip = moving_clip([0.2, 1.0]).resize.Bicubic(format=vs.RGB24)
    measured = vsfmanet.blur_map(clip)
    assert measured.format.id == vs.GRAYS
    assert (measured.width, measured.height, measured.num_frames) == (WIDTH, HEIGHT, 2)
    frame = measured.get_frame(1)
    np.testing.assert_allclose(np.asarray(frame[0]), 4.0, atol=0.2)
    assert frame.props["FMANetBlurMean"] == pytest.approx(4.0, abs=0.2)
    assert frame.props["FMANetBlurP95"] == pytest.approx(4.0, abs=0.2)
    assert frame.props["FMANetBlurRatio"] == 1
    assert measured.get_frame(0).props["FMANetBlurRatio"] == 0
    assert frame.props["_SceneChangePrev"] == 0
    assert "_Matrix" not in frame.props
    measured.resize.Point(format=vs.GRAY16).get_frame(0)  # nothing in its properties stands in the way


@pytest.mark.usefixtures("seeing")
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (lambda: "film.mkv", "blur_map: clip must be a video clip, got str"),
        (lambda: noise_clip(1, width=4), "blur_map: a clip of at least 8x8 pixels is needed, got 4x12"),
    ],
)
def test_the_map_refuses_what_restore_refuses(clip: object, message: str) -> None:
    with pytest.raises(vs.Error, match=message):
        vsfmanet.blur_map(clip())  # type: ignore[operator]


def test_samples_that_are_not_finite_are_named_with_their_frame(seeing: None) -> None:
    clip = drawn_clip(lambda n, plane: np.full((12, 16), math.nan if n == 1 else 0.5), 2)
    with pytest.raises(vs.Error, match="finite samples are needed, got NaN or infinity in frame 1"):
        vsfmanet.blur_map(clip).get_frame(1)


def test_an_installation_without_the_manifest_is_an_error_that_names_it(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsfmanet.manifest.models_folder", lambda: tmp_path)
    for load in (load_analyser, load_estimator):
        with pytest.raises(WeightsError, match="the manifest of models must be readable"):
            load()
    with pytest.raises(vs.Error, match=r"exposure: .*the manifest of models must be readable"):
        vsfmanet.exposure(noise_clip(2), exposure="estimate")
    with pytest.raises(vs.Error, match=r"blur_map: .*the manifest of models must be readable"):
        vsfmanet.blur_map(noise_clip(2))
