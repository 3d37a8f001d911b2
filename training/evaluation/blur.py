"""The blur analyser and the estimated exposure against known truth."""

from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.benchmark import SCENES, Benchmark, draw_scene, load_clip
from training.data.extent import path_extent
from training.data.photos import downscale
from training.data.render import render_flow
from training.evaluation.estimates import clip_estimates, settled
from vsfmanet.exposures.estimate import CONFIDENT
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.exposure_extractor import LEVELS
from vsfmanet.networks.mmpnet import SHARP_BELOW, BlurAnalyser

MOTIONS = ((0.0, 2.0), (2.0, 4.0), (4.0, float("inf")))
"""Groups by median motion, input pixels per frame."""

Row = dict[str, Any]


@torch.inference_mode()
def measure(
    analyser: BlurAnalyser, estimator: ExposureEstimator, folder: Path, benchmark: Benchmark, photos: list[Path]
) -> list[Row]:
    """Measure each frame of each condition, and the sharp frames at the size of the blurred ones; one row a frame."""
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
            estimates = clip_estimates(estimator, clip)
            for t, exposure in enumerate(exposures):
                truth = path_extent(scene, t, exposure, scale=benchmark.scale) if exposure else np.zeros_like(motion[t])
                final = settled(estimates, t)
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
                        "frame_estimate": estimates[t].value,
                        "confidence": estimates[t].confidence,
                        "frame_error": abs(estimates[t].value - exposure),
                        "within": abs(estimates[t].value - exposure) < 0.1,
                        "estimate": None if final is None else final.value,
                        "estimate_error": None if final is None else abs(final.value - exposure),
                    }
                )
    return rows


def table(rows: list[Row]) -> list[str]:
    """Format extent by condition, then exposure by level and motion, as lines."""
    lines = ["mean extent, its l1 error (px), sharp or not right"]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        chosen = [row for row in rows if row["condition"] == condition]
        extent, error, right = (_mean(chosen, name) for name in ("extent", "extent_error", "sharp_right"))
        lines.append(f"{condition:6} {extent}  {error}  {right}")
    lines.append(
        f"the second head, of all pixels: {sharp_head(rows)['accuracy']:.3f} right; of those it calls sharp, "
        f"{sharp_head(rows)['precision']:.3f} are; of the sharp ones, it calls {sharp_head(rows)['recall']:.3f} so"
    )
    lines.append("exposure: frames, part confident, mean error of the confident estimates, part of them within 0.1,")
    lines.append("mean error of the final estimate, part of frames without one")
    for low, high in MOTIONS:
        for level in sorted({row["exposure"] for row in rows}):
            chosen = [row for row in rows if low <= row["motion"] < high and row["exposure"] == level]
            if not chosen:
                continue
            sure = [row for row in chosen if row["confidence"] >= CONFIDENT]
            kept = [row for row in chosen if row["estimate"] is not None]
            lines.append(
                f"motion {low:g} to {high:g} px, exposure {level:.1f}: {len(chosen):3}  {len(sure) / len(chosen):.2f}"
                f"  {_mean(sure, 'frame_error')}  {_mean(sure, 'within')}  {_mean(kept, 'estimate_error')}"
                f"  {1 - len(kept) / len(chosen):.2f}"
            )
    for title, name in (("confident estimates of frames", "frame_estimate"), ("final estimates", "estimate")):
        confusion, count = level_confusion(rows, name)
        if count:
            lines.append(
                f"nearest level of {count} {title} at {MOTIONS[-1][0]:g} px and more, rows 5:1 ... 5:5, percent"
            )
            lines += ["  ".join(f"{value:5.1f}" for value in row) for row in confusion]
            lines.append(f"mean {fmean(confusion.diagonal()):.1f} %")
    return lines


def level_confusion(rows: list[Row], name: str) -> tuple[NDArray[np.float64], int]:
    """Count the estimated levels 5:1 ... 5:5 of frames that move by 4 pixels and more.

    Args:
        rows: As `measure` makes them; the sharp ones have no level.
        name: "frame_estimate", of which the confident ones count, or "estimate".

    Returns:
        (5, 5) percent of the row, rows the truth; and the number of frames that have an estimate.
    """
    table = np.zeros((LEVELS, LEVELS))
    for row in rows:
        kept = row["confidence"] >= CONFIDENT if name == "frame_estimate" else row["estimate"] is not None
        if kept and row["exposure"] and row["motion"] >= MOTIONS[-1][0]:
            table[round(LEVELS * row["exposure"]) - 1, np.clip(round(LEVELS * row[name]), 1, LEVELS) - 1] += 1
    return 100 * table / table.sum(axis=1, keepdims=True).clip(min=1), int(table.sum())


def sharp_head(rows: list[Row]) -> dict[str, float]:
    """Measure how well the second head finds pixels that moved by less than `SHARP_BELOW`; NaN where there are none."""
    sharp, called, both = (fmean(row[name] for row in rows) for name in ("sharp", "called_sharp", "rightly_sharp"))
    return {
        "accuracy": 1 - (sharp - both) - (called - both),
        "precision": both / called if called else float("nan"),
        "recall": both / sharp if sharp else float("nan"),
    }


def scores(rows: list[Row]) -> dict[str, float]:
    """Compute the scores of the manifest: extent by condition, and the estimate where motion is at least 4 pixels."""
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
