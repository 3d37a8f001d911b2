"""What is to be done with one video file, or with all of a folder, as one value. Imports no library."""

import os
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

from vsfmanet import __version__
from vsfmanet.errors import ConfigError
from vsfmanet.jobs.paths import Selection
from vsfmanet.jobs.record import Fingerprint, Recipe, weights_sha256
from vsfmanet.manifest import file_sha256
from vsfmanet.media.containers import CONTAINERS, PICTURES, PIPE, is_sequence
from vsfmanet.media.encoder_args import names_encoder, parse_encoder_args
from vsfmanet.media.presets import TEN_BITS, BitDepth, Preset
from vsfmanet.media.timeline import parse_time
from vsfmanet.settings import (
    EXPOSURE_WORDS,
    RestoreSettings,
    check_choice,
    from_json,
    is_int,
    is_real,
    to_json,
)

OnDamage = Literal["stop", "salvage", "as-is"]

RANGE_FRAMES = 500
"""Frames of a range: few enough to lose, and twice what encoders let pass between two key frames anyway."""

STALL_LIMIT = 600.0
"""Seconds without progress after which a job is stopped."""

SAME_PIXELS = {"device", "device_index", "backend", "provider", "tile", "segment", "source_path"}
"""Fields of `RestoreSettings` without effect on the result: where and how it is computed."""

SAME_OUTPUT = {"source", "target", "settings", "overwrite", "range_frames", "reserve", "ffmpeg"}
"""Fields of `RestoreJob` that do not make it another job; the record names the FFmpeg that was used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreJob:
    """One file to restore.

    Raises:
        ConfigError: A value is none of those listed.
    """

    source: Path
    """Video file, VapourSynth script (.vpy), or numbered pictures such as frames/%06d.png; it is only read. "-" is
    stdin, which brings frames as y4m."""
    target: Path
    """File to make: .mkv, .mp4 or .mov; numbered pictures such as restored/%06d.png, in a folder of their own; or "-"
    for frames as y4m on stdout."""
    settings: RestoreSettings = field(default_factory=RestoreSettings)
    """How its frames are restored."""
    start: int | str = 0
    """First frame: its number, or a time such as 0:01:00 or 60.5s, counted from the beginning of the film, at which it
    is shown."""
    end: int | str | None = None
    """Frame to stop before, as a number or a time; by default the end."""
    preset: Preset = "default"
    """Encoder: "default" (H.264 for 8 bits, H.265 for more, near to lossless), "archive" (FFV1, lossless), "hevc10"
    (H.265, 10 bits), "av1" (10 bits), "prores" (10 bits, for editing), or H.265 by a device ("nvenc", "qsv",
    "vaapi")."""
    bit_depth: BitDepth | None = None
    """Bits per sample of the result; by default those of the source, or those of the preset."""
    encoder_args: str = ""
    """FFmpeg's options for the video, in one string, after an equals sign. Without -c:v they are added to those of the
    preset; by default "-c:v libx264 -preset medium -crf 16" for 8 bits, libx265 alike for more, chroma as in the
    source."""
    fps: str | None = None
    """For pictures as source: frames per second, such as 25, 23.976 or 24000/1001; 25 by default."""
    start_number: int | None = None
    """For pictures as output: number of the first one; by default that of its frame in the source."""
    audio_from: Path | None = None
    """For a script, pictures or stdin: the film whose sound, subtitles, chapters and names are copied, and whose times
    the frames have if there are as many."""
    audio: bool = True
    """Copy sound."""
    subtitles: bool = True
    """Copy subtitles."""
    attachments: bool = True
    """Copy fonts and cover pictures."""
    on_damage: OnDamage = "stop"
    """What to do with a damaged source: refuse it; restore the frames that decode, at their own times; or restore them
    one after the other at the nominal rate, whatever their times."""
    deinterlace: bool = False
    """Make whole frames of interlaced ones with bwdif, as many and at the same times, rather than refuse them."""
    overwrite: bool = False
    """Replace an existing output once the new one is verified; the old one is kept as OUT.old1."""
    range_frames: int = RANGE_FRAMES
    """Encode a longer film in ranges of at most this many frames, which end at scene cuts where there are some: a job
    that is killed continues after the last whole range. Same pixels; 0 for one pass."""
    reserve: float = 0.0
    """GiB that must stay free on the disk, beside 1.2 times the expected size of the output."""
    ffmpeg: Path | None = None
    """FFmpeg program to use; by default the one on the path, from release 7.0 on, else the one that comes with
    imageio-ffmpeg."""

    def __post_init__(self) -> None:
        places = (self.start,) if self.end is None else (self.start, self.end)
        read = [parse_time(place) if isinstance(place, str) else place for place in places]
        are_places = all(isinstance(place, Fraction) or is_int(place) for place in read)
        comparable = len(read) == 2 and type(read[0]) is type(read[1])
        if not are_places or read[0] < 0 or read[-1] == 0 < len(read) - 1 or (comparable and read[0] >= read[1]):
            raise ConfigError(f"0 <= start < end is needed, got {self.start} to {self.end}; mend --start and --end")
        if not isinstance(self.encoder_args, str):
            raise ConfigError(f"encoder_args must be one string, got {self.encoder_args!r}; mend --encoder-args")
        check_choice("preset", self.preset, Preset)
        if self.bit_depth is not None:
            check_choice("bit_depth", self.bit_depth, BitDepth)
        if self.preset != "default" and names_encoder(parse_encoder_args(self.encoder_args)):
            raise ConfigError(
                f"either a preset or an encoder is needed, got --preset {self.preset} and -c:v in --encoder-args; "
                "leave one of them out"
            )
        check_choice("on_damage", self.on_damage, OnDamage)
        for name in ("audio", "subtitles", "attachments", "deinterlace", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not is_int(self.range_frames) or self.range_frames < 0:
            raise ConfigError(
                f"range_frames must be a number of frames, or 0 for one pass, got {self.range_frames!r}; mend "
                "--range-frames"
            )
        if not is_real(self.reserve) or not self.reserve >= 0:
            raise ConfigError(f"reserve must be a number of GiB from 0, got {self.reserve!r}; mend --reserve")
        if self.fps is not None:
            parse_rate(self.fps)
        if self.start_number is not None and (not is_int(self.start_number) or self.start_number < 0):
            raise ConfigError(f"start_number must be a number from 0, got {self.start_number!r}; mend --start-number")
        if self.source != Path():  # of options for many jobs
            self._check_ends()

    def _check_ends(self) -> None:
        """Check that source and target can be these, and that the other options fit to them."""
        if self.fps is not None and not is_sequence(self.source):
            raise ConfigError(f"--fps is for pictures, got {self.source}, which has a rate of its own; leave it out")
        target, pictures = self.target, is_sequence(self.target)
        if self.makes_film and target.suffix.lower() not in CONTAINERS:
            numbered = f", or be numbered pictures such as restored/%06d{target.suffix}"
            raise ConfigError(
                f"{target}: the output must end in one of {', '.join(CONTAINERS)}"
                f"{numbered if target.suffix.lower() in PICTURES else ''}, got {target.suffix or 'no suffix'}; name "
                f"another, .mkv holds everything, and .png and .tif are the pictures that there are"
            )
        if pictures and target.parent.name in ("", ".."):
            raise ConfigError(f"{target}: pictures need a folder of their own; name one, such as restored/{target}")
        if not pictures and self.start_number is not None:
            raise ConfigError(f"--start-number is for numbered pictures, got {target}; leave it out")
        if self.makes_film:
            return
        kind = "pictures, which are lossless" if pictures else "y4m, which is not coded"
        if self.encoder_args or self.preset != "default":
            raise ConfigError(f"--preset and --encoder-args are for films, got {kind}; leave them out")
        if pictures and self.bit_depth not in (None, 8, 16):
            raise ConfigError(f"pictures have 8 or 16 bits, got --bit-depth {self.bit_depth}; choose one of them")

    def to_json(self) -> dict[str, object]:
        """Build a JSON object of all fields; file names that are not text survive it.

        Raises:
            ConfigError: `settings.exposure` is a function, which JSON cannot hold.
        """
        return to_json(self)

    @property
    def output(self) -> Path:
        """File that is made; of pictures, their folder."""
        return self.target.parent if is_sequence(self.target) else self.target

    @property
    def makes_film(self) -> bool:
        """Whether the output is a video file, made by FFmpeg."""
        return self.target != PIPE and not is_sequence(self.target)

    @property
    def source_name(self) -> str:
        """Name of the source in the record."""
        return "stdin" if self.source == PIPE else str(self.source.absolute())

    @property
    def depth(self) -> int | None:
        """Bits per sample of the result; None for those of the source."""
        return self.bit_depth or (10 if self.preset in TEN_BITS else None)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Read what `to_json` built; fields left out have their defaults.

        Raises:
            ConfigError: It is no object, or has an unknown key or a value that a field does not take.
        """
        return from_json(
            cls, table, source=Path, target=Path, settings=RestoreSettings.from_json, ffmpeg=_path, audio_from=_path
        )


def parse_rate(text: str) -> Fraction:
    """Read frames per second; 23.976, 29.97 and the like are the rates of NTSC, such as 24000/1001.

    Raises:
        ConfigError: It is no number from 1/100 to 1000.
    """
    try:
        rate = Fraction(text)
    except (TypeError, ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not Fraction(1, 100) <= rate <= 1000:
        raise ConfigError(f"frames per second are needed, such as 25 or 24000/1001, got {text!r}; mend --fps")
    ntsc = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return ntsc if rate.denominator > 1 and abs(rate - ntsc) < Fraction(1, 1000) else rate


def check_stall_limit(stall_limit: float) -> None:
    """Check the option of that name.

    Raises:
        ConfigError: It is not above 0.
    """
    if not stall_limit > 0:
        raise ConfigError(f"a stall limit above 0 s is needed, got {stall_limit}; mend --stall-limit")


def _path(value: object) -> Path | None:
    """A path from its JSON value.

    Raises:
        TypeError: It is neither text nor null.
    """
    return None if value is None else Path(value)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    """A folder to restore.

    Raises:
        ConfigError: A value is none of those listed.
    """

    in_folder: Path
    """Folder that is searched for videos; it is only read."""
    out_folder: Path
    """Folder for the outputs, with the same folders in it."""
    template: RestoreJob
    """Options of every job; its source and target are not used."""
    selection: Selection = field(default_factory=Selection)
    """Which files."""
    journal: Path | None = None
    """File of the journal, on a local disk; by default OUT_DIR/.vsfmanet/journal.sqlite3."""
    resume: bool = False
    """Continue a batch; refuse to begin one."""
    retry: bool = False
    """Try again what was refused, damaged or quarantined."""
    recheck: bool = False
    """Compare every byte of results that are done."""
    stall_limit: float = STALL_LIMIT
    """Stop a job that makes no progress for so long."""

    def __post_init__(self) -> None:
        check_stall_limit(self.stall_limit)
        exposure = self.template.settings.exposure
        if isinstance(exposure, str | os.PathLike) and exposure not in EXPOSURE_WORDS:
            raise ConfigError(
                f"--exposure must be auto, estimate or a number for all files, got {str(exposure)!r}; auto also takes "
                "film.exposure.csv beside film.mkv"
            )

    def own(self, name: str) -> str:
        """Name of a file that each shard has for itself."""
        number, count = self.selection.shard
        stem, suffix = os.path.splitext(name)
        return name if count == 1 else f"{stem}-{number}-of-{count}{suffix}"


def recipe(job: RestoreJob) -> Recipe:
    """What decides the result of a job, apart from its source: all fields but `SAME_PIXELS` and `SAME_OUTPUT`.

    Raises:
        WeightsError: There is no such model.
    """
    settings = {name: value for name, value in job.settings.to_json().items() if name not in SAME_PIXELS | {"model"}}
    own = {name: value for name, value in job.to_json().items() if name not in SAME_OUTPUT}
    exposure = job.settings.exposure
    if isinstance(exposure, str | os.PathLike) and Path(exposure).is_file():
        own["exposure_sha256"] = file_sha256(Path(exposure))
    if is_sequence(job.target):
        own["pictures"] = job.target.name
    if job.audio_from is not None and job.audio_from.is_file():
        own["audio_from"] = asdict(Fingerprint.of(job.audio_from))
    return Recipe(
        model=job.settings.named_model,
        weights_sha256=weights_sha256(job.settings.named_model),
        settings=settings | own,
        version=__version__,
    )
