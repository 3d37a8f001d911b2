"""The FFmpeg program: choosing one, one run of it, and killing it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.media.presets import PRESETS, TEN_BITS, Preset, preset_args

OLDEST_FFMPEG = (5, 1)
"""Release 4.2 shifts the first frames against the others when sound starts before the picture; 5.1 has `-fps_mode`."""

PREFERRED_FFMPEG = (7, 0)
"""Older releases lose chapters and dispositions, and cannot write PCM to MP4."""

ATTEMPTS = 3
"""How often a program is asked that a signal ends."""

PATIENCE = 30
"""Seconds that the trial of a preset may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ffmpeg:
    """An FFmpeg that runs."""

    path: Path
    """Program."""
    release: tuple[int, int]
    """Major and minor number; builds from the development branch count as the newest."""
    version: str
    """The first line that it prints of itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run of FFmpeg: its command line without questions, which replaces the output."""

    ffmpeg: Ffmpeg
    """Program."""
    inputs: tuple[str, ...]
    """Inputs, each preceded by its options."""
    arguments: tuple[str, ...]
    """Options of the output."""
    output: Path
    """File to write."""

    @property
    def line(self) -> list[str]:
        """The command line. All clocks stay as they are (-copyts): else each release shifts each input differently."""
        common = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning", "-y", "-copyts")
        return [str(self.ffmpeg.path), *common, *self.inputs, *self.arguments, f"file:{self.output}"]


def find_ffmpeg(path: Path | None = None, *, for_hdr: bool = False) -> Ffmpeg:
    """Find an FFmpeg: the user's choice; else the one on the path from release `PREFERRED_FFMPEG` on; else the one that
    comes with imageio-ffmpeg; else an older one on the path.

    Args:
        path: The user's choice.
        for_hdr: Prefer one for which `takes_hdr` holds, if the user has chosen none.

    Raises:
        ConfigError: The chosen one does not run, or is older than `OLDEST_FFMPEG`.
        OutputError: None was found that runs and is recent enough.
    """
    oldest = ".".join(map(str, OLDEST_FFMPEG))
    if path is not None:
        chosen = _examined(str(path))
        if chosen is None:
            raise ConfigError(f"{path}: an FFmpeg {oldest} or newer that runs is needed; choose another with --ffmpeg")
        return chosen
    paths = filter(None, (shutil.which("ffmpeg"), _bundled_ffmpeg()))
    found = [each for each in map(_examined, paths) if each is not None]
    found.sort(key=lambda each: each.release < PREFERRED_FFMPEG)  # keeps the order of equals
    if not found:
        raise OutputError(f"FFmpeg {oldest} or newer is needed, on the path or by imageio-ffmpeg; install it")
    return next(filter(takes_hdr, found), found[0]) if for_hdr else found[0]


def takes_hdr(ffmpeg: Ffmpeg) -> bool:
    """Whether an FFmpeg has options for HDR10 metadata that work with any encoder and container, as 9.0 has."""
    answer = _answer(str(ffmpeg.path), "-hide_banner", "-h", "long") or ""
    return "\n-mastering_display" in answer and "\n-content_light" in answer


def working_presets(ffmpeg: Ffmpeg) -> list[Preset]:
    """Presets whose encoder codes a frame on this machine."""
    return [preset for preset in PRESETS if _works(ffmpeg, preset)]


def _works(ffmpeg: Ffmpeg, preset: Preset) -> bool:
    """Whether the encoder of a preset codes a small frame."""
    depth = 10 if preset in TEN_BITS else 8
    pixel_format = "yuv420p10le" if depth == 10 else "yuv420p"
    picture = ["-f", "lavfi", "-i", f"color=s=320x256:r=25:d=0.04,format={pixel_format}"]
    line = [str(ffmpeg.path), "-v", "error", *picture, *preset_args(preset, pixel_format, depth, ".mkv")]
    try:
        run = subprocess.run(
            [*line, "-frames:v", "1", "-f", "null", "-"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0


def _examined(path: str) -> Ffmpeg | None:
    """Examine a program; None unless it is an FFmpeg that runs and is recent enough."""
    answer = _answer(path, "-version")
    if answer is None:
        return None
    version = answer.partition("\n")[0].strip()
    named = re.search(r"version n?(\d+)\.(\d+)", version)
    release = (int(named[1]), int(named[2])) if named else (1000, 0)
    return Ffmpeg(path=Path(path), release=release, version=version) if release >= OLDEST_FFMPEG else None


def _answer(path: str, *question: str) -> str | None:
    """Run a program that only prints; returns what it printed, None if it does not start or fails.

    One that a signal ends, as when memory is short, is asked again: which FFmpeg is found must not depend on that.
    """
    for _ in range(ATTEMPTS):
        try:
            run = subprocess.run([path, *question], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError:
            return None
        if run.returncode >= 0:
            return run.stdout.decode(errors="replace") if run.returncode == 0 else None
    return None


def _bundled_ffmpeg() -> str | None:
    """Path of imageio-ffmpeg's program; None if it has none for this system."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process that leads a group of its own, with that group; return its exit code."""
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            with suppress(ProcessLookupError):  # another thread may have been faster
                os.killpg(process.pid, signal.SIGKILL)  # the user's ffmpeg may be a script
    return process.wait()
