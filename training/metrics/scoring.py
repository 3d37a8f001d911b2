"""Scores of a restored clip against the sharp clip, as a whole and where the exposure changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.benchmark import load_clip
from training.losses.frames import enlarge_flow
from training.metrics.frames import estimate_flow, opw_by_pair, psnr, ssim, tof_by_pair

TRANSITIONS = "re_transitions"
"""Condition of the frames of changing exposure that differ in exposure from the frame before."""

METRICS = {
    "psnr": "PSNR (dB, higher is better)",
    "ssim": "SSIM (higher)",
    "tof": "tOF (pixels, lower)",
    "opw": "OPW (percent, lower, with that of truth as floor)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One method on one clip; means over its frames, or over the pairs of consecutive frames."""

    method: str
    """Name of the network or kernel."""
    scene: str
    """Name of the scene."""
    condition: str
    """Exposure: 5_1 to 5_5, re, or `TRANSITIONS`."""
    psnr: float
    """Decibels."""
    ssim: float
    """At most 1."""
    tof: float
    """Pixels."""
    opw: float
    """Percent of full scale."""
    seconds: float
    """Seconds per frame, of restoring alone."""
    frames: int
    """Number of frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameScore:
    """One method on one frame."""

    method: str
    """Name of the network or kernel."""
    scene: str
    """Name of the scene."""
    condition: str
    """Exposure: 5_1 to 5_5, or re."""
    frame: int
    """Number in the clip, from 0."""
    psnr: float
    """Decibels."""
    ssim: float
    """At most 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """The sharp clip of a scene, and how it moves."""

    frames: NDArray[np.uint8]
    """(T, 3, H, W)."""
    estimated_flow: NDArray[np.float32]
    """(T - 1, H, W, 2) Farneback flow forward, for tOF."""
    flow: NDArray[np.float32]
    """(T - 1, 2, H, W) pixels to the frame before, for OPW."""
    visible: NDArray[np.float32]
    """(T - 1, H, W) 1 where the pixel can be found there, else 0."""
    exact: bool
    """Whether `flow` and `visible` are those of the rendered scene, not estimated from the frames."""


def load_truth(folder: Path) -> Truth:
    """Read the sharp clip of a scene in `folder`, and its exact motion if it is there; else estimate it."""
    frames = load_clip(folder / "sharp")
    motion = folder / "motion.npz"
    if not motion.is_file():
        back = estimate_flow(frames[::-1])[::-1]
        flow, visible = back.transpose(0, 3, 1, 2).copy(), np.ones((len(back), *frames.shape[2:]), dtype=np.float32)
    else:
        stored = np.load(motion)
        lr_flow = torch.from_numpy(stored["flow"][1:, 1]).float()
        scale = frames.shape[-1] // lr_flow.shape[-1]
        flow = enlarge_flow(lr_flow, scale).numpy()
        visible = stored["visible"][1:, 1].repeat(scale, axis=1).repeat(scale, axis=2).astype(np.float32)
    return Truth(
        frames=frames,
        estimated_flow=estimate_flow(frames),
        flow=flow,
        visible=visible,
        exact=motion.is_file(),
    )


def score_clip(
    method: str,
    scene: str,
    condition: str,
    output: NDArray[np.uint8],
    truth: Truth,
    exposure: Sequence[float],
    seconds: float,
) -> tuple[list[Score], list[FrameScore]]:
    """Score a restored clip (T, 3, H, W): as a whole and, where its exposure changes, at the changes; and by frame."""
    frames = [
        FrameScore(
            method=method, scene=scene, condition=condition, frame=number, psnr=psnr(own, sharp), ssim=ssim(own, sharp)
        )
        for number, (own, sharp) in enumerate(zip(output, truth.frames, strict=True))
    ]
    by_frame = {name: np.array([getattr(frame, name) for frame in frames]) for name in ("psnr", "ssim")}
    by_pair = {
        "tof": tof_by_pair(output, truth.frames, truth.estimated_flow),
        "opw": opw_by_pair(output, truth.frames, truth.flow, truth.visible),
    }
    changed = np.diff(np.asarray(exposure)) != 0  # (T - 1,), of frames 1 ... T - 1
    chosen = {condition: (np.ones(len(output), dtype=bool), np.ones(len(output) - 1, dtype=bool))}
    if changed.any():
        chosen[TRANSITIONS] = (np.concatenate([[False], changed]), changed)
    scores = [
        Score(
            method=method,
            scene=scene,
            condition=name,
            psnr=float(by_frame["psnr"][those].mean()),
            ssim=float(by_frame["ssim"][those].mean()),
            tof=float(by_pair["tof"][pairs].mean()),
            opw=float(by_pair["opw"][pairs].mean()),
            seconds=seconds,
            frames=int(those.sum()),
        )
        for name, (those, pairs) in chosen.items()
    ]
    return scores, frames


BASELINES = ("bicubic", "lanczos", "lanczos_sharp", "input", "input_sharp")
"""Methods without a network; the first of those that are run is what gains are counted from."""
