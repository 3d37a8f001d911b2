"""The list of jobs that all machines read, and one job of it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from vsfmanet import __version__
from vsfmanet.atomic import write_new, write_whole
from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.jobs import batch, supervise
from vsfmanet.jobs.batch import TRIES
from vsfmanet.jobs.files import settle
from vsfmanet.jobs.job import BatchOptions, RestoreJob, recipe
from vsfmanet.jobs.journal import FOLDER
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.record import Fingerprint, Record, find_done, job_key, weights_sha256
from vsfmanet.jobs.runner import TAKING_PART
from vsfmanet.jobs.supervise import Stop
from vsfmanet.settings import from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class JobList:
    """The jobs of a cluster, and what must be equal on all nodes. It is a file in OUT_DIR, which every node reads."""

    in_folder: str
    """Absolute path of the sources, the same on every node."""
    out_folder: str
    """Absolute path of the outputs, the same on every node."""
    template: RestoreJob
    """Options of every job; its source and target are not used."""
    weights_sha256: str
    """Sha256 of the weights."""
    recipe: str
    """`Recipe.digest` of the settings."""
    versions: Mapping[str, str]
    """Versions of vsfmanet and of the packages that take part in computing pixels."""
    jobs: tuple[tuple[str, str], ...]
    """Source and output of each job."""
    token: str
    """Random word; a node that knows it has read this file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """How one job ended, after all its attempts."""

    source: str
    """Path of the source."""
    code: int
    """Exit code; 0 for done and verified."""
    cause: str
    """Why there is no result."""
    frames: int
    """Frames of the output."""
    attempts: int
    """Number of attempts; 0 if the output was there."""


def write_list(options: BatchOptions, report: Report) -> Path:
    """Check all names and write the list of jobs into OUT_DIR.

    Args:
        options: The folders and the options of every job.
        report: Receives messages.

    Returns:
        Path of the list. The same jobs and settings have the same list.

    Raises:
        ConfigError: Names cannot be used, or files that are not ours have an output's name.
        OutputError: The list cannot be written.
    """
    pairings = batch.find_jobs(options, report)
    template = options.template
    content = {
        "in_folder": os.path.realpath(options.in_folder),
        "out_folder": os.path.realpath(options.out_folder),
        "template": template.to_json(),
        "weights_sha256": weights_sha256(template.settings.named_model),
        "recipe": recipe(template).digest(),
        "versions": _versions(),
        "jobs": [[str(pairing.source), str(pairing.target)] for pairing in pairings],
    }
    text = json.dumps(content, sort_keys=True)
    path = Path(str(content["out_folder"]), FOLDER, f"cluster-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, json.dumps(content | {"token": secrets.token_hex(16)}, indent=1))
    except OSError as error:
        raise OutputError(f"{path}: the list of jobs must be written, but {error}; mend the folder") from error
    return path


def read_list(path: Path) -> JobList:
    """Read a list of jobs, and check that this node has the same programs, weights and folders.

    Raises:
        ConfigError: The list cannot be read, or something on this node differs.
    """
    try:
        listed = from_json(
            JobList,
            json.loads(path.read_text(encoding="utf-8")),
            template=RestoreJob.from_json,
            jobs=lambda jobs: tuple((str(source), str(target)) for source, target in jobs),
        )
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(
            f"{path}: the list of jobs must be readable on {socket.gethostname()} under this path, but {error!r}; "
            "mount the share there as on the machine that wrote it"
        ) from error
    found = _versions() | {"weights": weights_sha256(listed.template.settings.named_model)}
    needed = {**listed.versions, "weights": listed.weights_sha256}
    if other := sorted(name for name in needed if needed[name] != found.get(name)):
        details = ", ".join(f"{name} {needed[name]}, got {found.get(name)}" for name in other)
        raise ConfigError(
            f"{socket.gethostname()}: every node must have the same programs and weights: needed {details}; "
            "install the same there, or run the command again on a node with these"
        )
    for folder in (listed.in_folder, listed.out_folder):
        if not Path(folder).is_dir():
            raise ConfigError(
                f"{socket.gethostname()}: the folder {folder} must be there, got none; mount the share there "
                "under the same path"
            )
    return listed


class OneJob:
    """Runs one job of a list.

    Args:
        path: The list.
        index: Number of the job in it, from 0.
    """

    def __init__(self, path: Path, index: int) -> None:
        self._list = read_list(path)
        if not 0 <= index < len(self._list.jobs):
            raise ConfigError(
                f"{path}: the number of the job must be in 0 ... {len(self._list.jobs) - 1}, got {index}; run the "
                "command again that wrote the list, if sources have been added since"
            )
        source, target = self._list.jobs[index]
        self._job = replace(self._list.template, source=Path(source), target=Path(target))
        self.stop = Stop()
        """Ends the job. May be called from any thread, at any time."""

    def run(self) -> JobEnd:
        """Make the output unless it exists. A job that crashes, hangs or fails verification is tried 3 times."""
        source, target = self._job.source, self._job.target
        end = JobEnd(source=str(source), code=6, cause="", frames=0, attempts=0)
        while True:
            settle(target)
            record = self._find_done()
            if record is not None:
                return replace(end, code=0, cause="", frames=record.frames)
            if end.attempts == TRIES or (end.attempts and end.code != 6):
                return end
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{target}: its folder must be writable, but {error}; mend it") from error
            # A file of this name is ours, or there were no list: of other settings, or damaged. It is kept as `.old1`.
            job = replace(self._job, overwrite=os.path.lexists(target))
            outcome = supervise.supervise(job, attempt=end.attempts + 1, stop=self.stop)
            cause = outcome.cause or "the output is of another job; move it, or choose another OUT_DIR"
            end = replace(end, code=outcome.code or 6, cause=cause, attempts=end.attempts + 1)

    def _find_done(self) -> Record | None:
        """Record of the output, if it is done and intact."""
        try:
            return find_done(self._job.target, lambda: job_key(Fingerprint.of(self._job.source), self._list.recipe))
        except OSError:  # the source or the output cannot be read: the job will report that
            return None


def answer(path: Path) -> Mapping[str, str]:
    """Prove that this node can read the list and write to OUT_DIR, by writing the list's token to a new file.

    Returns:
        Name of the node, the token, and the path of the file.

    Raises:
        ConfigError: The node has other programs, weights or folders.
        OutputError: The file cannot be written.
    """
    listed = read_list(path)
    canary = path.with_suffix(f".{secrets.token_hex(4)}.canary")
    try:
        write_new(canary, listed.token)
    except OSError as error:
        raise OutputError(
            f"{socket.gethostname()}: the folder {path.parent} must be writable, but {error}; mend its rights"
        ) from error
    return {"node": socket.gethostname(), "token": listed.token, "canary": str(canary)}


def _versions() -> dict[str, str]:
    """Versions of vsfmanet and of the packages that take part in computing pixels."""
    return {"vsfmanet": __version__} | {name: version(name) for name in TAKING_PART}
