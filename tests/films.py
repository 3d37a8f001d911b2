"""Small films, the command line with a light stand-in for the network, and what a finished file holds."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
import vapoursynth as vs

from vsfmanet.cli import main
from vsfmanet.jobs import job, runner
from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
FAST = "--encoder-args=-preset ultrafast"
LOSSLESS = "--encoder-args=-c:v ffv1"
H264 = ("-c:v", "libx264", "-preset", "ultrafast")


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *arguments], check=True)


def picture(seconds: float, *, size: str = "64x48", rate: int = 25) -> list[str]:
    """Input options for a moving picture."""
    return ["-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}"]


def sound(seconds: float) -> list[str]:
    """Input options for a tone."""
    return ["-f", "lavfi", "-i", f"sine=d={seconds}"]


def lighten(monkeypatch: pytest.MonkeyPatch, *, scale: int = 2) -> None:
    """No network: the picture enlarged, or with scale 1 as it is, in the format that the settings ask for."""

    def enlarge(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        node = clips.converted(node, settings.output_format)
        return node if scale == 1 else node.resize.Point(scale * node.width, scale * node.height)

    monkeypatch.setattr(clips, "restore_clip", enlarge)
    for module in (job, runner):
        monkeypatch.setattr(module, "weights_sha256", lambda model: f"weights of {model}")


def restore(source: Path | str, target: Path, *options: str, encoder: tuple[str, ...] = (FAST,)) -> int:
    """`vsfmanet restore`; returns its exit code."""
    encoder = () if any(option.startswith("--encoder-args") for option in options) else encoder
    return main(["restore", *encoder, *options, "--", str(source), str(target)])


def times(path: Path) -> list[Fraction]:
    """When each frame is shown, by decoding."""
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        unit = Fraction(track.time_base.numerator, track.time_base.denominator)
        return [frame.pts * unit for frame in container.decode(track) if frame.pts is not None]


def steps(path: Path) -> list[Fraction]:
    """When each frame is shown, from the first."""
    shown = times(path)
    return [time - shown[0] for time in shown]


def frames_hash(path: Path) -> str:
    """A hash of the samples of all decoded frames, without their times."""
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()


def packets(path: Path, index: int) -> list[tuple[Fraction, bytes]]:
    """Time and content of every packet of a stream."""
    with av.open(str(path)) as container:
        return [
            (packet.pts * Fraction(packet.time_base.numerator, packet.time_base.denominator), bytes(packet))
            for packet in container.demux(container.streams[index])
            if packet.size and packet.pts is not None
        ]


def kinds(path: Path) -> list[str]:
    """The kinds of the streams of a file, in order."""
    with av.open(str(path)) as container:
        return [stream.type for stream in container.streams]


def nothing_but(folder: Path, *names: str) -> bool:
    """Whether a folder holds these and nothing else: no part files, no results."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Whether it is one: yes."""
        return True


def shown_lines(screen: Terminal) -> list[str]:
    """Lines that a terminal has shown, each version of one that was updated, without colours and empty ones."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
