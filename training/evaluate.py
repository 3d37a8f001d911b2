"""Score networks and plain resizing on a benchmark built by `training.build_benchmark` or `training.prepare_*`.

    python -m training.evaluate BENCHMARK --model NAME_OR_PATH --exposure given --json scores.json --report report.html
    python -m training.evaluate BENCHMARK --model runs/fast/latest.pt --guidance

PSNR, SSIM, tOF and OPW for every exposure level, for changing exposure (RE), and for the frames of RE at which the
exposure changes. `--guidance` repeats the paper's own tests of exposure awareness (Tables 6 and 7, Fig. 7b).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from training import guidance, report
from training.build_benchmark import BenchmarkScene, load_benchmark
from training.fmanet import trained_network
from training.loop import load_checkpoint
from training.metrics import opw_by_pair
from training.scenes.render import to_bytes
from training.scoring import Score, Truth, load_clip, load_truth, score_clip
from vsfmanet.errors import ConfigError
from vsfmanet.networks.description import Features, LevelNetwork, RestorationNetwork, SequenceNetwork, State
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.weights import load_model, parameter_count

type Restore = Callable[[Tensor, Tensor], Tensor]
"""LR frames (1, T, 3, h, w) in [0, 1] and exposures (1, T) in (0, 1] to frames (1, T, 3, s*h, s*w), near [0, 1]."""

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
"""Pillow's kernels: cubic with a = -0.5 (VapourSynth's default, b = 0, c = 0.5), and Lanczos of three lobes."""

SHARPENING_AMOUNT, SHARPENING_SIGMA = 1.0, 0.4
"""Unsharp mask of the sharpened baselines; the width is in LR pixels. See `sharpen` for how they were chosen."""


def main() -> None:
    """Score every method on every clip, print one table a metric, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="folder made by training.build_benchmark or training.prepare_*")
    parser.add_argument("--model", action="append", default=[], help="name or weights file; may be repeated")
    parser.add_argument(
        "--exposure", choices=("auto", "given"), default="auto", help="let the network find it, or give the true one"
    )
    parser.add_argument("--guidance", action="store_true", help="also test what right and wrong exposures do (slow)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="file for the score of every clip; guidance goes beside it")
    parser.add_argument("--report", type=Path, help="HTML file for tables, plots and pictures, all in one")
    args = parser.parse_args()

    benchmark = load_benchmark(args.benchmark)
    networks = load_networks(args.model, benchmark.scale, args.device)
    fmanets = {name: cast(FMANetPP, network) for name, network in networks.items() if network.kind == FMANetPP.kind}
    if args.guidance and len(fmanets) < len(networks):
        others = ", ".join(name for name in networks if name not in fmanets)
        raise ConfigError(f"evaluate: --guidance is for FMA-Net++ alone, got {others}; leave one of them out")
    methods = baselines(benchmark.scale) | {
        name: partial(run_network, network=network, give_exposure=args.exposure == "given")
        for name, network in networks.items()
    }
    scores, pictures, floor = [], [], []
    for scene in benchmark.scenes:
        folder = args.benchmark / scene.name
        truth = load_truth(folder)
        floor.append(mean(opw_by_pair(truth.frames, truth.frames, truth.flow, truth.visible)))
        for name, restore in methods.items():
            done, outputs = score_scene(name, restore, scene, folder, truth)
            scores += done
            if args.report:
                pictures += report.crops(name, scene.name, outputs, truth.frames)
            print(f"{scene.name}: {name} done", flush=True)
    kind = "exact flow of the scenes" if truth.exact else "Farneback flow on truth"
    notes = [f"OPW by the {kind}; of truth itself {mean(floor):.3f}."]
    example = benchmark.scenes[0]
    clip = torch.from_numpy(load_clip(args.benchmark / example.name / next(reversed(example.exposure))))[None] / 255
    notes += [about_network(name, network, clip) for name, network in networks.items()]
    if args.json:
        args.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    tested = guidance.run(fmanets, benchmark, args.benchmark) if args.guidance else []
    if args.json and tested:
        rows = [asdict(test) for test in tested]
        args.json.with_suffix(".guidance.json").write_text(json.dumps(rows, indent=1) + "\n")
    notes += [line for test in tested for line in test.verdicts()]
    tables = [*report.score_tables(scores), *(table for test in tested for table in test.tables())]
    print_tables(tables)
    print("\n".join(notes))
    if args.report:
        command = "python -m training.evaluate " + " ".join(sys.argv[1:])
        args.report.write_text(report.page(benchmark, scores, tables, pictures, [*notes, command]), encoding="utf-8")
        print(f"report: {args.report}")


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


def load_method(name_or_path: str) -> tuple[str, RestorationNetwork]:
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
    return f"{path.parent.name} step {state['step']}", trained_network(state)


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
    """Add to (1, T, 3, H, W) what a blur of `SHARPENING_SIGMA` LR pixels takes away, `SHARPENING_AMOUNT` times.

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


def about_network(name: str, network: RestorationNetwork, clip: Tensor) -> str:
    """Say what a network costs: parameters, and multiply-adds of convolutions and matrix products.

    Args:
        name: To show.
        network: Not compiled.
        clip: (1, T, 3, h, w) in [0, 1]; what the frames show counts where a network leaves out what is sharp.
    """
    clip = clip.to(next(network.parameters()).device)
    kernels = os.environ.get("VSFMANET_NO_KERNELS", "0")
    os.environ["VSFMANET_NO_KERNELS"] = "1"  # they cannot be counted
    with torch.inference_mode():
        run = network.streamed(levels=partial(_one_of_levels, clip), windows=partial(_one_of_sequence, clip))
        with FlopCounterMode(display=False) as counter:
            run()
    os.environ["VSFMANET_NO_KERNELS"] = kernels
    height, width = clip.shape[-2:]
    cost = counter.get_total_flops() / 2e9
    return (
        f"{name}: {parameter_count(network) / 1e6:.2f} M parameters, {cost:.2f} GMAC a frame of {width}x{height}, "
        f"in proportion {cost * 1280 * 720 / (width * height):.0f} at 1280x720."
    )


def _one_of_levels(clip: Tensor, network: LevelNetwork) -> Callable[[], object]:
    """Return a function that restores one frame of a clip (1, T, 3, h, w)."""
    return lambda: network.restored(clip[:, :1])


def _one_of_sequence(clip: Tensor, network: SequenceNetwork) -> Callable[[], object]:
    """Return a function that restores one frame in the middle of a clip (1, T, 3, h, w), after those before it."""
    state: State | None = None
    features: list[Features] = []
    for t in range(sum(network.window)):
        encoded, state = network.encode(clip[:, t % clip.shape[1]], state)
        features.append(encoded)

    def run() -> None:
        encoded, _ = network.encode(clip[:, len(features) % clip.shape[1]], state)
        network.decode([*features, encoded])

    return run


def score_scene(
    name: str, restore: Restore, scene: BenchmarkScene, folder: Path, truth: Truth
) -> tuple[list[Score], dict[str, NDArray[np.uint8]]]:
    """Score method `name` on every condition of a scene that lies in `folder`.

    Returns:
        The scores, and the restored clip (T, 3, H, W) of every condition.
    """
    scores, outputs = [], {}
    for condition, exposure in scene.exposure.items():
        lr = torch.from_numpy(load_clip(folder / condition))[None] / 255
        start = time.perf_counter()
        with torch.inference_mode():
            output = to_bytes(restore(lr, torch.tensor([exposure]))[0])
        seconds = (time.perf_counter() - start) / len(output)
        scores += score_clip(name, scene.name, condition, output, truth, exposure, seconds)
        outputs[condition] = output
    return scores, outputs


def print_tables(tables: Sequence[report.TextTable]) -> None:
    """Print tables to the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    for table in tables:
        printed = Table(*table.header, title=table.title)
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)


if __name__ == "__main__":
    main()
