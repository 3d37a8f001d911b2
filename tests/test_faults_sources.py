"""The fault table, sections A and B: sources that are missing, damaged, odd or hostile, and names."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
import vapoursynth as vs

from tests.films import (
    FAST,
    H264,
    LOSSLESS,
    ffmpeg,
    frames_hash,
    lighten,
    nothing_but,
    packets,
    picture,
    restore,
    sound,
    steps,
    times,
)
from vsfmanet.cli import main
from vsfmanet.errors import SourceError
from vsfmanet.jobs import runner
from vsfmanet.media import clip as clips
from vsfmanet.media.film import Film
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.source import inspect
from vsfmanet.settings import RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="uses what only Linux has")


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch)


@pytest.fixture(scope="session")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s, 300 frames, with sound."""
    path = tmp_path_factory.mktemp("long") / "film.mkv"
    ffmpeg(*picture(12), *sound(12), *H264, "-g", "25", "-c:a", "aac", path)
    return path


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s, 100 frames, with sound."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(*picture(4, size="160x96"), *sound(4), *H264, "-g", "10", "-c:a", "aac", path)
    return path


@pytest.fixture(scope="session")
def short_film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three frames."""
    path = tmp_path_factory.mktemp("short") / "film.mkv"
    ffmpeg(*picture(0.12, size="16x16"), *H264, path)
    return path.read_bytes()


def refusal(source: Path | str, folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What is said of a source that must be refused, with nothing made and nothing changed."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    capsys.readouterr()
    assert restore(source, made / "made.mkv", *options) == 3
    assert list(made.iterdir()) == []
    said = capsys.readouterr().err
    assert str(source) in said
    return said


# 1 to 4: no video


def test_case_1_to_4_what_is_no_video_is_refused_within_a_second_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.mkv").touch()
    (tmp_path / "folder.mkv").mkdir()
    reasons = {"missing.mkv": "cannot be found", "empty.mkv": "file is empty (0 bytes)", "folder.mkv": "got a folder"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mkv")
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(tmp_path / "socket.mkv"))
        bound.close()
        reasons |= dict.fromkeys(("pipe.mkv", "socket.mkv", "/dev/zero"), "got a pipe, socket or device")
    restore(tmp_path / "missing.mkv", tmp_path / "made.mkv")  # imports
    for name, reason in reasons.items():
        started = time.monotonic()
        assert reason in refusal(tmp_path / name, tmp_path, capsys)
        assert time.monotonic() - started < 1, name


def test_case_3_two_hundred_files_that_are_no_video_are_refused(short_film: bytes, tmp_path: Path) -> None:
    chance = random.Random(3)
    heads = [
        b"",
        b"\x1aE\xdf\xa3",
        short_film[:100],
        b"\0\0\0 ftypisom",
        b"RIFF\0\0\0\0AVI ",
        b"G" * 188,
        b"<!DOCTYPE ",
    ]
    path = tmp_path / "noise.mkv"
    for number in range(200):
        path.write_bytes(heads[number % len(heads)] + chance.randbytes(chance.choice([10, 1000, 50_000])))
        started = time.monotonic()
        with pytest.raises(SourceError):
            clips.open_clip(inspect(path), threads=1)
        assert time.monotonic() - started < 30


# 5 to 13: damage


@pytest.mark.parametrize("tenths", range(1, 10))
def test_case_5_a_matroska_file_that_is_cut_anywhere_is_found(
    long_film: Path, tmp_path: Path, tenths: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(long_film.read_bytes()[: long_film.stat().st_size * tenths // 10])
    said = refusal(cut, tmp_path, capsys)
    assert "declared 12.0 s, found " in said
    assert "the end is missing" in said
    assert "--on-damage salvage" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "cut short before its index was written"), (("-movflags", "+faststart"), "declared 12.0 s, found ")],
    ids=["6 index last", "7 index first"],
)
def test_case_6_and_7_an_mp4_file_that_is_cut_is_found(
    long_film: Path, tmp_path: Path, options: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    ffmpeg("-i", long_film, "-c", "copy", *options, whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert message in refusal(cut, tmp_path, capsys)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".avi"])
def test_case_5_to_7_a_tail_of_a_tenth_of_a_second_is_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    index_first = ["-movflags", "+faststart"] if suffix in (".mp4", ".mov") else []
    ffmpeg(*picture(2), *sound(2), *H264, "-c:a", "aac", *index_first, whole)
    assert inspect(whole).faults == ()
    data = whole.read_bytes()
    lost = len(data) - data.rindex(b"idx1") + 500 if suffix == ".avi" else 2000  # an AVI ends with its index
    cut.write_bytes(data[:-lost])
    assert (inspect(cut).video.end or 0) >= 2 - 0.5  # so that its duration says nothing
    missed = f"its last {lost} bytes are missing" if suffix in (".mkv", ".avi") else "declared 50 frames, found 4"
    assert missed in refusal(cut, tmp_path, capsys)
    assert restore(cut, tmp_path / "made.mkv", "--on-damage=salvage") == 0
    assert len(times(tmp_path / "made.mkv")) >= 40


def test_a_whole_avi_with_dropped_frames_is_not_called_damaged(tmp_path: Path) -> None:
    drops = ["-vf", "select='not(eq(n,20))'", "-fps_mode", "passthrough"]
    ffmpeg(*picture(2), *drops, "-c:v", "mpeg4", tmp_path / "in.avi")
    assert restore(tmp_path / "in.avi", tmp_path / "made.mkv") == 0
    assert steps(tmp_path / "made.mkv") == [Fraction(n, 25) for n in range(50) if n != 20]


def test_case_8_a_hole_is_told_with_its_time_and_sound_stays_in_place_after_it(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made = tmp_path / "in.mkv", tmp_path / "made.mkv"
    data = bytearray(film.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    source.write_bytes(data)
    assert "no frames between " in refusal(source, tmp_path, capsys)
    assert restore(source, made, "--on-damage", "salvage") == 0
    assert 50 < len(times(made)) < 100
    shift = times(made)[0] - times(film)[0]
    assert {time - shift for time in times(made)} <= set(times(film))
    sounds = {content: time for time, content in packets(film, 1)}
    last, content = packets(made, 1)[-1]
    assert abs((last - shift) - sounds[content]) <= Fraction(1, 25)  # one frame; a pipe to ffmpeg is 2 s off


def test_case_8_a_hole_in_a_short_film_is_found_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "hole.mkv"
    ffmpeg(*picture(2), *sound(2), *H264, "-g", "10", "-c:a", "aac", source)
    data = bytearray(source.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 6000] = bytes(6000)
    source.write_bytes(data)
    assert "no frames between " in refusal(source, tmp_path, capsys)


@pytest.mark.parametrize("count", [4, 40, 400])
def test_case_9_a_few_wrong_bytes_are_found_and_what_is_salvaged_is_always_the_same(
    film: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, source = random.Random(count), tmp_path / "in.mkv"
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        inside = [packet.pos + n for packet in container.demux(video=0) if packet.pos for n in range(30, packet.size)]
    for place in chance.sample(inside, count):
        data[place] ^= 1 + chance.randrange(255)
    source.write_bytes(data)
    said = refusal(source, tmp_path, capsys)
    assert "frames decode with errors, the first near " in said
    hashes = set()
    for _ in range(5):
        node = clips.open_clip(inspect(source), threads=1).node
        digest = hashlib.sha256()
        for frame in node.frames():
            digest.update(clips.frame_bytes(frame))
        hashes.add(digest.hexdigest())
    assert len(hashes) == 1
    assert restore(source, tmp_path / "made.mkv", "--on-damage", "salvage") == 0


@pytest.mark.parametrize("way", ["grows", "is rewritten", "is gone"])
def test_case_10_a_source_that_changes_during_the_job_gives_no_output(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    source, made = tmp_path / "in.mkv", tmp_path / "made"
    made.mkdir()
    source.write_bytes(film.read_bytes())

    def change() -> None:
        if way == "grows":
            with source.open("ab") as file:
                file.write(b"more")
        elif way == "is rewritten":
            with source.open("r+b") as file:
                file.seek(source.stat().st_size // 2)
                file.write(b"other")
        else:
            source.rename(tmp_path / "elsewhere.mkv")

    def enlarge(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        return node

    monkeypatch.setattr(clips, "restore_clip", enlarge)
    assert restore(source, made / "made.mkv") in ((3, 5) if way == "is gone" else (3,))
    assert list(made.iterdir()) == []


@pytest.mark.parametrize("same_time", [True, False])
def test_case_11_a_file_replaced_by_another_of_its_size_gives_its_own_frames(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_time: bool
) -> None:
    lighten(monkeypatch, scale=1)
    source, other = tmp_path / "in.mkv", tmp_path / "other.mkv"
    source.write_bytes(film.read_bytes())
    before = source.stat()
    assert restore(source, tmp_path / "first.mkv", LOSSLESS) == 0
    ffmpeg("-i", film, "-vf", "negate", *H264, "-crf", "40", "-c:a", "copy", other)
    source.write_bytes(other.read_bytes() + bytes(before.st_size - other.stat().st_size))
    if same_time:
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    assert restore(source, tmp_path / "second.mkv", LOSSLESS) == 0
    assert frames_hash(tmp_path / "second.mkv") == frames_hash(other) != frames_hash(tmp_path / "first.mkv")


def test_case_12_an_index_that_lies_beside_the_source_is_neither_read_nor_written(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lighten(monkeypatch, scale=1)
    folder = tmp_path / "in"
    folder.mkdir()
    source = folder / "film.mkv"
    source.write_bytes(film.read_bytes())
    clip = vs.core.bs.VideoSource(os.fsencode(source), cachemode=3)  # writes an index beside the source
    [index] = [path for path in folder.iterdir() if path != source]
    assert clip.num_frames == 100
    for forged in (b"", index.read_bytes()[:50], index.read_bytes()[:-100], os.urandom(500)):
        index.write_bytes(forged)
        made = tmp_path / f"{len(forged)}.mkv"
        assert restore(source, made, LOSSLESS) == 0
        assert frames_hash(made) == frames_hash(film)
        assert index.read_bytes() == forged
    assert nothing_but(folder, source.name, index.name)


# 14 to 19: times and geometry


ODD_TIMES = {
    "no timestamps": ("avi", [*H264, "-bf", "2"], None),
    "start offset": ("mkv", [*H264, "-output_ts_offset", "7.3"], None),
    "edit list": ("mp4", ["-c", "copy"], 1.0),
    "transport stream": ("ts", [*H264, "-bf", "2"], None),
}


@pytest.mark.parametrize("kind", ODD_TIMES)
def test_case_15_odd_timestamps_keep_picture_and_sound_together(film: Path, tmp_path: Path, kind: str) -> None:
    suffix, options, seek = ODD_TIMES[kind]
    source, made = tmp_path / f"in.{suffix}", tmp_path / "made.mkv"
    given: list[str | Path] = ["-i", film]
    if seek is not None:
        ffmpeg("-i", film, "-c:v", "libx264", "-g", "50", "-c:a", "copy", tmp_path / "whole.mp4")
        given = ["-ss", str(seek), "-i", tmp_path / "whole.mp4"]
    ffmpeg(*given, *options, "-c:a", "aac" if seek is None else "copy", source)
    assert restore(source, made) == 0
    before, after = steps(source), steps(made)
    assert len(after) == (75 if seek else 100)
    if kind != "no timestamps":  # an AVI file has none for frames that are reordered
        assert max(abs(one - other) for one, other in zip(before, after, strict=True)) <= Fraction(1, 1000)
    else:
        assert after == [Fraction(n, 25) for n in range(100)]
    apart = packets(source, 1)[0][0] - min(time for time, _ in packets(source, 0))
    if kind not in ("edit list", "no timestamps"):  # there packets have other times than frames
        assert abs((packets(made, 1)[0][0] - times(made)[0]) - apart) <= Fraction(1, 25)


def test_case_15_timestamps_that_jump_back_are_told_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, source, made = tmp_path / "part.ts", tmp_path / "in.ts", tmp_path / "made.mkv"
    ffmpeg(*picture(1), *H264, part)
    source.write_bytes(part.read_bytes() * 2)  # two recordings, one after the other
    code = restore(source, made)
    said = capsys.readouterr().err
    assert code == 0, said
    assert len(times(made)) == 50
    assert all(earlier < later for earlier, later in pairwise(times(made)))


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg2video", ["-vf", "setfield=bff", "-flags", "+ildct+ilme"]),
        ("libx264", ["-vf", "setfield=tff", "-flags", "+ildct+ilme"]),
        ("libx264", ["-vf", "setfield=tff", "-flags", "+ildct+ilme", "-x264-params", "fake-interlaced=0:bff=1"]),
    ],
    ids=["BFF", "MBAFF, TFF", "MBAFF, BFF"],
)
def test_case_16_fields_are_refused_with_a_hint(
    tmp_path: Path, codec: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ffmpeg(*picture(0.4), *options, "-c:v", codec, tmp_path / "in.mkv")
    said = refusal(tmp_path / "in.mkv", tmp_path, capsys)
    assert "progressive video is needed, got interlaced at 0.00 s; --deinterlace makes whole frames" in said


def test_case_16_one_scene_of_fields_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["-vf", "setfield=tff", "-flags", "+ildct+ilme"]
    for name, seconds, options in (("first", 2, []), ("second", 0.2, fields), ("third", 2, [])):
        ffmpeg(*picture(seconds), *options, "-c:v", "mpeg2video", "-bf", "0", tmp_path / f"{name}.m2v")
    bits = b"".join((tmp_path / f"{name}.m2v").read_bytes() for name in ("first", "second", "third"))
    (tmp_path / "in.m2v").write_bytes(bits)
    ffmpeg("-fflags", "+genpts", "-i", tmp_path / "in.m2v", "-c", "copy", tmp_path / "in.mkv")
    said = refusal(tmp_path / "in.mkv", tmp_path, capsys)
    assert re.search(r"got interlaced at 2\.0\d s; --deinterlace makes whole frames", said)


def with_pulldown(made: Path) -> None:
    """Film in MPEG-2 whose flags have players show its frames for 3 and 2 fields in turn, as on a DVD."""
    ffmpeg(*picture(1.6, size="64x64", rate=30), "-r", "30000/1001", "-c:v", "mpeg2video", "-bf", "0", made)
    bits, count = bytearray(made.read_bytes()), 0
    for extension in re.finditer(rb"\x00\x00\x01\xb5", bytes(bits)):  # ISO/IEC 13818-2, 6.2.2.3 and 6.2.3.1
        place = extension.end()
        if bits[place] >> 4 == 1:
            bits[place + 1] &= ~0x08  # progressive_sequence
        elif bits[place] >> 4 == 8:
            top_first, repeat = ((1, 1), (0, 0), (0, 1), (1, 0))[count % 4]
            bits[place + 3] = bits[place + 3] & ~0x82 | top_first << 7 | repeat << 1
            bits[place + 4] |= 0x80  # progressive_frame
            count += 1
    made.write_bytes(bits)


def test_case_16_film_with_pulldown_flags_keeps_its_frames_and_their_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_pulldown(tmp_path / "bare.m2v")
    ffmpeg("-fflags", "+genpts", "-i", tmp_path / "bare.m2v", "-c", "copy", tmp_path / "timed.mpg")
    field = Fraction(1001, 60000)
    for name, said in (("bare.m2v", "no timestamps: they are computed from its flags"), ("timed.mpg", "")):
        made = tmp_path / f"{name}.mkv"
        assert restore(tmp_path / name, made) == 0
        assert said in capsys.readouterr().err
        shown = steps(made)
        assert len(shown) == 48
        off = [abs(time - (5 * n + n % 2) // 2 * field) for n, time in enumerate(shown)]
        assert max(off[:-1]) < Fraction(1, 500)
        assert off[-1] < field + Fraction(1, 500)  # FFmpeg's parser does not know that the stream ends


@pytest.mark.parametrize("chroma", ["yuv420p", "yuv422p", "yuv444p"])
def test_case_17_odd_sizes_come_back_whole(tmp_path: Path, chroma: str) -> None:
    sizes = [(1, 1), (8, 8), (17, 31), (16, 16), (65, 48), (64, 49), (321, 181), (8, 200), (250, 7), (30, 18)]
    for width, height in sizes:
        source, made = tmp_path / "in.mkv", tmp_path / f"{width}x{height}.mkv"
        ffmpeg(*picture(0.08), "-vf", f"scale={width}:{height}", "-pix_fmt", chroma, "-c:v", "ffv1", source)
        nothing = chroma != "yuv444p" and width == 1  # BestSource has no frame of it
        assert restore(source, made, LOSSLESS) == (3 if nothing else 0)
        if not nothing:
            with av.open(str(made)) as container:
                assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [
                    (2 * width, 2 * height)
                ] * 2


@pytest.mark.parametrize("way", ["0", "180", "270", "flip"])
def test_case_19_turned_and_mirrored_pictures_are_turned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lighten(monkeypatch, scale=1)
    flat, turned, made = tmp_path / "flat.mp4", tmp_path / "turned.mp4", tmp_path / "made.mkv"
    ffmpeg(*picture(0.12), "-c:v", "libx264", "-qp", "0", flat)
    ffmpeg(*(["-display_hflip"] if way == "flip" else ["-display_rotation", way]), "-i", flat, "-c", "copy", turned)
    assert restore(turned, made, LOSSLESS) == 0
    ffmpeg("-i", turned, "-c:v", "ffv1", tmp_path / "wanted.mkv")  # FFmpeg turns what it decodes
    assert frames_hash(made) == frames_hash(tmp_path / "wanted.mkv")
    with av.open(str(made)) as container:
        assert next(container.decode(video=0)).rotation == 0


# 20 to 25: formats and tracks


@pytest.mark.parametrize(
    ("given", "codec"),
    [
        *((name, "ffv1") for name in ("yuv420p", "yuv411p", "yuv440p", "yuv410p", "yuv444p12le", "yuv420p16le")),
        *((name, "ffv1") for name in ("gray", "gray16le", "gbrp10le", "gbrp16le")),
        ("pal8", "rawvideo"),
        ("rgb24", "rawvideo"),
        ("bgra", "ffv1"),
        ("nv12", "rawvideo"),
        ("yuvj420p", "mjpeg"),
    ],
)
def test_case_20_every_format_that_can_be_coded_comes_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lighten(monkeypatch, scale=1)
    source, made = tmp_path / f"in.{'avi' if given == 'pal8' else 'nut'}", tmp_path / "made.mkv"
    ffmpeg(*picture(0.12), "-pix_fmt", given, "-c:v", codec, source)
    assert restore(source, made, LOSSLESS) == 0
    assert ("transparency channel is not carried over" in capsys.readouterr().err) == (given in ("bgra", "pal8"))
    depth = "16le" if "16" in given else ""
    compare = (
        f"gray{depth}"
        if given.startswith("gray")
        else f"gbrp{depth}"
        if "b" in given[:3] or given == "pal8"
        else f"yuv444p{depth}"
    )
    with av.open(str(source)) as before, av.open(str(made)) as after:
        for one, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            difference = one.to_ndarray(format=compare).astype(int) - other.to_ndarray(format=compare).astype(int)
            assert abs(difference).max() <= 1
            assert one.color_range in (other.color_range, 0)


def test_case_20_what_cannot_be_coded_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffmpeg(*picture(0.08), "-pix_fmt", "gbrpf32le", "-frames:v", "1", "-c:v", "exr", tmp_path / "in.exr")
    assert "8 to 16 bit YUV, RGB or Gray is needed, got RGBS" in refusal(tmp_path / "in.exr", tmp_path, capsys)


MASTERED = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
PQ = "format=yuv420p10le,setparams=range=tv:color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"


@pytest.fixture(scope="session")
def hdr_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.4 s, 10 frames of HDR10."""
    path = tmp_path_factory.mktemp("hdr") / "film.mkv"
    params = f"log-level=error:master-display={MASTERED}:max-cll=1000,400"
    ffmpeg(*picture(0.4), "-vf", PQ, "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", params, path)
    return path


@pytest.mark.parametrize(
    ("suffix", "encoder", "options"),
    [
        (".mkv", "-preset ultrafast", ()),
        (".mp4", "-preset ultrafast", ("--range-frames=4",)),
        (".mp4", "-c:v libsvtav1 -preset 12 -pix_fmt yuv420p10le", ()),
        (".mkv", "-c:v ffv1", ("--range-frames=4",)),
        (".mov", "-c:v prores_ks", ()),
    ],
)
def test_case_21_hdr10_keeps_its_metadata_tags_and_depth(
    hdr_film: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    encoder: str,
    options: tuple[str, ...],
) -> None:
    made = tmp_path / f"made{suffix}"
    assert restore(hdr_film, made, f"--encoder-args={encoder}", *options) == 0
    assert "not carried over" not in capsys.readouterr().err
    with av.open(str(made)) as container:
        track = container.streams.video[0]
        assert (track.color_primaries, track.color_trc, track.colorspace) == (9, 16, 9)
        shown = [(frame.format.components[0].bits, Hdr.of(frame)) for frame in container.decode(track)]
    assert len(shown) == 10
    depth, hdr = shown[0]
    assert depth >= 10
    assert hdr.max_cll == "1000,400"
    assert hdr.lacks(Hdr(mastering=(13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 10000000, 50))) is None


def test_case_21_hdr10_metadata_that_cannot_be_carried_over_are_named_with_what_to_do(
    hdr_film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "takes_hdr", lambda ffmpeg: False)  # as of 8.0 and older
    assert restore(hdr_film, tmp_path / "made.mkv", "--encoder-args=-c:v ffv1") == 0
    said = capsys.readouterr().err
    advice = f"-c:v libx265 -x265-params master-display={MASTERED}:max-cll=1000,400"
    assert f"mastering display {MASTERED} and light levels 1000,400 is not carried over" in said
    assert f'set it yourself: --encoder-args="{advice}"' in said
    assert restore(hdr_film, tmp_path / "advised.mkv", f"--encoder-args={advice} -preset ultrafast") == 0
    assert "not carried over" not in capsys.readouterr().err
    with av.open(str(tmp_path / "advised.mkv")) as container:
        assert Hdr.of(next(container.decode(video=0))).master_display == MASTERED


def test_case_21_an_output_that_has_lost_its_metadata_is_not_published(
    hdr_film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = runner._encode

    def lose(task: Any, film: Film, *rest: Any) -> None:
        encode(task, replace(film, hdr=Hdr()), *rest)

    monkeypatch.setattr(runner, "_encode", lose)  # unlike the trial
    assert restore(hdr_film, tmp_path / "made.mkv") == 6
    assert f"for HDR10 mastering display {MASTERED}" in capsys.readouterr().err
    assert nothing_but(tmp_path)


def test_case_21_hybrid_log_gamma_keeps_its_tags_and_depth(tmp_path: Path) -> None:
    tags = "format=yuv420p10le,setparams=range=tv:color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"
    ffmpeg(*picture(0.12), "-vf", tags, "-c:v", "ffv1", tmp_path / "in.mkv")
    assert restore(tmp_path / "in.mkv", tmp_path / "made.mkv") == 0
    with av.open(str(tmp_path / "made.mkv")) as container:
        track = container.streams.video[0]
        assert (track.color_primaries, track.color_trc, track.colorspace, track.pix_fmt) == (9, 18, 9, "yuv420p10le")


def with_units(film: Path, made: Path, *, before: bytes = b"", after: bytes = b"") -> None:
    """A bare H.265 stream with one more NAL unit before or after each of its pictures, which have one slice each."""
    ffmpeg("-i", film, "-c", "copy", made)
    units = []
    for unit in made.read_bytes().split(b"\0\0\1")[1:]:
        is_picture = unit[0] >> 1 < 32
        units += [before, unit.rstrip(b"\0"), after] if is_picture else [unit.rstrip(b"\0")]
    made.write_bytes(b"".join(b"\0\0\0\1" + unit for unit in units if unit))


def nal_unit(head: str, bits: str, tail: str) -> bytes:
    """A NAL unit of bytes, bits and bytes, with what keeps it from looking like a start code."""
    bits = bits.replace(" ", "")
    bits += "0" * (-len(bits) % 8)
    data = bytes.fromhex(head) + int(bits, 2).to_bytes(len(bits) // 8) + bytes.fromhex(tail)
    return re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", data)


STRAIGHT = f"1{0:010b}{1023:010b}", "1101" + "0" * 13 + "010" + "0" * 13
"""The limits and the coefficients of a curve that changes nothing."""

DYNAMIC = {
    # ST 2094-40 as user data registered by ITU-T T.35: one window of a display of 1000 cd/m2.
    "HDR10+": {
        "before": nal_unit(
            "4e01 0416 b5003c000104", f"00000001 01 {1000:027b} 0" + f"{1:017b}" * 4 + f"0000 {1:010b} 000", "80"
        )
    },
    # A reference processing unit with a header, three straight curves and nothing else.
    "Dolby Vision": {
        "after": nal_unit(
            "7c01 19",
            f"000010 {0:011b} {0:08b} 1000 0001110 010011 01100101 000001 00111"
            + 3 * STRAIGHT[0]
            + "11"
            + 3 * STRAIGHT[1],
            "ffffffff 80",
        )
    },
}


@pytest.mark.parametrize("kind", DYNAMIC)
def test_case_22_metadata_of_single_frames_are_named_as_not_carried_over(
    hdr_film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    with_units(hdr_film, tmp_path / "in.hevc", **DYNAMIC[kind])
    assert restore(tmp_path / "in.hevc", tmp_path / "made.mkv") == 0
    assert f"the {kind} metadata of single frames is not carried over" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "in.hevc")]) == 0
    assert f"MaxCLL 1000 and MaxFALL 400 cd/m2, {kind}" in capsys.readouterr().out
    with av.open(str(tmp_path / "made.mkv")) as container:
        hdr = Hdr.of(next(container.decode(video=0)))
    assert (hdr.master_display, hdr.dynamic) == (MASTERED, ())


def test_case_22_a_picture_that_only_dolby_vision_can_tell_the_colours_of_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error")
    ffmpeg(*picture(0.4), "-pix_fmt", "yuv420p10le", *encoder, tmp_path / "untagged.mkv")
    with_units(tmp_path / "untagged.mkv", tmp_path / "in.hevc", **DYNAMIC["Dolby Vision"])
    assert "without Dolby Vision is needed, got one of profile 5" in refusal(tmp_path / "in.hevc", tmp_path, capsys)


def test_case_23_a_change_of_size_is_told_with_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("64x48", "32x32"):
        later = "0" if size == "64x48" else "0.4"
        ffmpeg(*picture(0.4, size=size), *H264, "-output_ts_offset", later, tmp_path / f"{size}.ts")
    (tmp_path / "in.ts").write_bytes((tmp_path / "64x48.ts").read_bytes() + (tmp_path / "32x32.ts").read_bytes())
    said = refusal(tmp_path / "in.ts", tmp_path, capsys)
    assert (
        "one size and format throughout is needed, but it changes at 1.8" in said
    )  # 1.4 s is where FFmpeg starts a transport stream


def test_case_24_of_several_video_tracks_the_one_that_players_show_is_restored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ffmpeg(
        *picture(0.4, size="32x32"), *picture(0.4), "-map", "0", "-map", "1", *H264,
        "-disposition:v:0", "0", "-disposition:v:1", "default", tmp_path / "in.mkv",
    )  # fmt: skip
    assert restore(tmp_path / "in.mkv", tmp_path / "made.mkv") == 0
    assert "video stream 0 (h264) is not carried over" in capsys.readouterr().err
    with av.open(str(tmp_path / "made.mkv")) as container:
        assert [(stream.width, stream.height) for stream in container.streams.video] == [(128, 96)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_case_25_very_short_films_come_back_whole(tmp_path: Path, count: int) -> None:
    ffmpeg(*picture(1), "-frames:v", str(count), *H264, tmp_path / "in.mkv")
    assert restore(tmp_path / "in.mkv", tmp_path / "made.mkv") == 0
    assert len(times(tmp_path / "made.mkv")) == count


# 26 to 30: length, size, content, playlists, codecs


LONG_CLIP = """
import sys
from pathlib import Path
import vapoursynth as vs
from vsfmanet.media import clip, source
node = vs.core.std.BlankClip(width=64, height=64, format=vs.YUV420P8, length=20_000, keep=True)
node = node.std.ModifyFrame(node, lambda n, f: f.copy())
def used():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
whole = source.inspect(Path(sys.argv[1]))
for number, frame in enumerate(clip.read_frames(whole, node)):
    clip.frame_bytes(frame)
    if number == 2000:
        before = used()
print(number + 1, (used() - before) / 2**20)
"""


@on_linux
def test_case_26_memory_does_not_grow_with_the_length(film: Path) -> None:
    run = subprocess.run([sys.executable, "-c", LONG_CLIP, film], capture_output=True, text=True, check=True)
    count, grown = run.stdout.split()
    assert count == "20000"
    assert float(grown) < 50 * 18_000 / 100_000  # MiB


@pytest.mark.parametrize(
    ("scale", "memory", "message"),
    [
        (300, 1 << 50, "million pixels are needed, which FFmpeg can take, got 48000x28800"),
        (20, 1 << 25, "35 MiB of memory are needed for frames of 3200x1920, got 32 MiB"),
    ],
)
def test_case_27_pictures_that_are_too_large_are_refused_before_the_first_frame(
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scale: int,
    memory: int,
    message: str,
) -> None:
    def enlarge(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        blank = node.std.BlankClip(width=scale * node.width, height=scale * node.height)
        return blank.std.ModifyFrame(blank, lambda n, f: pytest.fail("a frame was made"))

    monkeypatch.setattr(clips, "restore_clip", enlarge)
    monkeypatch.setattr(clips, "memory_bytes", lambda: memory)
    assert message in refusal(film, tmp_path, capsys)


@on_linux
def test_case_27_a_header_that_claims_an_enormous_picture_is_refused_with_little_memory(tmp_path: Path) -> None:
    (tmp_path / "in.y4m").write_bytes(b"YUV4MPEG2 W65535 H65535 F25:1 C420\nFRAME\n" + bytes(5000))
    script = (
        "import re, sys; from vsfmanet.cli import main; code = main(sys.argv[1:]); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "restore", tmp_path / "in.y4m", tmp_path / "made.mkv"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert int(run.stdout) < 1_000_000  # KiB
    assert nothing_but(tmp_path, "in.y4m")


def test_case_29_playlists_and_addresses_are_refused_and_nobody_is_called(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.3)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/film.mkv"
    playlist = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
    texts = {
        "local.m3u8": playlist.format(film),
        "remote.m3u8": playlist.format(address),
        "remote.mkv": playlist.format(address),
        "list.ffconcat": f"ffconcat version 1.0\nfile '{film}'\n",
        "list.mkv": f"ffconcat version 1.0\nfile '{film}'\n",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert "a video file is needed" in refusal(tmp_path / name, tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    for given in (address, f"concat:{film}", f"subfile,,start,0,end,0,,:{film}", "rtp://127.0.0.1:5004", "pipe:0"):
        assert restore(given, tmp_path / "made.mkv") == 3
    with pytest.raises(TimeoutError):
        server.accept()
    server.close()
    assert not (tmp_path / "ran").exists()


CODECS = {
    "MPEG-2 in TS": ("ts", ["-c:v", "mpeg2video", "-bf", "2"]),
    "MPEG-2 in VOB": ("vob", ["-c:v", "mpeg2video", "-f", "vob"]),
    "MPEG-4 in AVI": ("avi", ["-c:v", "mpeg4"]),
    "WMV": ("wmv", ["-c:v", "wmv2"]),
    "DV": ("dv", ["-s", "720x576", "-pix_fmt", "yuv420p", "-c:v", "dvvideo"]),
    "ProRes": ("mov", ["-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"]),
    "MJPEG": ("mov", ["-c:v", "mjpeg"]),
    "FFV1": ("mkv", ["-c:v", "ffv1"]),
    "H.265": ("mp4", ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error"]),
    "VP9": ("webm", ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime"]),
    "AV1": ("mkv", ["-c:v", "libsvtav1", "-preset", "13", "-svtav1-params", "lp=1"]),
}


@pytest.mark.parametrize("name", CODECS)
def test_case_30_every_codec_gives_the_frames_that_ffmpeg_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lighten(monkeypatch, scale=1)
    suffix, options = CODECS[name]
    source, made = tmp_path / f"in.{suffix}", tmp_path / "made.mkv"
    ffmpeg(*picture(0.32), *options, source)
    code = restore(source, made, LOSSLESS)
    if name == "DV":  # its fields are always woven
        assert code == 3
        assert "got interlaced" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    assert frames_hash(made) == frames_hash(source)
    assert len(times(made)) == 8


# 31 to 36: names


NAMES = [
    "-rf.mkv", "--help.mkv", "it's.mkv", 'say "so".mkv', "100%.mkv", "%d%s%n.mkv", "file:x.mkv", "http:x.mkv",
    "concat:a|b.mkv", "a\nb.mkv", "a\tb.mkv", "$(touch marker).mkv", "`touch marker`.mkv", "; touch marker.mkv",
    "\U0001f3ac 映画.mkv", unicodedata.normalize("NFD", "Ünïcødé.mkv"), os.fsdecode(b"latin\xe4.mkv"),
    "x" * 230 + ".mkv", "*[a]?.mkv", " blank .mkv", "~.mkv", "a\\b.mkv",
]  # fmt: skip


@on_linux
def test_case_31_twenty_two_hostile_names_work_for_source_and_output(
    short_film: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(NAMES) == 22
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        for folder in ("in", "out"):
            Path(folder).mkdir(exist_ok=True)
        source = Path("in", name)
        source.write_bytes(short_film)
        made = Path("out", name)
        if number % 2:
            source, made = source.absolute(), made.absolute()
        else:  # the name alone, as a shell hands it over
            monkeypatch.chdir("in")
            source, made = Path(name), Path("..", "out", name)
        assert main(["restore", FAST, "--", str(source), str(made)]) == 0, name
        monkeypatch.chdir(tmp_path)
        assert len(times(Path("out", name).absolute())) == 3
    assert sorted(os.listdir("in")) == sorted(NAMES)
    assert nothing_but(tmp_path, "in", "out")  # no marker


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_case_31_a_name_that_is_not_text_can_be_written_to_stdout(short_film: bytes, tmp_path: Path) -> None:
    film = tmp_path / os.fsdecode(b"not text \xff.mkv")
    film.write_bytes(short_film)
    run = subprocess.run(
        [sys.executable, "-m", "vsfmanet", "probe", film],
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, check=True,
    )  # fmt: skip
    assert os.fsencode(film) in run.stdout


def test_case_32_odd_folders_and_weights_with_odd_names_are_found(
    short_film: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("-in", "out %d:\n"):
        Path(folder).mkdir()
    Path("-in", "film.mkv").write_bytes(short_film)
    assert main(["restore", FAST, "--", "-in/film.mkv", "out %d:\n/film.mkv"]) == 0
    assert len(times(Path("out %d:\n/film.mkv").absolute())) == 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("-w:%d.safetensors").write_bytes(b"no weights")
    assert main(["restore", "--model=-w:%d.safetensors", "--", "-in/film.mkv", "other.mkv"]) == 8
    assert "-w:%d.safetensors must be a whole safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("CON.mkv",), "device on Windows"),
        (("x" * 240 + ".mkv",), "at most 240 bytes"),
    ],
)
def test_case_36_a_batch_lists_unusable_names_before_it_starts(
    tmp_path: Path, short_film: bytes, names: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in (*names, "good.mkv"):
        (tmp_path / "in" / name).write_bytes(short_film)
    if len(list((tmp_path / "in").iterdir())) <= len(names):
        pytest.skip("this file system takes upper and lower case as the same")
    assert main(["batch", "--reserve=0", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_in_a_name_means_a_series_of_pictures_and_nothing_in_that_of_a_video(tmp_path: Path) -> None:
    ffmpeg(*picture(0.2), "-start_number", "0", tmp_path / "a%03d.png")
    (tmp_path / "a000.png").rename(tmp_path / "a%03d.png")
    assert restore(tmp_path / "a%03d.png", tmp_path / "pictures.mkv", LOSSLESS) == 0
    assert len(times(tmp_path / "pictures.mkv")) == 4  # not the file of that very name
    for name, seconds in (("b001.mkv", 0.2), ("b.mkv", 0.4)):
        ffmpeg(*picture(seconds), *H264, tmp_path / name)
    (tmp_path / "b.mkv").rename(tmp_path / "b%03d.mkv")
    assert restore(tmp_path / "b%03d.mkv", tmp_path / "video.mkv", LOSSLESS) == 0
    assert len(times(tmp_path / "video.mkv")) == 10
    (tmp_path / "a%03d.png").rename(tmp_path / "a%*.png")  # by FFmpeg's rules all that begin with "a"
    assert restore(tmp_path / "a%*.png", tmp_path / "others.mkv", LOSSLESS) == 3
    assert not (tmp_path / "others.mkv").exists()


@on_linux
def test_case_33_a_link_in_the_output_folder_leads_nobody_out(
    tmp_path: Path, short_film: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("in/a", "elsewhere", "out"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "in" / "a" / "film.mkv").write_bytes(short_film)
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    assert main(["batch", "--reserve=0", str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "could lead out of OUT_DIR" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []
