"""Score networks and plain resizing on a benchmark built by `training.build_benchmark`.

python -m training.evaluate BENCHMARK --model NAME_OR_PATH --exposure given --json scores.json
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from training.build_benchmark import Benchmark, BenchmarkScene, load_benchmark
from training.loop import load_checkpoint
from training.metrics import psnr, ssim, tof
from training.scenes.photos import load_photo
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPOutput, preset
from vsfmanet.weights import load_model

type Restore = Callable[[Tensor, Tensor], Tensor]
"""LR frames (1, T, 3, h, w) in [0, 1] and exposures (1, T) in (0, 1] to frames (1, T, 3, s*h, s*w), near [0, 1]."""

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
"""Pillow's kernels: cubic with a = -0.5 (VapourSynth's default, b = 0, c = 0.5), and Lanczos of three lobes."""

METRICS = {"psnr": "PSNR (dB, higher is better)", "ssim": "SSIM (higher)", "tof": "tOF (pixels, lower)"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One method on one clip; PSNR and SSIM are means over its frames."""

    method: str
    """Name of the network or kernel."""
    scene: str
    """Name of the scene."""
    condition: str
    """Exposure: 5_1 to 5_5, or re."""
    psnr: float
    """Decibels."""
    ssim: float
    """At most 1."""
    tof: float
    """Pixels."""
    seconds: float
    """Seconds per frame, of restoring alone."""


def main() -> None:
    """Score every method on every clip, and print one table a metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder made by training.build_benchmark")
    parser.add_argument("--model", action="append", default=[], help="name or weights file; may be repeated")
    parser.add_argument(
        "--exposure", choices=("auto", "given"), default="auto", help="let the network find it, or give the true one"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="file for the score of every clip")
    args = parser.parse_args()

    benchmark = load_benchmark(args.benchmark)
    methods: dict[str, Restore] = {name: partial(resize, scale=benchmark.scale, kernel=name) for name in RESAMPLING}
    for name in args.model:
        shown, network = load_method(name)
        if network.config.scale != benchmark.scale:
            raise ConfigError(
                f"evaluate: a network of scale {benchmark.scale} is needed, {shown} has {network.config.scale}; "
                "build a benchmark of that scale"
            )
        methods[shown] = partial(run_network, network=network.to(args.device), give_exposure=args.exposure == "given")

    scores = []
    for name, restore in methods.items():
        for scene in benchmark.scenes:
            scores += score_scene(name, restore, scene, args.benchmark / scene.name)
            print(f"{name}: {scene.name} done", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    print_tables(scores, benchmark)


def load_method(name_or_path: str) -> tuple[str, FMANetPP]:
    """Load a network in eval mode: a model's name, a .safetensors file, or a checkpoint of training (.pt).

    Returns:
        Name to show, and the network on the CPU.

    Raises:
        WeightsError: It cannot be loaded.
    """
    path = Path(name_or_path)
    if path.suffix != ".pt":
        model = load_model(name_or_path)
        return model.name, model.network
    state = load_checkpoint(path)
    network = FMANetPP(preset(state["preset"], state["scale"]))
    network.load_state_dict(state["averaged"])
    return f"{path.parent.name} step {state['step']}", network.eval()


def resize(lr: Tensor, exposure: Tensor, *, scale: int, kernel: str) -> Tensor:
    """Enlarge (1, T, 3, h, w) in [0, 1] by a key of `RESAMPLING`; exposure (1, T) plays no part."""
    height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
    pictures = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in to_bytes(lr[0])]
    enlarged = np.stack([np.asarray(picture.resize((width, height), RESAMPLING[kernel])) for picture in pictures])
    return torch.from_numpy(enlarged).permute(0, 3, 1, 2)[None] / 255


def run_network(lr: Tensor, exposure: Tensor, *, network: FMANetPP, give_exposure: bool) -> Tensor:
    """Restore (1, T, 3, h, w) in [0, 1] at once on the network's device; exposure (1, T) is used if it may be."""
    device = next(network.parameters()).device
    output: FMANetPPOutput = network(lr.to(device), exposure.to(device) if give_exposure else None)
    return output.frames.cpu()


def to_bytes(frames: Tensor) -> NDArray[np.uint8]:
    """Round frames (any shape, clamped to [0, 1]) to 8 bits."""
    return np.asarray((frames.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def score_scene(name: str, restore: Restore, scene: BenchmarkScene, folder: Path) -> list[Score]:
    """Score method `name` on every condition of a scene that lies in `folder`."""
    truth = load_clip(folder / "sharp")
    scores = []
    for condition, exposure in scene.exposure.items():
        lr = torch.from_numpy(load_clip(folder / condition))[None] / 255
        start = time.perf_counter()
        with torch.inference_mode():
            output = to_bytes(restore(lr, torch.tensor([exposure]))[0])
        seconds = (time.perf_counter() - start) / len(truth)
        frames = list(zip(output, truth, strict=True))
        scores.append(
            Score(
                method=name,
                scene=scene.name,
                condition=condition,
                psnr=mean(psnr(*pair) for pair in frames),
                ssim=mean(ssim(*pair) for pair in frames),
                tof=tof(output, truth),
                seconds=seconds,
            )
        )
    return scores


def load_clip(folder: Path) -> NDArray[np.uint8]:
    """Read numbered PNG files as (T, 3, H, W) RGB."""
    return np.stack([load_photo(path).numpy() for path in sorted(folder.glob("*.png"))])


def print_tables(scores: list[Score], benchmark: Benchmark) -> None:
    """Print, for each metric, methods by conditions: means over scenes."""
    methods = list(dict.fromkeys(score.method for score in scores))
    conditions = list(benchmark.scenes[0].exposure)
    console = Console()
    for metric, title in METRICS.items():
        table = Table("method", *(name.replace("_", ":") for name in conditions), "s/frame", title=title)
        for method in methods:
            own = [score for score in scores if score.method == method]
            means = [mean(getattr(score, metric) for score in own if score.condition == name) for name in conditions]
            digits = 4 if metric == "ssim" else 3
            table.add_row(method, *(f"{value:.{digits}f}" for value in means), f"{median(s.seconds for s in own):.3f}")
        console.print(table)


if __name__ == "__main__":
    main()
