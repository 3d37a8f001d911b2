"""Make a shipped model of a checkpoint: fp16 safetensors in deployed form, and its entry in the manifest.

    python -m training.export runs/fast/latest.pt --name fmanetpp_x4_fast --scores runs/fast/scores.json \
        --description "..." --data "..." --command "..."

The checkpoint is that of any training of a network that restores. `--scores` is what `training.evaluate --json` wrote
for this checkpoint; its means go into the manifest.
"""

import json
from pathlib import Path

import torch

from training.manifest import Entry, mean_scores
from training.options import command
from training.run.checkpoint import load_checkpoint
from training.run.trained import trained_network
from vsfmanet.weights import save_model

RECORDED = {"preset": "preset", "scale": "scale", "steps": "step"}
"""What an entry takes from a checkpoint, and its name there."""


def export(checkpoint: Path, /, *, entry: Entry, scores: Path | None = None) -> None:
    """Write the weights file and its entry in the manifest.

    Args:
        checkpoint: latest.pt of training.train_restoration, train_mmprnn and so on.
        scores: JSON file that training.evaluate wrote; without it the entry has none.
    """
    state = load_checkpoint(checkpoint)
    entry.models.mkdir(parents=True, exist_ok=True)
    about = {"data": entry.data, "command": entry.command, "steps": state["step"]}
    with torch.no_grad():
        save_model(trained_network(state).deployed_form(), entry.path, about=about)
    means = mean_scores(json.loads(scores.read_text(encoding="utf-8"))) if scores else {}
    entry.write("model", scores=means, **{name: state[key] for name, key in RECORDED.items()})


main = command(export, __doc__)

if __name__ == "__main__":
    main()
