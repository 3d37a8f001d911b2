"""Restored frames to an encoder: FFmpeg fed from Python, with every timestamp, and killed unless all frames came.

The frames travel as raw video in NUT, which carries a timestamp for each. FFmpeg reads the source file beside it and
copies sound, subtitles and the rest. `-copyts` keeps the clocks of both inputs as they are: without it each FFmpeg
release shifts each input by its own idea of where it starts, and sound drifts against the picture.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import av
import imageio_ffmpeg

from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.jobs.scratch import kill
from vsfmanet.media.clip import Colour
from vsfmanet.media.containers import CONTAINERS
from vsfmanet.media.encoder_args import parse_encoder_args
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.source import Source, Stream
from vsfmanet.media.thumbnails import Likeness, ThumbnailWriter

OLDEST_FFMPEG = (5, 1)
"""Release 4.2 shifts the first frames against the others when sound starts before the picture; 5.1 has `-fps_mode`."""

PREFERRED_FFMPEG = (7, 0)
"""Older releases lose chapters and dispositions, and cannot write PCM to MP4."""

LOG_BYTES = 65536
"""Kept of what an encoder says: however much it is, it can fill neither pipe nor memory."""

OF_CODING = {"attached_pic", "dependent", "multilayer", "still_image", "timed_thumbnails"}
"""Dispositions that describe the source's own coding (such as MV-HEVC), not what the video is for."""

STALE_TAGS = (
    "bps",
    "creation_time",
    "duration",
    "encoder",
    "handler_name",
    "number_of",
    "rotate",
    "vendor_id",
    "_stat",
)
"""Beginnings of tags that describe the source's own coding, not the video."""

CODING = {
    *(
        "c",
        "codec",
        "vcodec",
        "preset",
        "tune",
        "profile",
        "level",
        "usage",
        "quality",
        "speed",
        "deadline",
        "cpu-used",
    ),
    *("crf", "cq", "qp", "q", "qscale", "qmin", "qmax", "b", "minrate", "maxrate", "bufsize", "rc", "strict"),
    *("g", "keyint_min", "bf", "refs", "rc-lookahead", "lag-in-frames", "auto-alt-ref", "aq-mode", "pix_fmt"),
    *("x264-params", "x264opts", "x265-params", "svtav1-params", "aom-params", "row-mt", "tiles", "tile-columns"),
    *("tile-rows", "threads", "slices", "slicecrc", "coder", "context", "vendor", "bits_per_mb", "mbs_per_mb"),
}
"""Options of FFmpeg's encoders, one value each, that code every range of a film alike."""

FILTERS = {"-vf", "-filter:v"}
"""Options with filters for the picture."""

LOSSLESS = {"ffv1", "ffvhuff", "huffyuv", "png", "qtrle", "rawvideo", "utvideo"}
"""Encoders whose frames decode to the very samples, if they take the pixel format."""

CRF = {"libx264", "libx264rgb", "libx265"}
"""Encoders with a constant rate factor of one scale."""

HIGH_QUALITY = 16
"""The greatest constant rate factor at which they keep detail and grain; the default."""

EQUAL_QUALITY = {
    "c",
    "preset",
    "crf",
    "pix_fmt",
    "tag",
    "threads",
    "g",
    "keyint_min",
    "bf",
    "refs",
    "movflags",
    "metadata",
}
"""Options that leave their quality as it is, beside the rate factor."""

CONTAINING = {"tag", "vtag", "movflags", "metadata", "brand"}
"""Options for the container, one value each: they are given again where ranges are joined."""


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
class EncodePlan:
    """All that one run of FFmpeg depends on."""

    ffmpeg: Ffmpeg
    """Program."""
    source: Source
    """Where the other streams come from."""
    size: tuple[int, int]
    """Width and height of the restored frames."""
    pixel_format: str
    """Of the frames, FFmpeg's name."""
    colour: Colour
    """How the samples are to be read."""
    hdr: Hdr
    """What is said about the light of the whole film."""
    aspect: Fraction
    """Sample aspect ratio."""
    rate: Fraction
    """Nominal frames per second, a hint for encoder and player; the timestamps decide."""
    timestamps: tuple[int, ...]
    """Of the frames to come, on the source's clock, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""
    start: Fraction | None
    """Time on the source's clock that becomes 0, seconds; nothing before it is copied. None to copy all as it is."""
    duration: Fraction | None
    """Length of what is copied, seconds; None for all."""
    copied: tuple[Stream, ...]
    """Streams of the source that go along: sound, subtitles, attachments, covers."""
    encoder_args: tuple[str, ...]
    """FFmpeg's output options for the video."""
    ahead: int
    """Frames that are asked for ahead of it."""
    output: Path
    """File to write."""


def find_ffmpeg(path: Path | None = None, *, for_hdr: bool = False) -> Ffmpeg:
    """The FFmpeg to use: the user's choice; else the one on the path, if it is of `PREFERRED_FFMPEG` or newer; else the
    one that came with imageio-ffmpeg; else an older one on the path.

    Args:
        path: The user's choice.
        for_hdr: Whether one that `takes_hdr` comes first, if the user has chosen none.

    Raises:
        ConfigError: The one that is chosen does not run, or is older than `OLDEST_FFMPEG`.
        OutputError: None is there that runs and is recent.
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
    """Whether an FFmpeg has options that give any encoder and container the metadata of HDR10, which 9.0 has."""
    asked = [str(ffmpeg.path), "-hide_banner", "-h", "long"]
    run = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return b"\n-mastering_display" in run.stdout and b"\n-content_light" in run.stdout


def _examined(path: str) -> Ffmpeg | None:
    """An FFmpeg that runs and is recent."""
    try:
        run = subprocess.run([path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    version = run.stdout.decode(errors="replace").partition("\n")[0].strip()
    named = re.search(r"version n?(\d+)\.(\d+)", version)
    release = (int(named[1]), int(named[2])) if named else (1000, 0)
    return Ffmpeg(path=Path(path), release=release, version=version) if release >= OLDEST_FFMPEG else None


def _bundled_ffmpeg() -> str | None:
    """The program of imageio-ffmpeg, if its wheel brought one."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def choose_encoder(user_args: str, pixel_format: str, container: str) -> tuple[str, ...]:
    """FFmpeg's output options for the video: ours followed by the user's, or only the user's if they name an encoder.

    Args:
        user_args: Options as in a shell.
        pixel_format: Of the frames: 8 bits become H.264, more become H.265, with the same chroma.
        container: Suffix of the output file.

    Raises:
        ConfigError: The options would do more than code one output.
    """
    own = parse_encoder_args(user_args)
    if any(argument in ("-c:v", "-codec:v", "-vcodec") for argument in own):
        return own
    depth = av.VideoFormat(pixel_format).components[0].bits
    family = re.sub(r"\d+le$", "", pixel_format)
    if family not in ("gray", "gbrp", "yuv420p", "yuv422p", "yuv444p"):
        family = "yuv444p"  # neither encoder knows 4:4:0, 4:1:1 or 4:1:0, and no chroma may be lost
    if depth > 8:
        codec, target = "libx265", f"{family}{10 if depth <= 10 else 12}le"
    else:
        codec, target = ("libx264rgb", "rgb24") if family == "gbrp" else ("libx264", family)
    tag = ("-tag:v", "hvc1") if codec == "libx265" and container != ".mkv" else ()  # what Apple's players look for
    return ("-c:v", codec, "-preset", "medium", "-crf", "16", "-pix_fmt", target, *tag, *own)


def refused_streams(ffmpeg: Ffmpeg, source: Source, streams: Sequence[Stream], suffix: str) -> list[Stream]:
    """Streams of a source that an FFmpeg cannot copy to a container, by having it copy them beside one small frame.

    Args:
        ffmpeg: The program that is to copy them later.
        source: Where they come from.
        streams: The streams.
        suffix: Of the container.
    """
    if not streams or _copies(ffmpeg, source, streams, suffix):
        return []
    return [stream for stream in streams if not _copies(ffmpeg, source, [stream], suffix)] or list(streams)


def _copies(ffmpeg: Ffmpeg, source: Source, streams: Sequence[Stream], suffix: str) -> bool:
    """Whether FFmpeg copies some streams to a container."""
    small = _NutStream(size=(64, 64), pixel_format="yuv420p", rate=Fraction(25), time_base=Fraction(1, 25))
    frame = small.frame(bytes(64 * 64 * 3 // 2), 0) + small.end()
    line = [str(ffmpeg.path), "-hide_banner", "-loglevel", "error", "-f", "nut", "-i", "pipe:0"]
    line += ["-t", "1", "-protocol_whitelist", "file", "-i", f"file:{source.path}", "-map", "0:v:0", "-c", "copy"]
    for stream in streams:
        covers = stream.kind == "cover" and suffix == ".mkv"  # they become attachments, which all can be
        line += [] if covers else ["-map", f"1:{stream.index}"]
    line += ["-c:v:0", "mpeg4", "-shortest", "-f", CONTAINERS[suffix]]
    with tempfile.TemporaryDirectory(prefix="vsfmanet-") as folder:
        run = subprocess.run([*line, f"file:{folder}/trial{suffix}"], input=frame, capture_output=True, check=False)
    return run.returncode == 0


def one_range(encoder_args: Sequence[str]) -> str | None:
    """Why a film must be encoded in one go with these options; None if it can be in ranges."""
    given = iter(encoder_args)
    for argument in given:
        name, _, track = argument.removeprefix("-").partition(":")
        value = next(given, "")
        if (
            not argument.startswith("-")
            or name not in CODING | CONTAINING
            or track not in ("", "v", "v:0", "s:v", "s:v:0")
        ):
            return f"--encoder-args has {argument}, of which it is not known that every range would be coded alike"
        if re.search(r"\b(pass|stats)=", value):
            return f"--encoder-args has several passes ({value})"
    return None


def has_filters(encoder_args: Sequence[str]) -> bool:
    """Whether the user's options change the picture."""
    return any(argument in FILTERS for argument in encoder_args)


def likeness(encoder_args: Sequence[str], pixel_format: str) -> Likeness:
    """How much decoded frames must be like those that are encoded with some options."""
    if has_filters(encoder_args):
        return "unknown"
    given = {
        name.removeprefix("-").partition(":")[0]: value
        for name, value in zip(encoder_args[::2], encoder_args[1::2], strict=True)
    }
    codec = next((given[name] for name in ("c", "codec", "vcodec") if name in given), "")
    quality = _number(given.get("crf", ""))
    eight_bits = av.VideoFormat(pixel_format).components[0].bits == 8
    if codec in LOSSLESS or (codec in CRF and (given.get("qp") == "0" or (quality == 0 and eight_bits))):
        return "exact"
    if codec in CRF and quality is not None and quality <= HIGH_QUALITY and set(given) <= EQUAL_QUALITY:
        return "near"
    return "rough"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def has_option(encoder_args: Sequence[str], *names: str) -> bool:
    """Whether the user's options name one of these, without their dash, for whichever stream."""
    given = (argument.removeprefix("-").partition(":")[0] for argument in encoder_args if argument.startswith("-"))
    return not set(names).isdisjoint(given)


def command(plan: EncodePlan, *, covers: Path) -> list[str]:
    """FFmpeg's command line for a whole output: frames come in by its stdin, everything else from the source.

    Args:
        plan: What is to be made.
        covers: Folder with the cover pictures as `cover_file` names them.
    """
    line = [*_program(plan), "-copyts", *_colour_args(plan.colour), *_hdr_args(plan.hdr)]
    line += ["-itsoffset", _seconds(plan.timestamps[0] * plan.time_base), "-f", "nut", "-i", "pipe:0"]
    line += [*_inputs(plan), *_video_stream(plan), *_coding_args(plan), *_copy_args(plan, covers)]
    line += ["-max_muxing_queue_size", "9999"]  # sound waits for the first frame, which may be minutes away
    return [*line, *_limits(plan), f"file:{plan.output}"]


def range_command(plan: EncodePlan) -> list[str]:
    """FFmpeg's command line for some frames alone; their clock starts with the first."""
    line = [*_program(plan), "-copyts", *_colour_args(plan.colour), *_hdr_args(plan.hdr)]
    line += ["-f", "nut", "-i", "pipe:0", "-map", "0:v:0"]
    return [*line, *_coding_args(plan), f"file:{plan.output}"]


def others_command(plan: EncodePlan) -> list[str]:
    """FFmpeg's command line for all but the video, cut to the time of the output, whose clock it has."""
    line = [*_program(plan), "-copyts", *_inputs(plan)]
    for stream in plan.copied:
        line += ["-map", _place(plan, stream, first=0)]
    return [*line, "-map_metadata", "0", "-map_chapters", "0", "-c", "copy", *_limits(plan), f"file:{plan.output}"]


def join_command(plan: EncodePlan, *, covers: Path, carrier: str, begin: Fraction) -> list[str]:
    """FFmpeg's command line for a whole output of frames that are coded already, which come in by its stdin.

    Args:
        plan: What is to be made; nothing is cut, for FFmpeg cuts by decoding time, and would lose the first frames.
        covers: As for `command`.
        carrier: Format of what comes in.
        begin: Where on the source's clock its own begins, seconds.
    """
    line = [*_program(plan), "-copyts", *_hdr_args(plan.hdr)]
    line += ["-itsoffset", _seconds(begin), "-f", carrier, "-i", "pipe:0"]
    line += [*_inputs(plan), *_video_stream(plan)]
    line += ["-c:v:0", "copy", *_colour_args(plan.colour), *_aspect_args(plan), *_container_args(plan.encoder_args)]
    return [*line, *_copy_args(plan, covers), "-max_muxing_queue_size", "9999", f"file:{plan.output}"]


def with_early_subtitles(
    plan: EncodePlan, folder: Path, *, launch: Callable[[list[str]], subprocess.Popen[bytes]]
) -> EncodePlan:
    """A plan that keeps the subtitles that are shown already when the output begins, from its beginning on.

    FFmpeg leaves out every packet that begins before the time to which it cuts. So those streams are copied to a file
    first, with the packets that begin earlier and last longer moved to that time.

    Args:
        plan: What is to be made.
        folder: For the file.
        launch: As for `Feed`.

    Raises:
        OutputError: The file cannot be written.
    """
    start = plan.start
    if start is None:
        return plan
    early = [stream for stream in plan.copied if any(begin < start < end for begin, end in stream.spans)]
    if not early:
        return plan
    path = folder / f"early{plan.output.suffix}"
    line = [*_program(plan), "-copyts", "-protocol_whitelist", "file", "-i", f"file:{plan.source.path}"]
    for number, stream in enumerate(early):
        gone = "+".join(f"eq(n\\,{n})" for n, (_, end) in enumerate(stream.spans) if end <= start) or "0"
        moved = f"max(PTS\\,ceil({_seconds(start)}/TB))"
        clipped = f"noise=drop='{gone}',setts=pts='{moved}':dts='{moved}':duration='DURATION+PTS-{moved}'"
        line += ["-map", f"0:{stream.index}", f"-bsf:s:{number}", clipped]
    with Feed([*line, "-c", "copy", f"file:{path}"], plan, launch=launch) as feed:
        feed.finish()
    moved_streams = {stream.index: replace(stream, path=path, index=n) for n, stream in enumerate(early)}
    return replace(plan, copied=tuple(moved_streams.get(stream.index, stream) for stream in plan.copied))


def cover_file(cover: Stream) -> str:
    """Name of the file that holds a cover picture while a job runs."""
    return f"cover{cover.index}.{'jpg' if cover.codec == 'mjpeg' else cover.codec}"


def attached_covers(plan: EncodePlan) -> list[Stream]:
    """Covers that become attachments, which FFmpeg makes of files only: those in Matroska."""
    return [stream for stream in plan.copied if stream.kind == "cover" and plan.output.suffix.lower() == ".mkv"]


def mapped_streams(plan: EncodePlan) -> list[Stream]:
    """Streams that FFmpeg copies from the source, in the order in which they follow the video."""
    attached = attached_covers(plan)
    return [stream for stream in plan.copied if stream not in attached]


def _program(plan: EncodePlan) -> list[str]:
    return [str(plan.ffmpeg.path), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "warning", "-y"]


def _inputs(plan: EncodePlan) -> list[str]:
    """Options for the files that are copied from: the source, and others of single streams."""
    paths = [plan.source.path, *_other_files(plan)]
    return [text for path in paths for text in ("-protocol_whitelist", "file", "-i", f"file:{path}")]


def _other_files(plan: EncodePlan) -> list[Path]:
    return list(dict.fromkeys(stream.path for stream in plan.copied if stream.path is not None))


def _place(plan: EncodePlan, stream: Stream, *, first: int) -> str:
    """A stream as FFmpeg's option -map names it, where `first` is the number of the source among the inputs."""
    file = first if stream.path is None else first + 1 + _other_files(plan).index(stream.path)
    return f"{file}:{stream.index}"


def _video_stream(plan: EncodePlan) -> list[str]:
    """Options for the video as a stream among others, and for what the file and its streams are called."""
    line = ["-map", "0:v:0", "-map_metadata", "1", "-map_chapters", "1"]
    for number, stream in enumerate(mapped_streams(plan), start=1):
        if stream.kind in ("audio", "subtitle") and "title" in stream.tags:  # FFmpeg reads it from MP4 as a "name"
            line += [f"-metadata:s:{number}", f"title={stream.tags['title']}", f"-metadata:s:{number}", "name="]
    for key, value in plan.source.video.tags.items():
        if not key.startswith(STALE_TAGS):
            line += ["-metadata:s:v:0", f"{key}={value}"]
    # Said even where there is none: otherwise FFmpeg marks the first track of each kind as the default one.
    line += ["-disposition:v:0", "+".join(flag for flag in plan.source.disposition if flag not in OF_CODING) or "0"]
    return line


def _limits(plan: EncodePlan) -> list[str]:
    """Options that cut to the time of the output."""
    start = [] if plan.start is None else ["-ss", _seconds(plan.start)]
    return start if plan.duration is None else [*start, "-t", _seconds(plan.duration)]


def _coding_args(plan: EncodePlan) -> list[str]:
    """Options for an encoder that gets frames with their times."""
    unit = f"{plan.time_base.numerator}:{plan.time_base.denominator}"
    line = ["-fps_mode:v:0", "passthrough", "-enc_time_base:v:0", unit]
    return [*line, *_colour_args(plan.colour), *_video_args(plan)]


def _aspect_args(plan: EncodePlan) -> list[str]:
    """The display aspect ratio, for codecs that leave it to the container. FFmpeg rounds what has larger terms."""
    terms = (plan.aspect * Fraction(*plan.size)).as_integer_ratio()
    return [] if plan.aspect == 1 or max(terms) > 255 else ["-aspect:v:0", f"{terms[0]}:{terms[1]}"]


def _container_args(encoder_args: Sequence[str]) -> list[str]:
    """Those of the encoder's options that are the container's."""
    pairs = zip(encoder_args[::2], encoder_args[1::2], strict=True)  # `one_range` has let nothing else pass
    return [text for pair in pairs if pair[0].removeprefix("-").partition(":")[0] in CONTAINING for text in pair]


def _video_args(plan: EncodePlan) -> list[str]:
    """The encoder's options, with the sample aspect ratio set before filters of the user's."""
    ratio = f"{plan.aspect.numerator}/{plan.aspect.denominator}"
    filters = [] if plan.aspect == 1 else [f"setsar=sar={ratio}:max={max(plan.aspect.as_integer_ratio())}"]
    arguments = []
    given = iter(plan.encoder_args)
    for argument in given:
        if argument in FILTERS:
            filters.append(next(given, ""))
        else:
            arguments.append(argument)
    return [*(["-filter:v:0", ",".join(filters)] if filters else []), *arguments]


def _copy_args(plan: EncodePlan, covers: Path) -> list[str]:
    """Options that copy streams."""
    attached, mapped = attached_covers(plan), mapped_streams(plan)
    line = ["-c:a", "copy", "-c:s", "copy", "-c:t", "copy"]
    for stream in mapped:
        line += ["-map", _place(plan, stream, first=1)]
    for number, _ in enumerate((stream for stream in mapped if stream.kind == "cover"), start=1):
        line += [f"-c:v:{number}", "copy"]
    for number, cover in enumerate(attached, start=sum(stream.kind == "attachment" for stream in mapped)):
        name = cover_file(cover)
        kind = "jpeg" if name.endswith(".jpg") else cover.codec
        line += ["-attach", f"file:{covers / name}", f"-metadata:s:t:{number}", f"mimetype=image/{kind}"]
        line += [f"-metadata:s:t:{number}", f"filename={cover.tags.get('filename', name)}"]
    return line


def _colour_args(colour: Colour) -> list[str]:
    """Options that tag a stream, alike for input and output: with both, FFmpeg never converts."""
    options = {
        "-color_range": colour.range,
        "-color_primaries": colour.primaries,
        "-color_trc": colour.transfer,
        "-colorspace": colour.matrix,
        "-chroma_sample_location": colour.chroma_location,
    }
    return [text for name, value in options.items() if value is not None for text in (name, str(value))]


def _hdr_args(hdr: Hdr) -> list[str]:
    """Options for an input: the encoder and the container get what they say."""
    options = {"-mastering_display:v:0": hdr.master_display, "-content_light:v:0": hdr.max_cll}
    return [text for name, value in options.items() if value is not None for text in (name, value)]


def _seconds(time: Fraction) -> str:
    """A time as FFmpeg reads it, rounded down to a microsecond: nothing at that time may be cut away."""
    return f"{math.floor(time * 1_000_000) / 1_000_000:.6f}"


class Feed:
    """A running FFmpeg. Leave the context without `finish` and it is killed, so that it never ends as if all were well.

    Args:
        line: Its command line.
        plan: What is to be made.
        launch: Starts a command line, with pipes for stdin and stderr.
    """

    def __init__(
        self, line: list[str], plan: EncodePlan, *, launch: Callable[[list[str]], subprocess.Popen[bytes]]
    ) -> None:
        self.written = 0
        self._plan = plan
        self._log = b""
        self._process = launch(line)
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill(self._process)
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stderr):
            with suppress(OSError):  # closing flushes what nobody reads any more
                _opened(pipe).close()

    def send(self, data: bytes) -> None:
        """Send a piece of its input.

        Raises:
            OutputError: FFmpeg has stopped reading.
        """
        try:
            pipe = _opened(self._process.stdin)
            pipe.write(data)
            pipe.flush()
        except OSError as error:
            raise self._failure() from error

    def finish(self) -> None:
        """Tell FFmpeg that all has come, and wait until it has completed the file.

        Raises:
            OutputError: It failed.
        """
        with suppress(OSError):
            _opened(self._process.stdin).close()
        if self._process.wait() != 0:
            raise self._failure()

    def _drain(self) -> None:
        """Read what FFmpeg says, and keep the end of it."""
        pipe = _opened(self._process.stderr)
        while chunk := pipe.read(1024):
            self._log = (self._log + chunk)[-LOG_BYTES:]

    def _failure(self) -> OutputError:
        """Why FFmpeg stopped, in its own words."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)  # it has closed its end, and is about to go
        code = kill(self._process)
        self._reader.join()
        said = self._log.decode(errors="replace").splitlines()[-20:] or ["nothing"]
        return OutputError(
            f"{self._plan.source.path}: the encoder must take all frames, but it ended after {self.written} "
            f"of {len(self._plan.timestamps)} with exit code {code}; check --encoder-args and the disk. FFmpeg said:\n"
            + "\n".join(f"  {line}" for line in said)
        )


class Encoder(Feed):
    """An FFmpeg that gets frames.

    Args:
        line: As for `Feed`.
        plan: As for `Feed`.
        launch: As for `Feed`.
        thumbnails: File for the thumbnails of the frames, with which the output is compared; None for none.
    """

    def __init__(
        self,
        line: list[str],
        plan: EncodePlan,
        *,
        launch: Callable[[list[str]], subprocess.Popen[bytes]],
        thumbnails: Path | None = None,
    ) -> None:
        super().__init__(line, plan, launch=launch)
        self._thumbnails = thumbnails and ThumbnailWriter(
            thumbnails,
            size=plan.size,
            pixel_format=plan.pixel_format,
            hashed=likeness(plan.encoder_args, plan.pixel_format) == "exact",
        )
        self._nut = _NutStream(size=plan.size, pixel_format=plan.pixel_format, rate=plan.rate, time_base=plan.time_base)

    def write(self, samples: bytes) -> None:
        """Send the next frame.

        Args:
            samples: As `frame_bytes` gives them.

        Raises:
            OutputError: FFmpeg has stopped reading.
        """
        self.send(self._nut.frame(samples, self._plan.timestamps[self.written] - self._plan.timestamps[0]))
        self.written += 1
        if self._thumbnails:
            self._thumbnails.add(samples)

    def finish(self) -> None:
        """As for `Feed`."""
        self.send(self._nut.end())
        super().finish()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._thumbnails:
            self._thumbnails.close()


class _NutStream:
    """Frames as a NUT stream, piece by piece."""

    def __init__(self, *, size: tuple[int, int], pixel_format: str, rate: Fraction, time_base: Fraction) -> None:
        self._sink = Sink()
        self._time_base = time_base
        self._container = av.open(self._sink, "w", format="nut")
        self._stream = self._container.add_stream(
            "rawvideo",
            rate=rate.limit_denominator(100_000),
            width=size[0],
            height=size[1],
            pix_fmt=pixel_format,
            time_base=time_base,
        )

    def frame(self, samples: bytes, timestamp: int) -> bytes:
        """The next piece of the stream: one frame, and the header before the first."""
        packet = av.Packet(samples)
        packet.stream = self._stream
        packet.time_base = self._time_base
        packet.pts = packet.dts = timestamp
        packet.is_keyframe = True
        self._container.mux(packet)
        return self._sink.take()

    def end(self) -> bytes:
        """The last piece of the stream."""
        self._container.close()
        return self._sink.take()


class Sink:
    """Where PyAV writes to. The pieces go to FFmpeg from plain Python, where errors can be raised."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep a piece; PyAV reuses the memory that it hands over."""
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All pieces since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe that `launch` has opened."""
    assert pipe is not None
    return pipe
