"""Exposures as `restore(exposure="estimate")` estimates them, of whole clips."""

import torch
from torch import Tensor

from vsfmanet.exposures.estimate import REACH, Estimate, Step, estimate_from_profile, profile, settle
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.ops.matching import match_frames


@torch.inference_mode()
def clip_profiles(clip: Tensor) -> list[Tensor | None]:
    """Compute the profile of every frame of one scene (T, 3, H, W) in [0, 1], as the filter does."""
    there, back = match_frames(clip[:-1], clip[1:]), match_frames(clip[1:], clip[:-1])
    steps = [Step(there=there[t : t + 1], back=back[t : t + 1]) for t in range(len(clip) - 1)]
    turned = [Step(there=step.back, back=step.there) for step in steps]
    return [profile(frame[None], steps[t : t + 2], turned[max(0, t - 2) : t][::-1]) for t, frame in enumerate(clip)]


@torch.inference_mode()
def clip_estimates(estimator: ExposureEstimator, clip: Tensor) -> list[Estimate]:
    """Estimate the exposure of every frame of one scene (T, 3, H, W) in [0, 1], each by itself."""
    return [estimate_from_profile(described, estimator) for described in clip_profiles(clip)]


def settled(estimates: list[Estimate], t: int) -> Estimate | None:
    """Return the estimate that the filter uses for frame `t` of a scene; None for none."""
    padding: list[Estimate | None] = [None] * REACH
    return settle([*padding, *estimates, *padding][t : t + 2 * REACH + 1], REACH)
