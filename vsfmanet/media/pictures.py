"""Still pictures for pages: the frame at some time, the part with most detail, and JPEG and PNG files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vsfmanet.media.decode import main_track, open_container

Picture = NDArray[np.uint8]
"""(H, W, 3), RGB."""

JPEG_START = b"\xff\xd8"
"""First bytes of a JPEG; they occur nowhere else in it (ITU-T T.81, B.1.1.2)."""


def length(path: Path) -> Fraction:
    """Length of a film in seconds by its header; some containers count the sound too."""
    with open_container(path) as container:
        return Fraction(container.duration or 0, 1_000_000)


def frame_at(path: Path, time: Fraction) -> Picture:
    """The frame that is shown some seconds after the first one, or the last one; upright.

    Raises:
        ValueError: The file has no video track.
        FFmpegError: It cannot be decoded.
        StopIteration: There is no frame.
    """
    with open_container(path) as container:
        track = main_track(container)
        if track is None:
            raise ValueError("no video track")
        place = (track.start_time or 0) + round(time / Fraction(track.time_base.numerator, track.time_base.denominator))
        container.seek(place, stream=track)
        frame = next(container.decode(track))
        for later in container.decode(track):
            if frame.pts is None or later.pts is None or later.pts > place:
                break
            frame = later
        return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).astype(np.uint8)


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture with a width and height of `size`, by bicubic interpolation."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(*size, interpolation="BICUBIC").to_ndarray().astype(np.uint8)


def liveliest(picture: Picture, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the part where neighbouring pixels differ most, out of parts that overlap by a half.

    Args:
        picture: The picture.
        size: Width and height of the part, if the picture is not smaller.
    """
    height, width = min(picture.shape[0], size[1]), min(picture.shape[1], size[0])
    green = picture[..., 1].astype(np.int16)
    detail = np.abs(np.diff(green, axis=0))[:, :-1] + np.abs(np.diff(green, axis=1))[:-1]
    places = [
        (slice(top, top + height), slice(left, left + width))
        for top in _steps(picture.shape[0], height)
        for left in _steps(picture.shape[1], width)
    ]
    return max(places, key=lambda place: int(detail[place].sum()))


def _steps(whole: int, part: int) -> list[int]:
    """Where parts begin along one side: each half a part after the last one, and one at the end."""
    return sorted({*range(0, whole - part + 1, max(1, part // 2)), whole - part})


def jpeg(picture: Picture) -> bytes:
    """A picture as a JPEG with chroma of full size."""
    return _coded(picture, "mjpeg", "yuvj444p", {"qmin": "2", "qmax": "2"})


def png(picture: Picture) -> bytes:
    """A picture as a PNG."""
    return _coded(picture, "png", "rgb24", {})


def _coded(picture: Picture, codec: str, pixel_format: str, options: dict[str, str]) -> bytes:
    """A picture, coded by one of FFmpeg's codecs."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = picture.shape[1], picture.shape[0], pixel_format
    encoder.time_base = Fraction(1, 25)
    encoder.options = options
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def split_jpegs(data: bytes) -> list[bytes]:
    """The JPEGs of a file that holds one after the other."""
    return [JPEG_START + part for part in data.split(JPEG_START)[1:]]
