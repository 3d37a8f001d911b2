"""Time the streaming restorer on this machine's CPU, with the kernels and without them, in turns.

python scripts/benchmark.py [--size 180x320] [--presets fast base] [--threads N] [--frames 2] [--rounds 5]

Weights are random: the cost does not depend on them. The first frames, which fill the levels, are not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsfmanet.networks.fmanetpp import FMANetPP, deploy, preset
from vsfmanet.restorer import Restorer
from vsfmanet.weights import save_model


class Noise:
    """An endless clip whose content does not matter."""

    num_frames = 1 << 30

    def __init__(self, height: int, width: int) -> None:
        self.picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))

    def frame(self, n: int) -> Tensor:
        """The same picture, moved by n pixels."""
        return self.picture.roll(n, dims=-1)

    def exposure(self, n: int) -> float:
        """Known, so that the extractor does not run."""
        return 0.5

    def starts_scene(self, n: int) -> bool:
        """Never."""
        return False


def gigamacs(network: FMANetPP, height: int, width: int) -> float:
    """Multiply-adds of one frame through all levels, in 10^9: convolutions and matrix products of the twins."""
    os.environ["VSFMANET_NO_KERNELS"] = "1"
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 3, height, width), torch.full((1, 1), 0.5))
    return counter.get_total_flops() / 2e9


def measure(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """Rows of the table for one preset: without kernels, with them."""
    height, width = args.size
    network = deploy(FMANetPP(preset(name)))
    path = folder / f"{name}.safetensors"
    save_model(network, path)
    work, source = gigamacs(network, height, width), Noise(height, width)
    wall: dict[str, list[float]] = {"torch": [], "kernels": []}
    cpu: dict[str, list[float]] = {"torch": [], "kernels": []}
    with Restorer(str(path), device="cpu", precision=args.precision) as restorer:
        n = 0
        for turn in range(-1, args.rounds):  # turn -1 fills the levels and compiles
            for kind in wall:
                os.environ["VSFMANET_NO_KERNELS"] = "1" if kind == "torch" else "0"
                started = time.perf_counter(), time.process_time()
                restorer.restore(source, n, n + args.frames)
                n += args.frames
                if turn >= 0:
                    wall[kind].append((time.perf_counter() - started[0]) / args.frames)
                    cpu[kind].append((time.process_time() - started[1]) / args.frames)
        dtype = str(restorer.dtype).removeprefix("torch.")
    return [
        f"{name:7} {dtype:9} {kind:8} {median(wall[kind]):8.3f} {median(cpu[kind]):8.3f} {work:7.1f} "
        f"{2 * work / median(cpu[kind]):12.0f}"
        for kind in wall
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))), default=(180, 320), help="HxW")
    parser.add_argument("--presets", nargs="+", default=["fast", "base"], choices=["fast", "base", "paper"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--frames", type=int, default=2, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind; the median counts")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    height, width = args.size
    print(
        f"{height}x{width}, {args.threads} threads of {os.cpu_count()}, {platform.machine()}, torch {torch.__version__}"
    )
    print(f"{'preset':7} {'precision':9} {'by':8} {'s/frame':>8} {'CPU s':>8} {'GMAC':>7} {'GFLOP/CPU s':>12}")
    with TemporaryDirectory() as folder:
        for name in args.presets:
            print(*measure(name, args, Path(folder)), sep="\n", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB; machine load {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
