"""Exposure from frame properties: `FMANetExposure`, or `ExposureTime` in seconds over the frame interval."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from vsfmanet.errors import ExposureError

ROUNDING = 0.02
"""How far a shutter time may exceed the frame interval: cameras round to 1/24 s, containers to milliseconds."""

_MILLISECOND = Fraction(1, 1000)


def exposure_from_props(props: Mapping[str, object], *, frame: int, nominal_interval: Fraction | None) -> float | None:
    """Read the exposure of a frame from its properties.

    Args:
        props: Properties of the frame.
        frame: Number of the frame, for messages.
        nominal_interval: Seconds per frame of a clip with a constant rate; None without one.

    Returns:
        A value in (0, 1], or None if neither property is there.

    Raises:
        ExposureError: A property is no number or out of range, or the frame has no duration to divide by.
    """
    if "FMANetExposure" in props:
        exposure = _number(props, "FMANetExposure", frame)
        if not 0 < exposure <= 1:
            raise ExposureError(
                f"FMANetExposure must be in (0, 1], got {exposure} at frame {frame}; "
                "it is the open-shutter time over the frame interval"
            )
        return exposure
    if "ExposureTime" not in props:
        return None
    seconds = _number(props, "ExposureTime", frame)
    interval = frame_interval(props, nominal_interval)
    if interval is None:
        raise ExposureError(
            f"ExposureTime needs a frame duration to divide by, got none at frame {frame}; "
            "set _DurationNum and _DurationDen, or pass exposure as a number"
        )
    exposure = seconds / float(interval)
    if not 0 < exposure <= 1 + ROUNDING:
        raise ExposureError(
            f"ExposureTime must be above 0 and at most the frame interval of {float(interval):g} s, "
            f"got {seconds} at frame {frame}; it is in seconds: correct or remove it, or pass exposure as a number"
        )
    return min(exposure, 1.0)


def frame_interval(props: Mapping[str, object], nominal: Fraction | None) -> Fraction | None:
    """Seconds from a frame to the next, or None if neither the frame nor the clip has a duration.

    Matroska rounds durations to milliseconds (33/1000 at 30 fps), which would make the exposure vary by 1.5 %. So a
    duration that can be the rounded nominal one counts as that. Any other duration is used as it is: of a clip with a
    variable rate, source filters report the average.

    Args:
        props: Properties of the frame.
        nominal: Seconds per frame of a clip with a constant rate; None without one.
    """
    num, den = props.get("_DurationNum"), props.get("_DurationDen")
    if not (isinstance(num, int) and isinstance(den, int) and num > 0 and den > 0):
        return nominal
    duration = Fraction(num, den)
    in_milliseconds = (duration / _MILLISECOND).denominator == 1
    if nominal is not None and in_milliseconds and abs(duration - nominal) < _MILLISECOND:
        return nominal
    return duration


def _number(props: Mapping[str, object], name: str, frame: int) -> float:
    value = props[name]
    if not isinstance(value, int | float):
        raise ExposureError(f"{name} must be one number, got {value!r} at frame {frame}; correct or remove it")
    return float(value)
