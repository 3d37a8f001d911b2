"""MMP-RNN against its published size, its own parts against known answers, and its training at toy size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.fakes import ListSource
from tests.tiny import TINY_MMPRNN as TINY
from tests.tiny import awake_mmprnn as awake
from tests.tiny import run
from training import train_mmprnn
from training.data.pool import Batch, Pool, moving
from training.losses.frames import charbonnier, decibel_loss
from training.run.checkpoint import load_checkpoint, save_checkpoint
from training.train_mmprnn import build, losses
from vsfmanet.engines.transfers import Transfers
from vsfmanet.errors import ConfigError
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig, fold
from vsfmanet.networks.mmprnn import MMPRNN, PRESETS
from vsfmanet.streams.windows import WindowStreams
from vsfmanet.tiling import MemoryPlan
from vsfmanet.weights import parameter_count


def clip(frames: int, height: int = 16, width: int = 20, clips: int = 1) -> Tensor:
    return torch.rand(clips, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "parameters", "with_attention", "gigamacs"),
    [
        ("a3b4c16", 1_973_856, 1_994_281, 128.2),
        ("a8b9c18", 3_757_082, 3_782_760, 237.1),
        ("a9b10c18", 4_054_262, 4_079_940, 254.2),
    ],
)
def test_parameters_and_cost_are_those_of_the_specification(
    name: str, parameters: int, with_attention: int, gigamacs: float
) -> None:
    config = replace(PRESETS[name], prior="speed")
    with torch.device("meta"):
        assert parameter_count(MMPRNN(config)) == parameters
        assert parameter_count(MMPRNN(replace(config, fusion_attention=True))) == with_attention
    with FakeTensorMode(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network = MMPRNN(config).eval()
        features, _ = network.encode(torch.empty(1, 3, 720, 1280), None)
        network.decode([features] * 5)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigamacs, rel=1e-3)


@pytest.mark.parametrize("prior", ["extent", "speed", "none"])
def test_a_fresh_network_returns_its_input(prior: Literal["extent", "speed", "none"]) -> None:
    frames = clip(2, 9, 13)
    with torch.inference_mode():
        torch.testing.assert_close(MMPRNN(replace(TINY, prior=prior)).eval()(frames), frames, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (1, 9, 13), (3, 17, 10)])
def test_frames_of_any_size_and_clips_of_any_length_are_restored(frames: int, height: int, width: int) -> None:
    lr = clip(frames, height, width, clips=2)
    with torch.inference_mode():
        restored = awake(TINY)(lr)
    assert restored.shape == lr.shape
    assert restored.isfinite().all()
    assert (restored - lr).abs().mean() > 0.01


def test_filling_up_to_a_multiple_repeats_the_border() -> None:
    network, frames = awake(TINY), clip(1, 18, 30)  # the prior fills up to 16s, and so by the same pixels
    filled = torch.nn.functional.pad(frames[0], (0, 2, 0, 2), mode="replicate")[None]
    with torch.inference_mode():
        torch.testing.assert_close(network(frames), network(filled)[..., :18, :30], atol=1e-5, rtol=0)


CHANGES: dict[str, Any] = {
    "cell_blocks": 2,
    "decoder_blocks": 2,
    "width": 6,
    "fusion_attention": True,
    "prior": "none",
    "prior_width": 6,
}


@pytest.mark.parametrize("field", list(CHANGES))
def test_every_setting_moves_the_network(field: str) -> None:
    with torch.inference_mode():
        before, after = (awake(replace(TINY, **changes))(clip(3)) for changes in ({}, {field: CHANGES[field]}))
    assert not torch.allclose(before, after)


def test_the_clips_of_a_batch_do_not_see_each_other() -> None:
    network, frames = awake(replace(TINY, fusion_attention=True)), clip(3, clips=2)
    with torch.inference_mode():
        torch.testing.assert_close(network(frames)[1:], network(frames[1:]), atol=1e-5, rtol=0)


def test_a_frame_depends_on_all_before_it_and_on_two_after_it() -> None:
    network, frames = awake(TINY), clip(9)

    def restored_with_change_at(t: int) -> Tensor:
        changed = frames.clone()
        changed[:, t] = 1 - changed[:, t]
        with torch.inference_mode():
            return (network(changed) - network(frames)).abs().amax(dim=(0, 2, 3, 4))

    moved = restored_with_change_at(4)
    assert (moved[:2] == 0).all()
    assert (moved[2:] > 1e-6).all()


def test_a_stream_gives_the_frames_of_the_whole_clip_and_a_frame_depends_on_its_number_alone() -> None:
    network, frames = awake(TINY), clip(35, 8, 8)
    streams = WindowStreams(network, Transfers(torch.device("cpu")), plan=MemoryPlan())
    source = ListSource(frames=list(frames[0]))
    with torch.inference_mode():
        first = {restored.index: restored.frame for restored in streams.open(source, 0)}
        torch.testing.assert_close(first[31], network(frames)[0, 31], atol=1e-5, rtol=0)
        state, features = None, []
        for t in (
            *range(24, 35),
            33,
            32,
        ):  # the state is built up by 24 ... 31; behind the last frame they are mirrored
            encoded, state = network.encode(frames[:, t], state)
            features.append(encoded)
        rebuilt = network.decode(features[8:])[0]
        later = [next(iter(streams.open(source, n))).frame for n in (34, 33, 32, 7)]
    assert list(first) == list(range(32))
    assert torch.equal(later[0], rebuilt)
    assert torch.equal(later[3], first[7])
    with torch.inference_mode():
        in_order = [restored.frame for restored in streams.open(source, 32)]
    assert all(torch.equal(*pair) for pair in zip(in_order, reversed(later[:3]), strict=True))


def test_more_motion_changes_what_is_restored() -> None:
    network, frames = awake(TINY), clip(3)
    with torch.inference_mode():
        before = network(frames)
        assert isinstance(network.prior, BlurAnalyser)
        assert network.prior.heads.bias is not None
        network.prior.heads.bias += 2
        assert (network(frames) - before).abs().max() > 1e-4


@pytest.mark.parametrize("prior", ["extent", "speed"])
def test_the_prior_stays_as_it_is_while_the_rest_trains(prior: Literal["extent", "speed"]) -> None:
    network = awake(replace(TINY, prior=prior)).train()
    assert network.prior is not None
    assert network.training
    assert not any(module.training for module in network.prior.modules())
    before = {name: value.clone() for name, value in network.prior.state_dict().items()}
    network(clip(2)).mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.prior.state_dict().items())
    for name, value in network.named_parameters():
        assert (value.grad is None) == name.startswith("prior."), name


@pytest.mark.parametrize("prior", ["extent", "speed"])
def test_the_prior_of_a_restored_frame_has_a_gradient(prior: Literal["extent", "speed"]) -> None:
    network = awake(replace(TINY, prior=prior)).train()
    frames = clip(1)[0].requires_grad_()
    magnitude = network.motion_magnitude(frames)
    assert magnitude.shape == (1, 1, 16, 20)
    assert ((magnitude > 0) & (magnitude < 1)).all()
    magnitude.mean().backward()
    assert frames.grad is not None
    assert frames.grad.abs().sum() > 0


def test_losses_are_their_definitions_and_the_motion_counts_by_its_weight() -> None:
    network = awake(TINY).train()
    lr = clip(2)
    batch = Batch(lr=lr, clean=lr, hr=clip(2).flip(-1), exposure=lr, flow=lr, visible=lr)
    colours = torch.zeros(1, 1, 3, 4, 4)
    assert float(charbonnier(colours + torch.tensor([0.2, 0.1, 0.2])[:, None, None], colours)) == pytest.approx(
        0.3, abs=1e-5
    )
    with torch.no_grad():
        values, heavy, without = (
            losses(network, batch, 1, motion_weight=weight, decibels=None) for weight in (0.5, 1.0, 0.0)
        )
        assert set(values) == {"colours", "gradient", "motion"}
        assert set(without) == {"colours", "gradient"}
        by_decibels = losses(network, batch, 1, motion_weight=0.0, decibels=40.0)
        torch.testing.assert_close(by_decibels["colours"], decibel_loss(network(lr), batch.hr, most=40.0))
        torch.testing.assert_close(values["motion"], network.motion_magnitude(network(lr)[:, 1]).mean() / 2)
        torch.testing.assert_close(heavy["motion"], 2 * values["motion"])


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="prior must be extent, speed or none, got 'flow'"):
        replace(TINY, prior="flow")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width must be a whole number of at least 2, got 1"):
        replace(TINY, width=1)


@pytest.fixture(scope="module")
def blur(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a blur analyser."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("mmprnn") / "blur.pt"
    save_checkpoint(path, {"averaged": BlurAnalyser(BlurConfig(width=4)).state_dict(), "config": {"width": 4}})
    return path


@pytest.fixture
def train(deblurring_pool: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Train a toy for three steps at most; returns the checkpoint."""
    monkeypatch.setattr(train_mmprnn, "PRESETS", {"a3b4c16": TINY})

    def train(out: Path, *more: object) -> dict[str, Any]:
        size = ["--steps", 3, "--clips", 2, "--frames", 3, "--crop", 16, "--warmup", 1]
        run(train_mmprnn.main, "--pool", deblurring_pool, "--out", out, *size, *more)
        return load_checkpoint(out / "latest.pt")

    return train


@pytest.mark.parametrize("how", [[], ["--muon", 0.01, "--decibels", 50]])
def test_a_resumed_run_equals_an_unbroken_one_and_the_prior_stays(
    how: list[object],
    blur: Path,
    train: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--prior", blur, "--degrade", 0.5, *how]
    unbroken = train(tmp_path / "unbroken", *more)
    assert "PSNR in dB on 1 sequences never trained on, of their input: 5:1 " in capsys.readouterr().out
    for step in (1, 2):
        assert train(tmp_path / "resumed", "--max-minutes", 0, *more)["step"] == step
    resumed = train(tmp_path / "resumed", *more)
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name

    analyser = BlurAnalyser(BlurConfig(width=4))
    analyser.load_state_dict(load_checkpoint(blur)["averaged"])
    with torch.no_grad():
        start = partial(build, TINY, fold(analyser))
    torch.manual_seed(0)
    for name, value in start().state_dict().items():
        assert torch.equal(value, unbroken["network"][name]) == name.startswith("prior."), name
    with pytest.raises(ConfigError, match=r"was begun with config .*; name another --out"):
        train(tmp_path / "resumed", "--without-prior")
    begun = load_checkpoint(tmp_path / "resumed" / "latest.pt")
    torch.save({**begun, "kind": "jffra"}, tmp_path / "resumed" / "latest.pt")
    with pytest.raises(ConfigError, match="was begun with kind jffra, got mmprnn"):
        train(tmp_path / "resumed", *more)
    torch.save({name: begun[name] for name in begun if name != "kind"}, tmp_path / "resumed" / "latest.pt")
    with pytest.raises(ConfigError, match="was begun with kind None, got mmprnn"):  # by train_restoration
        train(tmp_path / "resumed", *more)


def test_the_ablation_has_no_prior(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    state = train(tmp_path, "--without-prior")
    assert state["kind"] == "mmprnn"
    assert state["config"]["prior"] == "none"
    assert not any("prior" in name or "gate" in name for name in state["network"])


def test_a_run_can_keep_to_sequences_of_some_speed(deblurring_pool: Path, tmp_path: Path) -> None:
    pool = Pool(deblurring_pool)
    flows = [np.asarray(pool.sequence(n).flow[:, 0, :, ::4, ::4], dtype=np.float32) for n in range(3)]
    speeds = [float(np.median(np.hypot(flow[:, 0], flow[:, 1]))) for flow in flows]
    slow, middle, fast = sorted(range(3), key=lambda n: speeds[n])
    assert moving(pool, range(3), speeds[middle], speeds[fast] + 1) == sorted([middle, fast])
    assert moving(pool, [slow], 0, speeds[middle]) == [slow]
    with pytest.raises(ConfigError, match=r"--speed 900 1000 leaves none of 3 sequences; widen it"):
        moving(pool, range(3), 900, 1000)
    with pytest.raises(ConfigError, match=r"--speed 900 1000 leaves none"):
        run(train_mmprnn.main, "--pool", deblurring_pool, "--out", tmp_path, "--speed", 900, 1000)
