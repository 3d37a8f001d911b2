"""Stage 2: the degradation network alone (Eq. 9), the extractor frozen.

    python -m training.train_degradation --pool runs/pool --extractor runs/extractor.pt --preset fast --out runs/netd
    python -m training.train_restoration --degradation runs/netd/latest.pt ...

NetD learns to rebuild each blurred frame from sharp ones, by its kernels and its flow. Every tenth sequence of the pool
is kept from training; at the end the PSNR of its rebuilt frames is printed by length of motion, as in Table S2 of the
paper (over 40 dB is expected). The flow is held to the exact flow of the scenes, where the paper takes RAFT's.
Runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from training.data.pool import Batch, open_pool
from training.losses.degradation import degradation_loss, image_flow_loss, rebuild
from training.options import command
from training.run.batches import draw_clips, guided_batch, panels
from training.run.fmanetpp import about_network, start_network
from training.run.loop import Run
from training.run.options import FMANetPPOptions
from training.run.workers import join_workers
from vsfmanet.networks.fmanetpp import FMANetPP

OPEN = 30.0
"""Logit of a mask that hides nothing."""

HELD_OUT = 10
"""One sequence in so many is kept for the report."""
REPORT_CLIPS = 40
"""Clips of the report; three frames of each are rebuilt."""
MOTION_BINS = (0.0, 20.0, 40.0, float("inf"))
"""Bounds of the mean motion of a frame, in HR pixels to its neighbours, of Table S2."""


@dataclass(frozen=True, kw_only=True)
class Options(FMANetPPOptions):
    """A training of NetD alone."""

    plain_filter: bool = False
    """Filter without flow: the paper's baseline in Table S2. Set --flow-weight and --warp-weight to 0 with it."""


def filtered_along(image_flow: Tensor | None, *, plain: bool) -> Tensor:
    """Return the flow that the dynamic filter follows.

    Args:
        image_flow: (B, T, 2, 3, H, W), estimate.
        plain: Follow none, with open masks.

    Returns:
        Same shape.
    """
    assert image_flow is not None
    still = image_flow.new_tensor([0.0, 0.0, OPEN])[:, None, None].expand_as(image_flow)
    return still if plain else image_flow


@torch.no_grad()
def rebuilt_errors(network: FMANetPP, batch: Batch, *, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Mean squared error of every frame rebuilt from sharp ones, and its motion.

    Args:
        network: Training form, on the batch's device.
        batch: Clips of T frames, with exact flow.
        plain: As in `filtered_along`.

    Returns:
        (B * T,) squared code values in [0, 1], and (B * T,) mean HR pixels to the faster neighbour.
    """
    out = network.run_degradation(batch.lr)
    image_flow = filtered_along(out.image_flow, plain=plain)
    clips, frames = batch.lr.shape[:2]
    errors = []
    for clip, t in np.ndindex(clips, frames):
        logits = network.degradation.kernels(out.kernel_feat[clip, t][None])
        chosen = torch.tensor([[clip, t]], device=batch.lr.device)
        image, _ = rebuild(network, batch.hr, image_flow[clip, t][None], logits, chosen)
        errors.append((image[0].clamp(0, 1) - batch.clean[clip, t]).square().mean())
    speed = batch.flow.norm(dim=3).mean(dim=(3, 4)).amax(dim=2).flatten()
    return torch.stack(errors), speed * network.config.scale


def report(network: FMANetPP, batches: list[Batch], *, plain: bool = False) -> str:
    """Format the PSNR of rebuilt frames, over all and by length of motion."""
    measured = [rebuilt_errors(network, batch, plain=plain) for batch in batches]
    error, motion = (torch.cat([item[part] for item in measured]).cpu() for part in (0, 1))
    psnr = -10 * error.clamp_min(1e-10).log10()
    lines = [f"rebuilt frames of {len(batches)} clips never trained on: {psnr.mean():.2f} dB ({len(psnr)} frames)"]
    for low, high in pairwise(MOTION_BINS):
        own = psnr[(motion >= low) & (motion < high)]
        if len(own):
            lines.append(f"  motion of {low:g} to {high:g} HR pixels: {own.mean():.2f} dB ({len(own)} frames)")
    return "\n".join(lines)


def train(options: Options) -> None:
    """Train, and report on sequences never trained on."""
    workers = join_workers(options.device)
    torch.manual_seed(options.seed)
    network = start_network(options, workers.device)
    network.requires_grad_(False)
    network.degradation.requires_grad_(True)
    if network.exposure_embeds is not None:
        network.exposure_embeds.requires_grad_(True)
    if options.compile:
        for block in network.degradation.blocks:
            block.compile(dynamic=False)
    run = Run(options, network, workers, about_network(options, network))
    pool = open_pool(options.pool, workers.device if options.pool_on_device else None)
    held_out = list(range(0, len(pool), HELD_OUT))
    training = [position for position in range(len(pool)) if position % HELD_OUT]

    def batch(step: int) -> tuple[Batch, Tensor, Tensor]:
        return guided_batch(pool, options, run.generator(step), workers.device, among=training)

    for step, (clips, exposure, rebuilt) in run.batches(batch):
        with run.autocast():
            out = network.run_degradation(clips.lr, exposure)
            followed = replace(out, image_flow=filtered_along(out.image_flow, plain=options.plain_filter))
            degradation = degradation_loss(network, followed, clips, rebuilt, warp_weight=options.warp_weight)
            assert out.image_flow is not None
            flow = image_flow_loss(out.image_flow, clips.flow, clips.visible)
        norm = run.update(step, degradation + options.flow_weight * flow)
        values = {"degradation": degradation, "flow": flow, "norm": norm}
        if run.record(step, values, partial(panels, clips)):
            break
    if workers.rank == 0:
        plain = replace(options, clips=1, frames=min(3, options.frames), degrade=0.0, bars=0.0)
        generators = [np.random.default_rng((options.seed, 2, 0, clip)) for clip in range(REPORT_CLIPS)]
        batches = [draw_clips(pool, plain, generator, among=held_out).to(workers.device) for generator in generators]
        print(report(run.averaged.network, batches, plain=options.plain_filter))
    run.close()


main = command(train, __doc__)

if __name__ == "__main__":
    main()
