"""The blur analyser: blur extent in pixels, and sharp or not, from single frames of any exposure.

    python -m training.train_blur --pool runs/pool --pool runs/pool_x1 --out runs/blur
    python -m training.train_blur --pool runs/pool_x1 --target speed --out runs/prior   # for train_mmprnn --prior

The pools are those of training.render_pool; with one of scale 4 and one of scale 1 the analyser learns both small
frames, aliased as they come, and frames of full size. Runs until `--steps` or `--max-minutes`; the same command goes on
from the last checkpoint.

Source: Wang et al. (arXiv 2207.13374), for the first two terms of the loss; target, data and second head are ours, see
`BlurAnalyser`. With `--target speed` the network and its target are the paper's too: the mean motion between filmed
frames, ten in a frame interval, over 15 pixels, learned from frames whose shutter was open all the time. Departure: the
motion is the exact one of rendered scenes, not that of RAFT.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from cyclopts import Parameter
from torch import Tensor

from training.data.blur_crops import Batch, Moments, draw_batch, moment
from training.data.pool import Pool
from training.losses.blur import magnitude_loss, sharp_loss
from training.options import command
from training.run.loop import Run
from training.run.options import RunOptions
from training.run.workers import join_workers
from vsfmanet.networks.exposure_extractor import LEVELS
from vsfmanet.networks.mmpnet import SHARP_BELOW, BlurAnalyser, BlurConfig, MMPNet

FILMED_PER_FRAME, SPEED_UNIT = 10, 15
"""Frames of 240 fps in a frame interval, and pixels of motion from one to the next at which the prior is 1."""

REPORTED = 64
"""Held-out frames of each pool in the report."""


@torch.no_grad()
def report(analyser: BlurAnalyser, sources: list[Moments], device: str) -> None:
    """Print how far the extent is off on frames never trained on, whole and without degradation."""
    for source in sources:
        chosen = np.random.default_rng(0).choice(len(source.places), min(REPORTED, len(source.places)), replace=False)
        lines = []
        for level in range(LEVELS + 1):
            pixels, off, sharp_right = [], [], []
            for position, t in (source.places[k] for k in chosen):
                sequence = source.pool.sequence(position)
                side = min(sequence.lr.shape[-2:])
                frame, extent, _ = moment(sequence, t, level, np.random.default_rng(0), side, reduction=1)
                frames = torch.from_numpy(frame)[None].to(device)
                answer = analyser.extent(frames)[0, 0].cpu().numpy()
                logit = analyser(frames)[1][0, 0].cpu().numpy()
                pixels.append(extent.mean())
                off.append(np.abs(answer - extent).mean())
                sharp_right.append(((logit > 0) == (extent < SHARP_BELOW)).mean())
            name = f"5:{level}" if level else "sharp"
            lines.append(f"{name} {np.mean(off):.2f} of {np.mean(pixels):.2f} ({100 * np.mean(sharp_right):.0f} %)")
        print(f"{source.pool.folder}: l1 of mean extent in px (sharp or not, right): {', '.join(lines)}", flush=True)


@torch.no_grad()
def report_speed(prior: MMPNet, sources: list[Moments], device: str) -> None:
    """Print how far the prior is off on frames never trained on, at an exposure of 5:5."""
    for source in sources:
        chosen = np.random.default_rng(0).choice(len(source.places), min(REPORTED, len(source.places)), replace=False)
        off, size = [], []
        for position, t in (source.places[k] for k in chosen):
            sequence = source.pool.sequence(position)
            side = min(sequence.lr.shape[-2:])
            frame, _, travel = moment(sequence, t, LEVELS, np.random.default_rng(0), side, reduction=1)
            truth = speed(torch.from_numpy(travel))
            off.append(float((prior(torch.from_numpy(frame)[None].to(device))[0, 0].cpu() - truth).abs().mean()))
            size.append(float(truth.mean()))
        print(
            f"{source.pool.folder}: l1 of the prior {np.mean(off):.4f}, of {np.mean(size):.4f} on average", flush=True
        )


def speed(travel: Tensor) -> Tensor:
    """Convert pixels of motion in a frame interval to the prior of Wang et al., Eq. 2 and 3; the same shape."""
    return (travel / FILMED_PER_FRAME / SPEED_UNIT).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """A training of the blur analyser, or of the prior of MMP-RNN."""

    pools: Annotated[tuple[Path, ...], Parameter(name="--pool")]
    """Folder that training.render_pool wrote; may be repeated."""
    target: Literal["extent", "speed"] = "extent"
    """Train the blur analyser, or the prior of MMP-RNN as published, which is a speed."""
    width: int = 16
    """Channels at full size; the default is the paper's."""
    crops: int = 11
    """Crops per batch, each at three exposures."""
    crop: int = 64
    """Side of a crop in pixels."""
    steps: int = 100000
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.5
    max_norm: float = float("inf")


def train(options: Options) -> None:
    """Train, and report on sequences never trained on."""
    workers = join_workers(options.device)
    torch.manual_seed(options.seed)
    levels = (LEVELS,) if options.target == "speed" else range(LEVELS + 1)
    config = BlurConfig(width=options.width)
    network: BlurAnalyser | MMPNet = MMPNet(config.width) if options.target == "speed" else BlurAnalyser(config)
    network.to(workers.device).to(memory_format=torch.channels_last).train()
    run = Run(options, network, workers, {"config": asdict(config), "target": options.target})
    pools = [Pool(folder) for folder in options.pools]
    training, held_out = ([Moments(pool, held_out=kept, levels=levels) for pool in pools] for kept in (False, True))
    for source, kept in zip(training, held_out, strict=True):
        print(f"{source.pool.folder}: {len(source.places)} frames to train on, {len(kept.places)} held out", flush=True)

    def batch(step: int) -> Batch:
        return draw_batch(training, run.generator(step), options.crops, options.crop).to(workers.device)

    for step, crops in run.batches(batch):
        frames = crops.frames.contiguous(memory_format=torch.channels_last)
        with run.autocast():
            answer = network(frames)
        if isinstance(network, MMPNet):
            values = magnitude_loss(answer.float(), speed(crops.travel), crops.weight)
        else:
            scaled, sharp = answer
            values = magnitude_loss(scaled, network.scaled(crops.extent), crops.weight)
            values["sharp"] = sharp_loss(sharp, crops.extent, crops.weight)
        run.update(step, torch.stack(list(values.values())).sum())
        if run.record(step, values, dict):
            break
    if workers.rank == 0:
        averaged = run.averaged.network
        if isinstance(averaged, MMPNet):
            report_speed(averaged, held_out, workers.device)
        else:
            report(averaged, held_out, workers.device)
    run.close()


main = command(train, __doc__)

if __name__ == "__main__":
    main()
