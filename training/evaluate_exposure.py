"""Does it help to know the exposure? Restoration of clips of changing exposure by where the exposure is taken from.

    python -m training.evaluate_exposure runs/benchmark --model fmanetpp_x4_fast --json exposure.json

`true` is what a number, a property, a sidecar or the camera's telemetry would give; `estimate` is what blur and
motion show, and the network's own reading where they show nothing, as `restore(exposure="estimate")` does; `network` is
its own reading; `wrong` is another level, drawn at random for each frame. The input is the same for all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from training.build_benchmark import load_benchmark
from training.evaluate import load_method
from training.evaluate_blur import clip_estimates, load_estimator_of, settled
from training.scenes.render import to_bytes
from training.scoring import TRANSITIONS, Score, load_clip, load_truth, score_clip
from vsfmanet.errors import ConfigError
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.exposure_extractor import LEVELS

SOURCES = ("true", "estimate", "network", "wrong")
SEED = 2512
"""Of the wrong exposures of scene k, together with k."""


def told(
    source: str, lr: Tensor, exposure: list[float], estimator: ExposureEstimator, generator: np.random.Generator
) -> Tensor:
    """What the network is told of the frames `lr` (T, 3, h, w): (T,) in (0, 1], NaN where it is left to look itself."""
    if source == "true":
        return torch.tensor(exposure)
    if source == "network":
        return torch.full((len(lr),), torch.nan)
    if source == "wrong":
        levels = np.rint(np.asarray(exposure) * LEVELS).astype(np.int64)
        return torch.from_numpy(((levels - 1 + generator.integers(1, LEVELS, len(lr))) % LEVELS + 1) / LEVELS).float()
    readings = clip_estimates(estimator, lr)
    believed = [settled(readings, t) for t in range(len(lr))]
    return torch.tensor([torch.nan if one is None else one.value for one in believed])


def main() -> None:
    """Restore, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder that training.build_benchmark wrote")
    parser.add_argument("--model", required=True, help="name, weights file or checkpoint")
    parser.add_argument("--estimator", type=Path, help="checkpoint of train_shutter; without it the shipped one")
    parser.add_argument("--condition", default="re", help="folder of the clips to restore (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the scores")
    args = parser.parse_args()

    benchmark, estimator = load_benchmark(args.benchmark), load_estimator_of(args.estimator)
    name, network = load_method(args.model)
    if not network.takes_exposure:
        raise ConfigError(f"a model that takes exposures is needed, got {name}; choose one of FMA-Net++")
    scores: list[Score] = []
    for number, scene in enumerate(benchmark.scenes):
        folder = args.benchmark / scene.name
        truth, exposure = load_truth(folder), scene.exposure[args.condition]
        lr = torch.from_numpy(load_clip(folder / args.condition)) / 255
        for source in SOURCES:
            known = told(source, lr, exposure, estimator, np.random.default_rng([SEED, number]))
            with torch.inference_mode():
                output = to_bytes(network.restored(lr[None], known[None])[0])
            nan = float("nan")
            scores += score_clip(source, scene.name, args.condition, output, truth, exposure, nan)
        print(f"{scene.name} ({number + 1}/{len(benchmark.scenes)})", flush=True)

    print(f"{name}, mean over the scenes: PSNR (dB) and tOF (px) of all frames, and where the exposure changes")
    for source in SOURCES:
        cells = []
        for condition in (args.condition, TRANSITIONS):
            own = [score for score in scores if (score.method, score.condition) == (source, condition)]
            if own:
                cells.append(f"{fmean(score.psnr for score in own):7.3f} {fmean(score.tof for score in own):6.3f}")
        print(f"{source:9}{'   '.join(cells)}")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
