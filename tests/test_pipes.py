"""Frames through stdin and stdout."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests import light
from tests.films import FFMPEG, ffmpeg, frames_hash, kinds, lighten, nothing_but, packets, picture, sound, times
from vsfmanet.cli import main
from vsfmanet.errors import DamagedError, SourceError
from vsfmanet.jobs.files import record_path
from vsfmanet.media.pipe import Y4mWriter, receive


def vsfmanet(folder: Path, *arguments: str, given: bytes | None = None, fault: str = "") -> tuple[int, bytes, str]:
    """Run the program with a light filter, as behind or before a pipe; returns exit code, stdout and stderr."""
    run = subprocess.run(
        [sys.executable, light.FILE, "restore", *arguments],
        input=given, stdin=subprocess.DEVNULL if given is None else None, capture_output=True, cwd=folder,
        env=light.environment(fault=fault) | {"TMPDIR": str(folder / "temporary")}, check=False,
    )  # fmt: skip
    assert nothing_but(folder / "temporary")
    return run.returncode, run.stdout, run.stderr.decode()


def here(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, given: bytes = b"") -> None:
    """The same in this process."""
    lighten(monkeypatch, scale=1)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert main(["restore", *arguments]) == 0


def y4m(path: Path, *options: str) -> bytes:
    """A film as y4m, by FFmpeg."""
    line = [FFMPEG, "-v", "error", "-i", path, *options, "-f", "yuv4mpegpipe", "-strict", "-1", "-"]
    return subprocess.run(line, capture_output=True, check=True).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a film of 25 frames with sound."""
    (tmp_path / "temporary").mkdir()
    ffmpeg(
        *picture(1), *sound(1), "-vf", "noise=alls=20:allf=t,setsar=12/11", "-c:v", "ffv1", "-pix_fmt", "yuv420p",
        "-c:a", "aac", tmp_path / "film.mkv",
    )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("kind", ["yuv420p", "yuv422p10le", "yuv444p16le", "gray"])
def test_frames_from_stdin_arrive_unchanged_with_the_sound_of_a_film(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    stream = y4m(folder / "film.mkv", "-pix_fmt", kind)
    options = ("--audio-from=film.mkv", "--preset=archive", "--json")
    here(folder, monkeypatch, *options, "-", "made.mkv", given=stream)
    said = capsys.readouterr()
    assert "it cannot be read twice, so that a job that is stopped begins anew" in said.err
    record = json.loads(said.out)
    assert (record["source"], record["frames"], record["pictures"]) == ("stdin", 25, "exact")
    assert record == json.loads(record_path(folder / "made.mkv").read_text())
    ffmpeg("-i", folder / "film.mkv", "-map", "0:v", "-c:v", "ffv1", "-pix_fmt", kind, folder / "plain.mkv")
    assert frames_hash(folder / "made.mkv") == frames_hash(folder / "plain.mkv")
    assert times(folder / "made.mkv") == times(folder / "film.mkv")
    assert kinds(folder / "made.mkv") == ["video", "audio"]
    assert [data for _, data in packets(folder / "made.mkv", 1)] == [
        data for _, data in packets(folder / "film.mkv", 1)
    ]
    with av.open(str(folder / "made.mkv")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(12, 11)


@pytest.mark.parametrize("kind", ["yuv420p", "yuv422p10le", "gray"])
def test_frames_on_stdout_are_those_of_the_film(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, in_this_process: None
) -> None:
    ffmpeg("-i", folder / "film.mkv", "-c:a", "copy", "-c:v", "ffv1", "-pix_fmt", kind, folder / "other.mkv")
    here(folder, monkeypatch, "other.mkv", "-")
    out, err = capsysbinary.readouterr()
    said = err.decode()
    assert "a stream carries no audio; take it from the source" in said
    assert "a stream cannot be read back and compared, and cannot be continued" in said
    head, _, _ = out.partition(b"\n")
    assert b" F25:1 Ip A12:11 C" in head
    assert head.endswith(b" XLENGTH=25")
    (folder / "made.y4m").write_bytes(out)
    assert frames_hash(folder / "made.y4m") == frames_hash(folder / "other.mkv")


def test_a_pipe_goes_through_both_ways(folder: Path) -> None:
    code, out, said = vsfmanet(folder, "-", "-", "--start=5", given=y4m(folder / "film.mkv"))
    assert code == 0, said
    (folder / "made.y4m").write_bytes(out)
    ffmpeg("-i", folder / "film.mkv", "-vf", "select=gte(n\\,5)", "-c:v", "ffv1", "-an", folder / "cut.mkv")
    assert frames_hash(folder / "made.y4m") == frames_hash(folder / "cut.mkv")


def test_pictures_become_a_stream_in_yuv(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, in_this_process: None
) -> None:
    (folder / "in").mkdir()
    ffmpeg("-i", folder / "film.mkv", "-frames:v", "3", folder / "in/%02d.png")
    here(folder, monkeypatch, "in/%02d.png", "-", "--fps=24000/1001")
    out = capsysbinary.readouterr().out
    assert b" F24000:1001 Ip A1:1 C444 " in out.partition(b"\n")[0]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("exit", 6, "the job ended as if all were well restoring"),
        ("SIGKILL", 6, "the job crashed or was killed (-9) restoring"),
    ],
)
def test_a_crash_while_frames_go_to_stdout_is_an_error(folder: Path, fault: str, code: int, words: str) -> None:
    ended, out, said = vsfmanet(folder, "film.mkv", "-", fault=fault)
    assert ended == code
    assert words in said
    assert out.count(b"FRAME\n") < 25


def test_a_reader_that_ends_early_is_an_error(folder: Path) -> None:
    ffmpeg(*picture(25, size="320x240"), "-c:v", "ffv1", folder / "long.mkv")
    job = subprocess.Popen(
        [sys.executable, light.FILE, "restore", "long.mkv", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=light.environment(),
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.read(10) == b"YUV4MPEG2 "
    job.stdout.close()
    assert b"the program behind the pipe has ended" in job.communicate()[1]
    assert job.returncode == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stream: stream[:-7], "the stream ends within frame"),
        (lambda stream: stream.replace(b"\n", b" XLENGTH=26\n", 1), "the stream ends after frame 25 of 26"),
        (lambda stream: stream.partition(b"\n")[0] + b"\n", "got a header without any"),
        (lambda stream: b"", "y4m is needed"),
        (lambda stream: b"\x1aE\xdf\xa3" + stream, "y4m is needed"),
    ],
)
def test_a_stream_that_is_cut_or_no_y4m_is_refused(folder: Path, change: Callable[[bytes], bytes], words: str) -> None:
    with pytest.raises((DamagedError, SourceError), match=words):
        receive(io.BytesIO(change(y4m(folder / "film.mkv"))), folder / "kept.nut", lambda: None)


def test_a_stream_that_is_cut_leaves_nothing_behind(folder: Path) -> None:
    code, out, said = vsfmanet(folder, "-", "made.mkv", given=y4m(folder / "film.mkv")[:-7])
    assert (code, out) == (3, b"")
    assert "the stream ends within frame 24; see what the program before the pipe says" in said
    assert nothing_but(folder, "temporary", "film.mkv")


def test_stdout_carries_either_frames_or_json(folder: Path) -> None:
    code, out, said = vsfmanet(folder, "film.mkv", "-", "--json")
    assert code == 2
    assert "--json cannot be printed there" in said
    assert b"FRAME" not in out


def test_interlaced_frames_are_refused(folder: Path) -> None:
    code, _, said = vsfmanet(folder, "-", "made.mkv", given=y4m(folder / "film.mkv").replace(b" Ip ", b" It ", 1))
    assert code == 3
    assert "progressive video is needed, got interlaced" in said


def test_what_the_writer_writes_is_received(tmp_path: Path) -> None:
    frames = [np.full(8 * 8 * 3 // 2, n, np.uint8).tobytes() for n in range(3)]
    stream = io.BytesIO()
    writer = Y4mWriter(
        stream,
        size=(8, 8),
        pixel_format="yuv420p",
        rate=Fraction(30000, 1001),
        aspect=Fraction(1),
        frames=3,
        full_range=True,
        chroma_location=1,
    )
    for frame in frames:
        writer.write(frame)
    assert writer.bytes == len(stream.getvalue())
    assert b" C420mpeg2 XCOLORRANGE=FULL XLENGTH=3\n" in stream.getvalue()
    counted = []
    rate, aspect = receive(io.BytesIO(stream.getvalue()), tmp_path / "kept.nut", lambda: counted.append(1))
    assert (rate, aspect, len(counted)) == (Fraction(30000, 1001), Fraction(1), 3)
    with av.open(str(tmp_path / "kept.nut")) as container:
        assert [frame.to_ndarray().tobytes() for frame in container.decode(video=0)] == frames
