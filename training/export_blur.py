"""Make shipped weights of a checkpoint of train_blur or train_shutter: fp16 safetensors, and an entry in the manifest.

    python -m training.export_blur runs/shutter.pt --name shutter_v1 --scores runs/blur/scores.json \
        --description "..." --data "..." --command "..."

`--scores` is what `training.evaluate_blur --json` wrote with this checkpoint; it may be given once for each benchmark,
whose scale goes before the names. The package uses the first analyser and the first estimator of its manifest.
"""

import json
from pathlib import Path

from training.manifest import Entry
from training.options import command
from training.run.checkpoint import load_checkpoint
from training.run.trained import trained_analyser, trained_estimator
from vsfmanet.weights import save_analyser, save_estimator


def export(checkpoint: Path, /, *, entry: Entry, scores: tuple[Path, ...] = ()) -> None:
    """Write the weights file and its entry in the manifest.

    Args:
        checkpoint: Checkpoint of training.train_blur or training.train_shutter.
        scores: JSON file that training.evaluate_blur wrote; may be repeated.
    """
    state = load_checkpoint(checkpoint)
    entry.models.mkdir(parents=True, exist_ok=True)
    about = {"data": entry.data, "command": entry.command}
    of_estimator = "reader" in state
    if of_estimator:
        save_estimator(trained_estimator(checkpoint), entry.path, about=about | {"frames": state["frames"]})
    else:
        extent = {"target": "extent", "steps": state["step"]}
        save_analyser(trained_analyser(checkpoint), entry.path, about=about | extent)
    measured = [json.loads(file.read_text(encoding="utf-8")) for file in scores]
    chosen = {
        f"x{one['scale']}_{name}": value
        for one in measured
        for name, value in one["scores"].items()
        if name.startswith("extent") != of_estimator
    }
    entry.write("estimator" if of_estimator else "analyser", scores=chosen)


main = command(export, __doc__)

if __name__ == "__main__":
    main()
