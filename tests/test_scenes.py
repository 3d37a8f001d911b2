"""The synthetic scenes: known motion is rendered as such, and stays known through pooling and augmentation."""

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data.benchmark import load_benchmark
from training.data.exposure import exposure_walk, random_exposure
from training.data.motion import BEND_SLOPE, Path, random_deformation, random_path
from training.data.parallel import finished
from training.data.photos import downscale, list_photos, to_code
from training.data.pool import (
    Batch,
    Clip,
    DevicePool,
    Pool,
    PoolSettings,
    held,
    random_clip,
    reversed_in_time,
    save_sequence,
    sequence_folder,
    turned,
    write_settings,
)
from training.data.render import Sequence, render_flow, render_sequence, to_bytes
from training.data.scene import Layer, Scene, mirrored, random_blob, random_scene, random_speed
from training.data.symmetry import Symmetry
from training.reduce_pool import reduced
from training.render_pool import render_one
from vsfmanet.errors import ConfigError, SourceError
from vsfmanet.networks.exposure_extractor import LEVELS

HEIGHT, WIDTH, FRAMES = 48, 64, 4


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random light (3, height, width) in [0.05, 0.95]; fine enough to see blur, and free of aliasing."""
    noise = np.random.default_rng(seed).random((height, width, 3), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy(0.05 + 0.9 * smooth).permute(2, 0, 1).contiguous()


def straight_path(dx: float, dy: float) -> Path:
    """The texture point seen at a pixel moves by (dx, dy) per frame, so the picture moves by (-dx, -dy)."""
    drift = np.array([dx, dy, 0, 0, 0, 0], dtype=np.float64)
    nothing = np.zeros((6, 1))
    return Path(drift=drift, frequency=np.ones(1), amplitude=nothing, phase=nothing, origin_time=0)


def background(path: Path) -> Layer:
    """A layer that is large enough for small motions."""
    return Layer(texture=texture(HEIGHT + 80, WIDTH + 80), path=path, centre=(0, 0), anchor=(40, 40))


def moving_scene(dx: float, dy: float) -> Scene:
    """A picture that moves by (-dx, -dy) per frame."""
    return Scene(layers=(background(straight_path(dx, dy)),), height=HEIGHT, width=WIDTH, frames=FRAMES)


def shaken_scene(seed: int, speed: float = 3, *, bending: bool = False) -> Scene:
    """A background and a cut-out, both on random paths, and both bending if asked to."""
    generator = np.random.default_rng(seed)
    path = random_path(generator, speed=speed, frames=FRAMES, radius=32)
    opacity = random_blob(generator, 10)
    size = opacity.shape[-1]
    cutout = Layer(
        texture=torch.cat([texture(size, size, seed=1), opacity[None]]),
        path=random_path(generator, speed=speed, frames=FRAMES, radius=10),
        centre=(WIDTH / 2, HEIGHT / 2),
        anchor=(size / 2, size / 2),
        deformation=random_deformation(generator, 20) if bending else None,
    )
    middle = Layer(
        texture=texture(HEIGHT + 80, WIDTH + 80),
        path=path,
        centre=(WIDTH / 2, HEIGHT / 2),
        anchor=(WIDTH / 2 + 40, HEIGHT / 2 + 40),
        deformation=random_deformation(generator, 64) if bending else None,
    )
    return Scene(layers=(middle, cutout), height=HEIGHT, width=WIDTH, frames=FRAMES)


def warped(frame: NDArray[np.uint8], flow: NDArray[np.float16]) -> NDArray[np.float32]:
    """Sample `frame` (3, H, W) at p + flow(p), flow (2, H, W) in pixels; returns code values in 0..255."""
    height, width = frame.shape[1:]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    grid = np.stack([(2 * (x + flow[0]) + 1) / width - 1, (2 * (y + flow[1]) + 1) / height - 1], axis=-1)
    sampled = functional.grid_sample(
        torch.from_numpy(frame.astype(np.float32))[None],
        torch.from_numpy(grid)[None],
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return sampled[0].numpy()


def assert_flow_explains_neighbours(
    hr: NDArray[np.uint8], flow: NDArray[np.float16], visible: NDArray[np.uint8], tolerance: float
) -> None:
    """Check that sharp frames (T, 3, H, W) are their neighbours, warped, where visible; mean error in code values."""
    for index in range(len(hr)):
        for direction, neighbour in enumerate((index + 1, index - 1)):
            if 0 <= neighbour < len(hr):
                errors = np.abs(warped(hr[neighbour], flow[index, direction]) - hr[index])
                seen = visible[index, direction].astype(bool)
                assert seen.mean() > 0.5
                assert errors[:, seen].mean() < tolerance


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[FilePath]:
    """Three files to draw scenes from."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        picture = to_bytes(to_code(texture(200, 220, seed=number))).transpose(1, 2, 0)
        cv2.imwrite(str(folder / f"{number}.png"), np.ascontiguousarray(picture))
    return list_photos(folder)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Three sequences at scale 2."""
    folder = tmp_path_factory.mktemp("pool")
    for index in range(3):
        save_sequence(render_sequence(shaken_scene(index), scale=2), sequence_folder(folder, index))
    return Pool(folder)


def test_a_scene_is_determined_by_its_seed(photos: list[FilePath]) -> None:
    def render(seed: int) -> Sequence:
        scene = random_scene(np.random.default_rng(seed), photos, height=32, width=32, frames=3, speed=4, layers=1)
        return render_sequence(scene, scale=4)

    first, again, other = render(5), render(5), render(6)
    for name, array in dataclasses.asdict(first).items():
        np.testing.assert_array_equal(array, getattr(again, name))
    assert not np.array_equal(first.hr, other.hr)


@pytest.mark.parametrize("speed", [0.0, 2.0, 20.0])
def test_a_drawn_scene_never_shows_what_is_outside_its_photograph(photos: list[FilePath], speed: float) -> None:
    scene = random_scene(np.random.default_rng(3), photos, height=32, width=40, frames=5, speed=speed, layers=0)
    layer = scene.layers[0]
    corners = np.array([[0, 0, 1], [39, 0, 1], [0, 31, 1], [39, 31, 1]]).T
    seen = layer.homographies(np.linspace(-0.5, 4.5, 100)) @ corners
    seen = seen[:, :2] / seen[:, 2:]
    assert seen.min() >= 1
    assert seen[:, 0].max() <= layer.texture.shape[-1] - 2
    assert seen[:, 1].max() <= layer.texture.shape[-2] - 2


def test_a_path_has_the_speed_that_was_asked_for() -> None:
    path = random_path(np.random.default_rng(0), speed=7, frames=6, radius=100)
    times = np.linspace(-0.5, 5.5, 2001)
    steps = np.diff(path.parameters(times)[:, :2], axis=0)
    assert np.linalg.norm(steps, axis=1).sum() / 6 == pytest.approx(7, rel=0.02)


def test_flow_of_a_translating_scene_is_its_displacement() -> None:
    flow, visible = render_flow(moving_scene(4, -6), scale=2)
    np.testing.assert_allclose(flow[:-1, 0, 0], -2, atol=1e-3)
    np.testing.assert_allclose(flow[:-1, 0, 1], 3, atol=1e-3)
    np.testing.assert_allclose(flow[1:, 1, 0], 2, atol=1e-3)
    np.testing.assert_allclose(flow[1:, 1, 1], -3, atol=1e-3)
    assert not flow[-1, 0].any()
    assert not flow[0, 1].any()
    assert visible[-1, 0].all()
    assert visible[0, 1].all()
    expected = np.zeros((HEIGHT // 2, WIDTH // 2))
    expected[:-3, 2:] = 1  # the picture leaves by 2 LR pixels at the left, 3 below
    np.testing.assert_array_equal(visible[0, 0], expected)


@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (-1.5, 2.25)])
def test_warping_a_neighbour_by_the_flow_of_a_translation_gives_the_frame(dx: float, dy: float) -> None:
    scene = moving_scene(dx, dy)
    flow, visible = render_flow(scene, scale=1)
    assert_flow_explains_neighbours(render_sequence(scene, scale=1).hr, flow, visible, tolerance=1.0)


@pytest.mark.parametrize("bending", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_warping_a_neighbour_gives_the_frame_also_with_layers_perspective_and_bending(seed: int, bending: bool) -> None:
    scene = shaken_scene(seed, bending=bending)
    flow, visible = render_flow(scene, scale=1)
    assert not visible.all()
    assert_flow_explains_neighbours(render_sequence(scene, scale=1).hr, flow, visible, tolerance=1.5)


def test_a_deformation_can_be_undone_and_keeps_its_bounds() -> None:
    points = np.random.default_rng(0).uniform(-50, 300, (200, 2))
    for seed in range(20):
        bend = random_deformation(np.random.default_rng(seed), 100)
        for time in (0.0, 1.5, 7.0):
            bent = bend.bent(points, time)
            np.testing.assert_allclose(bend.unbent(bent, time), points, atol=1e-9)
            assert 0.05 < np.abs(bent - points).max() <= bend.largest
        speed = np.linalg.norm(bend.bent(points, 0.01) - bend.bent(points, 0), axis=1).max() / 0.01
        assert 0 < speed <= bend.fastest + 1e-9
        right = np.array([0.01, 0])
        strain = np.linalg.norm(bend.bent(points + right, 0) - bend.bent(points, 0) - right, axis=1).max() / 0.01
        assert strain <= BEND_SLOPE[1] + 1e-9


def test_a_bending_background_moves_by_itself_and_blurs_with_exposure() -> None:
    calm = background(straight_path(0, 0))
    layer = dataclasses.replace(calm, deformation=random_deformation(np.random.default_rng(4), 64))
    scene = Scene(layers=(layer,), height=HEIGHT, width=WIDTH, frames=FRAMES)
    sequence = render_sequence(scene, scale=1)
    speed = np.hypot(sequence.flow[0, 0, 0].astype(float), sequence.flow[0, 0, 1].astype(float))
    assert speed.max() > 0.2
    assert speed.std() > 0.05  # not one translation
    blur = np.abs(sequence.lr.astype(float) - sequence.hr).mean(axis=(1, 2, 3, 4))
    assert blur[4] > blur[0]


def test_speeds_span_what_is_seen_in_hand_held_footage() -> None:
    generator = np.random.default_rng(0)
    speeds = np.array([random_speed(generator) for _ in range(4000)])
    assert speeds.min() < 0.1
    assert 50 < speeds.max() <= 60
    shares = np.histogram(speeds, bins=(0, 0.7, 3, 10, 20, 40, 60))[0] / 4000
    assert shares[0] == pytest.approx(0.1, abs=0.02)
    assert (shares[1:5] > 0.12).all()
    assert shares[5] > 0.003


def test_what_a_cutout_will_cover_is_not_visible_in_the_next_frame() -> None:
    opacity = torch.zeros(20, 20)
    opacity[4:-4, 4:-4] = 1  # 12 x 12 opaque pixels
    square = torch.cat([torch.full((3, 20, 20), 0.5), opacity[None]])
    cutout = Layer(texture=square, path=straight_path(-16, 0), centre=(20, 20), anchor=(10, 10))
    still = background(straight_path(0, 0))
    flow, visible = render_flow(Scene(layers=(still, cutout), height=HEIGHT, width=WIDTH, frames=2), scale=1)
    here, there = (slice(14, 26), slice(14, 26)), (slice(14, 26), slice(30, 42))
    assert (flow[0, 0, 0][here] == 16).all()
    assert visible[0, 0][here].all()
    assert not flow[0, 0, 0][there].any()
    assert not visible[0, 0][there].any()
    assert visible[0, 0].sum() == HEIGHT * WIDTH - 12 * 12


def test_a_still_scene_looks_the_same_at_every_exposure() -> None:
    sequence = render_sequence(moving_scene(0, 0), scale=4)
    sharp = torch.from_numpy(sequence.hr).float() / 255
    expected = to_bytes(downscale(sharp, HEIGHT // 4, WIDTH // 4))
    for level in sequence.lr:
        np.testing.assert_allclose(level.astype(int), expected.astype(int), atol=1)  # hr was rounded before


def test_blur_grows_with_exposure() -> None:
    sequence = render_sequence(moving_scene(9, 4), scale=1)
    errors = np.abs(sequence.lr.astype(float) - sequence.hr).mean(axis=(1, 2, 3, 4))
    assert (np.diff(errors) > 0).all()


def test_a_blurred_frame_is_the_mean_light_over_its_window() -> None:
    """At 10 pixels a frame and level 5 the window is the box that a 10-pixel motion sweeps."""
    sequence = render_sequence(moving_scene(10, 0), scale=1)
    light = background(straight_path(0, 0)).texture
    swept = torch.stack([light[:, 40 : 40 + HEIGHT, 35 + k : 35 + k + WIDTH] for k in range(11)])
    weights = torch.tensor([0.5, *[1.0] * 9, 0.5]) / 10  # trapezoid over the sweep
    expected = to_code((weights[:, None, None, None] * swept).sum(dim=0)) * 255
    np.testing.assert_allclose(sequence.lr[4, 0].astype(float), expected.numpy(), atol=1.5)


def test_a_pool_of_scale_1_made_smaller_is_one_rendered_at_that_scale() -> None:
    scene = shaken_scene(4)
    whole, wanted = (render_sequence(scene, scale=scale) for scale in (1, 2))
    small = reduced(whole, 2)
    assert np.array_equal(small.hr, wanted.hr)
    assert np.abs(small.lr.astype(int) - wanted.lr.astype(int)).max() <= 2
    assert np.abs(small.lr.astype(int) - wanted.lr.astype(int)).mean() < 0.3
    inside = (small.visible & wanted.visible)[:, :, None].astype(bool)
    off = np.abs(small.flow.astype(np.float32) - wanted.flow.astype(np.float32))
    assert np.median(off[np.broadcast_to(inside, off.shape)]) < 0.01
    assert (small.visible == wanted.visible).mean() > 0.95


def test_exposure_windows_are_centred_so_that_time_can_run_backwards() -> None:
    ahead = render_sequence(moving_scene(5, -3), scale=2)
    last = (40 + 5 * (FRAMES - 1), 40 - 3 * (FRAMES - 1))  # the clip ahead ends with this texture pixel at its corner
    layer = dataclasses.replace(background(straight_path(-5, 3)), anchor=last)
    back = render_sequence(Scene(layers=(layer,), height=HEIGHT, width=WIDTH, frames=FRAMES), scale=2)
    np.testing.assert_allclose(back.lr[:, ::-1].astype(int), ahead.lr.astype(int), atol=1)
    np.testing.assert_allclose(back.flow[::-1, ::-1], ahead.flow, atol=1e-2)


def test_work_is_shared_by_processes_of_one_thread_each(tmp_path: FilePath) -> None:
    before = dict(os.environ)
    tasks = [tmp_path / str(number) for number in range(5)]
    assert len(list(finished(os.mkdir, tasks, 2))) == len(tasks)
    assert sorted(tmp_path.iterdir()) == tasks
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "symmetry",
    [
        *(partial(turned, symmetry=Symmetry(**{name: True})) for name in ("horizontal", "vertical", "transposed")),
        reversed_in_time,
    ],
)
def test_a_symmetry_keeps_the_flow_exact(symmetry: Callable[[Clip], Clip]) -> None:
    sequence = render_sequence(shaken_scene(1), scale=1)
    whole = held(sequence, "cpu")
    clip = random_clip(np.random.default_rng(0), whole, frames=FRAMES, crop=HEIGHT, exposure_mode="walk")
    changed = symmetry(clip)
    assert not torch.equal(changed.hr, clip.hr)
    # Visibility marks what leaves the frame, not what leaves the crop: look at the middle alone.
    visible = np.zeros_like(changed.visible.numpy())
    visible[..., 10:-10, 10:-10] = changed.visible[..., 10:-10, 10:-10].numpy()
    hr, flow = changed.hr.numpy(), changed.flow.numpy()
    for index in range(FRAMES - 1):
        seen = visible[index, 0].astype(bool)
        errors = np.abs(warped(hr[index + 1].copy(), flow[index, 0]) - hr[index])
        assert errors[:, seen].mean() < 2
    again = symmetry(changed)
    assert torch.equal(again.flow, clip.flow)
    assert torch.equal(again.lr, clip.lr)
    assert torch.equal(again.exposure, clip.exposure)


def test_a_batch_has_the_promised_shapes_and_closed_ends(pool: Pool) -> None:
    batch = pool.sample(np.random.default_rng(0), clips=5, frames=3, crop=16, exposure_mode="mixed")
    assert batch.lr.shape == (5, 3, 3, 16, 16)
    assert batch.hr.shape == (5, 3, 3, 32, 32)
    assert batch.exposure.shape == (5, 3)
    assert batch.flow.shape == (5, 3, 2, 2, 16, 16)
    assert batch.visible.shape == (5, 3, 2, 16, 16)
    for field in dataclasses.fields(batch):
        assert getattr(batch, field.name).dtype == torch.float32
    assert not batch.flow[:, -1, 0].any()
    assert not batch.flow[:, 0, 1].any()
    assert batch.visible[:, -1, 0].all()
    assert batch.visible[:, 0, 1].all()
    assert batch.flow[:, 0, 0].abs().sum() > 0
    assert batch.hr.min() >= 0
    assert batch.hr.max() <= 1
    assert (downscale(batch.hr[:, 0], 16, 16) - batch.lr[:, 0]).abs().mean() < 0.1


def test_a_pool_in_device_memory_gives_the_same_batches(pool: Pool) -> None:
    in_memory = DevicePool(pool.folder, "cpu")
    for seed in range(8):
        batches = [
            each.sample(
                np.random.default_rng(seed),
                clips=3,
                frames=3,
                crop=16,
                exposure_mode="mixed",
                degrade=0.3,
                bars=0.3,
                among=[0, 2],
            )
            for each in (pool, in_memory)
        ]
        for field in dataclasses.fields(batches[0]):
            assert torch.equal(*(getattr(batch, field.name) for batch in batches)), field.name


def test_noise_and_compression_leave_the_clean_frames_and_all_else_as_they_are(pool: Pool) -> None:
    def draw(degrade: float) -> Batch:
        generator = np.random.default_rng(1)
        return pool.sample(generator, clips=4, frames=3, crop=16, exposure_mode="walk", degrade=degrade)

    plain, damaged = draw(0), draw(1)
    assert torch.equal(plain.lr, plain.clean)
    for name in ("clean", "hr", "exposure", "flow", "visible"):
        assert torch.equal(getattr(plain, name), getattr(damaged, name)), name
    assert not torch.equal(damaged.lr, damaged.clean)
    assert (damaged.lr - damaged.clean).abs().mean() < 0.1


def test_bars_are_of_one_colour_in_input_and_truth_and_leave_the_rest_as_it_is(pool: Pool) -> None:
    def draw(bars: float) -> Batch:
        generator = np.random.default_rng(4)
        return pool.sample(generator, clips=24, frames=2, crop=16, exposure_mode="walk", bars=bars)

    plain, barred = draw(0), draw(1)
    assert torch.equal(plain.flow, barred.flow)
    assert torch.equal(barred.lr, barred.clean)
    widths, colours = set(), set()
    for before, after, hr_before, hr_after, visible in zip(
        plain.lr, barred.lr, plain.hr, barred.hr, barred.visible, strict=True
    ):
        rows, columns = ((visible == 0).all(axis).flatten(0, 1).all(0) for axis in (-1, -2))
        covered = rows[:, None] | columns
        assert rows.all() or not (rows.any() and columns.any())
        widths.add(int(covered.sum()) // 16)
        under = after[..., covered]
        colours.add(tuple(under[0, :, 0].tolist()))
        assert torch.equal(under, under[:1, :, :1].expand_as(under))
        assert torch.equal(after[..., ~covered], before[..., ~covered])
        hr_covered = covered.repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert torch.equal(hr_after[..., hr_covered], under[:1, :, :1].expand_as(hr_after[..., hr_covered]))
        assert torch.equal(hr_after[..., ~hr_covered], hr_before[..., ~hr_covered])
    assert 16 in widths
    assert len(widths) > 4
    assert (0, 0, 0) in colours
    assert len(colours) > 4


def test_a_batch_is_determined_by_its_generator(pool: Pool) -> None:
    def draw(seed: int) -> Tensor:
        return pool.sample(np.random.default_rng(seed), clips=2, frames=3, crop=16, exposure_mode="walk").lr

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_a_pool_finds_what_was_rendered_since(tmp_path: FilePath) -> None:
    sequence = render_sequence(shaken_scene(0), scale=4)
    with pytest.raises(SourceError, match="render_pool"):
        Pool(tmp_path)
    save_sequence(sequence, sequence_folder(tmp_path, 0))
    growing = Pool(tmp_path)
    save_sequence(sequence, sequence_folder(tmp_path, 1))
    assert len(growing) == 1
    assert growing.rescan() == 2
    np.testing.assert_array_equal(growing.sequence(1).flow, sequence.flow)


def test_rendering_a_pool_twice_gives_the_same_and_other_settings_are_refused(
    photos: list[FilePath], tmp_path: FilePath
) -> None:
    settings = PoolSettings(seed=1, scale=4, size=32, frames=2, photos="any")
    for name in ("first", "second"):
        write_settings(settings, tmp_path / "pool.json")
        render_one(7, photos=photos, settings=settings, pool=tmp_path / name, device="cpu")
    first, second = (Pool(tmp_path / name).sequence(0) for name in ("first", "second"))
    np.testing.assert_array_equal(first.lr, second.lr)
    bending = dataclasses.replace(settings, nonrigid=1.0)
    render_one(7, photos=photos, settings=bending, pool=tmp_path / "third", device="cpu")
    assert not np.array_equal(Pool(tmp_path / "third").sequence(0).lr, first.lr)
    old = {name: value for name, value in dataclasses.asdict(settings).items() if name != "nonrigid"}
    (tmp_path / "pool.json").write_text(json.dumps(old))  # a pool from before there was bending
    write_settings(settings, tmp_path / "pool.json")
    assert first.hr.shape == (2, 3, 32, 32)
    with pytest.raises(ConfigError, match="other settings"):
        write_settings(dataclasses.replace(settings, seed=2), tmp_path / "pool.json")
    with pytest.raises(ConfigError, match="multiple of scale"):
        dataclasses.replace(settings, size=30)
    with pytest.raises(ConfigError, match="nonrigid"):
        dataclasses.replace(settings, nonrigid=2.0)


def test_a_small_picture_is_mirrored_until_it_is_large_enough() -> None:
    light = texture(5, 7)
    large = mirrored(light, 12, 7)
    assert large.shape == (3, 12, 7)
    torch.testing.assert_close(large[:, 5:9], light[:, :4].flip(1))
    assert mirrored(light, 4, 6) is light


def test_a_pool_refuses_more_than_it_holds(pool: Pool) -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="at most 4 frames"):
        pool.sample(generator, clips=1, frames=5, crop=16, exposure_mode="constant")
    with pytest.raises(ConfigError, match="crop of 24"):
        pool.sample(generator, clips=1, frames=3, crop=25, exposure_mode="constant")
    with pytest.raises(ConfigError, match="mode"):
        pool.sample(generator, clips=1, frames=3, crop=16, exposure_mode="always")


@pytest.mark.parametrize("interval", [2, 5, 7])
def test_an_exposure_walk_steps_by_one_at_multiples_of_its_interval(interval: int) -> None:
    for seed in range(50):
        levels = exposure_walk(np.random.default_rng(seed), 30, 3, interval)
        assert levels.min() >= 1
        assert levels.max() <= LEVELS
        changes = np.flatnonzero(np.diff(levels)) + 1
        assert (changes % interval == 0).all()
        assert np.abs(np.diff(levels)).max() <= 1
        assert abs(levels[0] - 3) <= 1


def test_an_exposure_walk_draws_at_its_first_frame_too() -> None:
    firsts = {int(exposure_walk(np.random.default_rng(seed), 1, 3, 5)[0]) for seed in range(50)}
    assert firsts == {2, 3, 4}


def test_exposure_modes_do_what_they_say() -> None:
    generator = np.random.default_rng(0)
    constant = [random_exposure(generator, 8, "constant") for _ in range(100)]
    assert all(len(set(levels.tolist())) == 1 for levels in constant)
    assert {int(levels[0]) for levels in constant} == {1, 2, 3, 4, 5}
    mixed = [random_exposure(generator, 8, "mixed") for _ in range(100)]
    varying = sum(len(set(levels.tolist())) > 1 for levels in mixed)
    assert 20 < varying < 60


def test_folders_without_photographs_or_benchmark_are_refused(tmp_path: FilePath) -> None:
    with pytest.raises(SourceError, match="list_photos"):
        list_photos(tmp_path)
    with pytest.raises(SourceError, match="load_benchmark"):
        load_benchmark(tmp_path)
