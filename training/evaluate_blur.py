"""Measure the blur analyser and the estimated exposure on scenes with known truth.

    python -m training.evaluate_blur runs/benchmark --photos OTHER_PHOTOS --checkpoint runs/blur/latest.pt \
        --estimator runs/shutter.pt --json runs/blur/scores.json

The benchmark is that of training.build_benchmark; the scenes are drawn again from its photographs, for the exact
extent. Every frame counts once for each condition, and once more sharp. Without `--checkpoint` or `--estimator`, what
ships with the package is measured.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from training.data.benchmark import load_benchmark
from training.data.photos import list_photos
from training.evaluation.blur import measure, scores, table
from training.options import command
from training.run.trained import trained_analyser, trained_estimator
from vsfmanet.errors import SourceError


def evaluate(
    benchmark: Path,
    /,
    *,
    photos: Path,
    checkpoint: Path | None = None,
    estimator: Path | None = None,
    scores_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Measure, print and write.

    Args:
        benchmark: Folder that training.build_benchmark wrote.
        photos: Folder of the photographs that it was built from.
        checkpoint: Checkpoint of training.train_blur; without it, the analyser that ships.
        estimator: Checkpoint of training.train_shutter; without it, the estimator that ships.
        scores_file: JSON file for scores and rows.
    """
    record = load_benchmark(benchmark)
    pictures = list_photos(photos)
    if {photo.name: sha256(photo.read_bytes()).hexdigest() for photo in pictures} != record.photos:
        raise SourceError(
            f"{photos} does not hold the photographs that {benchmark} was built from; name "
            "their folder, else the truth would be that of other scenes"
        )
    rows = measure(trained_analyser(checkpoint), trained_estimator(estimator), benchmark, record, pictures)
    print("\n".join(table(rows)))
    if scores_file is not None:
        scores_file.write_text(
            json.dumps({"scale": record.scale, "scores": scores(rows), "rows": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


main = command(evaluate, __doc__)

if __name__ == "__main__":
    main()
