"""Motion from each frame to the next, for the estimate of exposures and for skipping."""

from __future__ import annotations

import weakref

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet.clips.nodes import keep_frames, shifted
from vsfmanet.clips.planes import read_clamped
from vsfmanet.clips.scenes import starts_scene
from vsfmanet.devices import Worker
from vsfmanet.ops.matching import match_frames
from vsfmanet.settings import SMALLEST_SIDE

MAX_WIDTH = 960
"""Wider frames are reduced to this width before their motion is measured."""

_IS_MEASURED = "Measured"


class Motion:
    """Optical flow of a clip, frame by frame, on frames reduced to at most `MAX_WIDTH`.

    Args:
        marked: Clip from `mark_scenes`.
        worker: Device on which motion is measured; closed when the nodes are released.
        kept: Measured frames to cache.
    """

    def __init__(self, marked: vs.VideoNode, worker: Worker, *, kept: int) -> None:
        self.worker = worker
        reduction = max(1.0, marked.width / MAX_WIDTH)
        width, height = (max(SMALLEST_SIDE, round(side / reduction)) for side in (marked.width, marked.height))
        self.reduced = keep_frames(marked.resize.Bicubic(width, height, format=vs.RGBS), 4)
        """The reduced frames, RGBS."""
        self.dot = self.reduced.std.BlankClip(width=1, height=1, format=vs.GRAY8, keep=True)
        """Empty frames, as carriers of properties."""

        def measure(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
            frame = f[0].copy()
            is_measured = n + 1 < marked.num_frames and not starts_scene(f[2])
            frame.props[_IS_MEASURED] = int(is_measured)
            if is_measured:
                own, other = (read_clamped(one, k).to(worker.device) for one, k in ((f[1], n), (f[2], n + 1)))
                both = worker.run(lambda: _flow(own, other))
                np.copyto(np.asarray(frame[0]), both.reshape(4 * height, width).numpy())
            return frame

        planes = self.reduced.std.BlankClip(format=vs.GRAYS, height=4 * height, keep=True)
        measured = planes.std.ModifyFrame([planes, self.reduced, shifted(self.reduced, 1)], measure)
        self.flows = keep_frames(measured, kept)
        """Frame n holds what `read_flow` reads."""
        weakref.finalize(measure, worker.close)


def read_flow(frame: vs.VideoFrame) -> Tensor | None:
    """Copy the flow out of frame n of `Motion.flows`.

    Returns:
        (2, 2, H, W) in pixels of the reduced frames: from frame n to the next, and from there back. None if frame n is
        the last of its scene.
    """
    if not frame.props[_IS_MEASURED]:
        return None
    plane = torch.from_numpy(np.array(frame[0]))
    return plane.view(2, 2, plane.shape[0] // 4, plane.shape[1])


@torch.inference_mode()
def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Measure the flow between two frames (1, 3, H, W), there and back: (2, 2, H, W) on the CPU."""
    return match_frames(torch.cat([first, second]), torch.cat([second, first])).cpu()
