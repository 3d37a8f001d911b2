"""How long the shutter was open: open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter.

`gather` collects what can know the exposures of a clip; `Exposures.resolve` is the one place that decides for a frame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from vsfmanet.errors import ExposureError
from vsfmanet.exposures.props import SIGHT, SIGHT_CONFIDENCE, exposure_from_props
from vsfmanet.exposures.sidecar import read_sidecar
from vsfmanet.settings import EXPOSURE_WORDS, ExposureArgument, ExposureFunction, check_exposure, is_exposure

__all__ = ["Exposures", "KnownExposure", "gather"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownExposure:
    """An exposure that the network need not estimate, and who tells it."""

    value: float
    """Open-shutter time over the frame interval, in (0, 1]."""
    source: Literal["argument", "prop", "telemetry", "estimate"]
    """What goes into the property `FMANetExposureSource`."""
    confidence: float = 1.0
    """What goes into the property `FMANetExposureConfidence`: 1 if given; of an estimate, what the frame shows itself,
    so less than 0.5 where the exposure of a frame near it is held."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposures:
    """All that can know the exposures of one clip."""

    argument: float | Sequence[float | None] | ExposureFunction | None
    """One for all frames, those of a sidecar, a function, or None for "auto" and "estimate"."""
    telemetry: Sequence[float | None]
    """What the camera recorded for each frame; empty without telemetry."""
    estimates: bool
    """Whether blur and motion are asked where nothing else knows."""
    nominal_interval: Fraction | None
    """Seconds per frame of a clip with a constant rate; None without one."""
    notice: str | None
    """Why telemetry that is there is not used, or not for all frames."""

    def resolve(self, frame: int, props: Mapping[str, object]) -> KnownExposure | None:
        """Exposure of a frame from the first that knows it: argument, the frame's properties, telemetry, estimate.

        Args:
            frame: number of the frame.
            props: properties of the frame, with what `with_exposures_by_sight` wrote if it was asked.

        Returns:
            The exposure, or None: the network estimates it.

        Raises:
            ExposureError: the argument's function or a property gives what cannot be an exposure.
        """
        given = self._given(frame, props)
        if given is not None:
            return KnownExposure(value=given, source="argument")
        carried = exposure_from_props(props, frame=frame, nominal_interval=self.nominal_interval)
        if carried is not None:
            return KnownExposure(value=carried, source="prop")
        recorded = self.telemetry[frame] if self.telemetry else None
        if recorded is not None:
            return KnownExposure(value=recorded, source="telemetry")
        seen, confidence = props.get(SIGHT), props.get(SIGHT_CONFIDENCE)
        if self.estimates and isinstance(seen, float) and isinstance(confidence, float):
            return KnownExposure(value=seen, source="estimate", confidence=confidence)
        return None

    def _given(self, frame: int, props: Mapping[str, object]) -> float | None:
        """What the argument says of a frame."""
        if self.argument is None or isinstance(self.argument, float):
            return self.argument
        if isinstance(self.argument, Sequence):
            return self.argument[frame]
        answer = self.argument(frame, props)
        if answer is not None and not is_exposure(answer):
            raise ExposureError(
                f"restore: the exposure function must return a number in (0, 1] or None, got {answer!r} at frame "
                f"{frame}; return None where it does not know"
            )
        return None if answer is None else float(answer)


def gather(
    argument: ExposureArgument,
    *,
    num_frames: int,
    nominal_interval: Fraction | None,
    source_path: str | os.PathLike[str] | None = None,
) -> Exposures:
    """Read what can know the exposures of a clip.

    Args:
        argument: the argument `exposure`.
        num_frames: of the clip.
        nominal_interval: seconds per frame of a clip with a constant rate; None without one.
        source_path: file whose frames the clip has, all and in order: its camera telemetry is used.

    Raises:
        ExposureError: the argument, the sidecar or the path cannot be used.
    """
    check_exposure(argument)
    given: float | Sequence[float | None] | ExposureFunction | None
    estimates = isinstance(argument, str) and argument == "estimate"
    if isinstance(argument, str) and argument in EXPOSURE_WORDS:
        given = None
    elif isinstance(argument, str | os.PathLike):
        given = read_sidecar(Path(argument), num_frames=num_frames)
    else:
        given = argument if callable(argument) else float(argument)
    if source_path is None or isinstance(given, float):
        return Exposures(
            argument=given, telemetry=(), estimates=estimates, nominal_interval=nominal_interval, notice=None
        )

    from vsfmanet.exposures.telemetry import read_telemetry  # with FFmpeg's demuxers, which most scripts can do without

    recorded = read_telemetry(source_path, num_frames=num_frames)
    return Exposures(
        argument=given,
        telemetry=recorded.exposures,
        estimates=estimates,
        nominal_interval=nominal_interval,
        notice=recorded.notice,
    )
