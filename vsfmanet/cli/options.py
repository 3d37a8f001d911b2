"""What all commands share: how options are read, and the job's dataclasses as options.

Each field of `RestoreSettings` and `RestoreJob` is an option, with the string under it as its help. The subclasses here
only add how the text of some options is read, and which fields are no options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter, Token

from vsfmanet.errors import ConfigError
from vsfmanet.jobs.job import RANGE_FRAMES, RestoreJob
from vsfmanet.jobs.paths import VIDEOS, Selection
from vsfmanet.media.containers import PIPE
from vsfmanet.media.presets import BitDepth
from vsfmanet.media.timeline import parse_time, time_code
from vsfmanet.settings import EXPOSURE_WORDS, SIDECAR_SUFFIXES, RestoreSettings


def _shown_default(value: object) -> str | None:
    """Format a default for the help; None hides it."""
    if value is None or value is False or value == "":
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)


PARAMETERS = Parameter(negative_bool="", negative_iterable="", show_default=_shown_default, allow_repeating=True)
"""Defaults of all options: only switches that are on by default have a --no-... form, and the last value of an option
counts."""

FILES = Group.create_ordered("Files")
CLUSTER = Group.create_ordered("Cluster")
RUN = Group.create_ordered("Run")
NETWORK = Group.create_ordered("Network")
OUTPUT = Group.create_ordered("Output")
"""Headings of the help, in their order."""

NO_OPTION = Parameter(parse=False)
"""A field that another part of the program fills in."""

HIDDEN = Parameter(show=False)
"""An option for processes that vsfmanet starts, which help does not list."""


STANDARD = "pipe:"
"""Word in place of "-", which cyclopts takes for an option."""


def read_end(_: object, tokens: Sequence[Token]) -> Path:
    """Read the path of a source or a target; `STANDARD` is stdin or stdout."""
    return PIPE if tokens[0].value == STANDARD else Path(tokens[0].value)


END = Parameter(converter=read_end, n_tokens=1)


def read_whole(_: object, tokens: Sequence[Token]) -> int:
    """Read a whole number; by itself, cyclopts would round 2.5."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"a whole number is needed, got {tokens[0].value!r}") from None


WHOLE = Parameter(converter=read_whole)


def read_place(_: object, tokens: Sequence[Token]) -> int | str:
    """Read a frame number or a time; of all notations of a time, the result is the same."""
    try:
        return int(tokens[0].value)
    except ValueError:
        pass
    try:
        return time_code(parse_time(tokens[0].value))
    except ConfigError as error:
        raise ValueError(str(error)) from None


def read_places(_: object, tokens: Sequence[Token]) -> tuple[int | str, ...]:
    """Read frame numbers and times."""
    return tuple(read_place(None, [token]) for token in tokens)


def read_exposure(_: object, tokens: Sequence[Token]) -> float | str:
    """Read `auto`, `estimate`, the path of a sidecar file, or a number, whose range `RestoreSettings` checks."""
    text = tokens[0].value
    if text in EXPOSURE_WORDS or Path(text).suffix.lower() in SIDECAR_SUFFIXES:
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{', '.join(EXPOSURE_WORDS)}, a number or a {' or '.join(SIDECAR_SUFFIXES)} file is needed, got {text!r}"
        ) from None


def read_device_index(_: object, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    """Read N or N,N..."""
    text = tokens[0].value
    try:
        return tuple(map(int, text.split(","))) if "," in text else int(text)
    except ValueError:
        raise ValueError(f"a number is needed, or several such as 0,1, got {text!r}") from None


def read_tile(_: object, tokens: Sequence[Token]) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, whose range `RestoreSettings` checks."""
    width, _, height = tokens[0].value.partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise ValueError(f"width x height is needed, such as 640x360, got {tokens[0].value!r}") from None


def read_shard(_: object, tokens: Sequence[Token]) -> tuple[int, int]:
    """Read I/N, whose range `Selection` checks."""
    number, _slash, count = tokens[0].value.partition("/")
    try:
        return int(number), int(count)
    except ValueError:
        raise ValueError(f"a share and the number of shares are needed, such as 1/2, got {tokens[0].value!r}") from None


def one_word(converter: Any, metavar: str) -> Parameter:
    """Define an option whose value is one word of the command line.

    Args:
        converter: Function that converts the word.
        metavar: The value's place in the help, such as "WxH".
    """
    return Parameter(converter=converter, n_tokens=1, metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class SettingsOptions(RestoreSettings):
    """`RestoreSettings` as options."""

    height: Annotated[int | None, WHOLE] = None
    width: Annotated[int | None, WHOLE] = None
    exposure: Annotated[float | str, one_word(read_exposure, "auto|estimate|X|FILE")] = "auto"
    source_path: Annotated[Path | None, NO_OPTION] = None
    device_index: Annotated[int | tuple[int, ...], one_word(read_device_index, "N[,N...]")] = 0
    tile: Annotated[tuple[int, int] | None, one_word(read_tile, "WxH")] = None
    segment: Annotated[int | None, WHOLE] = None
    output_format: Annotated[int | None, NO_OPTION] = None
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class JobOptions(RestoreJob):
    """`RestoreJob` as options; source and target are arguments of the command."""

    source: Annotated[Path, NO_OPTION] = Path()
    target: Annotated[Path, NO_OPTION] = Path("any.mkv")
    settings: Annotated[SettingsOptions, Parameter(name="*", group=NETWORK)] = field(default_factory=SettingsOptions)
    start: Annotated[int | str, one_word(read_place, "FRAME|TIME")] = 0
    end: Annotated[int | str | None, one_word(read_place, "FRAME|TIME")] = None
    encoder_args: Annotated[str, Parameter(metavar="ARGS")] = ""
    bit_depth: Annotated[BitDepth | None, Parameter(converter=read_whole)] = None
    fps: Annotated[str | None, Parameter(metavar="RATE")] = None
    start_number: Annotated[int | None, WHOLE] = None
    audio_from: Annotated[Path | None, Parameter(metavar="FILM")] = None
    audio: Annotated[bool, Parameter(negative="--no-audio")] = True
    subtitles: Annotated[bool, Parameter(negative="--no-subtitles")] = True
    attachments: Annotated[bool, Parameter(negative="--no-attachments")] = True
    range_frames: Annotated[int, WHOLE] = RANGE_FRAMES
    ffmpeg: Annotated[Path | None, Parameter(metavar="PROGRAM")] = None


@dataclass(frozen=True, kw_only=True)
class WholeFileOptions(JobOptions):
    """`RestoreJob` as options of a command that restores many whole files."""

    start: Annotated[int | str, NO_OPTION] = 0
    end: Annotated[int | str | None, NO_OPTION] = None
    fps: Annotated[str | None, NO_OPTION] = None
    start_number: Annotated[int | None, NO_OPTION] = None
    audio_from: Annotated[Path | None, NO_OPTION] = None
    overwrite: Annotated[bool, NO_OPTION] = False
    reserve: float = 2.0


@dataclass(frozen=True, kw_only=True)
class SelectionOptions(Selection):
    """`Selection` as options."""

    include: Annotated[tuple[str, ...], Parameter(metavar="GLOB", show_default=False)] = VIDEOS
    exclude: Annotated[tuple[str, ...], Parameter(metavar="GLOB", show_default=False)] = ()
    shard: Annotated[tuple[int, int], one_word(read_shard, "I/N"), Parameter(show_default=False)] = (1, 1)


def plain[T](kind: type[T], options: T, **changes: object) -> T:
    """Convert options, which are of a subclass, to a value of the class itself.

    Args:
        kind: The class.
        options: The options.
        changes: Fields with another value.
    """
    values = {each.name: getattr(options, each.name) for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**values | changes)


def job_of(options: JobOptions, source: Path, target: Path) -> RestoreJob:
    """Build the job that the options describe."""
    settings = plain(RestoreSettings, options.settings)
    return plain(RestoreJob, options, source=source, target=target, settings=settings)
