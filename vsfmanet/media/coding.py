"""Options of the encoder: the default ones, whether ranges can be joined, and how closely its frames must match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import av

from vsfmanet.media.encoder_args import names_encoder, parse_encoder_args
from vsfmanet.media.presets import Preset, preset_args
from vsfmanet.media.thumbnails import Likeness

LOSSY_BITS = 0.15
"""Bits per pixel of the default encoders: 0.14 for the example clip, 0.3 for very small pictures."""

SHARES = {
    **dict.fromkeys(("rawvideo", "v210", "r210"), 1.0),
    **dict.fromkeys(("ffv1", "ffvhuff", "huffyuv", "magicyuv", "utvideo"), 0.4),
    **dict.fromkeys(("prores", "prores_aw", "prores_ks", "dnxhd", "cfhd", "mjpeg"), 0.2),
}
"""Encoders that need more, with the size of their output over that of the frames in memory."""

CODING = {
    *(
        "c",
        "codec",
        "vcodec",
        "preset",
        "tune",
        "profile",
        "level",
        "usage",
        "quality",
        "speed",
        "deadline",
        "cpu-used",
    ),
    *(
        "crf",
        "cq",
        "qp",
        "q",
        "qscale",
        "global_quality",
        "qmin",
        "qmax",
        "b",
        "minrate",
        "maxrate",
        "bufsize",
        "rc",
        "strict",
    ),
    *("g", "keyint_min", "bf", "refs", "rc-lookahead", "lag-in-frames", "auto-alt-ref", "aq-mode", "pix_fmt"),
    *("x264-params", "x264opts", "x265-params", "svtav1-params", "aom-params", "row-mt", "tiles", "tile-columns"),
    *("tile-rows", "threads", "slices", "slicecrc", "coder", "context", "vendor", "bits_per_mb", "mbs_per_mb"),
}
"""Options of FFmpeg's encoders, one value each, that code every range of a film alike."""

FILTERS = {"-vf", "-filter:v"}
"""Options with filters for the picture."""

UPLOAD = re.compile(r"format=(nv12|p010le),hwupload")
"""Filters that bring frames to a device for its encoder."""

LOSSLESS = {"ffv1", "ffvhuff", "huffyuv", "png", "qtrle", "rawvideo", "utvideo"}
"""Encoders that are lossless for pixel formats they accept."""

CRF = {"libx264", "libx264rgb", "libx265"}
"""Encoders with comparable constant rate factors."""

QUALITIES: dict[str, tuple[set[str], float, float]] = {
    **dict.fromkeys(("libx264", "libx264rgb", "libx265"), ({"crf"}, 32.0, 40.0)),
    **dict.fromkeys(("libsvtav1", "libaom-av1", "libvpx-vp9"), ({"crf"}, 40.0, 63.0)),
    **dict.fromkeys(("mpeg4", "mpeg2video"), ({"q", "qscale"}, 15.0, 31.0)),
}
"""Of some encoders: names of the option for the quality, and its greatest values for "fair" and "coarse" pictures."""

HIGH_QUALITY = 16
"""Greatest rate factor at which detail and grain are kept; the default."""

EQUAL_QUALITY = {
    "c",
    "preset",
    "crf",
    "pix_fmt",
    "tag",
    "threads",
    "g",
    "keyint_min",
    "bf",
    "refs",
    "movflags",
    "metadata",
    "q",
    "qscale",
    "b",
    "cpu-used",
    "deadline",
    "row-mt",
}
"""Options that set the quality, and others that do not lower it; of a bit rate only 0, which is none."""

CONTAINING = {"tag", "vtag", "movflags", "metadata", "brand"}
"""Options for the container, one value each; repeated when ranges are joined."""


def choose_encoder(user_args: str, pixel_format: str, container: str, preset: Preset = "default") -> tuple[str, ...]:
    """FFmpeg's output options for the video: those of a preset and the user's, or only the user's with an encoder.

    Args:
        user_args: Options as in a shell.
        pixel_format: Of the frames: by default 8 bits become H.264, more become H.265, with the same chroma.
        container: Suffix of the output file.
        preset: Name of a preset.

    Raises:
        ConfigError: The options would do more than code one output.
    """
    own = parse_encoder_args(user_args)
    if names_encoder(own):
        return own
    depth = av.VideoFormat(pixel_format).components[0].bits
    return (*preset_args(preset, pixel_format, depth, container), *own)


def one_range(encoder_args: Sequence[str]) -> str | None:
    """Why a film must be encoded in one pass with these options; None if it can be encoded in ranges."""
    given = iter(encoder_args)
    for argument in given:
        name, _, track = argument.removeprefix("-").partition(":")
        value = next(given, "")
        if (
            not argument.startswith("-")
            or name not in CODING | CONTAINING
            or track not in ("", "v", "v:0", "s:v", "s:v:0")
        ):
            return f"--encoder-args has {argument}, of which it is not known that every range would be coded alike"
        if re.search(r"\b(pass|stats)=", value):
            return f"--encoder-args has several passes ({value})"
    return None


def has_filters(encoder_args: Sequence[str]) -> bool:
    """Whether some options filter the picture; bringing it to a device changes nothing."""
    return any(name in FILTERS and not UPLOAD.fullmatch(value) for name, value in pairwise(encoder_args))


def likeness(encoder_args: Sequence[str], pixel_format: str) -> Likeness:
    """How closely decoded frames must match the encoded ones."""
    if has_filters(encoder_args):
        return "unknown"
    given = {
        name.removeprefix("-").partition(":")[0]: value
        for name, value in zip(encoder_args[::2], encoder_args[1::2], strict=True)
    }
    codec = next((given[name] for name in ("c", "codec", "vcodec") if name in given), "")
    quality = _number(given.get("crf", ""))
    eight_bits = av.VideoFormat(pixel_format).components[0].bits == 8
    if codec in LOSSLESS or (codec in CRF and (given.get("qp") == "0" or (quality == 0 and eight_bits))):
        return "exact"
    if not set(given) <= EQUAL_QUALITY or _number(given.get("b", "0")) != 0:
        return "rough"
    if codec in CRF and quality is not None and quality <= HIGH_QUALITY:
        return "near"
    if codec not in QUALITIES:
        return "rough"
    names, fair, coarse = QUALITIES[codec]
    quality = next((_number(given[name]) for name in names & set(given)), None)
    if quality is None:  # the encoder's own choice, which is low for some at their fastest
        return "rough"
    return "fair" if quality <= fair else "coarse" if quality <= coarse else "rough"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def has_option(encoder_args: Sequence[str], *names: str) -> bool:
    """Whether some options include one of `names` (without dash), for any stream."""
    given = (argument.removeprefix("-").partition(":")[0] for argument in encoder_args if argument.startswith("-"))
    return not set(names).isdisjoint(given)


def sets_aspect(encoder_args: Sequence[str]) -> bool:
    """Whether some options may set another sample aspect ratio than that of the source."""
    return has_filters(encoder_args) or has_option(encoder_args, "aspect", "bsf")


def output_bytes(*, frames: int, pixels: int, pixel_format: str, encoder_args: Sequence[str]) -> int:
    """Estimate the size of an output in bytes.

    Args:
        frames: Number of frames.
        pixels: Pixels of a frame.
        pixel_format: FFmpeg's name of the pixel format.
        encoder_args: Options for the encoder, from `choose_encoder`.
    """
    names = [encoder_args[n + 1] for n, word in enumerate(encoder_args[:-1]) if word in ("-c:v", "-codec:v", "-vcodec")]
    share = SHARES.get(names[-1]) if names else None
    bits = LOSSY_BITS
    if share is not None:
        described = av.VideoFormat(pixel_format, 64, 64)  # a small size, to count the pixels of subsampled planes
        samples = sum(part.width * part.height for part in described.components)
        bits = share * described.components[0].bits * samples / (64 * 64)
    return round(frames * pixels * bits / 8)
