"""How the deblurring networks of scale 1 are trained: one loop for MMP-RNN, JFFRA and M2AENet.

A script `training/train_<network>.py` adds its own options to those of `training.loop.add_loop_arguments` and calls
`train`, which runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint. At the end
the PSNR on sequences never trained on is printed beside that of their blurred frames, for each exposure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn

from training.evaluate import load_method
from training.growth import begin_as
from training.loop import Run, ahead, draw_clips, join_workers, panels
from training.metrics import psnr
from training.scenes.pool import Batch, Pool, open_pool
from training.scenes.render import to_bytes
from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import channels_last
from vsfmanet.networks.description import SequenceNetwork
from vsfmanet.networks.exposure_extractor import LEVELS

HELD_OUT = 25
"""One sequence in so many is kept for the report."""

REPORTED = 8
"""Held-out sequences of the report; each is restored whole, at every exposure."""


def train[N: SequenceNetwork](
    args: argparse.Namespace,
    *,
    preset: str,
    build: Callable[[], N],
    losses: Callable[[N, Batch, int], Mapping[str, Tensor]],
) -> N:
    """Train a network of scale 1, and report.

    `losses` and everything it calls run under bfloat16 autocast: what the network returns is fp32, but what is made of
    convolutions in between is not. On the CPU, `grid_sample` in bfloat16 is slow and coarse: give it fp32 (`flow_warp`
    does). With `--compile`, the direct children of the network (and the items of a `ModuleList` among them) are
    compiled, so they should be the parts that work.

    Args:
        args: The options of `add_loop_arguments`.
        preset: Name of the configuration.
        build: Makes the network, whose parameters that require a gradient are trained; the seed is set before. Its
            `kind` and `config` go into the checkpoint, by which it can be built again.
        losses: Of the network in training mode, a batch on its device (`lr` and `hr` are of one size) and the step,
            from 0: scalars by name, weighted, whose sum is minimised. They may depend on these three alone, not on the
            global random state or on calls before, so that a resumed run equals an unbroken one.

    Returns:
        The averaged network, in eval mode.

    Raises:
        ConfigError: The pool is not of scale 1, or the model to start from or the checkpoint in `--out` is of another
            network.
    """
    workers = join_workers(args.device)
    torch.manual_seed(args.seed)
    pool = open_pool(args.pool, workers.device if args.pool_on_device else None)
    first = pool.sequence(0)
    if first.lr.shape[-2:] != first.hr.shape[-2:]:
        raise ConfigError(
            f"train: a pool of scale 1 is needed, {args.pool} has frames of {first.lr.shape[-2:]} for "
            f"{first.hr.shape[-2:]}; render one with training.render_pool --scale 1"
        )
    network = build()
    if args.start_from is not None:
        begin_as(network, load_method(args.start_from)[1])
    network = network.to(workers.device).train()
    channels_last(network)
    if args.compile:
        for child in network.children():
            for part in child if isinstance(child, nn.ModuleList) else (child,):
                part.compile(dynamic=False)
    about = {"kind": network.kind, "preset": preset, "scale": network.scale, "config": asdict(network.config)}
    run = Run(args, network, workers, about)
    training = [position for position in range(len(pool)) if position % HELD_OUT]
    if args.speed is not None:
        training = moving(pool, training, *args.speed)

    def sample(step: int) -> Batch:
        return draw_clips(pool, args, run.generator(step), among=training).to(workers.device)

    def autocast() -> torch.autocast:
        return torch.autocast(workers.device.split(":")[0], torch.bfloat16)

    for step, batch in ahead(sample, run.first, args.steps, workers.device):
        with autocast():
            values = dict(losses(network, batch, step))
        norm = run.update(step, torch.stack(list(values.values())).sum())

        @torch.no_grad()
        def pictures(batch: Batch = batch) -> Mapping[str, Tensor]:
            with autocast():
                return panels(batch, run.averaged.network(batch.lr[:1]))

        if run.record(step, {**values, "norm": norm}, pictures):
            break
    averaged = run.averaged.network
    if workers.rank == 0:
        held_out = range(0, len(pool), HELD_OUT)[:REPORTED]
        scores = held_out_psnr(averaged, pool, held_out, workers.device)
        lines = (f"{name} {own:.2f} of {blurred:.2f}" for name, (own, blurred) in scores.items())
        print(
            f"PSNR in dB on {len(held_out)} sequences never trained on, of their input: {', '.join(lines)}", flush=True
        )
    run.close()
    return averaged


def add_deblurring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--start-from`, `--decibels`, and `--speed`, which leaves out what is sharp already or beyond help."""
    parser.add_argument(
        "--start-from", metavar="MODEL", help="begin as a model, .safetensors file or checkpoint of the same sizes"
    )
    parser.add_argument(
        "--decibels",
        type=float,
        nargs="?",
        const=50.0,
        metavar="MOST",
        help="the loss that counts decibels, in the place of l1, hardly those beyond MOST (%(const)g)",
    )
    parser.add_argument(
        "--speed", type=float, nargs=2, metavar=("LEAST", "MOST"), help="learn from sequences of this motion, px/frame"
    )


def moving(pool: Pool, positions: Sequence[int], least: float, most: float) -> list[int]:
    """Those of `positions` whose median motion between frames lies between two speeds in pixels.

    Raises:
        ConfigError: There are none.
    """
    found = []
    for position in positions:
        flow = np.asarray(pool.sequence(position).flow[:, 0, :, ::4, ::4], dtype=np.float32)
        if least <= np.median(np.hypot(flow[:, 0], flow[:, 1])) <= most:
            found.append(position)
    if not found:
        raise ConfigError(f"train: --speed {least:g} {most:g} leaves none of {len(positions)} sequences; widen it")
    return found


@torch.no_grad()
def held_out_psnr(
    network: SequenceNetwork, pool: Pool, positions: range, device: str
) -> dict[str, tuple[float, float]]:
    """Mean PSNR in dB of restored sequences and of their blurred frames, by exposure ("5:1" ... "5:5")."""
    scores = {}
    for level in range(1, LEVELS + 1):
        own, blurred = [], []
        for position in positions:
            sequence = pool.sequence(position)
            lr = np.array(sequence.lr[level - 1])
            restored = to_bytes(network(torch.from_numpy(lr).to(device)[None] / 255)[0])
            own += [psnr(*pair) for pair in zip(restored, sequence.hr, strict=True)]
            blurred += [psnr(*pair) for pair in zip(lr, sequence.hr, strict=True)]
        scores[f"5:{level}"] = (mean(own), mean(blurred))
    return scores
