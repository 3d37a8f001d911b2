"""The examples as a user runs them, with the shipped weights."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from vsfmanet.media.ffmpeg import find_ffmpeg

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
PROGRAMS = Path(sys.executable).parent
CLIP = EXAMPLES / "dragonfly.mkv"
FIRST = 43
"""First of four frames of the last segment, which needs the fewest frames around it."""


def decoded(path: Path) -> NDArray[np.uint8]:
    """All frames of a file as (T, H*3/2, W): planes of 4:2:0."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of the example clip, 96 x 54 pixels of its middle: the whole takes four times as long to restore."""
    made = tmp_path_factory.mktemp("part") / "part.mkv"
    cut_out(CLIP, made, 1)
    return made


def cut_out(film: Path, made: Path, scale: int, *filters: str) -> None:
    """Copy the middle of a film without loss; sizes in pixels are those of the example clip times `scale`."""
    crop = f"crop={96 * scale}:{54 * scale}:{48 * scale}:{26 * scale}"
    line = ["-v", "error", "-i", str(film), "-vf", ",".join((crop, *filters)), "-c:v", "ffv1", str(made)]
    subprocess.run([str(find_ffmpeg().path), *line], check=True)


@pytest.fixture(scope="module")
def by_command(part: Path) -> NDArray[np.uint8]:
    """Frames `FIRST` ... `FIRST + 3` of the part, restored without loss by the command line."""
    out = part.with_name("restored.mkv")
    arguments = [str(part), str(out), f"--start={FIRST}", f"--end={FIRST + 4}", "--encoder-args=-c:v ffv1"]
    subprocess.run([sys.executable, "-m", "vsfmanet", "restore", *arguments], check=True, capture_output=True)
    return decoded(out)


@contextmanager
def output() -> Iterator[vs.VideoNode]:
    """The clip that a script has set as its output, which is taken back afterwards."""
    try:
        yield vs.get_output(0).clip
    finally:
        vs.clear_output(0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which `vapoursynth config` has been run."""
    folder = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "HOME": folder, "XDG_CONFIG_HOME": folder}
    subprocess.run([PROGRAMS / "vapoursynth", "config"], env=environment, check=True, capture_output=True)
    return environment


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere VSScript cannot be set up for one test")
def test_vspipe_into_ffmpeg_gives_the_pixels_of_the_command_line(
    part: Path, by_command: NDArray[np.uint8], tmp_path: Path, home: dict[str, str]
) -> None:
    by_pipe, script = tmp_path / "pipe.mkv", str(EXAMPLES / "restore.vpy")
    what = ["-a", f"source={part}", "-s", str(FIRST), "-e", str(FIRST + 3)]
    reading = [str(PROGRAMS / "vspipe"), "-c", "y4m", *what, script, "-"]
    with subprocess.Popen(reading, env=home, stdout=subprocess.PIPE) as vspipe:
        writing = [str(find_ffmpeg().path), "-v", "error", "-i", "-", "-c:v", "ffv1", str(by_pipe)]
        subprocess.run(writing, stdin=vspipe.stdout, check=True)
    assert vspipe.returncode == 0
    assert by_command.shape == (4, 216 * 3 // 2, 384)
    assert np.array_equal(by_command, decoded(by_pipe))


def test_the_script_without_a_source_restores_the_example_clip() -> None:
    runpy.run_path(str(EXAMPLES / "restore.vpy"))
    with output() as clip:
        assert (clip.width, clip.height, clip.num_frames) == (768, 432, 48)


def test_the_shipped_weights_sharpen_the_example_clip(by_command: NDArray[np.uint8], tmp_path: Path) -> None:
    """The clip's original is known: the restored frames must be nearer to it than bicubic ones."""
    enlarged, original = tmp_path / "bicubic.mkv", tmp_path / "sharp.mkv"
    cut_out(CLIP, enlarged, 1, "scale=384:216:flags=bicubic")
    cut_out(EXAMPLES / "dragonfly_sharp.mkv", original, 4)
    luma = (slice(None), slice(8, 216 - 8), slice(8, -8))
    own = slice(FIRST, FIRST + 4)
    sharp = decoded(original)[own][luma].astype(np.float64)
    ours, bicubic = (
        10 * np.log10(255**2 / np.square(image[luma] - sharp).mean()) for image in (by_command, decoded(enlarged)[own])
    )
    assert ours > bicubic + 0.5


def test_the_script_with_known_exposures_hands_them_to_the_network() -> None:
    runpy.run_path(str(EXAMPLES / "known_exposure.vpy"))
    exposures = [float(line) for line in (EXAMPLES / "dragonfly_exposure.txt").read_text().split()]
    with output() as clip, clip.get_frame(40) as frame:
        assert (clip.width, clip.height, clip.num_frames) == (768, 432, 48)
        assert frame.props["FMANetExposure"] == exposures[40]
        assert frame.props["FMANetExposureSource"] == "prop"


def test_the_script_for_mpv_restores_the_clip_that_mpv_passes() -> None:
    played = vs.core.std.BlankClip(format=vs.YUV420P8, width=32, height=16, length=3).std.SetFrameProps(_Matrix=1)
    runpy.run_path(str(EXAMPLES / "mpv.vpy"), init_globals={"video_in": played})
    with output() as clip, clip.get_frame(1) as frame:
        assert (clip.width, clip.height, clip.num_frames) == (128, 64, 3)
        assert frame.props["FMANetModel"] == "fmanetpp_x4_fast"


def test_the_script_for_a_part_restores_it_and_passes_the_rest() -> None:
    runpy.run_path(str(EXAMPLES / "part.vpy"))
    source = vs.core.bs.VideoSource(str(CLIP), cachemode=0)
    with output() as clip:
        assert clip.format is not None
        assert (clip.width, clip.height, clip.num_frames, clip.format.name) == (192, 108, 48, "YUV420P10")
        for n, restored in ((19, False), (20, True), (27, True), (28, False)):
            with clip.get_frame(n) as frame, source.get_frame(n) as own:
                assert frame.props.get("FMANetModel") == ("fmanetpp_x1_path" if restored else None)
                luma, given = (np.asarray(each[0], dtype=np.int64) for each in (frame, own))
                assert np.array_equal(luma, 4 * given) != restored


def test_every_example_frame_has_an_exposure() -> None:
    exposures = [float(line) for line in (EXAMPLES / "dragonfly_exposure.txt").read_text().split()]
    with av.open(str(CLIP)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(24)
        assert len(list(container.decode(stream))) == len(exposures)
    assert set(exposures) <= {0.2, 0.4, 0.6, 0.8, 1.0}
    assert len(set(exposures)) > 1


def test_the_examples_stay_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir()) < 4 * 2**20
