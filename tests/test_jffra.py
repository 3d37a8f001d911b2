"""JFFRA: its size and cost, its start, its attention and cost volume against plain ones, its training at toy size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import TINY_JFFRA as TINY
from tests.tiny import Multiplications, run
from tests.tiny import awake_jffra as awake
from training import train_jffra
from training.data.tasks import denoise, super_resolve
from training.run.checkpoint import load_checkpoint
from training.run.trained import trained_network
from training.run.variants import VARIANTS, LearnedOffsets, MutualAttention
from vsfmanet.errors import ConfigError, ShapeError
from vsfmanet.networks import jffra
from vsfmanet.networks.jffra import (
    FRAMES,
    JFFRA,
    PRESETS,
    SEARCH,
    WINDOW,
    JFFRAConfig,
    WindowAttention,
    cost_volume,
    initial_flow,
)
from vsfmanet.weights import load_model, parameter_count, save_model


def clip(frames: int, height: int, width: int, *, count: int = 1) -> Tensor:
    """Smooth noise (count, frames, 3, height, width) that moves by some pixels from frame to frame."""
    noise = torch.rand(count, 3, height + 40, width + 40, generator=torch.Generator().manual_seed(1))
    smooth = F.avg_pool2d(F.pad(noise, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    smooth = ((smooth - 0.5) * 4 + 0.5).clamp(0, 1)
    return torch.stack(
        [smooth[..., 3 * t : 3 * t + height, 2 * t : 2 * t + width] for t in range(frames)], dim=1
    ).contiguous()


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"), [("s", 2_313_042, 580), ("m", 3_886_998, 1006), ("l", 8_719_242, 2205)]
)
def test_sizes_and_costs_at_720p_are_those_of_the_specification(
    monkeypatch: pytest.MonkeyPatch, name: str, parameters: int, gmac: float
) -> None:
    monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")  # they cannot be counted
    network = JFFRA(PRESETS[name]).eval()
    assert parameter_count(network) == parameters
    width, middle, low = network.config.widths
    with torch.inference_mode(), Multiplications() as counter:
        network.restore(torch.rand(1, 3, 3, 64, 64))
    # Of the 256 products per pixel that a cost volume computes, the specification counts the 81 that are asked for.
    levels = ((width, 2), (middle, 4), (low, 8), (middle, 4), (width, 2))
    spared = sum(2 * (256 - 81) * channels * (64 // step) ** 2 for channels, step in levels)
    assert (counter.total - spared) * 1280 * 720 / 64**2 / 1e9 == pytest.approx(gmac, rel=0.01)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (2, 64, 30), (4, 70, 65)])
def test_a_fresh_network_returns_the_frames_it_is_given_whatever_their_size(
    frames: int, height: int, width: int
) -> None:
    given = clip(frames, height, width)
    with torch.inference_mode():
        assert torch.equal(JFFRA(TINY).eval()(given), given)


def test_a_clip_is_restored_frame_by_frame_from_mirrored_neighbours_and_from_nothing_else() -> None:
    network, given = awake(), clip(4, 20, 33)
    with torch.inference_mode():
        whole = network(given)
        mirrored = torch.cat([given[:, 1:2], given, given[:, 2:3]], dim=1)
        for t in range(4):
            alone = network.restore(mirrored[:, t : t + 3])
            torch.testing.assert_close(whole[:, t], alone)
            for near in range(3):
                other = mirrored[:, t : t + 3].clone()
                other[:, near] = 1 - other[:, near]
                assert (network.restore(other) - alone).abs().max() > 1e-3
    assert (whole - given).abs().mean() > 1e-3


def test_flow_heads_change_nothing_before_they_are_trained() -> None:
    network = awake(moving=False)
    without = JFFRA(replace(TINY, refine_flow=False)).eval()
    wanted = without.state_dict()
    without.load_state_dict({name: value for name, value in network.state_dict().items() if name in wanted})
    assert len(wanted) < len(network.state_dict())
    given = clip(3, 64, 64)
    with torch.inference_mode():
        start = network.restore(given)
        torch.testing.assert_close(start, without.restore(given))
        assert (awake().restore(given) - start).abs().max() > 1e-3


def test_a_network_that_is_told_the_flow_uses_it() -> None:
    level = awake().levels[0]
    feat = torch.rand(1, 3, 16, 1, 1).expand(-1, -1, -1, 16, 16)  # flat: warping cannot show where the flow leads
    flow = torch.zeros(1, 2, 2, 16, 16)
    with torch.inference_mode():
        told = [level(feat, flow + shift)[0] for shift in (0.0, 2.0)]
    assert (told[0] - told[1]).abs().mean() > 1e-2


def plain_volume(own: Tensor, other: Tensor) -> Tensor:
    """The cost volume as it is written."""
    height, width = own.shape[-2:]
    padded = F.pad(other, (SEARCH,) * 4)
    offsets = [(u, v) for u in range(2 * SEARCH + 1) for v in range(2 * SEARCH + 1)]
    return torch.stack([(own * padded[..., u : u + height, v : v + width]).mean(dim=1) for u, v in offsets], dim=1)


@pytest.mark.parametrize("at_once", [64 * 2**20, 1])
def test_the_cost_volume_and_its_gradient_equal_the_plain_ones(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jffra, "_VOLUME_BYTES", at_once)
    images = [torch.rand(2, 5, 16, 24, dtype=torch.float32, requires_grad=True) for _ in range(2)]
    volume, plain = cost_volume(*images), plain_volume(*images)
    torch.testing.assert_close(volume, plain)
    weight = torch.rand_like(plain)
    for own, wanted in zip(
        torch.autograd.grad((volume * weight).sum(), images),
        torch.autograd.grad((plain * weight).sum(), images),
        strict=True,
    ):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_attention_is_that_of_all_pixels_whose_window_is_the_same(shifted: bool, rows: int, columns: int) -> None:
    torch.manual_seed(0)
    attention = WindowAttention(32, shifted=shifted)
    nn.init.normal_(attention.bias)
    height, width = rows * WINDOW, columns * WINDOW
    x = torch.randn(2, FRAMES, height, width, 32)
    place = torch.cartesian_prod(torch.arange(FRAMES), torch.arange(height), torch.arange(width))
    window = (place[:, 1:] + (WINDOW // 2 if shifted else 0)) // WINDOW  # not wrapped: halves at the borders
    together = (window[:, None] == window[None]).all(dim=-1)
    t, dy, dx = (place[:, None] - place[None]).unbind(dim=-1)
    index = ((t + 2) * 15 + (dy + 7).clamp(0, 14)) * 15 + (dx + 7).clamp(0, 14)
    bias = attention.bias[index].permute(2, 0, 1).masked_fill(~together, -torch.inf)
    query, key, value = attention.to_qkv(x.flatten(1, 3)).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) / 4 + bias).softmax(dim=-1)
    expected = attention.to_out((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x).flatten(1, 3), expected, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():  # where other kernels may be chosen
        torch.testing.assert_close(attention(x).flatten(1, 3), expected, atol=1e-5, rtol=1e-4)


def test_the_initial_flow_finds_previous_and_next_at_half_size() -> None:
    flow = initial_flow(clip(3, 96, 128))  # what is at p is at p + (2, 3) in the frame before
    inside = flow[0, :, :, 8:-8, 8:-8].mean(dim=(2, 3))
    torch.testing.assert_close(inside, torch.tensor([[1.0, 1.5], [-1.0, -1.5]]), atol=0.1, rtol=0)


def test_what_is_added_to_a_neighbour_is_added_where_the_neighbour_is() -> None:
    class Level(nn.Module):
        def forward(self, feat: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            residual = torch.zeros_like(feat)
            residual[..., 10, 10] = 1  # where the middle frame sees it
            return feat, residual, flow

    flow = torch.tensor([[2.0, -3.0], [-4.0, 1.0]]).view(1, 2, 2, 1, 1).expand(1, 2, 2, 20, 20)
    added, _ = jffra._refined(Level(), torch.zeros(1, 3, 1, 20, 20), flow)
    assert added[0].nonzero().tolist() == [[0, 0, 7, 12], [1, 0, 10, 10], [2, 0, 11, 6]]
    assert added.sum() == pytest.approx(3)


def test_rescaled_flow_points_to_the_same_places() -> None:
    flow = torch.full((1, 2, 2, 8, 8), 3.0)
    assert torch.equal(jffra._rescaled(flow, 0.5), torch.full((1, 2, 2, 4, 4), 1.5))
    assert torch.equal(jffra._rescaled(flow, 2), torch.full((1, 2, 2, 16, 16), 6.0))


def test_half_precision_stays_near_single() -> None:
    network, given = awake(), clip(3, 64, 64)
    with torch.inference_mode():
        single = network.restore(given)
        half = network.to(torch.bfloat16).restore(given)
    assert half.dtype == torch.float32
    assert (half - single).abs().mean() < 0.05 * (single - given[:, 1]).abs().mean()


def test_a_weights_file_gives_the_network_again(tmp_path: Path) -> None:
    network, given = awake(), clip(3, 64, 64)
    save_model(network, tmp_path / "toy.safetensors")
    loaded = load_model(str(tmp_path / "toy.safetensors")).network
    assert isinstance(loaded, JFFRA)
    assert loaded.config == TINY
    with torch.inference_mode():
        torch.testing.assert_close(loaded.restore(given), network.restore(given), atol=0.01, rtol=0)  # stored as fp16


def test_impossible_sizes_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"width": 17}, {"width": 14}, {"width": 56}, {"flow_width": 5}]
    for sizes in [*wrong, {"depth": 0}, {"bottom_depth": 0}]:
        with pytest.raises(ConfigError, match=next(iter(sizes))):
            replace(TINY, **sizes)
    with pytest.raises(ShapeError, match="H >= 8"):
        JFFRA(TINY)(torch.rand(1, 2, 3, 7, 30))


def train(pool: Path, out: Path, *more: object) -> dict[str, Any]:
    """Train a toy for three steps at most; returns the checkpoint."""
    size = ["--preset", "xs", "--steps", 3, "--clips", 1, "--crop", 64, "--warmup", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "xs", replace(TINY, depth=1, bottom_depth=1))
        run(train_jffra.main, "--pool", pool, "--out", out, *size, *more)
    return load_checkpoint(out / "latest.pt")


def test_training_moves_everything_and_a_resumed_run_equals_an_unbroken_one(
    deblurring_pool: Path, tmp_path: Path
) -> None:
    unbroken = train(deblurring_pool, tmp_path / "unbroken")
    for step in (1, 2):
        assert train(deblurring_pool, tmp_path / "resumed", "--max-minutes", 0)["step"] == step
    resumed = train(deblurring_pool, tmp_path / "resumed")
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name
    torch.manual_seed(0)
    start = JFFRA(JFFRAConfig(**unbroken["config"])).state_dict()
    assert start.keys() == unbroken["network"].keys()
    assert [name for name, value in start.items() if torch.equal(value, unbroken["network"][name])] == []


def test_the_ablations_train_without_what_they_leave_out(deblurring_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--frames must be at least 4, got 3"):
        train(deblurring_pool, tmp_path, "--frames", 3)
    state = train(deblurring_pool, tmp_path, "--no-refinement", "--temporal-weight", 0, "--frames", 3, "--steps", 1)
    assert not state["config"]["refine_flow"]
    assert not any("flow_head" in name for name in state["network"])


@pytest.mark.parametrize("name", ["mutual_attention", "learned_offsets"])
def test_a_variant_of_the_paper_trains_and_is_built_again_but_not_exported(
    name: str, deblurring_pool: Path, tmp_path: Path
) -> None:
    state = train(deblurring_pool, tmp_path / "run", "--variant", name)
    network = trained_network(state)
    assert type(network) is VARIANTS[name]
    assert not any("costs" in key or "context" in key or "flow_feat" in key for key in state["network"])
    assert any("flow_head" in key for key in state["network"]) == (name == "learned_offsets")
    with pytest.raises(ConfigError, match="evaluate the checkpoint"):
        network.deployed_form()
    with pytest.raises(ConfigError, match="no flow to refine"):
        train(deblurring_pool, tmp_path / "none", "--variant", name, "--no-refinement")


def test_the_variants_begin_without_motion_and_offsets_are_learned() -> None:
    torch.manual_seed(0)
    frames = clip(FRAMES, 64, 64)
    network: JFFRA
    for make in (MutualAttention, LearnedOffsets):
        network = make(TINY)
        assert not network.first_flow(frames).any()
        assert torch.equal(network.restore(frames), frames[:, 1])  # as every fresh network
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.02 * torch.randn_like(value))
    network.restore(frames).sum().backward()
    heads = [value for key, value in network.named_parameters() if "flow_head" in key]
    assert heads
    assert all(value.grad is not None and value.grad.any() for value in heads)


def test_other_tasks_give_noise_or_less_resolution() -> None:
    sharp = clip(4, 32, 32, count=64)
    noisy = denoise(sharp, sharp, torch.Generator().manual_seed(0), sigma=(10, 50))
    deviation = (noisy - sharp).std(dim=(1, 2, 3, 4)) * 255
    assert 9 < deviation.min() < 15
    assert 45 < deviation.max() < 51
    reduced = super_resolve(sharp, sharp, torch.Generator())
    assert reduced.shape == sharp.shape
    assert 0.001 < (reduced - sharp).abs().mean() < 0.1
    plain = torch.full((1, 2, 3, 16, 16), 0.4)
    torch.testing.assert_close(super_resolve(plain, plain, torch.Generator()), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["denoise", "super_resolve"])
def test_another_task_is_trained_and_reported(
    task: str, deblurring_pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(deblurring_pool, tmp_path / "run", "--task", task)
    report = re.findall(r"5:\d ([\d.]+) of ([\d.]+)", capsys.readouterr().out)
    assert len(report) == 5
    inputs = {float(given) for _, given in report}
    assert len(inputs) == 1  # exposures play no part
