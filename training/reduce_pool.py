"""Make a pool of scale 2 or 4 out of one of scale 1, without rendering it again.

    python -m training.reduce_pool runs/pool_x1 --scale 2 --out runs/pool_x2

What is blurred at scale 1 is what rendering makes smaller last, so that the frames differ from rendered ones by the
rounding to 8 bits alone. Flow is the mean over the pixels that become one, of which all must be visible; at the edges
of layers rendering takes the flow of the point between them instead. Runs again where it stopped.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.photos import downscale
from training.data.pool import ARRAYS, PoolSettings, save_sequence, write_settings
from training.data.render import Sequence, to_bytes
from training.options import command
from vsfmanet.errors import ConfigError


def reduce(pool: Path, /, *, scale: Literal[2, 4], out: Path) -> None:
    """Make the missing sequences of the pool.

    Args:
        pool: Folder of training.render_pool --scale 1.
        scale: HR size over LR size of the result.
        out: Folder of the result.
    """
    settings = PoolSettings(**json.loads((pool / "pool.json").read_text()))
    if settings.scale != 1:
        raise ConfigError(f"a pool of scale 1 is needed, got {pool} of scale {settings.scale}")
    out.mkdir(parents=True, exist_ok=True)
    write_settings(replace(settings, scale=scale), out / "pool.json")
    folders = sorted(path for path in pool.glob("[0-9]*") if path.is_dir())
    for done, folder in enumerate(folders, start=1):
        made = out / folder.name
        if not made.exists():
            loaded = Sequence(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS})
            save_sequence(reduced(loaded, scale), made)
        if done % 50 == 0 or done == len(folders):
            print(f"{done}/{len(folders)}", flush=True)


def reduced(sequence: Sequence, scale: int) -> Sequence:
    """Convert a sequence of scale 1 to another scale, which must divide its size."""
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


main = command(reduce, __doc__)

if __name__ == "__main__":
    main()
