"""Make a pool and a benchmark of the GoPro data set.

    python -m training.prepare_gopro --sharp GOPRO_Large_all/train --pool runs/gopro_pool
    python -m training.prepare_gopro --blurred GOPRO_Large/test --benchmark runs/gopro11
    python -m training.evaluate runs/gopro11 --model ...

The pool is made of the films of 240 frames per second (GOPRO_Large_all), ten for an output frame, at all exposures. The
benchmark is made of the test clips as published (GOPRO_Large): `blur`, means of code values of 7 to 13 frames without a
gap between them and so of exposure 1, reduced bicubically, and `sharp`. `blur_gamma` is left aside, as most tables do.

Source: Nah et al., "Deep Multi-scale Convolutional Neural Network for Dynamic Scene Deblurring" (CVPR 2017).
"""

from pathlib import Path

from training.data.footage import (
    NOTHING,
    FootageOptions,
    Pairs,
    fill_pool,
    find_clips,
    find_pairs,
    write_benchmark_of_pairs,
)
from training.options import command
from vsfmanet.errors import ConfigError

FILMED_PER_FRAME = 10


def prepare(*, sharp: Path | None = None, blurred: Path | None = None, options: FootageOptions = NOTHING) -> None:
    """Write pool and benchmark, if they are named.

    Args:
        sharp: Folder of films of 240 frames a second, for the pool.
        blurred: Folder of clips with blur and sharp, for the benchmark.
    """
    options.check()
    if bool(options.pool) != bool(sharp) or bool(options.benchmark) != bool(blurred):
        raise ConfigError("--pool goes with --sharp, and --benchmark with --blurred, got one without the other")
    if options.benchmark and blurred:
        clips = find_pairs(blurred, blurred="blur", sharp="sharp")
        write_benchmark_of_pairs(options.benchmark, clips, Pairs(scale=options.scale, exposure=1.0))
    if options.pool and sharp:
        films = find_clips(sharp, least=FILMED_PER_FRAME)
        fill_pool(options.pool, films, options.recipe(FILMED_PER_FRAME), length=options.frames, workers=options.workers)


main = command(prepare, __doc__)

if __name__ == "__main__":
    main()
