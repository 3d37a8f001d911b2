"""A VapourSynth script as the source of a job."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.films import LOSSLESS, ffmpeg, kinds, lighten, packets, picture, restore, sound, times
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.record import Fingerprint, script_files

HEAD = """\
import vapoursynth as vs
import helper
clip = vs.core.bs.VideoSource("film.mkv", cachemode=0)
print("what a script prints is no result")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> Path:
    """A folder with a film of variable rate with sound, and a module for scripts; it is the working folder."""
    lighten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    ffmpeg(
        *picture(1), *sound(1), "-vf", "select=lt(n\\,10)+not(mod(n\\,3))", "-fps_mode", "vfr", "-c:v", "libx264",
        "-preset", "ultrafast", "-c:a", "aac", "-metadata:s:a", "title=Stereo", "film.mkv",
    )  # fmt: skip
    (tmp_path / "helper.py").write_text("LEFT = 16\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "script.vpy"
    path.write_text(HEAD + text)
    return path


def test_a_script_is_restored_with_the_times_and_the_sound_of_its_film(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, made = write(folder, "clip.std.Crop(left=helper.LEFT).set_output()"), folder / "made.mkv"
    assert restore(script, made, "--audio-from=film.mkv", "--json") == 0
    said = capsys.readouterr()
    assert "film.mkv, helper.py" in said.err
    assert json.loads(said.out)["source"] == str(script)  # what it prints has not spoilt stdout
    assert times(made) == times(folder / "film.mkv")
    assert kinds(made) == ["video", "audio"]
    assert [data for _, data in packets(made, 1)] == [data for _, data in packets(folder / "film.mkv", 1)]
    with av.open(str(made)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (2 * 48, 2 * 48)
        assert container.streams.audio[0].metadata["title"] == "Stereo"
    assert restore(script, made, "--audio-from=film.mkv") == 0
    assert "already done" in capsys.readouterr().err
    (folder / "helper.py").write_text("LEFT = 32\n")
    assert restore(script, made, "--audio-from=film.mkv") == 2  # another job
    assert "exists already" in capsys.readouterr().err


def test_a_script_that_restores_by_itself_is_encoded_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, made = write(folder, 'clip.std.SetFrameProps(FMANetModel="mine").set_output()'), folder / "made.mkv"
    assert restore(script, made, "--height=96") == 2
    assert "set the size in it" in capsys.readouterr().err
    assert restore(script, made, LOSSLESS) == 0
    assert "with mine: they are encoded as they are" in capsys.readouterr().err
    for name in ("film.mkv", "made.mkv"):
        with av.open(str(folder / name)) as container:
            shown = [frame.to_ndarray() for frame in container.decode(video=0)]
        if name == "film.mkv":
            source = shown
    np.testing.assert_array_equal(source, shown)
    assert kinds(made) == ["video"]
    assert "with mine" in json.loads(record_path(made).read_text())["warnings"][0]


def test_a_script_of_another_length_has_a_constant_rate_and_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = write(folder, "clip[:12].std.AssumeFPS(fpsnum=10).set_output()")
    made = folder / "made.mkv"
    assert restore(script, made, "--audio-from=film.mkv", "--start=2", "--end=1s", "--range-frames=4") == 0
    assert times(made) == [Fraction(n, 10) for n in range(8)]
    assert "check that sound and picture fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('no film')", "line 5: ValueError: no film"),
        ("import sys; sys.exit(3)", "the script must run, but line 5: SystemExit: 3"),
        ("pass", "call set_output()"),
        ("clip.resize.Bicubic(format=vs.YUV444PS).set_output()", "8 to 16 bit"),
        ("clip.std.SetFrameProps(_FieldBased=2).set_output()", "progressive video is needed"),
        ("(clip[:2].std.AssumeFPS(fpsnum=10) + clip[2:5].std.AssumeFPS(fpsnum=25)).set_output()", "constant rate"),
    ],
)
def test_a_script_that_cannot_be_used_is_refused(
    folder: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(write(folder, text), folder / "made.mkv") == 3
    assert said in capsys.readouterr().err
    assert not (folder / "made.mkv").exists()


def test_sound_of_another_film_is_for_scripts_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore("film.mkv", folder / "made.mkv", "--audio-from=film.mkv") == 2
    assert "is for a script" in capsys.readouterr().err


def test_the_files_that_a_script_names_are_part_of_its_fingerprint(folder: Path) -> None:
    script = write(folder, "from helper import LEFT\nname = 'no file'\nother = '\\0'\n")
    assert script_files(script) == [folder / "film.mkv", folder / "helper.py"]
    before = Fingerprint.of(script)
    status = (folder / "film.mkv").stat()
    data = bytearray((folder / "film.mkv").read_bytes())
    data[-1] ^= 1
    (folder / "film.mkv").write_bytes(data)
    os.utime(folder / "film.mkv", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Fingerprint.of(script) != before
