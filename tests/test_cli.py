"""The command line, end to end with a light stand-in for the network: what a finished file is, and what refuses."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import Field, fields
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import pytest
import vapoursynth as vs

from tests import light
from tests.films import FAST, FFMPEG, Terminal, ffmpeg, lighten, picture, shown_lines
from vsfmanet import manifest
from vsfmanet.cli import main
from vsfmanet.errors import DeviceError
from vsfmanet.jobs import runner, supervise
from vsfmanet.jobs.job import BatchOptions, RestoreJob
from vsfmanet.jobs.paths import Selection
from vsfmanet.jobs.progress import Pace, Report, frames_state
from vsfmanet.manifest import ModelEntry
from vsfmanet.media import clip as clips
from vsfmanet.media.source import inspect
from vsfmanet.settings import Resolved, RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")

COLOUR = "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s of picture, sound, subtitles, two chapters, a font and tags."""
    folder = tmp_path_factory.mktemp("film")
    path = folder / "film.mkv"
    (folder / "words.srt").write_text(
        "1\n00:00:00,200 --> 00:00:00,600\none\n\n2\n00:00:01,200 --> 00:00:01,600\ntwo\n"
    )
    (folder / "font.ttf").write_bytes(b"not really a font")
    (folder / "chapters.txt").write_text(
        ";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=First\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=2000\ntitle=Second\n"
    )
    ffmpeg(
        *picture(2), "-f", "lavfi", "-i", "sine=d=2", "-i", folder / "words.srt", "-i", folder / "chapters.txt",
        "-map", "0", "-map", "1", "-map", "2", "-map_metadata", "3", "-map_chapters", "3",
        "-vf", f"setsar=12/11,{COLOUR}", "-c:v", "libx264", "-preset", "ultrafast", "-g", "10",
        "-c:a", "aac", "-c:s", "srt",
        "-metadata:s:v", "language=deu", "-metadata:s:a", "language=fra", "-metadata:s:a", "title=Commentary",
        "-attach", folder / "font.ttf", "-metadata:s:t", "mimetype=font/ttf", path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def varying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 30 per second, then 15 at 15; sound starts half a second before the picture."""
    path = tmp_path_factory.mktemp("varying") / "varying.mkv"
    ffmpeg(
        "-f", "lavfi", "-i", "sine=d=2.5", "-itsoffset", "0.5", *picture(2, rate=30), "-map", "1", "-map", "0",
        "-vf", "select='lt(t,1.5)+not(mod(n,2))'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000",
        "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", path,
    )  # fmt: skip
    return path


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch, scale=4)


def restore(*arguments: str | Path) -> int:
    return main(["restore", FAST, *map(str, arguments)])


def times(path: Path) -> list[Fraction]:
    """When each frame is shown, from the first, after decoding."""
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
        stamps = [frame.pts for frame in container.decode(video=0) if frame.pts is not None]
    shown = [stamp * Fraction(unit.numerator, unit.denominator) for stamp in stamps]
    return [time - shown[0] for time in shown]


def first_times(path: Path) -> dict[str, float]:
    """When the first packet of each kind of stream is shown, seconds."""
    found: dict[str, float] = {}
    with av.open(str(path)) as container:
        kinds = {stream.index: stream.type for stream in container.streams}
        for packet in container.demux():
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                found[kinds[packet.stream_index]] = min(time, found.get(kinds[packet.stream_index], time))
    return found


def payloads(path: Path, kind: str) -> list[bytes]:
    """The packets of the first stream of a kind."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if ".part" in entry.name]


# What a finished file is


def test_restore_keeps_every_frame_sound_subtitles_chapters_fonts_and_tags(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made) == 0
    assert len(times(made)) == 50
    for kind in ("audio", "subtitles"):
        assert payloads(made, kind) == payloads(film, kind)
    with av.open(str(film)) as before, av.open(str(made)) as after:
        assert [stream.type for stream in after.streams] == [stream.type for stream in before.streams]
        assert (after.streams.video[0].width, after.streams.video[0].height) == (256, 192)
        assert [(entry["start"], entry["metadata"]) for entry in after.chapters()] == [
            (entry["start"], entry["metadata"]) for entry in before.chapters()
        ]
        assert after.metadata["title"] == "A film"
        assert after.streams.video[0].metadata["language"] == "deu"
        assert after.streams.audio[0].metadata["title"] == "Commentary"
        assert after.streams.attachments[0].data == b"not really a font"
    assert leftovers(tmp_path) == []


def test_aspect_and_colour_tags_are_kept(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made) == 0
    with av.open(str(made)) as container:
        track = container.streams.video[0]
        assert track.sample_aspect_ratio == Fraction(12, 11)
        assert (track.color_primaries, track.color_trc, track.colorspace, track.color_range) == (1, 1, 1, 1)


def test_colour_is_tagged_as_the_filter_says(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node.std.SetFrameProps(_Matrix=6, _Range=1))
    assert restore(film, tmp_path / "made.mkv") == 0
    with av.open(str(tmp_path / "made.mkv")) as container:
        assert (container.streams.video[0].colorspace, container.streams.video[0].color_range) == (6, 2)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_varying_timestamps_and_the_place_of_sound_are_kept(varying: Path, tmp_path: Path, suffix: str) -> None:
    made = tmp_path / f"made{suffix}"
    assert restore(varying, made) == 0
    before, after = times(varying), times(made)
    assert len(after) == len(before)
    assert max(abs(one - other) for one, other in zip(before, after, strict=True)) <= Fraction(1, 1000)
    old, new = first_times(varying), first_times(made)
    assert new["video"] - new["audio"] == pytest.approx(old["video"] - old["audio"], abs=0.002)


def test_a_turned_picture_is_turned_once_with_its_aspect(tmp_path: Path) -> None:
    ffmpeg(*picture(0.2), "-vf", "setsar=12/11", "-c:v", "libx264", tmp_path / "flat.mp4")
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    assert restore(tmp_path / "turned.mp4", tmp_path / "made.mkv") == 0
    with av.open(str(tmp_path / "made.mkv")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (192, 256, 0)
        assert container.streams.video[0].sample_aspect_ratio == Fraction(11, 12)


def test_a_cover_picture_stays_one(film: Path, tmp_path: Path) -> None:
    ffmpeg(*picture(0.04), "-frames:v", "1", tmp_path / "cover.jpg")
    with_cover = tmp_path / "film.mkv"
    ffmpeg(
        "-i", film, "-map", "0", "-c", "copy", "-attach", tmp_path / "cover.jpg",
        "-metadata:s:t:1", "mimetype=image/jpeg", "-metadata:s:t:1", "filename=cover.jpg", with_cover,
    )  # fmt: skip
    assert restore(with_cover, tmp_path / "made.mkv") == 0
    with av.open(str(tmp_path / "made.mkv")) as container:
        cover = container.streams[-1]
        assert cover.disposition & av.stream.Disposition.attached_pic
        assert cover.metadata["filename"] == "cover.jpg"
    assert payloads_of(tmp_path / "made.mkv", 4) == [(tmp_path / "cover.jpg").read_bytes()]


def payloads_of(path: Path, index: int) -> list[bytes]:
    """The packets of one stream."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams[index]) if packet.size]


@pytest.mark.parametrize(
    ("given", "codec", "made"),
    [
        ("yuv422p", "h264", "yuv422p"),
        ("gray", "h264", "yuvj420p"),  # coded without chroma, decoded with grey chroma
        ("yuv420p10le", "hevc", "yuv420p10le"),
        ("gbrp", "h264", "gbrp"),
        ("yuv444p16le", "hevc", "yuv444p12le"),
    ],
)
def test_the_default_encoder_keeps_chroma_and_depth(tmp_path: Path, given: str, codec: str, made: str) -> None:
    ffmpeg(*picture(0.2), "-pix_fmt", given, "-c:v", "ffv1", tmp_path / "in.mkv")
    assert restore(tmp_path / "in.mkv", tmp_path / "out.mkv") == 0
    with av.open(str(tmp_path / "out.mkv")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == (codec, made)


def test_a_lossless_encoder_gets_exactly_what_the_filter_gives(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node)
    assert restore(film, tmp_path / "made.mkv", "--encoder-args=-c:v ffv1") == 0
    with av.open(str(film)) as before, av.open(str(tmp_path / "made.mkv")) as after:
        for one, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            assert (one.to_ndarray() == other.to_ndarray()).all()


def test_one_frame_is_enough(tmp_path: Path) -> None:
    ffmpeg(*picture(0.04), "-c:v", "libx264", tmp_path / "in.mkv")
    assert restore(tmp_path / "in.mkv", tmp_path / "out.mkv") == 0
    assert times(tmp_path / "out.mkv") == [0]


# A range of frames


def test_a_range_is_cut_from_picture_sound_subtitles_and_chapters_alike(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    assert restore(film, made, "--start", "28", "--end", "48") == 0
    assert times(made) == [Fraction(n, 25) for n in range(20)]
    first = first_times(made)
    assert first["video"] == 0
    assert 0 <= first["audio"] < 0.024
    assert first["subtitle"] == pytest.approx(0.08, abs=0.001)  # the second of two, at 1.2 s
    assert len(payloads(made, "audio")) == pytest.approx(0.8 * 44100 / 1024, abs=1)
    assert payloads(made, "audio")[0] in payloads(film, "audio")
    with av.open(str(made)) as container:
        assert [entry["metadata"]["title"] for entry in container.chapters()] == ["Second"]


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [("0:00:01.5", "2.2s", range(30, 40)), ("00:00:00", "35", range(35)), ("31", "0:02.5", range(31, 45))],
)
def test_a_range_between_times_is_of_the_frames_that_are_shown_then(
    varying: Path, tmp_path: Path, start: str, end: str, numbers: range
) -> None:
    made, other = tmp_path / "made.mkv", tmp_path / "other.mkv"
    assert restore(varying, made, "--start", start, "--end", end) == 0
    assert restore(varying, other, "--start", str(numbers.start), "--end", str(numbers.stop)) == 0
    assert times(made) == times(other)
    assert len(times(made)) == len(numbers)
    assert payloads(made, "audio") == payloads(other, "audio")


@pytest.mark.parametrize(
    "limits",
    [
        *[("50", "60"), ("10", "51"), ("10", "10"), ("-1", "5"), ("0:00:02", "0:00:03.5")],
        *[("2.01s", "2.02s"), ("50", "0:00:02"), ("0:00:02", "50"), ("1:00:00", "2:00:00"), ("0:61:00", "2:00:00")],
    ],
)
def test_a_range_outside_the_source_is_refused(film: Path, tmp_path: Path, limits: tuple[str, str]) -> None:
    assert restore(film, tmp_path / "made.mkv", f"--start={limits[0]}", f"--end={limits[1]}") == 2
    assert list(tmp_path.iterdir()) == []


# Names


@pytest.mark.parametrize(
    "name",
    [
        "-dash.mkv", "it's \"quoted\".mkv", " blanks .mkv", "Ünïcødé 映画 🎬.mkv", "%d %03d.mkv", "http:colon.mkv",
        "$(touch marker) `touch marker`.mkv", "new\nline.mkv", "glob*[a]?.mkv", "x" * 250 + ".mkv",
        os.fsdecode(b"latin\xe4.mkv"),
    ],
)  # fmt: skip
def test_odd_names_work_for_source_and_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, short_film: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(short_film)
    os.mkdir("made")
    assert main(["restore", FAST, "--", name, f"made/{name}"]) == 0
    assert name in os.listdir("made")
    assert len(os.listdir("made")) == 2  # it and its record
    assert os.path.exists("made/" + name)
    assert sorted(os.listdir()) == sorted(["made", name])  # nothing executed, nothing written beside the source


@pytest.fixture(scope="session")
def short_film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Five frames."""
    path = tmp_path_factory.mktemp("short") / "short.mkv"
    ffmpeg(*picture(0.2, size="16x16"), "-c:v", "libx264", "-preset", "ultrafast", path)
    return path.read_bytes()


def test_a_name_that_is_too_long_is_refused(film: Path, tmp_path: Path) -> None:
    assert restore(film, tmp_path / ("x" * 252 + ".mkv")) == 2


# The output is there already


def test_an_existing_output_is_not_replaced_unless_asked(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    made.write_text("precious")
    assert restore(film, made) == 2
    assert made.read_text() == "precious"
    assert restore(film, made, "--overwrite") == 0
    assert len(times(made)) == 50


def test_an_output_that_is_to_be_replaced_stays_if_the_job_fails(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    made.write_text("precious")
    assert restore(film, made, "--overwrite", "--encoder-args=-frames:v 3") == 5
    assert made.read_text() == "precious"


@pytest.mark.parametrize("way", ["same", "dots", "symlink", "hardlink"])
def test_the_source_is_never_overwritten(film: Path, tmp_path: Path, way: str) -> None:
    source = tmp_path / "film.mkv"
    source.write_bytes(film.read_bytes())
    target = {"same": source, "dots": Path(f"{tmp_path}/./film.mkv")}.get(way, tmp_path / "other.mkv")
    if way == "symlink":
        target.symlink_to(source)
    elif way == "hardlink":
        target.hardlink_to(source)
    assert restore(source, target, "--overwrite") == 2
    assert source.read_bytes() == film.read_bytes()


def test_an_output_that_appears_during_the_job_is_left_alone(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def appear(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        (tmp_path / "made.mkv").write_text("another run's")
        return node

    monkeypatch.setattr(clips, "restore_clip", appear)
    assert restore(film, tmp_path / "made.mkv") == 7
    assert (tmp_path / "made.mkv").read_text() == "another run's"
    assert leftovers(tmp_path) == []
    assert "made.new1.mkv" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "made.new1.mkv")]) == 0


def test_an_output_folder_that_is_not_there_is_refused(film: Path, tmp_path: Path) -> None:
    assert restore(film, tmp_path / "nowhere" / "made.mkv") == 5


# Sources that are refused


def unusable(kind: str, folder: Path, film: Path) -> Path:
    """Something that is no whole video file."""
    path = folder / "in.mkv"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>not found</html>" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "playlist":
        path = folder / "in.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{film}\n#EXT-X-ENDLIST\n")
    elif kind == "sound only":
        ffmpeg("-f", "lavfi", "-i", "sine=d=1", path)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder", "pipe", "playlist", "sound only"])
def test_what_is_no_video_is_refused(film: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = unusable(kind, tmp_path, film)
    assert restore(source, tmp_path / "made.mkv") == 3
    assert str(source) in capsys.readouterr().err
    assert not (tmp_path / "made.mkv").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "suffix"),
    [([], ".mkv"), (["-movflags", "+faststart"], ".mp4"), ([], ".mp4"), ([], ".avi")],
    ids=["mkv", "index first", "index last", "avi"],
)
def test_a_file_that_was_cut_in_half_is_refused(tmp_path: Path, options: list[str], suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    ffmpeg(*picture(4), "-c:v", "mpeg4", *options, whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert restore(cut, tmp_path / "made.mkv") == 3
    assert not (tmp_path / "made.mkv").exists()


def test_a_damaged_file_is_refused_with_the_place_and_salvaged_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.mkv"
    ffmpeg(*picture(4, size="160x96"), "-c:v", "libx264", "-preset", "ultrafast", "-g", "10", source)
    whole = times(source)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 9000] = bytes(9000)
    source.write_bytes(data)
    assert restore(source, tmp_path / "made.mkv") == 3
    assert "no frames between" in capsys.readouterr().err
    assert restore(source, tmp_path / "made.mkv", "--on-damage", "salvage") == 0
    assert "warning: the source is damaged" in capsys.readouterr().err
    there = times(tmp_path / "made.mkv")
    assert len(there) < len(whole)
    assert set(there) <= set(whole)  # the frames that are there, at their own times
    assert restore(source, tmp_path / "even.mkv", "--on-damage", "as-is") == 0
    assert times(tmp_path / "even.mkv") == whole[: len(there)]  # one after the other


def test_a_recording_that_starts_inside_a_group_of_pictures_keeps_its_sound_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, late = tmp_path / "whole.ts", tmp_path / "late.ts"
    ffmpeg(*picture(3), "-f", "lavfi", "-i", "sine=d=3", "-c:v", "libx264", "-g", "25", "-c:a", "aac", whole)
    late.write_bytes(whole.read_bytes()[188 * 150 :])
    assert restore(late, tmp_path / "made.mkv") == 0
    assert "inside a group of pictures" in capsys.readouterr().err
    before, after = first_times(whole), first_times(tmp_path / "made.mkv")
    assert len(times(tmp_path / "made.mkv")) in (25, 50)
    second = before["video"] + (75 - len(times(tmp_path / "made.mkv"))) / 25  # of the first whole group
    sound = first_times(late)["audio"]
    assert after["video"] - after["audio"] == pytest.approx(second - sound, abs=0.03)


def test_what_an_edit_list_cuts_away_stays_away(tmp_path: Path) -> None:
    whole, trimmed = tmp_path / "whole.mp4", tmp_path / "trimmed.mp4"
    ffmpeg(*picture(3), "-f", "lavfi", "-i", "sine=d=3", "-c:v", "libx264", "-g", "50", "-c:a", "aac", whole)
    ffmpeg("-ss", "1", "-i", whole, "-c", "copy", trimmed)  # the first second stays in the file, and is not shown
    assert restore(trimmed, tmp_path / "made.mkv") == 0
    assert len(times(tmp_path / "made.mkv")) == len(times(trimmed)) == 50
    assert abs(first_times(tmp_path / "made.mkv")["audio"]) < 0.025


def test_a_source_without_timestamps_gets_a_constant_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg(*picture(1), "-c:v", "libx264", "-bf", "2", tmp_path / "in.h264")
    assert restore(tmp_path / "in.h264", tmp_path / "made.mkv") == 0
    assert "no usable timestamps" in capsys.readouterr().err
    assert times(tmp_path / "made.mkv") == [Fraction(n, 25) for n in range(25)]


def test_interlaced_video_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg(*picture(0.4), "-vf", "setfield=tff", "-c:v", "mpeg2video", "-flags", "+ildct+ilme", tmp_path / "in.mkv")
    assert restore(tmp_path / "in.mkv", tmp_path / "made.mkv") == 3
    assert "--deinterlace" in capsys.readouterr().err
    assert restore(tmp_path / "in.mkv", tmp_path / "made.mkv", "--deinterlace") == 0
    assert times(tmp_path / "made.mkv") == times(tmp_path / "in.mkv")


def test_a_picture_of_an_odd_size_is_not_cropped(tmp_path: Path) -> None:
    for chroma in ("yuv420p", "yuv444p"):
        ffmpeg(*picture(0.2), "-vf", "scale=65:49", "-pix_fmt", chroma, "-c:v", "ffv1", tmp_path / f"{chroma}.mkv")
        assert restore(tmp_path / f"{chroma}.mkv", tmp_path / f"made_{chroma}.mkv") == 0
        assert inspect(tmp_path / f"made_{chroma}.mkv").size == (260, 196)


def test_a_change_of_size_is_refused(tmp_path: Path) -> None:
    for size in ("64x48", "32x32"):
        ffmpeg(*picture(0.4, size=size), "-c:v", "libx264", tmp_path / f"{size}.ts")
    (tmp_path / "in.ts").write_bytes((tmp_path / "64x48.ts").read_bytes() + (tmp_path / "32x32.ts").read_bytes())
    assert restore(tmp_path / "in.ts", tmp_path / "made.mkv") == 3


def test_a_source_that_changes_during_the_job_gives_no_output(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "film.mkv"
    source.write_bytes(film.read_bytes())

    def grow(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        with source.open("ab") as file:
            file.write(b"more")
        return node

    monkeypatch.setattr(clips, "restore_clip", grow)
    assert restore(source, tmp_path / "made.mkv") == 3
    assert os.listdir(tmp_path) == ["film.mkv"]


# Filters that fail


def fail_at(number: int, error: Exception) -> Callable[[vs.VideoNode, RestoreSettings], vs.VideoNode]:
    """A filter that raises at one frame."""

    def change(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == number:
            raise error
        return f

    return lambda node, _: node.std.ModifyFrame(node, change)


@pytest.mark.parametrize("number", [0, 25, 49])
def test_a_filter_that_fails_leaves_nothing(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(clips, "restore_clip", fail_at(number, RuntimeError("out of luck")))
    assert restore(film, tmp_path / "made.mkv") == 6
    said = capsys.readouterr().err
    assert f"frame {number} of 50" in said
    assert "out of luck" in said
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_lost_midway_has_its_own_exit_code(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clips, "restore_clip", fail_at(7, DeviceError("restore: the device is gone; reboot")))
    assert restore(film, tmp_path / "made.mkv") == 4
    assert "the device is gone; reboot" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_filter_that_drops_frames_is_found(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node[:-1])
    assert restore(film, tmp_path / "made.mkv") == 6


def test_what_a_filter_warns_of_reaches_the_user_once(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        vs.core.log_message(vs.MESSAGE_TYPE_WARNING, "learnt from SDR")
        return f

    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node.std.ModifyFrame(node, warn))
    assert restore(film, tmp_path / "made.mkv") == 0
    assert capsys.readouterr().err.count("learnt from SDR") == 1


# Encoders that fail


def test_a_missing_ffmpeg_is_found_before_the_work(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    assert restore(film, tmp_path / "made.mkv") == 5
    assert "FFmpeg 5.1 or newer is needed" in capsys.readouterr().err


def test_bad_encoder_options_are_found_before_the_work(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mkv", "--encoder-args=-c:v libnonsense") == 5
    said = capsys.readouterr().err
    assert "Unknown encoder 'libnonsense'" in said
    assert "restoring 0" not in said
    assert list(tmp_path.iterdir()) == []


def test_quotes_that_do_not_match_are_a_usage_error(film: Path, tmp_path: Path) -> None:
    assert restore(film, tmp_path / "made.mkv", "--encoder-args=-x264-params 'open") == 2


def test_an_encoder_that_ends_early_without_an_error_is_found(film: Path, tmp_path: Path) -> None:
    assert restore(film, tmp_path / "made.mkv", "--encoder-args=-preset ultrafast -frames:v 10") in (5, 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_an_encoder_that_dies_midway_tells_its_last_words(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # Works for the version and for the trial; then it floods, reads a little and dies.
    (programs / "ffmpeg").write_text(
        textwrap.dedent(f"""\
        #!/bin/sh
        case "$*" in *trial*|*/dev/null|-version) exec {FFMPEG} "$@";; esac
        head -c 300000 >/dev/null
        yes noise | head -n 200000 >&2
        echo "my disk is on fire" >&2
        exit 3
        """)
    )
    (programs / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert restore(film, tmp_path / "made.mkv") == 5
    said = capsys.readouterr().err
    assert "my disk is on fire" in said
    assert "exit code 3" in said
    assert said.count("noise") <= 20
    assert os.listdir(tmp_path) == ["programs"]


def test_a_container_that_cannot_hold_a_stream_is_refused_before_the_work(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mp4") == 2
    said = capsys.readouterr().err
    assert "cannot hold subtitle stream 2" in said
    assert "attachment stream 3" in said
    assert "write to .mkv, or" in said
    assert list(tmp_path.iterdir()) == []
    assert restore(film, tmp_path / "made.mp4", "--no-subtitles", "--no-attachments") == 0


# Signals, progress, streams


@pytest.mark.skipif(sys.platform == "win32", reason="there are other signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_job_and_leaves_nothing(film: Path, tmp_path: Path, number: int, code: int) -> None:
    made, temporary = tmp_path / "out" / "made.mkv", tmp_path / "tmp"
    made.parent.mkdir()
    temporary.mkdir()
    job = light.start(film, made, pause=0.2, temporary=temporary, stdout=subprocess.PIPE)
    encoder = light.wait_for_encoder(job)
    processes = [encoder, *supervise.family(job.pid)]
    time.sleep(0.5)
    started = time.monotonic()
    job.send_signal(number)
    said, warned = job.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert job.returncode == code, warned
    assert said == b""
    assert os.listdir(made.parent) == []
    assert os.listdir(temporary) == []
    light.wait_until_gone(*processes)


def test_stdout_is_empty_and_a_log_gets_plain_lines(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(film, tmp_path / "made.mkv") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "restoring 50/50 frames" in said.err
    assert "verifying 50/50 frames" in said.err
    assert "frames/s" in said.err
    assert "\x1b" not in said.err
    assert "\r" not in said.err


def test_a_log_names_each_phase_before_the_first_frame(film: Path, tmp_path: Path) -> None:
    job = light.start(film, tmp_path / "made.mkv")
    assert job.stderr is not None
    lines = job.stderr.read().decode().splitlines()
    assert job.wait() == 0
    assert lines[0] == "loading ..."
    phases = [line.removesuffix(" ...") for line in lines if line.endswith(" ...")]
    assert phases[:6] == ["loading", "reading", "decoding", "indexing", "preparing", "trying the encoder"]
    assert any(line.startswith("decoding 50/50 frames") for line in lines)


def test_a_terminal_gets_the_phases_and_a_bar_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    told = {"event": "progress", "step": "restoring", "done": 123456, "total": 987654, "speed": 0.1234}
    shown = []
    for event in ({"event": "phase", "name": "trying the encoder"}, told | {"seconds_left": 7e6}):
        screen = Terminal()
        report = Report(screen)
        report.repeat(event)
        report.close()
        lines = shown_lines(screen)
        assert max(map(len, lines)) <= 80
        shown.append(lines[-1].rstrip())
    assert shown[0].endswith("trying the encoder ...")
    assert shown[1].endswith("123456/987654 frames, 0.123 frames/s, 1944:26:40 left")


def test_of_an_unknown_number_of_frames_no_time_left_is_told() -> None:
    stream = io.StringIO()
    report = Report(stream, as_json=True)
    with report.begin("reading stdin", 0):
        report.advance()
    told = json.loads(stream.getvalue())
    assert (told["done"], told["total"], "seconds_left" in told) == (1, 0, False)
    screen = io.StringIO()
    Report(screen).repeat(told | {"done": 7})
    assert screen.getvalue() == ""  # the next line comes after a while
    assert frames_state(7, 0, None, None) == "7 frames"


def test_time_left_includes_the_steps_that_follow() -> None:
    stream = io.StringIO()
    report = Report(stream, as_json=True)
    with report.begin("restoring", 2, after=1000):
        for _ in range(2):
            report.advance()
    told = json.loads(stream.getvalue().splitlines()[-1])
    assert told["done"] == 2
    assert 1000 <= told["seconds_left"] < 1001
    with report.begin("verifying", 1):
        report.advance()
    assert json.loads(stream.getvalue().splitlines()[-1])["seconds_left"] == 0


@pytest.mark.parametrize(("start_up", "segment", "wait"), [(60, 8, 4.0), (5, 1, 0.5), (300, 16, 0.2), (0, 64, 30.0)])
def test_time_left_is_within_a_fifth_after_a_tenth_of_a_film(start_up: float, segment: int, wait: float) -> None:
    total, pace, now = 100 * segment, Pace(), float(start_up)
    arrivals = [start_up + wait * (n // segment) + 0.002 * (n % segment) for n in range(total)]
    for n, now in enumerate(arrivals, start=1):
        speed = pace.advance(now)
        if n >= total / 10 and now - arrivals[0] > 1:
            assert speed is not None
            assert (total - n) / speed == pytest.approx(arrivals[-1] - now, rel=0.2, abs=1.5 * wait)


def test_a_terminal_gets_a_bar_with_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Report(screen).begin("restoring", 3) as progress:
        for _ in range(3):
            progress.advance()
    assert "3/3 frames" in screen.getvalue()
    assert "left" in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is back


def test_an_unforeseen_error_shows_its_traceback(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(clips, "restore_clip", broken)
    assert restore(film, tmp_path / "made.mkv") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "a bug" in said
    assert list(tmp_path.iterdir()) == []


# Other commands


def test_the_command_line_loads_nothing_heavy_until_it_is_needed() -> None:
    script = "import sys, vsfmanet.cli; print({'torch', 'vapoursynth', 'av', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "restore" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--version"], ["restore", "--help"]])
def test_help_and_version_go_to_stdout(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["restore"], ["nonsense"], ["restore", "a", "b", "--exposure", "much"]])
def test_wrong_usage_has_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vsfmanet: error: ")


def fields_of(kind: type[Any], *without: str) -> dict[str, Field[Any]]:
    return {field.name: field for field in fields(kind) if field.name not in without}


SETTINGS = fields_of(RestoreSettings, "source_path", "output_format")
JOB = fields_of(RestoreJob, "source", "target", "settings")
ONE_FILE = ("source", "target", "start", "end", "audio_from", "overwrite")
"""Fields of `RestoreJob` that a command for many files does not have."""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("restore", SETTINGS | JOB),
        (
            "batch",
            SETTINGS
            | fields_of(
                RestoreJob,
                *("source", "target", "settings", "start", "end", "fps", "start_number", "audio_from", "overwrite"),
            ),
        ),
        ("batch", fields_of(BatchOptions, "in_folder", "out_folder", "template", "selection") | fields_of(Selection)),
        ("cluster slurm", SETTINGS | fields_of(Selection, "shard")),
    ],
)
def test_every_field_is_an_option_that_the_help_lists(
    command: str, expected: dict[str, Field[Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    said = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    options = {f"--{name.replace('_', '-')}" for name in expected}
    options |= {f"--no-{name.replace('_', '-')}" for name, field in expected.items() if field.default is True}
    assert options <= said


@pytest.mark.parametrize("name", sorted(name for name, field in (SETTINGS | JOB).items() if "int" in str(field.type)))
def test_numbers_of_frames_and_devices_must_be_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", f"--{name.replace('_', '-')}=2.5", "in.mkv", "out.mkv"]) == 2
    assert f"Invalid value for --{name.replace('_', '-')}: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "restore", "batch", "cluster", "compare", "verify", "probe", "doctor"])
def test_help_fits_a_narrow_terminal_and_ends_with_notes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    notes = said.rpartition("╯")[2]
    needed = {"": "vsfmanet restore film.mkv restored.mkv", "probe": "frame,exposure", "doctor": "Exits with"}
    assert needed.get(command, "Exit codes: ") in notes


def test_a_job_is_read_from_stdin_and_told_as_json(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / os.fsdecode(b"m\xe4de.mkv")
    job = RestoreJob(source=film, target=made, encoder_args="-preset ultrafast", end=5)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(job.to_json())))
    monkeypatch.setattr(supervise, "die_with", lambda parent: None)
    assert main(["restore", "--job", "-", "--attempt=3", f"--parent={os.getppid()}"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["attempt"], record["frames"]) == (3, 5)
    assert len(times(made)) == 5


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source": "in.mkv", "target": "out.mkv", "crf": 20}'])
def test_what_is_no_job_is_refused_as_json(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert main(["restore", "--job", "-", "--parent=1"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["exit_code"] == 2
    assert json.loads(said.err)["event"] == "error"


def test_settings_reach_the_filter(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RestoreSettings] = []

    def look(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        seen.append(settings)
        return node

    made_by = Resolved(
        model="fmanetpp_x2",
        weights_sha256="0",
        backend="torch",
        device="cuda",
        device_name="none here",
        precision="fp16",
        kernels="cuda",
    )
    monkeypatch.setattr(runner, "resolved", lambda settings, sha256: made_by)
    monkeypatch.setattr(clips, "restore_clip", look)
    options = "--model fmanetpp_x2 --exposure 0.5 --device cuda --device-index 1 --precision fp16 --segment 4"
    assert restore(film, tmp_path / "made.mkv", *options.split(), "--sc-threshold", "0.1", "--skip") == 0
    assert seen == [
        RestoreSettings(
            model="fmanetpp_x2",
            exposure=0.5,
            source_path=film,
            device="cuda",
            device_index=1,
            precision="fp16",
            segment=4,
            sc_threshold=0.1,
            skip=True,
        )
    ]


@pytest.fixture
def two_models(monkeypatch: pytest.MonkeyPatch) -> list[ModelEntry]:
    entries = [
        ModelEntry(
            name=name,
            scale=4,
            preset=name.rpartition("_")[2],
            path=Path("models") / f"{name}.safetensors",
            size=12_300_000,
            sha256="0" * 64,
            licence="MIT",
            description="For tests.",
            scores=MappingProxyType({"psnr_5_5": 28.5, "bicubic_psnr_5_5": 26.25}),
        )
        for name in ("fmanetpp_x4_fast", "fmanetpp_x4_base")
    ]
    monkeypatch.setattr(manifest, "list_models", lambda: entries)
    return entries


def test_models_are_listed_as_a_table(two_models: list[ModelEntry], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(text in said for entry in two_models for text in (entry.name, "12.3", "MIT", "+2.25"))


def test_models_are_listed_as_json(two_models: list[ModelEntry], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == [entry.name for entry in two_models]
    assert listed[0]["scores"] == {"psnr_5_5": 28.5, "bicubic_psnr_5_5": 26.25}


def test_models_without_a_manifest_have_the_exit_code_of_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(manifest, "models_folder", lambda: tmp_path)
    assert main(["models"]) == 8
