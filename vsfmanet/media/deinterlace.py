"""Deinterlacing with FFmpeg's filter bwdif.

bwdif gets each frame together with its two neighbours, so that a result depends on those three frames alone, in any
order of requests. Number and times of the frames are kept: of the two moments in an interlaced frame, the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import vapoursynth as vs
from av.filter import Graph
from av.video.frame import VideoFrame

from vsfmanet.errors import FormatError
from vsfmanet.media.clip import pixel_format

PARITY = {1: "bff", 2: "tff"}
"""bwdif's name of the field order, by the property `_FieldBased`. Frames with 0 or without it are progressive."""


def deinterlaced(node: vs.VideoNode) -> vs.VideoNode:
    """Deinterlace the interlaced frames of a clip; progressive ones stay as they are.

    Raises:
        FormatError: bwdif does not take the clip's format.
    """
    name = pixel_format(node.format)
    order = (1, 2, 0) if node.format.color_family == vs.RGB else tuple(range(node.format.num_planes))
    blank = vs.core.std.BlankClip(node, length=1, keep=True).get_frame(0)
    if _whole([_picture(blank, name, order)] * 2, PARITY[2]).format.name != name:
        raise FormatError(f"--deinterlace takes most formats, but not {node.format.name}; deinterlace it first")

    def make_whole(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        parity = PARITY.get(int(f[1].props.get("_FieldBased", 0)))
        if parity is None:
            return f[1]
        made = _whole([_picture(each, name, order) for each in (f if n > 0 else f[1:])], parity)
        frame = f[1].copy()
        for place, plane in zip(order, made.planes, strict=True):
            target = np.asarray(frame[place])
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: target.shape[0]]
            np.copyto(target, rows[:, : target.shape[1] * target.itemsize].copy().view(target.dtype))
        frame.props["_FieldBased"] = 0
        return frame

    last = node.num_frames - 1
    before = node.std.DuplicateFrames([0])[: node.num_frames]
    after = node.std.DuplicateFrames([last])[1:]
    return node.std.ModifyFrame([before, node, after], make_whole)


def _picture(frame: vs.VideoFrame, name: str, order: Sequence[int]) -> VideoFrame:
    """Copy a VapourSynth frame to an FFmpeg frame."""
    picture = VideoFrame(frame.width, frame.height, name)
    for place, plane in zip(order, picture.planes, strict=True):
        source = np.asarray(frame[place])
        padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        rows = np.ascontiguousarray(source).view(np.uint8)
        padded[: rows.shape[0], : rows.shape[1]] = rows
        plane.update(padded.tobytes())
    return picture


def _whole(pictures: Sequence[VideoFrame], parity: str) -> VideoFrame:
    """Deinterlace the last but one of two or three frames."""
    first = pictures[0]
    graph = Graph()
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=Fraction(1, len(pictures))
    )
    filtered = graph.add("bwdif", f"mode=send_frame:parity={parity}:deint=all")
    sink = graph.add("buffersink")
    source.link_to(filtered)
    filtered.link_to(sink)
    graph.configure()
    made = []
    for number, picture in enumerate(pictures):
        picture.pts = number
        graph.push(picture)
        try:
            made.append(graph.pull())
        except (BlockingIOError, av.FFmpegError):  # it looks one picture ahead
            continue
    frame = made[-1]
    assert isinstance(frame, VideoFrame)
    return frame
