"""Restored frames blurred again: to one shutter for all, and to compare them with their source."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
import vapoursynth as vs
from torch import Tensor

from vsfmanet.clips.colour import luma_of
from vsfmanet.clips.exposure import EXPOSURE
from vsfmanet.clips.motion import Motion, read_flow
from vsfmanet.clips.nodes import shifted
from vsfmanet.ops.reblur import blur_along

SHUTTER = "FMANetShutter"
"""On every frame of a clip with one shutter: the shutter, in (0, 1]."""

ERROR = "FMANetReblurError"
"""On every frame that was compared with its source: how far it is from it when blurred again, as a part of the nominal
range of luma: the mean of the worst 5 % of the picture."""

_CANDIDATES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Exposures of which the best counts where a frame's own is not known."""

_AROUND = 5
"""Pixels across over which differences are averaged, so that noise is none."""
_WORST = 0.05


def with_shutter(restored: vs.VideoNode, motion: Motion, shutter: float) -> vs.VideoNode:
    """Blur each frame along its motion as a shutter does that is open for one part of the frame interval.

    Args:
        restored: Clip of any size and format.
        motion: Of its source.
        shutter: Open-shutter time over frame interval, in (0, 1].

    Returns:
        The clip; its frames carry `SHUTTER`. A frame alone in its scene keeps its pixels.
    """

    def blur(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        frame.props[SHUTTER] = shutter
        flow = motion_of(n, f[1], f[2])
        if flow is None:
            return frame
        for number in range(frame.format.num_planes):
            plane = np.asarray(f[0][number])
            kind, pixels = plane.dtype, torch.from_numpy(plane.astype(np.float32))
            written = motion.worker.run(partial(_blurred, pixels.to(motion.worker.device), flow, shutter)).numpy()
            if kind.kind == "u":
                written = np.rint(written)  # means lie within the range of what they are means of
            np.copyto(np.asarray(frame[number]), written.astype(kind))
        return frame

    return restored.std.ModifyFrame([restored, shifted(motion.flows, -1), motion.flows], blur)


def with_errors(restored: vs.VideoNode, source: vs.VideoNode, motion: Motion) -> vs.VideoNode:
    """Write `ERROR` to the frames of a restored clip.

    Args:
        restored: Clip of any size and format, whose frames carry their exposures where they are known.
        source: The clip from which it was restored.
        motion: Of the source.
    """
    size = motion.reduced.width, motion.reduced.height

    def compare(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        flow = motion_of(n, f[3], f[4])
        before, after = (torch.from_numpy(np.array(one[0])) for one in f[1:3])
        known = frame.props.get(EXPOSURE)
        exposures = _CANDIDATES if known is None else (float(known),)
        frame.props[ERROR] = motion.worker.run(
            lambda: reblur_error(
                before.to(motion.worker.device), after.to(motion.worker.device), flow, exposures=exposures
            )
        )
        return frame

    clips = [restored, luma_of(source, *size), luma_of(restored, *size), shifted(motion.flows, -1), motion.flows]
    return restored.std.ModifyFrame(clips, compare)


def motion_of(n: int, previous: vs.VideoFrame, own: vs.VideoFrame) -> Tensor | None:
    """Motion through frame `n`, from the frame before it to the one after.

    Args:
        n: Number of the frame.
        previous: Frame n - 1 of `Motion.flows`.
        own: Frame n of it.

    Returns:
        (2, H, W) in pixels of the reduced frames a frame interval; None for a frame alone in its scene.
    """
    after = read_flow(own)
    before = read_flow(previous) if n else None
    ways = ([] if after is None else [after[0]]) + ([] if before is None else [-before[1]])
    return torch.stack(ways).mean(dim=0) if ways else None


@torch.inference_mode()
def reblur_error(before: Tensor, after: Tensor, flow: Tensor | None, *, exposures: tuple[float, ...]) -> float:
    """Distance of a restored frame, blurred again, from its source.

    Args:
        before: (H, W) luma of the source, nominal range [0, 1].
        after: (H, W) luma of the restored frame in the same size.
        flow: (2, H, W), motion through the frame in pixels a frame interval; None for none.
        exposures: In [0, 1]; the one that fits best counts.

    Returns:
        Mean of the worst 5 % of the picture, in the unit of `before`; differences are averaged over 5x5 pixels. Pixels
        whose path leaves the picture do not count.
    """
    errors = []
    for exposure in exposures if flow is not None else (0.0,):
        again, counts = after[None, None], torch.ones_like(after[None, None])
        if flow is not None:
            motion = flow[None].to(after.device)
            again, counts = blur_along(again, motion, exposure), _within(motion, exposure)
        difference = F.avg_pool2d(before[None, None] - again, _AROUND, stride=1).abs()
        known = difference[F.avg_pool2d(counts, _AROUND, stride=1) > 1 - 1e-4]
        worst = known.topk(max(1, int(_WORST * known.numel()))).values if known.numel() else known
        errors.append(float(worst.mean()) if known.numel() else 0.0)
    return min(errors)


def _within(motion: Tensor, exposure: float) -> Tensor:
    """1 where the path through a pixel stays inside the picture, else 0: (1, 1, H, W)."""
    _, _, height, width = motion.shape
    reach = motion.abs() * (exposure / 2)
    columns = torch.arange(width, device=motion.device)
    rows = torch.arange(height, device=motion.device)[:, None]
    across = torch.minimum(columns, width - 1 - columns) >= reach[:, 0]
    down = torch.minimum(rows, height - 1 - rows) >= reach[:, 1]
    return (across & down).float()[:, None]


@torch.inference_mode()
def _blurred(plane: Tensor, flow: Tensor, shutter: float) -> Tensor:
    """Blur a plane (H, W), with a flow (2, h, w) in its own pixels, whatever its size; on the CPU."""
    height, width = plane.shape
    ratio = flow.new_tensor([width / flow.shape[2], height / flow.shape[1]]).view(2, 1, 1)
    motion = F.interpolate(flow[None], (height, width), mode="bilinear", align_corners=False) * ratio
    return blur_along(plane[None, None], motion.to(plane.device), shutter)[0, 0].cpu()
