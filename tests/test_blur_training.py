"""The blur analyser from photographs to shipped weights, at toy size."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import run
from training import (
    build_benchmark,
    evaluate_blur,
    export_blur,
    render_pool,
    train_blur,
    train_mmprnn,
    train_shutter,
)
from training.data.benchmark import SCENES
from training.data.blur_crops import moment
from training.data.pool import Pool
from training.evaluation.blur import level_confusion, sharp_head
from training.losses.blur import magnitude_loss, sharp_loss
from training.run.checkpoint import load_checkpoint
from training.run.trained import trained_analyser, trained_estimator, trained_network, trained_prior
from training.run.variants import WithoutFeatures
from training.train_shutter import Profiles, fit
from vsfmanet.errors import ConfigError, SourceError, WeightsError
from vsfmanet.exposures.estimate import INPUTS
from vsfmanet.networks.mmpnet import MMPNet
from vsfmanet.networks.mmprnn import MMPRNN, MMPRNNConfig
from vsfmanet.weights import load_analyser, load_model


@pytest.fixture(scope="module")
def pools(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of small frames and one of full size."""
    folder = tmp_path_factory.mktemp("pools")
    common = ["--photos", photos, "--count", 3, "--frames", 5, "--workers", 1]
    run(render_pool.main, *common, "--out", folder / "x4", "--size", 64)
    run(render_pool.main, *common, "--out", folder / "x1", "--size", 32, "--scale", 1)
    return [folder / "x4", folder / "x1"]


def train(pools: list[Path], out: Path, *more: object) -> dict[str, Any]:
    """Train a toy for three steps at most; returns the checkpoint."""
    chosen = [item for pool in pools for item in ("--pool", pool)]
    size = ["--width", 2, "--steps", 3, "--crops", 2, "--crop", 16, "--warmup", 1]
    run(train_blur.main, *chosen, "--out", out, *size, *more)
    return load_checkpoint(out / "latest.pt")


def test_a_resumed_run_equals_an_unbroken_one(pools: list[Path], tmp_path: Path) -> None:
    unbroken = train(pools, tmp_path / "unbroken")
    for step in (1, 2):
        assert train(pools, tmp_path / "resumed", "--max-minutes", 0)["step"] == step
    resumed = train(pools, tmp_path / "resumed")
    assert unbroken["step"] == resumed["step"] == 3
    for part in ("network", "averaged"):
        for name, value in unbroken[part].items():
            assert torch.equal(value, resumed[part][name]), name


def test_crops_keep_their_extent_when_they_are_reduced_and_have_none_when_sharp(pools: list[Path]) -> None:
    sequence = Pool(pools[1]).sequence(0)
    whole, extent, travel = moment(sequence, 1, 5, np.random.default_rng(0), 32, reduction=1)
    half, half_extent, _ = moment(sequence, 1, 5, np.random.default_rng(0), 16, reduction=2)
    assert (whole.shape, half.shape) == ((3, 32, 32), (3, 16, 16))
    np.testing.assert_allclose(half_extent.mean(), extent.mean() / 2, rtol=1e-3)
    assert extent.mean() > 0
    np.testing.assert_array_equal(travel, extent)  # the shutter is open all the time
    for pool in pools:
        sequence = Pool(pool).sequence(0)
        sharp, nothing, travel = moment(sequence, 1, 0, np.random.default_rng(0), 16, reduction=1)
        assert not nothing.any()
        blurred, extent, _ = moment(sequence, 1, 1, np.random.default_rng(0), 16, reduction=1)  # the same crop
        np.testing.assert_allclose(extent, travel / 5, rtol=1e-5)
        assert 0 < np.abs(sharp - blurred).mean() < 0.2


def test_the_loss_of_a_perfect_answer_is_nothing() -> None:
    extent = torch.linspace(0, 8, 64).view(1, 1, 8, 8)
    target = extent / 64
    sharp = torch.where(extent < 1, 50.0, -50.0)
    weight = torch.ones_like(extent)
    assert sum(magnitude_loss(target, target, weight).values()) == pytest.approx(0, abs=1e-6)
    assert sharp_loss(sharp, extent, weight).item() == pytest.approx(0, abs=1e-6)
    assert sharp_loss(-sharp, extent, weight).item() > 1
    weight[..., 4:, :] = 1e-9  # nothing is to be seen in the lower half
    off = target + 0.1 * (weight == 1) + 0.9 * (weight < 1)
    assert magnitude_loss(off, target, weight)["extent"].item() == pytest.approx(0.1)


def test_the_prior_of_a_speed_is_that_of_filmed_frames() -> None:
    travel = torch.tensor([0.0, 30.0, 150.0, 400.0])  # pixels in ten filmed frames
    assert train_blur.speed(travel).tolist() == pytest.approx([0, 0.2, 1, 1])


def test_the_published_prior_is_trained_and_guides_mmprnn(
    pools: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = train(pools, tmp_path / "prior", "--target", "speed")
    assert "l1 of the prior" in capsys.readouterr().out
    checkpoint = tmp_path / "prior" / "latest.pt"
    prior = trained_prior(checkpoint)
    assert isinstance(prior, MMPNet)
    size = ["--pool", pools[1], "--clips", 1, "--frames", 5, "--crop", 16, "--steps", 1]
    for variant in (None, "without_gate", "without_features"):
        out = tmp_path / f"run {variant}"
        chosen = [] if variant is None else ["--variant", variant]
        run(train_mmprnn.main, *size, "--out", out, "--prior", checkpoint, "--motion-weight", 1, *chosen)
        network = trained_network(load_checkpoint(out / "latest.pt"))
        assert isinstance(network, MMPRNN)
        assert network.config.prior == "speed"
        assert (network.cell.gate is None) == (variant is not None)
        if variant is not None:
            with pytest.raises(ConfigError, match="evaluate the checkpoint"):
                network.deployed_form()
        assert network.prior is not None
        torch.testing.assert_close(network.prior.state_dict(), prior.state_dict(), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="choose one of them"):
        run(train_mmprnn.main, *size, "--out", tmp_path / "none", "--without-prior", "--variant", "without_gate")
    assert state["target"] == "speed"


def test_without_features_a_frame_sees_the_past_by_the_hidden_state_alone() -> None:
    torch.manual_seed(0)
    config = MMPRNNConfig(cell_blocks=1, decoder_blocks=1, width=4, prior_width=2)
    frames = torch.rand(2, 1, 3, 16, 16)
    for make, passed in ((MMPRNN, True), (WithoutFeatures, False)):
        network = make(config).eval()
        _, state = network.encode(frames[0], None)
        assert state is not None
        left, hidden = state
        assert left.any() == passed
        assert hidden.any()


def test_a_checkpoint_becomes_the_analyser_that_ships_and_no_model_to_restore_with(
    pools: list[Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = train(pools, tmp_path / "run")
    for user in ("build_benchmark", "evaluation.blur"):
        monkeypatch.setattr(f"training.{user}.SCENES", SCENES[3:4])
    benchmark, scores = tmp_path / "benchmark", tmp_path / "scores.json"
    size = ["--width", 96, "--height", 64, "--frames", 3]
    run(build_benchmark.main, "--photos", photos, "--out", benchmark, *size)
    checkpoint = tmp_path / "run" / "latest.pt"
    run(evaluate_blur.main, benchmark, "--photos", photos, "--checkpoint", checkpoint, "--json", scores)
    measured = json.loads(scores.read_text())
    assert len(measured["rows"]) == 3 * 7  # five levels, one that changes, sharp
    blurred = [row for row in measured["rows"] if row["condition"] == "5_5"]
    speed = SCENES[3].speed / 4  # LR pixels per frame, and the shutter is open all the time
    assert np.mean([row["extent"] for row in blurred]) == pytest.approx(speed, rel=0.1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.png").write_bytes(next(photos.iterdir()).read_bytes())
    with pytest.raises(SourceError, match=r"does not hold the photographs that .* was built from"):
        run(evaluate_blur.main, benchmark, "--photos", other)

    monkeypatch.setattr("vsfmanet.manifest.models_folder", lambda: tmp_path / "models")
    texts = ["--description", "a toy", "--data", "noise", "--command", "pytest", "--scores", scores]
    for _ in range(2):  # the second replaces the first
        run(export_blur.main, checkpoint, "--name", "toy", "--models", tmp_path / "models", *texts)
    [entry] = tomllib.loads((tmp_path / "models" / "manifest.toml").read_text())["analyser"]
    assert entry["scores"]["x4_extent_5_5"] == pytest.approx(measured["scores"]["extent_5_5"])
    frames = torch.rand(1, 3, 20, 20)
    trained = trained_analyser(checkpoint)
    assert trained.config.width == state["config"]["width"] == 2
    torch.testing.assert_close(load_analyser().extent(frames), trained.extent(frames), rtol=0.02, atol=0.02)  # fp16
    with pytest.raises(WeightsError, match="holds the network 'blur'"):
        load_model(str(tmp_path / "models" / "toy.safetensors"))


def test_profiles_become_an_estimator_that_loads_and_a_second_run_takes_none_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.scene.random_speed", lambda _: 3.0)
    pool, kept, out = tmp_path / "pool", tmp_path / "kept", tmp_path / "estimator.pt"
    size = ["--size", 96, "--scale", 1, "--frames", 5]
    run(render_pool.main, "--photos", photos, "--count", 2, "--workers", 1, "--out", pool, *size)
    arguments = ["--pool", pool, "--profiles", kept, "--out", out, "--steps", 20]
    run(train_shutter.main, *arguments)
    taken = torch.load(kept / "pool" / "000001.pt")
    assert sorted(set(taken["exposure"].tolist())) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])  # sharp among them
    monkeypatch.setattr(train_shutter, "take_profiles", None)
    run(train_shutter.main, *arguments)
    value, log_error = trained_estimator(out)(taken["profile"])
    assert value.shape == log_error.shape == taken["exposure"].shape


def test_the_sharp_head_is_counted_over_all_pixels() -> None:
    rows = [
        {"sharp": 1.0, "called_sharp": 0.5, "rightly_sharp": 0.5},
        {"sharp": 0.0, "called_sharp": 0.25, "rightly_sharp": 0.0},
    ]
    counted = sharp_head(rows)
    assert counted == pytest.approx({"accuracy": 0.625, "precision": 2 / 3, "recall": 0.5})


def test_levels_are_counted_where_something_moves_and_something_was_told() -> None:
    told = [(0.4, 0.33, 5.0), (0.4, 0.22, 5.0), (1.0, 1.3, 5.0), (0.6, 0.2, 1.0), (0.0, 0.2, 9.0)]
    rows: list[dict[str, float | None]] = [
        {"exposure": exposure, "estimate": estimate, "frame_estimate": estimate, "confidence": 1.0, "motion": motion}
        for exposure, estimate, motion in told
    ]
    rows.append(rows[0] | {"estimate": None, "confidence": 0.0})
    expected = np.zeros((5, 5))
    expected[1, :2], expected[4, 4] = 50, 100
    for name in ("frame_estimate", "estimate"):
        confusion, count = level_confusion(rows, name)
        np.testing.assert_array_equal(confusion, expected)
        assert count == 3


def test_an_estimator_learns_the_exposure_and_where_it_cannot_be_told() -> None:
    generator = torch.Generator().manual_seed(0)
    exposure = torch.randint(1, 6, (2000,), generator=generator) / 5
    profile = torch.randn(2000, INPUTS, generator=generator)
    told = torch.rand(2000, generator=generator) < 0.5
    profile[:, 0], profile[:, 1] = torch.where(told, 5 * exposure, 0.0), told.float()
    held_out = torch.arange(2000) % 10 == 0
    torch.manual_seed(0)
    estimator = fit(Profiles(profile=profile, exposure=exposure, motion=exposure, held_out=held_out), 800, 0.01)
    with torch.no_grad():
        found, log_error = estimator(profile)
    assert (found - exposure).abs()[told & held_out].mean() < 0.07
    assert log_error[told & held_out].mean() < log_error[~told & held_out].mean() - 0.5
