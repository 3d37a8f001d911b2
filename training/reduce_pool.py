"""Make a pool of scale 2 or 4 out of one of scale 1, without rendering it again.

    python -m training.reduce_pool runs/pool_x1 --scale 2 --out runs/pool_x2

What is blurred at scale 1 is what rendering makes smaller last, so that the frames differ from rendered ones by the
rounding to 8 bits alone. Flow is the mean over the pixels that become one, of which all must be visible; at the edges
of layers rendering takes the flow of the point between them instead. Runs again where it stopped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.render_pool import PoolSettings, write_settings
from training.scenes.photos import downscale
from training.scenes.pool import ARRAYS, save_sequence
from training.scenes.render import Sequence, to_bytes
from vsfmanet.errors import ConfigError


def main() -> None:
    """Make what is missing of the pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path, help="folder of training.render_pool --scale 1")
    parser.add_argument("--scale", type=int, choices=(2, 4), required=True, help="HR size / LR size of the result")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    args = parser.parse_args()

    settings = PoolSettings(**json.loads((args.pool / "pool.json").read_text()))
    if settings.scale != 1:
        raise ConfigError(f"reduce_pool: a pool of scale 1 is needed, got {args.pool} of scale {settings.scale}")
    args.out.mkdir(parents=True, exist_ok=True)
    write_settings(replace(settings, scale=args.scale), args.out / "pool.json")
    folders = sorted(path for path in args.pool.glob("[0-9]*") if path.is_dir())
    for done, folder in enumerate(folders, start=1):
        made = args.out / folder.name
        if not made.exists():
            loaded = Sequence(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS})
            save_sequence(reduced(loaded, args.scale), made)
        if done % 50 == 0 or done == len(folders):
            print(f"{done}/{len(folders)}", flush=True)


def reduced(sequence: Sequence, scale: int) -> Sequence:
    """A sequence of scale 1 as one of another scale; its size must be a multiple of that."""
    levels, frames, channels, height, width = sequence.lr.shape
    blurred = torch.from_numpy(np.array(sequence.lr)).float().flatten(0, 1) / 255
    lr = to_bytes(downscale(blurred, height // scale, width // scale))
    flow = blocks(sequence.flow, scale).mean(axis=(-3, -1), dtype=np.float32) / scale
    visible = blocks(sequence.visible, scale).min(axis=(-3, -1))
    return replace(
        sequence,
        lr=lr.reshape(levels, frames, channels, *lr.shape[-2:]),
        flow=flow.astype(sequence.flow.dtype),
        visible=visible,
    )


def blocks[Value: np.generic](array: NDArray[Value], side: int) -> NDArray[Value]:
    """(..., h, w) as (..., h / side, side, w / side, side)."""
    *leading, height, width = array.shape
    return np.array(array).reshape(*leading, height // side, side, width // side, side)


if __name__ == "__main__":
    main()
