"""The fault table, sections D and F: disks that are full or broken, and what the streams of a finished file are."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest
import vapoursynth as vs

from tests import light
from tests.films import (
    FAST,
    H264,
    LOSSLESS,
    ffmpeg,
    kinds,
    lighten,
    nothing_but,
    packets,
    picture,
    restore,
    sound,
    times,
)
from vsfmanet.cli import main
from vsfmanet.errors import IncompleteError
from vsfmanet.media import clip as clips
from vsfmanet.media import source as sources
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.verify import Needed, verify
from vsfmanet.settings import RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")

ROOT = Path(__file__).parents[1]

RAW = "--encoder-args=-c:v rawvideo"
"""Makes a megabyte of the film."""


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of picture, sound and a cover."""
    folder = tmp_path_factory.mktemp("film")
    ffmpeg(*picture(0.04), "-frames:v", "1", folder / "cover.jpg")
    ffmpeg(
        *picture(2), *sound(2), *H264, "-c:a", "aac",
        "-attach", folder / "cover.jpg", "-metadata:s:t", "mimetype=image/jpeg", folder / "film.mkv",
    )  # fmt: skip
    return folder / "film.mkv"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(folder: Path) -> Path:
    """Write until there is no room."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


# 50 to 52: disks


def test_case_50_a_disk_that_fills_up_leaves_nothing_and_the_same_command_goes_on(
    film: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)

    def fill_up(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        def at(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
            if n == 10:
                fill(small_disk)
            return f

        return node.std.ModifyFrame(node, at)

    with monkeypatch.context() as context:
        context.setattr(clips, "restore_clip", fill_up)
        assert restore(film, small_disk / "made.mkv", RAW) == 5
    assert "No space left on device" in capsys.readouterr().err
    assert nothing_but(small_disk, "filler")
    assert restore(film, small_disk / "made.mkv", RAW) == 5  # before the work
    assert "GiB must be free" in capsys.readouterr().err
    (small_disk / "filler").unlink()
    assert restore(film, small_disk / "made.mkv", RAW) == 0
    assert len(times(small_disk / "made.mkv")) == 50


def test_case_50_a_full_disk_of_temporary_files_is_told(
    film: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    filler = fill(small_disk)
    assert restore(film, tmp_path / "made.mkv") == 5
    assert "No space left on device" in capsys.readouterr().err
    assert nothing_but(tmp_path, "small")
    assert nothing_but(small_disk, "filler")
    filler.unlink()
    assert restore(film, tmp_path / "made.mkv") == 0


def test_case_50_a_report_that_cannot_be_written_is_told_and_the_results_stay(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "film.mkv").write_bytes(film.read_bytes())
    (tmp_path / "out" / "vsfmanet-report.html").mkdir(parents=True)  # cannot be replaced by a file, not even by root
    from vsfmanet.jobs import job, runner, supervise

    for module in (job, runner):
        monkeypatch.setattr(module, "weights_sha256", lambda model: "none")
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(light.FILE)))
    assert main(["batch", "--reserve=0", FAST, str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "the report could not be written" in capsys.readouterr().err
    assert len(times(tmp_path / "out" / "film.mkv")) == 50


def test_case_51_a_folder_that_is_read_only_is_refused_before_the_work(
    film: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert restore(film, small_disk / "made.mkv") == 5
    said = capsys.readouterr().err
    assert "the output folder must take new files" in said
    assert "Read-only file system" in said
    assert "restoring 0" not in said


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root may write everywhere")
def test_case_51_a_folder_without_permission_is_refused_before_the_work(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    assert restore(film, tmp_path / "out" / "made.mkv") == 5
    assert "Permission denied" in capsys.readouterr().err


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv[0] = "vsfmanet"
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_case_51_and_52_a_quota_that_cuts_a_write_short_is_told_and_leaves_nothing(film: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable, "-c", LIMITED, light.FILE, "restore", LOSSLESS, film, tmp_path / "made.mkv",
        ],
        stderr=subprocess.PIPE, env=light.environment(scale=4), check=False,
    )  # fmt: skip
    assert run.returncode == 5, run.stderr
    assert b"the encoder must take all frames" in run.stderr
    assert nothing_but(tmp_path)


# 72 to 76: streams


def test_case_72_many_tracks_keep_order_content_names_and_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, styled, font, chapters = (tmp_path / name for name in ("words.srt", "words.ass", "a.ttf", "chapters.txt"))
    words.write_text("1\n00:00:00,200 --> 00:00:00,600\none\n\n2\n00:00:01,200 --> 00:00:01,600\ntwo\n")
    font.write_bytes(b"not really a font")
    chapters.write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=2000\ntitle=Kapitel\n")
    ffmpeg("-i", words, styled)
    film, made = tmp_path / "film.mkv", tmp_path / "made.mkv"
    ffmpeg(
        *picture(2), *sound(2), *sound(2), "-i", words, "-i", styled, "-i", chapters,
        "-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map", "4", "-map_chapters", "5", *H264,
        "-c:a:0", "flac", "-c:a:1", "libopus", "-c:s:0", "srt", "-c:s:1", "ass",
        "-metadata:s:a:0", "language=deu", "-metadata:s:a:1", "language=jpn", "-metadata:s:a:1", "title=原語",
        "-metadata:s:s:1", "title=Signs & <songs>", "-disposition:a:0", "0", "-disposition:a:1", "default+original",
        "-disposition:s:0", "forced", "-disposition:s:1", "hearing_impaired",
        "-attach", font, "-metadata:s:t:0", "mimetype=font/ttf", film,
    )  # fmt: skip
    assert restore(film, made) == 0
    assert kinds(made) == kinds(film) == ["video", "audio", "audio", "subtitle", "subtitle", "attachment"]
    for index in range(1, 5):
        assert [content for _, content in packets(made, index)] == [content for _, content in packets(film, index)]
    with av.open(str(film)) as before, av.open(str(made)) as after:
        for one, other in zip(before.streams, after.streams, strict=True):
            assert other.disposition == one.disposition
            for key in ("language", "title", "filename", "mimetype"):
                assert other.metadata.get(key) == one.metadata.get(key)
        assert [entry["metadata"] for entry in after.chapters()] == [{"title": "Kapitel"}]
    assert "not carried over" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        ("ts", "mkv", ["-c:a", "aac"]),  # loses the header of each packet
        ("mxf", "mov", ["-c:v", "mpeg2video", "-c:a", "pcm_s16le", "-ar", "48000"]),  # is divided anew
        ("mp4", "mkv", ["-c:a", "aac"]),  # loses what an edit list cuts away
        ("mp4", "mp4", ["-c:a", "aac"]),
        ("mkv", "mp4", ["-c:a", "libvorbis"]),  # has a packet that an edit list cuts away
    ],
)
@pytest.mark.parametrize("part", [[], ["--start=10", "--end=30"]], ids=["whole", "part"])
def test_case_72_sound_is_the_same_in_another_container(
    tmp_path: Path, before: str, after: str, options: list[str], part: list[str]
) -> None:
    film, made = tmp_path / f"film.{before}", tmp_path / f"made.{after}"
    named = ["-metadata:s:a", "title=Ton", "-metadata:s:v", "title=Bild"] if before in ("mkv", "mp4") else []
    ffmpeg(*picture(2), *sound(2), *H264, *options, *named, film)
    assert restore(film, made, *part) == 0
    if named:  # FFmpeg alone would lose names from MP4 to MP4
        tracks = sources.inspect(made)
        assert (tracks.video.tags["title"], tracks.others[0].tags["title"]) == ("Bild", "Ton")


def test_case_72_a_track_that_is_not_carried_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg(*picture(1), *H264, "-timecode", "01:00:00:00", tmp_path / "in.mov")
    assert kinds(tmp_path / "in.mov") == ["video", "data"]
    assert restore(tmp_path / "in.mov", tmp_path / "made.mkv") == 0
    assert "data stream 1 (unknown) is not carried over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "seconds"),
    [(["-itsoffset", "0.7"], 2), ([], 0.5), ([], 4)],
    ids=["starts later", "shorter", "longer"],
)
@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_case_74_sound_that_starts_later_or_ends_elsewhere_stays_as_it_is(
    tmp_path: Path, options: list[str], seconds: float, suffix: str
) -> None:
    film, made = tmp_path / f"film.{suffix}", tmp_path / f"made.{suffix}"
    ffmpeg(*picture(2), *options, *sound(seconds), *H264, "-bf", "0", "-c:a", "aac", film)
    assert restore(film, made) == 0
    before, after = packets(film, 1), packets(made, 1)
    if len(after) < len(before):  # MP4: the encoder's first packet, which is never heard, is cut away
        del before[0]
    assert [content for _, content in after] == [content for _, content in before]
    for old, new in ((before[0], after[0]), (before[-1], after[-1])):
        moved = (new[0] - times(made)[0]) - (old[0] - times(film)[0])
        assert abs(moved) <= Fraction(1, 1000) + Fraction(1, 1000)  # and the units of Matroska


@pytest.mark.parametrize("options", ["-vf fps=50", "-vf select='not(eq(n\\,7))'", "-vf setpts=PTS+0.01/TB*N"])
def test_case_75_an_encoder_that_drops_repeats_or_moves_frames_is_found(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    seen_in_the_trial = "select" not in options  # which drops the eighth frame only
    assert restore(film, tmp_path / "made.mkv", f"{FAST} {options}") == (5 if seen_in_the_trial else 6)
    said = capsys.readouterr().err
    assert "needed" in said
    assert "eave those of --encoder-args out that change timing" in said
    assert nothing_but(tmp_path)


def test_case_75_another_rate_is_refused_before_the_work(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mkv", f"{FAST} -r 10") == 5
    assert "-r/-fpsmax was specified" in capsys.readouterr().err


def test_case_76_a_flipped_bit_between_writing_and_verification_is_found(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made) == 0
    data, chance = made.read_bytes(), random.Random(76)
    found = sources.inspect(film)
    needed = Needed(
        source=found,
        size=(128, 96),
        aspect=Fraction(1),
        pictures=None,
        likeness="unknown",
        hdr=Hdr(),
        anchors=[(0, times(made)[0])],
        times=times(made),
        lively=(),
        copied=found.others,
        extent="whole",
        chapters=True,
        names=True,
    )
    verify(made, needed, advance=lambda: None, remedy="")
    for _ in range(50):
        flipped = bytearray(data)
        flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        made.write_bytes(flipped)
        with pytest.raises(IncompleteError):
            verify(made, needed, advance=lambda: None, remedy="")
        assert main(["verify", str(made)]) == 6  # after publication: its record has the hash of every byte
