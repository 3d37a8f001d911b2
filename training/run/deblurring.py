"""The loop of the deblurring networks of scale 1: MMP-RNN, JFFRA and M2AENet.

The options of a command `training/train_<network>.py` are a subclass of `DeblurringOptions`. `train` runs until
`--steps` or `--max-minutes`; the same command goes on from the last checkpoint. At the end the PSNR on sequences never
trained on is printed beside that of their blurred frames, for each exposure.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn

from training.data.pool import Batch, Pool, moving, open_pool
from training.data.render import to_bytes
from training.data.tasks import Task, deblur
from training.metrics.frames import psnr
from training.run.batches import draw_clips, panels
from training.run.growth import begin_as
from training.run.loop import Run
from training.run.options import DeblurringOptions
from training.run.trained import load_method
from training.run.workers import join_workers
from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import channels_last
from vsfmanet.networks.description import SequenceNetwork
from vsfmanet.networks.exposure_extractor import LEVELS

HELD_OUT = 25
"""One sequence in so many is kept for the report."""

REPORTED = 8
"""Held-out sequences of the report; each is restored whole, at every exposure."""


def train[N: SequenceNetwork](
    options: DeblurringOptions,
    *,
    preset: str,
    build: Callable[[], N],
    losses: Callable[[N, Batch, int], Mapping[str, Tensor]],
    variant: str | None = None,
    task: Task = deblur,
) -> N:
    """Train a network of scale 1, and report.

    `losses` and everything it calls run under bfloat16 autocast: what the network returns is fp32, but what is made of
    convolutions in between is not. On the CPU, `grid_sample` in bfloat16 is slow and coarse: give it fp32 (`flow_warp`
    does). With `--compile`, the direct children of the network (and the items of a `ModuleList` among them) are
    compiled, so they should be the parts that work.

    Args:
        options: Pool, batch, length, rates, and what the run begins with.
        preset: Name of the configuration.
        build: Makes the network, whose parameters that require a gradient are trained; the seed is set before. Its
            `kind` and `config` go into the checkpoint, by which it can be built again.
        losses: Of the network in training mode, a batch on its device (`lr` and `hr` are of one size) and the step,
            from 0: scalars by name, weighted, whose sum is minimised. They may depend on these three alone, not on the
            global random state or on calls before, so that a resumed run equals an unbroken one.
        variant: Name of the variant that `build` makes, of `VARIANTS`.
        task: Makes what the network is given.

    Returns:
        The averaged network, in eval mode.

    Raises:
        ConfigError: The pool is not of scale 1, or the model to start from or the checkpoint in `--out` is of another
            network, or no sequence has the speed that is asked for.
    """
    workers = join_workers(options.device)
    torch.manual_seed(options.seed)
    pool = open_pool(options.pool, workers.device if options.pool_on_device else None)
    first = pool.sequence(0)
    if first.lr.shape[-2:] != first.hr.shape[-2:]:
        raise ConfigError(
            f"a pool of scale 1 is needed, {options.pool} has frames of {first.lr.shape[-2:]} for "
            f"{first.hr.shape[-2:]}; render one with training.render_pool --scale 1"
        )
    network = build()
    if options.start_from is not None:
        begin_as(network, load_method(options.start_from)[1])
    network = network.to(workers.device).train()
    channels_last(network)
    if options.compile:
        for child in network.children():
            for part in child if isinstance(child, nn.ModuleList) else (child,):
                part.compile(dynamic=False)
    about = {"kind": network.kind, "preset": preset, "scale": network.scale, "config": asdict(network.config)}
    about["variant"] = variant
    run = Run(options, network, workers, about)
    training = [position for position in range(len(pool)) if position % HELD_OUT]
    if options.speed is not None:
        training = moving(pool, training, *options.speed)

    def sample(step: int) -> Batch:
        generator = run.generator(step)
        batch = draw_clips(pool, options, generator, among=training).to(workers.device)
        return replace(batch, lr=task(batch.lr, batch.hr, seeded(generator)))

    for step, batch in run.batches(sample):
        with run.autocast():
            values = dict(losses(network, batch, step))
        norm = run.update(step, torch.stack(list(values.values())).sum())

        @torch.no_grad()
        def pictures(batch: Batch = batch) -> Mapping[str, Tensor]:
            with run.autocast():
                return panels(batch, run.averaged.network(batch.lr[:1]))

        if run.record(step, {**values, "norm": norm}, pictures):
            break
    averaged = run.averaged.network
    if workers.rank == 0:
        held_out = range(0, len(pool), HELD_OUT)[:REPORTED]
        scores = held_out_psnr(averaged, pool, held_out, task, workers.device)
        lines = (f"{name} {own:.2f} of {blurred:.2f}" for name, (own, blurred) in scores.items())
        print(
            f"PSNR in dB on {len(held_out)} sequences never trained on, of their input: {', '.join(lines)}", flush=True
        )
    run.close()
    return averaged


@torch.no_grad()
def held_out_psnr(
    network: SequenceNetwork, pool: Pool, positions: range, task: Task, device: str
) -> dict[str, tuple[float, float]]:
    """Mean PSNR in dB of restored sequences and of what they were made from, by exposure ("5:1" ... "5:5").

    A task that does not look at blurred frames has the same result for every exposure.
    """
    scores = {}
    for level in range(1, LEVELS + 1):
        own, given = [], []
        for position in positions:
            sequence = pool.sequence(position)
            blurred, sharp = (
                torch.from_numpy(np.array(each))[None] / 255 for each in (sequence.lr[level - 1], sequence.hr)
            )
            lr = task(blurred, sharp, seeded(np.random.default_rng(position)))
            restored = to_bytes(network(lr.to(device))[0])
            own += [psnr(*pair) for pair in zip(restored, sequence.hr, strict=True)]
            given += [psnr(*pair) for pair in zip(to_bytes(lr[0]), sequence.hr, strict=True)]
        scores[f"5:{level}"] = (mean(own), mean(given))
    return scores


def seeded(generator: np.random.Generator) -> torch.Generator:
    """Make a generator of torch, on the CPU, that continues `generator`."""
    return torch.Generator().manual_seed(int(generator.integers(2**63)))
