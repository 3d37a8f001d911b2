"""Measure the blur analyser and the estimated exposure on scenes with known truth.

    python -m training.evaluate_blur runs/benchmark --photos OTHER_PHOTOS --checkpoint runs/blur/latest.pt \
        --estimator runs/shutter.pt --json runs/blur/scores.json

The benchmark is that of training.build_benchmark; the scenes are drawn again from its photographs, for the exact
extent. Every frame counts once for each condition, and once more sharp. Without `--checkpoint` or `--estimator`, what
ships with the package is measured.
"""

from __future__ import annotations

import argparse
import json
from hashlib import sha256
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.build_benchmark import SCENES, Benchmark, draw_scene, load_benchmark
from training.loop import load_checkpoint
from training.scenes.blur_target import path_extent
from training.scenes.photos import downscale, list_photos
from training.scenes.render import render_flow
from training.scoring import load_clip
from vsfmanet.errors import SourceError
from vsfmanet.exposures.estimate import CONFIDENT, REACH, Estimate, Step, estimate_from_profile, profile, settle
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.exposure_extractor import LEVELS
from vsfmanet.networks.mmpnet import SHARP_BELOW, BlurAnalyser, BlurConfig, fold
from vsfmanet.ops.matching import match_frames
from vsfmanet.weights import load_analyser, load_estimator

MOTIONS = ((0.0, 2.0), (2.0, 4.0), (4.0, float("inf")))
"""Groups by median motion, input pixels per frame."""

Row = dict[str, Any]


@torch.inference_mode()
def clip_profiles(clip: Tensor) -> list[Tensor | None]:
    """Profile of every frame of one scene (T, 3, H, W) in [0, 1], as the filter takes it."""
    there, back = match_frames(clip[:-1], clip[1:]), match_frames(clip[1:], clip[:-1])
    steps = [Step(there=there[t : t + 1], back=back[t : t + 1]) for t in range(len(clip) - 1)]
    turned = [Step(there=step.back, back=step.there) for step in steps]
    return [profile(frame[None], steps[t : t + 2], turned[max(0, t - 2) : t][::-1]) for t, frame in enumerate(clip)]


@torch.inference_mode()
def clip_estimates(estimator: ExposureEstimator, clip: Tensor) -> list[Estimate]:
    """Estimate of every frame of one scene (T, 3, H, W) in [0, 1]."""
    return [estimate_from_profile(described, estimator) for described in clip_profiles(clip)]


def settled(readings: list[Estimate], t: int) -> Estimate | None:
    """What the filter believes of frame `t` of a scene."""
    padding: list[Estimate | None] = [None] * REACH
    return settle([*padding, *readings, *padding][t : t + 2 * REACH + 1], REACH)


@torch.inference_mode()
def measure(
    analyser: BlurAnalyser, estimator: ExposureEstimator, folder: Path, benchmark: Benchmark, photos: list[Path]
) -> list[Row]:
    """One row for each frame of each condition, and of the sharp frames at the size of the blurred ones."""
    rows: list[Row] = []
    for number, (spec, record) in enumerate(zip(SCENES, benchmark.scenes, strict=True)):
        print(f"{record.name} ({number + 1}/{len(SCENES)})", flush=True)
        size = {"height": benchmark.height, "width": benchmark.width, "frames": benchmark.frames}
        scene = draw_scene(spec, number, photos, **size, seed=benchmark.seed)
        flow = render_flow(scene, benchmark.scale)[0].astype(np.float32)
        lengths = np.hypot(flow[:, :, 0], flow[:, :, 1])  # (T, 2, h, w)
        motion = lengths.sum(axis=1) / (lengths.max(axis=(2, 3)) > 0).sum(axis=1).clip(min=1)[:, None, None]
        for condition, exposures in {**record.exposure, "sharp": [0.0] * benchmark.frames}.items():
            codes = torch.from_numpy(load_clip(folder / record.name / condition))
            clip = downscale(codes / 255, *flow.shape[-2:]).clamp(0, 1)
            answers = [analyser(frame[None]) for frame in clip]
            extent = analyser.in_pixels(torch.cat([scaled for scaled, _ in answers]))
            head = torch.cat([sharp > 0 for _, sharp in answers])[:, 0].numpy()
            readings = clip_estimates(estimator, clip)
            for t, exposure in enumerate(exposures):
                truth = path_extent(scene, t, exposure, scale=benchmark.scale) if exposure else np.zeros_like(motion[t])
                believed = settled(readings, t)
                seen = extent[t, 0].numpy()
                rows.append(
                    {
                        "scene": record.name,
                        "condition": condition,
                        "frame": t,
                        "exposure": exposure,
                        "motion": float(np.median(motion[t])),
                        "extent": float(truth.mean()),
                        "extent_error": float(np.abs(seen - truth).mean()),
                        "sharp_right": float(((seen < SHARP_BELOW) == (truth < SHARP_BELOW)).mean()),
                        "sharp": float((truth < SHARP_BELOW).mean()),
                        "called_sharp": float(head[t].mean()),
                        "rightly_sharp": float((head[t] & (truth < SHARP_BELOW)).mean()),
                        "reading": readings[t].value,
                        "confidence": readings[t].confidence,
                        "reading_error": abs(readings[t].value - exposure),
                        "within": abs(readings[t].value - exposure) < 0.1,
                        "estimate": None if believed is None else believed.value,
                        "estimate_error": None if believed is None else abs(believed.value - exposure),
                    }
                )
    return rows


def table(rows: list[Row]) -> list[str]:
    """Extent by condition, then exposure by level and motion, for people."""
    lines = ["mean extent, its l1 error (px), sharp or not right"]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        chosen = [row for row in rows if row["condition"] == condition]
        extent, error, right = (_mean(chosen, name) for name in ("extent", "extent_error", "sharp_right"))
        lines.append(f"{condition:6} {extent}  {error}  {right}")
    lines.append(
        f"the second head, of all pixels: {sharp_head(rows)['accuracy']:.3f} right; of those it calls sharp, "
        f"{sharp_head(rows)['precision']:.3f} are; of the sharp ones, it calls {sharp_head(rows)['recall']:.3f} so"
    )
    lines.append("exposure: frames, part confident, mean error of the confident readings, part of them within 0.1,")
    lines.append("mean error of the estimate that is believed or held, part of frames without")
    for low, high in MOTIONS:
        for level in sorted({row["exposure"] for row in rows}):
            chosen = [row for row in rows if low <= row["motion"] < high and row["exposure"] == level]
            if not chosen:
                continue
            sure = [row for row in chosen if row["confidence"] >= CONFIDENT]
            told = [row for row in chosen if row["estimate"] is not None]
            lines.append(
                f"motion {low:g} to {high:g} px, exposure {level:.1f}: {len(chosen):3}  {len(sure) / len(chosen):.2f}"
                f"  {_mean(sure, 'reading_error')}  {_mean(sure, 'within')}  {_mean(told, 'estimate_error')}"
                f"  {1 - len(told) / len(chosen):.2f}"
            )
    for title, name in (("confident readings", "reading"), ("estimates", "estimate")):
        confusion, count = level_confusion(rows, name)
        if count:
            lines.append(
                f"nearest level of {count} {title} at {MOTIONS[-1][0]:g} px and more, rows 5:1 ... 5:5, percent"
            )
            lines += ["  ".join(f"{value:5.1f}" for value in row) for row in confusion]
            lines.append(f"mean {fmean(confusion.diagonal()):.1f} %")
    return lines


def level_confusion(rows: list[Row], name: str) -> tuple[NDArray[np.float64], int]:
    """Levels 5:1 ... 5:5 as frames that move by 4 pixels and more have them, and how many frames were told.

    Args:
        rows: As `measure` makes them; the sharp ones have no level.
        name: "reading", of which the confident ones count, or "estimate".

    Returns:
        (5, 5) percent of the row, rows the truth; 0 where nothing was told.
    """
    table = np.zeros((LEVELS, LEVELS))
    for row in rows:
        told = row["confidence"] >= CONFIDENT if name == "reading" else row["estimate"] is not None
        if told and row["exposure"] and row["motion"] >= MOTIONS[-1][0]:
            table[round(LEVELS * row["exposure"]) - 1, np.clip(round(LEVELS * row[name]), 1, LEVELS) - 1] += 1
    return 100 * table / table.sum(axis=1, keepdims=True).clip(min=1), int(table.sum())


def sharp_head(rows: list[Row]) -> dict[str, float]:
    """How well the second head tells pixels that moved by less than `SHARP_BELOW`; NaN where there are none."""
    sharp, called, both = (fmean(row[name] for row in rows) for name in ("sharp", "called_sharp", "rightly_sharp"))
    return {
        "accuracy": 1 - (sharp - both) - (called - both),
        "precision": both / called if called else float("nan"),
        "recall": both / sharp if sharp else float("nan"),
    }


def scores(rows: list[Row]) -> dict[str, float]:
    """For the manifest: extent by condition, and the estimate where motion is at least 4 pixels."""
    found = {f"extent_sharp_{name}": value for name, value in sharp_head(rows).items() if isfinite(value)}
    for condition in dict.fromkeys(row["condition"] for row in rows):
        chosen = [row for row in rows if row["condition"] == condition]
        found[f"extent_{condition}"] = fmean(row["extent"] for row in chosen)
        found[f"extent_l1_{condition}"] = fmean(row["extent_error"] for row in chosen)
        moving = [row for row in chosen if row["motion"] >= MOTIONS[-1][0] and row["exposure"]]
        sure = [row for row in moving if row["confidence"] >= CONFIDENT]
        if moving:
            found[f"confident_{condition}"] = len(sure) / len(moving)
        if sure:
            found[f"exposure_error_{condition}"] = fmean(row["estimate_error"] for row in sure)
    return {name: round(value, 4) for name, value in sorted(found.items())}


def _mean(rows: list[Row], name: str) -> str:
    return f"{fmean(row[name] for row in rows):6.3f}" if rows else "     -"


def load(checkpoint: Path | None) -> BlurAnalyser:
    """The averaged weights of a checkpoint of training.train_blur, or the analyser that ships with the package."""
    if checkpoint is None:
        return load_analyser()
    state = load_checkpoint(checkpoint)
    analyser = BlurAnalyser(BlurConfig(**state["config"])).eval()
    analyser.load_state_dict(state["averaged"])
    with torch.no_grad():
        return fold(analyser)


def load_estimator_of(checkpoint: Path | None) -> ExposureEstimator:
    """The estimator in a checkpoint of training.train_shutter, or the one that ships with the package."""
    if checkpoint is None:
        return load_estimator()
    state = load_checkpoint(checkpoint)
    estimator = ExposureEstimator(**state["config"]).eval()
    estimator.load_state_dict(state["reader"])
    return estimator


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder that training.build_benchmark wrote")
    parser.add_argument("--photos", type=Path, required=True, help="the photographs it was built from")
    parser.add_argument("--checkpoint", type=Path, help="latest.pt of training.train_blur")
    parser.add_argument("--estimator", type=Path, help="checkpoint of training.train_shutter")
    parser.add_argument("--json", type=Path, help="write scores and rows")
    args = parser.parse_args()
    benchmark = load_benchmark(args.benchmark)
    photos = list_photos(args.photos)
    if {photo.name: sha256(photo.read_bytes()).hexdigest() for photo in photos} != benchmark.photos:
        raise SourceError(
            f"evaluate_blur: {args.photos} does not hold the photographs that {args.benchmark} was built from; name "
            "their folder, else the truth would be that of other scenes"
        )
    analyser, estimator = load(args.checkpoint), load_estimator_of(args.estimator)
    rows = measure(analyser, estimator, args.benchmark, benchmark, photos)
    print("\n".join(table(rows)))
    if args.json is not None:
        args.json.write_text(
            json.dumps({"scale": benchmark.scale, "scores": scores(rows), "rows": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
