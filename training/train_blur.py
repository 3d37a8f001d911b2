"""The blur analyser: blur extent in pixels, and sharp or not, from single frames of any exposure.

    python -m training.train_blur --pool runs/pool --pool runs/pool_x1 --out runs/blur

The pools are those of training.render_pool; with one of scale 4 and one of scale 1 the analyser learns both small
frames, aliased as they come, and frames of full size. Runs until `--steps` or `--max-minutes`; the same command goes on
from the last checkpoint.

Source: Wang et al. (arXiv 2207.13374), for the first two terms of the loss; target, data and second head are ours, see
`BlurAnalyser`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from training.loop import AveragedWeights, Progress, ahead, learning_rate_factor, load_checkpoint, save_checkpoint
from training.scenes.blur_target import extent_of_flow
from training.scenes.photos import downscale
from training.scenes.pool import Pool
from training.scenes.render import Sequence
from vsfmanet.networks.exposure_extractor import LEVELS
from vsfmanet.networks.mmpnet import SHARP_BELOW, BlurAnalyser, BlurConfig

HELD_OUT = 10
"""One sequence in so many is kept for the report."""

VERSIONS = 3
"""Exposures, none (sharp) among them, at which each crop is in a batch: what they differ in is the blur alone."""

FULL_WEIGHT_TEXTURE = 0.06
"""Slope per pixel, on a range of 1, from which a pixel counts fully in the loss; in a flat one blur cannot be seen."""

FULL_WEIGHT_MOTION = 2.0
"""Mean motion in pixels per frame from which frames are drawn equally often; half the scenes hardly move."""

REPORTED = 64
"""Held-out frames of each pool in the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """N crops."""

    frames: Tensor
    """(N, 3, crop, crop) in [0, 1]."""
    extent: Tensor
    """(N, 1, crop, crop) pixels."""
    weight: Tensor
    """(N, 1, crop, crop) in (0, 1]: how much there is to see."""


class Moments:
    """The frames of one pool that have both neighbours, and how often each is drawn."""

    def __init__(self, pool: Pool, *, held_out: bool) -> None:
        self.pool = pool
        chosen = [position for position in range(len(pool)) if (position % HELD_OUT == 0) == held_out]
        self.places: list[tuple[int, int]] = []
        motion: list[float] = []
        for position in chosen:
            flow = np.asarray(pool.sequence(position).flow[1:-1, :, :, ::8, ::8], dtype=np.float32)
            self.places += [(position, 1 + t) for t in range(len(flow))]
            motion += np.hypot(flow[:, :, 0], flow[:, :, 1]).mean(axis=(1, 2, 3)).tolist()
        self.motion = np.array(motion)
        """(n,) mean motion in pixels per frame."""
        weight = np.clip(self.motion / FULL_WEIGHT_MOTION, 0.2, 1)
        self.chance = weight / weight.sum()

    def draw(self, generator: np.random.Generator, crop: int) -> list[NDArray[np.float32]]:
        """Draw a crop at some exposures, turned, with noise and compression.

        Returns:
            For each of the `VERSIONS` the frame (3, crop, crop), its extent and its weight, as one (5, crop, crop).
        """
        position, t = self.places[int(generator.choice(len(self.places), p=self.chance))]
        sequence = self.pool.sequence(position)
        full_size = sequence.hr.shape[-1] == sequence.lr.shape[-1]
        halved = full_size and 2 * crop <= min(sequence.lr.shape[-2:]) and generator.random() < 0.5
        flips, turned = [axis for axis in (1, 2) if generator.random() < 0.5], generator.random() < 0.5
        place = int(generator.integers(2**32))

        def version(level: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return moment(sequence, t, level, np.random.default_rng(place), crop, reduction=2 if halved else 1)

        weight = texture_weight(version(1)[0])
        out = []
        for level in generator.permutation(LEVELS + 1)[:VERSIONS]:
            frame, extent = version(int(level))
            item = np.flip(np.concatenate([degraded(generator, frame), extent[None], weight[None]]), tuple(flips))
            out.append(np.ascontiguousarray(item.swapaxes(1, 2) if turned else item))
        return out


def moment(
    sequence: Sequence, t: int, level: int, generator: np.random.Generator, crop: int, *, reduction: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut a random crop out of frame `t`.

    Args:
        sequence: Of a pool.
        t: Frame with both neighbours.
        level: Exposure 5:N, or 0 for the sharp frame.
        generator: Source of the crop's place.
        crop: Side of the result, pixels.
        reduction: Pixels each way that become one.

    Returns:
        Frame (3, crop, crop) in [0, 1], and blur extent (crop, crop) in pixels of that frame.
    """
    side = crop * reduction
    top, left = (int(generator.integers(length - side + 1)) for length in sequence.lr.shape[-2:])
    rows, columns = slice(top, top + side), slice(left, left + side)
    if level:
        cut = sequence.lr[level - 1, t, :, rows, columns]
    else:
        scale = sequence.hr.shape[-1] // sequence.lr.shape[-1]
        cut = sequence.hr[t, :, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
    frame = downscale(torch.from_numpy(np.array(cut)).float()[None] / 255, crop, crop)[0].clamp(0, 1)
    extent = extent_of_flow(sequence.flow[t, ..., rows, columns], level / LEVELS)
    blocks = extent.reshape(crop, reduction, crop, reduction).mean(axis=(1, 3), dtype=np.float32)
    return frame.numpy(), np.asarray(blocks / reduction, dtype=np.float32)


def degraded(generator: np.random.Generator, frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soften some of the frames, add noise to some and compress some, as cameras do; the target stays the same.

    Real video is softer than reduced photographs, whatever the shutter did, and that shall not be taken for motion.
    """
    image = np.ascontiguousarray(frame.transpose(1, 2, 0))
    if generator.random() < 1 / 5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 1.0)), dtype=np.float32)
    if generator.random() < 1 / 3:
        image = image + generator.normal(0, generator.uniform(0.003, 0.03), image.shape).astype(np.float32)
    if generator.random() < 1 / 3:
        codes = (image.clip(0, 1) * 255).round().astype(np.uint8)
        packed = cv2.imencode(".jpg", codes, [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 96))])[1]
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), dtype=np.float32)
        image /= 255
    return np.ascontiguousarray(image.clip(0, 1).transpose(2, 0, 1), dtype=np.float32)


def texture_weight(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight (h, w) in [0.1, 1] of each pixel of a frame (3, h, w) that is hardly blurred, by the slopes around it."""
    grey = frame.mean(axis=0)
    down, across = np.gradient(grey)
    slope = cv2.blur(np.abs(down) + np.abs(across), (7, 7), borderType=cv2.BORDER_REFLECT)
    return np.clip(np.asarray(slope, dtype=np.float32) / FULL_WEIGHT_TEXTURE, 0.1, 1)


def draw_batch(sources: list[Moments], generator: np.random.Generator, count: int, crop: int) -> Batch:
    """Draw `count` crops from the pools in turn; batches mix them, because they share the normalisations."""
    drawn = [version for k in range(count) for version in sources[k % len(sources)].draw(generator, crop)]
    frames, extent, weight = torch.from_numpy(np.stack(drawn)).split((3, 1, 1), dim=1)
    return Batch(frames=frames, extent=extent, weight=weight)


def gradient_length(x: Tensor) -> Tensor:
    """Length of the gradient by central differences: (N, 1, H, W) to (N, 1, H-2, W-2)."""
    across = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    return (across.square() + down.square() + 1e-6).sqrt()


def blur_loss(scaled: Tensor, sharp: Tensor, target: Tensor, extent: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The three terms, weighted: l1 of the scaled extent, 0.5 l1 of its gradient's length, 0.2 cross-entropy.

    Args:
        scaled: (N, 1, H, W) answer in (0, 1).
        sharp: (N, 1, H, W) logit.
        target: (N, 1, H, W) what `scaled` is to be.
        extent: (N, 1, H, W) pixels.
        weight: (N, 1, H, W) of each pixel.
    """

    def mean(errors: Tensor, of: Tensor = weight) -> Tensor:
        return (errors * of).sum() / of.sum()

    slopes = (gradient_length(scaled) - gradient_length(target)).abs()
    doubt = F.binary_cross_entropy_with_logits(sharp, (extent < SHARP_BELOW).float(), reduction="none")
    return {
        "extent": mean((scaled - target).abs()),
        "gradient": 0.5 * mean(slopes, weight[..., 1:-1, 1:-1]),
        "sharp": 0.2 * mean(doubt),
    }


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
                frame, extent = moment(sequence, t, level, np.random.default_rng(0), side, reduction=1)
                frames = torch.from_numpy(frame)[None].to(device)
                answer = analyser.extent(frames)[0, 0].cpu().numpy()
                logit = analyser(frames)[1][0, 0].cpu().numpy()
                pixels.append(extent.mean())
                off.append(np.abs(answer - extent).mean())
                sharp_right.append(((logit > 0) == (extent < SHARP_BELOW)).mean())
            name = f"5:{level}" if level else "sharp"
            lines.append(f"{name} {np.mean(off):.2f} of {np.mean(pixels):.2f} ({100 * np.mean(sharp_right):.0f} %)")
        print(f"{source.pool.folder}: l1 of mean extent in px (sharp or not, right): {', '.join(lines)}", flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, action="append", required=True, help="folder of training.render_pool; may be repeated")
    add("--out", type=Path, required=True, help="folder for checkpoints and curves")
    add("--width", type=int, default=16, help="channels at full size (default: %(default)s, the paper's)")
    add("--steps", type=int, default=100000, help="length of the run (default: %(default)s)")
    add("--max-minutes", type=float, default=float("inf"), help="stop and save after so long")
    add("--crops", type=int, default=11, help=f"crops per batch, each at {VERSIONS} exposures (default: %(default)s)")
    add("--crop", type=int, default=64, help="crop size in pixels (default: %(default)s)")
    add("--learning-rate", type=float, default=2e-3, help="default: %(default)s")
    add("--warmup", type=int, default=200, help="steps of rising learning rate (default: %(default)s)")
    add("--decay", type=float, default=0.5, help="last part of the run, with falling learning rate (%(default)s)")
    add("--save-minutes", type=float, default=4, help="time between checkpoints (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--device", default="cpu", help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    """Train."""
    args = parse_arguments()
    began = time.monotonic()
    torch.manual_seed(args.seed)
    network = BlurAnalyser(BlurConfig(width=args.width)).to(args.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), args.learning_rate, fused=True)
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

    pools = [Pool(folder) for folder in args.pool]
    training = [Moments(pool, held_out=False) for pool in pools]
    held_out = [Moments(pool, held_out=True) for pool in pools]
    for source, kept in zip(training, held_out, strict=True):
        print(f"{source.pool.folder}: {len(source.places)} frames to train on, {len(kept.places)} held out", flush=True)
    writer = SummaryWriter(str(args.out))

    def batch(step: int) -> Batch:
        return draw_batch(training, np.random.default_rng((args.seed, step)), args.crops, args.crop)

    def save(step: int) -> None:
        save_checkpoint(
            latest,
            {
                "network": network.state_dict(),
                "averaged": averaged.network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "config": asdict(network.config),
            },
        )

    progress = Progress(args.steps, first, 100)
    saved = time.monotonic()
    for step, crops in ahead(batch, first, args.steps, args.device):
        rate = args.learning_rate * learning_rate_factor(step, steps=args.steps, warmup=args.warmup, decay=args.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        extent = crops.extent.to(args.device)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16):
            frames = crops.frames.to(args.device).contiguous(memory_format=torch.channels_last)
            scaled, sharp = network(frames)
        losses = blur_loss(scaled, sharp, network.scaled(extent), extent, crops.weight.to(args.device))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update(network, step)

        means = progress.update(step, {name: value.detach() for name, value in losses.items()})
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
    report(averaged.network, held_out, args.device)


if __name__ == "__main__":
    main()
