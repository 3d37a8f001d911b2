"""Exposure estimated from blur and motion: how far moving things are smeared along their way.

While the shutter is open, a point that moves by D pixels per frame is smeared over L = exposure * D pixels: it leaves a
slope where the smear begins and the opposite one where it ends. So the autocorrelation of slopes along the motion has a
dip at the distance L. Measured in steps from frame to frame, that distance is the exposure, at any speed and on any
picture. A frame in which nothing moves, or nothing can be followed, shows no exposure; it gets that of the nearest
frame that does.

Source: Yitzhaky and Kopeika (Graphical Models and Image Processing 59, 1997) measure the length of a blur by the
autocorrelation of slopes along its direction. Ours: measuring it in steps between frames, and estimating from the whole
curve by a small network fitted to rendered scenes. The blur extent that `BlurAnalyser` measures in one frame, over the
motion (after Korcak and Matas, arXiv 2303.10247), was tried first, and its error was several times as large: a single
frame does not distinguish a fast motion at a short exposure from a slow one at a long exposure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.networks.exposure_estimator import ExposureEstimator, confidence
from vsfmanet.ops.warp import flow_warp

CONFIDENT = 0.5
"""Confidence from which an estimate counts."""

SMOOTHED = 2
"""Frames before and after a frame whose estimates are averaged with its own."""

HELD = 8
"""Frames before and after a frame to which its estimate extends if they show none themselves."""

REACH = HELD + SMOOTHED
"""Frames before and after a frame whose estimates `settle` uses."""

_MIN_SPEED = 1.5  # pixels per frame; below, the flow's error is as large as the smear
_STEADY = 0.5  # largest change of the velocity from the step before to the step after, relative to it
_ENOUGH = 100, 0.02  # pixels, and part of the picture, that must be followed for an estimate
_FOLLOWED = 2500  # most pixels whose profiles are taken, evenly over those that can be followed
_PITCH = 0.05  # of a profile, in steps from frame to frame
_HALF = 16  # samples of a profile to each side of its pixel
_LAGS = tuple(range(2, 31, 2))  # distances in pitches at which slopes are compared: 0.1 ... 1.5 steps
_CONSISTENT = (0.5, 0.05)  # pixels, and part of the motion, by which there and back may miss the start
_LUMA = (0.299, 0.587, 0.114)

INPUTS = 2 * len(_LAGS) + 2
"""Length of a profile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The exposure that one frame shows."""

    value: float
    """Open-shutter time over frame interval, in (0, 1]."""
    confidence: float
    """Probability that the value is off by less than 0.1, in [0, 1]; 0 where nothing moves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The motion between two consecutive frames of a scene, on the way away from the frame to be estimated."""

    there: Tensor
    """(1, 2, H, W) pixels: flow away from the frame to be estimated."""
    back: Tensor
    """(1, 2, H, W) pixels: flow towards it."""


@torch.inference_mode()
def estimate_exposure(
    frame: Tensor, after: Sequence[Step], before: Sequence[Step], network: ExposureEstimator
) -> Estimate:
    """Estimate the exposure of one frame.

    Args:
        frame: (1, 3, H, W) RGB in [0, 1].
        after: Steps to the next frame and from there to the one after it, as far as the scene goes: none to two.
        before: Steps to the previous frame and to the one before it, likewise.
        network: Fitted network.

    Returns:
        The exposure and the confidence in it; an arbitrary value with confidence 0 where too little can be followed.
    """
    return estimate_from_profile(profile(frame, after, before), network)


def estimate_from_profile(described: Tensor | None, network: ExposureEstimator) -> Estimate:
    """Estimate the exposure from what `profile` returned; see `estimate_exposure`."""
    if described is None:
        return Estimate(value=1.0, confidence=0.0)
    value, log_error = network(described[None])
    return Estimate(value=float(value[0].clamp_min(0.02)), confidence=float(confidence(log_error)[0]))


def profile(frame: Tensor, after: Sequence[Step], before: Sequence[Step]) -> Tensor | None:
    """Compute the autocorrelation of slopes along the motion, and across it.

    Args:
        frame: (1, 3, H, W) RGB in [0, 1].
        after: As for `estimate_exposure`.
        before: As for `estimate_exposure`.

    Returns:
        (`INPUTS`,) autocorrelation of slopes along and across the motion at 0.1 to 1.5 steps, log ratio of their
        energies, and log of the median speed in pixels per frame; None without a neighbour on either side, or where too
        few pixels move steadily and can be followed.
    """
    if not after or not before:
        return None
    velocity, seen = _velocity(after, before)
    speed = _length(velocity)[:, 0]
    height, width = frame.shape[-2:]
    reach = _PITCH * _HALF * speed[0]
    x, y = torch.arange(width).expand(height, width), torch.arange(height)[:, None].expand(height, width)
    inside = (x >= reach) & (x <= width - 1 - reach) & (y >= reach) & (y <= height - 1 - reach)
    rows, columns = (seen[0, 0] & inside & (speed[0] > _MIN_SPEED)).nonzero(as_tuple=True)
    if len(rows) < max(_ENOUGH[0], _ENOUGH[1] * width * height):
        return None
    if len(rows) > _FOLLOWED:
        chosen = torch.linspace(0, len(rows) - 1, _FOLLOWED).long()
        rows, columns = rows[chosen], columns[chosen]
    along = velocity[0][:, rows, columns]  # (2, n)
    directions = torch.stack([along, torch.stack([-along[1], along[0]])])  # along and across, (2, 2, n)
    offsets = (torch.arange(-_HALF, _HALF + 1) * _PITCH).view(-1, 1, 1, 1)
    places = torch.stack([columns, rows]).float() + offsets * directions  # (samples, 2, 2, n)
    size = torch.tensor([width, height]).view(2, 1)
    grid = ((2 * places + 1) / size - 1).permute(0, 1, 3, 2).flatten(0, 1)[None]  # (1, samples * 2, n, 2)
    grey = (frame * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    samples = F.grid_sample(grey, grid, mode="bicubic", padding_mode="border", align_corners=False)
    slopes = samples.view(len(offsets), 2, -1).diff(dim=0)
    energy = slopes.square().mean(dim=0).sum(dim=0)
    weight = (energy + 1e-6).rsqrt()  # else the strongest edges would outweigh all others
    products = [(slopes[: len(slopes) - lag] * slopes[lag:]).mean(dim=0) for lag in (0, *_LAGS)]
    correlation = torch.stack([(product * weight).mean(dim=-1) for product in products])  # (1 + lags, 2)
    own = correlation[0].clamp_min(1e-9)
    return torch.cat(
        [
            (correlation[1:] / own).T.flatten(),
            (own[0] / own[1]).log()[None],
            speed[0][rows, columns].median().log()[None],
        ]
    )


def settle(estimates: Sequence[Estimate | None], own: int) -> Estimate | None:
    """Settle the exposure of one frame by the estimates around it.

    If the frame's own estimate is confident, this is the median of the confident ones up to `SMOOTHED` frames away,
    weighted by confidence. If not, it is that of the nearest frame whose estimate is, up to `HELD` frames away; of two
    equally near, the earlier.

    Args:
        estimates: Of consecutive frames; None for those outside the frame's scene. At least `REACH` to each side, as
            far as there are frames.
        own: Index of the frame in `estimates`.

    Returns:
        The exposure with the confidence of the frame's own estimate; None if no estimate near it is confident.
    """
    estimate = estimates[own]
    assert estimate is not None
    for distance in range(HELD + 1):
        for place in dict.fromkeys((own - distance, own + distance)):
            if _counts(estimates, place):
                around = range(place - SMOOTHED, place + SMOOTHED + 1)
                near = [one for k in around if _counts(estimates, k) and (one := estimates[k]) is not None]
                values = torch.tensor([one.value for one in near], dtype=torch.float64)
                weights = torch.tensor([one.confidence for one in near], dtype=torch.float64)
                return Estimate(value=_median(values, weights), confidence=estimate.confidence)
    return None


def _counts(estimates: Sequence[Estimate | None], place: int) -> bool:
    """Whether an index holds a confident estimate."""
    estimate = estimates[place] if 0 <= place < len(estimates) else None
    return estimate is not None and estimate.confidence >= CONFIDENT


def _velocity(after: Sequence[Step], before: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Compute the velocity at the frame's own instant, where motion is steady enough to leave a straight smear.

    The flow to one neighbour is the velocity half a frame away, and misses a change of direction within the frame. With
    two neighbours on each side, where they can be seen, the derivative is exact up to the fourth power of time.

    Args:
        after: One step or two.
        before: One step or two.

    Returns:
        Pixels per frame (1, 2, H, W), and a mask of the pixels where they hold (1, 1, H, W).
    """
    (next_1, sees_next_1), *further = _walk(after)
    (last_1, sees_last_1), *earlier = _walk(before)
    velocity = (next_1 - last_1) / 2
    if further and earlier:
        (next_2, sees_next_2), (last_2, sees_last_2) = further[0], earlier[0]
        by_four = (8 * (next_1 - last_1) - (next_2 - last_2)) / 12
        velocity = torch.where(sees_next_2 & sees_last_2, by_four, velocity)
    speed = _length(velocity)
    change = _length(next_1 + last_1)
    return velocity, sees_next_1 & sees_last_1 & (change < _STEADY * speed)


def _walk(steps: Sequence[Step]) -> list[tuple[Tensor, Tensor]]:
    """Displacement of each pixel after one step and after two, (1, 2, H, W), and a mask of those that were followed."""
    places = [(steps[0].there, _consistent(steps[0]))]
    for step in steps[1:2]:
        way, seen = places[0]
        further = way + flow_warp(step.there, way, padding="border")
        places.append((further, seen & (flow_warp(_consistent(step).float(), way) > 0.5)))
    return places


def _consistent(step: Step) -> Tensor:
    """Mask of the pixels whose way there and back ends near its start and inside the picture, (1, 1, H, W)."""
    height, width = step.there.shape[-2:]
    x = torch.arange(width) + step.there[:, :1]
    y = torch.arange(height)[:, None] + step.there[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    round_trip = step.there + flow_warp(step.back, step.there, padding="border")
    allowed = _CONSISTENT[0] + _CONSISTENT[1] * _length(step.there)
    return inside & (_length(round_trip) < allowed)


def _length(vectors: Tensor) -> Tensor:
    """Length of vectors (N, 2, H, W), as (N, 1, H, W); on a CPU a hundred times as fast as `vector_norm`."""
    return torch.hypot(vectors[:, :1], vectors[:, 1:])


def _median(values: Tensor, weights: Tensor) -> float:
    """Weighted median: the smallest value with half of the weight at or below it."""
    ordered, order = values.sort()
    share = weights[order].cumsum(0)
    return float(ordered[(share < share[-1] / 2).sum().clamp_max(len(ordered) - 1)])
