"""A clip as a source in place of a file's frames, with sound and subtitles of another file; and that of a script."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import vapoursynth as vs

from vsfmanet.errors import FormatError, SourceError
from vsfmanet.media.clip import SourceClip, pixel_format
from vsfmanet.media.decode import UPRIGHT
from vsfmanet.media.edges import Edges
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.source import Source, Stream, inspect

SUFFIX = ".vpy"
"""Suffix of scripts."""

TICKS = 1000
"""Units of time in a frame of constant rate, so that a frame can begin with the film's first one to 1/1000 frame."""

RESTORED = "FMANetModel"
"""Property of frames that the filter has restored."""


def is_script(path: Path) -> bool:
    """Whether a source is a script, by its suffix."""
    return path.suffix.lower() == SUFFIX


def open_script(path: Path, *, audio_from: Path | None, folder: Path, interlaced: bool) -> tuple[Source, SourceClip]:
    """Run a script and take its output 0.

    Args:
        path: The script.
        audio_from: Film with the sound, subtitles and names; its timestamps are those of the frames if it has as many.
            None for none.
        folder: For a file that stands in for the film without one.
        interlaced: Whether interlaced frames are accepted.

    Returns:
        A source that holds everything but the frames, and the frames.

    Raises:
        SourceError: The script fails, or has no video output.
        FormatError: Its clip has no constant size, format or rate, or is interlaced.
    """
    return open_node(path, run_script(path), audio_from=audio_from, folder=folder, interlaced=interlaced)


def open_node(
    path: Path,
    node: vs.VideoNode,
    *,
    audio_from: Path | None,
    folder: Path,
    interlaced: bool,
    places: Sequence[int] | None = None,
    notices: tuple[str, ...] = (),
    faults: tuple[str, ...] = (),
) -> tuple[Source, SourceClip]:
    """Take a clip as a source.

    Args:
        path: Where it comes from, for messages.
        node: The clip.
        audio_from: As for `open_script`.
        folder: As for `open_script`.
        interlaced: As for `open_script`.
        places: Where each frame stands on the grid of the clip's rate; by default one after the other.
        notices: For `SourceClip.notices`.
        faults: For `SourceClip.faults`.

    Returns:
        As `open_script`.

    Raises:
        SourceError: The first frame cannot be computed.
        FormatError: As for `open_script`.
    """
    if not node.width or not node.height or not node.format:
        raise FormatError(f"{path}: one size and format throughout is needed; cut the clip, or convert its parts")
    pixel_format(node.format)
    film = None if audio_from is None else inspect(audio_from)
    try:
        first = node.get_frame(0)
    except vs.Error as error:
        raise SourceError(f"{path}: the first frame is needed, but computing it fails: {error}; mend it") from error
    if first.props.get("_FieldBased", 0) and not interlaced:
        raise FormatError(f"{path}: progressive video is needed, got interlaced; deinterlace it, or pass --deinterlace")
    aspect = Fraction(int(first.props.get("_SARNum", 0)) or 1, int(first.props.get("_SARDen", 0)) or 1)
    timestamps, time_base, told = _times(path, node, film, places or range(node.num_frames))
    source = _stand_in(node, folder) if film is None else film
    source = replace(
        source,
        size=(node.width, node.height),
        aspect=aspect,
        rate=Fraction(node.fps) if node.fps else source.rate,
        crop=(0, 0, 0, 0),
        rotation=0,
        turn=UPRIGHT,
    )
    clip = SourceClip(
        node=node,
        edges=Edges(),
        timestamps=timestamps,
        time_base=time_base,
        anchors=(),
        aspect=aspect,
        faults=faults,
        notices=notices + told,
    )
    return source, clip


def restored_by(node: vs.VideoNode) -> str | None:
    """Name of the model that a script has used; None if its frames are not restored."""
    model = node.get_frame(0).props.get(RESTORED)
    return None if model is None else model.decode() if isinstance(model, bytes) else str(model)


def run_script(path: Path) -> vs.VideoNode:
    """Run a script as vspipe does, and return its output 0; what it prints goes to stderr.

    Raises:
        SourceError: It fails, or has no video output.
    """
    vs.clear_outputs()
    sys.path.insert(0, str(path.absolute().parent))
    try:
        with redirect_stdout(sys.stderr):
            runpy.run_path(str(path), run_name="__vapoursynth__")
        output = vs.get_outputs().get(0)
    except (Exception, SystemExit) as error:
        line = next((f"line {at.lineno}: " for at in reversed(_steps(error)) if at.filename == str(path)), "")
        raise SourceError(f"{path}: the script must run, but {line}{type(error).__name__}: {error}; mend it") from error
    finally:
        sys.path.pop(0)
    node = getattr(output, "clip", output)
    if not isinstance(node, vs.VideoNode):
        raise SourceError(f"{path}: a video clip as output 0 is needed, got {type(node).__name__}; call set_output()")
    return node


def _steps(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__)


def _times(
    path: Path, node: vs.VideoNode, film: Source | None, places: Sequence[int]
) -> tuple[tuple[int, ...], Fraction, tuple[str, ...]]:
    """Timestamps of the frames, with their unit and notices."""
    count = places[-1] + 1
    if film is not None and len(film.packet_times) == count == film.video.packets:
        return tuple(film.packet_times[place] for place in places), film.time_base, ()
    if not node.fps:
        raise FormatError(
            f"{path}: a constant rate is needed, or a film with as many frames (--audio-from), whose times are taken; "
            "call std.AssumeFPS"
        )
    unit = 1 / (Fraction(node.fps) * TICKS)
    start = 0 if film is None or film.video.first is None else round(film.video.first / unit)
    times = tuple(start + TICKS * place for place in places)
    if film is None or len(film.packet_times) == 0:
        return times, unit, ()
    notice = (
        f"{path.name} has {count} frames and {film.path.name} has {len(film.packet_times)}: its frames are taken as "
        f"{float(node.fps):.6g} per second from the beginning of the film; check that sound and picture fit"
    )
    return times, unit, (notice,)


def _stand_in(node: vs.VideoNode, folder: Path) -> Source:
    """A source without anything but the frames: FFmpeg reads an empty file of metadata in its place."""
    path = folder / "none.ffmeta"
    path.write_text(";FFMETADATA1\n", encoding="utf-8")
    status = path.stat()
    rate = Fraction(node.fps) if node.fps else Fraction(25)
    video = Stream(
        index=0,
        kind="video",
        codec="rawvideo",
        tags={},
        content=b"",
        needed=b"",
        joined=b"",
        packets=node.num_frames,
        cut=0,
        spans=(),
        path=None,
        first=Fraction(0),
        end=node.num_frames / rate,
    )
    return Source(
        path=path,
        fingerprint=(status.st_size, status.st_mtime_ns),
        video=video,
        others=(),
        chapters=(),
        title="",
        size=(node.width, node.height),
        aspect=Fraction(1),
        time_base=1 / rate,
        rate=rate,
        crop=(0, 0, 0, 0),
        packet_times=(),
        first_key=None,
        starts_open=False,
        rotation=0,
        turn=UPRIGHT,
        hdr=Hdr(),
        disposition=("default",),
        faults=(),
        remarks=(),
    )
