"""The size of a result for which height, width or scale is asked for: the picture keeps its shape."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from vsfmanet.errors import ConfigError
from vsfmanet.manifest import model_for
from vsfmanet.settings import AUTO, SMALLEST_SIDE, RestoreSettings

ROUNDING = Fraction(1, 200)
"""Relative change of the picture's shape up to which it is a matter of whole pixels, and samples keep their aspect."""


def enlargement(settings: RestoreSettings, width: int, height: int) -> Fraction | None:
    """How many times as large as the clip the result is, in the direction in which it grows most.

    Args:
        settings: With the size that is asked for.
        width: Of the clip, in pixels.
        height: Of the clip, in pixels.

    Returns:
        The ratio; None if no size is asked for.
    """
    if settings.scale is not None:
        return Fraction(settings.scale).limit_denominator(1000)
    asked = ((settings.width, width), (settings.height, height))
    ratios = [Fraction(after, before) for after, before in asked if after is not None]
    return max(ratios, default=None)


def with_model(settings: RestoreSettings, width: int, height: int) -> RestoreSettings:
    """Return settings with the model that "auto" stands for, for a clip of a size in pixels.

    Raises:
        WeightsError: The manifest of models cannot be read.
    """
    ratio = enlargement(settings, width, height)
    if settings.model != AUTO or ratio is None:
        return replace(settings, model=settings.named_model)
    return replace(settings, model=model_for(ratio).name)


def result_size(
    settings: RestoreSettings, width: int, height: int, *, multiples: tuple[int, int] = (1, 1)
) -> tuple[int, int] | None:
    """Width and height of a result in pixels; None if no size is asked for.

    A side that follows from the other, or from `scale`, is exact if it can be, else the nearest even multiple.

    Args:
        settings: With the size that is asked for.
        width: Of the clip, in pixels.
        height: Of the clip, in pixels.
        multiples: Of what width and height must be multiples, because the chroma is subsampled.

    Raises:
        ConfigError: A side that is asked for is no such multiple, or the other side would be too small.
    """
    ratio = enlargement(settings, width, height)
    if ratio is None:
        return None
    sides = []
    for name, asked, side, multiple in (
        ("width", settings.width, width, multiples[0]),
        ("height", settings.height, height, multiples[1]),
    ):
        if asked is not None and asked % multiple:
            low = asked // multiple * multiple
            raise ConfigError(
                f"{name} must be a multiple of {multiple} for the chroma of this format, got {asked}; "
                f"take {low} or {low + multiple}"
            )
        sides.append(_nearest(side * ratio, multiple) if asked is None else asked)
    if min(sides) < SMALLEST_SIDE:
        raise ConfigError(
            f"a result of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels is needed, got {sides[0]}x{sides[1]} from "
            f"{width}x{height}; ask for a larger size"
        )
    return sides[0], sides[1]


def sample_stretch(before: tuple[int, int], after: tuple[int, int]) -> Fraction:
    """Factor of the sample aspect ratio with which a picture of another size is shown in the same shape.

    Args:
        before: Width and height of the clip, in pixels.
        after: Those of the result.
    """
    factor = Fraction(before[0] * after[1], before[1] * after[0])
    return factor if abs(factor - 1) > ROUNDING else Fraction(1)


def _nearest(side: Fraction, multiple: int) -> int:
    """The side itself if it is a whole multiple, else the nearest multiple that is even too."""
    if side % multiple == 0:
        return int(side)
    step = multiple if multiple % 2 == 0 else 2 * multiple
    return max(1, round(side / step)) * step
