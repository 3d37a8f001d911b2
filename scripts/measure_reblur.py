"""Measure `shutter` and `self_check` on a benchmark of scale 1 from training.build_benchmark.

python scripts/measure_reblur.py BENCHMARK --model fmanetpp_x1_fast --scenes 4

Of frames whose exposure changes ("re"), the restored ones are blurred to 3/5 and compared with the truth at 3/5. Then a
piece of every fourth restored frame is damaged, and the reblur error must find those frames.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from vsfmanet.clips.reblur import reblur_error
from vsfmanet.media.clip import FAR, LEAST_FAR
from vsfmanet.ops.matching import match_frames
from vsfmanet.ops.reblur import blur_along
from vsfmanet.restorer import Restorer

SHUTTER, LEVEL = 0.6, "5_3"
PIECE, SHIFT = 24, 5
"""Side of the piece that is damaged, and by how many pixels it is moved."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip in memory."""

    frames: Tensor
    exposures: Sequence[float]

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def frame(self, n: int) -> Tensor:
        return self.frames[n]

    def exposure(self, n: int) -> float | None:
        return self.exposures[n]

    def starts_scene(self, n: int) -> bool:
        return n == 0


def main() -> None:
    """Print both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path)
    parser.add_argument("--model", default="fmanetpp_x1_fast")
    parser.add_argument("--scenes", type=int, default=4)
    args = parser.parse_args()
    described = json.loads((args.benchmark / "benchmark.json").read_text())
    scores: dict[str, list[float]] = {}
    found: list[tuple[float, float]] = []
    with Restorer(args.model, device="cpu") as restorer:
        for scene in described["scenes"][: args.scenes]:
            folder = args.benchmark / scene["name"]
            clip = Clip(frames=read(folder / "re"), exposures=scene["exposure"]["re"])
            restored = torch.stack([each.frame for each in restorer.restore(clip, 0, clip.num_frames)])
            motions = [motion(clip.frames, n) for n in range(clip.num_frames)]
            score(scores, folder, clip, restored, motions)
            found += errors(clip, restored, motions)
    for name, values in scores.items():
        print(f"{name:34} {statistics.mean(values):8.3f}")
    detected(found)


def read(folder: Path) -> Tensor:
    """Frames of a folder, (T, 3, H, W) RGB in [0, 1]."""
    images = [np.asarray(cv2.imread(str(path)))[..., ::-1].copy() for path in sorted(folder.glob("*.png"))]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images])


def motion(frames: Tensor, n: int) -> Tensor:
    """Motion through frame `n`, (2, H, W) in pixels a frame interval, as the filter measures it."""
    ways = []
    if n + 1 < len(frames):
        ways.append(match_frames(frames[n : n + 1], frames[n + 1 : n + 2])[0])
    if n:
        ways.append(-match_frames(frames[n : n + 1], frames[n - 1 : n])[0])
    return torch.stack(ways).mean(dim=0)


def score(
    scores: dict[str, list[float]], folder: Path, clip: Clip, restored: Tensor, motions: Sequence[Tensor]
) -> None:
    """Compare frames with those of a shutter of `SHUTTER`."""
    truth, sharp = read(folder / LEVEL), read(folder / "sharp")
    blurred, ideal = (
        torch.stack(
            [blur_along(frame[None], way[None], SHUTTER)[0] for frame, way in zip(frames, motions, strict=True)]
        )
        for frames in (restored, sharp)
    )
    for name, frames in {
        "source": clip.frames,
        "restored": restored,
        "restored, one shutter": blurred,
        "truth, blurred by measured motion": ideal,
    }.items():
        scores.setdefault(f"PSNR {name}", []).extend(psnr(*pair) for pair in zip(frames, truth, strict=True))
        ratios = [float(detail(a) / detail(b)) for a, b in zip(frames, truth, strict=True)]
        scores.setdefault(f"unevenness {name}", []).append(statistics.pstdev(ratios))


def errors(clip: Clip, restored: Tensor, motions: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Reblur error of each frame over that from which on it is listed, as it is and with a piece of it moved."""
    luma = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)
    own: list[float] = []
    harmed: list[float] = []
    for n, (frame, way) in enumerate(zip(restored, motions, strict=True)):
        damaged = frame.clone()
        top, left = (7 + 31 * n) % (frame.shape[1] - 2 * PIECE), (11 + 47 * n) % (frame.shape[2] - 2 * PIECE)
        there = (slice(None), slice(top, top + PIECE), slice(left, left + PIECE))
        damaged[there] = frame.roll((SHIFT, SHIFT), (1, 2))[there]
        before = (clip.frames[n] * luma).sum(dim=0)
        for kept, image in ((own, frame), (harmed, damaged)):
            after = (image * luma).sum(dim=0)
            kept.append(reblur_error(before, after, way, exposures=(clip.exposures[n],)))
    usual = statistics.median(own)
    least = max(FAR * usual, LEAST_FAR)
    return [(a / least, b / least) for a, b in zip(own, harmed, strict=True)]


def detected(found: Sequence[tuple[float, float]]) -> None:
    """Print how many whole and damaged frames are listed."""
    whole, damaged = (sum(pair[k] > 1 for pair in found) for k in (0, 1))
    higher = sum(after > before for before, after in found)
    print(f"listed: {whole} of {len(found)} whole frames, {damaged} of {len(found)} with a piece moved")
    print(f"error higher with a piece moved: {higher} of {len(found)}")


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB, without 8 pixels at the border."""
    return float(-10 * (a - b)[:, 8:-8, 8:-8].square().mean().log10())


def detail(frame: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels."""
    return frame.diff(dim=1).abs().mean() + frame.diff(dim=2).abs().mean()


if __name__ == "__main__":
    main()
