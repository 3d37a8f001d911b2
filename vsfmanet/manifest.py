"""The weights that ship with the package, as `models/manifest.toml` lists them. Needs no torch."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from vsfmanet.errors import WeightsError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A model that ships with the package, from the manifest."""

    name: str
    """`<network>_x<scale>[_<preset>]`."""
    scale: int
    """Output size over input size."""
    preset: str
    """Name of the configuration."""
    path: Path
    """The weights file."""
    size: int
    """Size of the file, bytes."""
    sha256: str
    """Sha256 of the file, in hexadecimal."""
    licence: str
    """Licence of the weights."""
    description: str
    """One line for the user."""
    scores: Mapping[str, float]
    """Measured scores by name, e.g. `psnr_5_5` and `bicubic_psnr_5_5`, dB; the card names the command."""

    def gain(self, condition: str) -> float | None:
        """Return the gain in PSNR, dB, over bicubic or, at scale 1, over the input.

        Args:
            condition: "5_1" to "5_5", or "re".

        Returns:
            The gain; None if it was not measured.
        """
        baseline = self.scores.get(f"{'input' if self.scale == 1 else 'bicubic'}_psnr_{condition}")
        psnr = self.scores.get(f"psnr_{condition}")
        return None if psnr is None or baseline is None else psnr - baseline


def models_folder() -> Path:
    """Return the folder of the shipped weights: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def list_models() -> list[ModelEntry]:
    """Return the models of the manifest, in its order.

    Raises:
        WeightsError: The manifest is missing or cannot be read.
    """
    manifest, entries = _table("model")
    try:
        return [
            ModelEntry(
                name=entry["name"],
                scale=entry["scale"],
                preset=entry["preset"],
                path=manifest.parent / entry["file"],
                size=entry["size"],
                sha256=entry["sha256"],
                licence=entry["licence"],
                description=entry["description"],
                scores=entry["scores"],
            )
            for entry in entries
        ]
    except KeyError as error:
        raise _unreadable(manifest, error) from error


def find_model(name_or_path: str) -> tuple[str, Path, str | None]:
    """Return name, file and expected sha256 of a model; None for the sha256 of a user's file.

    Raises:
        WeightsError: There is neither a model nor a file of this name.
    """
    if name_or_path.endswith(".safetensors"):
        path = Path(name_or_path)
        if not path.is_file():
            raise WeightsError(f"model must be a safetensors file that exists, got {name_or_path!r}")
        return path.stem, path, None
    entries = list_models()
    for entry in entries:
        if entry.name == name_or_path:
            return entry.name, entry.path, entry.sha256
    known = ", ".join(entry.name for entry in entries)
    raise WeightsError(f"model must be one of {known}, or a path that ends in .safetensors; got {name_or_path!r}")


def model_for(enlargement: Fraction) -> ModelEntry:
    """Return the first model of the smallest scale that reaches an enlargement, else of the largest scale.

    Raises:
        WeightsError: The manifest is missing or cannot be read.
    """
    entries = models_by_size()
    reaching = [entry for entry in entries if entry.scale >= enlargement]
    return reaching[0] if reaching else entries[-1]


def models_by_size() -> list[ModelEntry]:
    """Return the first model of each scale, the smallest scale first.

    Raises:
        WeightsError: The manifest is missing or cannot be read.
    """
    first = {entry.scale: entry for entry in reversed(list_models())}
    return [entry for _, entry in sorted(first.items())]


def find_shipped(table: Literal["analyser", "estimator"]) -> tuple[Path, str]:
    """Return file and sha256 of the blur analyser or the exposure estimator that ships with the package.

    Raises:
        WeightsError: The manifest lists none, or cannot be read.
    """
    manifest, entries = _table(table)
    try:
        return manifest.parent / entries[0]["file"], entries[0]["sha256"]
    except LookupError as error:
        raise _unreadable(manifest, error) from error


def _table(name: str) -> tuple[Path, list[dict[str, Any]]]:
    """Return the path of the manifest, and one of its tables.

    Raises:
        WeightsError: The manifest lacks the table, or cannot be read.
    """
    manifest = models_folder() / "manifest.toml"
    try:
        return manifest, tomllib.loads(manifest.read_text(encoding="utf-8"))[name]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise _unreadable(manifest, error) from error


def _unreadable(manifest: Path, error: Exception) -> WeightsError:
    return WeightsError(f"the manifest of models must be readable, got {manifest} ({error}); reinstall vsfmanet")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
