"""Make a pool or a benchmark of BSD, clips that two cameras behind one lens filmed blurred and sharp.

    python -m training.prepare_bsd BSD_2ms16ms/train --pool runs/bsd_pool --exposure 0.24
    python -m training.prepare_bsd BSD_2ms16ms/test --benchmark runs/bsd --exposure 0.24
    python -m training.evaluate runs/bsd --model fmanetpp_x1_path --exposure given

A clip is a folder with Blur/RGB/*.png and Sharp/RGB/*.png. Their one exposure stands at all five levels of the pool, so
that it is for networks that are given none: `train_mmprnn`, `train_jffra` and `train_m2aenet`. It takes about 90 MB
for ten frames; its flow is Farneback's.

Source: Zhong et al., "Efficient Spatio-Temporal Recurrent Neural Network for Video Deblurring" (ECCV 2020).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from training.data.footage import OutputOptions, Pairs, fill_pool, find_pairs, write_benchmark_of_pairs
from training.options import FLAT, command


@FLAT
@dataclass(frozen=True, kw_only=True)
class Options(OutputOptions):
    """A pool or a benchmark of BSD."""

    exposure: Annotated[float, Parameter(validator=Number(gt=0, lte=1))]
    """Open-shutter time of the blurred camera over the frame interval."""
    scale: Literal[4, 2, 1] = 1


def prepare(folder: Path, /, *, options: Options) -> None:
    """Write pool or benchmark, whichever is named.

    Args:
        folder: Part of the data set, such as BSD_2ms16ms/test.
    """
    options.check()
    clips = find_pairs(folder, blurred="Blur/RGB", sharp="Sharp/RGB")
    pairs = Pairs(scale=options.scale, exposure=options.exposure)
    if options.benchmark:
        write_benchmark_of_pairs(options.benchmark, clips, pairs)
    if options.pool:
        fill_pool(options.pool, clips, pairs, length=options.frames, workers=options.workers)


main = command(prepare, __doc__)

if __name__ == "__main__":
    main()
