"""The user's choice of how a clip is restored, as one value. Checks and JSON need neither torch nor VapourSynth."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self, get_args

from vsfmanet.errors import ConfigError, ExposureError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Backend = Literal["auto", "torch", "onnx", "tensorrt"]
Runtime = Literal["torch", "onnx", "tensorrt"]
"""What runs a network, once "auto" is settled."""
Provider = Literal["auto", "cpu", "cuda", "migraphx", "directml", "coreml", "openvino", "webgpu"]
"""What onnxruntime computes with."""

type ExposureFunction = Callable[[int, Mapping[str, object]], float | None]
"""Maps a frame's number and properties to its exposure in (0, 1], or to None if the function does not know it.

It is called once for each frame of a clip, in any order, so its result must depend on these two alone.
"""

type ExposureArgument = float | str | os.PathLike[str] | ExposureFunction
"""A number in (0, 1], "auto", "estimate", the path of a sidecar file, or a function."""

type StrengthFunction = Callable[[int, Mapping[str, object]], float | None]
"""Maps a frame's number and properties to its strength in [0, 1], or to None for 1. It is called in any order."""

type StrengthArgument = float | str | StrengthFunction
"""A number in [0, 1], the name of a frame property that holds one, or a function."""

AUTO = "auto"
"""Value of `model` that leaves the choice to the size of the result."""

DEFAULT_MODEL = "fmanetpp_x4_fast"
"""Model that "auto" stands for if no size is asked for."""

SMALLEST_SIDE = 8
"""Smallest width and height of clips and results, in pixels."""

LARGEST_SCALE = 16
"""Largest `scale`."""

EXPOSURE_WORDS = ("auto", "estimate")
"""Values of `exposure` other than paths: known sources in order, without or with an estimate from blur and motion."""

SIDECAR_SUFFIXES = (".csv", ".json")
"""File types of exposure sidecars."""

MIN_TILE = 16
"""Smallest width and height of a tile, in input pixels: up to 6 around it are computed too and thrown away."""

MAX_SEGMENT = 64
"""Longest segment, in frames; each is an input of one VapourSynth node, and all are held in memory at once."""


MOST_GRAIN = 4
"""Largest `grain`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoreSettings:
    """The arguments of `vsfmanet.restore`, and the options of the same names on the command line.

    Raises:
        ConfigError: A value is none of those listed.
        ExposureError: `exposure` cannot be used.
    """

    model: str = AUTO
    """A name from `vsfmanet models`, or the path of a .safetensors file. "auto" is fmanetpp_x4_fast; with --height,
    --width or --scale, the model of the smallest scale that reaches the size."""
    height: int | None = None
    """Height of the result in pixels, such as 1080. The model's enlargement is resized to it, and the width keeps the
    picture's shape."""
    width: int | None = None
    """Width of the result in pixels. Together with a height that does not keep the picture's shape, the sample aspect
    ratio changes instead, so that players show the same shape."""
    scale: float | None = None
    """Size of the result over that of the source, such as 1.5, in place of height and width."""
    exposure: ExposureArgument = "auto"
    """Open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter. For a different exposure of each
    frame, a .csv or .json file as `vsfmanet probe --export` writes it. "auto" uses film.exposure.csv or .json beside
    film.mkv, then the camera's telemetry (GoPro, Sony, DJI, Insta360), then the network's own estimate. "estimate"
    measures blur and motion before it asks the network."""
    source_path: str | os.PathLike[str] | None = None
    """The file that the clip comes from, for its camera telemetry."""
    device: Device = "auto"
    """Where to compute. "auto" is the first CUDA device, or the CPU without one."""
    device_index: int | tuple[int, ...] = 0
    """Which CUDA device. Several, such as 0,1, restore segments in turn, with the same pixels."""
    precision: Precision = "auto"
    """Data type of the network's features. "auto" is the fastest that the device computes in hardware."""
    backend: Backend = "auto"
    """What runs the network: torch ("auto"), onnx (onnxruntime, fp32) or tensorrt (unverified)."""
    provider: Provider = "auto"
    """For backend onnx, the execution provider: cuda, migraphx (AMD), directml (Windows), coreml (Apple), openvino
    (Intel), webgpu (any GPU) or cpu. "auto" is the first that works. The CPU takes the place of one that is missing."""
    tile: tuple[int, int] | None = None
    """Compute frames in tiles of this many input pixels, to save memory; same result up to rounding. Without it,
    frames are computed whole, and in tiles once memory runs out."""
    segment: int | None = None
    """Frames per run of the network, 1 to 64; by default 8, fewer for large frames. No effect on pixels."""
    sc_threshold: float | None = None
    """A scene starts where the mean luma difference between two frames exceeds this, in (0, 1]; 0 finds no scenes. By
    default the clip's scene properties are used, and a built-in detector where it has none."""
    output_format: int | None = None
    """Number of a VapourSynth format for the result, such as `vs.YUV420P10`; by default the format of the clip."""
    strength: StrengthArgument = 1.0
    """How much of the restoration the result shows, from 0 to 1: 1 is the restored frame, 0 the source, resized by
    Spline36, and 0.7 a blend with 30 % of the source."""
    grain: float = 0.0
    """Give back noise: its strength over that of the noise that was removed, at each brightness. 0 adds none, 1 as much
    as there was."""
    shutter: float | None = None
    """Blur the restored frames along their motion, as a shutter does that is open for this part of the frame interval,
    in (0, 1]: 0.5 is 180 degrees. Makes the motion of footage with automatic exposure even."""
    self_check: bool = False
    """Blur each restored frame again and compare it with the source; the record lists the frames that are far from
    it."""
    skip: bool = False
    """Pass frames through that are sharp already, because hardly anything moves while the shutter is open. For models
    of scale 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise ConfigError(f"model must be a name, got {self.model!r}; leave it out for the default")
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and not (is_int(side) and side >= SMALLEST_SIDE):
                raise ConfigError(
                    f"{name} must be a whole number of pixels from {SMALLEST_SIDE}, got {side!r}; leave it out for the "
                    "model's own scale"
                )
        if self.scale is not None and not (is_real(self.scale) and 0 < self.scale <= LARGEST_SCALE):
            raise ConfigError(
                f"scale must be a number above 0 and up to {LARGEST_SCALE}, got {self.scale!r}; leave it out for the "
                "model's own scale"
            )
        if self.scale is not None and (self.height or self.width):
            raise ConfigError("either scale or height and width are needed, got both; leave one of them out")
        check_exposure(self.exposure)
        check_choice("device", self.device, Device)
        device_indices(self.device_index)
        check_choice("precision", self.precision, Precision)
        check_choice("backend", self.backend, Backend)
        check_provider(self.provider, self.backend)
        check_tile(self.tile)
        if self.segment is not None and not (is_int(self.segment) and 1 <= self.segment <= MAX_SEGMENT):
            raise ConfigError(
                f"segment must be a whole number of frames from 1 to {MAX_SEGMENT}, got {self.segment!r}; "
                "leave it out, it has no effect on pixels"
            )
        if self.sc_threshold is not None and not (is_real(self.sc_threshold) and 0 <= self.sc_threshold <= 1):
            raise ConfigError(
                f"sc_threshold must be a number from 0 to 1, got {self.sc_threshold!r}; "
                "leave it out to trust the clip's scene properties, or pass 0 for no cuts"
            )
        if not (isinstance(self.strength, str) or callable(self.strength) or is_fraction(self.strength)):
            raise ConfigError(
                f"strength must be a number from 0 to 1, got {self.strength!r}; the name of a frame property, or a "
                "function of frame number and properties, can give one for each frame"
            )
        if not (is_real(self.grain) and 0 <= self.grain <= MOST_GRAIN):
            raise ConfigError(
                f"grain must be a number from 0 to {MOST_GRAIN}, got {self.grain!r}; 1 adds what was removed"
            )
        if self.shutter is not None and not is_exposure(self.shutter):
            raise ConfigError(
                f"shutter must be a number in (0, 1], got {self.shutter!r}; it is the open-shutter time over the frame "
                "interval, for example 0.5 for 180 degrees"
            )
        if not isinstance(self.self_check, bool):
            raise ConfigError(f"self_check must be True or False, got {self.self_check!r}; leave it out for no check")
        if not isinstance(self.skip, bool):
            raise ConfigError(f"skip must be True or False, got {self.skip!r}; leave it out to restore all frames")

    @property
    def resizes(self) -> bool:
        """Whether the result has a size of its own, and not that of the model's enlargement."""
        return not (self.height is self.width is self.scale is None)

    @property
    def named_model(self) -> str:
        """The model; "auto" only if the size of a clip decides which."""
        return DEFAULT_MODEL if self.model == AUTO and not self.resizes else self.model

    @property
    def device_indices(self) -> tuple[int, ...]:
        """Numbers of all chosen CUDA devices."""
        return device_indices(self.device_index)

    def to_json(self) -> dict[str, object]:
        """Build a JSON object of all fields.

        Raises:
            ConfigError: `exposure` is a function, which JSON cannot hold.
        """
        return to_json(self)

    @classmethod
    def from_json(cls, table: object) -> Self:
        """Read what `to_json` built; fields left out have their defaults.

        Raises:
            ConfigError: It is no object, or has an unknown key or a value that a field does not take.
        """
        return from_json(cls, table)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What computes the pixels, once "auto" is settled."""

    model: str
    """Name of the model, or stem of the weights file."""
    weights_sha256: str
    """Sha256 of the weights file, in hexadecimal."""
    backend: Runtime
    """What runs the network."""
    device: Literal["cpu", "cuda"]
    """Kind of device."""
    device_name: str
    """Name of the CUDA device, or the widest instructions that torch uses on the CPU, such as "AVX512"."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Data type of weights and features."""
    kernels: Literal["cpp", "cuda"] | None
    """Kernels of this package that are used; None if torch, onnxruntime or TensorRT computes everything."""
    provider: str | None = None
    """Execution provider of onnxruntime; None for other backends."""

    @property
    def arithmetic(self) -> str:
        """What decides the pixels besides model and settings: results that differ in it must not be joined."""
        return f"{self.backend} {self.device} {self.precision} {self.kernels} {self.provider}"


def check_exposure(exposure: object) -> None:
    """Check the argument `exposure`. A sidecar file is not opened.

    Raises:
        ExposureError: It is neither a number in (0, 1], one of `EXPOSURE_WORDS`, the path of a sidecar file, nor a
            function.
    """
    is_path = isinstance(exposure, str | os.PathLike) and Path(exposure).suffix.lower() in SIDECAR_SUFFIXES
    is_word = isinstance(exposure, str) and exposure in EXPOSURE_WORDS
    if not (is_word or is_path or callable(exposure) or is_exposure(exposure)):
        raise ExposureError(
            f'exposure must be "auto" or a number in (0, 1], got {exposure!r}; it is the open-shutter time over the '
            "frame interval, for example 0.5 for a 180 degree shutter. A .csv or .json file, or a function of frame "
            'number and properties, can give one for each frame; "estimate" measures blur and motion'
        )


def check_provider(provider: object, backend: object) -> None:
    """Check the argument `provider`.

    Raises:
        ConfigError: There is no such provider, or it is not for this backend.
    """
    check_choice("provider", provider, Provider)
    if provider != "auto" and backend != "onnx":
        raise ConfigError(f"provider is for backend 'onnx', got backend {backend!r}; leave one of them out")


def check_tile(tile: object) -> None:
    """Check the argument `tile`.

    Raises:
        ConfigError: It is neither None nor a width and a height of at least `MIN_TILE` pixels.
    """
    sides = tuple(tile) if isinstance(tile, tuple | list) else ()
    if tile is not None and (len(sides) != 2 or not all(is_int(side) and side >= MIN_TILE for side in sides)):
        raise ConfigError(
            f"tile must be (width, height) of at least {MIN_TILE} input pixels each, got {tile!r}; leave it out for "
            "whole frames"
        )


def device_indices(given: object) -> tuple[int, ...]:
    """Numbers of the CUDA devices that the argument `device_index` names: one, or several different ones.

    Raises:
        ConfigError: It is none of these.
    """
    several = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    numbers = tuple(one for one in several if isinstance(one, int) and not isinstance(one, bool))
    if not several or len(set(numbers)) < len(several):
        raise ConfigError(
            f"device_index must be a whole number, or several different ones such as (0, 1), got {given!r}; mend it"
        )
    return numbers


def check_choice(name: str, value: object, choices: Any) -> None:
    """Check that a value is one of those in a `Literal` type.

    Args:
        name: Name of the option, for the error.
        value: The value to check.
        choices: The `Literal` type.

    Raises:
        ConfigError: The value is none of them.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}; choose one of them")


def is_exposure(value: object) -> bool:
    """Whether a value is a number in (0, 1]."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= 1


def is_fraction(value: object) -> bool:
    """Whether a value is a number in [0, 1]."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def is_int(value: object) -> bool:
    """Whether a value is an int, but no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def to_json(value: Any) -> dict[str, object]:
    """Build a JSON object of a dataclass whose fields are plain values, paths, tuples or such dataclasses.

    Names that are not text (surrogate escapes) survive `json.dumps` and `json.loads`.

    Raises:
        ConfigError: A field holds a function.
    """

    def plain(name: str, field: Any) -> object:
        if is_dataclass(field):
            return to_json(field)
        if isinstance(field, os.PathLike):
            return os.fsdecode(field)
        if isinstance(field, tuple | list):
            return [plain(name, part) for part in field]
        if callable(field):
            raise ConfigError(f"{name} must be a value that a file can hold, got a function; write it to a .json file")
        return float(field) if is_real(field) and not is_int(field) else field

    return {field.name: plain(field.name, getattr(value, field.name)) for field in fields(value)}


def from_json[T](kind: type[T], table: object, **read: Callable[[Any], object]) -> T:
    """Build a dataclass from what `to_json` built; fields left out have their defaults.

    Args:
        kind: The dataclass.
        table: A JSON object.
        read: Functions that convert the JSON value of a field. Lists become tuples without one.

    Raises:
        ConfigError: `table` is no object, lacks a field without default, has an unknown key, or a value that a field
            does not take.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"{kind.__name__} must be a JSON object, got {type(table).__name__}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - known.keys()):
        raise ConfigError(f"{kind.__name__} has no {', '.join(unknown)}; known are {', '.join(known)}")
    needed = {name for name, field in known.items() if field.default is field.default_factory is MISSING}
    if missing := sorted(needed - table.keys()):
        raise ConfigError(f"{kind.__name__} needs {', '.join(missing)}; add it")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    try:
        return kind(**values | {name: convert(table[name]) for name, convert in read.items() if name in table})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind.__name__} has a value of the wrong type: {error}") from error
