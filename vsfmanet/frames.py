"""Planes to tensors and back, and colour: any clip becomes RGB for the network, and its own format again afterwards.

There are two ways, and `colour_path` chooses: zimg converts on the host, to RGBS and back; or integer planes go to the
device of the network as they are and come back as such, with an eighth of the bytes for 8 bit 4:2:0, and torch converts
there.

What can differ from frame to frame (matrix, range, chroma location, field order) is read from each frame, never from
frame 0 for all: hosts such as mpv and FFmpeg have no frames to give while a script is being loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet.errors import FormatError
from vsfmanet.ops.colour import MATRICES, Coding
from vsfmanet.segments import MAX_FRAMES

if TYPE_CHECKING:
    from vsfmanet.engines.cuda import Transfers

MIN_SIDE = 8
"""Smallest width and height of a clip in pixels."""

COLOUR_PROPS = ("_Matrix", "_Range", "_ChromaLocation")
"""Properties that a conversion by `from_rgb` writes."""

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
    """A clip from `tag_colour` as RGBS, nominal range [0, 1]. Nothing is clamped: what lies outside comes back out.

    All properties stay, those of the source's colour too: `from_rgb` goes by them.
    """
    return tagged.resize.Bicubic(format=vs.RGBS).std.CopyFrameProps(tagged)


def from_rgb(rgb: vs.VideoNode, source: vs.VideoFormat, target: vs.VideoFormat) -> vs.VideoNode:
    """RGBS as `target`, with the matrix, range and chroma location of the source.

    A change between RGB and YUV takes the usual ones: full range RGB, limited range YUV with a guessed matrix.

    Args:
        rgb: RGBS clip, nominal range [0, 1], whose frames still have the properties of the source's colour. Each frame
            is asked for once only.
        source: what the source was.
        target: what the result is to be. Integer formats clamp to their code values.
    """
    if source.color_family == vs.RGB and target.id == vs.RGBS:
        return rgb
    handed_on: dict[int, vs.VideoFrame] = {}
    """From `convert` to `receive`: a second request for a restored frame might run the network again."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Colour:
    """What a conversion from RGB is given."""

    matrix: int
    range: int
    """0 limited, 1 full."""
    chroma_location: int


def _colour_of_result(
    props: Mapping[str, object], n: int, source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int
) -> _Colour:
    """What frame `n` is to be, by the properties that `tag_colour` gave it; see `from_rgb`."""
    if target.color_family == vs.RGB and source.color_family != vs.RGB:
        return _Colour(matrix=int(vs.MATRIX_RGB), range=1, chroma_location=0)
    if source.color_family == vs.RGB and target.color_family != vs.RGB:
        primaries = _tag(props, "_Primaries", n, default=_UNSPECIFIED)
        return _Colour(matrix=guess_matrix(width, height, primaries), range=0, chroma_location=0)
    return _own_colour(source, props, n)


def _own_colour(source: vs.VideoFormat, props: vs.FrameProps, n: int) -> _Colour:
    """What frame `n` is, by its properties."""
    return _Colour(
        matrix=_tag(props, "_Matrix", n),
        range=_tag(props, "_Range", n),
        chroma_location=_tag(props, "_ChromaLocation", n) if _is_subsampled(source) else 0,
    )


class ColourPath(Protocol):
    """How the frames of a clip become RGB for the network, and what it restores becomes a clip again."""

    written: vs.VideoFormat
    """Format of the frames from `write`."""

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        """A clip from `tag_colour`, whose frames `read` takes."""
        ...

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        """RGB of frame `n`: (3, H, W), fp32, nominal range [0, 1], where the network computes or on the CPU.

        Raises:
            FormatError: It is not finite.
        """
        ...

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        """What is brought to the host of restored frame `n`, (3, H, W), whose source is given; asks for no value."""
        ...

    def is_finite(self, encoded: Tensor) -> bool:
        """Whether the frame was, now that what `encode` made is on the host."""
        ...

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        """A new frame of what `encode` made, with the properties of its source."""
        ...

    def finished(self, written: vs.VideoNode) -> vs.VideoNode:
        """The restored clip, of frames from `write`."""
        ...


def colour_path(
    source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int, transfers: Transfers | None
) -> ColourPath:
    """Where colours are converted: on the device if there are transfers to it and both formats are of integers.

    Args:
        source: Format of the clip.
        target: Format of the result.
        width: Of the result, pixels.
        height: Of the result, pixels.
        transfers: To the device of the network and back; None for the host. On a CPU zimg is the quicker one.
    """
    if transfers is None or vs.FLOAT in (source.sample_type, target.sample_type):
        return HostColour(source, target)
    return DeviceColour(source, target, width, height, transfers)


class HostColour:
    """zimg converts to RGBS and back, any format."""

    def __init__(self, source: vs.VideoFormat, target: vs.VideoFormat) -> None:
        self._source, self._target = source, target
        self.written = vs.core.get_video_format(vs.RGBS)

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        """See `ColourPath`."""
        return to_rgb(tagged)

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        """See `ColourPath`."""
        rgb = read_frame(frame)
        if not is_finite(rgb):
            raise FormatError(
                f"restore: finite samples are needed, got NaN or infinity in frame {n} of the clip; mend the source"
            )
        return rgb

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        """See `ColourPath`."""
        return rgb

    def is_finite(self, encoded: Tensor) -> bool:
        """See `ColourPath`."""
        return is_finite(encoded)

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        """See `ColourPath`; the colour that the properties tell is still that of the source."""
        frame = write_frame(encoded)
        frame.props.update(source.props)
        return frame

    def finished(self, written: vs.VideoNode) -> vs.VideoNode:
        """See `ColourPath`."""
        return from_rgb(written, self._source, self._target)


class DeviceColour:
    """Integer planes to the device and back; the same code values as by `HostColour`, give or take one.

    Args:
        source: Format of the clip, integer.
        target: Format of the result, integer.
        width: Of the result, pixels.
        height: Of the result, pixels.
        transfers: To the device and back.
    """

    def __init__(
        self, source: vs.VideoFormat, target: vs.VideoFormat, width: int, height: int, transfers: Transfers
    ) -> None:
        self._source, self._width, self._height, self._transfers = source, width, height, transfers
        self.written = target

    def readable(self, tagged: vs.VideoNode) -> vs.VideoNode:
        """See `ColourPath`."""
        return tagged

    def read(self, frame: vs.VideoFrame, n: int) -> Tensor:
        """See `ColourPath`; integers are finite."""
        coding = _coding(self._source, _own_colour(self._source, frame.props, n))
        packed = self._transfers.buffer(coding.size(frame.height, frame.width), coding.dtype)
        for plane, copied in enumerate(coding.planes(packed, frame.height, frame.width)):
            np.copyto(copied.numpy(), np.asarray(frame[plane]))
        return coding.decode(self._transfers.upload(packed), frame.height, frame.width)

    def encode(self, rgb: Tensor, source: vs.VideoFrame, n: int) -> Tensor:
        """See `ColourPath`."""
        return _coding(self.written, self._colour(source, n)).encode(rgb)

    def is_finite(self, encoded: Tensor) -> bool:
        """See `ColourPath`."""
        return bool(encoded[-1].item())

    def write(self, encoded: Tensor, source: vs.VideoFrame, n: int) -> vs.VideoFrame:
        """See `ColourPath`."""
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
        """See `ColourPath`."""
        return written

    def _colour(self, source: vs.VideoFrame, n: int) -> _Colour:
        return _colour_of_result(source.props, n, self._source, self.written, self._width, self._height)


_FAMILIES: dict[int, Literal["rgb", "yuv", "gray"]] = {vs.RGB: "rgb", vs.YUV: "yuv", vs.GRAY: "gray"}


def _coding(video_format: vs.VideoFormat, colour: _Colour) -> Coding:
    """What the code values of an integer format mean."""
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
    if named in MATRICES or (named != _UNSPECIFIED and clip.format.color_family == vs.YUV):
        matrix = _tag(props, "_Matrix", n, allowed=MATRICES)
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
    """Whether `rgb`, on the CPU, is free of NaN and infinity. By numpy, because callbacks ask: see `Worker`."""
    return bool(np.isfinite(rgb.numpy()).all())


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
