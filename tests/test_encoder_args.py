"""Options for the encoder: whatever is in them, FFmpeg has one output."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.films import FFMPEG, H264, ffmpeg, nothing_but, picture, restore
from vsfmanet.errors import ConfigError
from vsfmanet.media.encoder_args import OF_FILES, WITHOUT_VALUE, parse_encoder_args

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.mark.parametrize("words", ["{}", "-crf 20 {}", "-an {}", "-shortest {}", "-nostdin {}", "-y {}", "-f null {}"])
def test_a_stray_word_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str) -> None:
    film = tmp_path / "film.mkv"
    ffmpeg(*picture(0.2), *H264, film)
    before = film.read_bytes()
    assert restore(film, tmp_path / "made.mkv", f"--encoder-args={words.format(shlex.quote(str(film)))}") == 2
    assert "--encoder-args must be" in capsys.readouterr().err
    assert film.read_bytes() == before
    assert nothing_but(tmp_path, "film.mkv")


@pytest.mark.parametrize(
    "text",
    [
        "-crf",
        "-c:v ffv1 -level",
        "- 1",
        "-",
        "--crf 20",
        "-/filter:v file",
        "-report 1",
        "-progress x",
        "-i x",
        "'-crf 20",
    ],
)
def test_what_is_not_an_option_with_its_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--encoder-args must be"):
        parse_encoder_args(text)


def test_options_with_values_of_all_kinds_are_taken() -> None:
    text = "-c:v libx265 -preset fast -crf 20 -x265-params 'log-level=1:aq-mode=3' -level -1 -metadata:s:v 'title=a b'"
    assert parse_encoder_args(text) == tuple(shlex.split(text))
    assert parse_encoder_args("") == ()


def test_the_lists_know_every_such_option_of_this_ffmpeg() -> None:
    """Those that `-h long` shows without a value; where it shows none for a number, FFmpeg asks for it."""
    listed = subprocess.run([FFMPEG, "-hide_banner", "-h", "long"], capture_output=True, text=True, check=True).stdout
    without = set(re.findall(r"^-(\w+)(?:\[:<stream_spec>\])?  ", listed, re.MULTILINE))
    assert len(without) > 50
    unknown = []
    for name in sorted(without - WITHOUT_VALUE - OF_FILES):
        line = [FFMPEG, "-hide_banner", "-nostdin", "-f", "lavfi", "-i", "color=d=0.04", f"-{name}"]
        said = subprocess.run(line, capture_output=True, text=True, check=False).stderr
        if "Missing argument" not in said and "needs an argument" not in said:
            unknown.append(name)
    assert unknown == []
