"""How long the shutter was open: open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter.

`resolve` is the one place that decides where a frame's exposure comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal

from vsfmanet.errors import ExposureError
from vsfmanet.exposure.props import exposure_from_props

__all__ = ["KnownExposure", "check_argument", "resolve"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownExposure:
    """An exposure that was given, and by whom."""

    value: float
    """Open-shutter time over the frame interval, in (0, 1]."""
    source: Literal["argument", "prop"]
    """What goes into the property `FMANetExposureSource`."""


def check_argument(exposure: object) -> float | None:
    """The argument `exposure`: a number for all frames, or None for "auto".

    Raises:
        ExposureError: it is neither "auto" nor a number in (0, 1].
    """
    if isinstance(exposure, str) and exposure == "auto":
        return None
    if isinstance(exposure, bool) or not isinstance(exposure, Real) or not 0 < float(exposure) <= 1:
        raise ExposureError(
            f'restore: exposure must be "auto" or a number in (0, 1], got {exposure!r}; '
            "it is the open-shutter time over the frame interval, for example 0.5 for a 180 degree shutter"
        )
    return float(exposure)


def resolve(
    argument: float | None, props: Mapping[str, object], *, frame: int, nominal_interval: Fraction | None
) -> KnownExposure | None:
    """Exposure of one frame from the first source that knows it: the argument, then the frame's properties.

    Args:
        argument: what `check_argument` returned.
        props: properties of the frame.
        frame: number of the frame, for messages.
        nominal_interval: seconds per frame of a clip with a constant rate; None without one.

    Returns:
        The exposure, or None: the network estimates it.

    Raises:
        ExposureError: a property holds what cannot be an exposure.
    """
    if argument is not None:
        return KnownExposure(value=argument, source="argument")
    value = exposure_from_props(props, frame=frame, nominal_interval=nominal_interval)
    return None if value is None else KnownExposure(value=value, source="prop")
