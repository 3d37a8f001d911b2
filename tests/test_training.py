"""The training scripts end to end at toy size, and their parts against known answers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter

from tests.tiny import TINY, run
from training import (
    export,
    plot_curves,
    render_pool,
    train_degradation,
    train_extractor,
    train_path,
    train_restoration,
)
from training.data.exposure_crops import true_blur
from training.data.pool import Batch, Pool
from training.losses.contrast import supervised_contrastive
from training.losses.degradation import degradation_loss, image_flow_loss, reblur_loss
from training.losses.frames import USUAL_ERROR, decibel_loss, harm_loss, temporal_loss
from training.metrics.exposure import nearest_neighbour_confusion, random_folds
from training.run.architectures import ARCHITECTURES, Architecture, build
from training.run.batches import ahead, guided_batch, panels
from training.run.checkpoint import AveragedWeights, load_checkpoint, save_checkpoint
from training.run.fmanetpp import setting
from training.run.loop import Run
from training.run.muon import MatrixSteps
from training.run.options import FMANetPPOptions, RunOptions
from training.run.schedule import learning_rate_factor
from training.run.trained import trained_network
from training.run.workers import autocast, join_workers
from training.train_degradation import filtered_along, rebuilt_errors
from training.train_restoration import ramp
from vsfmanet.errors import ConfigError, SourceError
from vsfmanet.manifest import list_models
from vsfmanet.networks.exposure_extractor import ExposureExtractor
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.weights import load_model


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_cpus_without_bf16_train_in_fp32(has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.run.workers.has_fast_bf16", lambda: has_bf16)
    with autocast("cpu"):
        assert F.conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 3, 3)).dtype == dtype


@pytest.fixture(scope="module")
def stage_1(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy pool, and an extractor trained on it for three steps."""
    folder = tmp_path_factory.mktemp("training")
    pool, extractor = folder / "pool", folder / "extractor.pt"
    many = ["--count", 12, "--size", 64, "--frames", 4, "--workers", 1]
    run(render_pool.main, "--photos", photos, "--out", pool, *many)
    size = ["--steps", 3, "--crops", 2, "--crop", 16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.data.exposure_crops.MIN_MOTION", 0.0)
        patch.setattr(train_extractor, "HELD_OUT", 4)
        run(train_extractor.main, "--pool", pool, "--out", extractor, *size)
    return pool, extractor


def train(stage_1: tuple[Path, Path], out: Path, *more: object) -> dict[str, Any]:
    """Train a toy for three steps at most; returns the checkpoint."""
    pool, extractor = stage_1
    size = ["--steps", 3, "--clips", 1, "--frames", 2, "--crop", 8, "--warmup", 1]
    begin = [] if "--start-from" in more else ["--extractor", extractor]
    run(train_restoration.main, "--pool", pool, *begin, "--out", out, *size, *more)
    return load_checkpoint(out / "latest.pt")


def test_a_resumed_run_equals_an_unbroken_one(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    more = ["--temporal-weight", 0.2, "--reblur-weight", 0.1, "--degrade", 0.5, "--degradation-frames", 2]
    unbroken = train(stage_1, tmp_path / "unbroken", *more)
    for step in (1, 2):
        assert train(stage_1, tmp_path / "resumed", "--max-minutes", 0, *more)["step"] == step
    resumed = train(stage_1, tmp_path / "resumed", "--pool-on-device", *more)
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name


def test_stage_2_trains_netd_alone_reports_and_gives_stage_3_its_start(
    stage_1: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, extractor = stage_1
    size = ["--steps", 2, "--clips", 1, "--frames", 2, "--crop", 16, "--warmup", 1, "--degrade", 1]
    options = ["--pool", pool, "--extractor", extractor, "--out", tmp_path / "netd", *size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_degradation, "HELD_OUT", 4)
        patch.setattr(train_degradation, "REPORT_CLIPS", 2)
        run(train_degradation.main, *options)
    assert "rebuilt frames of 2 clips never trained on: " in capsys.readouterr().out
    state = load_checkpoint(tmp_path / "netd" / "latest.pt")
    torch.manual_seed(0)
    start = FMANetPP(preset("fast")).state_dict()
    for name, value in state["network"].items():
        if name.startswith("restoration."):
            assert torch.equal(value, start[name]), name
    for name in ("degradation.to_kernels.weight", "degradation.stem.0.weight"):
        assert not torch.equal(state["network"][name], start[name]), name

    slow = ["--learning-rate", 1e-9, "--degradation", tmp_path / "netd" / "latest.pt"]
    began = train(stage_1, tmp_path / "joint", *slow)["network"]
    for name in ("degradation.to_kernels.weight", "degradation.stem.0.weight"):
        torch.testing.assert_close(began[name], state["averaged"][name], atol=1e-6, rtol=0)


def test_the_parts_of_the_path_branch_train_alone_and_give_stage_3_its_start(
    stage_1: tuple[Path, Path], tmp_path: Path
) -> None:
    small = {"path_blocks": 1, "width": 8, "feed_forward_width": 8, "dense_growth": 4}
    sizes = ["--preset", "path", "--scale", 4, "--set", *(f"{name}={value}" for name, value in small.items())]
    size = ["--pool", stage_1[0], *sizes, "--steps", 2, "--clips", 1, "--crop", 16, "--warmup", 1]
    torch.manual_seed(0)
    start = FMANetPP(replace(preset("path"), **small)).state_dict()  # type: ignore[arg-type]
    parts = {"branch": "restoration.path.", "exposure": "restoration.blur_path.shutter."}
    taken: list[object] = []
    learned: dict[str, torch.Tensor] = {}
    for part, prefix in parts.items():
        run(train_path.main, "--part", part, *size, "--out", tmp_path / part, "--learning-rate", 1e-3)
        taken += ["--take", tmp_path / part / "latest.pt"]
        state = load_checkpoint(tmp_path / part / "latest.pt")
        moved = {name for name, value in state["network"].items() if not torch.equal(value, start[name])}
        assert moved
        assert all(name.startswith(prefix) for name in moved)
        learned |= {name: value for name, value in state["averaged"].items() if name.startswith(prefix)}
    began = train(stage_1, tmp_path / "joint", *sizes, "--learning-rate", 1e-9, *taken)["network"]
    for name, value in learned.items():
        torch.testing.assert_close(began[name], value, atol=1e-6, rtol=0)
    texts = ["--name", "fmanetpp_x4_toy", "--description", "a toy", "--data", "noise", "--command", "pytest"]
    run(export.main, tmp_path / "joint" / "latest.pt", "--models", tmp_path, *texts)
    model = ["--start-from", tmp_path / "fmanetpp_x4_toy.safetensors", *taken]
    beside = train(stage_1, tmp_path / "beside", *sizes, "--learning-rate", 1e-9, *model)["network"]
    for name, value in learned.items():
        expected = 0 * value if name.startswith("restoration.path.body.3.") else value
        torch.testing.assert_close(beside[name], expected, atol=1e-6, rtol=0)
    alone = train(stage_1, tmp_path / "alone", *sizes, "--learning-rate", 1e-3, "--only-path", *taken)["network"]
    moved = {name for name, value in alone.items() if not torch.allclose(value, began[name], rtol=0, atol=1e-6)}
    assert {name.split(".")[1] for name in moved} == {"path", "blur_path"}
    with pytest.raises(ConfigError, match="add --path-width"):
        train(stage_1, tmp_path / "without", "--only-path")
    with pytest.raises(ConfigError, match="of the same sizes"):
        train(stage_1, tmp_path / "other", "--preset", "path", *taken)
    with pytest.raises(ConfigError, match="add --path-width"):
        run(train_path.main, "--part", "branch", "--pool", stage_1[0], "--out", tmp_path / "none", "--steps", 1)
    with pytest.raises(ConfigError, match="3 frames"):
        run(train_path.main, "--part", "branch", *size, "--out", tmp_path / "four", "--frames", 4)
    with pytest.raises(ConfigError, match="a branch to --take"):
        run(train_path.main, "--part", "exposure", *size, "--out", tmp_path / "five", "--restored", 0.3)


def test_the_exposure_to_restore_by_is_learned_from_restored_frames(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    small = ["path_blocks=1", "width=8", "feed_forward_width=8", "dense_growth=4"]
    size = ["--pool", stage_1[0], "--preset", "path", "--scale", 4, "--set", *small, "--clips", 1, "--crop", 16]
    size += ["--warmup", 1, "--learning-rate", 1e-3]
    branch, caution = tmp_path / "branch", "restoration.blur_path.shutter.verdict.4.bias"
    run(train_path.main, "--part", "branch", *size, "--steps", 2, "--out", branch)
    moved = {}
    for weight in (0, 3):
        out = tmp_path / str(weight)
        options = ["--part", "exposure", *size, "--steps", 1, "--out", out, "--take", branch / "latest.pt"]
        run(train_path.main, *options, "--restored", weight)
        state = load_checkpoint(out / "latest.pt")
        trained = load_checkpoint(branch / "latest.pt")["averaged"]
        for name, value in trained.items():
            if name.startswith("restoration.path."):
                torch.testing.assert_close(state["network"][name], value, rtol=0, atol=0)
        moved[weight] = float(state["network"][caution][1])
    assert moved[0] == 0  # nothing but restored frames has a say in the caution
    assert moved[3] != 0


PAPER = ["--degradation-frames", 0, "--known-exposure", 0, "--exposure-mode", "constant", "--decay", 0]
PAPER += ["--halve-at", 0.7, 0.85, 0.95, "--flow-weight", 1e-4]
ABLATIONS = {
    "without ETE": ["exposure_aware=false"],
    "other capacity": ["exposure_aware=false", "width=24", "feed_forward_width=20"],
    "one block": ["num_blocks=1"],
    "guidance by modulation": ["guidance=sft"],
    "one flow": ["num_flows=1"],
}


def tiny_extractor(folder: Path) -> Path:
    """An untrained extractor of `TINY`."""
    extractor = ExposureExtractor(TINY.extractor_width, TINY.extractor_blocks)
    begun = {"anchors": torch.zeros(5, extractor.embed_width), "reading_temperature": torch.tensor(0.1)}
    save_checkpoint(folder / "extractor.pt", begun | {"extractor": extractor.state_dict()})
    return folder / "extractor.pt"


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_of_the_paper_trains_and_is_built_again_from_its_checkpoint(
    name: str, stage_1: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run.fmanetpp.preset", lambda name, scale: TINY)
    state = train((stage_1[0], tiny_extractor(tmp_path)), tmp_path / "run", *PAPER, "--set", *ABLATIONS[name])
    network = trained_network(state)
    wanted = replace(TINY, **dict(map(setting, ABLATIONS[name])))
    assert network.config == wanted != TINY
    start = FMANetPP(wanted).state_dict()
    assert state["network"].keys() == start.keys()
    assert state["network"]["restoration.upsampler.2.weight"].any()  # zero at the start


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_of_the_paper_trains_and_is_built_again_but_not_exported(
    name: Architecture, stage_1: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run.fmanetpp.preset", lambda name, scale: TINY)
    state = train((stage_1[0], tiny_extractor(tmp_path)), tmp_path / "run", *PAPER, "--architecture", name)
    network = trained_network(state)
    assert type(network) is ARCHITECTURES[name]
    assert network.restored(torch.rand(1, 2, 3, 8, 8)).shape == (1, 2, 3, 8 * TINY.scale, 8 * TINY.scale)
    if name == "frame_difference":
        start = {key: value for key, value in build(TINY, name).state_dict().items() if key.startswith("reader.")}
        assert any(not torch.equal(state["network"][key], value) for key, value in start.items())
    with pytest.raises(ConfigError, match="evaluate the checkpoint"):
        network.deployed_form()


@pytest.mark.parametrize(
    ("name", "seen"), [(None, range(3, 8)), ("sliding_window", range(3, 8)), ("recurrent", range(8))]
)
def test_what_a_frame_sees_of_others_depends_on_the_architecture(name: Architecture | None, seen: range) -> None:
    """A frame of one block each in NetD and NetR; with two blocks each, only a window keeps the same reach."""
    torch.manual_seed(0)
    blocks = 2 if name == "sliding_window" else 1
    network = build(replace(TINY, num_blocks=blocks), name).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
        lr = torch.rand(1, 10, 3, 8, 8)
        whole = network.restored(lr)[0, 5]
        found = []
        for t in range(10):
            other = lr.clone()
            other[0, t] = 1 - other[0, t]
            if not torch.allclose(network.restored(other)[0, 5], whole, rtol=0, atol=1e-6):
                found.append(t)
    assert found == list(seen)


def test_a_recurrent_pass_keeps_to_scenes() -> None:
    torch.manual_seed(0)
    network = build(TINY, "recurrent").eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
        lr = torch.rand(1, 6, 3, 8, 8)
        both = network.restored(lr, scene_starts=[2])
        parts = [network.restored(lr[:, :2]), network.restored(lr[:, 2:])]
    torch.testing.assert_close(both, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)


def test_a_setting_that_the_network_has_not_is_refused(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    for text, message in (("colour=red", r"got colour; name"), ("num_flows=many", "num_flows must be a whole number")):
        with pytest.raises(ConfigError, match=message):
            train(stage_1, tmp_path, "--set", text)


def test_the_paper_rebuilds_all_frames_and_gives_no_exposure(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    options = FMANetPPOptions(
        out=tmp_path, pool=stage_1[0], clips=2, frames=3, crop=8, degradation_frames=0, known_exposure=0
    )
    batch, exposure, rebuilt = guided_batch(Pool(stage_1[0]), options, np.random.default_rng(0), "cpu")
    assert rebuilt.tolist() == [[clip, t] for clip in range(2) for t in range(3)]
    assert exposure.shape == batch.exposure.shape
    assert exposure.isnan().all()


def test_the_plain_filter_looks_at_no_flow() -> None:
    torch.manual_seed(0)
    network = FMANetPP(preset("fast", 2)).eval()
    still, moving = rebuilt_errors(network, sliding_batch(2), plain=True)[0], sliding_batch(2)
    flow = filtered_along(torch.randn(1, 3, 2, 3, 16, 16), plain=True)
    assert not flow[:, :, :, :2].any()
    assert (flow[:, :, :, 2].sigmoid() > 0.999).all()
    with_flow = rebuilt_errors(network, moving)[0]
    assert still.shape == with_flow.shape
    assert not torch.equal(still, with_flow)


@pytest.mark.parametrize(
    "weights", [{"class-weight": 0}, {"contrast-weight": 0}, {"contrast-weight": 0, "class-weight": 0}]
)
def test_an_extractor_learns_by_each_objective_of_the_paper(
    weights: dict[str, float], stage_1: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.exposure_crops.MIN_MOTION", 0.0)
    monkeypatch.setattr(train_extractor, "HELD_OUT", 4)
    given = [word for name, value in weights.items() for word in (f"--{name}", value)]
    size = ["--steps", 2, "--crops", 2, "--crop", 16, "--ordinal-weight", 1]
    run(train_extractor.main, "--pool", stage_1[0], "--out", tmp_path / "extractor.pt", *size, *given)
    learnt = load_checkpoint(tmp_path / "extractor.pt")["extractor"]
    torch.manual_seed(0)
    start = ExposureExtractor(preset("fast").extractor_width, preset("fast").extractor_blocks).state_dict()
    assert not torch.equal(learnt["stem.0.weight"], start["stem.0.weight"])


SECOND_PROCESS = """
import sys
import threading
from training import train_restoration
from training.run import checkpoint, loop
def close(run, leave=loop.Run.close):
    checkpoint.save_checkpoint(run.options.out / "second.pt", run.network.state_dict())
    leave(run)
loop.Run.close = close
train_restoration.main()
"""


def test_two_processes_with_batches_of_their_own_train_one_network(
    stage_1: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, extractor = stage_1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets; this process is the first of the two.
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    size = ["--steps", 3, "--clips", 1, "--frames", 2, "--crop", 8, "--warmup", 1, "--max-minutes", 5]
    options = ["--pool", pool, "--extractor", extractor, "--out", tmp_path, *size]
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND_PROCESS, *map(str, options)], env={**os.environ, "RANK": "1"}
    )
    try:
        run(train_restoration.main, *options)
        assert second.wait(timeout=60) == 0
    finally:
        second.kill()
    both, theirs = load_checkpoint(tmp_path / "latest.pt"), load_checkpoint(tmp_path / "second.pt")
    assert both["step"] == 3
    for name, value in both["network"].items():
        assert torch.equal(value, theirs[name]), name
    monkeypatch.delenv("WORLD_SIZE")
    alone = train(stage_1, tmp_path / "alone")["network"]
    assert not torch.equal(alone["restoration.stem.0.weight"], both["network"]["restoration.stem.0.weight"])


def test_training_moves_all_but_the_frozen_extractor(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    state = train(stage_1, tmp_path)["network"]
    frozen = load_checkpoint(stage_1[1])
    for name, value in frozen["extractor"].items():
        assert torch.equal(state[f"extractor.{name}"], value), name
    assert torch.equal(state["anchors"], frozen["anchors"])
    assert state["restoration.upsampler.2.weight"].any()  # zero at the start


def test_a_checkpoint_becomes_a_shipped_model(
    stage_1: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(stage_1, tmp_path / "run")
    rows = [
        {"method": method, "scene": scene, "condition": "5_1", "psnr": psnr, "ssim": 0.5, "tof": 1.0, "opw": 1.0}
        for method, scene, psnr in [
            ("ours", "a", 30.0),
            ("ours", "b", 31.0),
            ("bicubic", "a", 28.0),
            ("lanczos", "a", 1),
        ]
    ]
    (tmp_path / "scores.json").write_text(json.dumps(rows))
    arguments = [tmp_path / "run" / "latest.pt", "--models", tmp_path / "models", "--scores", tmp_path / "scores.json"]
    texts = ["--description", 'a "toy"', "--data", "noise", "--command", "pytest"]
    for name in ("fmanetpp_x4_a", "fmanetpp_x4_b", "fmanetpp_x4_a"):  # the third replaces the first
        run(export.main, *arguments, "--name", name, *texts)

    monkeypatch.setattr("vsfmanet.manifest.models_folder", lambda: tmp_path / "models")
    first, second = list_models()
    assert (first.name, second.name) == ("fmanetpp_x4_a", "fmanetpp_x4_b")
    assert first.description == 'a "toy"'
    assert first.scores["psnr_5_1"] == 30.5
    assert first.scores["bicubic_psnr_5_1"] == 28.0
    assert load_model("fmanetpp_x4_b").network.deployed
    entry = tomllib.loads((tmp_path / "models" / "manifest.toml").read_text())["model"][0]
    assert entry["steps"] == 3


def test_supervised_contrast_equals_a_case_worked_by_hand() -> None:
    embed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # the third has no partner, so it is no anchor
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))  # own pair: 1 / 0.5; the other: 0
    assert supervised_contrastive(embed, torch.tensor([0, 0, 1])).item() == pytest.approx(expected)


def test_contrast_falls_as_levels_part() -> None:
    label = torch.arange(5).repeat_interleave(3)
    mixed = F.normalize(torch.randn(15, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    parted = F.one_hot(label, 8).float()
    assert supervised_contrastive(parted, label) < supervised_contrastive(mixed, label)


def test_flow_is_judged_only_where_the_pixel_can_be_found() -> None:
    flow, visible = torch.zeros(1, 1, 2, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)
    estimate = torch.full((1, 1, 2, 3, 2, 2), 9.0)
    visible[0, 0, 0, 0, 0] = 1
    estimate[0, 0, 0, :2, 0, 0] = torch.tensor([1.0, -3.0])
    assert image_flow_loss(estimate, flow, visible).item() == 2
    assert image_flow_loss(estimate, flow, torch.zeros_like(visible)).item() == 0


def sliding_batch(shift: int, frames: int = 3, scale: int = 2, size: int = 16) -> Batch:
    """One clip of noise that moves left by `shift` LR pixels a frame, with its exact flow; nothing is blurred."""
    wide = torch.rand(3, scale * size, scale * (size + shift * frames), generator=torch.Generator().manual_seed(0))
    hr = torch.stack([wide[..., scale * shift * t :][..., : scale * size] for t in range(frames)])[None]
    flow, visible = torch.zeros(1, frames, 2, 2, size, size), torch.ones(1, frames, 2, size, size)
    flow[:, :-1, 0, 0], flow[:, 1:, 1, 0] = -shift, shift
    lr = F.avg_pool2d(hr[0], scale)[None]
    return Batch(lr=lr, clean=lr, hr=hr, exposure=torch.ones(1, frames), flow=flow, visible=visible)


@pytest.mark.parametrize("shift", [0, 2])
def test_the_temporal_loss_sees_flicker_but_neither_motion_nor_what_is_occluded(shift: int) -> None:
    batch = sliding_batch(shift)
    assert temporal_loss(batch.hr, batch).item() == pytest.approx(0, abs=1e-6)
    output = batch.hr.clone().requires_grad_()
    flicker = output + torch.tensor([0.0, 0.1, 0.0]).view(1, 3, 1, 1, 1)
    loss = temporal_loss(flicker, batch)
    assert loss.item() == pytest.approx(0.1, abs=1e-5)
    loss.backward()
    assert output.grad is not None
    assert output.grad.abs().sum() > 0

    hidden = batch.visible.clone()
    hidden[..., 4:] = 0
    occluded = dataclasses.replace(batch, visible=hidden)
    spoiled = batch.hr.clone()
    spoiled[:, 1, :, :, 16:] = 0.5  # where nothing is visible, and neither is what lies 4 HR pixels beside it
    assert temporal_loss(spoiled, occluded).item() == pytest.approx(0, abs=1e-6)
    assert temporal_loss(spoiled, batch).item() > 0.01
    assert temporal_loss(batch.hr[:, :1], dataclasses.replace(batch, hr=batch.hr[:, :1])).item() == 0


def test_truth_that_the_flow_does_not_explain_counts_little_in_the_temporal_loss() -> None:
    batch = sliding_batch(0)
    changed = batch.hr.clone()
    changed[:, 1, :, :, :16] = 1 - changed[:, 1, :, :, :16]
    flashing = dataclasses.replace(batch, hr=changed)
    spoiled = batch.hr.clone()
    spoiled[:, 1, :, :, :16] += 1.0
    unmasked = (spoiled[:, 1] - spoiled[:, 0]).abs().mean()
    assert temporal_loss(spoiled, flashing) < 0.5 * unmasked


def test_reblurring_asks_only_where_there_is_blur_and_moves_only_the_restored_frames() -> None:
    network = FMANetPP(preset("fast", 2)).train()
    frames = torch.tensor([[0, 1]])
    still, moving = sliding_batch(0), sliding_batch(2)
    assert reblur_loss(network, network(still.lr), still, frames).item() == 0
    out = network(moving.lr)
    loss = reblur_loss(network, out, moving, frames)
    assert loss > 0
    loss.backward()
    head = network.degradation.to_kernels
    assert head is not None
    assert head.weight.grad is None or not head.weight.grad.any()
    assert network.restoration.upsampler is not None
    last = network.restoration.upsampler[2]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.weight.grad is not None
    assert last.weight.grad.any()
    assert network.degradation.image_flow is not None
    assert all(p.grad is None or not p.grad.any() for p in network.degradation.image_flow.parameters())


def test_netd_alone_says_what_it_says_within_the_whole_network() -> None:
    torch.manual_seed(0)
    network = FMANetPP(preset("fast", 2)).eval()
    batch = sliding_batch(1)
    with torch.no_grad():
        whole = network(batch.lr, batch.exposure)
        alone = network.run_degradation(batch.lr, batch.exposure)
        embed = network.embed(batch.lr.flatten(0, 1))
        assert embed is not None
        told = network.run_degradation(batch.lr, batch.exposure, embed=embed.unflatten(0, (1, 3)))
        read = network(batch.lr)
    assert whole.image_flow is not None
    assert alone.image_flow is not None
    torch.testing.assert_close(alone.image_flow, whole.image_flow)
    torch.testing.assert_close(alone.kernel_feat, whole.kernel_feat)
    torch.testing.assert_close(told.kernel_feat, read.kernel_feat)


def test_kernels_are_held_to_the_clean_frame_not_to_its_noise() -> None:
    network = FMANetPP(preset("fast", 2)).eval()
    batch = sliding_batch(0)
    frames = torch.tensor([[0, 1]])
    with torch.no_grad():
        out = network(batch.lr)
        clean = degradation_loss(network, out, batch, frames)
        noisy = degradation_loss(network, out, dataclasses.replace(batch, lr=torch.rand_like(batch.lr)), frames)
        other = degradation_loss(network, out, dataclasses.replace(batch, clean=torch.rand_like(batch.lr)), frames)
        without, twice = (degradation_loss(network, out, batch, frames, warp_weight=weight) for weight in (0, 2e-4))
    assert clean == noisy
    assert other != clean
    assert without < clean
    torch.testing.assert_close(twice - without, 2 * (clean - without), atol=1e-6, rtol=1e-2)


def test_a_ramp_rises_between_its_ends() -> None:
    assert [ramp(position, 0.2, 0.4) for position in (0.0, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_panels_show_input_output_and_truth_at_one_size() -> None:
    batch = sliding_batch(1)
    shown = panels(batch, batch.hr + 0.1)
    assert sorted(shown) == ["1 input", "2 output", "3 truth"]
    assert {picture.shape for picture in shown.values()} == {(3, 32, 32)}
    torch.testing.assert_close(shown["2 output"], batch.hr[0, 1] + 0.1)


def test_the_learning_rate_rises_holds_and_falls() -> None:
    rate = [learning_rate_factor(step, steps=100, warmup=10, decay=0.4) for step in range(101)]
    assert rate[0] == pytest.approx(0.1)
    assert rate[10] == rate[59] == 1
    assert rate[80] == pytest.approx(0.5)
    assert rate[100] == pytest.approx(0)


def test_the_learning_rate_is_halved_where_the_paper_halves_it() -> None:
    rate = [learning_rate_factor(step, steps=100, warmup=1, decay=0, halvings=(0.7, 0.85, 0.95)) for step in range(100)]
    assert [rate[step] for step in (0, 69, 70, 84, 85, 94, 95, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_neighbours_that_agree_give_full_accuracy() -> None:
    label = torch.arange(5).repeat(20)
    confusion = nearest_neighbour_confusion(F.one_hot(label, 6).float(), label, random_folds(100))
    torch.testing.assert_close(confusion, 100 * torch.eye(5))


def test_neighbours_of_the_own_scene_do_not_vote_when_it_is_left_out() -> None:
    """Scenes 0 and 1 look alike but for a trifle, 2 and 3 too; and of each pair one has level 0, the other level 1."""
    scene = torch.arange(4).repeat_interleave(10)
    embed = F.normalize(F.one_hot(scene // 2, 6).float() + 0.1 * F.one_hot(2 + scene, 6).float(), dim=1)
    shared = nearest_neighbour_confusion(embed, scene % 2, random_folds(40))
    torch.testing.assert_close(shared[:2, :2], 100 * torch.eye(2))
    apart = nearest_neighbour_confusion(embed, scene % 2, scene)
    torch.testing.assert_close(apart[:2, :2], 100 * (1 - torch.eye(2)))


def test_the_true_blur_of_a_frame_says_its_level_times_its_speed(stage_1: tuple[Path, Path]) -> None:
    pool = Pool(stage_1[0])
    lengths, sequences = true_blur(pool, [(1, 0), (1, 1), (3, 2), (3, 3)])
    assert sequences.tolist() == [1, 3]  # the others lack a neighbour
    pixels = lengths.exp() - 0.05
    torch.testing.assert_close(pixels[:, 4], 5 * pixels[:, 0], rtol=1e-3, atol=1e-3)
    flow = pool.sequence(1).flow[1].astype(np.float32)
    speed = (np.hypot(*flow[0]) + np.hypot(*flow[1])) / 2
    assert pixels[0, 4, 3].item() == pytest.approx(np.median(speed), rel=1e-3)


def test_curves_of_runs_are_drawn_one_after_the_other(tmp_path: Path) -> None:
    for name, steps in (("first", 30), ("second", 10)):
        with SummaryWriter(str(tmp_path / name)) as writer:
            for step in range(1, steps + 1):
                for loss, value in (("restoration", step), ("norm", 1.0), ("learning_rate", 0.1)):
                    writer.add_scalar(loss, value, 100 * step)
    run(plot_curves.main, tmp_path / "first", tmp_path / "second", "--out", tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text().count(">restoration<") == 1
    curves = [plot_curves.read_curves(tmp_path / name) for name in ("first", "second")]
    assert [set(own) for own in curves] == [{"restoration"}] * 2
    (axes,) = plot_curves.draw(curves).axes
    recorded = [line for line in axes.get_lines() if line.get_color() == "0.75"]
    assert [(ends[0], ends[-1]) for ends in (np.asarray(line.get_xdata()) for line in recorded)] == [
        (100, 3000),
        (3100, 4000),
    ]
    black = plot_curves.smoothed(curves[0]["restoration"][1])
    assert [black[0], black[1], black[29]] == [1, 1.5, 25.5]
    with pytest.raises(SourceError, match=r"needed, got .*nothing"):
        plot_curves.read_curves(tmp_path / "nothing")


def test_averaged_weights_follow_the_network() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    averaged = AveragedWeights(network, decay=0.5)
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    averaged.update(network, step=1000)
    torch.testing.assert_close(averaged.network.state_dict()["weight"], start + 0.5)


def test_the_decibel_loss_counts_frames_by_their_psnr() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    errors = torch.tensor([0.1, 0.02])
    output = (truth + errors[:, None, None, None]).requires_grad_()
    loss = decibel_loss(output, truth, most=50)
    decibels = -10 * (errors**2 + 1e-5).log10()
    torch.testing.assert_close(loss, -USUAL_ERROR * math.log(10) / 10 * decibels.mean())
    loss.backward()
    assert output.grad is not None
    usual = output.grad[1].mean() / (1 / output.numel())  # of l1 it would be 1
    assert 0.5 < usual < 2
    half = (torch.arange(8) < 4).float().expand(2, 1, 8, 8)
    torch.testing.assert_close(
        decibel_loss(output, truth, half, most=30),
        USUAL_ERROR * (errors**2 / 2 + 1e-3).log().mean(),
        atol=1e-6,
        rtol=0,
    )


def test_the_harm_loss_counts_frames_that_are_worse_than_before_alone() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    before = truth + 0.02
    output = (truth + torch.tensor([0.01, 0.04])[:, None, None, None]).requires_grad_()
    loss = harm_loss(output, before, truth, most=50)
    torch.testing.assert_close(loss, torch.tensor(USUAL_ERROR * math.log((0.04**2 + 1e-5) / (0.02**2 + 1e-5)) / 2))
    loss.backward()
    assert output.grad is not None
    assert bool((output.grad[0] == 0).all())
    assert bool((output.grad[1] > 0).all())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_matrix_steps_are_those_of_muon_on_rows_of_outputs(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3).to(memory_format=layout)
    assert conv.bias is not None
    plain = torch.nn.Parameter(conv.weight.detach().clone(memory_format=torch.contiguous_format).flatten(1))
    bias = conv.bias.detach().clone()
    expected, steps = torch.optim.Muon([plain], 0.5, weight_decay=0.0), MatrixSteps(list(conv.parameters()), 0.5)
    for rate in (0.01, 0.02):
        gradient = torch.randn(6, 4, 3, 3)
        conv.weight.grad, conv.bias.grad = gradient.clone(memory_format=layout), torch.ones(6)
        plain.grad = gradient.flatten(1)
        expected.param_groups[0]["lr"] = rate
        expected.step()
        steps.step(rate)
        assert conv.weight.grad is None
        assert torch.equal(conv.bias.grad, torch.ones(6))  # left to another
    torch.testing.assert_close(conv.weight.detach().flatten(1), plain.detach(), atol=2e-3, rtol=0)  # in bf16
    assert torch.equal(conv.bias, bias)


def test_a_run_that_diverges_ends_and_keeps_what_was_good(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    training = Run(RunOptions(out=tmp_path, steps=1000, save_minutes=0), network, join_workers("cpu"), {})

    def steps(first: int, scales: list[float]) -> None:
        for number, scale in enumerate(scales, first):
            norm = training.update(number, scale * network(torch.ones(1, 2)).sum())
            training.record(number, {"norm": norm}, dict)

    steps(0, [1.0, 1.0, 1.0, 1.0, math.nan, 1.0, 1.0, 1.0, 1.0, 1.0])  # a single one is no harm
    good = load_checkpoint(tmp_path / "latest.pt")
    assert good["step"] == 10
    with pytest.raises(ConfigError, match=r"got none in 20 steps up to 30; .* lower --learning-rate"):
        steps(10, [math.inf] * 990)
    kept = load_checkpoint(tmp_path / "latest.pt")
    assert kept["step"] == 10
    assert all(value.isfinite().all() for value in kept["network"].values())
    training.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_come_in_order_and_errors_come_through(device: str) -> None:
    assert list(ahead(lambda step: step * step, 2, 6, device)) == [(2, 4), (3, 9), (4, 16), (5, 25)]

    def broken(step: int) -> int:
        if step == 3:
            raise ValueError("no more")
        return step

    seen: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="no more"):
        seen.extend(ahead(broken, 0, 10, device))


def test_where_the_cpu_trains_no_second_thread_uses_torch() -> None:
    made_by = [thread for _, thread in ahead(lambda _: threading.current_thread(), 0, 2, "cpu")]
    assert made_by == [threading.current_thread()] * 2


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "latest.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        save_checkpoint(path, {"step": (value for value in [1])})  # a generator cannot be saved
    assert load_checkpoint(path) == {"step": 1}
