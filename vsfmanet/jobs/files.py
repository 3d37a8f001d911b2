"""Names beside an output, renames that never replace a file, and the sweeping of what killed jobs left.

A part file is called `.<name>.<identity>.<attempt>-<token>.part.<suffix>`; the identity is a hash of the output's
name. Its job keeps it locked, so a part file that is not locked belongs to a job that has ended.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from vsfmanet.atomic import (
    MAX_NAME,
    NO_FOLLOW,
    create_new,
    delete_unheld,
    identity,
    shortened,
    sweep_temporary,
    sync,
    try_lock,
)
from vsfmanet.errors import OutputError
from vsfmanet.settings import SIDECAR_SUFFIXES

_log = logging.getLogger(__name__)

RECORD_SUFFIX = ".vsfmanet.json"

PENDING_SUFFIX = ".json"
"""Suffix of a record that waits beside a part file until the output has its name."""

ASIDE = re.compile(r"^\.(old\d+)$")
"""Suffix of an empty file that a job puts beside its part file before it renames an older output, until both the older
and the new one have their names and records."""

WORK = re.compile(r"^\..*\.([0-9a-f]{8})\.[0-9a-f]{16}\.work$", re.DOTALL)
"""Name of a folder of finished ranges; the first group is the identity of the output. Of the 16 digits after it four
stand for the path of the source, four for its content, and eight for the job."""

PART = re.compile(r"^\..*\.([0-9a-f]{8})\.\d+-[0-9a-f]{4,16}\.part\.\w+$", re.DOTALL)
"""Name of a part file, of the record that waits beside it, or of an `ASIDE`; the first group is the identity of the
output."""

PICTURES_FOLDER = "pictures"
"""Folder of finished pictures in a folder of finished ranges."""

WITHIN_WORK = re.compile(r"\d{9}-\d{9}\.\w+|colour\.json|samples\.txt|[0-9a-f]+\.unfinished\.\w+|\..*\.tmp")
"""Names of the files that a job puts into a folder of finished ranges. No others are ever deleted there."""

LONGEST_SUFFIX = ".old999999"
"""The longest suffix for which the name of a part file leaves room."""

PREFIX = "vsfmanet-"
"""Beginning of the names of temporary folders."""

HELD = "held"
"""File in a temporary folder that its owner has locked."""


def record_path(target: Path) -> Path:
    """Path of an output's record. A name that would be too long is shortened, with a hash of the whole one."""
    name = f"{target.name}{RECORD_SUFFIX}"
    if len(os.fsencode(name)) > MAX_NAME:
        name = shortened(target.name, f".{identity(target)}{RECORD_SUFFIX}")
    return target.with_name(name)


def exposure_sidecar(source: Path) -> Path | None:
    """The file beside a source that holds its exposures, as `film.exposure.csv` beside `film.mkv`; None without one."""
    paths = [source.with_suffix(f".exposure{suffix}") for suffix in SIDECAR_SUFFIXES]
    return next((path for path in paths if os.path.isfile(path)), None)  # Path's own fails for a name too long


def part_path(target: Path, attempt: int) -> Path:
    """A new, unpredictable name for a part file of `target`."""
    ending = f".{identity(target)}.{attempt}-{secrets.token_hex(8)}.part"
    # Room for the suffixes of the files beside it, which have the same stem.
    stem = shortened(f".{target.stem}", f"{ending}{LONGEST_SUFFIX}").removesuffix(LONGEST_SUFFIX)
    return target.with_name(f"{stem}{_part_suffix(target)}")


def _part_suffix(target: Path) -> str:
    """Suffix of part files of an output; folders need not have one."""
    return target.suffix if re.fullmatch(r"\.\w+", target.suffix) else ".lock"


def pending_path(part: Path) -> Path:
    """Path at which the record of a part file waits."""
    return part.with_suffix(PENDING_SUFFIX)


def pending_records(target: Path) -> list[Path]:
    """Records that wait for the output `target` to have its name."""
    return [path for path in _parts(target) if path.suffix == PENDING_SUFFIX]


def work_path(target: Path, source: str, key: str) -> Path:
    """Path of the folder for finished ranges of an output.

    Args:
        target: The output.
        source: 8 hexadecimal digits of the source, from `record.source_digits`.
        key: 8 hexadecimal digits; ranges with different keys must not be joined.
    """
    return target.with_name(shortened(f".{target.stem}", f".{identity(target)}.{source}{key}.work"))


def remove_work(target: Path, *, replaced: str | None = None) -> None:
    """Delete finished ranges of an output: all of them if it is done.

    Args:
        target: The output.
        replaced: Delete only those of other content of this source, from `record.source_digits`.
    """
    for folder in _named(target, WORK):
        if folder.is_symlink() or not folder.is_dir():
            continue
        digits = folder.name[-len("0123456789abcdef.work") :]
        if replaced is not None and (digits[:4] != replaced[:4] or digits[4:8] == replaced[4:]):
            continue
        for path in folder.iterdir():
            if path.name == PICTURES_FOLDER and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif WITHIN_WORK.fullmatch(path.name):
                remove(path)
        with suppress(OSError):  # it holds files that are not ours
            folder.rmdir()


def remove(path: Path) -> None:
    """Delete one of our files if it is there; warn if that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s is left over and cannot be deleted (%s); delete it yourself", path, error.strerror)


def sweep(target: Path) -> list[Path]:
    """Delete the part files, waiting records and temporary files of killed attempts at an output; see also `settle`.

    A waiting record stays while the output has none: its attempt may have been killed after the output had its name.

    Returns:
        The part files of running attempts.
    """
    settle(target)
    parts = [path for path in _parts(target) if not ASIDE.fullmatch(path.suffix)]
    orphan = os.path.lexists(target) and not os.path.lexists(record_path(target))
    pending = [path for path in parts if path.suffix == PENDING_SUFFIX]
    living = [path for path in parts if path not in pending and _is_living(path)]
    for path in pending:
        if not orphan and not any(path.stem == part.stem for part in living):
            remove(path)
    with suppress(OSError):  # the folder is missing, or may not be read
        sweep_temporary(record_path(target))
    return living


def settle(target: Path) -> None:
    """Give an output its name and record back, if an attempt was killed after it had renamed it and before the new one
    had the name.
    """
    for mark in _parts(target):
        if not ASIDE.fullmatch(mark.suffix) or _is_living(mark.with_suffix(_part_suffix(target))):
            continue
        kept = aside(target, mark.suffix)
        try:
            has_both = is_same(kept, target) and not target.is_symlink()
            if os.path.lexists(kept) and (has_both or not os.path.lexists(target)):
                put_back(kept, target)
            mark.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s is the older output and cannot be renamed (%s); rename it yourself", kept, error.strerror)


def aside(target: Path, tag: str) -> Path:
    """Path of an output that gives way to another one, as `film.old1.mkv` for the tag `.old1`."""
    return target.with_name(shortened(target.stem, f"{tag}{target.suffix}"))


def put_back(kept: Path, target: Path) -> None:
    """Give an output that was renamed, and its record, their names back.

    Raises:
        OSError: The name is taken by another file, or the file cannot be renamed.
    """
    if is_same(kept, target):
        kept.unlink()
    else:
        move_new(kept, target)
    if not os.path.lexists(record_path(target)):
        with suppress(FileNotFoundError):
            record_path(kept).replace(record_path(target))
    sync(target.parent)


def _is_living(part: Path) -> bool:
    """Whether a running process has a part file locked; if none has, delete the file."""
    try:
        return not delete_unheld(part)
    except OSError as error:
        _log.warning("%s is left over and cannot be deleted (%s); delete it yourself", part, error.strerror)
        return False


def hold(path: Path) -> int:
    """Create a file, and lock it until the returned handle is closed or the process ends.

    Raises:
        OSError: The file is there already, or cannot be created.
    """
    handle = create_new(path)
    if sys.platform != "win32":  # there a lock would keep the encoder out, and an open file cannot be deleted anyway
        try_lock(handle)
    return handle


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file, which is created if it is missing; yields False if another process has it locked.

    The file stays: deleting it would race with others.

    Raises:
        OSError: The file cannot be opened, or is a symbolic link.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    try:
        yield try_lock(handle)
    finally:
        os.close(handle)


class TemporaryFolder:
    """A new folder on the temporary disk, deleted when it is closed. Those of killed processes are deleted first.

    Raises:
        OutputError: It cannot be created.
    """

    def __init__(self) -> None:
        _sweep_folders()
        self._handle: int | None = None
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._handle = create_new(self.path / HELD)
        except OSError as error:
            raise OutputError(
                f"{tempfile.gettempdir()}: the folder for temporary files must be writable, but {error}; make room, or "
                "set TMPDIR"
            ) from error
        try_lock(self._handle)

    def close(self) -> None:
        """Delete the folder and its content; may be called again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep_folders() -> None:
    """Delete the temporary folders of this user in which no process has the file `HELD` locked any more."""
    with suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX) or not entry.is_dir(follow_symlinks=False):
                continue
            held = Path(entry.path, HELD)
            with suppress(OSError):
                if held.is_file() and _is_mine(entry) and delete_unheld(held):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_mine(entry: os.DirEntry[str]) -> bool:
    """Whether a folder belongs to this user."""
    return sys.platform == "win32" or entry.stat(follow_symlinks=False).st_uid == os.getuid()


def move_new(path: Path, target: Path) -> None:
    """Rename a file without replacing another: by a hard link, or where there are none, by the system's own call.

    The new name is on the disk when this returns.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file cannot be moved, or has its new name and cannot lose the old one.
    """
    try:
        os.link(path, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # FAT, some network shares
        _rename_new(path, target)
        sync(target.parent)
    else:
        sync(target.parent)  # a loss of power could otherwise take both names
        path.unlink()


def _rename_new(path: Path, target: Path) -> None:
    """`move_new` without hard links: by the system's own call, or else by replacing an empty file created first.

    Folders, which have no hard links, are renamed in the same way; without the call, a name that is taken refuses them.
    """
    if sys.platform == "win32":
        os.rename(path, target)  # never replaces on Windows
        return
    if sys.platform == "linux":
        here, never_replace = -100, 1
        library = ctypes.CDLL(None, use_errno=True)
        with suppress(AttributeError):  # an old C library
            if library.renameat2(here, os.fsencode(path), here, os.fsencode(target), never_replace) == 0:
                return
            number = ctypes.get_errno()
            if number not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(number, os.strerror(number), os.fspath(target))
    if path.is_dir():
        target.mkdir()  # a rename replaces an empty folder and no other
        path.replace(target)
        return
    target.touch(exist_ok=False)
    try:
        path.replace(target)
    except OSError:
        target.unlink()  # the empty file: nothing but a whole output may have this name
        raise


def move_aside(path: Path, target: Path, tag: str, *, part: Path | None = None) -> Path:
    """Rename `path` to the first free one of `<target>.<tag>1`, `<target>.<tag>2` ... (before the suffix).

    Args:
        path: The file.
        target: Whose name the new name resembles.
        tag: "old" or "new".
        part: The part file that is to take the name; an `ASIDE` is put beside it first.

    Raises:
        OSError: The file cannot be moved, and has its old name only.
    """
    for number in count(1):
        free = aside(target, f".{tag}{number}")
        if os.path.lexists(free):
            continue
        mark = None if part is None else part.with_suffix(f".{tag}{number}")
        if mark is not None:
            os.close(create_new(mark))
            sync(mark.parent)
        try:
            move_new(path, free)
        except FileExistsError:
            if mark is not None:
                remove(mark)
            continue
        except OSError:
            if is_same(path, free):
                remove(free)
            raise
        return free
    raise AssertionError  # count() has no end


def is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _parts(target: Path) -> list[Path]:
    """All part files and waiting records of an output."""
    return _named(target, PART)


def _named(target: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Files and folders beside an output whose names match a pattern and hold its identity."""
    own = identity(target)
    with suppress(OSError), os.scandir(target.parent) as entries:
        found = [(entry.name, pattern.match(entry.name)) for entry in entries]
        return [target.with_name(name) for name, match in found if match and match[1] == own]
    return []
