"""Stage 3: degradation and restoration network together (Eq. 10), the extractor frozen.

    python -m training.train_restoration --pool runs/pool --extractor runs/extractor.pt --preset fast --out runs/fast
    torchrun --nproc-per-node 4 -m training.train_restoration --device cuda ...

Runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint. Departures from the paper's
recipe, for short budgets: the flow of the image head is held to the exact flow of the synthetic scenes with a larger
weight than lambda2 (there is no error of RAFT to distrust), the dynamic filter runs for a few frames of a batch, and
the embeddings of known exposures stand in for the extractor in a part of the clips.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.deblurring import moving
from training.fmanet import about_network, add_run_arguments, start_network
from training.loop import (
    Run,
    ahead,
    guided_batch,
    join_workers,
    load_checkpoint,
    panels,
)
from training.losses import blur_loss, decibel_loss, degradation_loss, image_flow_loss, reblur_loss, temporal_loss
from training.scenes.pool import Batch, open_pool
from vsfmanet.networks.fmanetpp import FMANetPP

TEMPORAL_RAMP = (0.2, 0.4)
"""Parts of the run between which the weight of the temporal loss rises from 0."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--degradation", type=Path, help="checkpoint of training.train_degradation, to start NetD from")
    add_run_arguments(parser)
    add = parser.add_argument
    add("--decibels", type=float, metavar="MOST", help="loss in decibels in the place of l1, hardly beyond MOST")
    add(
        "--speed",
        type=float,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="only sequences of this median motion, LR pixels",
    )
    add("--degradation-weight", type=float, default=0.1, help="lambda3 of Eq. 10 (default: %(default)s)")
    add("--blur-weight", type=float, default=0.02, help="of the path branch's blur (default: %(default)s)")
    add("--temporal-weight", type=float, default=0.0, help="of the temporal loss, e.g. 0.2 (default: %(default)s)")
    add("--reblur-weight", type=float, default=0.0, help="of the reblur loss, e.g. 0.1 (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_arguments()
    workers = join_workers(args.device)
    torch.manual_seed(args.seed)
    network = start_network(args, workers.device)
    assert network.extractor is not None
    network.extractor.requires_grad_(False)
    if args.degradation:
        take_degradation(network, args.degradation)
    if args.compile:
        for block in network.blocks:
            block.compile(dynamic=False)
    run = Run(args, network, workers, about_network(args, network))
    pool = open_pool(args.pool, workers.device if args.pool_on_device else None)

    among = None if args.speed is None else moving(pool, range(len(pool)), *args.speed)

    def batch(step: int) -> tuple[Batch, Tensor, Tensor]:
        return guided_batch(pool, args, run.generator(step), workers.device, among=among)

    for step, (clips, exposure, rebuilt) in ahead(batch, run.first, args.steps, workers.device):
        with torch.autocast(workers.device.split(":")[0], torch.bfloat16):
            out = network(clips.lr, exposure)
            flow = image_flow_loss(out.image_flow, clips.flow, clips.visible)
        if args.decibels is None:
            restoration = (out.frames - clips.hr).abs().mean()
        else:
            restoration = decibel_loss(out.frames, clips.hr, most=args.decibels)
        values = {"restoration": restoration, "flow": flow, "gain": gain(out.frames, clips)}
        loss = restoration + args.flow_weight * flow
        if args.degradation_weight:
            with torch.autocast(workers.device.split(":")[0], torch.bfloat16):
                values["degradation"] = degradation_loss(network, out, clips, rebuilt, warp_weight=args.warp_weight)
            loss = loss + args.degradation_weight * values["degradation"]
        if out.motion is not None and args.blur_weight:
            values["blur"] = blur_loss(out.motion, clips.flow, clips.exposure)
            loss = loss + args.blur_weight * values["blur"]
        if args.temporal_weight:
            values["temporal"] = temporal_loss(out.frames, clips)
            loss = loss + args.temporal_weight * ramp(step / args.steps, *TEMPORAL_RAMP) * values["temporal"]
        if args.reblur_weight:
            with torch.autocast(workers.device.split(":")[0], torch.bfloat16):
                values["reblur"] = reblur_loss(network, out, clips, rebuilt)
            loss = loss + args.reblur_weight * values["reblur"]
        values["norm"] = run.update(step, loss)
        if run.record(step, values, partial(panels, clips, out.frames)):
            break
    run.close()


def take_degradation(network: FMANetPP, path: Path) -> None:
    """Take NetD, and the embeddings of known exposures that it was trained with, from a checkpoint of stage 2."""
    averaged = load_checkpoint(path)["averaged"]
    learned = {name: value for name, value in averaged.items() if name.startswith(("degradation.", "exposure_embeds"))}
    network.load_state_dict(learned, strict=False)


@torch.no_grad()
def gain(output: Tensor, batch: Batch) -> Tensor:
    """Mean PSNR of frames (B, T, 3, s*H, s*W) above that of the bilinear image, dB."""
    scale = output.shape[-1] // batch.lr.shape[-1]
    bilinear = F.interpolate(batch.lr.flatten(0, 1), scale_factor=scale, mode="bilinear", align_corners=False)
    before, after = (
        (frames - batch.hr.flatten(0, 1)).square().mean(dim=(1, 2, 3)).clamp_min(1e-6)
        for frames in (bilinear, output.flatten(0, 1))
    )
    return 10 * (before / after).log10().mean()


def ramp(position: float, start: float, end: float) -> float:
    """Rise from 0 at `start` to 1 at `end`."""
    return min(1.0, max(0.0, (position - start) / (end - start)))


if __name__ == "__main__":
    main()
