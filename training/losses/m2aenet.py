"""The losses of M2AENet."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pool import Batch
from training.losses.frames import decibel_loss, ssim_map, warp_frames
from training.options import FLAT
from vsfmanet.networks.m2aenet import M2AENet, M2AENetOutput, dilated, path

BLURRED_FROM = 1.0
"""Extent in pixels from which a pixel belongs to the true mask."""

MASK_SLOPE = 4.0
"""How steeply the mask rises with the extent where it is trained; per pixel."""

REBLUR_STEPS = 3
"""Instants on each side of the middle of the exposure of which a reblurred frame is made."""

STRAIGHTNESS = 2e-3
"""Weight of the total variation of the paths' ends."""

SHORTNESS = 2e-5
"""Weight of their mean square, pixels."""


@FLAT
@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the terms."""

    path_weight: float = 0.01
    """Weight of the distance of the paths' ends from truth, per pixel."""
    reblur_weight: float = 0.1
    """Weight of the reblurring."""
    ssim_weight: float = 0.05
    """Weight of 1 - SSIM."""
    spectrum_weight: float = 0.1
    """Weight of the absolute difference of spectra, beside that of values."""
    decibels: float | None = None
    """Minimise the logarithm of the squared error instead of the differences of values and spectra; errors beyond this
    PSNR hardly count."""
    mask_weight: float = 0.0
    """Weight of the mask's own loss; above 0, the blur analyser is trained too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frames:
    """N frames that have both neighbours."""

    blurred: Tensor
    """(N, 3, H, W) in [0, 1], as the network is given them."""
    clean: Tensor
    """(N, 3, H, W), blurred only."""
    sharp: Tensor
    """(N, 3, H, W)."""
    ends: Tensor
    """(N, 4, H, W) pixels: where things were when the shutter opened, and when it closed."""


def known_frames(batch: Batch) -> Frames:
    """The frames of a batch whose motion is known on both sides, with the ends of their paths.

    The parabola through the places in both neighbours and the pixel itself gives velocity and acceleration: exact where
    the acceleration is constant.
    """
    half = batch.exposure[:, 1:-1, None, None, None] / 2
    after, before = batch.flow[:, 1:-1].unbind(dim=2)
    velocity, acceleration = (after - before) / 2, after + before
    way, bend = half * velocity, half.square() * acceleration / 2
    blurred, clean, sharp, ends = (
        frames.flatten(0, 1)
        for frames in (
            batch.lr[:, 1:-1],
            batch.clean[:, 1:-1],
            batch.hr[:, 1:-1],
            torch.cat([bend - way, bend + way], dim=2),
        )
    )
    return Frames(blurred=blurred, clean=clean, sharp=sharp, ends=ends)


def true_mask(ends: Tensor) -> Tensor:
    """Return the mask (N, 1, H, W), 0 or 1, of pixels to restore, from paths' ends (N, 4, H, W) in pixels."""
    extent = ends[:, :2].norm(dim=1, keepdim=True) + ends[:, 2:].norm(dim=1, keepdim=True)
    return dilated((extent >= BLURRED_FROM).float())


def path_loss(offsets: Tensor, ends: Tensor) -> Tensor:
    """Mean distance in pixels of the paths' ends from truth, (N, 4, H, W) each, whichever end is taken for the start.

    Which of the two is which cannot be seen in one frame, so that at each pixel the better of both counts.
    """
    turned = torch.cat([ends[:, 2:], ends[:, :2]], dim=1)
    as_they_are, swapped = ((offsets - truth).abs().mean(dim=1) for truth in (ends, turned))
    return torch.minimum(as_they_are, swapped).mean()


def reblurred(sharp: Tensor, offsets: Tensor) -> Tensor:
    """Mean of sharp frames (N, 3, H, W) moved along paths (N, 4, H, W) in pixels.

    What a pixel shows at some instant is where the path to that instant leads back to: frames are sampled against the
    path. For steady motion alone, both signs blur alike.

    The instants are the middles of equal parts of the exposure. With the ends themselves among them, as in Motion-ETR,
    seven would blur by a seventh too much.
    """
    instants = range(-REBLUR_STEPS, REBLUR_STEPS + 1)
    flow = torch.cat([-path(offsets, k / (REBLUR_STEPS + 0.5)) for k in instants])
    moved = warp_frames(sharp.repeat(len(instants), 1, 1, 1), flow)
    return moved.unflatten(0, (len(instants), -1)).mean(dim=0)


def roughness(offsets: Tensor) -> Tensor:
    """Weighted penalty that keeps paths (N, 4, H, W) smooth and short where nothing can be seen."""
    across, down = offsets.diff(dim=3).abs().mean(), offsets.diff(dim=2).abs().mean()
    return STRAIGHTNESS * (across + down) + SHORTNESS * offsets.square().mean()


def restoration_losses(output: Tensor, truth: Tensor, mask: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Difference of frames (N, 3, H, W) inside a mask (N, 1, H, W), by values, spectrum and structure, weighted."""
    area = 3 * mask.sum().clamp_min(1)
    difference = mask * (output - truth)
    spectrum = torch.fft.fft2(difference, norm="ortho").abs()
    unlike = mask * (1 - ssim_map(output, truth))
    absolute = (difference.abs() + weights.spectrum_weight * spectrum).sum() / area
    return {
        "restoration": absolute
        if weights.decibels is None
        else decibel_loss(output, truth, mask, most=weights.decibels),
        "ssim": weights.ssim_weight * unlike.sum() / area,
    }


def mask_loss(logit: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy and Dice of a mask's logit and a true mask, (N, 1, H, W) each."""
    probability = logit.sigmoid()
    overlap = (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return F.binary_cross_entropy_with_logits(logit, truth) + 1 - overlap


def losses(
    network: M2AENet, batch: Batch, step: int, *, weights: Weights, motion_steps: int, true_mask_steps: int
) -> dict[str, Tensor]:
    """Compute all terms of a step, weighted; scalars by name.

    Args:
        network: In training mode.
        batch: Clips of three frames or more, of scale 1.
        step: From 0.
        weights: Of the terms.
        motion_steps: Steps in which the motion analyser learns alone.
        true_mask_steps: Steps in which the true mask is given.
    """
    known = known_frames(batch)
    truth = true_mask(known.ends)
    values: dict[str, Tensor] = {}
    extent = network.blur.extent(known.blurred)
    logit = MASK_SLOPE * (dilated(extent) - network.config.on_above)
    mask = (logit > 0).float()
    if weights.mask_weight:
        values["mask"] = weights.mask_weight * mask_loss(logit, truth)
        soft = logit.sigmoid()
        mask = mask + soft - soft.detach()  # hard where it is used, soft where it is learnt
    if not network.config.masked:
        mask = torch.ones_like(truth)
    elif step < true_mask_steps:
        mask = truth

    paths_alone = step < motion_steps and network.motion is not None
    if paths_alone:
        result = M2AENetOutput(frames=known.sharp, offsets=network.paths(known.blurred, extent))
    else:
        result = network.restore(known.blurred, extent, mask)
    with torch.autocast(known.blurred.device.type, enabled=False):
        if not paths_alone:
            values |= restoration_losses(result.frames, known.sharp, mask.detach(), weights)
        if result.offsets is not None:
            sharp = known.sharp if step < true_mask_steps else (known.sharp + result.frames) / 2
            again = reblurred(sharp, result.offsets)
            unlike = 0.1 * (1 - ssim_map(again, known.clean).mean())
            values["path"] = weights.path_weight * path_loss(result.offsets, known.ends)
            values["reblur"] = weights.reblur_weight * ((again - known.clean).abs().mean() + unlike)
            values["rough"] = roughness(result.offsets)
    return values
