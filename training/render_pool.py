"""Render a pool of training sequences from a folder of photographs; runs again where it stopped.

python -m training.render_pool --photos PHOTOS --out POOL --count 1000
"""

import time
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from training.data.parallel import finished
from training.data.photos import list_photos
from training.data.pool import PoolSettings, save_sequence, sequence_folder, write_settings
from training.data.render import render_sequence
from training.data.scene import random_scene
from training.options import command


def render(
    *,
    photos: Path,
    out: Path,
    count: int = 1000,
    seed: int = 0,
    scale: Literal[4, 2, 1] = 4,
    size: int = 256,
    frames: int = 8,
    nonrigid: float = 0.0,
    workers: int = 2,
    device: str = "cpu",
) -> None:
    """Render the missing sequences of the pool.

    Args:
        photos: Folder of sharp photographs.
        out: Folder of the pool.
        count: Sequences that the pool shall have.
        seed: Seed of all sequences.
        scale: HR size over LR size.
        size: HR rows and columns.
        frames: Length of a sequence.
        nonrigid: Chance of each layer to bend, in [0, 1].
        workers: Processes.
        device: cpu or cuda.
    """
    pictures = list_photos(photos)
    names = "\n".join(photo.name for photo in pictures)
    names = sha256(names.encode()).hexdigest()
    settings = PoolSettings(seed=seed, scale=scale, size=size, frames=frames, photos=names, nonrigid=nonrigid)
    out.mkdir(parents=True, exist_ok=True)
    write_settings(settings, out / "pool.json")

    missing = [index for index in range(count) if not sequence_folder(out, index).exists()]
    work = partial(render_one, photos=pictures, settings=settings, pool=out, device=device)
    start = time.monotonic()
    for done, _ in enumerate(finished(work, missing, workers), start=1):
        rate = done / (time.monotonic() - start)
        left = (len(missing) - done) / rate
        print(f"{count - len(missing) + done}/{count}  {rate:.2f}/s  {left:.0f} s left", flush=True)
    if missing:
        seconds = time.monotonic() - start
        made = len(missing) * frames
        print(
            f"{len(missing)} sequences of {frames} frames of {size} x {size}, five exposures each, in "
            f"{seconds:.0f} s on {workers} {device} workers: {made / seconds:.2f} frames/s"
        )


def render_one(index: int, *, photos: list[Path], settings: PoolSettings, pool: Path, device: str) -> None:
    """Draw, render and save sequence `index`."""
    generator = np.random.default_rng([settings.seed, index])
    scene = random_scene(
        generator, photos, height=settings.size, width=settings.size, frames=settings.frames, nonrigid=settings.nonrigid
    )
    save_sequence(render_sequence(scene, scale=settings.scale, device=device), sequence_folder(pool, index))


main = command(render, __doc__)

if __name__ == "__main__":
    main()
