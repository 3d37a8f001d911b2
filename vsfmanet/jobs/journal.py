"""The journal of a batch: a SQLite database with one row for each job, which every kill leaves whole.

The journal lists what is left to do. What is done, the records beside the outputs prove: a journal that is lost is
made again from them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from vsfmanet.errors import BusyError, ConfigError, OutputError
from vsfmanet.jobs.files import locked, move_new
from vsfmanet.jobs.paths import Pairing

VERSION = 3
"""Version of the table below, kept as SQLite's `user_version`."""

TABLE = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    source BLOB NOT NULL,         -- absolute path; names need not be text
    size INTEGER NOT NULL,        -- of the source, bytes
    mtime_ns INTEGER NOT NULL,    -- of the source
    target BLOB NOT NULL,         -- absolute path
    recipe TEXT NOT NULL,         -- hash of settings, weights and version
    state TEXT NOT NULL DEFAULT 'new',
    attempts INTEGER NOT NULL DEFAULT 0,   -- number of the last attempt
    failures INTEGER NOT NULL DEFAULT 0,   -- attempts that count against the job
    exit_code INTEGER,
    cause TEXT NOT NULL DEFAULT '',
    frames INTEGER NOT NULL DEFAULT 0,
    output_size INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0,
    picture BLOB NOT NULL DEFAULT x'',     -- before and after, two JPEGs in a row
    warnings TEXT NOT NULL DEFAULT '[]',   -- of the last attempt, JSON
    UNIQUE (source, size, mtime_ns, target, recipe)
)
"""

MIGRATIONS = {
    1: "ALTER TABLE jobs ADD COLUMN picture BLOB NOT NULL DEFAULT x''",
    2: "ALTER TABLE jobs ADD COLUMN warnings TEXT NOT NULL DEFAULT '[]'",
}
"""Statement that brings a table of one version to the next."""

FOLDER = ".vsfmanet"
"""Folder in OUT_DIR for the journal and for lists of jobs."""

STATES = ("new", "leased", "done", "refused", "damaged", "failed", "quarantined")
"""States of a job."""

COLUMNS = (
    "id, source, size, mtime_ns, target, recipe, state, attempts, failures, exit_code, cause, frames, output_size, "
    "seconds, picture, warnings"
)
"""Columns of the table, in the order in which `_row` reads them."""

REMOTE = {"afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"}
REMOTE |= {"smb2", "smb3", "smbfs"}
"""Network file systems. SQLite's write-ahead log needs shared memory, which they do not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A job and its state."""

    id: int
    """Number of the row."""
    job: Pairing
    """Source and output."""
    state: str
    """One of `STATES`."""
    attempts: int
    """Number of the last attempt, from 1."""
    failures: int
    """Attempts that failed by the job's own fault."""
    exit_code: int | None
    """Exit code of the last attempt."""
    cause: str
    """Why there is no result."""
    frames: int
    """Frames of the output."""
    output_size: int
    """Size of the output, bytes."""
    seconds: float
    """Duration of the last attempt."""
    picture: bytes
    """Picture of the film before and after, as JPEG; empty without one."""
    warnings: tuple[str, ...] = ()
    """Warnings of the last attempt."""


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Open or create a journal for one run. A corrupt one is renamed to `.bad`, and a new one created.

    A journal of an older version is migrated in one transaction.

    Raises:
        BusyError: Another run holds it.
        ConfigError: It is of a newer version, on a network file system, or something else than a journal.
        OutputError: It cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    if not lock.exists() and not (path.parent.name == FOLDER and path.is_file()):
        _check_is_none(path)
    if path.parent.name == FOLDER and (path.is_symlink() or path.parent.is_symlink()):
        raise ConfigError(f"{path}: a symbolic link could lead out of OUT_DIR; name the journal's file with --journal")
    kind = file_system(path.parent)
    if kind in REMOTE:
        raise ConfigError(f"{path}: the journal must be on a local disk, got {kind}; name a local file with --journal")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(locked(lock))
        except OSError as error:
            raise OutputError(f"{path}: the journal must be writable, but {error}; mend the folder") from error
        if not alone:
            raise BusyError(f"{path}: another batch runs with this journal; let it end, or stop it")
        try:
            connection = _connect(path)
        except sqlite3.OperationalError as error:
            raise OutputError(f"{path}: the journal must open, but {error}; mend the folder or disk") from error
        stack.callback(connection.close)
        yield Journal(connection, path)


def read_states(path: Path, jobs: Sequence[Pairing], recipe: str) -> dict[Path, tuple[str, str]]:
    """State and cause of each job that has a row in a journal, by its source; the journal is not changed, nor created.

    Args:
        path: The journal; without one, or if it cannot be read, there are no states.
        jobs: The jobs.
        recipe: Hash of settings, weights and version.
    """
    query = "SELECT source, size, mtime_ns, target, state, cause FROM jobs WHERE recipe = ?"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes.decode
            found = {tuple(values[:4]): (values[4], values[5]) for values in connection.execute(query, (recipe,))}
    except (sqlite3.Error, UnicodeDecodeError):
        return {}
    return {job.source: found[_columns(job)] for job in jobs if _columns(job) in found}


class Journal:
    """An open journal. Every change is on the disk when a method returns."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def register(self, jobs: Sequence[Pairing], recipe: str) -> list[Row]:
        """Return the rows of some jobs, in their order; a job without one gets a new one.

        Leased rows become new again: whoever leased them has lost the lock on the journal.
        """
        columns = "source, size, mtime_ns, target"
        with self._writing():
            self._connection.execute("UPDATE jobs SET state = 'new' WHERE state = 'leased'")
            self._connection.executemany(
                f"INSERT OR IGNORE INTO jobs ({columns}, recipe) VALUES (?, ?, ?, ?, ?)",
                ((*_columns(job), recipe) for job in jobs),
            )
        found = {
            tuple(values[1:5]): values
            for values in self._connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE recipe = ?", (recipe,))
        }
        return [_row(job, found[_columns(job)]) for job in jobs]

    def save(self, row: Row) -> Row:
        """Store a row, and return it."""
        with self._writing():
            self._connection.execute(
                "UPDATE jobs SET state = ?, attempts = ?, failures = ?, exit_code = ?, cause = ?, frames = ?, "
                "output_size = ?, seconds = ?, picture = ?, warnings = ? WHERE id = ?",
                (
                    row.state,
                    row.attempts,
                    row.failures,
                    row.exit_code,
                    row.cause.encode(errors="replace").decode(),
                    row.frames,
                    row.output_size,
                    row.seconds,
                    row.picture,
                    json.dumps(row.warnings),
                    row.id,
                ),
            )
        return row

    def lease(self, row: Row) -> Row:
        """Begin an attempt, whose number is higher than that of any other at this output."""
        with self._writing():
            self._connection.execute(
                "UPDATE jobs SET state = 'leased', attempts = 1 + "
                "(SELECT max(attempts) FROM jobs WHERE target = ?) WHERE id = ?",
                (os.fsencode(row.job.target), row.id),
            )
        [attempts] = self._connection.execute("SELECT attempts FROM jobs WHERE id = ?", (row.id,)).fetchone()
        return replace(row, state="leased", attempts=attempts)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Run one transaction.

        Raises:
            OutputError: It cannot be stored; the journal is as it was before.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise OutputError(
                f"{self._path}: the journal must be writable, but {error}; make room, then run it again"
            ) from error


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, or will be; "" if it is unknown."""
    place = Path(os.path.realpath(folder))
    kinds = {
        Path(disk.mountpoint): disk for disk in psutil.disk_partitions(all=True)
    }  # the last mount of a place shows
    found = next((kinds[parent] for parent in (place, *place.parents) if parent in kinds), None)
    if found is None:
        return ""
    return "cifs" if "remote" in found.opts.split(",") else found.fstype


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database, or a new one if it is corrupt, which is renamed."""
    if path.exists() and not _is_sound(path):
        _set_aside(path)
    connection = _opened(path)
    try:
        _bring_up_to_date(connection)
        for values in connection.execute(f"SELECT {COLUMNS} FROM jobs"):
            _check_values(values)
    except (sqlite3.DatabaseError, ValueError, TypeError, RecursionError) as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise  # a fault of the disk; SQLITE_ERROR means that the table is another
        _set_aside(path)
        connection = _opened(path)
        _bring_up_to_date(connection)
    return connection


def _opened(path: Path) -> sqlite3.Connection:
    """Open a database so that it survives a loss of power."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = (
        bytes.decode
    )  # raises UnicodeDecodeError, a ValueError, where sqlite3's own raises various
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Create the table, or migrate an older one, in one transaction."""
    version = _version(connection)
    if version == VERSION:
        return
    changes = [MIGRATIONS[step] for step in range(version, VERSION)] if version else [TABLE]
    for statement in ("BEGIN IMMEDIATE", *changes, f"PRAGMA user_version = {VERSION}", "COMMIT"):
        connection.execute(statement)


def _check_is_none(path: Path) -> None:
    """Refuse to take a file for a journal that is none, and was never opened as one: a corrupt journal is renamed.

    Raises:
        ConfigError: It is something else.
    """
    if not path.exists():
        return
    ours = path.is_file() and path.stat().st_size == 0
    with suppress(sqlite3.Error):
        if path.is_file():
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as opened:
                named = {name for _, name, *_ in opened.execute("PRAGMA table_info(jobs)")}
            ours = ours or named >= {"source", "target", "recipe", "state"}
    if not ours:
        raise ConfigError(
            f"{path}: a journal of vsfmanet is needed, got something else; name a new file with --journal"
        )


def _is_sound(path: Path) -> bool:
    """Whether a file is an intact database with a version.

    Raises:
        ConfigError: It is of a newer version.
    """
    try:
        connection = sqlite3.connect(path)
        connection.text_factory = bytes  # the check's report too quotes what it finds
        try:
            version = _version(connection)
            sound = version > 0 and connection.execute("PRAGMA integrity_check(1)").fetchone() == (b"ok",)
        finally:
            connection.close()
    except sqlite3.OperationalError:
        raise  # a fault of the disk
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter for a message that quotes what is not text
        return False
    if version > VERSION:
        raise ConfigError(
            f"{path}: a journal of version {VERSION} is needed, got {version}; update vsfmanet, or name another file "
            "with --journal"
        )
    return sound


def _version(connection: sqlite3.Connection) -> int:
    """Version of the table; 0 without one."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _set_aside(path: Path) -> None:
    """Rename a journal and the files of its write-ahead log."""
    for number in count(1):
        bad = path.with_name(f"{path.name}.bad{'' if number == 1 else number}")
        with suppress(FileExistsError):
            move_new(path, bad)
            break
    for ending in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(bad.with_name(bad.name + ending))


def _columns(job: Pairing) -> tuple[bytes, int, int, bytes]:
    """Values of a job in the columns source, size, mtime_ns and target."""
    return os.fsencode(job.source), job.size, job.mtime_ns, os.fsencode(job.target)


def _row(job: Pairing, values: Sequence[Any]) -> Row:
    """Build a row from the values of `COLUMNS`."""
    number, *_, state, attempts, failures, exit_code, cause, frames, output_size, seconds, picture, warnings = values
    return Row(
        id=number,
        job=job,
        state=state,
        attempts=attempts,
        failures=failures,
        exit_code=exit_code,
        cause=cause,
        frames=frames,
        output_size=output_size,
        seconds=seconds,
        picture=picture,
        warnings=tuple(json.loads(warnings)),
    )


def _check_values(values: Sequence[Any]) -> None:
    """Check that values of `COLUMNS` are ones that this program could have written.

    Raises:
        ValueError, TypeError, RecursionError: It is not.
    """
    number, source, size, mtime_ns, target, recipe, state, attempts, failures, exit_code, *rest = values
    cause, frames, output_size, seconds, picture, warnings = rest
    kinds: tuple[tuple[type, tuple[object, ...]], ...] = (
        (int, (number, size, mtime_ns, attempts, failures, frames, output_size)),
        (bytes, (source, target, picture)),
        (str, (recipe, cause)),
        (float, (seconds,)),
        (int, () if exit_code is None else (exit_code,)),
        (str, tuple(json.loads(warnings))),
    )
    if state not in STATES or not all(isinstance(value, kind) for kind, each in kinds for value in each):
        raise ValueError("not a row of a journal")
