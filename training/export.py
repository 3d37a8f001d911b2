"""Make a shipped model of a checkpoint: fp16 safetensors in deployed form, and its entry in the manifest.

    python -m training.export runs/fast/latest.pt --name fmanetpp_x4_fast --scores runs/fast/scores.json \
        --description "..." --data "..." --command "..."

The checkpoint is that of any training of a network that restores. `--scores` is what `training.evaluate --json` wrote
for this checkpoint; its means go into the manifest.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from training.fmanet import trained_network
from training.loop import load_checkpoint
from training.report import BASELINES
from training.scoring import METRICS
from vsfmanet.manifest import file_sha256
from vsfmanet.weights import save_model


def mean_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over scenes of what `training.evaluate` wrote, for its network and for the first baseline.

    Names are `psnr_5_1` and so on, and `bicubic_psnr_5_1`, or at scale 1 `input_psnr_5_1`.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] in BASELINES and row["method"] not in ("bicubic", "input"):
            continue
        prefix = f"{row['method']}_" if row["method"] in BASELINES else ""
        for metric in METRICS:
            groups.setdefault(f"{prefix}{metric}_{row['condition']}", []).append(row[metric])
    return {name: round(mean(values), 4) for name, values in sorted(groups.items())}


def write_manifest(path: Path, kind: str, entry: dict[str, Any]) -> None:
    """Put an entry into the manifest, in the place of an old one of its name: one table each, scores last.

    Args:
        path: The manifest.
        kind: "model" for what `restore` can be given, "analyser" for the network that measures blur, "estimator" for
            that which reads exposures.
        entry: Plain values; `name` is that of the weights, `scores` a table.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries = tables.setdefault(kind, [])
    names = [old["name"] for old in entries]
    if entry["name"] in names:
        entries[names.index(entry["name"])] = entry
    else:
        entries.append(entry)
    lines = ["# Models that ship with vsfmanet. Written by training.export; read by vsfmanet.manifest."]
    for table, values in tables.items():
        for value in values:
            lines += ["", f"[[{table}]]"]
            lines += [f"{key} = {json.dumps(item)}" for key, item in value.items() if key != "scores"]
            lines += [f"[{table}.scores]", *(f"{key} = {json.dumps(item)}" for key, item in value["scores"].items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="latest.pt of training.train_restoration, train_mmprnn and so on")
    parser.add_argument("--name", required=True, help="<network>_x<scale>[_<preset>]")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--scores", type=Path, help="JSON that training.evaluate wrote; without it the entry has none")
    parser.add_argument("--licence", default="MIT", help="of the weights (default: %(default)s)")
    for field in ("description", "data", "command"):
        parser.add_argument(f"--{field}", required=True, help=f"{field}, for the manifest")
    args = parser.parse_args()

    state = load_checkpoint(args.checkpoint)
    network = trained_network(state)
    path = args.models / f"{args.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        save_model(
            network.deployed_form(), path, about={"data": args.data, "command": args.command, "steps": state["step"]}
        )

    entry = {
        "name": args.name,
        "file": path.name,
        "preset": state["preset"],
        "scale": state["scale"],
        "size": path.stat().st_size,
        "sha256": file_sha256(path),
        "licence": args.licence,
        "description": args.description,
        "data": args.data,
        "command": args.command,
        "steps": state["step"],
        "scores": mean_scores(json.loads(args.scores.read_text(encoding="utf-8"))) if args.scores else {},
    }
    write_manifest(args.models / "manifest.toml", "model", entry)
    print(f"{path}: {entry['size']} bytes, sha256 {entry['sha256']}")


if __name__ == "__main__":
    main()
