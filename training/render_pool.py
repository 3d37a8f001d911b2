"""Render a pool of training sequences from a folder of photographs; runs again where it stopped.

python -m training.render_pool --photos PHOTOS --out POOL --count 1000
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import torch

from training.scenes.photos import list_photos
from training.scenes.pool import save_sequence, sequence_folder
from training.scenes.render import render_sequence
from training.scenes.scene import random_scene
from vsfmanet.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSettings:
    """What a pool's pixels depend on, besides this code."""

    seed: int
    """Sequence k is drawn from (seed, k)."""
    scale: int
    """HR size / LR size."""
    size: int
    """HR rows and columns; a multiple of `scale`."""
    frames: int
    """Length of a sequence."""
    photos: str
    """Hash of the photographs' names, in order."""
    nonrigid: float = 0.0
    """Chance of each layer to bend; pools from before this setting have none."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.size % self.scale:
            raise ConfigError(f"render_pool: size ({self.size}) must be a multiple of scale ({self.scale})")
        if not 0 <= self.nonrigid <= 1:
            raise ConfigError(f"render_pool: nonrigid must be in 0 ... 1, got {self.nonrigid}")


def main() -> None:
    """Render what is missing from the pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of sharp photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--count", type=int, default=1000, help="sequences that the pool shall have")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="HR rows and columns")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--nonrigid", type=float, default=0.0, help="chance of each layer to bend (default: none does)")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()

    photos = list_photos(args.photos)
    names = "\n".join(photo.name for photo in photos)
    settings = PoolSettings(
        seed=args.seed,
        scale=args.scale,
        size=args.size,
        frames=args.frames,
        photos=sha256(names.encode()).hexdigest(),
        nonrigid=args.nonrigid,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_settings(settings, args.out / "pool.json")

    missing = [index for index in range(args.count) if not sequence_folder(args.out, index).exists()]
    render = partial(render_one, photos=photos, settings=settings, pool=args.out, device=args.device)
    start = time.monotonic()
    for done, _ in enumerate(finished(render, missing, args.workers), start=1):
        rate = done / (time.monotonic() - start)
        left = (len(missing) - done) / rate
        print(f"{args.count - len(missing) + done}/{args.count}  {rate:.2f}/s  {left:.0f} s left", flush=True)
    if missing:
        seconds = time.monotonic() - start
        made = len(missing) * args.frames
        print(
            f"{len(missing)} sequences of {args.frames} frames of {args.size} x {args.size}, five exposures each, in "
            f"{seconds:.0f} s on {args.workers} {args.device} workers: {made / seconds:.2f} frames/s"
        )


def finished[T](work: Callable[[T], None], tasks: Iterable[T], workers: int) -> Iterator[None]:
    """Do `work` for all tasks, in this process if one worker is asked for, and yield whenever one is done."""
    if workers == 1:
        yield from map(work, tasks)
        return
    # Spawned, since a forked process cannot use CUDA and inherits torch's thread pools in an unknown state.
    with multiprocessing.get_context("spawn").Pool(workers, initializer=use_one_thread) as processes:
        yield from processes.imap_unordered(work, tasks)


def use_one_thread() -> None:
    """Keep a worker to one core; the workers are the parallelism."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def write_settings(settings: PoolSettings, path: Path) -> None:
    """Record `settings`, or check them against those that the pool was begun with.

    Raises:
        ConfigError: The pool was begun with others.
    """
    if not path.exists():
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    elif PoolSettings(**json.loads(path.read_text())) != settings:
        raise ConfigError(f"render_pool: {path} holds other settings than asked for; name another --out")


def render_one(index: int, *, photos: list[Path], settings: PoolSettings, pool: Path, device: str) -> None:
    """Draw, render and save sequence `index`."""
    generator = np.random.default_rng([settings.seed, index])
    scene = random_scene(
        generator, photos, height=settings.size, width=settings.size, frames=settings.frames, nonrigid=settings.nonrigid
    )
    save_sequence(render_sequence(scene, scale=settings.scale, device=device), sequence_folder(pool, index))


if __name__ == "__main__":
    main()
