"""Small helpers for VapourSynth nodes."""

from __future__ import annotations

import vapoursynth as vs


def shifted(clip: vs.VideoNode, offset: int) -> vs.VideoNode:
    """Shift a clip: frame n of the result is frame n + `offset`, or the nearest that exists."""
    if offset == 0:
        return clip
    if offset < 0:
        return clip.std.DuplicateFrames([0] * -offset)[: clip.num_frames]
    return clip.std.DuplicateFrames([clip.num_frames - 1] * offset)[offset:]


def keep_frames(node: vs.VideoNode, count: int) -> vs.VideoNode:
    """Let a node cache its last `count` frames, so that none is made twice; returns the node."""
    node.std.SetVideoCache(mode=1, fixedsize=1, maxsize=count)
    return node
