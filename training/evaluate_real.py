"""Score restored clips without truth by NIQE: real footage, of which nobody has the sharp frames.

    python -m training.evaluate_real CLIP CLIP --pristine PHOTOS --model fmanetpp_x4_fast --model fmanetpp_x4_base

A clip is a folder of PNG frames. `--pristine` is a folder of good photographs, whose statistics NIQE compares with; see
`training.metrics.niqe` for what this means for the scores.
"""

from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch

from training.data.benchmark import load_clip
from training.data.photos import list_photos, load_photo
from training.data.render import to_bytes
from training.evaluation.methods import Restore, baselines, load_networks, run_network
from training.metrics.niqe import niqe, statistics_of
from training.options import command


def evaluate(
    clips: tuple[Path, ...],
    /,
    *,
    pristine: Path,
    model: tuple[str, ...] = (),
    scale: Literal[4, 2, 1] = 4,
    frames: int = 10,
    device: str = "cpu",
) -> None:
    """Restore every clip by every method, and print the mean NIQE of its frames.

    Args:
        clips: Folders of PNG frames.
        pristine: Folder of good photographs, best ones that nothing was trained on.
        model: Name, weights file or checkpoint; may be repeated.
        scale: Scale of the models.
        frames: Frames of each clip that are restored, from its start.
        device: cpu or cuda.
    """
    good = statistics_of(load_photo(path).numpy() for path in list_photos(pristine))
    networks = load_networks(model, scale, device)
    methods: dict[str, Restore] = baselines(scale) | {
        name: partial(run_network, network=network, give_exposure=False) for name, network in networks.items()
    }
    for name, restore in methods.items():
        scores = []
        for clip in clips:
            lr = torch.from_numpy(load_clip(clip)[:frames])[None] / 255
            with torch.inference_mode():
                restored = to_bytes(restore(lr, torch.ones(lr.shape[:2]))[0])
            scores.append(fmean(niqe(frame, good) for frame in restored))
        each = "  ".join(f"{clip.name} {score:.2f}" for clip, score in zip(clips, scores, strict=True))
        print(f"{name}: NIQE {fmean(scores):.2f}  ({each})", flush=True)


main = command(evaluate, __doc__)

if __name__ == "__main__":
    main()
