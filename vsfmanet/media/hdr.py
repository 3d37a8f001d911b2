"""HDR metadata: the mastering display and the light levels, by which players map tones.

Sources: SMPTE ST 2086 (mastering display colour volume), CTA-861.3 (content light level), and the layout of
`AVMasteringDisplayMetadata` and `AVContentLightMetadata` in FFmpeg's libavutil/mastering_display_metadata.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame

CHROMATICITY, LUMINANCE = 50_000, 10_000
"""Parts of 1 in CIE 1931 x and y, and of 1 cd/m2, that ST 2086 counts in."""

DYNAMIC = {
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DOVI_RPU_BUFFER: "Dolby Vision",
}
"""Metadata of single frames, which describe the source's own pictures and are never carried over."""

_MASTERING = struct.Struct("=20i2i")
"""Ten rationals (x and y of red, green, blue and white, least and most luminance) and whether both kinds are set."""

_LIGHT = struct.Struct("=2I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hdr:
    """HDR metadata of a film."""

    mastering: tuple[int, ...] | None = None
    """x and y of green, blue, red and white in 1/50000, most and least luminance in 1/10000 cd/m2; None if unknown."""
    light: tuple[int, int] | None = None
    """Brightest pixel (MaxCLL) and brightest frame on average (MaxFALL), cd/m2; None if unknown."""
    dynamic: tuple[str, ...] = ()
    """Kinds of metadata of single frames."""

    @classmethod
    def of(cls, frame: VideoFrame) -> Hdr:
        """Read the metadata of a decoded frame."""
        found = {kind: bytes(frame.side_data[kind]) for kind in frame.side_data.keys()}  # noqa: SIM118  (no dict)
        dynamic = dict.fromkeys(DYNAMIC[kind] for kind in found if kind in DYNAMIC)
        return cls(
            mastering=_mastering(found.get(Type.MASTERING_DISPLAY_METADATA, b"")),
            light=_light(found.get(Type.CONTENT_LIGHT_LEVEL, b"")),
            dynamic=tuple(dynamic),
        )

    @property
    def master_display(self) -> str | None:
        """The mastering display in the notation of FFmpeg and encoders: G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)."""
        if self.mastering is None:
            return None
        pairs = zip(("G", "B", "R", "WP", "L"), self.mastering[::2], self.mastering[1::2], strict=True)
        return "".join(f"{name}({first},{second})" for name, first, second in pairs)

    @property
    def max_cll(self) -> str | None:
        """The light levels in the notation of FFmpeg and encoders: MaxCLL,MaxFALL."""
        return None if self.light is None else f"{self.light[0]},{self.light[1]}"

    @property
    def is_static(self) -> bool:
        """Whether there is metadata of the whole film."""
        return self.mastering is not None or self.light is not None

    def lacks(self, other: Hdr) -> str | None:
        """Describe static metadata of `other` that is missing here or differs; None if there is none."""
        near = _is_near(self.mastering, other.mastering)
        lacking = [] if near else [f"mastering display {other.master_display}"]
        lacking += [] if other.light in (None, self.light) else [f"light levels {other.max_cll}"]
        return " and ".join(lacking) or None

    def __str__(self) -> str:
        said = [] if self.mastering is None else [f"mastering display {self.master_display}"]
        said += [] if self.light is None else [f"MaxCLL {self.light[0]} and MaxFALL {self.light[1]} cd/m2"]
        return ", ".join([*said, *self.dynamic]) or "no metadata"


def _mastering(data: bytes) -> tuple[int, ...] | None:
    if len(data) < _MASTERING.size:
        return None
    *terms, has_primaries, has_luminance = _MASTERING.unpack(data[: _MASTERING.size])
    if not has_primaries or not has_luminance or 0 in terms[1::2]:
        return None
    units = [CHROMATICITY] * 8 + [LUMINANCE] * 2
    values = [round(unit * up / down) for unit, up, down in zip(units, terms[::2], terms[1::2], strict=True)]
    red, green, blue, white, (least, most) = (tuple(values[k : k + 2]) for k in range(0, 10, 2))
    return (*green, *blue, *red, *white, most, least)


def _light(data: bytes) -> tuple[int, int] | None:
    if len(data) < _LIGHT.size:
        return None
    brightest, average = _LIGHT.unpack(data[: _LIGHT.size])
    return brightest, average


def _is_near(found: tuple[int, ...] | None, needed: tuple[int, ...] | None) -> bool:
    """Whether `needed` is None or near `found`; AV1 has coarser units: 1/65536, 1/256 and 1/16384 cd/m2."""
    if needed is None or found is None:
        return needed is None
    steps = [1] * 8 + [LUMINANCE // 256 + 1, 1]
    return all(abs(a - b) <= step for a, b, step in zip(found, needed, steps, strict=True))
