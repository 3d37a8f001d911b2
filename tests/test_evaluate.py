"""The benchmark and its scoring, on pictures made here."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training import build_benchmark, evaluate, export
from training.data.benchmark import SCENES, load_benchmark, load_clip
from training.evaluation import guidance, report
from training.evaluation.cost import cost_note
from training.evaluation.guidance import kernel_spread
from training.evaluation.methods import baselines, load_networks, resize, run_network, score_scene
from training.evaluation.report import detailed_square
from training.metrics.scoring import TRANSITIONS, Score, load_truth
from training.run.checkpoint import save_checkpoint
from training.run.trained import load_method
from vsfmanet.errors import ConfigError, OutputError, SourceError
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.networks.mmprnn import MMPRNN, MMPRNNConfig

FRAMES = 4


@pytest.fixture(scope="module")
def benchmark(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of scale 2 from one noisy picture."""
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["build_benchmark", "--photos", str(photos), "--out", str(folder / "out"), "--scale", "2"]
    arguments += ["--width", "64", "--height", "64", "--frames", str(FRAMES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        build_benchmark.main()
        with pytest.raises(OutputError, match="exists"):
            build_benchmark.main()
    return folder / "out"


def test_a_benchmark_holds_every_clip_that_it_records(benchmark: Path) -> None:
    record = load_benchmark(benchmark)
    assert len(record.scenes) == len(SCENES)
    assert list(record.photos) == ["noise.png"]
    for scene in record.scenes:
        assert load_clip(benchmark / scene.name / "sharp").shape == (FRAMES, 3, 64, 64)
        for condition, exposure in scene.exposure.items():
            assert len(exposure) == FRAMES
            assert load_clip(benchmark / scene.name / condition).shape == (FRAMES, 3, 32, 32)
    assert len((benchmark / "re.txt").read_text().splitlines()) == len(record.scenes)


@pytest.mark.parametrize(
    "record", ["{", "[]", "{}", '{"scenes": [{"colour": "red"}]}', '{"scenes": [], "weather": "rain"}']
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, record: str) -> None:
    (tmp_path / "benchmark.json").write_text(record)
    with pytest.raises(SourceError, match="build it again"):
        load_benchmark(tmp_path)


def test_changing_exposure_takes_each_frame_from_its_level(benchmark: Path) -> None:
    for scene in load_benchmark(benchmark).scenes:
        walk = load_clip(benchmark / scene.name / "re")
        for index, exposure in enumerate(scene.exposure["re"]):
            level = load_clip(benchmark / scene.name / f"5_{round(5 * exposure)}")
            np.testing.assert_array_equal(walk[index], level[index])


def test_a_degraded_benchmark_differs_in_its_inputs_alone(
    photos: Path, benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    degraded = benchmark.with_name("degraded")
    arguments = ["build_benchmark", "--photos", str(photos), "--out", str(degraded), "--degrade"]
    arguments += ["--scale", "2", "--width", "64", "--height", "64", "--frames", str(FRAMES)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("training.build_benchmark.SCENES", SCENES[:2])
    build_benchmark.main()
    record = load_benchmark(degraded)
    assert record.degraded
    assert not load_benchmark(benchmark).degraded
    for scene in record.scenes:
        np.testing.assert_array_equal(
            load_clip(degraded / scene.name / "sharp"), load_clip(benchmark / scene.name / "sharp")
        )
        for condition in scene.exposure:
            before, after = (load_clip(folder / scene.name / condition) for folder in (benchmark, degraded))
            assert 0.5 < np.abs(before.astype(float) - after).mean() < 30


def test_a_method_that_knows_truth_scores_perfectly_and_gets_the_true_exposure(benchmark: Path) -> None:
    scene = next(s for s in load_benchmark(benchmark).scenes if np.diff(s.exposure["re"]).any())
    truth = torch.from_numpy(load_clip(benchmark / scene.name / "sharp"))[None] / 255
    asked: list[Tensor] = []

    def oracle(lr: Tensor, exposure: Tensor) -> Tensor:
        assert lr.shape == (1, FRAMES, 3, 32, 32)
        asked.append(exposure)
        return truth

    folder = benchmark / scene.name
    scores, frames, outputs = score_scene("oracle", oracle, scene, folder, load_truth(folder))
    assert [score.condition for score in scores] == ["5_1", "5_2", "5_3", "5_4", "5_5", "re", TRANSITIONS]
    np.testing.assert_array_equal(outputs["5_4"], load_clip(folder / "sharp"))
    assert [(frame.condition, frame.frame) for frame in frames] == [
        (c, t) for c in scene.exposure for t in range(FRAMES)
    ]
    for score in scores:
        assert score.psnr == float("inf")
        assert score.ssim == pytest.approx(1)
        assert score.tof == 0
    for score, exposure in zip(scores, asked, strict=False):
        torch.testing.assert_close(exposure, torch.tensor([scene.exposure[score.condition]]))


def test_transitions_are_scored_where_the_exposure_changes_and_nowhere_else(benchmark: Path) -> None:
    scene = next(s for s in load_benchmark(benchmark).scenes if np.diff(s.exposure["re"]).any())
    folder = benchmark / scene.name
    changed = [t for t in range(1, FRAMES) if scene.exposure["re"][t] != scene.exposure["re"][t - 1]]
    sharp = torch.from_numpy(load_clip(folder / "sharp"))[None] / 255

    def wrong_at_changes(lr: Tensor, exposure: Tensor) -> Tensor:
        output = sharp.clone()
        output[:, changed] = (output[:, changed] + 10 / 255) % 1
        return output

    scores, frames, _ = score_scene("wrong", wrong_at_changes, scene, folder, load_truth(folder))
    by_name = {score.condition: score for score in scores}
    assert by_name["re"].psnr == float("inf")
    assert by_name[TRANSITIONS].psnr < 40
    own = [frame for frame in frames if frame.condition == "re"]
    assert [frame.frame for frame in own if frame.psnr < 40] == changed
    assert by_name["re"].ssim == pytest.approx(np.mean([frame.ssim for frame in own]))


def test_truth_moves_by_the_exact_flow_where_the_benchmark_holds_it(benchmark: Path, tmp_path: Path) -> None:
    scene = load_benchmark(benchmark).scenes[0]
    exact = load_truth(benchmark / scene.name)
    (tmp_path / "sharp").symlink_to((benchmark / scene.name / "sharp").resolve())
    estimated = load_truth(tmp_path)
    assert exact.exact
    assert not estimated.exact
    assert exact.flow.shape == estimated.flow.shape == (FRAMES - 1, 2, 64, 64)
    middle = (slice(None), slice(None), slice(16, 48), slice(16, 48))
    assert np.abs(exact.flow - estimated.flow)[middle].mean() < 0.5  # a scene of 1.5 pixels a frame
    assert np.abs(exact.flow)[middle].mean() > 0.3


def test_at_scale_1_the_input_is_the_baseline() -> None:
    lr = torch.rand(1, 2, 3, 16, 16)
    methods = baselines(1)
    assert list(methods) == ["input", "input_sharp"]
    assert torch.equal(methods["input"](lr, torch.ones(1, 2)), lr)
    flat, edge = torch.full((1, 1, 3, 16, 16), 0.5), torch.zeros(1, 1, 3, 16, 16)
    edge[..., 8:] = 0.5
    torch.testing.assert_close(methods["input_sharp"](flat, torch.ones(1, 1)), flat)
    assert methods["input_sharp"](edge, torch.ones(1, 1)).max() > 0.5


def test_the_spread_of_a_kernel_is_its_variance() -> None:
    uniform = torch.zeros(1, 3 * 400, 2, 2)
    assert kernel_spread(uniform, 20) == pytest.approx(66.5)  # 2 * (20^2 - 1) / 12
    two_taps = torch.full((1, 3, 20, 20, 1, 1), -1e4)
    two_taps[0, 0, 4, 7] = two_taps[0, 2, 10, 7] = 0  # in two frames; 6 apart: variance 9
    assert kernel_spread(two_taps.flatten(1, 3), 20) == pytest.approx(9)


def test_the_most_detailed_square_is_pictured() -> None:
    frame = np.zeros((3, 60, 80), dtype=np.uint8)
    frame[:, 30:40, 50:60] = np.random.default_rng(0).integers(0, 256, (3, 10, 10))
    top, left = detailed_square(frame, 24)
    assert top <= 29 <= 41 <= top + 24
    assert left <= 49 <= 61 <= left + 24


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
def test_resizing_keeps_a_plain_picture_and_its_centre(kernel: str) -> None:
    ramp = torch.linspace(0.2, 0.8, 16).expand(1, 2, 3, 16, 16)
    large = resize(ramp, torch.ones(1, 2), scale=2, kernel=kernel)
    assert large.shape == (1, 2, 3, 32, 32)
    expected = 0.2 + 0.04 * ((torch.arange(32) + 0.5) / 2 - 0.5)
    torch.testing.assert_close(large[0, 0, 0, 8, 8:-8], expected[8:-8], atol=0.005, rtol=0)


def test_evaluation_prints_tables_and_writes_scores_guidance_and_report(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = load_benchmark(benchmark)
    few = record.scenes[:1] + record.scenes[-1:]
    monkeypatch.setattr(evaluate, "load_benchmark", lambda folder: dataclasses.replace(record, scenes=few))
    network = FMANetPP(preset("fast", 2)).eval()
    state = {"averaged": network.state_dict(), "step": 12, "kind": "fmanetpp", "preset": "fast", "scale": 2}
    state["config"] = dataclasses.asdict(network.config)
    save_checkpoint(tmp_path / "toy" / "latest.pt", state)
    json_path, csv_path, report_path = (tmp_path / name for name in ("scores.json", "frames.csv", "report.html"))
    arguments = [str(benchmark), "--model", str(tmp_path / "toy" / "latest.pt"), "--guidance"]
    arguments += ["--json", str(json_path), "--csv", str(csv_path), "--report", str(report_path)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    evaluate.main()

    printed = capsys.readouterr().out
    for word in ("PSNR", "SSIM", "tOF", "OPW", "bicubic", "lanczos_sharp", "5:5", "Table 6", "Fig. 7b", "exact flow"):
        assert word in printed
    scores = json.loads(json_path.read_text())
    by_condition = [score["condition"] for score in scores if score["method"] == "bicubic"]
    assert by_condition.count("5_3") == by_condition.count("re") == len(few)
    with csv_path.open(newline="") as file:
        frames = list(csv.DictReader(file))
    for score in scores:
        if score["condition"] != TRANSITIONS:
            clip = [score[name] for name in ("method", "scene", "condition")]
            own = [row for row in frames if [row[name] for name in ("method", "scene", "condition")] == clip]
            assert [int(row["frame"]) for row in own] == list(range(FRAMES))
            for metric in ("psnr", "ssim"):
                assert np.mean([float(row[metric]) for row in own]) == pytest.approx(score[metric])
    blur = [score["psnr"] for score in scores if score["method"] == "bicubic" and "40px" in score["scene"]]
    assert blur[0] > blur[4]
    tested = json.loads(json_path.with_suffix(".guidance.json").read_text())[0]
    assert {row["guidance"] for row in tested["scores"]} >= {"true", "all 5:5", "shuffled", "random wrong", "5:1"}
    assert len(tested["spreads"]) == 8
    assert all(spread["spread"] > 0 for spread in tested["spreads"])

    page = report_path.read_text()
    assert page.count("<svg") == 2
    assert (
        page.count("data:image/png;base64,") == len(few) * 2 * 5
    )  # scenes, exposures; three baselines, one model, truth
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace(
        "http://purl.org", ""
    )  # nothing is fetched


def test_a_checkpoint_of_training_can_be_scored(tmp_path: Path) -> None:
    network = FMANetPP(preset("fast", 2)).eval()
    state = {"averaged": network.state_dict(), "step": 12, "kind": "fmanetpp", "preset": "fast", "scale": 2}
    state["config"] = dataclasses.asdict(network.config)
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


def test_a_checkpoint_of_another_network_can_be_scored_and_shipped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MMPRNN(MMPRNNConfig(cell_blocks=1, decoder_blocks=1, width=4, prior_width=4)).eval()
    torch.nn.init.normal_(network.decoder.last.weight, std=0.1)
    state = {"averaged": network.state_dict(), "step": 7, "kind": "mmprnn", "preset": "toy", "scale": 1}
    save_checkpoint(tmp_path / "latest.pt", state | {"config": dataclasses.asdict(network.config)})
    arguments = [str(tmp_path / "latest.pt"), "--name", "toy_x1", "--models", str(tmp_path)]
    arguments += ["--description", "d", "--data", "e", "--command", "c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", *arguments])
        export.main()
    assert 'preset = "toy"' in (tmp_path / "manifest.toml").read_text()

    lr, exposure = torch.rand(1, 3, 3, 16, 24), torch.full((1, 3), 0.6)
    names = [str(tmp_path / "latest.pt"), str(tmp_path / "toy_x1.safetensors")]
    loaded = load_networks(names, 1, "cpu")
    assert list(loaded) == [f"{tmp_path.name} step 7", "toy_x1"]
    with torch.inference_mode():
        expected = network(lr)
        assert (expected - lr).abs().max() > 0.01
        for found in loaded.values():
            frames = run_network(lr, exposure, network=found, give_exposure=True)
            torch.testing.assert_close(frames, expected, atol=2e-3, rtol=0)
    with pytest.raises(ConfigError, match="a network of scale 2 is needed, toy_x1 has 1"):
        load_networks(names[1:], 2, "cpu")


def test_the_cost_of_a_network_is_told() -> None:
    clip = torch.rand(1, 3, 3, 16, 32)
    told = cost_note("it", MMPRNN(MMPRNNConfig(prior="speed")).eval(), clip)
    assert told == "it: 1.97 M parameters, 0.07 GMAC a frame of 32x16, in proportion 128 at 1280x720."
    told = cost_note("it", FMANetPP(preset("fast", 1), deployed=True).eval(), clip)
    assert told == "it: 1.32 M parameters, 0.59 GMAC a frame of 32x16, in proportion 1055 at 1280x720."


def test_a_network_with_a_path_branch_is_guided_by_exposures(benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = FMANetPP(preset("path", 2)).eval()
    assert network.restoration.path is not None
    *_, last, _ = network.restoration.path.body
    assert isinstance(last, torch.nn.Conv2d)
    last.weight.data.normal_(std=0.05)
    record = load_benchmark(benchmark)
    record = dataclasses.replace(record, scenes=record.scenes[3:4])
    scene = record.scenes[0]
    estimates = guidance.level_estimates(network, benchmark / scene.name)
    assert estimates.shape == (5, len(scene.exposure["re"]))
    assert ((estimates > 0) & (estimates < 1)).all()

    true = torch.arange(1, 6)[:, None].expand_as(estimates) / 5
    monkeypatch.setattr(guidance, "level_estimates", lambda network, folder: true)
    tested = guidance.run({"toy": network}, record, benchmark)[0]
    by_source = [
        [(each.guidance, each.score.condition, each.score.psnr) for each in tested.scores if each.source == source]
        for source in guidance.SOURCES
    ]
    assert by_source[0] == by_source[1]  # where estimates are true, it is the same to give them
    assert len({psnr for *_, psnr in by_source[0]}) > len(guidance.CHANGES)
    assert not tested.spreads


def test_clips_of_other_lengths_are_averaged_by_frame_too() -> None:
    def score(scene: str, frames: int, psnr: float) -> Score:
        return Score(
            method="toy", scene=scene, condition="blur", psnr=psnr, ssim=0.5, tof=0, opw=0, seconds=0, frames=frames
        )

    equal = [score("a", 10, 20.0), score("b", 10, 30.0)]
    assert report.frame_means(equal) == []
    [line] = report.frame_means([score("a", 10, 20.0), score("b", 30, 30.0)])
    assert line == "toy, blur, mean over 40 frames: 27.500 dB, SSIM 0.5000"
