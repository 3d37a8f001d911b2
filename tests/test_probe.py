"""What `vsfmanet probe` says of a file, and what it writes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import vapoursynth as vs

import vsfmanet
from tests.films import ffmpeg, picture
from tests.gopro import evenly, write_gopro
from vsfmanet.cli import main
from vsfmanet.errors import FormatError
from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose camera recorded an exposure of 0.3, then 0.6, then nothing."""
    shutter = [0.01] * 20 + [0.02] * 20 + [0.0] * 20
    return write_gopro(tmp_path_factory.mktemp("gopro") / "a & b.mp4", evenly(shutter))


def probed(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["probe", str(path), "--json"]) == 0
    table: dict[str, object] = json.loads(capsys.readouterr().out)
    return table


def test_probe_says_what_a_file_is_and_what_is_known_of_its_exposure(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", str(recording)]) == 0
    said = capsys.readouterr().out
    assert "h264, 64x48, 60 frames, 0:00:02" in said
    assert "30 frames/s, constant (CFR)" in said
    assert "YUV420P8, progressive" in said
    assert "telemetry for 40 frames, network for 20 frames; known: 0.3 to 0.6" in said
    assert "none found" in said
    assert "has a shutter time for 40 of 60 frames" in said
    assert "takes this file" in said
    assert "format    YUV420P8, progressive, square samples\n" in said
    assert "plan      encode 60 frames, at their own times, by libx264 as yuv420p\n" in said
    assert "plan      leave out data stream 1 (unknown)\n" in said
    assert "plan      write to .mkv or .mp4 or .mov\n" in said


def test_probe_gives_programs_the_same_as_json(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = probed(recording, capsys)
    assert table["exposure"] == {
        "sources": {"telemetry": 40, "network": 20},
        "min": pytest.approx(0.3, rel=1e-3),
        "mean": pytest.approx(0.45, rel=1e-3),
        "max": pytest.approx(0.6, rel=1e-3),
        "estimate_read": None,
        "estimate_off": None,
    }
    assert table["streams"] == ["video stream 0 (h264)", "data stream 1 (unknown)"]
    assert table["refusal"] is None


def test_a_variable_rate_is_told_with_its_shortest_and_longest_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_gopro(tmp_path / "varying.mp4", [], times=[0.0, 0.04, 0.08, 0.16, 0.2])
    assert main(["probe", str(path)]) == 0
    assert "variable (VFR): a frame lasts 40 to 80 ms" in capsys.readouterr().out


def test_a_file_that_restore_refuses_is_still_described(
    recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def woven(*_: object) -> None:
        raise FormatError("restore: progressive video is needed, got interlaced; deinterlace it first")

    monkeypatch.setattr(clips, "_check_progressive", woven)
    table = probed(recording, capsys)
    assert table["refusal"] == "restore: progressive video is needed, got interlaced; deinterlace it first"
    assert table["exposure"]["sources"] == {"telemetry": 40, "network": 20}  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_the_exported_exposures_are_read_back_by_restore(
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    sidecar = tmp_path / f"exposures{suffix}"
    assert main(["probe", str(recording), "--export", str(sidecar)]) == 0
    seen: list[float | None] = []

    def look(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        tagged = vsfmanet.exposure(node, exposure=settings.exposure)
        seen.extend(tagged.get_frame(n).props.get("FMANetExposure") for n in (0, 39, 40))
        return tagged

    monkeypatch.setattr(clips, "restore_clip", look)
    arguments = ["restore", str(recording), str(tmp_path / "made.mkv"), "--exposure", str(sidecar)]
    assert main([*arguments, "--encoder-args=-preset ultrafast"]) == 0
    assert seen == [pytest.approx(0.3, rel=1e-3), pytest.approx(0.6, rel=1e-3), None]


def test_the_picture_has_a_line_for_each_stretch_that_is_known(recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "exposure.svg"
    assert main(["probe", str(recording), "--plot", str(path)]) == 0
    drawing = ElementTree.fromstring(path.read_text())
    [line] = drawing.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == 40
    assert points[0] == (40.0, 208.0)  # at the left, 0.3 of the way up
    assert points[-1][1] == 136.0
    assert "a & b.mp4" in "".join(drawing.itertext())


def test_estimates_fill_what_the_camera_left_open_and_are_held_against_the_rest(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(node: vs.VideoNode, *, exposure: str) -> vs.VideoNode:
        assert exposure == "estimate"
        tagged = node.std.SetFrameProps(FMANetExposure=0.5, FMANetExposureConfidence=0.8)
        held = node.std.SetFrameProps(FMANetExposure=0.5, FMANetExposureConfidence=0.2)
        return tagged[:30] + held[30:50] + node[50:]

    monkeypatch.setattr(vsfmanet, "exposure", seen, raising=False)
    plot, sidecar = tmp_path / "exposure.svg", tmp_path / "all.json"
    arguments = ["probe", str(recording), "--estimate", "--json", "--plot", str(plot), "--export", str(sidecar)]
    assert main(arguments) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)["exposure"]
    assert found["sources"] == {"telemetry": 40, "estimate": 10, "network": 10}
    assert found["estimate_read"] == 30
    assert found["estimate_off"] == pytest.approx((20 * 0.2 + 20 * 0.1) / 40, rel=1e-2)
    assert "estimating 60/60 frames" in said.err
    assert json.loads(sidecar.read_text())["source"] == ["telemetry"] * 40 + ["estimate"] * 10 + [None] * 10
    lines = list(ElementTree.fromstring(plot.read_text()).iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(line.attrib["points"].split()) for line in lines] == [50, 40]


def test_a_file_that_exists_is_not_written_over(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("work of hours")
    assert main(["probe", str(recording), "--export", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "work of hours"


def test_a_picture_without_exposures_says_what_to_do(tmp_path: Path) -> None:
    film, path = tmp_path / "film.mkv", tmp_path / "exposure.svg"
    ffmpeg(*picture(0.4), "-c:v", "libx264", "-preset", "ultrafast", film)
    assert main(["probe", str(film), "--plot", str(path)]) == 0
    texts = [text.text for text in ElementTree.fromstring(path.read_text()).iter("{http://www.w3.org/2000/svg}text")]
    assert "nothing recorded, use --estimate" in texts


@pytest.mark.parametrize("option", ["--export=all.txt", "--plot=all.png"])
def test_a_suffix_that_is_not_written_is_refused_first(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "gone.mp4", option]) == 2
    assert "the file to write must end in" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_has_the_exit_code_of_outputs(recording: Path, tmp_path: Path) -> None:
    assert main(["probe", str(recording), "--export", str(tmp_path / "gone" / "all.csv")]) == 5


def test_a_missing_source_has_the_exit_code_of_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "gone.mp4"]) == 3
    assert "cannot be found" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["much", "0.5.txt"])
def test_an_exposure_that_is_neither_number_nor_file_is_wrong_usage(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["restore", "a.mkv", "b.mkv", "--exposure", text]) == 2
    assert f"auto, estimate, a number or a .csv or .json file is needed, got '{text}'" in capsys.readouterr().err
