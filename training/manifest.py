"""The manifest of shipped weights."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from training.metrics.scoring import BASELINES, METRICS
from training.options import FLAT
from vsfmanet.manifest import file_sha256


def mean_scores(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Compute means over scenes of the scores that `training.evaluate` wrote, of its network and the first baseline.

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


@FLAT
@dataclass(frozen=True, kw_only=True)
class Entry:
    """The entry of a weights file in the manifest, without what is measured."""

    name: str
    """Name of the weights, for a model <network>_x<scale>[_<preset>]."""
    models: Path = Path("models")
    """Folder to write to."""
    licence: str = "MIT"
    """Licence of the weights."""
    description: str
    """What the weights do, in a few words."""
    data: str
    """What they were trained on."""
    command: str
    """Command or recipe that made them."""

    @property
    def path(self) -> Path:
        """The weights file."""
        return self.models / f"{self.name}.safetensors"

    def write(self, kind: str, *, scores: Mapping[str, float], **more: object) -> None:
        """Put the entry into the manifest, and print size and hash of the weights file, which exists.

        Args:
            kind: As in `write_manifest`.
            scores: By name.
            more: Other plain values.
        """
        size, sha256 = self.path.stat().st_size, file_sha256(self.path)
        about = {"licence": self.licence, "description": self.description, "data": self.data, "command": self.command}
        names, measured = {"name": self.name, "file": self.path.name}, {"size": size, "sha256": sha256}
        write_manifest(self.models / "manifest.toml", kind, {**names, **more, **measured, **about, "scores": scores})
        print(f"{self.path}: {size} bytes, sha256 {sha256}")


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
