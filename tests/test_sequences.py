"""Numbered pictures as the source and as the output of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import light
from tests.films import FFMPEG, LOSSLESS, ffmpeg, kinds, lighten, nothing_but, picture, restore, sound, times
from vsfmanet.cli import main
from vsfmanet.errors import ConfigError, IncompleteError
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.job import RestoreJob, parse_rate, recipe
from vsfmanet.jobs.record import content
from vsfmanet.media import clip as clips
from vsfmanet.media import sequence
from vsfmanet.media.sequence import decode_picture, planar

COUNT = 6
PNG = "%03d.png"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Path:
    """The working folder."""
    lighten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shots(folder: Path, kind: str = "rgb24", suffix: str = ".png", first: int = 7) -> Path:
    """Numbered pictures; the pattern of their names."""
    (folder / "shots").mkdir()
    pattern = folder / "shots" / f"shot%03d{suffix}"
    ffmpeg(*picture(COUNT / 25), "-vf", "noise=alls=20:allf=t", "-pix_fmt", kind, "-start_number", str(first), pattern)
    return pattern


def planes(path: Path) -> list[NDArray[Any]]:
    """Samples of a picture, by FFmpeg and not by this project."""
    deep = "16" in av.open(str(path)).streams.video[0].codec_context.pix_fmt  # type: ignore[operator]
    raw = subprocess.run(
        [FFMPEG, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "gbrp16le" if deep else "gbrp", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        shape = (3, track.height, track.width)
    return list(np.frombuffer(raw, np.uint16 if deep else np.uint8).reshape(shape))


@pytest.mark.parametrize(
    ("kind", "suffix"), [("rgb24", ".png"), ("rgb48be", ".png"), ("rgb24", ".tif"), ("rgb48le", ".tiff")]
)
@pytest.mark.parametrize("made", [".png", ".tif"])
def test_every_sample_goes_in_and_out_of_pictures(folder: Path, kind: str, suffix: str, made: str) -> None:
    pattern = shots(folder, kind, suffix)
    assert restore(pattern, folder / f"out/%04d{made}", encoder=()) == 0
    assert nothing_but(folder, "shots", "out", "out.vsfmanet.json")
    assert nothing_but(folder / "out", *(f"{n:04}{made}" for n in range(7, 7 + COUNT)))
    for n in range(7, 7 + COUNT):
        before, after = planes(folder / f"shots/shot{n:03}{suffix}"), planes(folder / f"out/{n:04}{made}")
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(np.repeat(np.repeat(one, 2, 0), 2, 1), other)
    record = json.loads(record_path(folder / "out").read_text())
    assert (record["frames"], record["width"], record["height"], record["pictures"]) == (COUNT, 128, 96, "exact")


def test_gray_pictures_stay_gray_and_alpha_is_left_out_with_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shots(folder, "ya8")
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 0
    assert "transparency channel is not carried over" in capsys.readouterr().err
    made = decode_picture(folder / "out/007.png")
    assert made.format.name == "gray"
    np.testing.assert_array_equal(
        made.to_ndarray()[::2, ::2], planar(decode_picture(folder / "shots/shot007.png")).to_ndarray()
    )


def test_pictures_become_a_film_with_a_rate_and_the_sound_of_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shots(folder)
    ffmpeg(*sound(0.5), *picture(0.3), "-c:v", "libx264", "-c:a", "aac", "film.mkv")
    assert restore(pattern, folder / "made.mkv", "--fps=23.976", "--audio-from=film.mkv") == 0
    assert kinds(folder / "made.mkv") == ["video", "audio"]
    shown = times(folder / "made.mkv")
    assert [round(time * 24000 / 1001 * 1000) for time in shown] == pytest.approx(
        [1000 * n for n in range(COUNT)], abs=30
    )
    with av.open(str(folder / "made.mkv")) as container:
        track = container.streams.video[0]
        assert (track.codec_context.pix_fmt, track.colorspace) == ("yuv420p", 6)
    assert "--fps" not in capsys.readouterr().err
    assert restore(pattern, folder / "plain.mkv", LOSSLESS, "--preset=default") == 0
    assert "taken as 25 per second; --fps sets another rate" in capsys.readouterr().err
    assert times(folder / "plain.mkv") == [Fraction(n, 25) for n in range(COUNT)]
    assert restore(pattern, folder / "archive.mkv", "--preset=archive", encoder=()) == 0
    with av.open(str(folder / "archive.mkv")) as container:
        assert next(container.decode(video=0)).format.is_rgb


def test_a_film_becomes_pictures_that_have_the_numbers_of_its_frames(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ffmpeg(*picture(1), *sound(1), "-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-vf", "setsar=16/15", "film.mkv")
    assert restore("film.mkv", folder / f"out/{PNG}", "--start=3", "--end=6", encoder=()) == 0
    said = capsys.readouterr().err
    assert "pictures carry no audio" in said
    assert "sample aspect ratio, 16/15" in said
    assert nothing_but(folder / "out", "003.png", "004.png", "005.png")
    assert decode_picture(folder / "out/003.png").format.name == "rgb48be"
    options = ("--start=3", "--end=6", "--start-number=101", "--bit-depth=8")
    assert restore("film.mkv", folder / f"eight/{PNG}", *options, encoder=()) == 0
    assert nothing_but(folder / "eight", "101.png", "102.png", "103.png")
    assert decode_picture(folder / "eight/101.png").format.name == "rgb24"


def test_missing_and_damaged_pictures_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = shots(folder)
    for name in ("shot009.png", "shot010.png"):
        (folder / "shots" / name).unlink()
    data = bytearray((folder / "shots/shot008.png").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shots/shot008.png").write_bytes(data)
    assert restore(pattern, folder / "made.mkv") == 3
    said = capsys.readouterr().err
    assert "shot009.png to shot010.png are missing; shot008.png cannot be decoded" in said
    assert nothing_but(folder, "shots")
    assert restore(pattern, folder / f"out/{PNG}", "--on-damage=salvage", encoder=()) == 0
    assert nothing_but(folder / "out", "007.png", "011.png", "012.png")
    assert restore(pattern, folder / "made.mkv", "--on-damage=salvage") == 0
    assert times(folder / "made.mkv") == [Fraction(n, 25) for n in (0, 4, 5)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("-s", "66x48"), "shot009.png: one size and format throughout is needed, but this picture has 66x48"),
        (("-pix_fmt", "gray"), "64x48 gray, and the first 64x48 rgb24"),
    ],
)
def test_pictures_of_different_size_or_format_are_refused(
    folder: Path, change: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shots(folder)
    ffmpeg(*picture(0.04), *change, "-frames:v", "1", "-update", "1", "shots/shot009.png")
    assert restore(pattern, folder / "made.mkv") == 3
    assert said in capsys.readouterr().err


def test_without_pictures_and_with_names_that_cannot_be_there_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shots(folder)
    assert restore("shots/other%03d.png", folder / "made.mkv") == 3
    assert "numbered pictures are needed, got none of this name" in capsys.readouterr().err
    for target, options, said in (
        ("%03d.png", (), "pictures need a folder of their own; name one, such as restored/%03d.png"),
        ("out/picture.png", (), "or be numbered pictures such as restored/%06d.png"),
        ("out/%03d.exr", (), "the output must end in one of"),
        (f"out/{PNG}", ("--preset=archive",), "got pictures, which are lossless; leave them out"),
        (f"out/{PNG}", ("--bit-depth=10",), "pictures have 8 or 16 bits"),
        ("made.mkv", ("--start-number=1",), "--start-number is for numbered pictures"),
        ("made.mkv", ("--fps=fast",), "such as 25 or 24000/1001, got 'fast'"),
    ):
        assert main(["restore", *options, str(pattern), target]) == 2
        assert said in capsys.readouterr().err


def test_a_folder_with_foreign_files_is_not_touched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = shots(folder)
    (folder / "out").mkdir()
    (folder / "out/note.txt").write_text("mine")
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 2
    assert restore(pattern, folder / f"out/{PNG}", "--overwrite", encoder=()) == 2
    assert "files that are not of vsfmanet, and is left as it is" in capsys.readouterr().err
    assert nothing_but(folder / "out", "note.txt")
    assert nothing_but(folder, "shots", "out")
    assert restore(pattern, folder / f"shots/{PNG}", encoder=()) == 2  # that of the source


def test_an_empty_folder_is_taken_and_a_finished_one_is_done_or_kept_as_old(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern = shots(folder)
    (folder / "out").mkdir()
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 0
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 0
    assert "already done" in capsys.readouterr().err
    assert main(["verify", "out"]) == main(["verify", f"out/{PNG}"]) == 0
    assert main(["verify", "out", "--source", str(pattern)]) == 2
    assert restore(pattern, folder / f"out/{PNG}", "--start=1", encoder=()) == 2
    assert restore(pattern, folder / f"out/{PNG}", "--start=1", "--overwrite", encoder=()) == 0
    assert nothing_but(folder, "shots", "out", "out.vsfmanet.json", "out.old1", "out.old1.vsfmanet.json")
    assert len(list((folder / "out").iterdir())) == COUNT - 1
    assert main(["verify", "out.old1"]) == 0
    (folder / "out/009.png").unlink()
    assert main(["verify", "out"]) == 6


def test_a_job_that_stops_goes_on_behind_its_last_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, asked = shots(folder), []
    read = clips.read_frames

    def fail(*arguments: Any, **options: Any) -> Any:
        for n, frame in enumerate(read(*arguments, **options)):
            asked.append(n + options["first"])
            if len(asked) == 4:
                raise OSError("no space left on device")
            yield frame

    monkeypatch.setattr(sequence, "AT_ONCE", 1)
    monkeypatch.setattr(clips, "read_frames", fail)
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 5
    assert not (folder / "out").exists()
    work = next(path for path in folder.iterdir() if path.name.endswith(".work"))
    assert nothing_but(work / "pictures", "007.png", "008.png", "009.png")
    (work / "pictures" / sequence.UNFINISHED).write_bytes(b"half")  # as a kill leaves it
    with (work / sequence.SAMPLES).open("a") as samples:
        samples.write("10 0123")
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 0
    assert "3 of 6 pictures are there; going on" in capsys.readouterr().err
    assert asked == [0, 1, 2, 3, 3, 4, 5]
    assert nothing_but(folder / "out", *(f"{n:03}.png" for n in range(7, 13)))
    assert nothing_but(folder, "shots", "out", "out.vsfmanet.json")


def test_a_job_that_is_killed_leaves_whole_pictures_and_goes_on(tmp_path: Path) -> None:
    ffmpeg(*picture(1.2), "-vf", "noise=alls=20:allf=t", "-c:v", "ffv1", tmp_path / "film.mkv")

    def run(made: str, fault: str = "") -> tuple[int, str]:
        line = [sys.executable, str(light.FILE), "restore", str(tmp_path / "film.mkv"), str(tmp_path / made / PNG)]
        ended = subprocess.run(line, env=light.environment(fault=fault, pause=0.02), capture_output=True, check=False)
        return ended.returncode, ended.stderr.decode()

    code, said = run("out", "SIGKILL")
    assert code == 6, said
    assert not (tmp_path / "out").exists()
    work = next(path for path in tmp_path.iterdir() if path.name.endswith(".work"))
    whole = sorted(path for path in (work / "pictures").iterdir() if path.name != sequence.UNFINISHED)
    assert 3 <= len(whole) <= light.FAULTY
    for path in whole:
        decode_picture(path)
    code, said = run("out")
    assert code == 0, said
    assert f"{len(whole)} of 30 pictures are there; going on" in said
    assert run("once")[0] == 0
    assert content(tmp_path / "out")[1]() == content(tmp_path / "once")[1]()
    assert nothing_but(tmp_path, "film.mkv", "out", "out.vsfmanet.json", "once", "once.vsfmanet.json")


def test_a_picture_that_changes_on_the_disk_is_not_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pattern, encode = shots(folder), sequence.encode_picture

    def spoil(samples: NDArray[Any], *rest: Any) -> bytes:
        samples = samples.copy()
        samples[5, 6, 1] ^= 1  # one sample, by one
        return encode(samples, *rest)

    monkeypatch.setattr(sequence, "encode_picture", spoil)
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 6
    assert "007.png: the very samples that were written are needed, got others" in capsys.readouterr().err
    assert nothing_but(folder, "shots")


def test_a_source_that_changes_is_another_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = shots(folder)
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 0
    path = folder / "shots/shot010.png"
    status = path.stat()
    path.write_bytes((folder / "shots/shot011.png").read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert restore(pattern, folder / f"out/{PNG}", encoder=()) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_picture_that_is_missing_or_foreign_fails_the_verification(tmp_path: Path) -> None:
    writer = sequence.PictureWriter(Path(PNG), tmp_path)
    (writer.folder / "x").write_text("foreign")
    with pytest.raises(IncompleteError, match=r"and no others; see \['000.png', 'x'\]"):
        writer.verify([0], (8, 8), lambda: None)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("12.5", Fraction(25, 2)),
        ("23.976", Fraction(24000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)),
    ],
)
def test_rates_are_read_as_they_are_meant(text: str, rate: Fraction) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "-1", "1/0", "x", "nan", "1e9"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="mend --fps"):
        parse_rate(text)


def test_pictures_are_a_job_that_json_carries() -> None:
    job = RestoreJob(source=Path("in/%d.png"), target=Path("out/%d.tif"), fps="30", start_number=4)
    assert RestoreJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert job.output == Path("out")
    assert not job.makes_film
    assert recipe(job).settings["pictures"] == "%d.tif"
