"""The record beside an output: what it was made from, and its hash when verified. It proves that a job is done."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from vsfmanet.atomic import read_regular, write_new, write_whole
from vsfmanet.errors import IncompleteError
from vsfmanet.jobs.files import exposure_sidecar, pending_records, record_path, sweep
from vsfmanet.manifest import file_sha256, find_model, models_by_size
from vsfmanet.media.containers import PICTURES, is_sequence, pictures
from vsfmanet.settings import AUTO, is_int

FORMAT = 1
"""Format of the record file; one of another format is not read."""

EDGE = 16 << 20
"""Bytes at the beginning and at the end of a source that its fingerprint covers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """Identifies the content of a source and of the file with its exposures."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, ns."""
    sha256: str
    """Sha256 of its first and last `EDGE` bytes, and of the file with its exposures if there is one; of a script, also
    of the first `EDGE` bytes of the files that it names. Of pictures, of their names and contents."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Compute the fingerprint of a source.

        Raises:
            OSError: It cannot be read.
        """
        digest = hashlib.sha256()
        size, times = 0, list[int]()
        files = list(pictures(path).values()) if is_sequence(path) else [path]
        for each in files:
            with each.open("rb") as file:
                status = each.stat()
                if len(files) > 1:
                    digest.update(f"{each.name} {status.st_size}".encode(errors="surrogateescape"))
                digest.update(file.read(EDGE))
                if status.st_size > EDGE:
                    file.seek(max(EDGE, status.st_size - EDGE))
                    digest.update(file.read(EDGE))
            size += status.st_size
            times.append(status.st_mtime_ns)
        sidecar = exposure_sidecar(path)
        if sidecar is not None:
            digest.update(sidecar.read_bytes())
        for named in script_files(path) if path.suffix.lower() == ".vpy" else ():
            digest.update(f"{named} {named.stat().st_size}".encode(errors="surrogateescape"))
            with named.open("rb") as file:
                digest.update(file.read(EDGE))
        return cls(size=size, mtime_ns=max(times, default=0), sha256=digest.hexdigest())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a result, apart from the source."""

    model: str
    """Name of the model, or path of its weights."""
    weights_sha256: str
    """Sha256 of the weights file."""
    settings: Mapping[str, Any]
    """Every option that changes the output."""
    version: str
    """Version of vsfmanet."""

    def digest(self) -> str:
        """Hash of all fields but the model's name; the hash of the weights stands for it.

        FFmpeg's version is not part of it: a new one is no reason to restore again what has been verified. Unfinished
        ranges, which could be mixed, have it in their key (`vsfmanet.jobs.ranges`).
        """
        parts = [self.weights_sha256, self.version, self.settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is known of a verified output."""

    key: str
    """`job_key` of the job."""
    attempt: int
    """Number of the attempt that made it."""
    source: str
    """Absolute path of the source."""
    fingerprint: Fingerprint
    """Fingerprint of the source."""
    recipe: Recipe
    """Settings, weights and version."""
    versions: Mapping[str, str]
    """Versions of the programs and libraries that took part."""
    frames: int
    """Frames in the output."""
    width: int
    """Width of the output, pixels."""
    height: int
    """Height of the output, pixels."""
    output_size: int
    """Size of the output, bytes."""
    output_sha256: str
    """Sha256 of the output."""
    warnings: tuple[str, ...] = ()
    """Warnings during the job."""
    resolved: Mapping[str, str | None] = field(default_factory=dict)
    """What computed the pixels: fields of `Resolved`. Ranges of earlier runs differ in `device_name` at most."""
    ffmpeg: str = ""
    """Path of the FFmpeg that encoded it; its release is among `versions`."""
    encoder_args: str = ""
    """FFmpeg's options for the video, those of the user and the defaults, as in a shell."""
    exposures: Mapping[str, int] = field(default_factory=dict)
    """How many frames had their exposure from which source, of those that the last run restored."""
    doubtful: Mapping[str, float] = field(default_factory=dict)
    """With `self_check`, frames that are far from their source when blurred again, the farthest first, with the
    distance (`FMANetReblurError`): numbers in the output, of those that the last run restored."""
    finished: str = ""
    """When it was verified, UTC, ISO 8601."""
    seconds: float = 0.0
    """Duration of the last run."""
    verdict: str = "verified"
    """Only verified outputs have a record."""
    pictures: str = "unknown"
    """How like what was encoded every decoded frame was found to be: `Likeness` of `media.thumbnails`."""
    format: int = FORMAT
    """Format of this file."""


def script_files(path: Path) -> list[Path]:
    """Files that a VapourSynth script names: modules beside it that it imports, and paths in its text; those of the
    modules too. What it finds in other ways is not known.

    Raises:
        OSError: The script cannot be read.
    """
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        script = waiting.pop()
        try:
            tree = ast.parse(script.read_bytes())
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # the job will report it
            continue
        for name in _names(tree):
            for place in (Path(name), path.parent / name):
                if _is_file(place) and place.absolute() not in found and place.absolute() != path.absolute():
                    found[place.absolute()] = None
                    waiting += [place] if place.suffix == ".py" else []
    return sorted(found)


def _names(tree: ast.Module) -> Iterator[str]:
    """Texts and modules in a script that can be names of files."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
            yield node.value
        elif isinstance(node, ast.Import):
            yield from (f"{each.name.replace('.', '/')}.py" for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield f"{node.module.replace('.', '/')}.py"


def _is_file(path: Path) -> bool:
    """Whether a text names a file; it may be no path at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def job_key(fingerprint: Fingerprint, recipe_digest: str) -> str:
    """Hash that identifies a job: with another source, weights, setting or version it is another job."""
    text = f"{fingerprint.size} {fingerprint.mtime_ns} {fingerprint.sha256} {recipe_digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def source_digits(source: Path, fingerprint: Fingerprint) -> str:
    """Eight digits for the names of folders: four for the path of a source, four for its content."""
    content = f"{fingerprint.size} {fingerprint.mtime_ns} {fingerprint.sha256}"
    parts = (os.fsencode(source.absolute()), content.encode())
    return "".join(hashlib.sha256(part).hexdigest()[:4] for part in parts)


def weights_sha256(model: str) -> str:
    """Sha256 of a model's weights; loading the model checks it. For "auto", one of all models that a size can choose.

    Raises:
        WeightsError: There is no such model.
    """
    if model == AUTO:
        return hashlib.sha256(" ".join(sorted(entry.sha256 for entry in models_by_size())).encode()).hexdigest()
    _, path, expected = find_model(model)
    return expected or file_sha256(path)


def write_record(record: Record, path: Path) -> None:
    """Create or replace a record, whole or not at all."""
    write_whole(path, _as_json(record))


def write_pending(record: Record, path: Path) -> None:
    """Write a record to a new file, where it waits; one that a kill cuts short is not read."""
    write_new(path, _as_json(record))


def _as_json(record: Record) -> str:
    """Content of a record's file."""
    return json.dumps(asdict(record), indent=2) + "\n"


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none, or it is damaged or of another format."""
    try:
        return record_of(json.loads(read_regular(path).decode()))
    except (OSError, ValueError, RecursionError):
        return None


def record_of(table: Mapping[str, Any]) -> Record | None:
    """Build a record from its JSON object; None if it is damaged or of another format."""
    try:
        if table["format"] != FORMAT:
            return None
        values = dict(table)
        values["fingerprint"] = Fingerprint(**table["fingerprint"])
        values["recipe"] = Recipe(**table["recipe"])
        values["warnings"] = tuple(table.get("warnings", ()))
        record = Record(**values)
        return record if is_int(record.frames) and is_int(record.output_size) else None
    except (ValueError, TypeError, KeyError):
        return None


def content(path: Path) -> tuple[int, Callable[[], str]]:
    """Size of an output in bytes, and a function that returns its sha256; of a folder, those of the pictures in it.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_dir():
        return path.stat().st_size, lambda: file_sha256(path)
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURES and each.name[0] != ".")

    def digest() -> str:
        lines = (f"{each.name} {file_sha256(each)}\n".encode(errors="surrogateescape") for each in files)
        return hashlib.sha256(b"".join(lines)).hexdigest()

    return sum(each.stat().st_size for each in files), digest


def is_intact(path: Path, record: Record) -> bool:
    """Whether an output has the bytes that were verified."""
    if not path.exists():
        return False
    size, digest = content(path)
    return size == record.output_size and digest() == record.output_sha256


def find_done(target: Path, key: Callable[[], str]) -> Record | None:
    """Return the record of an output that is intact and was made by a given job; None otherwise.

    If a run was killed after the output had its name, its waiting record is put in place first.

    Args:
        target: The output.
        key: Returns the `job_key`. Called only if there is a record to compare with.
    """
    record = read_record(record_path(target))
    if record is not None and record.key == key() and is_intact(target, record):
        return record
    record = adopt(target)
    return record if record is not None and record.key == key() else None


def adopt(target: Path) -> Record | None:
    """Put a waiting record in place if an output has the bytes that it describes.

    Returns:
        The record; None if none fits.
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
        IncompleteError: The file has changed since, is missing, or has no record.
    """
    record = read_record(record_path(path))
    if record is None:
        raise IncompleteError(
            f"{path}: a record {record_path(path).name} is needed beside the file, got none that can be read; "
            "name its source with --source"
        )
    if not path.exists():
        raise IncompleteError(f"{path}: the file is needed, got nothing but its record; restore it again")
    size, digest = content(path)
    if size != record.output_size:
        raise IncompleteError(f"{path}: {record.output_size} bytes are needed, got {size}; restore it again")
    if digest() != record.output_sha256:
        raise IncompleteError(
            f"{path}: the bytes that were verified are needed, but the file has changed since; restore it again"
        )
    return record
