"""Score clips of changing exposure, restored with exposures from different sources.

    python -m training.evaluate_exposure runs/benchmark --model fmanetpp_x4_fast --json exposure.json

`true` is the exposure as a number, a property, a sidecar or telemetry states it; `estimate` is the estimate from blur
and motion, and the network's own where there is none, as in `restore(exposure="estimate")`; `network` is the network's
own estimate; `wrong` is another level, drawn at random for each frame. The input is the same for all.
"""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import torch
from cyclopts import Parameter
from torch import Tensor

from training.data.benchmark import load_benchmark, load_clip
from training.data.render import to_bytes
from training.evaluation.estimates import clip_estimates, settled
from training.metrics.scoring import TRANSITIONS, Score, load_truth, score_clip
from training.options import command
from training.run.trained import load_method, trained_estimator
from vsfmanet.errors import ConfigError
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.exposure_extractor import LEVELS

SOURCES = ("true", "estimate", "network", "wrong")
SEED = 2512
"""Of the wrong exposures of scene k, together with k."""


def given_exposures(
    source: str, lr: Tensor, exposure: list[float], estimator: ExposureEstimator, generator: np.random.Generator
) -> Tensor:
    """Return the exposures (T,) in (0, 1] given for the frames `lr` (T, 3, h, w); NaN where the network estimates."""
    if source == "true":
        return torch.tensor(exposure)
    if source == "network":
        return torch.full((len(lr),), torch.nan)
    if source == "wrong":
        levels = np.rint(np.asarray(exposure) * LEVELS).astype(np.int64)
        return torch.from_numpy(((levels - 1 + generator.integers(1, LEVELS, len(lr))) % LEVELS + 1) / LEVELS).float()
    estimates = clip_estimates(estimator, lr)
    final = [settled(estimates, t) for t in range(len(lr))]
    return torch.tensor([torch.nan if one is None else one.value for one in final])


def evaluate(
    benchmark: Path,
    /,
    *,
    model: str,
    estimator: Path | None = None,
    condition: str = "re",
    scores_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Restore every clip with each source of exposures, and print the scores.

    Args:
        benchmark: Folder that training.build_benchmark wrote.
        model: Name, weights file or checkpoint of FMA-Net++.
        estimator: Checkpoint of training.train_shutter; without it, the estimator that ships.
        condition: Folder of the clips to restore.
        scores_file: JSON file for the score of every clip.
    """
    record, fitted = load_benchmark(benchmark), trained_estimator(estimator)
    name, network = load_method(model)
    if not network.takes_exposure:
        raise ConfigError(f"a model that takes exposures is needed, got {name}; choose one of FMA-Net++")
    scores: list[Score] = []
    for number, scene in enumerate(record.scenes):
        folder = benchmark / scene.name
        truth, exposure = load_truth(folder), scene.exposure[condition]
        lr = torch.from_numpy(load_clip(folder / condition)) / 255
        for source in SOURCES:
            known = given_exposures(source, lr, exposure, fitted, np.random.default_rng([SEED, number]))
            with torch.inference_mode():
                output = to_bytes(network.restored(lr[None], known[None])[0])
            done, _ = score_clip(source, scene.name, condition, output, truth, exposure, float("nan"))
            scores += done
        print(f"{scene.name} ({number + 1}/{len(record.scenes)})", flush=True)

    print(f"{name}, mean over the scenes: PSNR (dB) and tOF (px) of all frames, and where the exposure changes")
    for source in SOURCES:
        cells = []
        for shown in (condition, TRANSITIONS):
            own = [score for score in scores if (score.method, score.condition) == (source, shown)]
            if own:
                cells.append(f"{fmean(score.psnr for score in own):7.3f} {fmean(score.tof for score in own):6.3f}")
        print(f"{source:9}{'   '.join(cells)}")
    if scores_file is not None:
        scores_file.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n", encoding="utf-8")


main = command(evaluate, __doc__)

if __name__ == "__main__":
    main()
