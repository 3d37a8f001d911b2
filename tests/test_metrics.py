"""PSNR, SSIM, tOF and OPW against cases worked out by hand."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from training.metrics.frames import BORDER, estimate_flow, opw_by_pair, psnr, ssim, tof_by_pair
from training.metrics.niqe import fit_gaussian, niqe, statistics_of
from vsfmanet.errors import ShapeError, SourceError


def noise(*shape: int) -> NDArray[np.uint8]:
    """Bytes that leave room for an offset."""
    return np.random.default_rng(0).integers(20, 200, shape).astype(np.uint8)


def smooth_picture(height: int, width: int, shift: float) -> NDArray[np.uint8]:
    """A textured (3, H, W) picture, moved right by `shift` pixels."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x = x - shift
    waves = np.sin(x / 3) + np.sin(y / 4 + 1) + np.sin((x + y) / 5) + np.cos((x - 2 * y) / 7)
    return np.repeat(np.round(127 + 30 * waves)[None], 3, axis=0).astype(np.uint8)


@pytest.mark.parametrize("offset", [1, 5, 20])
def test_psnr_of_a_constant_offset_is_known(offset: int) -> None:
    truth = noise(3, 24, 30)
    output = truth + np.uint8(offset)
    assert psnr(output, truth) == pytest.approx(20 * np.log10(255 / offset))


def test_psnr_of_one_wrong_channel_counts_a_third() -> None:
    truth = noise(3, 24, 30)
    output = truth.copy()
    output[1] += 6
    assert psnr(output, truth) == pytest.approx(10 * np.log10(255**2 / 12))


def test_psnr_and_ssim_ignore_the_border() -> None:
    truth = noise(3, 32, 40)
    output = np.full_like(truth, 255)
    output[:, BORDER:-BORDER, BORDER:-BORDER] = truth[:, BORDER:-BORDER, BORDER:-BORDER]
    assert psnr(output, truth) == float("inf")
    assert ssim(output, truth) == pytest.approx(1)


def test_ssim_of_equal_frames_is_one() -> None:
    truth = noise(3, 32, 40)
    assert ssim(truth, truth) == pytest.approx(1)


def test_ssim_of_constant_frames_is_their_luminance_term() -> None:
    output = np.full((3, 24, 24), 100, dtype=np.uint8)
    truth = np.full((3, 24, 24), 120, dtype=np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(output, truth) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-6)


def test_ssim_of_one_window_is_that_of_its_weighted_moments() -> None:
    output, truth = noise(2, 3, 19, 19)
    axis = np.arange(11) - 5
    weights = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for a, b in zip(output[:, 4:-4, 4:-4].astype(float), truth[:, 4:-4, 4:-4].astype(float), strict=True):
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        values.append(luminance * (2 * covariance + c2) / (variance_a + variance_b + c2))
    assert ssim(output, truth) == pytest.approx(np.mean(values), abs=1e-9)


def test_tof_of_equal_clips_is_zero() -> None:
    clip = np.stack([smooth_picture(64, 80, shift) for shift in (0, 1, 3)])
    assert tof_by_pair(clip, clip, estimate_flow(clip)).mean() == 0


@pytest.mark.parametrize("step", [1, 2])
def test_tof_of_a_moving_clip_against_a_still_one_is_the_motion(step: int) -> None:
    still = np.stack([smooth_picture(96, 96, 0)] * 3)
    moving = np.stack([smooth_picture(96, 96, shift) for shift in (0, step, 2 * step)])
    assert tof_by_pair(moving, still, estimate_flow(still)).mean() == pytest.approx(step, rel=0.1)


def test_tof_of_a_pair_does_not_feel_what_happens_elsewhere() -> None:
    truth = np.stack([smooth_picture(96, 96, 0)] * 4)
    output = np.stack([smooth_picture(96, 96, shift) for shift in (0, 0, 0, 2)])
    by_pair = tof_by_pair(output, truth, estimate_flow(truth))
    assert by_pair[:2] == pytest.approx([0, 0], abs=1e-6)
    assert by_pair[2] == pytest.approx(2, rel=0.1)


def still(frames: int, *shape: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """No motion, all visible: flow (T - 1, 2, H, W) and visibility (T - 1, H, W)."""
    return np.zeros((frames - 1, 2, *shape), np.float32), np.ones((frames - 1, *shape), np.float32)


def test_opw_of_a_still_clip_is_its_flicker() -> None:
    truth = np.repeat(noise(1, 3, 24, 30), 4, axis=0)
    output = truth.copy()
    output[2] += 5
    flow, visible = still(4, 24, 30)
    assert opw_by_pair(truth, truth, flow, visible) == pytest.approx([0, 0, 0], abs=1e-4)
    assert opw_by_pair(output, truth, flow, visible) == pytest.approx([0, 500 / 255, 500 / 255], abs=1e-4)


def test_opw_follows_the_motion_and_leaves_out_what_it_does_not_explain() -> None:
    wide = noise(3, 24, 40)
    truth = np.stack([wide[:, :, :30], wide[:, :, 3:33]])  # the picture moves left by 3
    flow, visible = still(2, 24, 30)
    flow[:, 0] = 3  # what is at x was at x + 3
    assert opw_by_pair(truth, truth, flow, visible) == pytest.approx([0], abs=1e-4)
    output = truth.copy()
    output[1, :, :, 27:] = 255  # came into the frame: not judged
    assert opw_by_pair(output, truth, flow, visible) == pytest.approx([0], abs=1e-4)
    output[1, :, :12] = 0
    visible[:, :12] = 0  # hidden: not judged
    assert opw_by_pair(output, truth, flow, visible) == pytest.approx([0], abs=1e-4)
    covered = truth.copy()
    covered[0, :, :, 10:20] ^= 128  # truth disagrees with the motion there, so its weight falls
    assert opw_by_pair(covered, covered, flow, visible)[0] < 0.5 * 100 * 128 / 255 * 10 / 27


def test_opw_of_one_pixel_is_the_weighted_mean_of_the_definition() -> None:
    truth = np.full((2, 3, 1, 2), 100, dtype=np.uint8)
    truth[1, 0, 0, 1] = 120
    output = np.full_like(truth, 50)
    output[1, :, 0, 0] = 60
    output[1, :, 0, 1] = 90
    flow, visible = still(2, 1, 2)
    weight = np.exp(-50 * (20 / 255) ** 2)
    expected = 100 * (10 + weight * 40) / 255 / (1 + weight)
    assert opw_by_pair(output, truth, flow, visible) == pytest.approx([expected], rel=1e-4)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="psnr"):
        psnr(noise(3, 24, 24), noise(3, 24, 28))
    with pytest.raises(ShapeError, match="ssim"):
        ssim(noise(3, 18, 24), noise(3, 18, 24))
    with pytest.raises(ShapeError, match="tof"):
        tof_by_pair(noise(1, 3, 64, 64), noise(1, 3, 64, 64), np.zeros((0, 64, 64, 2), np.float32))
    with pytest.raises(ShapeError, match="tof"):
        tof_by_pair(noise(2, 3, 40, 64), noise(2, 3, 40, 64), np.zeros((1, 40, 64, 2), np.float32))
    with pytest.raises(ShapeError, match="opw"):
        opw_by_pair(noise(2, 3, 24, 24), noise(2, 3, 24, 24), *still(3, 24, 24))


@pytest.mark.parametrize(("kind", "shape"), [("normal", 2.0), ("laplace", 1.0)])
def test_a_fit_finds_the_shape_and_the_scales_of_a_distribution(kind: str, shape: float) -> None:
    generator = np.random.default_rng(0)
    drawn = getattr(generator, kind)(0, 3, 200_000)
    scale = 3 * (np.sqrt(2) if kind == "normal" else 1)
    leaning = np.abs(drawn) * np.where(generator.random(len(drawn)) < 1 / 3, -1, 2)  # the densities meet at 0
    for values, sides in ((drawn, (1, 1)), (leaning, (1, 2))):
        found, left, right = fit_gaussian(values)
        assert found == pytest.approx(shape, rel=0.05)
        assert (left, right) == pytest.approx([side * scale for side in sides], rel=0.05)


def test_niqe_is_least_for_what_is_like_the_good_photographs_and_rises_with_noise_and_blur() -> None:
    photos = [smooth_picture(480, 480, shift) for shift in (0, 40, 80)]
    good = statistics_of(photos)
    frame = smooth_picture(480, 480, 20)
    rough = (frame + np.random.default_rng(0).normal(0, 20, frame.shape)).clip(0, 255).astype(np.uint8)
    soft = np.stack([cv2.GaussianBlur(plane, (0, 0), 3) for plane in frame]).astype(np.uint8)
    best, noisy, blurred = (niqe(one, good) for one in (frame, rough, soft))
    assert best < min(noisy, blurred) / 3
    with pytest.raises(SourceError, match="37 sharp blocks of good photographs are needed, got"):
        statistics_of([smooth_picture(96, 192, 0)])
    for size in ((95, 200), (96, 96)):
        with pytest.raises(ShapeError, match="96 x 96"):
            niqe(smooth_picture(*size, 0), good)
