"""M2AENet: its size and cost, the equality of its ways to prune, what it leaves alone, and how it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import TINY_M2AENET as TINY
from tests.tiny import Multiplications, run
from tests.tiny import awake_m2aenet as awake
from training import train_m2aenet
from training.data.pool import Batch
from training.losses.frames import USUAL_ERROR, ssim_map
from training.losses.m2aenet import (
    Weights,
    known_frames,
    losses,
    mask_loss,
    path_loss,
    reblurred,
    restoration_losses,
    true_mask,
)
from training.metrics.frames import ssim
from training.run.checkpoint import load_checkpoint
from vsfmanet.errors import ConfigError
from vsfmanet.networks import pruning
from vsfmanet.networks.m2aenet import HELD, MEMORY, PRESETS, M2AENet, M2AENetConfig, path
from vsfmanet.weights import load_analyser, parameter_count


def seeing(network: M2AENet) -> M2AENet:
    """The network with a blur analyser that takes red for blur: 1 stands for 4 pixels."""
    network.blur.extent = lambda frames: 4 * frames[:, :1]  # type: ignore[method-assign]
    return network


def patches(count: int, height: int, width: int) -> Tensor:
    """A mask with whole areas, single pixels and an empty part."""
    mask = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(2)) > 0.97
    mask[0, :, height // 3 :, width // 4 : width // 2] = True
    mask[:, :, : height // 4] = False
    return mask.float()


def frames(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def multiplications(network: M2AENet, mask: Tensor) -> int:
    """Of the restorer, pruned by pixels, for a frame of the size of `mask` (1, 1, H, W)."""
    height, width = mask.shape[2:]
    frame, offsets = torch.zeros(1, 4, height, width), torch.zeros(1, 4, height // 2, width // 2)
    with Multiplications() as counter:
        network.restorer(frame, mask.float(), offsets, "pixel")
    return counter.total


@pytest.mark.parametrize(("name", "parameters"), [("small", 3_448_899), ("base", 6_549_059), ("large", 14_728_035)])
def test_parameter_counts_are_those_of_the_specification(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = M2AENet(PRESETS[name])
    extra = 3 * 3 * network.config.width  # for the extent as a fourth channel
    assert parameter_count(network.restorer) == parameters + extra
    assert network.motion is not None
    assert parameter_count(network.motion) == pytest.approx(1.13e6, rel=0.05)


@pytest.mark.parametrize(
    ("name", "totals"),
    [("small", (537, 326, 220, 165)), ("base", (945, 529, 322, 214)), ("large", (2017, 1083, 616, 373))],
)
def test_multiplications_per_frame_of_1280x720_are_those_of_the_specification(
    monkeypatch: pytest.MonkeyPatch, name: str, totals: tuple[int, ...]
) -> None:
    monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")  # they cannot be counted
    network = M2AENet(PRESETS[name])
    assert network.motion is not None
    with torch.inference_mode(), Multiplications() as counter:
        network.blur(torch.zeros(1, 3, 32, 32))
        network.motion(torch.zeros(1, 4, 32, 32))
    always = counter.total
    fixed, most = (multiplications(network, torch.full((1, 1, 32, 32), on)) for on in (False, True))
    for share, total in zip((1, 0.5, 0.25, 0.12), totals, strict=True):
        counted = (always + fixed + share * (most - fixed)) * 1280 * 720 / 32**2
        assert counted / 1e9 == pytest.approx(total, rel=0.02), share


def test_the_cost_falls_with_the_share_that_is_blurred() -> None:
    network = awake()
    quarter = torch.zeros(1, 1, 32, 64, dtype=torch.bool)
    quarter[:, :, :16, :32] = True
    fixed, most = (multiplications(network, torch.full_like(quarter, on)) for on in (False, True))
    assert multiplications(network, quarter) == fixed + (most - fixed) // 4
    assert fixed < most / 4


@pytest.mark.parametrize("trajectories", [True, False])
@pytest.mark.parametrize("size", [(75, 101), (8, 8), (33, 64)])
def test_all_ways_to_prune_give_the_same_pixels(
    size: tuple[int, int], trajectories: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = awake(replace(TINY, trajectories=trajectories))
    clip, extent, mask = frames(2, 3, *size), frames(2, 1, *size), patches(2, *size)
    sharp = mask.expand_as(clip) == 0
    with torch.inference_mode():
        network.pruning = "none"
        reference = network.restore(clip, extent, mask).frames
        for network.pruning, dense_from in (("pixel", 1), ("tile", 2), ("tile", 0)):
            monkeypatch.setattr(pruning, "_DENSE_FROM", dense_from)
            pruned = network.restore(clip, extent, mask).frames
            torch.testing.assert_close(pruned, reference, rtol=0, atol=1e-5)
            assert torch.equal(pruned[sharp], clip[sharp])
    training = network.restore(clip, extent, mask).frames
    assert training.requires_grad
    torch.testing.assert_close(training, reference, rtol=0, atol=1e-6)
    assert (reference - clip).abs().max() > 0.01


def test_tiles_are_gathered_while_they_are_few() -> None:
    mask = torch.zeros(1, 1, 4 * pruning.TILE, 4 * pruning.TILE - 5)
    mask[..., : 2 * pruning.TILE, : 2 * pruning.TILE + 1] = 1
    assert [tiles.tolist() for tiles in pruning.Area(mask).tiles] == [[0] * 6, [0] * 3 + [1] * 3, [0, 1, 2] * 2]
    assert not pruning.Area(mask).crowded
    assert pruning.Area(mask.roll(1, 2)).tiles[0].numel() == 9
    assert pruning.Area(mask.flip(3) + mask).crowded is False
    assert pruning.Area(torch.ones_like(mask)).crowded


def test_what_is_sharp_comes_back_bit_by_bit() -> None:
    network = seeing(awake())
    clip = frames(1, 3, 3, 40, 56)
    clip[:, :, 0] *= 0.25  # at most one pixel of blur
    clip[:, :, 0, 19:21, 11:37] = 1
    with torch.inference_mode():
        restored = network(clip)
        blurred = torch.zeros(40, 56, dtype=torch.bool)
        blurred[16:24, 8:40] = True
        assert torch.equal(restored[..., ~blurred], clip[..., ~blurred])
        assert (restored != clip)[..., blurred].float().mean() > 0.9
        clip[:, :, 0] = 0
        assert torch.equal(network(clip), clip)


def test_what_is_blurred_is_grown_by_three_pixels() -> None:
    extent = torch.zeros(1, 1, 16, 16)
    extent[..., 8, 8] = 9
    on = awake().mask([extent])
    assert on.sum() == 49
    assert on[..., 5:12, 5:12].all()


def test_a_pixel_is_restored_until_it_was_sharp_for_some_frames() -> None:
    network = awake()

    def story(*extents: float) -> list[bool]:
        scores = [torch.full((1, 1, 1, 1), extent) for extent in extents]
        return [bool(network.mask(scores[: n + 1])) for n in range(len(scores))]

    assert story(1.2, 1.3, 1.0, 1.2, 0.8) == [False, True, True, True, True]
    assert story(1.3, 0.1, 0.1, 0.1, 1.0, 1.3) == [True, True, True, False, False, True]
    assert story(1.3, 0.1, 0.1, 1.0, 0.1, 0.1) == [True] * 6
    assert HELD == 3
    assert not any(story(1.0, 1.1, 0.9))


def test_a_frame_depends_on_itself_and_on_the_blur_of_the_frames_before_it_in_its_scene() -> None:
    network = seeing(awake())
    clip = frames(1, MEMORY + 3, 3, 24, 24)
    clip[:, :, 0] *= 0.28  # up to 1.1 pixels: kept on where it is on, and now and then sharp for long enough
    clip[:, range(MEMORY + 3), 0, range(0, 2 * MEMORY + 6, 2), range(0, 2 * MEMORY + 6, 2)] = 0.5
    last = MEMORY + 2
    with torch.inference_mode():
        restored = network(clip)
        # Frame by frame, as the filter does it, from wherever it starts.
        features = [network.encode(clip[:, t], None)[0] for t in range(last - MEMORY, last + 1)]
        assert torch.equal(network.decode(features), restored[:, last])
        # The first frame of a scene knows itself alone, and the same is true for a clip of one frame.
        assert torch.equal(network(clip[:, :1]), restored[:, :1])
        one, other = clip.clone(), clip.clone()
        one[:, last - MEMORY - 1], other[:, last - 1] = 0.9, 0.9
        assert torch.equal(network(one)[:, last], restored[:, last])
        assert not torch.equal(network(other)[:, last], restored[:, last])


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (50, 17)])
def test_any_size_comes_back_as_it_was(size: tuple[int, int]) -> None:
    network = awake()
    clip = frames(1, 1, 3, *size)
    with torch.inference_mode():
        restored = network(clip)
    assert restored.shape == clip.shape
    assert restored.isfinite().all()
    assert not torch.equal(restored, clip)


def test_paths_lead_through_the_pixel_from_start_to_end() -> None:
    offsets = torch.randn(1, 4, 2, 3)
    assert torch.equal(path(offsets, 0), torch.zeros(1, 2, 2, 3))
    torch.testing.assert_close(path(offsets, -1), offsets[:, :2])
    torch.testing.assert_close(path(offsets, 1), offsets[:, 2:])
    steady = torch.cat([-offsets[:, 2:], offsets[:, 2:]], dim=1)
    torch.testing.assert_close(path(steady, 0.25), 0.25 * offsets[:, 2:])


def test_a_fresh_network_changes_nothing_and_all_of_it_learns() -> None:
    fresh = M2AENet(TINY)
    clip, everything = frames(1, 3, 24, 32), torch.ones(1, 1, 24, 32)
    assert torch.equal(fresh.restore(clip, everything, everything).frames, clip)
    network = awake().train()
    network.restore(clip, everything, everything).frames.square().mean().backward()
    for name, value in network.named_parameters():
        still = name.startswith("blur.")
        assert value.requires_grad != still, name
        if not still:
            assert value.grad is not None, name
            assert value.grad.any(), name


def test_without_a_mask_everything_is_restored() -> None:
    network = seeing(awake(replace(TINY, masked=False)))
    clip = frames(1, 1, 3, 24, 24)
    clip[:, :, 0] = 0
    with torch.inference_mode():
        assert (network(clip) != clip).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 3}, "width must be even"), ({"depth": 0}, "depth"), ({"off_below": 2.0}, "off_below <= on_above")],
)
def test_contradictory_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        M2AENetConfig(**change)  # type: ignore[arg-type]


def train(pool: Path, out: Path, *more: object) -> dict[str, Any]:
    """Train a toy for three steps at most: paths alone, then with the true mask, then with the analyser's."""
    size = ["--steps", 3, "--clips", 1, "--crop", 24, "--warmup", 1, "--motion-part", 0.34, "--true-mask-part", 0.67]
    run(train_m2aenet.main, "--pool", pool, "--out", out, *size, *more)
    return load_checkpoint(out / "latest.pt")


def test_a_resumed_run_equals_an_unbroken_one(
    deblurring_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_m2aenet, "PRESETS", {"fast": TINY})
    unbroken = train(deblurring_pool, tmp_path / "unbroken")
    for step in (1, 2):
        assert train(deblurring_pool, tmp_path / "resumed", "--max-minutes", 0)["step"] == step
    resumed = train(deblurring_pool, tmp_path / "resumed")
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name
    analyser = load_analyser().state_dict()
    for name, value in analyser.items():
        assert torch.equal(unbroken["averaged"][f"blur.{name}"], value), name


def moving(pixels: float, exposure: float, acceleration: float = 0.0) -> Batch:
    """A clip of three frames whose columns of waves move to the right, blurred over the exposure.

    Args:
        pixels: Velocity at the middle frame, pixels per frame.
        exposure: Open-shutter time over frame interval.
        acceleration: Pixels per frame squared.
    """
    column = torch.arange(64.0)
    times = torch.arange(-1, 2)[:, None, None] + torch.linspace(-exposure / 2, exposure / 2, 101)[:, None]
    place = pixels * times + acceleration * times.square() / 2
    waves = 0.5 + 0.4 * torch.sin((column - place) / 3)  # (3, 101, 64)
    sharp, blurred = waves[:, 50], waves.mean(dim=1)
    hr, lr = (x[None, :, None, None].expand(1, 3, 3, 48, 64).contiguous() for x in (sharp, blurred))
    flow = torch.zeros(1, 3, 2, 2, 48, 64)
    speed = pixels + acceleration * torch.arange(-1, 2)[:, None, None]
    flow[:, :, 0, 0], flow[:, :, 1, 0] = speed + acceleration / 2, -speed + acceleration / 2
    return Batch(
        lr=lr, clean=lr, hr=hr, exposure=torch.full((1, 3), exposure), flow=flow, visible=torch.ones(1, 3, 2, 48, 64)
    )


def test_true_paths_reblur_the_sharp_frame_and_cost_nothing_either_way_round() -> None:
    known = known_frames(moving(6, 0.8))
    assert torch.allclose(known.ends[0, :, 9, 9], torch.tensor([-2.4, 0, 2.4, 0]))
    again = reblurred(known.sharp, known.ends)
    inside = (..., slice(4, -4))
    error = (again - known.clean)[inside].abs().mean()
    assert error < 0.15 * (known.sharp - known.clean)[inside].abs().mean()
    start, end = known.ends.split(2, dim=1)
    assert path_loss(known.ends, known.ends) == path_loss(torch.cat([end, start], dim=1), known.ends) == 0
    assert path_loss(torch.zeros_like(known.ends), known.ends) == pytest.approx(1.2)


@pytest.mark.parametrize("exposure", [0.4, 0.8])
def test_paths_of_accelerated_motion_are_exact_and_reblur_the_way_that_things_went(exposure: float) -> None:
    velocity, acceleration = 6.0, 4.0
    known = known_frames(moving(velocity, exposure, acceleration))
    way, bend = velocity * exposure / 2, acceleration * exposure**2 / 8
    torch.testing.assert_close(known.ends[0, :, 9, 9], torch.tensor([bend - way, 0, bend + way, 0]))
    inside = (..., slice(8, -8))

    def error(offsets: Tensor) -> float:
        return float((reblurred(known.sharp, offsets) - known.clean)[inside].abs().mean())

    assert error(known.ends) < 0.5 / 255
    assert error(known.ends) < 0.5 * error(-known.ends)


@pytest.mark.parametrize(("exposure", "on"), [(0.1, 0.0), (0.2, 1.0)])
def test_the_true_mask_begins_at_one_pixel_of_blur(exposure: float, on: float) -> None:
    assert true_mask(known_frames(moving(6, exposure)).ends).mean() == on


def test_the_training_ssim_is_that_of_the_metrics() -> None:
    truth = frames(1, 3, 40, 48)
    output = (truth + 0.1 * torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    output, truth = (image.mul(255).round() for image in (output, truth))
    expected = ssim(*(image[0].numpy().astype(np.uint8) for image in (output, truth)))
    inner = ssim_map(output / 255, truth / 255)[..., 9:-9, 9:-9]
    assert float(inner.mean()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("decibels", [None, 30.0])
def test_losses_are_least_for_a_perfect_result_and_teach_only_inside_the_mask(decibels: float | None) -> None:
    weights = Weights(
        path_weight=1, reblur_weight=1, ssim_weight=1, spectrum_weight=1,
        mask_weight=0, decibels=decibels,
    )  # fmt: skip
    truth, mask = frames(1, 3, 32, 32), patches(1, 32, 32)
    perfect = restoration_losses(truth, truth, mask, weights)
    assert set(perfect) == {"restoration", "ssim"}
    least = {"restoration": USUAL_ERROR * math.log(1e-3) if decibels else 0, "ssim": 0}
    assert {name: float(value) for name, value in perfect.items()} == pytest.approx(least, abs=1e-5)
    output = (truth * 0.9).requires_grad_()
    values = restoration_losses(output, truth, mask, weights)
    values["restoration"].backward()
    assert output.grad is not None
    assert torch.equal(output.grad.abs().amax(dim=1, keepdim=True) > 0, mask > 0)


def test_the_mask_learns_where_it_is_asked_to() -> None:
    weights = Weights(
        path_weight=0, reblur_weight=0, ssim_weight=0, spectrum_weight=0,
        mask_weight=1, decibels=None,
    )  # fmt: skip
    network = awake().train()
    network.blur.requires_grad_(True)
    batch = moving(2, 0.2)
    values = losses(network, batch, 0, weights=weights, motion_steps=0, true_mask_steps=0)
    values["mask"].backward()
    assert all(value.grad is not None and value.grad.any() for value in network.blur.heads.parameters())
    wanted = torch.full((1, 1, 4, 4), 9.0)
    assert mask_loss(wanted, torch.ones_like(wanted)) < 0.01 < 1 < mask_loss(wanted, torch.zeros_like(wanted))
