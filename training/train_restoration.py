"""Stage 3: degradation and restoration network together (Eq. 10), the extractor frozen.

    python -m training.train_restoration --pool runs/pool --extractor runs/extractor.pt --preset fast --out runs/fast

Runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint. Departures from the paper's
recipe, for short budgets: the flow of the image head is held to the exact flow of the synthetic scenes with a larger
weight than lambda2 (there is no error of RAFT to distrust), the dynamic filter runs for a few frames of a batch, and
the anchors of known exposures stand in for the extractor in a part of the clips.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

from training.loop import (
    AveragedWeights,
    Progress,
    ahead,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
)
from training.losses import degradation_loss, image_flow_loss
from training.scenes.pool import Batch, Pool
from vsfmanet.networks.fmanetpp import FMANetPP, preset


def guidance_exposure(exposure: Tensor, generator: np.random.Generator, known: float) -> Tensor:
    """True exposures (B, T) for a part `known` of the clips, NaN (ask the extractor) for the rest."""
    given = torch.from_numpy(generator.random(len(exposure)) < known)
    return torch.where(given[:, None], exposure, torch.nan)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="folder that training.render_pool wrote")
    add("--extractor", type=Path, required=True, help="checkpoint of training.train_extractor")
    add("--out", type=Path, required=True, help="folder for checkpoints and curves")
    add("--preset", default="fast", choices=("paper", "base", "fast"), help="default: %(default)s")
    add("--scale", type=int, default=4, choices=(4, 2, 1), help="default: %(default)s")
    add("--steps", type=int, default=300000, help="length of the run (default: %(default)s)")
    add("--max-minutes", type=float, default=float("inf"), help="stop and save after so long")
    add("--clips", type=int, default=8, help="clips per batch (default: %(default)s)")
    add("--frames", type=int, default=8, help="frames per clip (default: %(default)s)")
    add("--crop", type=int, default=64, help="crop size in LR pixels (default: %(default)s)")
    add("--exposure-mode", default="mixed", choices=("constant", "walk", "mixed"), help="default: %(default)s")
    add("--known-exposure", type=float, default=0.2, help="part of the clips given their exposure (%(default)s)")
    add("--learning-rate", type=float, default=2e-4, help="default: %(default)s")
    add("--warmup", type=int, default=500, help="steps of rising learning rate (default: %(default)s)")
    add("--decay", type=float, default=0.3, help="last part of the run, with falling learning rate (%(default)s)")
    add("--max-norm", type=float, default=1.0, help="gradient norm is clipped here (default: %(default)s)")
    add("--degradation-weight", type=float, default=0.1, help="lambda3 of Eq. 10 (default: %(default)s)")
    add("--degradation-frames", type=int, default=1, help="frames per batch that are rebuilt (default: %(default)s)")
    add("--flow-weight", type=float, default=0.01, help="weight of the flow loss, per LR pixel (default: %(default)s)")
    add("--save-minutes", type=float, default=4, help="time between checkpoints (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--device", default="cpu", help="default: %(default)s")
    add("--compile", action="store_true", help="compile the blocks: minutes at the start, then faster steps")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_arguments()
    began = time.monotonic()
    torch.manual_seed(args.seed)
    network = FMANetPP(preset(args.preset, args.scale))
    network.to(args.device).to(memory_format=torch.channels_last).train()
    assert network.extractor is not None
    network.extractor.requires_grad_(False)
    stage_1 = load_checkpoint(args.extractor, args.device)
    network.extractor.load_state_dict(stage_1["extractor"])
    network.anchors.copy_(stage_1["anchors"])
    network.reading_temperature.copy_(stage_1["reading_temperature"])
    if args.compile:
        for block in network.blocks:
            block.compile(dynamic=False)
    trained = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(trained, args.learning_rate, fused=True)
    averaged = AveragedWeights(network)

    latest = args.out / "latest.pt"
    first = 0
    if latest.exists():
        state = load_checkpoint(latest, args.device)
        network.load_state_dict(state["network"])
        averaged.network.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}")

    pool = Pool(args.pool)
    writer = SummaryWriter(str(args.out))

    def batch(step: int) -> tuple[Batch, Tensor, Tensor]:
        generator = np.random.default_rng((args.seed, step))
        clips = pool.sample(
            generator, clips=args.clips, frames=args.frames, crop=args.crop, exposure_mode=args.exposure_mode
        )
        rebuilt = generator.integers((args.clips, args.frames), size=(args.degradation_frames, 2))
        return clips, guidance_exposure(clips.exposure, generator, args.known_exposure), torch.from_numpy(rebuilt)

    def save(step: int) -> None:
        save_checkpoint(
            latest,
            {
                "network": network.state_dict(),
                "averaged": averaged.network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "preset": args.preset,
                "scale": args.scale,
            },
        )

    progress = Progress(args.steps, first, 100)
    saved = time.monotonic()
    for step, (clips, exposure, rebuilt) in ahead(batch, first, args.steps):
        clips = clips.to(args.device)
        rate = args.learning_rate * learning_rate_factor(step, steps=args.steps, warmup=args.warmup, decay=args.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(args.device.split(":")[0], torch.bfloat16):
            out = network(clips.lr, exposure.to(args.device))
            restoration = (out.frames - clips.hr).abs().mean()
            degradation = degradation_loss(network, out, clips, rebuilt.to(args.device))
            flow = image_flow_loss(out.image_flow, clips.flow, clips.visible)
        loss = restoration + args.degradation_weight * degradation + args.flow_weight * flow
        loss.backward()
        norm = clip_grad_norm_(trained, args.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update(network, step)

        values = {"restoration": restoration, "degradation": degradation, "flow": flow, "norm": norm}
        means = progress.update(step, {name: value.detach() for name, value in values.items()})
        if means is not None:
            for name, value in {**means, "learning_rate": rate}.items():
                writer.add_scalar(name, value, step + 1)
        out_of_time = time.monotonic() - began > 60 * args.max_minutes
        if out_of_time or step + 1 == args.steps or time.monotonic() - saved > 60 * args.save_minutes:
            save(step + 1)
            saved = time.monotonic()
        if out_of_time:
            print(f"stopped after {args.max_minutes:g} minutes at step {step + 1}; the same command goes on")
            break
    writer.close()


if __name__ == "__main__":
    main()
