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

from training.data.footage import NOTHING, FootageOptions, fill_pool, find_clips, write_benchmark, write_pairs
from training.options import command
from vsfmanet.errors import ConfigError, SourceError

FILMED_PER_FRAME = 10
CONDITION = "blur"


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
        clips = sorted(path.parent for path in blurred.glob("*/sharp") if (path.parent / CONDITION).is_dir())
        if not clips:
            raise SourceError(
                f"folders with blur and sharp are needed, {blurred} has none; name the folder test of GOPRO_Large"
            )
        scenes = [
            write_pairs(
                options.benchmark / clip.name,
                sharp=sorted((clip / "sharp").glob("*.png")),
                blurred=sorted((clip / CONDITION).glob("*.png")),
                condition=CONDITION,
                exposure=1.0,
                scale=options.scale,
            )
            for clip in clips
        ]
        write_benchmark(options.benchmark, scenes, scale=options.scale, seed=0)
    if options.pool and sharp:
        films = find_clips(sharp, least=FILMED_PER_FRAME)
        fill_pool(options.pool, films, options.recipe(FILMED_PER_FRAME), length=options.frames, workers=options.workers)


main = command(prepare, __doc__)

if __name__ == "__main__":
    main()
