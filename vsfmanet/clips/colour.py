"""Colour: checks a clip, tags each frame, converts it to RGB for the network and the result to the clip's format.

`colour_path` chooses between two conversions. zimg converts on the host, to RGBS and back. Or integer planes are copied
to the network's device and back unconverted (an eighth of the bytes for 8 bit 4:2:0), and torch converts there.

What can differ from frame to frame (matrix, range, chroma location, field order) is read from each frame, never from
frame 0 for all: hosts such as mpv and FFmpeg cannot deliver frames while a script is being loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import vapoursynth as vs
from torch import Tensor

from vsfmanet import kernels
from vsfmanet.clips.planes import is_finite, read_rgb, write_rgb
from vsfmanet.errors import FormatError
from vsfmanet.ops.colour import MATRICES, Coding
from vsfmanet.segments import MAX_FRAMES
from vsfmanet.settings import SMALLEST_SIDE
from vsfmanet.sizes import sample_stretch

if TYPE_CHECKING:
    from vsfmanet.engines.transfers import Transfers

COLOUR_PROPS = ("_Matrix", "_Range", "_ChromaLocation")
"""Properties that `from_rgb` writes."""

_TRANSFERS = {1, 2, *range(4, 19)}  # values of H.273 that resize accepts
_PRIMARIES = {1, 2, *range(4, 13), 22}
_UNSPECIFIED = 2  # of matrix, primaries and transfer alike
_PRIMARIES_BT2020 = 9
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}

# Ordered dither prevents banding as error diffusion does, but a pixel's offset depends on its place alone: the pattern
# is still in time, and a last-bit difference between two devices does not spread over the picture.
_DITHER = "ordered"

_log = logging.getLogger(__name__)


def check_clip(clip: vs.VideoNode) -> vs.VideoNode:
    """Check a clip, and download it, with a warning, if it is in GPU memory.

    Raises:
        FormatError: Its format or size varies or is not supported, or it is too long.
    """
    if clip.width == 0 or clip.height == 0 or clip.format is None or clip.format.id == 0:
        raise FormatError(
            "a clip of constant format and size is needed, got a variable one; "
            "convert all frames to one format and size with resize first"
        )
    check_format(clip.format)
    if min(clip.width, clip.height) < SMALLEST_SIDE:
        raise FormatError(
            f"a clip of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels is needed, got {clip.width}x{clip.height}; "
            "add borders or resize it first"
        )
    if clip.num_frames > MAX_FRAMES:
        raise FormatError(
            f"a clip of at most {MAX_FRAMES} frames is needed, got {clip.num_frames}; "
            "trim it, for example clip[:1_000_000]"
        )
    if not getattr(clip, "gpu_resident", False):
        return clip
    _log.warning("the clip is in GPU memory; vsfmanet downloads each frame, and its result is in host memory")
    return clip.std.GPUDownload()


def check_format(video_format: vs.VideoFormat) -> None:
    """Check that a format can be converted to and from RGBS.

    Raises:
        FormatError: It is not YUV, RGB or Gray of 8 to 16 bit integer or half or single float.
    """
    known_family = video_format.color_family in (vs.YUV, vs.RGB, vs.GRAY)
    is_float = video_format.sample_type == vs.FLOAT
    if not known_family or not (is_float or 8 <= video_format.bits_per_sample <= 16):
        raise FormatError(
            "YUV, RGB or Gray of 8 to 16 bit integer or 16 or 32 bit float is needed, "
            f"got {video_format.name}; convert it with resize first"
        )


def named_format(output_format: object) -> vs.VideoFormat:
    """Look up the format that the argument `output_format` names.

    Raises:
        FormatError: There is no such format, or it is not supported.
    """
    try:
        named = vs.core.get_video_format(output_format)
    except (vs.Error, TypeError, OverflowError):
        named = None
    if named is None or named.id == 0:
        raise FormatError(
            f"output_format must be a VapourSynth format such as vs.YUV444P16, got {output_format!r}; "
            "pass a preset, or leave it out to keep the clip's own"
        )
    check_format(named)
    return named


def check_subsampling(target: vs.VideoFormat, width: int, height: int) -> None:
    """Check that a format's chroma subsampling divides a size in pixels.

    Raises:
        FormatError: It does not.
    """
    if width % (1 << target.subsampling_w) or height % (1 << target.subsampling_h):
        raise FormatError(
            f"output_format {target.name} needs a size that its chroma subsampling divides, got "
            f"{width}x{height}; choose one without subsampling, or crop the clip first"
        )


def guess_matrix(width: int, height: int, primaries: int) -> int:
    """Guess the matrix of a clip without a matrix tag as players do: by BT.2020 primaries, then by size in pixels."""
    if primaries == _PRIMARIES_BT2020:
        return int(vs.MATRIX_BT2020_NCL)
    if width >= 1280 or height > 576:
        return int(vs.MATRIX_BT709)
    return int(vs.MATRIX_BT470_BG if height in (288, 576) else vs.MATRIX_ST170_M)


def tag_colour(clip: vs.VideoNode) -> vs.VideoNode:
    """Check every frame and complete its colour tags, so that no conversion guesses.

    Writes `_Matrix`, `_Range` and, with subsampled chroma, `_ChromaLocation`. Transfer and primaries are never
    converted; a `_Transfer` or `_Primaries` with a reserved value is removed, because resize fails on it. Warns once a
    clip where a matrix is guessed, and of HDR. The callback raises FormatError for an interlaced frame, and for tags
    that cannot be converted.
    """
    warned: set[str] = set()

    def tag(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        _refuse_interlaced(f.props, n)
        for warning in _warnings(f.props, n, clip):
            if warning not in warned:
                warned.add(warning)
                _log.warning("%s", warning)
        frame = f.copy()
        frame.props.update(_colour_tags(f.props, n, clip))
        for name, known in (("_Transfer", _TRANSFERS), ("_Primaries", _PRIMARIES)):
            if frame.props.get(name, _UNSPECIFIED) not in known:
                del frame.props[name]
        return frame

    return clip.std.ModifyFrame(clip, tag)


def to_rgb(tagged: vs.VideoNode) -> vs.VideoNode:
    """Convert a clip from `tag_colour` to RGBS, nominal range [0, 1], without clamping.

    All properties are kept; `from_rgb` needs those of the source's colour.
    """
    return tagged.resize.Bicubic(format=vs.RGBS).std.CopyFrameProps(tagged)


def from_rgb(rgb: vs.VideoNode, source: vs.VideoFormat, target: vs.VideoFormat) -> vs.VideoNode:
    """Convert RGBS to `target`, with the matrix, range and chroma location of the source.

    Between RGB and YUV the defaults are used: full range RGB, limited range YUV with a guessed matrix.

    Args:
        rgb: RGBS clip, nominal range [0, 1], whose frames carry the properties of the source's colour. Each frame is
            requested once only.
        source: Format of the source.
        target: Format of the result. Integer formats clamp to their code values.
    """
    if source.color_family == vs.RGB and target.id == vs.RGBS:
        return rgb
    handed_on: dict[int, vs.VideoFrame] = {}
    """Frames passed from `convert` to `receive`, because a second request might run the network again."""

    def receive(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = handed_on.pop(n).copy()
        for name in COLOUR_PROPS:
            frame.props.pop(name, None)
        return frame

    blank = vs.core.std.BlankClip(rgb, keep=True)
    received = blank.std.ModifyFrame(blank, receive)
    converted: dict[_Colour, vs.VideoNode] = {}

    def convert(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colour = _colour_of_result(f.props, n, source, target, rgb.width, rgb.height)
        if colour not in converted:
            converted[colour] = received.resize.Bicubic(
                format=target.id,
                matrix=colour.matrix,
                range=colour.range,
                chromaloc=colour.chroma_location,
                dither_type=_DITHER,
            )
        handed_on[n] = f
        return converted[colour]

    template = vs.core.std.BlankClip(rgb, format=target.id, keep=True)
    return template.std.FrameEval(convert, prop_src=[rgb], clip_src=[received])


def resized(clip: vs.VideoNode, target: vs.VideoFormat, width: int, height: int) -> vs.VideoNode:
    """Resize a clip with Spline36 to a size in pixels and a format of its own colour family; its colour tags are kept.

    The sample aspect ratio changes with the picture's shape, but not for what whole pixels make of it.
    """
    stretch = sample_stretch((clip.width, clip.height), (width, height))

    def stretched(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame, props = f[0].copy(), f[1].props
        named = [props.get("_SARNum", 1), props.get("_SARDen", 1)]
        aspect = Fraction(*named) * stretch if all(isinstance(part, int) and part > 0 for part in named) else stretch
        frame.props.update(_SARNum=aspect.numerator, _SARDen=aspect.denominator)
        return frame

    made = clip.resize.Spline36(width, height, format=target.id, dither_type=_DITHER)
    if stretch == 1:  # resize itself would keep the shape to the last digit
        return made.std.CopyFrameProps(clip, props=["_SARNum", "_SARDen"])
    return made.std.ModifyFrame([made, clip], stretched)


def plain(tagged: vs.VideoNode, target: vs.VideoFormat, width: int, height: int, *, scale: int = 1) -> vs.VideoNode:
    """Convert a clip from `tag_colour` to a format and a size, as a restored one but without a network.

    Args:
        tagged: The clip.
        target: Format of the result.
        width: Of the result, in pixels.
        height: Of the result, in pixels.
        scale: Of the network. Where a matrix is guessed, the size of the restored frames decides.
    """
    if target.id == tagged.format.id and (width, height) == (tagged.width, tagged.height):
        return tagged
    if target.color_family == tagged.format.color_family:
        return resized(tagged, target, width, height)
    large = tagged.resize.Spline36(scale * tagged.width, scale * tagged.height, format=vs.RGBS)
    return resized(from_rgb(large.std.CopyFrameProps(tagged), tagged.format, finer(target)), target, width, height)


def luma_of(clip: vs.VideoNode, width: int, height: int) -> vs.VideoNode:
    """Luma of a clip with colour tags in a size in pixels: GRAYS, nominal range [0, 1]. That of RGB is BT.709's."""
    if clip.format.color_family == vs.RGB:
        return clip.resize.Spline36(width, height, format=vs.GRAYS, matrix=vs.MATRIX_BT709)
    return clip.std.ShufflePlanes(0, vs.GRAY).resize.Spline36(width, height, format=vs.GRAYS)


def finer(target: vs.VideoFormat) -> vs.VideoFormat:
    """Format like another in which nothing is lost before frames are resized to it: with 16 bits if it is integer."""
    if target.sample_type == vs.FLOAT:
        return target
    return vs.core.query_video_format(target.color_family, vs.INTEGER, 16, target.subsampling_w, target.subsampling_h)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Colour:
    """Colour tags of a YUV, RGB or Gray frame."""

    matrix: int
    range: int
    """0 limited, 1 full."""
    chroma_location: int


def _colour_of_result(
    props: Mapping[str, object], n: int, source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int
) -> _Colour:
    """Tags for the result of frame `n`, whose properties `tag_colour` wrote; see `from_rgb`."""
    if target.color_family == vs.RGB and source.color_family != vs.RGB:
        return _Colour(matrix=int(vs.MATRIX_RGB), range=1, chroma_location=0)
    if source.color_family == vs.RGB and target.color_family != vs.RGB:
        primaries = _tag(props, "_Primaries", n, default=_UNSPECIFIED)
        return _Colour(matrix=guess_matrix(width, height, primaries), range=0, chroma_location=0)
    return _own_colour(source, props, n)


def _own_colour(source: vs.VideoFormat, props: vs.FrameProps, n: int) -> _Colour:
    """Tags of frame `n`, from its properties."""
    return _Colour(
        matrix=_tag(props, "_Matrix", n),
        range=_tag(props, "_Range", n),
        chroma_location=_tag(props, "_ChromaLocation", n) if _is_subsampled(source) else 0,
    )


class ColourPath(Protocol):
    """Converts source frames to RGB tensors, and restored tensors to a clip."""

    written: vs.VideoFormat
    """Format of the frames from `write`."""

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        """Convert a clip from `tag_colour` to one whose frames `read` accepts."""
        ...

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        """Convert frame `n` to (3, H, W) RGB, fp32, nominal range [0, 1], on the network's device or on the CPU.

        Raises:
            FormatError: A sample is NaN or infinite.
        """
        ...

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        """Pack restored frame `n` for download; must not synchronise.

        Args:
            rgb: (3, H, W) RGB, fp32, nominal range [0, 1], on the device.
            source: Source frame `n`.
            n: Number of the frame.
        """
        ...

    def is_finite(self, encoded: Tensor) -> bool:
        """Whether the restored frame held neither NaN nor infinity, by what `encode` returned, on the CPU."""
        ...

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        """Create a frame from what `encode` returned, on the CPU, with the properties of its source."""
        ...

    def finished(self, written: vs.VideoNode) -> vs.VideoNode:
        """Convert a clip of frames from `write` to the restored clip."""
        ...


def colour_path(
    source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int, transfers: Transfers | None
) -> ColourPath:
    """Choose the conversion: on the device, if there are copies to one and both formats are integer.

    Args:
        source: Format of the clip.
        target: Format of the result.
        width: Of the result, in pixels.
        height: Of the result, in pixels.
        transfers: Copies to and from the network's device; None for the CPU, where zimg is faster than torch.
    """
    if transfers is None or vs.FLOAT in (source.sample_type, target.sample_type):
        return HostColour(source, target)
    return DeviceColour(source, target, width, height, transfers)


class HostColour:
    """Conversion by zimg to RGBS and back, for any format; a `ColourPath`."""

    def __init__(self, source: vs.VideoFormat, target: vs.VideoFormat) -> None:
        self._source, self._target = source, target
        self.written = vs.core.get_video_format(vs.RGBS)

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        return to_rgb(tagged)

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        return read_rgb(frame, n)

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        return rgb

    def is_finite(self, encoded: Tensor) -> bool:
        return is_finite(encoded)

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        frame = write_rgb(encoded)
        frame.props.update(source.props)  # with the source's colour tags: `from_rgb` needs them
        return frame

    def finished(self, written: vs.VideoNode) -> vs.VideoNode:
        return from_rgb(written, self._source, self._target)


class DeviceColour:
    """Conversion by torch on the network's device; a `ColourPath`. Code values differ from `HostColour` by at most one.

    Args:
        source: Format of the clip, integer.
        target: Format of the result, integer.
        width: Of the result, in pixels.
        height: Of the result, in pixels.
        transfers: Copies to and from the device.
    """

    def __init__(
        self, source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int, transfers: Transfers
    ) -> None:
        self._source, self._width, self._height, self._transfers = source, width, height, transfers
        self.written = target

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        return tagged

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        coding = _coding(self._source, _own_colour(self._source, frame.props, n))
        packed = self._transfers.buffer(coding.size(frame.height, frame.width), coding.dtype)
        for plane, copied in enumerate(coding.planes(packed, frame.height, frame.width)):
            np.copyto(copied.numpy(), np.asarray(frame[plane]))
        return kernels.decode(coding, self._transfers.upload(packed), frame.height, frame.width)

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        return kernels.encode(_coding(self.written, self._colour(source, n)), rgb)

    def is_finite(self, encoded: Tensor) -> bool:
        return bool(encoded[-1].item())

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        colour = self._colour(source, n)
        frame = vs.core.create_video_frame(self.written, self._width, self._height)
        for plane, copied in enumerate(_coding(self.written, colour).planes(encoded, self._height, self._width)):
            np.copyto(np.asarray(frame[plane]), copied.numpy())
        frame.props.update(_Primaries=_UNSPECIFIED, _Transfer=_UNSPECIFIED)  # as zimg does where the source has none
        frame.props.update(source.props)
        frame.props.update(_Matrix=colour.matrix, _Range=colour.range)
        if _is_subsampled(self.written):
            frame.props["_ChromaLocation"] = colour.chroma_location
        else:
            frame.props.pop("_ChromaLocation", None)
        return frame

    def finished(self, written: vs.VideoNode) -> vs.VideoNode:
        return written

    def _colour(self, source: vs.VideoFrame, n: int) -> _Colour:
        return _colour_of_result(source.props, n, self._source, self.written, self._width, self._height)


_FAMILIES: dict[int, Literal["rgb", "yuv", "gray"]] = {vs.RGB: "rgb", vs.YUV: "yuv", vs.GRAY: "gray"}


def _coding(video_format: vs.VideoFormat, colour: _Colour) -> Coding:
    """Describe an integer format for the conversion by torch."""
    return Coding(
        family=_FAMILIES[video_format.color_family],
        bits=video_format.bits_per_sample,
        matrix=colour.matrix,
        full=bool(colour.range),
        subsampling=(video_format.subsampling_w, video_format.subsampling_h),
        location=colour.chroma_location,
    )


def _refuse_interlaced(props: Mapping[str, object], n: int) -> None:
    field_order = _tag(props, "_FieldBased", n, default=0)
    if field_order > 0:
        raise FormatError(
            f"progressive frames are needed, got an interlaced one (frame {n}, _FieldBased={field_order}); "
            "deinterlace first, for example with QTGMC or bwdif, or set _FieldBased to 0 if the tag is wrong"
        )


def _warnings(props: Mapping[str, object], n: int, clip: vs.VideoNode) -> Iterator[str]:
    """Warnings about the colour of frame `n`."""
    if clip.format.color_family == vs.YUV and _tag(props, "_Matrix", n, default=_UNSPECIFIED) == _UNSPECIFIED:
        matrix = vs.MatrixCoefficients(_colour_tags(props, n, clip)["_Matrix"])
        yield (
            f"the clip has no matrix tag; vsfmanet takes {matrix.name} for {clip.width}x{clip.height}. "
            "If that is wrong, set _Matrix with std.SetFrameProps before"
        )
    transfer = _HDR_TRANSFERS.get(_tag(props, "_Transfer", n, default=_UNSPECIFIED))
    if transfer is not None:
        yield (
            f"the clip's transfer is {transfer}; vsfmanet restores its code values without conversion and keeps the "
            "tag, but its networks were trained on SDR"
        )


def _colour_tags(props: Mapping[str, object], n: int, clip: vs.VideoNode) -> dict[str, int]:
    """Colour tags of frame `n` of `clip`, with defaults where it has none."""
    if clip.format.color_family == vs.RGB:
        return {"_Matrix": int(vs.MATRIX_RGB), "_Range": _tag(props, "_Range", n, default=1, allowed=(0, 1))}
    matrix = guess_matrix(clip.width, clip.height, _tag(props, "_Primaries", n, default=_UNSPECIFIED))
    named = _tag(props, "_Matrix", n, default=_UNSPECIFIED)
    # Grey stays grey under any matrix, so an unusable one (0, on a plane taken from RGB) is no error.
    if named in MATRICES or (named != _UNSPECIFIED and clip.format.color_family == vs.YUV):
        matrix = _tag(props, "_Matrix", n, allowed=MATRICES)
    tags = {"_Matrix": matrix, "_Range": _tag(props, "_Range", n, default=0, allowed=(0, 1))}
    if _is_subsampled(clip.format):
        tags["_ChromaLocation"] = _tag(props, "_ChromaLocation", n, default=0, allowed=range(6))
    return tags


def _is_subsampled(video_format: vs.VideoFormat) -> bool:
    return bool(video_format.subsampling_w or video_format.subsampling_h)


def _tag(
    props: Mapping[str, object], name: str, n: int, *, default: int | None = None, allowed: Iterable[int] | None = None
) -> int:
    """Read the whole number in property `name` of frame `n`; `default` if the frame has none.

    Raises:
        FormatError: It is no whole number, or not one of those allowed.
    """
    value = props.get(name, default)
    if isinstance(value, int) and (allowed is None or value in set(allowed)):
        return int(value)
    needed = "one whole number" if allowed is None else f"one of {', '.join(str(int(v)) for v in sorted(allowed))}"
    raise FormatError(
        f"{name} must be {needed}, got {value!r} at frame {n}; "
        "convert the clip with resize, or correct the tag with std.SetFrameProps"
    )
