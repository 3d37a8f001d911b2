"""A small picture of a film before and after: where its middle frame has most detail, at the size of the output."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vsfmanet.media.demux import main_track, open_container

WIDTH, HEIGHT = 320, 180
"""Pixels of each half, at most."""

GAP = 4
"""White pixels between the halves."""


def before_and_after(source: Path, made: Path) -> bytes:
    """A JPEG of the source's picture, enlarged, beside that of the output; empty if one of them cannot be shown."""
    try:
        middle = min(_length(source), _length(made)) / 2
        after = _frame_at(made, middle)
        before = _frame_at(source, middle)
        size = after.shape[1], after.shape[0]
        place = _liveliest(after)
        halves = [np.ascontiguousarray(picture[place]) for picture in (_resized(before, size), after)]
        gap = np.full((halves[0].shape[0], GAP, 3), 255, np.uint8)
        return _jpeg(np.concatenate([halves[0], gap, halves[1]], axis=1))
    except (av.FFmpegError, OSError, ValueError, StopIteration):  # a report may do without
        return b""


def _length(path: Path) -> Fraction:
    """Of a film, seconds, as its header has it; some containers count the sound too."""
    with open_container(path) as container:
        return Fraction(container.duration or 0, 1_000_000)


def _frame_at(path: Path, time: Fraction) -> NDArray[np.uint8]:
    """The frame that is shown some seconds after the first one, or the last one: (H, W, 3) RGB, upright."""
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


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture with a width and height of `size`, by bicubic interpolation."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(*size, interpolation="BICUBIC").to_ndarray().astype(np.uint8)


def _liveliest(picture: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns of the part where neighbouring pixels differ most, out of parts that overlap by a half."""
    height, width = min(picture.shape[0], HEIGHT), min(picture.shape[1], WIDTH)
    green = picture[..., 1].astype(np.int16)
    detail = np.abs(np.diff(green, axis=0))[:, :-1] + np.abs(np.diff(green, axis=1))[:-1]
    places = [
        (slice(top, top + height), slice(left, left + width))
        for top in range(0, picture.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, picture.shape[1] - width + 1, max(1, width // 2))
    ]
    return max(places, key=lambda place: int(detail[place].sum()))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as a file; JPEG wants even sizes."""
    even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "3", "qmax": "3"}
    frame = VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
