"""Make REDS-ME and REDS-RE of REDS at 120 frames per second: a pool to train on and a benchmark to evaluate with.

    python -m training.prepare_reds --reds REDS/train_orig REDS/val_orig --pool runs/reds_pool --benchmark runs/reds4
    python -m training.train_restoration --pool runs/reds_pool ...
    python -m training.evaluate runs/reds4 --model ...

REDS (https://seungjunnah.github.io/Datasets/reds, CC BY 4.0) keeps each clip in a folder of 500 frames of 1280 x 720.
Five of them make one output frame (24 per second). The test clips are REDS4, as in the paper; all others, of all
folders, are for training. The pool takes about 33 MB for ten frames, 90 GB in all; its flow is Farneback's.

Source: FMA-Net++ (arXiv 2512.04390), Sec. S3 and Algorithm S1. The interpolator is not the paper's EMA-VFI, so that
rankings can be compared with the paper's, absolute scores hardly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.footage import (
    Recipe,
    add_footage_arguments,
    check_outputs,
    exposed_frames,
    fill_pool,
    find_clips,
    write_benchmark,
    write_scene,
)
from vsfmanet.errors import SourceError

FILMED_PER_FRAME = 5
TEST_CLIPS = ("000", "011", "015", "020")
START_LEVELS, INTERVALS = (3, 4, 2, 5), (5, 7)
"""Of Algorithm S1, for the test clips in turn."""
SEED = 2512
"""The trajectory of test clip k is drawn from this plus k."""


def main() -> None:
    """Write whichever of pool and benchmark is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reds", type=Path, nargs="+", required=True, help="folders with clips of 120 frames a second")
    parser.add_argument(
        "--test-clips", nargs="+", default=TEST_CLIPS, metavar="NAME", help="of the first folder; REDS4"
    )
    add_footage_arguments(parser)
    args = parser.parse_args()
    check_outputs(args)
    recipe = Recipe(per_frame=FILMED_PER_FRAME, scale=args.scale, interpolator=args.interpolator, linear=args.linear)
    tests, training = {}, {}
    for number, folder in enumerate(args.reds):  # REDS counts the clips of each part from 000
        for name, paths in find_clips(folder, least=FILMED_PER_FRAME).items():
            if number == 0 and name in args.test_clips:
                tests[name] = paths
            else:
                training[f"{number}/{name}"] = paths
    if args.benchmark:
        lacking = [name for name in args.test_clips if name not in tests]
        if lacking:
            raise SourceError(
                f"prepare_reds: {args.reds[0]} must hold the test clips, {', '.join(lacking)} are missing; "
                "name that part of REDS first, or others by --test-clips"
            )
        scenes = []
        for number, (name, paths) in enumerate(tests.items()):
            print(f"test clip {name}: {len(paths)} frames", flush=True)
            scene = write_scene(
                exposed_frames(paths, recipe),
                args.benchmark / name,
                start=START_LEVELS[number % len(START_LEVELS)],
                interval=INTERVALS[number % len(INTERVALS)],
                seed=SEED + number,
            )
            scenes.append(scene)
        write_benchmark(args.benchmark, scenes, scale=args.scale, seed=SEED)
    if args.pool:
        fill_pool(args.pool, training, recipe, length=args.frames, workers=args.workers)


if __name__ == "__main__":
    main()
