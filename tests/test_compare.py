"""Moments of a film compared: the frames are those of the film, and the page works in a browser."""

from __future__ import annotations

import html
import html.parser
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.films import H264, ffmpeg, picture, sound
from vsfmanet.cli import main
from vsfmanet.errors import FormatError, SourceError
from vsfmanet.media import clip as clips
from vsfmanet.media.excerpt import AROUND, excerpt, outline
from vsfmanet.media.source import inspect
from vsfmanet.settings import RestoreSettings

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

EXAMPLE = Path(__file__).parents[1] / "scripts" / "examples" / "dragonfly.mkv"


def enlarge(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
    """No network: the picture as many times as large as the model's name says."""
    scale = int(settings.model[-1])
    node = clips.converted(node, settings.output_format)
    if settings.strength == 0:
        node = node.std.Invert()
    return node.resize.Bicubic(scale * node.width, scale * node.height)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network."""
    monkeypatch.setattr(clips, "restore_clip", enlarge)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds with several groups of pictures, and sound that starts earlier."""
    path = tmp_path_factory.mktemp("film") / "a film.mkv"
    ffmpeg(
        *sound(4.5), "-itsoffset", "0.5", *picture(4, size="128x96"), "-map", "1", "-map", "0", *H264, "-g", "30",
        "-bf", "2", "-c:a", "aac", path,
    )  # fmt: skip
    return path


def planes(frame: vs.VideoFrame) -> list[NDArray[np.integer]]:
    return [np.asarray(frame[plane]) for plane in range(frame.format.num_planes)]


def assert_same_frames(path: Path, numbers: list[int]) -> None:
    """Compare excerpts with what BestSource reads, frame by frame, with their colour tags."""
    source = clips.open_clip(inspect(path), threads=0)
    described = outline(path)
    for number in numbers:
        time = source.timestamps[number] * source.time_base - described.begin
        found = excerpt(described, time)
        first = number - found.place
        assert found.place == min(number, AROUND)
        assert found.node.num_frames == min(number + AROUND + 1, source.node.num_frames) - first
        assert found.node.format.id == source.node.format.id
        for n in range(found.node.num_frames):
            one, other = found.node.get_frame(n), source.node.get_frame(first + n)
            for mine, theirs in zip(planes(one), planes(other), strict=True):
                np.testing.assert_array_equal(mine, theirs)
            for name in ("_Matrix", "_Transfer", "_Primaries"):
                assert one.props.get(name, 2) == other.props.get(name, 2), name
            for name in ("_Range", "_ChromaLocation"):
                assert one.props.get(name) == other.props.get(name), name


def test_the_frames_around_a_moment_are_those_of_the_film(film: Path) -> None:
    assert_same_frames(film, [0, 5, 29, 30, 44, 98, 99])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-c:v", "ffv1", "-pix_fmt", "yuv422p10le"], "film.mkv"),
        (["-c:v", "rawvideo", "-pix_fmt", "nv12"], "film.nut"),
        (["-c:v", "ffv1", "-pix_fmt", "bgr0"], "film.mkv"),
        (["-c:v", "libx264", "-vf", "scale=out_color_matrix=bt709:out_range=full", "-colorspace", "bt709",
          "-color_range", "pc"], "film.mp4"),
        (["-c:v", "libx264", "-f", "mpegts"], "film.ts"),
        (["-c:v", "libx264", "-vf", "select=not(mod(n\\,7))+lt(n\\,30)", "-fps_mode", "vfr"], "film.mkv"),
    ],
)  # fmt: skip
def test_formats_ranges_and_containers_do_not_matter(tmp_path: Path, options: list[str], name: str) -> None:
    path = tmp_path / name
    ffmpeg(*picture(2, size="64x48"), *options, path)
    assert_same_frames(path, [0, 20, 31])


def test_a_turned_film_is_upright(tmp_path: Path) -> None:
    ffmpeg(*picture(1, size="64x48"), "-c:v", "libx264", tmp_path / "flat.mp4")
    for turn in ("90", "180", "270"):
        turned = tmp_path / f"turned{turn}.mp4"
        ffmpeg("-display_rotation:v:0", turn, "-i", tmp_path / "flat.mp4", "-c", "copy", turned)
        assert_same_frames(turned, [7])


def test_damage_elsewhere_does_not_matter_because_nothing_else_is_decoded(film: Path, tmp_path: Path) -> None:
    data = bytearray(film.read_bytes())
    data[len(data) // 2 :] = os.urandom(len(data) - len(data) // 2)
    damaged = tmp_path / "damaged.mkv"
    damaged.write_bytes(data)
    one, other = (excerpt(outline(path), Fraction(1, 2)) for path in (film, damaged))
    np.testing.assert_array_equal(planes(one.node.get_frame(0))[0], planes(other.node.get_frame(0))[0])


def test_what_cannot_be_compared_is_refused(tmp_path: Path, film: Path) -> None:
    with pytest.raises(SourceError, match="a video file is needed, got none"):
        outline(tmp_path / "none.mkv")
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(SourceError, match="that FFmpeg can open"):
        outline(tmp_path / "text.mkv")
    woven = tmp_path / "woven.mkv"
    ffmpeg(*picture(1), "-vf", "tinterlace=4", "-flags", "+ildct+ilme", "-c:v", "mpeg2video", woven)
    with pytest.raises(FormatError, match="progressive video is needed"):
        excerpt(outline(woven), Fraction(0))


def test_the_network_restores_a_moment_as_it_restores_the_film() -> None:
    source = clips.open_clip(inspect(EXAMPLE), threads=0)
    settings = RestoreSettings(precision="fp32", device="cpu", exposure=0.5)
    small = {"width": 64, "height": 48, "left": 64, "top": 32}
    whole = clips.restore_clip(source.node.std.CropAbs(**small), settings)
    found = excerpt(outline(EXAMPLE), source.timestamps[20] * source.time_base)
    part = clips.restore_clip(found.node.std.CropAbs(**small), settings)
    for mine, theirs in zip(planes(part.get_frame(found.place)), planes(whole.get_frame(20)), strict=True):
        np.testing.assert_allclose(mine.astype(int), theirs.astype(int), atol=1)


# The command


class Reader(html.parser.HTMLParser):
    """Collects what a page is made of, and checks that its elements are closed."""

    EMPTY = frozenset({"meta", "img", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags = Counter[str]()
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


def loads_nothing(text: str) -> bool:
    """Whether a page needs no other file: images are in it, and it names no address."""
    without_images = re.sub(r'src="data:image/jpeg;base64,[^"]+"', "", text)
    return not re.search(r"https?:|\bsrc=|url\(|@import|<link", without_images)


@pytest.mark.usefixtures("light")
def test_a_page_and_a_picture_show_each_moment_before_and_by_each_model(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["compare", str(film), "--at", "0:00:01", "--at", "60", "--model", "x2", "--model", "x4", "--json"]
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["moments"] == [pytest.approx(1), pytest.approx(2.92)]  # on the clock of the film, which sound starts
    assert [choice["size"] for choice in told["choices"]] == [[256, 192], [512, 384]]
    text = Path(told["page"]).read_text(encoding="utf-8")
    page = Reader(text)
    assert loads_nothing(text)
    assert page.tags["figure"] == 2
    alts = [image["alt"] for image in page.images]
    assert alts[:3] == [
        "0:00:01, the source enlarged by bicubic interpolation",
        "0:00:01, restored by x2",
        "0:00:01, restored by x4",
    ]
    assert {(image["width"], image["height"]) for image in page.images} == {("512", "384")}
    assert os.path.relpath(film, tmp_path) in page.text
    assert "100 frames" in page.text
    assert "-c:v libx264" in page.text
    with av.open(told["picture"]) as container:
        sheet = next(container.decode(video=0))
    assert (sheet.width, sheet.height) == (8 + 3 * (480 + 8), 2 * (24 + 270 + 8) + 8)
    before = Path(told["page"]).read_bytes()
    assert main(line) == 2
    assert Path(told["page"]).read_bytes() == before
    assert main([*line, "--overwrite"]) == 0


@pytest.mark.usefixtures("light")
def test_the_size_of_the_film_is_estimated_by_its_frames(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, whole = tmp_path / "page.html", tmp_path / "whole.mkv"
    assert main(["compare", str(film), "--model", "x2", "--page", str(page), "--json"]) == 0
    [choice] = json.loads(capsys.readouterr().out)["choices"]
    ffmpeg("-i", film, "-an", "-vf", "scale=256:-1:flags=bicubic", "-c:v", "libx264", "-crf", "16", whole)
    assert whole.stat().st_size / 2 < choice["video_bytes"] < 2 * whole.stat().st_size
    assert choice["seconds"] == pytest.approx(100 * choice["frame_seconds"], rel=0.05, abs=0.1)


@pytest.mark.usefixtures("light")
def test_each_model_is_shown_with_each_strength(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["compare", str(film), "--at=10", "--model=x2", "--model=x1", "--strength=0", "--strength=1", "--json"]
    assert main(line) == 0
    told = json.loads(capsys.readouterr().out)
    choices = [(choice["model"], choice["strength"]) for choice in told["choices"]]
    assert choices == [("x2", 0.0), ("x2", 1.0), ("x1", 0.0), ("x1", 1.0)]
    page = Reader(Path(told["page"]).read_text(encoding="utf-8"))
    assert [(image["alt"] or "").partition("restored by ")[2] for image in page.images][1:] == [
        "x2, strength 0",
        "x2, strength 1",
        "x1, strength 0",
        "x1, strength 1",
    ]
    assert "restored.mkv --model=x2 --strength=0.0" in page.text
    assert "1 moment of" in page.text
    sources = [image["src"] for image in page.images]
    assert sources[1] != sources[2]
    with av.open(told["picture"]) as container:
        sheet = next(container.decode(video=0)).to_ndarray(format="gray").astype(int)
    width = (sheet.shape[1] - 8) // 5
    tiles = [sheet[60:280, 8 + n * width : n * width + width - 8] for n in range(5)]
    assert abs(tiles[1] + tiles[2] - 255).mean() < 25  # one of them is inverted


@pytest.mark.usefixtures("light")
def test_the_encoder_of_a_preset_and_the_depth_decide_the_size(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {}
    for preset, words in (("default", "libx264"), ("hevc10", "yuv420p10le"), ("archive", "ffv1")):
        page = tmp_path / f"{preset}.html"
        assert main(["compare", str(film), "--model=x2", f"--preset={preset}", f"--page={page}", "--json"]) == 0
        sizes[preset] = json.loads(capsys.readouterr().out)["choices"][0]["video_bytes"]
        text = page.read_text(encoding="utf-8")
        assert words in text
        assert (f"--model=x2 --preset={preset}" in text) == (preset != "default")
    assert sizes["archive"] > 2 * sizes["default"]
    page = tmp_path / "deep.html"
    assert (
        main(["compare", str(film), "--model=x2", "--preset=archive", "--bit-depth=16", f"--page={page}", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["choices"][0]["video_bytes"] > 1.5 * sizes["archive"]


@pytest.mark.usefixtures("light")
def test_moments_of_a_script_are_those_of_its_clip(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "script.vpy"
    script.write_text(
        "import vapoursynth as vs\n"
        f"clip = vs.core.bs.VideoSource({str(film)!r}, cachemode=0)\n"
        "clip.std.Crop(left=32)[20:].set_output()\n"
    )
    assert main(["compare", "script.vpy", "--at=10", "--at=0:00:02", "--model=x2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["moments"] == [pytest.approx(10 / 25), 2.0]
    assert told["choices"][0]["size"] == [192, 192]
    found, source = excerpt(outline(script), Fraction(2)), vs.core.bs.VideoSource(str(film), cachemode=0)
    for one, other in zip(planes(found.node.get_frame(found.place)), planes(source.get_frame(70)), strict=True):
        ratio = source.width // other.shape[1]
        np.testing.assert_array_equal(one, other[:, 32 // ratio :])
    script.write_text("raise ValueError('no film')")
    assert main(["compare", "script.vpy", "--model=x2", "--overwrite"]) == 3
    assert "line 1: ValueError: no film" in capsys.readouterr().err


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--at", "1:00:00"], "moments within"),
        (["--at", "100"], "frames 0 to 99 can be shown, got 100"),
        (["--at", "-1"], "frames 0 to 99 can be shown, got -1"),
        (["--at", "30", "--at", "30"], "two show one frame"),
        (["--at", "1x"], "a frame number or a time is needed"),
        (["--model", "x2", "--model", "x2"], "different models and strengths are needed"),
        (["--strength", "1", "--strength", "1"], "different models and strengths are needed"),
        (["--strength", "2"], "strength must be"),
        (["--preset", "av1", "--encoder-args=-c:v ffv1"], "either a preset or an encoder is needed"),
        (["--page", "page.txt"], "must end in .html"),
    ],
)
def test_wrong_moments_models_and_pages_are_refused(
    film: Path, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in options else ["--model", "x1"]
    assert main(["compare", str(film), *model, *options]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("light")
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium; the structure of the page is checked without it")
@pytest.mark.parametrize("width", [390, 1400])
def test_a_browser_shows_the_page_without_scrolling_sideways(film: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", str(film), "--at", "20", "--model", "x2", "--model", "x4", "--page", str(page)]) == 0
    measured = tmp_path / "measured.html"  # in a frame, because the window of a browser is 500 pixels wide at least
    measured.write_text(
        f'<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe><p id="found"></p>'
        "<script>onload = () => { const d = frames[0].document, e = d.documentElement, s = d.querySelector('.shots'),"
        "box = s.getBoundingClientRect(); document.querySelector('#found').textContent = JSON.stringify({"
        "wide: e.scrollWidth, live: d.querySelectorAll('figure.live').length, sides: d.querySelectorAll('select')"
        ".length, shown: [...d.querySelectorAll('.shot')].filter(x => getComputedStyle(x).visibility == 'visible')"
        ".map(x => x.textContent), box: [box.width, box.height], cut: s.style.getPropertyValue('--cut')}) }</script>"
    )
    found = in_browser(measured)
    assert found["wide"] <= width
    assert found["live"] == 1
    assert found["sides"] == 2
    assert found["shown"] == ["before", "x2"]
    assert found["cut"] == "50%"
    assert found["box"][0] / found["box"][1] == pytest.approx(512 / 384, rel=0.01)


def in_browser(path: Path) -> dict[str, Any]:
    """What a page has written into its element `found`."""
    assert BROWSER is not None
    line = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    line += ["--virtual-time-budget=10000", "--window-size=1500,1000", f"--user-data-dir={path.parent / 'profile'}"]
    run = subprocess.run([*line, path.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r'id="found">([^<]+)<', run.stdout)
    assert match, run.stdout[-2000:] + run.stderr[-2000:]
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found
