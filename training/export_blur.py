"""Make shipped weights of a checkpoint of train_blur or train_shutter: fp16 safetensors, and an entry in the manifest.

    python -m training.export_blur runs/shutter.pt --name shutter_v1 --scores runs/blur/scores.json \
        --description "..." --data "..." --command "..."

`--scores` is what `training.evaluate_blur --json` wrote with this checkpoint; it may be given once for each benchmark,
whose scale goes before the names. The package uses the first analyser and the first estimator of its manifest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from training.evaluate_blur import load, load_estimator_of
from training.export import write_manifest
from training.loop import load_checkpoint
from vsfmanet.manifest import file_sha256
from vsfmanet.weights import save_analyser, save_estimator


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of training.train_blur or training.train_shutter")
    parser.add_argument("--name", required=True, help="of the weights")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--scores", type=Path, action="append", default=[], help="JSON of training.evaluate_blur")
    parser.add_argument("--licence", default="MIT", help="of the weights (default: %(default)s)")
    for field in ("description", "data", "command"):
        parser.add_argument(f"--{field}", required=True, help=f"{field}, for the manifest")
    args = parser.parse_args()

    path = args.models / f"{args.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(args.checkpoint)
    about = {"data": args.data, "command": args.command}
    if "reader" in state:
        table, extent = "estimator", False
        save_estimator(load_estimator_of(args.checkpoint), path, about=about | {"frames": state["frames"]})
    else:
        table, extent = "analyser", True
        save_analyser(load(args.checkpoint), path, about=about | {"target": "extent", "steps": state["step"]})
    scores: dict[str, float] = {}
    for file in args.scores:
        measured = json.loads(file.read_text(encoding="utf-8"))
        for name, value in measured["scores"].items():
            if name.startswith("extent") == extent:
                scores[f"x{measured['scale']}_{name}"] = value
    write_manifest(
        args.models / "manifest.toml",
        table,
        {
            "name": args.name,
            "file": path.name,
            "size": path.stat().st_size,
            "sha256": file_sha256(path),
            "licence": args.licence,
            "description": args.description,
            "data": args.data,
            "command": args.command,
            "scores": scores,
        },
    )
    print(f"{path}: {path.stat().st_size} bytes, sha256 {file_sha256(path)}")


if __name__ == "__main__":
    main()
