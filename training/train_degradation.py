"""Stage 2: the degradation network alone (Eq. 9), the extractor frozen.

    python -m training.train_degradation --pool runs/pool --extractor runs/extractor.pt --preset fast --out runs/netd
    python -m training.train_restoration --degradation runs/netd/latest.pt ...

NetD learns to rebuild each blurred frame from sharp ones, by its kernels and its flow. Every tenth sequence of the pool
is kept from training; at the end the PSNR of its rebuilt frames is printed by length of motion, as in Table S2 of the
paper (over 40 dB is expected). The flow is held to the exact flow of the scenes, where the paper takes RAFT's.
Runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from training.fmanet import about_network, add_run_arguments, start_network
from training.loop import (
    Run,
    ahead,
    guided_batch,
    join_workers,
    panels,
)
from training.losses import degradation_loss, estimate_degradation, image_flow_loss, rebuild
from training.scenes.pool import Batch, open_pool
from vsfmanet.networks.fmanetpp import FMANetPP

HELD_OUT = 10
"""One sequence in so many is kept for the report."""
REPORT_CLIPS = 40
"""Clips of the report; three frames of each are rebuilt."""
MOTION_BINS = (0.0, 20.0, 40.0, float("inf"))
"""Bounds of the mean motion of a frame, in HR pixels to its neighbours, of Table S2."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    return parser.parse_args()


@torch.no_grad()
def rebuilt_errors(network: FMANetPP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean squared error of every frame rebuilt from sharp ones, and its motion.

    Args:
        network: Training form, on the batch's device.
        batch: Clips of T frames, with exact flow.

    Returns:
        (B * T,) squared code values in [0, 1], and (B * T,) mean HR pixels to the faster neighbour.
    """
    out = estimate_degradation(network, batch.lr, None)
    assert out.image_flow is not None
    clips, frames = batch.lr.shape[:2]
    errors = []
    for clip, t in np.ndindex(clips, frames):
        logits = network.degradation.kernels(out.kernel_feat[clip, t][None])
        chosen = torch.tensor([[clip, t]], device=batch.lr.device)
        image, _ = rebuild(network, batch.hr, out.image_flow[clip, t][None], logits, chosen)
        errors.append((image[0].clamp(0, 1) - batch.clean[clip, t]).square().mean())
    speed = batch.flow.norm(dim=3).mean(dim=(3, 4)).amax(dim=2).flatten()
    return torch.stack(errors), speed * network.config.scale


def report(network: FMANetPP, batches: list[Batch]) -> str:
    """Put the PSNR of rebuilt frames into words, over all and by length of motion."""
    measured = [rebuilt_errors(network, batch) for batch in batches]
    error, motion = (torch.cat([item[part] for item in measured]).cpu() for part in (0, 1))
    psnr = -10 * error.clamp_min(1e-10).log10()
    lines = [f"rebuilt frames of {len(batches)} clips never trained on: {psnr.mean():.2f} dB ({len(psnr)} frames)"]
    for low, high in pairwise(MOTION_BINS):
        own = psnr[(motion >= low) & (motion < high)]
        if len(own):
            lines.append(f"  motion of {low:g} to {high:g} HR pixels: {own.mean():.2f} dB ({len(own)} frames)")
    return "\n".join(lines)


def main() -> None:
    """Train, and report on sequences never trained on."""
    args = parse_arguments()
    workers = join_workers(args.device)
    torch.manual_seed(args.seed)
    network = start_network(args, workers.device)
    network.requires_grad_(False)
    network.degradation.requires_grad_(True)
    if network.exposure_embeds is not None:
        network.exposure_embeds.requires_grad_(True)
    if args.compile:
        for block in network.degradation.blocks:
            block.compile(dynamic=False)
    run = Run(args, network, workers, about_network(args, network))
    pool = open_pool(args.pool, workers.device if args.pool_on_device else None)
    held_out = list(range(0, len(pool), HELD_OUT))
    training = [position for position in range(len(pool)) if position % HELD_OUT]

    def batch(step: int) -> tuple[Batch, Tensor, Tensor]:
        return guided_batch(pool, args, run.generator(step), workers.device, among=training)

    for step, (clips, exposure, rebuilt) in ahead(batch, run.first, args.steps, workers.device):
        with torch.autocast(workers.device.split(":")[0], torch.bfloat16):
            out = estimate_degradation(network, clips.lr, exposure)
            assert out.image_flow is not None
            degradation = degradation_loss(network, out, clips, rebuilt, warp_weight=args.warp_weight)
            flow = image_flow_loss(out.image_flow, clips.flow, clips.visible)
        norm = run.update(step, degradation + args.flow_weight * flow)
        values = {"degradation": degradation, "flow": flow, "norm": norm}
        if run.record(step, values, partial(panels, clips)):
            break
    if workers.rank == 0:
        generators = [np.random.default_rng((args.seed, 2, 0, clip)) for clip in range(REPORT_CLIPS)]
        shape = {"clips": 1, "frames": min(3, args.frames), "crop": args.crop, "exposure_mode": args.exposure_mode}
        batches = [pool.sample(generator, **shape, among=held_out).to(workers.device) for generator in generators]
        print(report(run.averaged.network, batches))
    run.close()


if __name__ == "__main__":
    main()
