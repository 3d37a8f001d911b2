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

from pathlib import Path
from typing import Annotated

from training.data.footage import (
    NOTHING,
    FootageOptions,
    exposed_frames,
    fill_pool,
    find_clips,
    write_benchmark,
    write_scene,
)
from training.options import SEVERAL, command
from vsfmanet.errors import SourceError

FILMED_PER_FRAME = 5
TEST_CLIPS = ("000", "011", "015", "020")
START_LEVELS, INTERVALS = (3, 4, 2, 5), (5, 7)
"""Of Algorithm S1, for the test clips in turn."""
SEED = 2512
"""The trajectory of test clip k is drawn from this plus k."""


def prepare(
    *,
    reds: Annotated[tuple[Path, ...], SEVERAL],
    test_clips: Annotated[tuple[str, ...], SEVERAL] = TEST_CLIPS,
    options: FootageOptions = NOTHING,
) -> None:
    """Write pool and benchmark, if they are named.

    Args:
        reds: Folders with clips of 120 frames a second.
        test_clips: Names of the test clips, in the first folder; REDS4.
    """
    options.check()
    recipe = options.recipe(FILMED_PER_FRAME)
    tests, training = {}, {}
    for number, folder in enumerate(reds):  # REDS counts the clips of each part from 000
        for name, paths in find_clips(folder, least=FILMED_PER_FRAME).items():
            if number == 0 and name in test_clips:
                tests[name] = paths
            else:
                training[f"{number}/{name}"] = paths
    if options.benchmark:
        lacking = [name for name in test_clips if name not in tests]
        if lacking:
            raise SourceError(
                f"{reds[0]} must hold the test clips, {', '.join(lacking)} are missing; "
                "name that part of REDS first, or others by --test-clips"
            )
        scenes = []
        for number, (name, paths) in enumerate(tests.items()):
            print(f"test clip {name}: {len(paths)} frames", flush=True)
            scene = write_scene(
                exposed_frames(paths, recipe),
                options.benchmark / name,
                start=START_LEVELS[number % len(START_LEVELS)],
                interval=INTERVALS[number % len(INTERVALS)],
                seed=SEED + number,
            )
            scenes.append(scene)
        write_benchmark(options.benchmark, scenes, scale=options.scale, seed=SEED)
    if options.pool:
        fill_pool(options.pool, training, recipe, length=options.frames, workers=options.workers)


main = command(prepare, __doc__)

if __name__ == "__main__":
    main()
