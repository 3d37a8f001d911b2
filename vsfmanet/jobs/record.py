"""The record beside an output: what it was made of, and the hash of what was verified. A job is done by its record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from vsfmanet.atomic import write_new, write_whole
from vsfmanet.errors import IncompleteError
from vsfmanet.jobs.files import exposure_sidecar, pending_records, record_path, sweep
from vsfmanet.settings import is_int

FORMAT = 1
"""Of the record file; one of another format is not read."""

EDGE = 16 << 20
"""Bytes of a source's beginning, and of its end, that its fingerprint covers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What tells whether a source is still the same file, with the same exposures beside it."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of change, ns."""
    sha256: str
    """Of its first and last `EDGE` bytes, and of the file with its exposures, if there is one."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read a file's edges."""
        with path.open("rb") as file:
            status = path.stat()
            digest = hashlib.sha256(file.read(EDGE))
            if status.st_size > EDGE:
                file.seek(max(EDGE, status.st_size - EDGE))
                digest.update(file.read(EDGE))
        sidecar = exposure_sidecar(path)
        if sidecar is not None:
            digest.update(sidecar.read_bytes())
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=digest.hexdigest())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What decides a result, apart from the source. Where and how fast it is computed is no part of it."""

    model: str
    """Name of a model, or path of its weights."""
    weights_sha256: str
    """Of the weights file."""
    settings: Mapping[str, Any]
    """Every option that changes the output."""
    version: str
    """Of vsfmanet."""

    def digest(self) -> str:
        """A hash of all of it but the model's name, which the weights stand for."""
        parts = [self.weights_sha256, self.version, self.settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of an output that passed its verification."""

    key: str
    """Of the job: `job_key`."""
    attempt: int
    """Number of the attempt that made it."""
    source: str
    """Absolute path."""
    fingerprint: Fingerprint
    """Of the source."""
    recipe: Recipe
    """What it was made with."""
    versions: Mapping[str, str]
    """Of the programs and libraries that took part."""
    frames: int
    """Frames in the output."""
    width: int
    """Of the output, pixels."""
    height: int
    """Of the output, pixels."""
    output_size: int
    """Bytes."""
    output_sha256: str
    """Of the whole file."""
    warnings: tuple[str, ...] = ()
    """What the user was warned of."""
    verdict: str = "verified"
    """Nothing else gets a record."""
    pictures: str = "unknown"
    """How like what was encoded every decoded frame was found to be: `Likeness` of `media.thumbnails`."""
    format: int = FORMAT
    """Of this file."""


def job_key(fingerprint: Fingerprint, recipe_digest: str) -> str:
    """The identity of a job: another source, weights, setting or version is another job."""
    text = f"{fingerprint.size} {fingerprint.mtime_ns} {fingerprint.sha256} {recipe_digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(model: str) -> str:
    """Sha256 of a model's weights, which loading them checks.

    Raises:
        WeightsError: There is no such model.
    """
    from vsfmanet.weights import file_sha256, find_model  # with torch: late

    _, path, expected = find_model(model)
    return expected or file_sha256(path)


def file_sha256(path: Path) -> str:
    """Sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(record: Record, path: Path) -> None:
    """Write a record, whole or not at all."""
    write_whole(path, _as_json(record))


def write_pending(record: Record, path: Path) -> None:
    """Write a record under a new name, where it waits; one that is cut short by a kill cannot be read."""
    write_new(path, _as_json(record))


def _as_json(record: Record) -> str:
    """The content of a record's file."""
    return json.dumps(asdict(record), indent=2) + "\n"


def read_record(path: Path) -> Record | None:
    """A record, or None if there is none that can be understood."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            return None
        record = Record(
            **(
                fields
                | {
                    "fingerprint": Fingerprint(**fields["fingerprint"]),
                    "recipe": Recipe(**fields["recipe"]),
                    "warnings": tuple(fields.get("warnings", ())),
                }
            )
        )
        return record if is_int(record.frames) and is_int(record.output_size) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def is_intact(path: Path, record: Record) -> bool:
    """Whether a file is, to the byte, the one that was verified."""
    return path.is_file() and path.stat().st_size == record.output_size and file_sha256(path) == record.output_sha256


def find_done(target: Path, key: Callable[[], str]) -> Record | None:
    """The record of a job whose output is there and intact.

    The record of a run that was killed after the output had its name is put in its place first.

    Args:
        target: The output.
        key: Gives the `job_key`; asked for only if there is a record to compare.
    """
    record = read_record(record_path(target))
    if record is not None and record.key == key() and is_intact(target, record):
        return record
    record = adopt(target)
    return record if record is not None and record.key == key() else None


def adopt(target: Path) -> Record | None:
    """Put the record beside an output that a run was killed over, after the output had its name.

    Returns:
        The record, if one waits that fits the output to the byte.
    """
    for path in pending_records(target):
        record = read_record(path)
        if record is not None and is_intact(target, record):
            path.replace(record_path(target))
            sweep(target)
            return record
    return None


def check_against_record(path: Path) -> Record:
    """Compare a file with the record beside it.

    Returns:
        The record.

    Raises:
        IncompleteError: The file is not the one that was verified, or nothing says which that was.
    """
    record = read_record(record_path(path))
    if record is None:
        raise IncompleteError(
            f"{path}: a record {record_path(path).name} is needed beside the file, got none that can be read; "
            "name its source with --source"
        )
    if not path.is_file():
        raise IncompleteError(f"{path}: the file is needed, got nothing but its record; restore it again")
    size = path.stat().st_size
    if size != record.output_size:
        raise IncompleteError(f"{path}: {record.output_size} bytes are needed, got {size}; restore it again")
    if file_sha256(path) != record.output_sha256:
        raise IncompleteError(
            f"{path}: the bytes that were verified are needed, but the file has changed since; restore it again"
        )
    return record
