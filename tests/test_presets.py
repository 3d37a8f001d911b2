"""Encoder presets and bit depths: what is written, what is refused at the trial, and that 10 bits carry more than 8."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import vsfmanet.restorer
from tests import fakes
from tests.fakes import EnlargingRestorer
from tests.films import H264, ffmpeg, restore
from vsfmanet.errors import OutputError
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.media import ffmpeg as programs
from vsfmanet.media.coding import choose_encoder, has_filters, one_range
from vsfmanet.media.presets import PRESETS, Preset
from vsfmanet.media.thumbnails import frame_planes

SCALE = 4


@pytest.fixture(autouse=True)
def smooth(in_this_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that interpolates, so that its results lie between the code values of its input."""

    class Opened(EnlargingRestorer):
        def __init__(self, model: str, **_: object) -> None:
            super().__init__(name=model, scale=SCALE)

    def interpolated(frame: Tensor, scale: int) -> Tensor:
        return F.interpolate(frame[None], scale_factor=scale, mode="bilinear")[0]

    monkeypatch.setattr(fakes, "enlarged", interpolated)
    monkeypatch.setattr(vsfmanet.restorer, "Restorer", Opened)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """6 frames of 64x48, 8 bits, with luma from 40 to 103 from left to right."""
    path = tmp_path / "film.mkv"
    ramp = ["-f", "lavfi", "-i", "color=s=64x48:r=25:d=0.24,format=yuv420p,geq=lum='40+X':cb=128:cr=128"]
    ffmpeg(*ramp, *H264, "-qp", "0", path)
    return path


def frames_of(path: Path) -> tuple[str, str, list[NDArray[np.integer]]]:
    """Codec, pixel format, and luma of each frame."""
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        frames = [frame_planes(frame)[0].copy() for frame in container.decode(track)]
        return track.codec_context.codec.canonical_name, track.codec_context.pix_fmt or "", frames


@pytest.mark.parametrize("options", [(), ("--range-frames", "4")])
@pytest.mark.parametrize(
    ("preset", "suffix", "codec", "pixel_format"),
    [
        ("archive", ".mkv", "ffv1", "yuv420p"),
        ("hevc10", ".mp4", "hevc", "yuv420p10le"),
        ("av1", ".mkv", "av1", "yuv420p10le"),
        ("prores", ".mov", "prores", "yuv422p10le"),
    ],
)
def test_a_preset_makes_a_film_of_its_codec(
    film: Path, tmp_path: Path, preset: str, suffix: str, codec: str, pixel_format: str, options: tuple[str, ...]
) -> None:
    made = tmp_path / f"made{suffix}"
    assert restore(film, made, "--preset", preset, "--encoder-args=-threads 1", *options) == 0
    found, layout, frames = frames_of(made)
    assert (found, layout, len(frames)) == (codec, pixel_format, 6)
    record = json.loads(made.with_name(f"{made.name}.vsfmanet.json").read_text())
    assert record["recipe"]["settings"]["preset"] == preset
    assert not any("one pass" in warning for warning in record["warnings"])


@pytest.mark.parametrize("preset", ["nvenc", "qsv", "vaapi"])
def test_a_preset_without_its_device_is_refused_at_the_trial_with_those_that_work(
    film: Path, tmp_path: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mkv", "--preset", preset, "--encoder-args=-threads 1") == 5
    said = capsys.readouterr().err
    assert f"the preset {preset} must work with FFmpeg" in said
    assert "those that work here are default, archive, hevc10, av1, prores" in said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mkv"]


def test_the_list_of_working_presets_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg = programs.find_ffmpeg()
    assert programs.working_presets(ffmpeg) == ["default", "archive", "hevc10", "av1", "prores"]
    monkeypatch.setattr(programs, "PATIENCE", 0.0)
    assert programs.working_presets(ffmpeg) == []


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        (("--preset", "archive", "--bit-depth", "10"), 10),
        (("--preset", "archive", "--bit-depth", "16"), 16),
        (("--preset", "hevc10"), 10),
        (("--bit-depth", "10"), 10),
        (("--preset", "prores"), 10),
    ],
)
def test_more_bits_carry_values_between_those_of_8_bits(
    film: Path, tmp_path: Path, options: tuple[str, ...], bits: int
) -> None:
    """Steps of one code value become four of a quarter each."""
    shallow, deep = tmp_path / "shallow.mkv", tmp_path / "deep.mov" if "prores" in options else tmp_path / "deep.mkv"
    assert restore(film, shallow, "--preset", "archive", "--encoder-args=-threads 1") == 0
    assert restore(film, deep, *options, "--encoder-args=-threads 1") == 0
    _, _, before = frames_of(shallow)
    _, layout, after = frames_of(deep)
    assert str(bits) in layout
    assert len(np.unique(before[3])) <= 64
    values = np.unique(after[3])
    assert len(values) > 3 * len(np.unique(before[3]))
    assert np.mean(values % 2 ** (bits - 8) != 0) > 0.6
    means = np.abs(after[3].astype(float) / 2 ** (bits - 8) - before[3])
    assert means.max() < 3


def test_fewer_bits_are_dithered(film: Path, tmp_path: Path) -> None:
    deep, shallow = tmp_path / "deep.mkv", tmp_path / "shallow.mkv"
    assert restore(film, deep, "--preset", "archive", "--bit-depth", "10", "--encoder-args=-threads 1") == 0
    assert restore(deep, shallow, "--preset", "archive", "--bit-depth", "8", "--encoder-args=-threads 1") == 0
    _, layout, [first, *_] = frames_of(shallow)
    assert layout == "yuv420p"
    column = first[:, 516].astype(int)
    assert len(np.unique(column)) == 2  # between two code values, by the pattern


def test_a_preset_and_an_encoder_exclude_each_other(film: Path, tmp_path: Path) -> None:
    assert restore(film, tmp_path / "made.mkv", "--preset", "av1", "--encoder-args=-c:v libx264") == 2
    assert restore(film, tmp_path / "made.mkv", "--bit-depth", "9") == 2


@pytest.mark.parametrize(
    ("preset", "pixel_format", "expected"),
    [
        ("prores", "yuv444p10le", "-profile:v 4 -vendor apl0 -pix_fmt yuv444p10le"),
        ("prores", "yuv420p10le", "-profile:v 3 -vendor apl0 -pix_fmt yuv422p10le"),
        ("hevc10", "yuv422p10le", "-crf 16 -pix_fmt yuv422p10le -tag:v hvc1"),
        ("hevc10", "yuv420p", "-crf 16 -pix_fmt yuv420p -tag:v hvc1"),
        ("archive", "gbrp16le", "-level 3 -g 1 -slicecrc 1 -pix_fmt gbrp16le"),
        ("av1", "yuv444p12le", "-preset 5 -crf 20 -pix_fmt yuv420p10le"),
        ("nvenc", "yuv420p10le", "-cq 18 -b:v 0 -pix_fmt p010le -tag:v hvc1"),
        ("nvenc", "yuv444p", "-pix_fmt yuv444p -tag:v hvc1"),
        ("qsv", "yuv420p", "-global_quality 18 -pix_fmt nv12 -tag:v hvc1"),
        ("vaapi", "yuv420p10le", "-vf format=p010le,hwupload -c:v hevc_vaapi -qp 18 -tag:v hvc1"),
    ],
)
def test_the_options_of_presets(preset: Preset, pixel_format: str, expected: str) -> None:
    assert " ".join(choose_encoder("", pixel_format, ".mp4", preset)).endswith(expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_continued_and_their_pictures_are_compared(preset: Preset) -> None:
    arguments = choose_encoder("-threads 1", "yuv420p10le", ".mkv", preset)
    assert (one_range(arguments) is None) == (preset != "vaapi")  # which needs a filter
    assert not has_filters(arguments)


def test_the_depth_of_a_job() -> None:
    job = RestoreJob(source=Path("a.mkv"), target=Path("b.mkv"))
    assert job.depth is None
    assert RestoreJob(source=job.source, target=job.target, preset="av1").depth == 10
    assert RestoreJob(source=job.source, target=job.target, preset="av1", bit_depth=8).depth == 8


def test_a_preset_that_fails_for_another_reason_keeps_the_encoders_words(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        restore(film, tmp_path / "made.mp4", "--preset", "prores", "--encoder-args=-threads 1") == OutputError.exit_code
    )
    said = capsys.readouterr().err
    assert "check --encoder-args and the disk" in said
