"""How long the shutter was open: open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter.

`gather` collects the sources that can know the exposures of a clip, and `Exposures.resolve` decides for a frame. What
none of them knows is estimated from blur and motion (`estimate`), where that is asked for, and else by the network.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from vsfmanet.errors import ExposureError
from vsfmanet.exposures.props import exposure_from_props
from vsfmanet.exposures.sidecar import read_sidecar
from vsfmanet.settings import EXPOSURE_WORDS, ExposureArgument, ExposureFunction, check_exposure, is_exposure

__all__ = ["Exposures", "KnownExposure", "gather"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownExposure:
    """The exposure of a frame, and where it comes from."""

    value: float
    """Open-shutter time over the frame interval, in (0, 1]."""
    source: Literal["argument", "prop", "telemetry", "estimate"]
    """Value of the property `FMANetExposureSource`."""
    confidence: float = 1.0
    """Value of the property `FMANetExposureConfidence`: 1, except for an estimate. Below 0.5, the frame itself shows
    too little, and the estimate is that of a frame near it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposures:
    """The sources that can know the exposures of one clip, except the estimate."""

    argument: float | Sequence[float | None] | _CalledOnce | None
    """Exposure of all frames, exposures of single frames from a sidecar, a function, or None for "auto"."""
    telemetry: Sequence[float | None]
    """What the camera recorded for each frame; empty without telemetry."""
    estimates: bool
    """Whether exposures that no source knows are to be estimated from blur and motion."""
    nominal_interval: Fraction | None
    """Seconds per frame of a clip with a constant rate; None without one."""
    notice: str | None
    """Why telemetry is not used, or not for all frames; None if there is nothing to warn of."""

    def resolve(self, frame: int, props: Mapping[str, object]) -> KnownExposure | None:
        """Take a frame's exposure from the first source that knows it: argument, property, telemetry.

        Args:
            frame: Number of the frame.
            props: Properties of the frame.

        Returns:
            The exposure, or None if no source knows it.

        Raises:
            ExposureError: A property, or the result of the argument's function, is no exposure.
        """
        given = self._given(frame, props)
        if given is not None:
            return KnownExposure(value=given, source="argument")
        carried = exposure_from_props(props, frame=frame, nominal_interval=self.nominal_interval)
        if carried is not None:
            return KnownExposure(value=carried, source="prop")
        recorded = self.telemetry[frame] if self.telemetry else None
        return None if recorded is None else KnownExposure(value=recorded, source="telemetry")

    def _given(self, frame: int, props: Mapping[str, object]) -> float | None:
        """Exposure of a frame according to the argument."""
        if self.argument is None or isinstance(self.argument, float):
            return self.argument
        if isinstance(self.argument, Sequence):
            return self.argument[frame]
        return self.argument(frame, props)


class _CalledOnce:
    """An exposure function that is called once for each frame, in whatever order and how often frames are read.

    Results take 8 bytes a frame, in blocks that exist once a frame of them is read.

    Args:
        function: The user's.
    """

    _BLOCK = 1024
    _NOT_CALLED, _UNKNOWN = 0.0, -1.0

    def __init__(self, function: ExposureFunction) -> None:
        self._function = function
        self._blocks: dict[int, array[float]] = {}

    def __call__(self, frame: int, props: Mapping[str, object]) -> float | None:
        """Return the function's result for a frame.

        Raises:
            ExposureError: It is neither None nor a number in (0, 1].
        """
        number, place = divmod(frame, self._BLOCK)
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = array("d", [self._NOT_CALLED]) * self._BLOCK
        if block[place] == self._NOT_CALLED:
            exposure = self._function(frame, props)
            if exposure is not None and not is_exposure(exposure):
                raise ExposureError(
                    f"the exposure function must return a number in (0, 1] or None, got {exposure!r} at frame {frame}; "
                    "return None where it does not know"
                )
            block[place] = self._UNKNOWN if exposure is None else float(exposure)
        return None if block[place] == self._UNKNOWN else block[place]


def gather(
    argument: ExposureArgument,
    *,
    num_frames: int,
    nominal_interval: Fraction | None,
    source_path: str | os.PathLike[str] | None = None,
) -> Exposures:
    """Read the sources that can know the exposures of a clip.

    Args:
        argument: The argument `exposure` of `restore`.
        num_frames: Length of the clip.
        nominal_interval: Seconds per frame of a clip with a constant rate; None without one.
        source_path: File whose frames the clip has, all and in order; its camera telemetry is used.

    Raises:
        ExposureError: The argument, its sidecar file or the path cannot be used.
    """
    check_exposure(argument)
    given: float | Sequence[float | None] | _CalledOnce | None
    if isinstance(argument, str) and argument in EXPOSURE_WORDS:
        given = None
    elif isinstance(argument, str | os.PathLike):
        given = read_sidecar(Path(argument), num_frames=num_frames)
    else:
        given = _CalledOnce(argument) if callable(argument) else float(argument)
    telemetry: Sequence[float | None] = ()
    notice = None
    if source_path is not None and not isinstance(given, float):
        from vsfmanet.exposures.telemetry import read_telemetry  # with FFmpeg's demuxers, which most scripts need not

        recorded = read_telemetry(source_path, num_frames=num_frames)
        telemetry, notice = recorded.exposures, recorded.notice
    return Exposures(
        argument=given,
        telemetry=telemetry,
        estimates=isinstance(argument, str) and argument == "estimate",
        nominal_interval=nominal_interval,
        notice=notice,
    )
