"""Some moments of a film, restored in several ways, and what the whole film would take by each of them."""

from __future__ import annotations

import io
import logging
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
import vapoursynth as vs

from vsfmanet.clips.colour import check_clip, tag_colour
from vsfmanet.errors import ConfigError
from vsfmanet.exposures import gather
from vsfmanet.media import clip as clips
from vsfmanet.media.coding import choose_encoder
from vsfmanet.media.excerpt import Excerpt, Outline, excerpt, frame_times
from vsfmanet.media.ffmpeg import Ffmpeg
from vsfmanet.media.meter import Meter, Meters
from vsfmanet.media.pictures import Picture, liveliest
from vsfmanet.media.presets import Preset
from vsfmanet.media.timeline import frame_shown, parse_time
from vsfmanet.settings import EXPOSURE_WORDS, RestoreSettings
from vsfmanet.sizes import with_model

_log = logging.getLogger(__name__)

RUN = 4
"""Frames that are restored at each moment, and frames that are timed: whole segments."""

KEY_EVERY = 250
"""Frames from key frame to key frame of the default encoders, at most."""

SHOWN = (1280, 720)
"""Largest width and height of the pictures: pixels of the output, or the part of it with most detail."""

PARTS = (".25", ".5", ".75")
"""Moments without others, as parts of the film."""

BEFORE = "before"
"""Name of the source's picture."""

HDR = {16, 18}
"""Transfers of HDR (PQ and HLG, ITU-T H.273)."""

TELEMETRY = {".mp4", ".mov", ".insv", ".360"}
"""Suffixes of files that may hold telemetry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One way to restore the film."""

    name: str
    """Name in the comparison."""
    settings: RestoreSettings
    """Arguments of the filter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What the whole film would take by one choice, judged by a few frames."""

    size: tuple[int, int]
    """Width and height of the output."""
    frame_seconds: float
    """Seconds that a frame takes on this machine."""
    seconds: float
    """Seconds for all frames, without reading and verifying."""
    video_bytes: int | None
    """Bytes of the video; None if the encoder failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One moment of the film, before and after."""

    time: Fraction
    """Seconds from the beginning of the film to the frame."""
    pictures: tuple[Picture, ...]
    """The same part of the frame: of the source, enlarged, and by each choice."""
    part: bool
    """Whether they show a part of the frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A comparison of choices."""

    film: Outline
    """The film."""
    choices: tuple[Choice, ...]
    """The choices."""
    forecasts: tuple[Forecast, ...]
    """What each of them would take."""
    shots: tuple[Shot, ...]
    """The moments."""
    encoder_args: tuple[str, ...]
    """FFmpeg's options for the video."""
    encoder_options: tuple[tuple[str, str], ...]
    """Names and values of the options for the encoder that are not the defaults."""


def compare(
    film: Outline,
    choices: Sequence[Choice],
    *,
    at: Sequence[int | str],
    encoder_args: str,
    preset: Preset = "default",
    depth: int | None = None,
    container: str,
    ffmpeg: Ffmpeg,
    meters: Meters,
) -> Comparison:
    """Restore a film at some moments in several ways.

    Args:
        film: What `outline` has read.
        choices: The ways.
        at: Frame numbers or times; without any, three moments of the film.
        encoder_args: FFmpeg's options for the video, beside those of the preset.
        preset: Name of a preset.
        depth: Bits per sample of the result; None for those of the film.
        container: Suffix of the output.
        ffmpeg: The program that encodes.
        meters: Show progress.

    Raises:
        ConfigError: A moment is not in the film.
        VsfmanetError: The film cannot be read or restored.
    """
    numbered = _FrameNumbers(film)
    moments = [_seconds(film, place, numbered) for place in at] or [film.length * Fraction(part) for part in PARTS]
    excerpts = [excerpt(film, moment) for moment in moments]
    for n, each in enumerate(excerpts):
        if each.time in [other.time for other in excerpts[:n]]:
            raise ConfigError(
                f"{film.path}: moments with frames of their own are needed, but two show one frame; mend --at"
            )
    made: list[list[vs.VideoFrame]] = []
    costs: list[Forecast] = []
    arguments: tuple[str, ...] = ()
    total = len(choices) * (len(excerpts) + 1) * RUN
    with meters.begin("comparing", total) as meter:
        for choice in choices:
            run = _Run(film, choice, numbered, meter, depth)
            made.append([run.restore(each) for each in excerpts])
            arguments = choose_encoder(encoder_args, clips.pixel_format(made[-1][0].format), container, preset)
            costs.append(run.forecast(arguments, ffmpeg))
    given = {"preset": preset, "bit-depth": str(depth), "encoder-args": encoder_args}
    return Comparison(
        film=film,
        choices=tuple(choices),
        forecasts=tuple(costs),
        shots=tuple(_shot(film, each, [frames[n] for frames in made]) for n, each in enumerate(excerpts)),
        encoder_args=arguments,
        encoder_options=tuple((name, value) for name, value in given.items() if value not in ("", "default", "None")),
    )


class _FrameNumbers:
    """Times of all frames of a film, read when first needed."""

    def __init__(self, film: Outline) -> None:
        self._film = film
        self._times: list[Fraction] | None = None

    @property
    def times(self) -> list[Fraction]:
        """Times on the file's clock, seconds."""
        if self._times is None:
            self._times = frame_times(self._film)
        return self._times


def _seconds(film: Outline, place: int | str, numbered: _FrameNumbers) -> Fraction:
    """Seconds from the beginning of a film to a frame number or time.

    Raises:
        ConfigError: The film has no such frame.
    """
    if isinstance(place, str):
        time = parse_time(place)
        if time > film.length:
            raise ConfigError(
                f"{film.path}: moments within {float(film.length):.3f} s are needed, got {place}; mend --at"
            )
        return time
    if not 0 <= place < len(numbered.times):
        raise ConfigError(f"{film.path}: frames 0 to {len(numbered.times) - 1} can be shown, got {place}; mend --at")
    return numbered.times[place] - film.begin


class _Run:
    """Restores excerpts by one choice, and measures what that takes."""

    def __init__(self, film: Outline, choice: Choice, numbered: _FrameNumbers, meter: Meter, depth: int | None) -> None:
        self._film, self._numbered, self._meter, self._depth = film, numbered, meter, depth
        settings = choice.settings
        self._known = _known_exposures(film, settings, numbered)
        exposure = settings.exposure
        if isinstance(exposure, str) and exposure not in EXPOSURE_WORDS:  # of the whole film: frames carry theirs
            exposure = "auto"
        segment = RUN if settings.segment is None else settings.segment
        self._settings = replace(settings, exposure=exposure, segment=segment, source_path=None)
        self._runs: list[list[vs.VideoFrame]] = []
        self._frame_seconds = 0.0

    def restore(self, moment: Excerpt) -> vs.VideoFrame:
        """Restore the frame of a moment, and a few that follow it."""
        node = self._with_exposures(moment)
        settings = with_model(self._settings, node.width, node.height)
        if self._depth is not None:
            settings = replace(settings, output_format=clips.with_depth(node.format, self._depth).id)
        restored = clips.for_encoder(clips.restore_clip(node, settings))
        frames = range(moment.place, min(moment.place + RUN, node.num_frames))
        started = time.monotonic()
        self._runs.append([self._frame(restored, n) for n in frames])
        if not self._frame_seconds:
            spent = time.monotonic() - started
            further = range(frames.stop, min(frames.stop + RUN, node.num_frames))
            started = time.monotonic()
            for n in further:
                self._frame(restored, n)
            # The first frames wait for the network; a film that ends here has no others.
            self._frame_seconds = (time.monotonic() - started) / RUN if len(further) == RUN else spent / len(frames)
        return self._runs[-1][0]

    def forecast(self, encoder_args: Sequence[str], ffmpeg: Ffmpeg) -> Forecast:
        """What the whole film would take."""
        first, film = self._runs[0][0], self._film
        rates = [_packet_sizes(run, film.rate, encoder_args, ffmpeg) for run in self._runs]
        known = [sizes for sizes in rates if sizes]
        size = None
        if known:
            key = statistics.fmean(sizes[0] for sizes in known)
            other = statistics.fmean([each for sizes in known for each in sizes[1:]] or [key])
            keys = math.ceil(film.frames / KEY_EVERY)
            size = round(keys * key + (film.frames - keys) * other)
        return Forecast(
            size=(first.width, first.height),
            frame_seconds=self._frame_seconds,
            seconds=self._frame_seconds * film.frames,
            video_bytes=size,
        )

    def _frame(self, restored: vs.VideoNode, n: int) -> vs.VideoFrame:
        frame = restored.get_frame(n)
        self._meter.advance()
        return frame

    def _with_exposures(self, moment: Excerpt) -> vs.VideoNode:
        """The frames of an excerpt, with the exposures that are known of the whole film."""
        if self._known is None:
            return moment.node
        known = self._known
        start = frame_shown([round(each * 10**6) for each in self._numbered.times], round(moment.before * 10**6))

        def write(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
            value = known(start + n)
            if value is None:
                return f
            frame = f.copy()
            frame.props["FMANetExposure"] = value
            return frame

        return moment.node.std.ModifyFrame(moment.node, write)


def _known_exposures(
    film: Outline, settings: RestoreSettings, numbered: _FrameNumbers
) -> Callable[[int], float | None] | None:
    """Exposure of each frame by sidecar or telemetry; None if none is known so.

    Raises:
        ExposureError: The sidecar cannot be used.
    """
    given = settings.exposure
    is_file = isinstance(given, str) and given not in EXPOSURE_WORDS
    if not is_file and (isinstance(given, float | int) or film.path.suffix.lower() not in TELEMETRY):
        return None
    sources = gather(given, num_frames=len(numbered.times), nominal_interval=None, source_path=film.path)
    if not is_file and not sources.telemetry:
        return None

    def exposure(n: int) -> float | None:
        known = sources.resolve(n, {}) if n < len(numbered.times) else None
        return None if known is None else known.value

    return exposure


def _packet_sizes(
    frames: Sequence[vs.VideoFrame], rate: Fraction, encoder_args: Sequence[str], ffmpeg: Ffmpeg
) -> list[int]:
    """Bytes of each packet of some frames, coded as the film would be; empty, with a warning, if that fails."""
    first = frames[0]
    line = [str(ffmpeg.path), "-hide_banner", "-nostats", "-loglevel", "error", "-f", "rawvideo"]
    line += ["-pix_fmt", clips.pixel_format(first.format), "-s", f"{first.width}x{first.height}", "-r", str(rate)]
    line += ["-i", "pipe:0", *encoder_args, "-f", "nut", "pipe:1"]
    samples = b"".join(map(clips.frame_bytes, frames))
    run = subprocess.run(line, input=samples, capture_output=True, check=False)
    try:
        with av.open(io.BytesIO(run.stdout), "r", format="nut") as container:
            return [packet.size for packet in container.demux() if packet.size]
    except av.FFmpegError:
        said = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        _log.warning("the size of the film is not known, because the encoder fails: %s", said)
        return []


def _shot(film: Outline, moment: Excerpt, frames: Sequence[vs.VideoFrame]) -> Shot:
    """The pictures of one moment: all as large as the largest, as if they filled one screen."""
    largest = max(frames, key=lambda frame: frame.width * frame.height)
    size = largest.width, largest.height
    source = tag_colour(check_clip(moment.node))
    whole = [_picture(source[moment.place], size), *(_picture(tag_colour(_still(frame)), size) for frame in frames)]
    place = liveliest(whole[-1], SHOWN)
    return Shot(
        time=max(Fraction(0), moment.time - film.begin),
        pictures=tuple(np.ascontiguousarray(picture[place]) for picture in whole),
        part=whole[0][place].shape != whole[0].shape,
    )


def _still(frame: vs.VideoFrame) -> vs.VideoNode:
    """A clip of one frame."""
    blank = vs.core.std.BlankClip(format=frame.format.id, width=frame.width, height=frame.height, length=1, keep=True)
    return blank.std.ModifyFrame(blank, lambda n, f: frame)


def _picture(node: vs.VideoNode, size: tuple[int, int]) -> Picture:
    """The first frame of a clip as RGB, enlarged by bicubic interpolation; HDR for displays of SDR."""
    props = node.get_frame(0).props
    sdr = {"transfer_s": "709", "primaries_s": "709"} if props.get("_Transfer") in HDR else {}
    frame = node.resize.Bicubic(*size, format=vs.RGB24, **sdr).get_frame(0)
    return np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)
