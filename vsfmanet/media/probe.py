"""Inspect a video file: format, damage, whether `restore` accepts it, and what is known about its exposure."""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

import vapoursynth as vs

from vsfmanet.errors import ConfigError, FormatError, OutputError, SourceError
from vsfmanet.exposures import KnownExposure, gather
from vsfmanet.exposures.sidecar import sidecar_text
from vsfmanet.media import OWN_SLIP
from vsfmanet.media import clip as clips
from vsfmanet.media.clip import Colour
from vsfmanet.media.coding import choose_encoder
from vsfmanet.media.containers import CONTAINERS
from vsfmanet.media.copying import refused_streams
from vsfmanet.media.ffmpeg import find_ffmpeg
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import Meters, clock
from vsfmanet.media.source import Source, inspect, is_kept
from vsfmanet.settings import SIDECAR_SUFFIXES

PLOT_SUFFIX = ".svg"
"""Of pictures. SVG is text: to draw it needs no package, and it is sharp at any size."""

_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_MARGIN = 960, 240, 40
"""Pixels; the margin goes around."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """Findings about a file."""

    source: Source
    """The demuxer's view of the file."""
    refusal: str | None
    """Why `restore` refuses it; None if it does not."""
    format: str | None
    """VapourSynth's name of the pixel format; None for a file that is refused."""
    pixel_format: str | None
    """FFmpeg's name of it; None for a file that is refused."""
    colour: Colour | None
    """Of the first frame; None for a file that is refused."""
    aspect: Fraction | None
    """Sample aspect ratio (SAR) of the upright picture; None for a file that is refused."""
    times: tuple[float, ...]
    """Time of each frame, seconds; of each packet for a file that is refused."""
    constant_rate: bool
    """Whether all frames last equally long, but for the rounding of their timestamps."""
    exposures: tuple[KnownExposure | None, ...]
    """Exposure of each frame; None where only the network can estimate it."""
    estimates: tuple[KnownExposure | None, ...]
    """Exposure of each frame estimated from blur and motion, also where telemetry is known; empty unless requested."""
    faults: tuple[str, ...]
    """Signs of damage."""
    notices: tuple[str, ...]
    """What the user should know."""

    @property
    def known(self) -> list[float]:
        """The exposures that are known, in (0, 1]."""
        return [exposure.value for exposure in self.exposures if exposure is not None]


def probe(path: Path, *, estimate: Meters | None = None) -> Findings:
    """Inspect a file as `restore` does, without the network. The file is decoded once.

    Args:
        path: A regular file.
        estimate: If set, estimate the exposure of every frame from blur and motion, which takes about as long as
            restoring with a small model, and show progress here.

    Raises:
        SourceError: It is missing, or not a video.
        WeightsError: The weights for the estimate are missing.
    """
    source = inspect(path)
    notices: list[str] = []
    clip, refusal = None, None
    try:
        with _logged(notices):
            clip = clips.open_clip(source, threads=0)
    except (FormatError, SourceError) as error:
        refusal = str(error)
    stamps, unit = (source.packet_times, source.time_base) if clip is None else (clip.timestamps, clip.time_base)
    steps = [later - earlier for earlier, later in pairwise(stamps)]
    # No source filter writes properties of exposure, so there is no frame to look at.
    known = gather("auto", num_frames=len(stamps), nominal_interval=None, source_path=source.path)
    exposures = tuple(known.resolve(n, {}) for n in range(len(stamps)))
    estimates = () if clip is None or estimate is None else _estimates(clip.node, estimate)
    return Findings(
        source=source,
        refusal=refusal,
        format=None if clip is None else clip.node.format.name,
        pixel_format=None if clip is None else clips.pixel_format(clip.node.format),
        colour=None if clip is None else clips.colour(clip.node.get_frame(0)),
        aspect=None if clip is None else clip.aspect,
        times=tuple(float(stamp * unit) for stamp in stamps),
        constant_rate=max(steps, default=0) - min(steps, default=0) <= 1,
        exposures=tuple(map(_first, exposures, estimates)) if estimates else exposures,
        estimates=estimates,
        faults=source.faults + (() if clip is None else clip.faults),
        notices=(*notices, *(() if clip is None else clip.notices), *([known.notice] if known.notice else [])),
    )


@contextmanager
def _logged(texts: list[str]) -> Iterator[None]:
    """Collect the warnings of VapourSynth and its filters, once each."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in texts and OWN_SLIP not in text:
                texts.append(text)

    logger, handler = logging.getLogger("vapoursynth"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _estimates(node: vs.VideoNode, meters: Meters) -> tuple[KnownExposure | None, ...]:
    """Estimate the exposure of each frame from blur and motion."""
    from vsfmanet import exposure  # with torch

    found: list[KnownExposure | None] = []
    with meters.begin("estimating", node.num_frames) as progress:
        for frame in exposure(node, exposure="estimate").frames(prefetch=1, close=True):
            value, confidence = frame.props.get("FMANetExposure"), frame.props.get("FMANetExposureConfidence")
            if isinstance(value, float) and isinstance(confidence, float):
                found.append(KnownExposure(value=value, source="estimate", confidence=confidence))
            else:
                found.append(None)
            progress.advance()
    return tuple(found)


def _first(known: KnownExposure | None, estimate: KnownExposure | None) -> KnownExposure | None:
    return estimate if known is None else known


def as_table(findings: Findings) -> dict[str, object]:
    """Convert findings to plain values for JSON."""
    source, known = findings.source, findings.known
    steps = [later - earlier for earlier, later in pairwise(findings.times)]
    return {
        "path": str(source.path),
        "size": source.fingerprint[0],
        "video": {
            "codec": source.video.codec,
            "width": source.size[0],
            "height": source.size[1],
            "rotation": source.rotation,
            "format": findings.format,
            "sample_aspect_ratio": None if findings.aspect is None else str(findings.aspect),
            "frames": len(findings.times),
            "rate": float(source.rate),
            "constant_rate": findings.constant_rate,
            "shortest_interval": min(steps, default=None),
            "longest_interval": max(steps, default=None),
        },
        "colour": None if findings.colour is None else _colour_names(findings.colour),
        "hdr": {
            "mastering_display": source.hdr.master_display,
            "max_cll": source.hdr.max_cll,
            "dynamic": list(source.hdr.dynamic),
        },
        "streams": [str(stream) for stream in (source.video, *source.others)],
        "exposure": {
            "sources": _sources(findings),
            "min": min(known, default=None),
            "mean": statistics.fmean(known) if known else None,
            "max": max(known, default=None),
            "estimate_read": _estimates_read(findings) if findings.estimates else None,
            "estimate_off": _estimate_off(findings),
        },
        "faults": list(findings.faults),
        "notices": list(findings.notices),
        "refusal": findings.refusal,
        "plan": list(_plan(findings)),
    }


def as_lines(findings: Findings) -> list[str]:
    """Convert findings to lines of text."""
    source, times = findings.source, findings.times
    width, height = source.size
    turned = f", turned by {source.rotation} degrees" if source.rotation else ""
    steps = [1000 * (later - earlier) for earlier, later in pairwise(times)] or [0.0]
    rate = f"{float(source.rate):.6g} frames/s, " + (
        "constant (CFR)" if findings.constant_rate else f"variable (VFR): a frame lasts {_range(steps)} ms"
    )
    length = clock(times[-1] - times[0]) if times else "unknown"
    table = [
        ("file", f"{source.path} ({source.fingerprint[0] / 1e6:.1f} MB)"),
        ("video", f"{source.video.codec}, {width}x{height}{turned}, {len(times)} frames, {length}"),
        ("rate", rate),
    ]
    if findings.colour is not None:
        names = _colour_names(findings.colour)
        aspect = findings.aspect or Fraction(1)
        samples = "square samples" if aspect == 1 else f"SAR {aspect.numerator}:{aspect.denominator}"
        table.append(("format", f"{findings.format}, progressive, {samples}"))
        table.append(("colour", ", ".join(f"{name} {value or 'not named'}" for name, value in names.items())))
    if source.hdr != Hdr():
        table.append(("HDR", str(source.hdr)))
    table += [("stream", str(stream)) for stream in source.others]
    sources = ", ".join(f"{name} for {count} frames" for name, count in _sources(findings).items())
    spread = f"; known: {_range(findings.known)}" if findings.known else ""
    table.append(("exposure", f"{sources or 'no frames'}{spread}"))
    if findings.estimates:
        read, told = _estimates_read(findings), sum(one is not None for one in findings.estimates)
        off = _estimate_off(findings)
        beside = "" if off is None else f"; off by {off:.3f} on average where the camera recorded the exposure"
        table.append(("estimate", f"read in {read} frames, held from those in {told - read} near them{beside}"))
    table += [("damage", fault) for fault in findings.faults or ("none found",)]
    table += [("note", notice) for notice in findings.notices]
    table.append(("restore", findings.refusal or "takes this file"))
    table += [("plan", step) for step in _plan(findings)]
    return [f"{name:10}{text}" for name, text in table]


def _plan(findings: Findings) -> Iterator[str]:
    """Describe what `restore` does without options; nothing for a file that is refused."""
    source = findings.source
    if findings.refusal is not None or findings.pixel_format is None:
        return
    if findings.faults:
        yield "stop, because the file is damaged; with --on-damage salvage:"
    encoder = choose_encoder("", findings.pixel_format, ".mkv")
    made = encoder[encoder.index("-pix_fmt") + 1]
    yield f"encode {len(findings.times)} frames, at their own times, by {encoder[1]} as {made}"
    copied = [stream for stream in source.others if is_kept(stream)]
    if copied:
        yield f"copy {', '.join(map(str, copied))}"
    lost = [stream for stream in source.others if stream not in copied]
    if lost:
        yield f"leave out {', '.join(map(str, lost))}"
    ffmpeg = find_ffmpeg()
    refusing = [suffix for suffix in CONTAINERS if refused_streams(ffmpeg, source, copied, suffix)]
    fitting = [suffix for suffix in CONTAINERS if suffix not in refusing]
    yield f"write to {' or '.join(fitting)}" + (
        f" ({' and '.join(refusing)} cannot hold all of it)" if refusing else ""
    )


def export(findings: Findings, path: Path) -> None:
    """Write the exposures as a sidecar file, which `restore --exposure` reads.

    Raises:
        ConfigError: The file exists; for its suffix see `check_outputs`.
        OutputError: It cannot be written.
    """
    text = sidecar_text(
        path.suffix.lower(),
        exposures=[None if exposure is None else exposure.value for exposure in findings.exposures],
        sources=[None if exposure is None else exposure.source for exposure in findings.exposures],
        times=findings.times,
    )
    _write_new(path, text)


def plot(findings: Findings, path: Path) -> None:
    """Draw exposure over time.

    Raises:
        ConfigError: The file exists; for its suffix see `check_outputs`.
        OutputError: It cannot be written.
    """
    _write_new(path, _drawing(findings))


def check_outputs(*, export: Path | None, plot: Path | None) -> None:
    """Refuse files that `export` and `plot` would refuse, before any work.

    Raises:
        ConfigError: A file exists, or has a suffix that is not written.
    """
    for path, suffixes in ((export, SIDECAR_SUFFIXES), (plot, (PLOT_SUFFIX,))):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ConfigError(
                f"{path}: the file to write must end in {' or '.join(suffixes)}, got "
                f"{path.suffix or 'no suffix'}; name another"
            )
        if path is not None and path.exists():
            raise _taken(path)


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"{path}: the file to write exists already; name another, or remove it")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise OutputError(f"{path}: the file must be written, but {error}; check folder and disk") from error


def _sources(findings: Findings) -> dict[str, int]:
    """How many frames have their exposure from where."""
    return dict(Counter("network" if known is None else known.source for known in findings.exposures))


def _estimates_read(findings: Findings) -> int:
    """Number of frames with an estimate of their own; others hold that of a frame nearby, or have none."""
    from vsfmanet.exposures.estimate import CONFIDENT  # with torch

    return sum(one is not None and one.confidence >= CONFIDENT for one in findings.estimates)


def _estimate_off(findings: Findings) -> float | None:
    """Mean error of the estimate where the camera recorded the exposure; None where not both are known."""
    pairs = zip(findings.exposures, findings.estimates, strict=False)
    errors = [abs(a.value - b.value) for a, b in pairs if a and b and a.source == "telemetry"]
    return statistics.fmean(errors) if errors else None


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def _colour_names(colour: Colour) -> dict[str, str | None]:
    """How the samples are to be read, by name; None where the file does not say."""

    def name(kind: type[IntEnum], prefix: str, value: int | None) -> str | None:
        if value is None:
            return None
        return kind(value).name.removeprefix(prefix).lower() if value in list(kind) else str(value)

    location = None if colour.chroma_location is None else colour.chroma_location - 1
    return {
        "range": None if colour.range is None else ("limited", "full")[colour.range - 1],
        "matrix": name(vs.MatrixCoefficients, "MATRIX_", colour.matrix),
        "transfer": name(vs.TransferCharacteristics, "TRANSFER_", colour.transfer),
        "primaries": name(vs.ColorPrimaries, "PRIMARIES_", colour.primaries),
        "chroma location": name(vs.ChromaLocation, "CHROMA_", location),
    }


def _drawing(findings: Findings) -> str:
    """Draw exposure over time as SVG: a line from 0 to 1 upwards, broken where the exposure is unknown.

    Estimates are drawn below it in orange, also where the camera recorded the exposure.
    """
    times = findings.times or (0.0,)
    length = times[-1] - times[0] or 1.0
    width, height = _PLOT_WIDTH + 2 * _PLOT_MARGIN, _PLOT_HEIGHT + 2 * _PLOT_MARGIN
    right, below = _PLOT_WIDTH + _PLOT_MARGIN, height - _PLOT_MARGIN / 2
    sources = ", ".join(f"{name}: {count} frames" for name, count in _sources(findings).items())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_PLOT_MARGIN}" y="24">{escape(findings.source.path.name)}: exposure ({escape(sources)})</text>',
    ]
    for level in (0, 0.25, 0.5, 0.75, 1):
        y = _height(level)
        lines.append(f'<line x1="{_PLOT_MARGIN}" y1="{y}" x2="{right}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{_PLOT_MARGIN - 6}" y="{y + 4}" text-anchor="end">{level:g}</text>')
    lines.append(f'<text x="{_PLOT_MARGIN}" y="{below}">{times[0]:.2f} s</text>')
    lines.append(f'<text x="{right}" y="{below}" text-anchor="end">{times[-1]:.2f} s</text>')
    drawn = [("#f80", "estimated", findings.estimates)] if findings.estimates else []
    for place, (colour, name, exposures) in enumerate((*drawn, ("#06c", "known", findings.exposures))):
        lines.append(f'<text x="{right - 70 * place}" y="24" text-anchor="end" fill="{colour}">{name}</text>')
        runs: list[list[str]] = [[]]
        for time, exposure in zip(findings.times, exposures, strict=True):
            if exposure is None or (colour == "#06c" and exposure.source == "estimate"):
                runs.append([])
                continue
            across = _PLOT_MARGIN + _PLOT_WIDTH * (time - times[0]) / length
            point = f"{across:.1f},{_height(exposure.value):.1f}"
            if point not in runs[-1][-1:]:  # films have more frames than the picture has pixels
                runs[-1].append(point)
        pen = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round"'
        lines += [f'<polyline points="{" ".join(run)}" {pen}/>' for run in runs if run]
    if not any(findings.exposures) and not any(findings.estimates):
        advice = (
            "nothing is readable from blur and motion" if findings.estimates else "nothing recorded, use --estimate"
        )
        middle = f'x="{width / 2:g}" y="{_height(0.55):g}" text-anchor="middle" font-size="20" fill="#666"'
        lines.append(f"<text {middle}>{advice}</text>")
    return "\n".join([*lines, "</svg>", ""])


def _height(exposure: float) -> float:
    """Where an exposure is drawn, pixels from the top."""
    return _PLOT_MARGIN + _PLOT_HEIGHT * (1 - exposure)
