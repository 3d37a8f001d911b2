"""Stage 1: the exposure extractor (ETE), by supervised contrast between exposure levels.

    python -m training.train_extractor --pool runs/pool --preset fast --out runs/extractor.pt

Source: FMA-Net++ (arXiv 2512.04390), Sec. 3.3, S1, S4.1. Each batch holds the same crops at all five levels, so that
content says nothing about the label; crops without motion are left out, because exposure cannot be seen there.
Departure: a cosine classifier is trained along and then dropped. Contrast alone takes long to leave the content, in
which the five versions of a crop agree, for the blur, in which they differ.

A frame shows how long its blur is, not how fast things moved. So the report ends with the accuracy of a vote by the
true lengths of blur: where scenes move at all speeds, no reading of single frames comes far beyond it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.loop import Progress, ahead, learning_rate_factor, save_checkpoint
from training.losses import supervised_contrastive
from training.scenes.blur_target import extent_of_flow
from training.scenes.pool import Pool
from vsfmanet.networks.exposure_extractor import LEVELS, ExposureExtractor, fit_temperature
from vsfmanet.networks.fmanetpp import preset

MIN_MOTION = 2.0
"""95th percentile of the motion, in LR pixels per frame, below which a frame's exposure counts as invisible."""
CLASS_TEMPERATURE = 0.1
"""Of the cosine classifier."""
HELD_OUT = 10
"""One sequence in so many is kept for the accuracy."""
PERCENTILES = (5, 10, 25, 50, 75, 90, 95)
"""By which the lengths of blur in a frame are told."""
MANY = 50
"""Votes that come near the best decision by the lengths of blur; five are too few for it."""
APART = 100
"""More than lengths of blur can differ, as logarithms."""


def visible_motion(pool: Pool, position: int) -> NDArray[np.int64]:
    """Frames of a sequence that move enough to show their exposure."""
    flow = np.asarray(pool.sequence(position).flow, dtype=np.float32)  # (T, 2, 2, h, w)
    speed = np.hypot(flow[:, :, 0], flow[:, :, 1]).max(axis=1)
    return np.flatnonzero(np.percentile(speed, 95, axis=(1, 2)) >= MIN_MOTION)


def draw(
    pool: Pool, moving: list[tuple[int, int]], generator: np.random.Generator, count: int, crop: int
) -> tuple[Tensor, Tensor]:
    """Draw crops at all levels, flipped and transposed at random.

    Args:
        pool: Where they are taken from.
        moving: Sequence and frame of those that may be taken.
        generator: Source of all randomness.
        count: How many.
        crop: Size in LR pixels.

    Returns:
        (count, 5, 3, crop, crop) in [0, 1], and the sequence (count,) that each is of.
    """
    out, sequences = [], []
    for pick in generator.integers(len(moving), size=count):
        position, t = moving[pick]
        sequences.append(position)
        lr = pool.sequence(position).lr
        top, left = (int(generator.integers(side - crop + 1)) for side in lr.shape[-2:])
        patch = lr[:, t, :, top : top + crop, left : left + crop]
        for axis in (2, 3):
            if generator.random() < 0.5:
                patch = np.flip(patch, axis)
        out.append(patch.transpose(0, 1, 3, 2) if generator.random() < 0.5 else patch)
    return torch.from_numpy(np.stack(out)).float() / 255, torch.tensor(sequences)


def true_blur(pool: Pool, frames: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """What a perfect measure of blur tells of frames that have both neighbours; others are left out.

    Args:
        pool: Where they are.
        frames: Sequence and frame of each.

    Returns:
        (N, 5, P) logarithms of the percentiles of the blur's length in LR pixels at every level, and the sequence (N,).
    """
    told, sequences = [], []
    for position, t in frames:
        flow = pool.sequence(position).flow
        if 0 < t < len(flow) - 1:
            lengths = [np.percentile(extent_of_flow(flow[t], k / LEVELS), PERCENTILES) for k in range(1, LEVELS + 1)]
            told.append(np.log(np.stack(lengths) + 0.05))
            sequences.append(position)
    return torch.from_numpy(np.stack(told)).float(), torch.tensor(sequences)


@torch.no_grad()
def nearest_neighbour_confusion(embed: Tensor, label: Tensor, fold: Tensor, neighbours: int = 5) -> Tensor:
    """Confusion of a k-nearest-neighbour vote in cross-validation.

    Args:
        embed: (N, U); of unit length, their distance orders them as their cosine does.
        label: (N,), 0 ... 4.
        fold: (N,), the part of the cross-validation that each belongs to; only the others vote for it.
        neighbours: Votes, by distance.

    Returns:
        (5, 5), rows the truth, in percent of the row.

    Source: FMA-Net++ (arXiv 2512.04390), S4.1.
    """
    distance = torch.cdist(embed, embed).masked_fill(fold[:, None] == fold[None, :], torch.inf)
    nearest = distance.topk(min(neighbours, len(label)), dim=1, largest=False)
    votes = (F.one_hot(label[nearest.indices], LEVELS) * nearest.values.isfinite()[..., None]).sum(dim=1)
    table = torch.zeros(LEVELS, LEVELS)
    table.index_put_((label, votes.argmax(dim=1)), torch.ones(len(label)), accumulate=True)
    return 100 * table / table.sum(dim=1, keepdim=True).clamp(min=1)


def random_folds(count: int) -> Tensor:
    """Five parts of equal size, (count,), the same ones every time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % 5


def print_confusion(title: str, confusion: Tensor) -> None:
    """Print a confusion (5, 5) in percent, and its mean accuracy."""
    print(f"{title}, rows 5:1 ... 5:5, percent")
    print("\n".join("  ".join(f"{value:5.1f}" for value in row) for row in confusion.tolist()))
    print(f"mean {confusion.diagonal().mean():.1f} %")


def print_bound(lengths: Tensor, sequences: Tensor) -> None:
    """Print the accuracies of votes by true lengths of blur, as `true_blur` returns them."""
    told, scenes = lengths.flatten(0, 1), sequences.repeat_interleave(LEVELS)
    level = torch.arange(LEVELS).repeat(len(lengths))
    by_scene = torch.cat([told, APART * F.one_hot(scenes)], dim=1)  # neighbours are of the same scene
    for title, told_of, fold, votes in (
        ("random folds", told, random_folds(len(told)), 5),
        ("random folds, the scene known", by_scene, random_folds(len(told)), 5),
        ("leaving out the scene", told, scenes, 5),
        (f"leaving out the scene, {MANY} votes", told, scenes, MANY),
    ):
        confusion = nearest_neighbour_confusion(told_of, level, fold, votes)
        print(f"by the true lengths of blur, {title}: {confusion.diagonal().mean():.1f} %")


@torch.no_grad()
def anchors(extractor: ExposureExtractor, crops: Tensor) -> Tensor:
    """Mean embedding of each level, (5, U), unit length, over crops (K, 5, 3, h, w)."""
    return F.normalize(extractor(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]).mean(dim=0), dim=1)


def main() -> None:
    """Train, report the accuracy on sequences never trained on, and save extractor and anchors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="folder that training.render_pool wrote")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--preset", default="fast", choices=("paper", "base", "fast"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20000, help="default: %(default)s")
    parser.add_argument(
        "--crops", type=int, default=24, help="crops per batch, each at 5 levels (default: %(default)s)"
    )
    parser.add_argument("--crop", type=int, default=64, help="crop size in LR pixels (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    config = preset(args.preset)
    extractor = ExposureExtractor(config.extractor_width, config.extractor_blocks)
    extractor.to(args.device).to(memory_format=torch.channels_last).train()
    prototypes = torch.nn.Parameter(torch.randn(LEVELS, extractor.embed_width, device=args.device))
    optimizer = torch.optim.Adam([*extractor.parameters(), prototypes], args.learning_rate)

    pool = Pool(args.pool)
    moving = [(position, int(t)) for position in range(len(pool)) for t in visible_motion(pool, position)]
    training = [item for item in moving if item[0] % HELD_OUT]
    held_out = [item for item in moving if not item[0] % HELD_OUT]
    print(f"{len(training)} frames to train on, {len(held_out)} held out")
    label = torch.arange(LEVELS, device=args.device).repeat(args.crops)

    def batch(step: int) -> Tensor:
        crops = draw(pool, training, np.random.default_rng((args.seed, step)), args.crops, args.crop)[0]
        return crops.to(args.device)

    progress = Progress(args.steps, 0, 25)
    for step, crops in ahead(batch, 0, args.steps, args.device):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * learning_rate_factor(step, steps=args.steps, warmup=100, decay=0.7)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16):
            embed = extractor(crops.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        contrast = supervised_contrastive(embed, label)
        classes = F.cross_entropy(embed @ F.normalize(prototypes, dim=1).T / CLASS_TEMPERATURE, label)
        (contrast + classes).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.update(step, {"contrast": contrast.detach(), "classes": classes.detach()})

    extractor.eval()
    generator = np.random.default_rng((args.seed, 1, 0))
    crops, sequences = draw(pool, held_out, generator, 100, args.crop)
    with torch.no_grad():
        embed = extractor(crops.flatten(0, 1).to(args.device)).cpu()
    levels = torch.arange(LEVELS).repeat(len(crops))
    # The published figure is of random folds, in which scenes, here even the other levels of a crop, are shared.
    confusion = nearest_neighbour_confusion(embed, levels, random_folds(len(embed)))
    print_confusion("k-NN accuracy on sequences never trained on, random folds", confusion)
    apart = nearest_neighbour_confusion(embed, levels, sequences.repeat_interleave(LEVELS))
    print_confusion("the same, leaving out the scene in question", apart)
    print_bound(*true_blur(pool, held_out))
    mean = anchors(extractor, draw(pool, training, generator, 200, args.crop)[0].to(args.device))
    temperature = fit_temperature(mean.cpu(), embed, levels)
    probability = (embed @ mean.cpu().T / temperature).softmax(dim=1).view(-1, LEVELS, LEVELS)
    accuracy = (probability.argmax(dim=2) == torch.arange(LEVELS)).float().mean()
    print(f"nearest anchor right in {100 * accuracy:.1f} %, reading temperature {temperature:.3g}")
    save_checkpoint(
        args.out,
        {
            "preset": args.preset,
            "extractor": extractor.state_dict(),
            "anchors": mean,
            "reading_temperature": temperature,
            "confusion": confusion,
            "confusion_by_scene": apart,
        },
    )


if __name__ == "__main__":
    main()
