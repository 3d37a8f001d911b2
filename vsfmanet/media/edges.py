"""Edges of the picture: those that its container hides, and the odd column and row that VapourSynth has no room for.

A clip with subsampled chroma has an even size. BestSource cuts an odd one down; here it is padded instead. What does
not belong to the picture is cut off after the restoration, when the edges are enlarged too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import av
import numpy as np
import vapoursynth as vs
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vsfmanet.errors import FormatError
from vsfmanet.media.decode import UPRIGHT, open_container
from vsfmanet.media.source import Source
from vsfmanet.media.thumbnails import Planes, frame_planes, is_plain

KEPT_FRAMES, KEPT_BYTES = 32, 1 << 28
"""Decoded frames that are kept for requests that come out of order, and their bytes at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """Pixels at the sides of a clip that do not belong to the picture."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return any((self.left, self.right, self.top, self.bottom))

    def __add__(self, other: Edges) -> Edges:
        return Edges(
            left=self.left + other.left,
            right=self.right + other.right,
            top=self.top + other.top,
            bottom=self.bottom + other.bottom,
        )

    def __sub__(self, other: Edges) -> Edges:
        return self + other.times(-1)

    def times(self, scale: int) -> Edges:
        """The edges of a clip that is enlarged."""
        return Edges(left=scale * self.left, right=scale * self.right, top=scale * self.top, bottom=scale * self.bottom)

    def even(self, video_format: vs.VideoFormat) -> Edges:
        """The edges, or as much of them as can be cut off a clip whose chroma is subsampled."""
        across, down = -1 << video_format.subsampling_w, -1 << video_format.subsampling_h
        return Edges(left=self.left & across, right=self.right & across, top=self.top & down, bottom=self.bottom & down)

    def inside(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what they leave of a clip."""
        return width - self.left - self.right, height - self.top - self.bottom

    def cut_off(self, node: vs.VideoNode) -> vs.VideoNode:
        """A clip without them."""
        return node.std.Crop(self.left, self.right, self.top, self.bottom) if self else node


def hidden(source: Source) -> Edges:
    """Edges that the container hides, where they are in the upright picture."""
    left, right, top, bottom = source.crop
    a, b, c, d = source.turn  # x of the upright picture is a x + c y of the stored one, and y is b x + d y
    names = {(-1, 0): "left", (1, 0): "right", (0, -1): "top", (0, 1): "bottom"}
    sides = {names[-a, -b]: left, names[a, b]: right, names[-c, -d]: top, names[c, d]: bottom}
    return Edges(**sides)


def padded(source: Source, node: vs.VideoNode, count: int) -> tuple[vs.VideoNode, Edges]:
    """Bring back the last column and row of an odd size, and repeat them up to an even one.

    Args:
        source: Source of the clip.
        node: BestSource's clip.
        count: Number of frames that FFmpeg decodes.

    Returns:
        The clip, and what was added to the picture. BestSource's own clip where the size is even, and where the frames
        of the two decoders cannot be paired.
    """
    width, height = source.size
    across, down = 1 << node.format.subsampling_w, 1 << node.format.subsampling_h
    added = Edges(right=-width % across, bottom=-height % down)
    cut_down = (width - width % across, height - height % down)
    if not added or source.turn != UPRIGHT or count != node.num_frames or (node.width, node.height) != cut_down:
        return node, Edges()
    reader = _Reader(source)
    blank = vs.core.std.BlankClip(node, width=width + added.right, height=height + added.bottom, keep=True)

    def complete(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame, planes = f[0].copy(), reader.planes(n)
        for place, plane in enumerate(planes):  # RGB, whose planes have another order, is never subsampled
            target, known = np.asarray(frame[place]), np.asarray(f[1][place])
            if not np.array_equal(plane[: known.shape[0], : known.shape[1]], known):
                raise FormatError(
                    f"{source.path}: both decoders must show the same in frame {n}, but BestSource shows something "
                    "else than FFmpeg; convert the file to 4:4:4 first"
                )
            missing = (0, target.shape[0] - plane.shape[0]), (0, target.shape[1] - plane.shape[1])
            np.copyto(target, np.pad(plane, missing, "edge"))
        return frame

    return blank.std.ModifyFrame([blank, node], complete).std.CopyFrameProps(node), added


class _Reader:
    """The frames of a track by their number, decoded by FFmpeg. Fast for requests in order.

    Args:
        source: A file whose picture is not turned.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._left: Iterator[VideoFrame] = iter(())
        self._kept: deque[VideoFrame] = deque()
        self._next = 0
        """Number of the next frame to decode."""

    def planes(self, n: int) -> Planes:
        """The planes of a frame, in FFmpeg's order.

        Raises:
            FormatError: It cannot be decoded any more, or has no planes.
        """
        with self._lock:
            if n < self._next - len(self._kept) or not self._next:
                self._left, self._next = self._decoded(), 0
                self._kept.clear()
            while self._next <= n:
                frame = next(self._left, None)
                if frame is None or not is_plain(frame.format):
                    raise FormatError(
                        f"{self._source.path}: frame {n} cannot be decoded; convert the file to 4:4:4 first"
                    )
                self._next += 1
                self._kept.append(frame)
                size = sum(plane.buffer_size for plane in frame.planes)
                while len(self._kept) > max(1, min(KEPT_FRAMES, KEPT_BYTES // size)):
                    self._kept.popleft()
            return frame_planes(self._kept[n - self._next])

    def _decoded(self) -> Iterator[VideoFrame]:
        """All frames, as `decode.decode` yields them; in one thread, which is always the same."""
        with open_container(self._source.path) as container:
            track = container.streams[self._source.video.index]
            assert isinstance(track, VideoStream)
            track.thread_type = "NONE"
            for packet in container.demux(track):
                if packet.size or packet.pts is None:
                    with suppress(av.FFmpegError, ValueError):
                        yield from packet.decode()
