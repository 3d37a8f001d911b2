"""How much of the restoration each frame shows: a blend of the restored frame with the source, resized."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import vapoursynth as vs

from vsfmanet.errors import ConfigError
from vsfmanet.settings import StrengthArgument, is_fraction

STRENGTH = "FMANetStrength"
"""On every frame of a blended clip: the strength, in [0, 1]."""

_KEPT = 64
"""Nodes for different strengths that are kept."""


def blended(
    restored: vs.VideoNode, plain: vs.VideoNode, tagged: vs.VideoNode, strength: StrengthArgument
) -> vs.VideoNode:
    """Blend a restored clip with the source, resized.

    A frame of strength 1 is the restored one and a frame of strength 0 the resized one, bit by bit; the network does
    not run for a segment whose frames all have strength 0.

    Args:
        restored: The restored clip.
        plain: The source in the size and format of `restored`.
        tagged: The source, whose properties decide if `strength` asks for them.
        strength: As for `restore`.

    Returns:
        A clip whose frames carry `STRENGTH`. A callback raises ConfigError for a strength that is none.
    """
    if not isinstance(strength, str) and not callable(strength):
        return _mixed(restored, plain, float(strength))
    nodes: dict[float, vs.VideoNode] = {}

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        value = _strength_of(n, f.props, strength)
        if value not in nodes:
            if len(nodes) == _KEPT:
                del nodes[next(iter(nodes))]
            nodes[value] = _mixed(restored, plain, value)
        return nodes[value]

    return restored.std.FrameEval(choose, prop_src=[tagged], clip_src=[restored, plain])


def _mixed(restored: vs.VideoNode, plain: vs.VideoNode, strength: float) -> vs.VideoNode:
    """Blend two clips by one strength."""
    if strength == 0:
        mixed = plain
    elif strength == 1:
        mixed = restored
    else:
        mixed = plain.std.Merge(restored, weight=strength).std.CopyFrameProps(restored)
    return mixed.std.SetFrameProps(**{STRENGTH: strength})


def _strength_of(
    n: int, props: Mapping[str, object], strength: str | Callable[[int, Mapping[str, object]], float | None]
) -> float:
    """Strength of frame `n`, from its property or by the function.

    Raises:
        ConfigError: It is no number from 0 to 1.
    """
    value = props.get(strength) if isinstance(strength, str) else strength(n, props)
    if value is None and not isinstance(strength, str):
        return 1.0
    if not is_fraction(value):
        origin = f"property {strength}" if isinstance(strength, str) else "function"
        raise ConfigError(
            f"strength must be a number from 0 to 1 for every frame, got {value!r} from the {origin} for frame {n}; "
            "set one with std.SetFrameProps, or return one"
        )
    return float(value)  # type: ignore[arg-type]
