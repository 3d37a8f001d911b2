"""The training scripts end to end at toy size, and their parts against known answers."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training import export, render_pool, train_extractor, train_restoration
from training.loop import AveragedWeights, ahead, learning_rate_factor, load_checkpoint, save_checkpoint
from training.losses import image_flow_loss, supervised_contrastive
from training.train_extractor import nearest_neighbour_confusion
from vsfmanet.weights import list_models, load_model


def run(main: Callable[[], None], *arguments: object) -> None:
    """Run a script's `main` as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", *map(str, arguments)])
        main()


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy pool, and an extractor trained on it for three steps."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "photos" / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    pool, extractor = folder / "pool", folder / "extractor.pt"
    photos = ["--photos", folder / "photos", "--out", pool]
    run(render_pool.main, *photos, "--count", 12, "--size", 64, "--frames", 4, "--workers", 1)
    size = ["--steps", 3, "--crops", 2, "--crop", 16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_extractor, "MIN_MOTION", 0.0)
        patch.setattr(train_extractor, "HELD_OUT", 4)
        run(train_extractor.main, "--pool", pool, "--out", extractor, *size)
    return pool, extractor


def train(stage_1: tuple[Path, Path], out: Path, *more: object) -> dict[str, Any]:
    """Train a toy for three steps at most; returns the checkpoint."""
    pool, extractor = stage_1
    size = ["--steps", 3, "--clips", 1, "--frames", 2, "--crop", 8, "--warmup", 1]
    run(train_restoration.main, "--pool", pool, "--extractor", extractor, "--out", out, *size, *more)
    return load_checkpoint(out / "latest.pt")


def test_a_resumed_run_equals_an_unbroken_one(stage_1: tuple[Path, Path], tmp_path: Path) -> None:
    unbroken = train(stage_1, tmp_path / "unbroken")
    for step in (1, 2):
        assert train(stage_1, tmp_path / "resumed", "--max-minutes", 0)["step"] == step
    resumed = train(stage_1, tmp_path / "resumed")
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name


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
        {"method": method, "scene": scene, "condition": "5_1", "psnr": psnr, "ssim": 0.5, "tof": 1.0}
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

    monkeypatch.setattr("vsfmanet.weights.models_folder", lambda: tmp_path / "models")
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


def test_the_learning_rate_rises_holds_and_falls() -> None:
    rate = [learning_rate_factor(step, steps=100, warmup=10, decay=0.4) for step in range(101)]
    assert rate[0] == pytest.approx(0.1)
    assert rate[10] == rate[59] == 1
    assert rate[80] == pytest.approx(0.5)
    assert rate[100] == pytest.approx(0)


def test_neighbours_that_agree_give_full_accuracy() -> None:
    label = torch.arange(5).repeat(20)
    confusion = nearest_neighbour_confusion(F.one_hot(label, 6).float(), label)
    torch.testing.assert_close(confusion, 100 * torch.eye(5))


def test_averaged_weights_follow_the_network() -> None:
    network = torch.nn.Linear(2, 1, bias=False)
    averaged = AveragedWeights(network, decay=0.5)
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    averaged.update(network, step=1000)
    torch.testing.assert_close(averaged.network.state_dict()["weight"], start + 0.5)


def test_batches_come_in_order_and_errors_come_through() -> None:
    assert list(ahead(lambda step: step * step, 2, 6)) == [(2, 4), (3, 9), (4, 16), (5, 25)]

    def broken(step: int) -> int:
        if step == 3:
            raise ValueError("no more")
        return step

    seen: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="no more"):
        seen.extend(ahead(broken, 0, 10))


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "run" / "latest.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        save_checkpoint(path, {"step": (value for value in [1])})  # a generator cannot be saved
    assert load_checkpoint(path) == {"step": 1}
