"""Planes to tensors and back, and colour: any clip becomes RGBS for the network, and its own format again afterwards.

What can differ from frame to frame (matrix, range, chroma location, field order) is read from each frame, never from
frame 0 for all: hosts such as mpv and FFmpeg have no frames to give while a script is being loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet.errors import FormatError
from vsfmanet.segments import MAX_FRAMES

MIN_SIDE = 8
"""Smallest width and height of a clip in pixels."""

COLOUR_PROPS = ("_Matrix", "_Range", "_ChromaLocation")
"""Properties that a conversion by `from_rgb` writes."""

# What zimg converts by its coefficients alone. Constant luminance, ICtCp and the derived ones need a transfer as well.
_MATRICES = (
    vs.MATRIX_BT709,
    vs.MATRIX_FCC,
    vs.MATRIX_BT470_BG,
    vs.MATRIX_ST170_M,
    vs.MATRIX_ST240_M,
    vs.MATRIX_YCGCO,
    vs.MATRIX_BT2020_NCL,
)
_TRANSFERS = {1, 2, *range(4, 19)}  # of H.273, as far as resize knows them
_PRIMARIES = {1, 2, *range(4, 13), 22}
_UNSPECIFIED = 2  # of matrix, primaries and transfer alike
_PRIMARIES_BT2020 = 9
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}

# Ordered dither: against banding, as error diffusion is, but a pixel's pattern depends on its place alone. So it stands
# still in time, and a last-bit difference between two devices stays where it is instead of running over the picture.
_DITHER = "ordered"


def check_clip(clip: vs.VideoNode) -> vs.VideoNode:
    """The clip in host memory, if a filter can take it.

    Raises:
        FormatError: its format or size varies or is not supported, or it is too long.
    """
    if clip.width == 0 or clip.height == 0 or clip.format is None or clip.format.id == 0:
        raise FormatError(
            "restore: a clip of constant format and size is needed, got a variable one; "
            "bring all frames to one format and size with resize first"
        )
    check_format(clip.format)
    if min(clip.width, clip.height) < MIN_SIDE:
        raise FormatError(
            f"restore: a clip of at least {MIN_SIDE}x{MIN_SIDE} pixels is needed, got {clip.width}x{clip.height}; "
            "add borders or resize it first"
        )
    if clip.num_frames > MAX_FRAMES:
        raise FormatError(
            f"restore: a clip of at most {MAX_FRAMES} frames is needed, got {clip.num_frames}; "
            "trim it, for example clip[:1_000_000]"
        )
    return clip.std.GPUDownload() if getattr(clip, "gpu_resident", False) else clip


def check_format(video_format: vs.VideoFormat) -> None:
    """Refuse formats that cannot be converted to and from RGBS.

    Raises:
        FormatError: it is neither 8 to 16 bit integer nor half or single float, or of no known family.
    """
    known_family = video_format.color_family in (vs.YUV, vs.RGB, vs.GRAY)
    is_float = video_format.sample_type == vs.FLOAT
    if not known_family or not (is_float or 8 <= video_format.bits_per_sample <= 16):
        raise FormatError(
            "restore: YUV, RGB or Gray of 8 to 16 bit integer or 16 or 32 bit float is needed, "
            f"got {video_format.name}; convert it with resize first"
        )


def named_format(output_format: object) -> vs.VideoFormat:
    """The format that the argument `output_format` names.

    Raises:
        FormatError: there is no such format, or it cannot be converted to.
    """
    try:
        named = vs.core.get_video_format(output_format)
    except (vs.Error, TypeError, OverflowError):
        named = None
    if named is None or named.id == 0:
        raise FormatError(
            f"restore: output_format must be a VapourSynth format such as vs.YUV444P16, got {output_format!r}; "
            "pass a preset, or leave it out to keep the clip's own"
        )
    check_format(named)
    return named


def check_subsampling(target: vs.VideoFormat, width: int, height: int) -> None:
    """Refuse a format whose chroma planes do not fit a size in pixels.

    Raises:
        FormatError: the subsampling does not divide the size.
    """
    if width % (1 << target.subsampling_w) or height % (1 << target.subsampling_h):
        raise FormatError(
            f"restore: output_format {target.name} needs a size that its chroma subsampling divides, got "
            f"{width}x{height}; choose one without subsampling, or crop the clip first"
        )


def guess_matrix(width: int, height: int, primaries: int) -> int:
    """Matrix of a clip that does not name one, as players choose it: by BT.2020 primaries, then by size."""
    if primaries == _PRIMARIES_BT2020:
        return int(vs.MATRIX_BT2020_NCL)
    if width >= 1280 or height > 576:
        return int(vs.MATRIX_BT709)
    return int(vs.MATRIX_BT470_BG if height in (288, 576) else vs.MATRIX_ST170_M)


def tag_colour(clip: vs.VideoNode) -> vs.VideoNode:
    """Check every frame, and spell out its colour so that no conversion guesses.

    Each frame gets `_Matrix`, `_Range` and, with subsampled chroma, `_ChromaLocation`. A `_Transfer` or `_Primaries`
    with a reserved value, which says nothing and makes resize fail, goes; else neither matters, for neither is
    converted. A frame that is interlaced, or whose tags cannot be converted, raises FormatError with its number.
    """
    told: set[str] = set()

    def tag(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        _refuse_interlaced(f.props, n)
        for notice in _notices(f.props, n, clip):
            if notice not in told:
                told.add(notice)
                vs.core.log_message(vs.MESSAGE_TYPE_WARNING, notice)
        frame = f.copy()
        frame.props.update(_colour_tags(f.props, n, clip))
        for name, known in (("_Transfer", _TRANSFERS), ("_Primaries", _PRIMARIES)):
            if frame.props.get(name, _UNSPECIFIED) not in known:
                del frame.props[name]
        return frame

    return clip.std.ModifyFrame(clip, tag)


def to_rgb(tagged: vs.VideoNode) -> vs.VideoNode:
    """A clip from `tag_colour` as RGBS, nominal range [0, 1]. Nothing is clamped: what lies outside comes back out."""
    return tagged.resize.Bicubic(format=vs.RGBS)


def from_rgb(rgb: vs.VideoNode, tagged: vs.VideoNode, target: vs.VideoFormat) -> vs.VideoNode:
    """RGBS as `target`, with the matrix, range and chroma location of the source.

    A change between RGB and YUV takes the usual ones: full range RGB, limited range YUV with a guessed matrix.

    Args:
        rgb: RGBS clip, nominal range [0, 1].
        tagged: the source from `tag_colour`, of any size and of the same length; its properties decide frame by frame.
        target: what the result is to be. Integer formats clamp to their code values.
    """
    from_is_rgb = tagged.format.color_family == vs.RGB
    to_is_rgb = target.color_family == vs.RGB
    if from_is_rgb and target.id == vs.RGBS:
        return rgb
    converted: dict[_Colour, vs.VideoNode] = {}

    def colour_of(props: Mapping[str, object], n: int) -> _Colour:
        if to_is_rgb and not from_is_rgb:
            return _Colour(matrix=int(vs.MATRIX_RGB), range=1, chroma_location=0)
        if from_is_rgb and not to_is_rgb:
            primaries = _tag(props, "_Primaries", n, default=_UNSPECIFIED)
            return _Colour(matrix=guess_matrix(rgb.width, rgb.height, primaries), range=0, chroma_location=0)
        return _Colour(
            matrix=_tag(props, "_Matrix", n),
            range=_tag(props, "_Range", n),
            chroma_location=_tag(props, "_ChromaLocation", n) if _is_subsampled(tagged.format) else 0,
        )

    def convert(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colour = colour_of(f.props, n)
        if colour not in converted:
            converted[colour] = rgb.resize.Bicubic(
                format=target.id,
                matrix=colour.matrix,
                range=colour.range,
                chromaloc=colour.chroma_location,
                dither_type=_DITHER,
            )
        return converted[colour]

    template = vs.core.std.BlankClip(rgb, format=target.id, keep=True)
    return template.std.FrameEval(convert, prop_src=[tagged], clip_src=[rgb])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Colour:
    """What a conversion from RGB is given."""

    matrix: int
    range: int
    """0 limited, 1 full."""
    chroma_location: int


def _refuse_interlaced(props: Mapping[str, object], n: int) -> None:
    field_order = _tag(props, "_FieldBased", n, default=0)
    if field_order > 0:
        raise FormatError(
            f"restore: progressive frames are needed, got an interlaced one (frame {n}, _FieldBased={field_order}); "
            "deinterlace first, for example with QTGMC or bwdif, or set _FieldBased to 0 if the tag is wrong"
        )


def _notices(props: Mapping[str, object], n: int, clip: vs.VideoNode) -> Iterator[str]:
    """What a user should know about the colour of frame `n`."""
    if clip.format.color_family == vs.YUV and _tag(props, "_Matrix", n, default=_UNSPECIFIED) == _UNSPECIFIED:
        matrix = vs.MatrixCoefficients(_colour_tags(props, n, clip)["_Matrix"])
        yield (
            f"restore: the clip does not say its matrix; taking {matrix.name} for {clip.width}x{clip.height}. "
            "If that is wrong, set _Matrix with std.SetFrameProps before"
        )
    transfer = _HDR_TRANSFERS.get(_tag(props, "_Transfer", n, default=_UNSPECIFIED))
    if transfer is not None:
        yield (
            f"restore: the clip's transfer is {transfer}; its code values are restored as they are and keep their tag, "
            "but the networks have learnt from SDR"
        )


def _colour_tags(props: Mapping[str, object], n: int, clip: vs.VideoNode) -> dict[str, int]:
    """How frame `n` of `clip` is to be read: its own tags where it has them, the usual values where not."""
    if clip.format.color_family == vs.RGB:
        return {"_Matrix": int(vs.MATRIX_RGB), "_Range": _tag(props, "_Range", n, default=1, allowed=(0, 1))}
    matrix = guess_matrix(clip.width, clip.height, _tag(props, "_Primaries", n, default=_UNSPECIFIED))
    named = _tag(props, "_Matrix", n, default=_UNSPECIFIED)
    # Grey stays grey under any matrix, so one that cannot be used (0, on a plane taken from RGB) needs no complaint.
    if named in _MATRICES or (named != _UNSPECIFIED and clip.format.color_family == vs.YUV):
        matrix = _tag(props, "_Matrix", n, allowed=_MATRICES)
    tags = {"_Matrix": matrix, "_Range": _tag(props, "_Range", n, default=0, allowed=(0, 1))}
    if _is_subsampled(clip.format):
        tags["_ChromaLocation"] = _tag(props, "_ChromaLocation", n, default=0, allowed=range(6))
    return tags


def _is_subsampled(video_format: vs.VideoFormat) -> bool:
    return bool(video_format.subsampling_w or video_format.subsampling_h)


def read_frame(frame: vs.VideoFrame) -> Tensor:
    """Copy the planes of an RGBS frame, whose rows are padded, into one tensor (3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(frame[plane]) for plane in range(3)]))


def write_frame(rgb: Tensor) -> vs.VideoFrame:
    """A new RGBS frame, without properties, that holds the fp32 tensor `rgb` (3, H, W)."""
    _, height, width = rgb.shape
    frame = vs.core.create_video_frame(vs.core.get_video_format(vs.RGBS), width, height)
    for plane in range(3):
        np.copyto(np.asarray(frame[plane]), rgb[plane].numpy())
    return frame


def is_finite(rgb: Tensor) -> bool:
    """Whether `rgb` is free of NaN and infinity; one reduction, since either one survives a sum."""
    return math.isfinite(rgb.sum().item())


def _tag(
    props: Mapping[str, object], name: str, n: int, *, default: int | None = None, allowed: Iterable[int] | None = None
) -> int:
    """The whole number in property `name` of frame `n`; `default` if the frame has none."""
    value = props.get(name, default)
    if isinstance(value, int) and (allowed is None or value in set(allowed)):
        return int(value)
    needed = "one whole number" if allowed is None else f"one of {', '.join(str(int(v)) for v in sorted(allowed))}"
    raise FormatError(
        f"restore: {name} must be {needed}, got {value!r} at frame {n}; "
        "convert the clip with resize, or mend the tag with std.SetFrameProps"
    )
