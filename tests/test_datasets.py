"""Footage and photographs made ready: tiny films whose motion and exposure are known."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import run
from training import pack_photos, prepare_bsd, prepare_gopro, prepare_reds
from training.data import footage
from training.data.benchmark import load_benchmark, load_clip, save_clip
from training.data.footage import (
    Recipe,
    estimate_motion,
    exposed_frames,
    interpolate_blend,
    interpolate_farneback,
    load_interpolator,
)
from training.data.photos import list_photos, load_photo
from training.data.pool import Pool
from training.metrics.scoring import load_truth
from vsfmanet.errors import ConfigError, OutputError, SourceError

HEIGHT, WIDTH = 64, 80


def film(frames: int, step: float) -> NDArray[np.uint8]:
    """A texture that moves left by `step` pixels a frame: (frames, 3, HEIGHT, WIDTH)."""
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH + 200, 3), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    wide = 20 + 215 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    x, y = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    moved = [cv2.remap(wide, x + np.float32(step * t), y, cv2.INTER_CUBIC) for t in range(frames)]
    return np.stack(moved).round().clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)


def written(folder: Path, frames: int = 20, step: float = 0.8) -> list[Path]:
    """Paths of a film's frames in `folder`."""
    save_clip(folder, film(frames, step))
    return sorted(folder.iterdir())


def test_frames_are_exposed_by_the_definition(tmp_path: Path) -> None:
    """Against the whole clip at 80 sub-frames per frame, built at once."""
    paths = written(tmp_path)
    filmed = film(20, 0.8).astype(np.float64)
    share = np.arange(16)[:, None, None, None] / 16
    between = [(1 - share) * a + share * b for a, b in pairwise(filmed)]
    subframes = np.concatenate([*between, filmed[-1:]])  # 16 * 19 + 1
    recipe = Recipe(per_frame=5, scale=1, interpolator="blend", linear=False)
    done = list(exposed_frames(paths, recipe))
    assert len(done) == 4
    for frame, (levels, sharp) in enumerate(done):
        centre = 80 * frame + 32
        np.testing.assert_array_equal(sharp, filmed[5 * frame + 2])
        for level in range(1, 6):
            window = np.arange(centre - 8 * level, centre + 8 * level).clip(0, len(subframes) - 1)
            assert len(window) == 16 * level
            np.testing.assert_allclose(levels[level - 1], subframes[window].mean(axis=0), atol=0.51)
    light = next(exposed_frames(paths, Recipe(per_frame=5, scale=1, interpolator="blend", linear=True)))[0]
    assert (light[4].astype(int) - done[0][0][4]).mean() > 0  # the mean of light is brighter than that of codes


def test_a_reduced_frame_is_a_quarter_as_large_and_odd_sizes_are_refused(tmp_path: Path) -> None:
    paths = written(tmp_path, frames=5)
    levels, sharp = next(exposed_frames(paths, Recipe(per_frame=5, scale=4, interpolator="blend", linear=False)))
    assert levels.shape == (5, 3, HEIGHT // 4, WIDTH // 4)
    assert sharp.shape == (3, HEIGHT, WIDTH)
    save_clip(tmp_path / "odd", film(5, 1)[..., :-1])
    with pytest.raises(SourceError, match="multiples of 4"):
        next(
            exposed_frames(
                sorted((tmp_path / "odd").iterdir()), Recipe(per_frame=5, scale=4, interpolator="blend", linear=False)
            )
        )


def test_flow_moves_things_where_blending_doubles_them() -> None:
    first, _, truth, _, last = film(5, 1.5).transpose(0, 2, 3, 1)
    inside = (slice(8, -8), slice(16, -16))
    errors = [
        np.abs(interpolate(first, last, 3)[1] - truth)[inside].mean()
        for interpolate in (interpolate_farneback, interpolate_blend)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_an_interpolator_can_be_plugged_in() -> None:
    assert load_interpolator("training.data.footage:interpolate_blend") is footage.interpolate_blend
    for name in ("fancy", "training.data.footage:nothing", "no.such.module:f"):
        with pytest.raises(ConfigError, match="interpolator"):
            load_interpolator(name)


def test_estimated_motion_is_that_of_the_film_and_what_leaves_is_not_visible() -> None:
    flow, visible = estimate_motion(film(3, 6), scale=2)
    middle = (slice(8, -8), slice(12, -12))
    assert np.median(flow[0, 0, 0][middle]) == pytest.approx(-3, abs=0.2)
    assert np.median(flow[1, 1, 0][middle]) == pytest.approx(3, abs=0.2)
    assert not flow[-1, 0].any()
    assert not flow[0, 1].any()
    assert visible[0, 0][middle].mean() > 0.9
    assert not visible[0, 0][:, :2].any()


def test_reds_becomes_a_pool_and_a_benchmark(tmp_path: Path) -> None:
    for name in ("000", "001", "011"):
        written(tmp_path / "train" / name)
    written(tmp_path / "val" / "000")
    arguments = [
        "--reds",
        tmp_path / "train",
        tmp_path / "val",
        "--test-clips",
        "000",
        "011",
        "--interpolator",
        "blend",
    ]
    pool, benchmark = tmp_path / "pool", tmp_path / "benchmark"
    run(prepare_reds.main, *arguments, "--pool", pool, "--benchmark", benchmark, "--frames", 2, "--workers", 1)
    assert len(Pool(pool)) == 4  # two clips of four output frames: 001, and 000 of the other part
    batch = Pool(pool).sample(np.random.default_rng(0), clips=2, frames=2, crop=8, exposure_mode="mixed")
    assert batch.hr.shape == (2, 2, 3, 32, 32)

    record = load_benchmark(benchmark)
    assert [scene.name for scene in record.scenes] == ["000", "011"]
    for scene in record.scenes:
        assert list(scene.exposure) == ["5_1", "5_2", "5_3", "5_4", "5_5", "re"]
        for condition in scene.exposure:
            assert load_clip(benchmark / scene.name / condition).shape == (4, 3, HEIGHT // 4, WIDTH // 4)
        assert not load_truth(benchmark / scene.name).exact
    assert len((benchmark / "re.txt").read_text().splitlines()) == 2

    missing = pool / "000002"
    before = (missing / "lr.npy").read_bytes()
    for path in missing.iterdir():
        path.unlink()
    missing.rmdir()
    run(prepare_reds.main, *arguments, "--pool", pool, "--frames", 2, "--workers", 1)
    assert (missing / "lr.npy").read_bytes() == before
    with pytest.raises(ConfigError, match="other settings"):
        run(prepare_reds.main, *arguments, "--pool", pool, "--frames", 3, "--workers", 1)
    with pytest.raises(OutputError, match="exists"):
        run(prepare_reds.main, *arguments, "--benchmark", benchmark)
    with pytest.raises(ConfigError, match="neither"):
        run(prepare_reds.main, *arguments)
    with pytest.raises(SourceError, match="020 are missing"):
        run(
            prepare_reds.main, "--reds", tmp_path / "train", "--benchmark", tmp_path / "b", "--test-clips", "000", "020"
        )


def test_gopro_becomes_a_pool_and_a_benchmark(tmp_path: Path) -> None:
    written(tmp_path / "all" / "GOPR0001", frames=20, step=0.4)
    for part, step in (("sharp", 2.0), ("blur", 2.0)):
        save_clip(tmp_path / "test" / "GOPR0002" / part, film(3, step))
    outputs = ["--pool", tmp_path / "pool", "--benchmark", tmp_path / "benchmark"]
    inputs = ["--sharp", tmp_path / "all", "--blurred", tmp_path / "test"]
    run(prepare_gopro.main, *inputs, *outputs, "--frames", 2, "--workers", 1)
    assert len(Pool(tmp_path / "pool")) == 1
    record = load_benchmark(tmp_path / "benchmark")
    assert record.scenes[0].exposure == {"blur": [1.0] * 3}
    assert load_clip(tmp_path / "benchmark" / "GOPR0002" / "blur").shape == (3, 3, HEIGHT // 4, WIDTH // 4)
    with pytest.raises(ConfigError, match="goes with"):
        run(prepare_gopro.main, "--pool", tmp_path / "other", "--blurred", tmp_path / "test")
    with pytest.raises(SourceError, match="blur and sharp"):
        run(prepare_gopro.main, "--benchmark", tmp_path / "other", "--blurred", tmp_path / "all")


def test_bsd_becomes_a_pool_and_a_benchmark(tmp_path: Path) -> None:
    data, pool, benchmark = tmp_path / "BSD_2ms16ms", tmp_path / "pool", tmp_path / "benchmark"
    blurred, sharp = film(4, 2.0), film(4, 2.0)[::-1]
    for part, clip in (("train", "000"), ("train", "001"), ("valid", "003"), ("test", "017")):
        save_clip(data / part / clip / "Blur" / "RGB", blurred)
        save_clip(data / part / clip / "Sharp" / "RGB", sharp)

    run(prepare_bsd.main, data / "test", "--benchmark", benchmark, "--exposure", 0.24)
    record = load_benchmark(benchmark)
    assert (record.scale, [scene.name for scene in record.scenes]) == (1, ["017"])
    assert record.scenes[0].exposure == {"blur": [0.24] * 4}
    np.testing.assert_array_equal(load_clip(benchmark / "017" / "blur"), blurred)
    np.testing.assert_array_equal(load_clip(benchmark / "017" / "sharp"), sharp)

    arguments = [data / "train", "--pool", pool, "--exposure", 0.24, "--workers", 1]
    run(prepare_bsd.main, *arguments, "--frames", 2)
    assert len(Pool(pool)) == 4  # two clips of four frames
    second = Pool(pool).sequence(1)
    for level in second.lr:
        np.testing.assert_array_equal(level, blurred[2:])
    np.testing.assert_array_equal(second.hr, sharp[2:])
    assert np.median(second.flow[0, 0, 0][8:-8, 12:-12]) == pytest.approx(2, abs=0.2)
    with pytest.raises(ConfigError, match="other settings"):
        run(prepare_bsd.main, *arguments, "--frames", 3)
    with pytest.raises(ConfigError, match="neither"):
        run(prepare_bsd.main, data / "train", "--exposure", 0.24)
    with pytest.raises(SourceError, match="Blur/RGB and Sharp/RGB"):
        run(prepare_bsd.main, data, "--pool", tmp_path / "other", "--exposure", 0.24)
    next((data / "train" / "001" / "Blur" / "RGB").iterdir()).unlink()
    with pytest.raises(SourceError, match="got 4 and 3"):
        run(prepare_bsd.main, data / "train", "--pool", tmp_path / "other", "--exposure", 0.24)


def test_photographs_are_packed_into_the_space_there_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (150, 200, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), cv2.GaussianBlur(noise, (0, 0), 2))
    run(pack_photos.main, "--photos", tmp_path / "photos", "--out", tmp_path / "packed", "--side", 100)
    packed = list_photos(tmp_path / "packed")
    assert [path.name for path in packed] == ["0.webp", "1.webp"]
    assert load_photo(packed[0]).shape == (3, 75, 100)
    large = sum(path.stat().st_size for path in packed)
    small = ["--photos", tmp_path / "photos", "--side", 100, "--megabytes", 0.8 * large / 1e6]
    run(pack_photos.main, *small, "--out", tmp_path / "smaller")
    assert sum(path.stat().st_size for path in list_photos(tmp_path / "smaller")) <= 0.8 * large
    with pytest.raises(ConfigError, match="smaller --side"):
        run(pack_photos.main, *small[:4], "--megabytes", 0.0001, "--out", tmp_path / "none")
