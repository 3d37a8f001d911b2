"""The benchmark and its scoring, on pictures made here."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from training import build_benchmark, evaluate
from training.build_benchmark import load_benchmark
from training.evaluate import load_clip, load_method, resize, run_network, score_scene
from training.loop import save_checkpoint
from vsfmanet.errors import OutputError
from vsfmanet.networks.fmanetpp import FMANetPP, preset

FRAMES = 3


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of scale 2 from one noisy picture."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "photos" / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    arguments = ["build_benchmark", "--photos", str(folder / "photos"), "--out", str(folder / "out"), "--scale", "2"]
    arguments += ["--width", "64", "--height", "64", "--frames", str(FRAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        build_benchmark.main()
        with pytest.raises(OutputError, match="exists"):
            build_benchmark.main()
    return folder / "out"


def test_a_benchmark_holds_every_clip_that_it_records(benchmark: Path) -> None:
    record = load_benchmark(benchmark)
    assert len(record.scenes) == len(build_benchmark.SCENES)
    assert list(record.photos) == ["noise.png"]
    for scene in record.scenes:
        assert load_clip(benchmark / scene.name / "sharp").shape == (FRAMES, 3, 64, 64)
        for condition, exposure in scene.exposure.items():
            assert len(exposure) == FRAMES
            assert load_clip(benchmark / scene.name / condition).shape == (FRAMES, 3, 32, 32)
    assert len((benchmark / "re.txt").read_text().splitlines()) == len(record.scenes)


def test_changing_exposure_takes_each_frame_from_its_level(benchmark: Path) -> None:
    for scene in load_benchmark(benchmark).scenes:
        walk = load_clip(benchmark / scene.name / "re")
        for index, exposure in enumerate(scene.exposure["re"]):
            level = load_clip(benchmark / scene.name / f"5_{round(5 * exposure)}")
            np.testing.assert_array_equal(walk[index], level[index])


def test_a_method_that_knows_truth_scores_perfectly_and_gets_the_true_exposure(benchmark: Path) -> None:
    scene = load_benchmark(benchmark).scenes[3]
    truth = torch.from_numpy(load_clip(benchmark / scene.name / "sharp"))[None] / 255
    asked: list[Tensor] = []

    def oracle(lr: Tensor, exposure: Tensor) -> Tensor:
        assert lr.shape == (1, FRAMES, 3, 32, 32)
        asked.append(exposure)
        return truth

    scores = score_scene("oracle", oracle, scene, benchmark / scene.name)
    assert [score.condition for score in scores] == ["5_1", "5_2", "5_3", "5_4", "5_5", "re"]
    for score, exposure in zip(scores, asked, strict=True):
        assert score.psnr == float("inf")
        assert score.ssim == pytest.approx(1)
        assert score.tof == 0
        torch.testing.assert_close(exposure, torch.tensor([scene.exposure[score.condition]]))


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
def test_resizing_keeps_a_plain_picture_and_its_centre(kernel: str) -> None:
    ramp = torch.linspace(0.2, 0.8, 16).expand(1, 2, 3, 16, 16)
    large = resize(ramp, torch.ones(1, 2), scale=2, kernel=kernel)
    assert large.shape == (1, 2, 3, 32, 32)
    expected = 0.2 + 0.04 * ((torch.arange(32) + 0.5) / 2 - 0.5)
    torch.testing.assert_close(large[0, 0, 0, 8, 8:-8], expected[8:-8], atol=0.005, rtol=0)


def test_evaluation_prints_tables_and_writes_every_score(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", str(benchmark), "--json", str(tmp_path / "scores.json")])
    evaluate.main()
    printed = capsys.readouterr().out
    for word in ("PSNR", "SSIM", "tOF", "bicubic", "lanczos", "5:5"):
        assert word in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores) == 2 * 6 * len(build_benchmark.SCENES)
    blur = [score["psnr"] for score in scores if score["method"] == "bicubic" and "40px" in score["scene"]]
    assert blur[0] > blur[4]


def test_a_checkpoint_of_training_can_be_scored(tmp_path: Path) -> None:
    network = FMANetPP(preset("fast", 2)).eval()
    state = {"network": {}, "averaged": network.state_dict(), "step": 12, "preset": "fast", "scale": 2}
    save_checkpoint(tmp_path / "latest.pt", state)
    name, loaded = load_method(str(tmp_path / "latest.pt"))
    assert name == f"{tmp_path.name} step 12"
    lr, exposure = torch.rand(1, 2, 3, 16, 24), torch.full((1, 2), 0.6)
    with torch.inference_mode():
        for given in (True, False):
            frames = run_network(lr, exposure, network=loaded, give_exposure=given)
            expected = network(lr, exposure if given else None).frames
            assert frames.shape == (1, 2, 3, 32, 48)
            torch.testing.assert_close(frames, expected)
