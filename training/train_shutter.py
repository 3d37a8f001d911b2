"""The estimator of exposures: two layers fitted to the profiles of rendered scenes at known exposures.

    python -m training.train_shutter --pool runs/pool --pool runs/pool_x1 --profiles runs/shutter \
        --out runs/shutter.pt

Profiles are taken of every sequence that moves, at all five exposures and sharp (exposure 0), which takes most of the
time, and kept in the folder `--profiles`, one file a sequence; the same command goes on after a stop. Half of the clips
go through a random camera and file first (training.data.degrade). The fit takes a minute. One sequence in ten is kept
for the report.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.data.degrade import degrade_clips
from training.data.photos import downscale
from training.data.pool import Pool
from training.data.render import Sequence
from training.evaluation.estimates import clip_profiles
from training.options import command
from training.run.checkpoint import load_checkpoint, save_checkpoint
from vsfmanet.errors import SourceError
from vsfmanet.exposures.estimate import CONFIDENT, INPUTS
from vsfmanet.networks.exposure_estimator import TOLERANCE, ExposureEstimator, confidence
from vsfmanet.networks.exposure_extractor import LEVELS

MIN_MOTION = 2.0
"""Mean motion in pixels per frame below which a sequence is left out: its exposure cannot be seen."""

HELD_OUT = 10
"""One sequence in so many is kept for the report."""

DEGRADED = 0.5
"""Chance of each clip to get noise, sharpening or compression before its profiles are taken."""

BATCH = 256
"""Profiles per step of the fit."""

NOISE = 0.2
"""Standard deviation of noise added to the inputs, each scaled to 1, against overfitting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profiles:
    """Profiles of N frames."""

    profile: Tensor
    """(N, `INPUTS`)."""
    exposure: Tensor
    """(N,) in [0, 1]."""
    motion: Tensor
    """(N,) median motion in pixels per frame."""
    held_out: Tensor
    """(N,) whether kept for the report."""


def take_profiles(pool: Pool, position: int, seed: int) -> dict[str, Tensor]:
    """Profiles of every second inner frame of a sequence at all exposures; none if it hardly moves."""
    sequence = pool.sequence(position)
    generator = np.random.default_rng([seed, position])
    flow = np.asarray(sequence.flow[1:-1, :, :, ::4, ::4], dtype=np.float32)
    motion = np.median(np.hypot(flow[:, :, 0], flow[:, :, 1]).mean(axis=1), axis=(1, 2))
    found: list[tuple[Tensor, float, float]] = []
    if motion.mean() >= MIN_MOTION:
        for level in range(LEVELS + 1):
            codes = torch.from_numpy(np.array(sequence.lr[level - 1])) if level else reduced_truth(sequence)
            clip = degrade_clips(generator, codes[None], DEGRADED)[0] / 255
            described = clip_profiles(clip)[1:-1]
            pairs = list(zip(described, motion, strict=True))[::2]
            found += [(one, level / LEVELS, float(speed)) for one, speed in pairs if one is not None]
    return {
        "profile": torch.stack([one for one, _, _ in found]) if found else torch.empty(0, INPUTS),
        "exposure": torch.tensor([exposure for _, exposure, _ in found]),
        "motion": torch.tensor([speed for _, _, speed in found]),
    }


def reduced_truth(sequence: Sequence) -> Tensor:
    """The sharp frames at the size of the blurred ones: (T, 3, h, w) 8-bit code values."""
    codes = torch.from_numpy(np.array(sequence.hr)).float()
    return downscale(codes, *sequence.lr.shape[-2:]).round().clamp(0, 255).byte()


def collect(pools: list[Pool], folder: Path, minutes: float, seed: int) -> Profiles:
    """Take the profiles that are not in `folder` yet, from all pools in turn, as long as there is time; read all.

    Raises:
        SourceError: None of the sequences moves.
    """
    began, parts = time.monotonic(), []
    for position in range(max(len(pool) for pool in pools)):
        for pool in pools:
            path = folder / pool.folder.name / f"{position:06d}.pt"
            if position < len(pool) and not path.exists() and time.monotonic() - began < 60 * minutes:
                save_checkpoint(path, take_profiles(pool, position, seed))
            if path.exists():
                part = load_checkpoint(path)
                parts.append(part | {"held_out": torch.full((len(part["exposure"]),), position % HELD_OUT == 0)})
    names = ("profile", "exposure", "motion", "held_out")
    joined = {name: torch.cat([part[name] for part in parts]) for name in names} if parts else {}
    if not joined or not len(joined["exposure"]):
        raise SourceError("sequences that move are needed, got none; name other pools, or take more time")
    return Profiles(**joined)


def fit(profiles: Profiles, steps: int, learning_rate: float) -> ExposureEstimator:
    """Fit an estimator by the likelihood of its answers under Laplace's distribution, which learns the error too."""
    chosen = ~profiles.held_out
    inputs, target = profiles.profile[chosen], profiles.exposure[chosen]
    estimator = ExposureEstimator(INPUTS)
    estimator.centre.copy_(inputs.mean(dim=0))
    estimator.spread.copy_(inputs.std(dim=0) + 1e-6)
    optimizer = torch.optim.AdamW(estimator.parameters(), learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(target), (BATCH,))
        exposure, log_error = estimator(inputs[batch] + NOISE * estimator.spread * torch.randn(BATCH, INPUTS))
        loss = ((exposure - target[batch]).abs() * torch.exp(-log_error) + log_error).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return estimator.eval()


@torch.no_grad()
def report(estimator: ExposureEstimator, profiles: Profiles) -> None:
    """Print the error by motion, and whether the confidence is what it claims to be."""
    exposure, log_error = estimator(profiles.profile)
    error, sure = (exposure - profiles.exposure).abs(), confidence(log_error)
    print(f"{int((~profiles.held_out).sum())} frames fitted, mean error {error[~profiles.held_out].mean():.3f}")
    for low, high in ((2, 4), (4, 8), (8, 1000)):
        chosen = profiles.held_out & (profiles.motion >= low) & (profiles.motion < high)
        if chosen.any():
            mean = error[chosen].mean()
            print(f"held out, motion {low} to {high} px: {int(chosen.sum())} frames, mean error {mean:.3f}")
    for least, most in ((0.0, CONFIDENT), (CONFIDENT, 0.7), (0.7, 1.0)):
        chosen = profiles.held_out & (sure >= least) & (sure < most)
        if chosen.any():
            right = (error[chosen] < TOLERANCE).float().mean()
            print(f"held out, confidence {least} to {most}: {int(chosen.sum())} frames, {right:.2f} within {TOLERANCE}")


def train(
    *,
    pool: tuple[Path, ...],
    profiles: Path,
    out: Path,
    max_minutes: float = float("inf"),
    steps: int = 15000,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> None:
    """Take profiles, fit, report and save.

    Args:
        pool: Folder that training.render_pool wrote; may be repeated.
        profiles: Folder to keep profiles in.
        out: Checkpoint to write.
        max_minutes: Stop taking profiles after this many minutes; the same command continues.
        steps: Steps of the fit.
        learning_rate: Learning rate of the fit.
        seed: Seed of the degradations and of the fit.
    """
    torch.manual_seed(seed)
    taken = collect([Pool(folder) for folder in pool], profiles, max_minutes, seed)
    estimator = fit(taken, steps, learning_rate)
    report(estimator, taken)
    config = {"inputs": INPUTS, "hidden": estimator.hidden.out_features}
    save_checkpoint(out, {"reader": estimator.state_dict(), "config": config, "frames": len(taken.exposure)})


main = command(train, __doc__)

if __name__ == "__main__":
    main()
