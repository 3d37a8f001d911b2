"""Names beside an output, and moves that never replace: what keeps a partial file from ever having a final name.

A part file is called `.<name>.<identity>.<attempt>-<token>.part.<suffix>`; the identity is a hash of the output's
name. Whoever makes one holds a lock on it while it lives, so a part file that nobody holds belongs to a dead attempt.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

if sys.platform != "win32":
    import fcntl

MAX_NAME = 255
"""Bytes of a file name that file systems take."""

RECORD_SUFFIX = ".vsfmanet.json"

PENDING_SUFFIX = ".json"
"""Of a record that waits beside a part file until the output has its name."""

HALF_SUFFIX = ".tmp"
"""Of a file that is being written."""

WORK = re.compile(r"^\..*\.([0-9a-f]{8})\.[0-9a-f]{16}\.work$", re.DOTALL)
"""Name of a folder of finished ranges; the first group is the identity of the output."""

PART = re.compile(r"^\..*\.([0-9a-f]{8})\.\d+-[0-9a-f]{4}\.part\.\w+$", re.DOTALL)


def record_path(target: Path) -> Path:
    """Where the record of an output is; a name that would be too long is shortened, and told apart by a hash."""
    name = f"{target.name}{RECORD_SUFFIX}"
    if len(os.fsencode(name)) > MAX_NAME:
        name = _shortened(target.name, f".{_identity(target)}{RECORD_SUFFIX}")
    return target.with_name(name)


def part_path(target: Path, attempt: int) -> Path:
    """A name for a new part file of `target`. The token keeps two attempts of one number apart."""
    ending = f".{_identity(target)}.{attempt}-{secrets.token_hex(2)}.part"
    # Room for the longer suffix of the pending record, which has the same stem.
    stem = _shortened(f".{target.stem}", f"{ending}{PENDING_SUFFIX}").removesuffix(PENDING_SUFFIX)
    return target.with_name(f"{stem}{target.suffix}")


def pending_path(part: Path) -> Path:
    """Where the record of a part file waits."""
    return part.with_suffix(PENDING_SUFFIX)


def pending_records(target: Path) -> list[Path]:
    """Records that wait beside the part files of `target`."""
    return [path for path in _parts(target) if path.suffix == PENDING_SUFFIX]


def work_path(target: Path, key: str) -> Path:
    """A folder for finished ranges of `target`.

    Args:
        target: The output.
        key: 16 hexadecimal digits that tell ranges apart that must not be mixed.
    """
    return target.with_name(_shortened(f".{target.stem}", f".{_identity(target)}.{key}.work"))


def remove_work(target: Path) -> None:
    """Delete all finished ranges of `target`, which is done."""
    for path in _named(target, WORK):
        shutil.rmtree(path, ignore_errors=True)


def sweep(target: Path) -> list[Path]:
    """Delete what dead attempts at `target` left behind.

    A record that waits stays while the output has none: it may be of an attempt that was killed, or failed, after it
    had given the output its name.

    Returns:
        The part files of attempts that live.
    """
    parts = _parts(target)
    orphan = os.path.lexists(target) and not os.path.lexists(record_path(target))
    companions = [path for path in parts if path.suffix in (PENDING_SUFFIX, HALF_SUFFIX)]
    living = [path for path in parts if path not in companions and not _delete_unheld(path)]
    for path in companions:
        if not any(path.stem == part.stem for part in living) and not (orphan and path.suffix == PENDING_SUFFIX):
            path.unlink(missing_ok=True)
    return living


def hold(path: Path) -> int:
    """Make a file and hold it until the handle is closed or the process ends.

    Raises:
        OSError: It cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if sys.platform != "win32":  # there a lock would keep the encoder out, and an open file cannot be deleted anyway
        _lock(handle)
    return handle


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file; gives whether nobody else does. The file stays: to delete it would race with others."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def move_new(path: Path, target: Path) -> None:
    """Rename without replacing: a second name, then one less; where files have one name only, as the system can.

    Raises:
        FileExistsError: The name is taken.
        OSError: The file cannot be moved.
    """
    try:
        os.link(path, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError:  # FAT, some network shares
        _rename_new(path, target)
    else:
        path.unlink()


def _rename_new(path: Path, target: Path) -> None:
    """`move_new` without a second name: the system's own call, or else a claim that is replaced."""
    if sys.platform == "win32":
        os.rename(path, target)  # which never replaces there
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
    target.touch(exist_ok=False)
    try:
        path.replace(target)
    except OSError:
        target.unlink()  # the claim: nothing that is not whole may have this name
        raise


def move_aside(path: Path, target: Path, tag: str) -> Path:
    """Rename `path` to the first free one of `<target>.<tag>1`, `<target>.<tag>2` ... (before the suffix)."""
    for number in count(1):
        free = target.with_name(_shortened(target.stem, f".{tag}{number}{target.suffix}"))
        with suppress(FileExistsError):
            move_new(path, free)
            return free
    raise AssertionError  # count() has no end


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it has all of `text` or does not change, also if power fails."""
    beside = path.with_suffix(HALF_SUFFIX)
    try:
        beside.write_text(text, encoding="utf-8", errors="replace")
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def _parts(target: Path) -> list[Path]:
    """All part files and pending records of `target`."""
    return _named(target, PART)


def _named(target: Path, pattern: re.Pattern[str]) -> list[Path]:
    """What lies beside `target` and belongs to it, by its name."""
    identity = _identity(target)
    with suppress(OSError), os.scandir(target.parent) as entries:
        found = [(entry.name, pattern.match(entry.name)) for entry in entries]
        return [target.with_name(name) for name, match in found if match and match[1] == identity]
    return []


def _identity(target: Path) -> str:
    """What the names of all part files of `target` have in common, however much of its own name they hold."""
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]


def _shortened(stem: str, ending: str) -> str:
    """`stem` and `ending`, with as much of the stem as a file name takes."""
    room = MAX_NAME - len(os.fsencode(ending))
    data = os.fsencode(stem)
    return (stem if len(data) <= room else data[:room].decode(errors="ignore")) + ending


def _lock(handle: int) -> bool:
    """Lock an open file; False if another process has. True where there are no locks: then names have to do."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _delete_unheld(path: Path) -> bool:
    """Delete a part file unless a living process holds it; whether it is gone."""
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)  # an open file cannot be deleted there
        except PermissionError:
            return False
        return True
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        unheld = _lock(handle)
        if unheld:
            path.unlink(missing_ok=True)
        return unheld
    finally:
        os.close(handle)
