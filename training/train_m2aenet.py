"""M2AENet: single frames deblurred where they are blurred.

    python -m training.train_m2aenet --pool runs/pool_x1 --preset fast --out runs/m2aenet
    python -m training.train_m2aenet --without-mask ...          # everything is restored
    python -m training.train_m2aenet --without-trajectories ...  # no motion analyser

The blur analyser is trained already and stays as it is, unless `--mask-weight` is above 0. First the motion analyser
learns alone; then it learns with the restorer, at first inside the true mask, later inside that of the blur analyser.
What is outside the mask comes back as it was and teaches nothing, so that sharp regions are left out by themselves.

Source: M2AENet (arXiv 2507.07708), whose abstract names the losses (reconstruction, reblurring, mask) and two steps.
Their forms are those of Motion-ETR and LBAG. Departures: scenes of known motion teach the paths directly too;
SSIM and spectrum weigh less, because a short run is judged by PSNR.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.deblurring import add_deblurring_arguments, train
from training.evaluate_blur import load
from training.loop import add_loop_arguments
from training.losses import decibel_loss, warp_frames
from training.scenes.pool import Batch
from vsfmanet.networks.m2aenet import PRESETS, M2AENet, M2AENetConfig, M2AENetOutput, dilated, path
from vsfmanet.networks.mmpnet import BlurAnalyser

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the losses need besides of network and batch."""

    motion_steps: int
    """Steps in which the motion analyser learns alone."""
    true_mask_steps: int
    """Steps in which the true mask is given."""
    path_weight: float
    """Of the distance of the paths' ends from truth, per pixel."""
    reblur_weight: float
    """Of the reblurring."""
    ssim_weight: float
    """Of 1 - SSIM."""
    spectrum_weight: float
    """Of the absolute difference of spectra, beside that of values."""
    decibels: float | None
    """`most` of the `decibel_loss` that takes the place of the differences of values and spectra; None for these."""
    mask_weight: float
    """Of the mask's own loss; above 0, the blur analyser is trained."""


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


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--preset", default="fast", choices=tuple(PRESETS), help="default: %(default)s")
    add("--analyser", type=Path, help="checkpoint of training.train_blur (the analyser that ships)")
    add("--without-mask", action="store_true", help="restore everything")
    add("--without-trajectories", action="store_true", help="leave out the motion analyser")
    add_loop_arguments(parser)
    add_deblurring_arguments(parser)
    add("--motion-part", type=float, default=0.1, help="first part of the run, paths alone (default: %(default)s)")
    add("--true-mask-part", type=float, default=0.3, help="first part of the run, true mask (default: %(default)s)")
    add("--path-weight", type=float, default=0.01, help="of the paths' ends, per pixel (default: %(default)s)")
    add("--reblur-weight", type=float, default=0.1, help="of the reblurring (default: %(default)s)")
    add("--ssim-weight", type=float, default=0.05, help="of 1 - SSIM (default: %(default)s)")
    add("--spectrum-weight", type=float, default=0.1, help="of the spectra's difference (default: %(default)s)")
    add("--mask-weight", type=float, default=0.0, help="of the mask's loss; above 0 its analyser learns (%(default)s)")
    parser.set_defaults(frames=3, crop=64, clips=4, learning_rate=1e-3, warmup=100, decay=0.5, max_norm=0.5)
    args = parser.parse_args()
    if args.frames < 3:
        parser.error(f"--frames must be at least 3, got {args.frames}: a frame's motion is that to its neighbours")
    return args


def build(config: M2AENetConfig, analyser: BlurAnalyser, *, train_mask: bool) -> M2AENet:
    """A fresh network with a blur analyser that is trained."""
    blur = analyser.config
    network = M2AENet(replace(config, blur_width=blur.width, blur_max_extent=blur.max_extent))
    network.blur.load_state_dict(analyser.state_dict())
    network.blur.requires_grad_(train_mask)
    return network


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
    """What is to be restored (N, 1, H, W), float, of paths' ends (N, 4, H, W) in pixels."""
    extent = ends[:, :2].norm(dim=1, keepdim=True) + ends[:, 2:].norm(dim=1, keepdim=True)
    return dilated((extent >= BLURRED_FROM).float())


def ssim_map(output: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity at each pixel of frames (N, 3, H, W) in [0, 1], fp32; as `training.metrics.ssim`."""
    position = torch.arange(-5, 6, device=output.device, dtype=torch.float32)
    window = (-(position**2) / (2 * 1.5**2)).exp()
    window = window / window.sum()
    planes = torch.cat([output, truth, output * output, truth * truth, output * truth]).flatten(0, 1)[:, None]
    for shape in ((1, 1, 11, 1), (1, 1, 1, 11)):
        side = [shape[3] // 2, shape[3] // 2, shape[2] // 2, shape[2] // 2]
        planes = F.conv2d(F.pad(planes, side, mode="reflect"), window.view(shape))
    mean_a, mean_b, square_a, square_b, product = planes.view(5, *output.shape)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (product - mean_a * mean_b) + c2) / (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return luminance * structure


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
    """What keeps paths smooth and short where nothing can be seen, weighted."""
    across, down = offsets.diff(dim=3).abs().mean(), offsets.diff(dim=2).abs().mean()
    return STRAIGHTNESS * (across + down) + SHORTNESS * offsets.square().mean()


def restoration_losses(output: Tensor, truth: Tensor, mask: Tensor, options: Options) -> dict[str, Tensor]:
    """Difference of frames (N, 3, H, W) inside a mask (N, 1, H, W), by values, spectrum and structure, weighted."""
    area = 3 * mask.sum().clamp_min(1)
    difference = mask * (output - truth)
    spectrum = torch.fft.fft2(difference, norm="ortho").abs()
    unlike = mask * (1 - ssim_map(output, truth))
    absolute = (difference.abs() + options.spectrum_weight * spectrum).sum() / area
    return {
        "restoration": absolute
        if options.decibels is None
        else decibel_loss(output, truth, mask, most=options.decibels),
        "ssim": options.ssim_weight * unlike.sum() / area,
    }


def mask_loss(logit: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy and Dice of a mask's logit and a true mask, (N, 1, H, W) each."""
    probability = logit.sigmoid()
    overlap = (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return F.binary_cross_entropy_with_logits(logit, truth) + 1 - overlap


def losses(network: M2AENet, batch: Batch, step: int, *, options: Options) -> dict[str, Tensor]:
    """All terms of a step, weighted; which there are depends on how far the run is."""
    known = known_frames(batch)
    truth = true_mask(known.ends)
    values: dict[str, Tensor] = {}
    extent = network.blur.extent(known.blurred)
    logit = MASK_SLOPE * (dilated(extent) - network.config.on_above)
    mask = (logit > 0).float()
    if options.mask_weight:
        values["mask"] = options.mask_weight * mask_loss(logit, truth)
        soft = logit.sigmoid()
        mask = mask + soft - soft.detach()  # hard where it is used, soft where it is learnt
    if not network.config.masked:
        mask = torch.ones_like(truth)
    elif step < options.true_mask_steps:
        mask = truth

    paths_alone = step < options.motion_steps and network.motion is not None
    if paths_alone:
        result = M2AENetOutput(frames=known.sharp, offsets=network.paths(known.blurred, extent))
    else:
        result = network.restore(known.blurred, extent, mask)
    with torch.autocast(known.blurred.device.type, enabled=False):
        if not paths_alone:
            values |= restoration_losses(result.frames, known.sharp, mask.detach(), options)
        if result.offsets is not None:
            sharp = known.sharp if step < options.true_mask_steps else (known.sharp + result.frames) / 2
            again = reblurred(sharp, result.offsets)
            unlike = 0.1 * (1 - ssim_map(again, known.clean).mean())
            values["path"] = options.path_weight * path_loss(result.offsets, known.ends)
            values["reblur"] = options.reblur_weight * ((again - known.clean).abs().mean() + unlike)
            values["rough"] = roughness(result.offsets)
    return values


def main() -> None:
    """Train."""
    args = parse_arguments()
    config = replace(PRESETS[args.preset], masked=not args.without_mask, trajectories=not args.without_trajectories)
    options = Options(
        motion_steps=round(args.motion_part * args.steps),
        true_mask_steps=round(args.true_mask_part * args.steps),
        path_weight=args.path_weight,
        reblur_weight=args.reblur_weight,
        ssim_weight=args.ssim_weight,
        spectrum_weight=args.spectrum_weight,
        decibels=args.decibels,
        mask_weight=args.mask_weight,
    )
    train(
        args,
        preset=args.preset,
        build=partial(build, config, load(args.analyser), train_mask=args.mask_weight > 0),
        losses=partial(losses, options=options),
    )


if __name__ == "__main__":
    main()
