"""Make a pool and a benchmark of the GoPro data set.

    python -m training.prepare_gopro --sharp GOPRO_Large_all/train --pool runs/gopro_pool
    python -m training.prepare_gopro --blurred GOPRO_Large/test --benchmark runs/gopro11
    python -m training.evaluate runs/gopro11 --model ...

The pool is made of the films of 240 frames per second (GOPRO_Large_all), ten for an output frame, at all exposures. The
benchmark is made of the test clips as published (GOPRO_Large): `blur`, means of code values of 7 to 13 frames without a
gap between them and so of exposure 1, reduced bicubically, and `sharp`. `blur_gamma` is left aside, as most tables do.

Source: Nah et al., "Deep Multi-scale Convolutional Neural Network for Dynamic Scene Deblurring" (CVPR 2017).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training.build_benchmark import BenchmarkScene, save_clip
from training.footage import (
    Recipe,
    add_footage_arguments,
    check_outputs,
    fill_pool,
    find_clips,
    write_benchmark,
)
from training.scenes.photos import downscale, load_photo
from training.scenes.render import to_bytes
from vsfmanet.errors import ConfigError, SourceError

FILMED_PER_FRAME = 10
CONDITION = "blur"


def main() -> None:
    """Write whichever of pool and benchmark is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sharp", type=Path, help="folder of films of 240 frames a second, for the pool")
    parser.add_argument("--blurred", type=Path, help="folder of clips with blur and sharp, for the benchmark")
    add_footage_arguments(parser)
    args = parser.parse_args()
    check_outputs(args)
    if bool(args.pool) != bool(args.sharp) or bool(args.benchmark) != bool(args.blurred):
        raise ConfigError(
            "prepare_gopro: --pool goes with --sharp, and --benchmark with --blurred, got one without the other"
        )
    if args.benchmark:
        clips = sorted(path.parent for path in args.blurred.glob("*/sharp") if (path.parent / CONDITION).is_dir())
        if not clips:
            raise SourceError(
                f"prepare_gopro: folders with blur and sharp are needed, {args.blurred} has none; "
                "name the folder test of GOPRO_Large"
            )
        scenes = [write_clip(clip, args.benchmark / clip.name, args.scale) for clip in clips]
        write_benchmark(args.benchmark, scenes, scale=args.scale, seed=0)
    if args.pool:
        recipe = Recipe(
            per_frame=FILMED_PER_FRAME, scale=args.scale, interpolator=args.interpolator, linear=args.linear
        )
        films = find_clips(args.sharp, least=FILMED_PER_FRAME)
        fill_pool(args.pool, films, recipe, length=args.frames, workers=args.workers)


def write_clip(clip: Path, folder: Path, scale: int) -> BenchmarkScene:
    """Reduce the blurred frames of a test clip, and copy the sharp ones."""
    print(clip.name, flush=True)
    sharp, blurred = (
        np.stack([load_photo(path).numpy() for path in sorted((clip / part).glob("*.png"))])
        for part in ("sharp", CONDITION)
    )
    height, width = sharp.shape[2] // scale, sharp.shape[3] // scale
    small = [to_bytes(downscale(torch.from_numpy(frame)[None].float() / 255, height, width))[0] for frame in blurred]
    save_clip(folder / "sharp", sharp)
    save_clip(folder / CONDITION, np.stack(small))
    return BenchmarkScene(name=folder.name, speed=None, cutouts=None, exposure={CONDITION: [1.0] * len(small)})


if __name__ == "__main__":
    main()
