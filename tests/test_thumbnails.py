"""What is encoded is compared with what the finished file shows: encoders that change the picture are caught."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.films import FAST, H264, LOSSLESS, ffmpeg, lighten, nothing_but, picture, restore
from vsfmanet.cli import main
from vsfmanet.jobs import ranges, runner
from vsfmanet.media import commands
from vsfmanet.media.coding import choose_encoder, likeness
from vsfmanet.media.ffmpeg import Run
from vsfmanet.media.film import Film
from vsfmanet.media.thumbnails import BOUNDS, Kept, ThumbnailWriter, difference, read_thumbnails, thumbnail

pytestmark = pytest.mark.usefixtures("in_this_process")

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"

CODINGS = {
    "default": FAST,
    "lossless": LOSSLESS,
    "own": "--encoder-args=-c:v libx264 -preset ultrafast -crf 30",
}


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 moving frames."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(*picture(0.48, size="128x96"), *H264, path)
    return path


def distort(monkeypatch: pytest.MonkeyPatch, filters: str) -> None:
    """Have the encoder change the picture behind our back, but for the trial."""

    def distorted(made: Callable[..., Run]) -> Callable[..., Run]:
        def changed(film: Film, *rest: Any, **named: Any) -> Run:
            run = made(film, *rest, **named)
            is_trial = len(film.timestamps) < 3
            return run if is_trial else replace(run, arguments=(*run.arguments, "-filter:v:0", filters))

        return changed

    lighten(monkeypatch)
    monkeypatch.setattr(runner, "whole_run", distorted(commands.whole_run))
    monkeypatch.setattr(ranges, "range_run", distorted(commands.range_run))


@pytest.mark.parametrize("options", [(), ("--range-frames=5",)], ids=["one pass", "ranges"])
@pytest.mark.parametrize("coding", CODINGS)
def test_an_honest_encoder_passes_and_the_record_says_how_it_was_compared(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coding: str, options: tuple[str, ...]
) -> None:
    lighten(monkeypatch)
    assert restore(film, tmp_path / "made.mkv", CODINGS[coding], *options) == 0
    [record] = (path for path in tmp_path.iterdir() if path.suffix == ".json")
    expected = {"default": "near", "lossless": "exact", "own": "fair"}
    assert json.loads(record.read_text())["pictures"] == expected[coding]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "filters",
    [
        "negate",
        "hue=h=60",
        "geq=random(1)*255:128:128",
        "noise=alls=100:allf=t:enable='eq(n,7)',eq=brightness=0.5:enable='eq(n,7)'",
    ],
    ids=["inverts", "shifts hues", "replaces by noise", "spoils one frame"],
)
def test_an_encoder_that_changes_the_picture_is_caught_whatever_its_quality(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coding: str, filters: str
) -> None:
    distort(monkeypatch, filters)
    assert restore(film, tmp_path / "made.mkv", CODINGS[coding]) == 6
    assert nothing_but(tmp_path)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("filters", ["boxblur=3:1", "crop=iw-16:ih-16,scale=iw+16:ih+16"], ids=["blurs", "crops"])
def test_an_encoder_that_blurs_or_crops_is_caught_where_its_quality_is_known(
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    coding: str,
    filters: str,
) -> None:
    distort(monkeypatch, filters)
    assert restore(film, tmp_path / "made.mkv", CODINGS[coding], "--range-frames=5") == 6
    assert "frame 0 must show what was encoded" in capsys.readouterr().err
    assert nothing_but(tmp_path)


def test_one_wrong_sample_of_a_lossless_film_is_caught(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distort(monkeypatch, "drawbox=x=3:y=5:w=1:h=1:color=red:enable='eq(n,9)'")
    assert restore(film, tmp_path / "made.mkv", LOSSLESS) == 6
    assert "frame 9 must show what was encoded: the very samples" in capsys.readouterr().err


def test_filters_of_the_user_are_not_compared_and_the_record_says_so(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lighten(monkeypatch)
    assert restore(film, tmp_path / "made.mkv", f"{FAST} -vf negate") == 0
    [record] = (path for path in tmp_path.iterdir() if path.suffix == ".json")
    assert json.loads(record.read_text())["pictures"] == "unknown"


def test_a_file_of_a_users_filters_is_compared_with_its_source_in_all_but_the_picture(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lighten(monkeypatch)
    made, record = tmp_path / "made.mkv", tmp_path / "made.mkv.vsfmanet.json"
    assert restore(film, made, f"{FAST} -vf negate,setsar=2") == 0
    assert main(["verify", "--source", str(film), str(made)]) == 0
    assert "filters have changed the picture" in capsys.readouterr().err
    table = json.loads(record.read_text())
    record.write_text(json.dumps(table | {"encoder_args": "-vf 'open"}))
    assert main(["verify", "--source", str(film), str(made)]) == 6  # the record is of no use
    record.write_text(json.dumps(table))
    with made.open("ab") as file:
        file.write(bytes(8))  # no longer the file of the record
    assert main(["verify", "--source", str(film), str(made)]) == 6
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "pixel_format", "expected"),
    [
        ("", "yuv420p", "near"),
        ("", "yuv420p10le", "near"),
        ("-preset veryslow -threads 2", "yuv420p", "near"),
        ("-crf 12", "yuv420p", "near"),
        ("-crf 20", "yuv420p", "fair"),
        ("-crf 32 -threads 2", "yuv420p", "fair"),
        ("-crf 40", "yuv420p", "coarse"),
        ("-crf 45", "yuv420p", "rough"),
        ("-c:v libx265", "yuv420p10le", "rough"),
        ("-c:v libx265 -crf 28", "yuv420p10le", "fair"),
        ("-c:v libx265 -bogus 1", "yuv420p10le", "rough"),
        ("-x264-params crf=40", "yuv420p", "rough"),
        ("-b:v 1M", "yuv420p", "rough"),
        ("-c:v libsvtav1", "yuv420p10le", "rough"),
        ("-c:v libsvtav1 -crf 35", "yuv420p10le", "fair"),
        ("-c:v libsvtav1 -crf 55", "yuv420p10le", "coarse"),
        ("-c:v libvpx-vp9", "yuv420p", "rough"),
        ("-c:v libvpx-vp9 -crf 40 -b:v 0", "yuv420p", "fair"),
        ("-c:v mpeg4", "yuv420p", "rough"),
        ("-c:v mpeg4 -q:v 20", "yuv420p", "coarse"),
        ("-c:v ffv1", "yuv420p", "exact"),
        ("-c:v libx264 -qp 0", "yuv420p", "exact"),
        ("-crf 0", "yuv420p", "exact"),
        ("-crf 0", "yuv420p10le", "near"),
        ("-vf eq=gamma=2", "yuv420p", "unknown"),
    ],
)
def test_options_decide_how_like_the_pictures_must_be(arguments: str, pixel_format: str, expected: str) -> None:
    assert likeness(choose_encoder(arguments, pixel_format, ".mkv"), pixel_format) == expected


@pytest.fixture(scope="session")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of a camera."""
    path = tmp_path_factory.mktemp("walk") / "walk.mkv"
    ffmpeg("-i", EXAMPLES / "walk.mp4", "-vf", "scale=480:-2", "-frames:v", "5", "-an", "-c:v", "ffv1", path)
    return path


def kept(path: Path, folder: Path) -> list[Kept]:
    """The thumbnails of the frames of a film."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]
        track = container.streams.video[0]
        size = (track.width, track.height)
    writer = ThumbnailWriter(folder / "film.thumbnails", size=size, pixel_format="yuv420p", hashed=False)
    for frame in frames:
        writer.add(frame)
    writer.close()
    return list(read_thumbnails([writer.path]))


REAL = (
    *("-c:v libx264 -preset superfast -crf 23", "-c:v libx264 -preset superfast -crf 32"),
    *("-c:v libx265 -preset superfast -crf 32", "-c:v libsvtav1 -preset 12 -crf 40", "-c:v mpeg4 -q:v 15"),
    "-c:v libx264 -crf 16 -preset superfast -pix_fmt yuvj420p",
)
COARSE = (
    *("-c:v libx264 -preset superfast -crf 40", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 63 -b:v 0"),
    "-c:v mpeg2video -q:v 31",
)


@pytest.mark.parametrize("coding", REAL + COARSE)
def test_a_real_film_passes_at_the_quality_asked_for_and_a_changed_one_does_not(
    walk: Path, tmp_path: Path, coding: str
) -> None:
    arguments, made = coding.split(), tmp_path / "made.mkv"
    level = likeness(arguments, "yuv420p")
    wanted = kept(walk, tmp_path)

    def differ(filters: str) -> list[str | None]:
        format_ = [] if "-pix_fmt" in arguments else ["-pix_fmt", "yuv420p"]
        ffmpeg("-i", walk, "-vf", filters, *format_, *arguments, made)
        with av.open(str(made)) as container:
            return [
                each.difference(frame, level) for each, frame in zip(wanted, container.decode(video=0), strict=True)
            ]

    assert differ("null") == [None] * 5
    changes = ["negate", "hue=h=120", "geq=random(1)*255:128:128", "eq=brightness=0.2", "hflip"]
    for filters in changes + (["boxblur=3:1", "hue=h=60"] if level in ("near", "fair") else []):
        assert None not in differ(filters), filters
    if level in ("near", "fair"):
        assert any(differ("boxblur=2:1"))  # one frame is enough to refuse the film
    assert level == ("near" if "16" in arguments else "coarse" if coding in COARSE else "fair")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (17, 31), (128, 96), (1921, 1081)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv411p", "gbrp10le", "gray16le"])
def test_thumbnails_of_any_size_and_format_are_read_back(
    tmp_path: Path, width: int, height: int, pixel_format: str
) -> None:
    path, size = tmp_path / "film.thumbnails", (width, height)
    chance = np.random.default_rng(3)
    depth = {"gbrp10le": 10, "gray16le": 16}.get(pixel_format, 8)
    small = {"yuv420p": (-(-height // 2), -(-width // 2)), "yuv411p": (height, -(-width // 4))}
    shapes = [(height, width)]
    shapes += [] if pixel_format == "gray16le" else [small.get(pixel_format, (height, width))] * 2
    kind = np.uint8 if depth == 8 else np.uint16
    frames = [[chance.integers(0, 1 << depth, shape).astype(kind) for shape in shapes] for _ in range(3)]
    writer = ThumbnailWriter(path, size=size, pixel_format=pixel_format, hashed=True)
    for frame in frames:
        writer.add(b"".join(plane.tobytes() for plane in frame))
    writer.close()
    made = list(read_thumbnails([path]))
    assert [each.number for each in made] == [0, 1, 2]
    for each, frame in zip(made, frames, strict=True):
        again = thumbnail(frame, depth=depth, number=each.number)
        assert np.array_equal(again.means, each.thumbnail.means)
        assert difference(each.thumbnail, again, BOUNDS["near"]) is None
        assert len(each.thumbnail.hash) == 16
        if width > 16:
            black = thumbnail([np.zeros_like(plane) for plane in frame], depth=depth, number=each.number)
            assert difference(each.thumbnail, black, BOUNDS["rough"]) is not None


@pytest.mark.parametrize("size", [(128, 96), (130, 98)], ids=["4:2:0", "other size"])
def test_a_file_is_compared_with_the_pictures_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    film, made, other = tmp_path / "film.mkv", tmp_path / "made.mkv", tmp_path / "other.mkv"
    ffmpeg(*picture(0.48, size=f"{size[0]}x{size[1]}"), "-vf", "gblur=sigma=2", *H264, film)
    lighten(monkeypatch, scale=4)
    assert restore(film, made) == 0
    assert main(["verify", "--source", str(film), str(made)]) == 0
    for filters in ("negate", "hue=h=90", "geq=random(1)*255:128:128", "reverse,setpts=N/25/TB"):
        ffmpeg("-i", made, "-vf", filters, *H264, other)
        capsys.readouterr()
        assert main(["verify", "--source", str(film), str(other)]) == 6, filters
        assert "must show its source" in capsys.readouterr().err
