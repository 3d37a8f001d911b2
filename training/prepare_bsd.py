"""Make a benchmark of BSD, clips that two cameras behind one lens filmed blurred and sharp.

    python -m training.prepare_bsd BSD_2ms16ms/test --benchmark runs/bsd --exposure 0.24
    python -m training.evaluate runs/bsd --model fmanetpp_x1_path --exposure given

A clip is a folder with Blur/RGB/*.png and Sharp/RGB/*.png.

Source: Zhong et al., "Efficient Spatio-Temporal Recurrent Neural Network for Video Deblurring" (ECCV 2020).
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from training.data.footage import write_benchmark, write_pairs
from training.options import command
from vsfmanet.errors import SourceError

CONDITION = "blur"


def prepare(
    folder: Path,
    /,
    *,
    benchmark: Path,
    exposure: Annotated[float, Parameter(validator=Number(gt=0, lte=1))],
    scale: Literal[1, 2, 4] = 1,
) -> None:
    """Write the benchmark.

    Args:
        folder: Part of the data set, such as BSD_2ms16ms/test.
        benchmark: Folder to make.
        exposure: Open-shutter time of the blurred camera over the frame interval.
        scale: HR size over LR size.
    """
    clips = sorted(path.parent.parent for path in folder.glob("*/Blur/RGB") if path.is_dir())
    if not clips:
        raise SourceError(
            f"folders with Blur/RGB and Sharp/RGB are needed, {folder} has none; name the folder test of a part of BSD"
        )
    scenes = [
        write_pairs(
            benchmark / clip.name,
            sharp=sorted((clip / "Sharp" / "RGB").glob("*.png")),
            blurred=sorted((clip / "Blur" / "RGB").glob("*.png")),
            condition=CONDITION,
            exposure=exposure,
            scale=scale,
        )
        for clip in clips
    ]
    write_benchmark(benchmark, scenes, scale=scale, seed=0)


main = command(prepare, __doc__)

if __name__ == "__main__":
    main()
