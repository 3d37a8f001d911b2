"""Methods to score: networks, and plain resizing and sharpening as baselines."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data.benchmark import BenchmarkScene, load_clip
from training.data.render import to_bytes
from training.metrics.scoring import FrameScore, Score, Truth, score_clip
from training.run.trained import load_method
from vsfmanet.errors import ConfigError
from vsfmanet.networks.description import RestorationNetwork

type Restore = Callable[[Tensor, Tensor], Tensor]
"""LR frames (1, T, 3, h, w) in [0, 1] and exposures (1, T) in (0, 1] to frames (1, T, 3, s*h, s*w), near [0, 1]."""

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
"""Pillow's kernels: cubic with a = -0.5 (VapourSynth's default, b = 0, c = 0.5), and Lanczos of three lobes."""

SHARPENING_AMOUNT, SHARPENING_SIGMA = 1.0, 0.4
"""Unsharp mask of the sharpened baselines; the width is in LR pixels. See `sharpen` for how they were chosen."""


def load_networks(names: Sequence[str], scale: int, device: str) -> dict[str, RestorationNetwork]:
    """Load networks, by the name to show.

    Raises:
        ConfigError: One is of another scale.
        WeightsError: One cannot be loaded.
    """
    networks = {}
    for name in names:
        shown, network = load_method(name)
        if network.scale != scale:
            raise ConfigError(
                f"evaluate: a network of scale {scale} is needed, {shown} has {network.scale}; "
                "build a benchmark of that scale"
            )
        networks[shown] = network.to(device)
    return networks


def baselines(scale: int) -> dict[str, Restore]:
    """Methods without a network: resizing, also with sharpening; at scale 1 the input itself takes its place."""
    if scale == 1:
        return {"input": lambda lr, exposure: lr, "input_sharp": lambda lr, exposure: sharpen(lr, scale=1)}

    def lanczos_sharp(lr: Tensor, exposure: Tensor) -> Tensor:
        return sharpen(resize(lr, exposure, scale=scale, kernel="lanczos"), scale=scale)

    plain: dict[str, Restore] = {name: partial(resize, scale=scale, kernel=name) for name in RESAMPLING}
    return plain | {"lanczos_sharp": lanczos_sharp}


def resize(lr: Tensor, exposure: Tensor, *, scale: int, kernel: str) -> Tensor:
    """Enlarge (1, T, 3, h, w) in [0, 1] by a key of `RESAMPLING`; exposure (1, T) plays no part."""
    height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
    pictures = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in to_bytes(lr[0])]
    enlarged = np.stack([np.asarray(picture.resize((width, height), RESAMPLING[kernel])) for picture in pictures])
    return torch.from_numpy(enlarged).permute(0, 3, 1, 2)[None] / 255


def sharpen(frames: Tensor, *, scale: int) -> Tensor:
    """Sharpen (1, T, 3, H, W) by an unsharp mask of `SHARPENING_SIGMA` LR pixels and strength `SHARPENING_AMOUNT`.

    Of those tried on rendered scenes the two constants gave the best mean PSNR after Lanczos by 4, so that the baseline
    is a fair one; at scale 1 they help exposures of 5:3 and longer and harm what is nearly sharp.
    """
    planes = frames[0].flatten(0, 1).numpy()
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), SHARPENING_SIGMA * scale) for plane in planes])
    sharp = planes + SHARPENING_AMOUNT * (planes - blurred)
    return torch.from_numpy(sharp).view(frames.shape)


def run_network(lr: Tensor, exposure: Tensor, *, network: RestorationNetwork, give_exposure: bool) -> Tensor:
    """Restore (1, T, 3, h, w) in [0, 1] at once on the network's device; exposure (1, T) is used if it may be."""
    device = next(network.parameters()).device
    return network.restored(lr.to(device), exposure.to(device) if give_exposure else None).cpu()


def score_scene(
    name: str, restore: Restore, scene: BenchmarkScene, folder: Path, truth: Truth
) -> tuple[list[Score], list[FrameScore], dict[str, NDArray[np.uint8]]]:
    """Score method `name` on every condition of a scene that lies in `folder`.

    Returns:
        The scores of clips and of their frames, and the restored clip (T, 3, H, W) of every condition.
    """
    scores: list[Score] = []
    frames: list[FrameScore] = []
    outputs = {}
    for condition, exposure in scene.exposure.items():
        lr = torch.from_numpy(load_clip(folder / condition))[None] / 255
        start = time.perf_counter()
        with torch.inference_mode():
            output = to_bytes(restore(lr, torch.tensor([exposure]))[0])
        seconds = (time.perf_counter() - start) / len(output)
        by_clip, by_frame = score_clip(name, scene.name, condition, output, truth, exposure, seconds)
        scores += by_clip
        frames += by_frame
        outputs[condition] = output
    return scores, frames, outputs
