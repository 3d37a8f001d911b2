"""Encoder presets: FFmpeg's options for a purpose or a device."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

Preset = Literal["default", "archive", "hevc10", "av1", "prores", "nvenc", "qsv", "vaapi"]
"""Names of the presets."""

BitDepth = Literal[8, 10, 12, 16]
"""Bits per sample that a result can have."""

PRESETS: tuple[Preset, ...] = get_args(Preset)

TEN_BITS: tuple[Preset, ...] = ("hevc10", "av1", "prores")
"""Presets whose frames have 10 bits unless another depth is asked for."""

VAAPI_DEVICE = "/dev/dri/renderD128"
"""Device of the preset "vaapi"."""

FAMILIES = ("gray", "gbrp", "yuv420p", "yuv422p", "yuv444p")
"""Pixel formats without their depth that x264 and x265 take."""


def family_of(pixel_format: str) -> str:
    """Pixel format without its depth; yuv444p for those that few encoders take, so that no chroma is lost."""
    family = re.sub(r"\d+le$", "", pixel_format)
    return family if family in FAMILIES else "yuv444p"


def preset_args(preset: Preset, pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """FFmpeg's output options of a preset.

    Args:
        preset: Name.
        pixel_format: Of the frames, FFmpeg's name.
        depth: Their bits per sample.
        container: Suffix of the output file.
    """
    return _ARGUMENTS[preset](pixel_format, depth, container)


def _x264_or_x265(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """H.264 for 8 bits, H.265 for more."""
    family = family_of(pixel_format)
    if depth > 8:
        codec, target = "libx265", f"{family}{10 if depth <= 10 else 12}le"
    else:
        codec, target = ("libx264rgb", "rgb24") if family == "gbrp" else ("libx264", family)
    return ("-c:v", codec, "-preset", "medium", "-crf", "16", "-pix_fmt", target, *_hevc_tag(codec, container))


def _ffv1(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """Lossless, each frame a key frame, with checksums."""
    return ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1", "-pix_fmt", pixel_format)


def _x265(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """H.265, also for 8 bits."""
    target = f"{family_of(pixel_format)}{'' if depth == 8 else '10le' if depth <= 10 else '12le'}"
    return ("-c:v", "libx265", "-preset", "medium", "-crf", "16", "-pix_fmt", target, *_hevc_tag("libx265", container))


def _svtav1(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """AV1; the encoder takes 4:2:0 only."""
    target = "yuv420p" if depth == 8 else "yuv420p10le"
    return ("-c:v", "libsvtav1", "-preset", "5", "-crf", "20", "-pix_fmt", target)


def _prores(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """ProRes 422 HQ, or 4444 where the chroma is not subsampled."""
    full = family_of(pixel_format) in ("yuv444p", "gbrp")
    profile, target = ("4", "yuv444p10le") if full else ("3", "yuv422p10le")
    return ("-c:v", "prores_ks", "-profile:v", profile, "-vendor", "apl0", "-pix_fmt", target)


def _nvenc(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """H.265 by NVIDIA's encoder."""
    full = family_of(pixel_format) in ("yuv444p", "yuv422p", "gbrp")
    target = ("yuv444p" if depth == 8 else "yuv444p16le") if full else ("yuv420p" if depth == 8 else "p010le")
    rate = ("-preset", "p6", "-tune", "hq", "-rc", "vbr", "-cq", "18", "-b:v", "0")
    return ("-c:v", "hevc_nvenc", *rate, "-pix_fmt", target, *_hevc_tag("hevc", container))


def _qsv(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """H.265 by Intel's encoder; 4:2:0 only."""
    target = "nv12" if depth == 8 else "p010le"
    rate = ("-preset", "slower", "-global_quality", "18")
    return ("-c:v", "hevc_qsv", *rate, "-pix_fmt", target, *_hevc_tag("hevc", container))


def _vaapi(pixel_format: str, depth: int, container: str) -> tuple[str, ...]:
    """H.265 by the encoder of Intel's and AMD's drivers on Linux; 4:2:0 only."""
    upload = f"format={'nv12' if depth == 8 else 'p010le'},hwupload"
    tag = _hevc_tag("hevc", container)
    return ("-vaapi_device", VAAPI_DEVICE, "-vf", upload, "-c:v", "hevc_vaapi", "-qp", "18", *tag)


def _hevc_tag(codec: str, container: str) -> tuple[str, ...]:
    """The tag of H.265 that Apple's players look for, in containers that have it."""
    return () if codec.startswith("libx264") or container == ".mkv" else ("-tag:v", "hvc1")


_ARGUMENTS: dict[Preset, Callable[[str, int, str], tuple[str, ...]]] = {
    "default": _x264_or_x265,
    "archive": _ffv1,
    "hevc10": _x265,
    "av1": _svtav1,
    "prores": _prores,
    "nvenc": _nvenc,
    "qsv": _qsv,
    "vaapi": _vaapi,
}
