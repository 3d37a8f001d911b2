"""Files that are written whole or not at all, under temporary names that nobody else has or can predict.

A temporary file is called `.<name>.<identity>.<token>.tmp` and lies beside the file that it becomes. It is created
exclusively, never opened through a link, and locked while its writer lives, so the next writer of the same file can
delete what a killed one has left, and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

MAX_NAME = 255
"""Bytes of a file name that file systems take."""

TEMPORARY = re.compile(r"^\..*\.([0-9a-f]{8})\.[0-9a-f]{16}\.tmp$", re.DOTALL)
"""Name of a temporary file; the first group is the identity of the file that it becomes."""

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Flag with which a symbolic link is not opened; Windows has none."""

BINARY = getattr(os, "O_BINARY", 0)
"""Flag without which Windows changes line endings."""


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, keep: bool = False) -> Iterator[BinaryIO]:
    """Write a file so that it has all of its new content or does not change, also if power fails.

    Args:
        path: File to create or replace. A symbolic link of this name is replaced, not followed.
        mode: Permissions of the new file, before the umask.
        keep: Leave an existing file as it is.

    Yields:
        A new file beside `path`. It takes the name when the block ends without an error, and is deleted otherwise.

    Raises:
        OSError: The file cannot be written.
    """
    sweep_temporary(path)
    beside, handle = _temporary(path, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                _name(beside, path, keep=keep)  # while it is locked, or another writer could delete it
        if sys.platform == "win32":
            _name(beside, path, keep=keep)  # an open file cannot be renamed there
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def _temporary(path: Path, mode: int) -> tuple[Path, int]:
    """Create a temporary file of `path`, and return its name and an open handle that is locked."""
    while True:
        ending = f".{identity(path)}.{secrets.token_hex(8)}.tmp"
        beside = path.with_name(shortened(f".{path.name}", ending))
        handle = create_new(beside, mode)
        if try_lock(handle) and beside.exists():
            return beside, handle
        os.close(handle)  # another writer deleted it before it was locked


def _name(beside: Path, path: Path, *, keep: bool) -> None:
    """Give a temporary file its name; with `keep`, only if no other file has it."""
    if keep:
        with suppress(FileExistsError):
            path.hardlink_to(beside)
    else:
        beside.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by a text, in UTF-8: see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode(errors="replace"))


def write_new(path: Path, content: str | bytes) -> None:
    """Write bytes, or a text in UTF-8, to a new file, and have it on the disk.

    Raises:
        FileExistsError: The name is taken, also by a link.
        OSError: The file cannot be written.
    """
    with os.fdopen(create_new(path), "wb") as file:
        file.write(content.encode(errors="replace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def read_regular(path: Path, *, limit: int = 64 << 20) -> bytes:
    """Read a file that anybody may have put there: neither a pipe, which would wait for ever, nor a device without end.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `limit` bytes.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | BINARY), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise OSError(errno.EINVAL, f"no regular file of at most {limit} bytes", os.fspath(path))
        return file.read(limit)


def create_new(path: Path, mode: int = 0o666) -> int:
    """Create a file, with these permissions before the umask, and return an open handle.

    Raises:
        FileExistsError: The name is taken, also by a link.
        OSError: The file cannot be created.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY, mode)


def sweep_temporary(path: Path) -> None:
    """Delete the temporary files that killed writers of `path` have left."""
    for name in os.listdir(path.parent):
        match = TEMPORARY.match(name)
        if match and match[1] == identity(path):
            with suppress(OSError):  # someone else's; it does no harm
                delete_unheld(path.with_name(name))


def delete_unheld(path: Path) -> bool:
    """Delete a file unless a living process has it locked; returns whether it is gone.

    Raises:
        OSError: It cannot be opened or deleted.
    """
    if sys.platform == "win32":
        try:
            path.unlink(missing_ok=True)  # an open file cannot be deleted there
        except PermissionError:
            return False
        return True
    try:
        handle = os.open(path, os.O_RDONLY | NO_FOLLOW)
    except FileNotFoundError:
        return True
    try:
        unheld = try_lock(handle)
        if unheld:
            path.unlink(missing_ok=True)
        return unheld
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
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


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def identity(path: Path) -> str:
    """Eight digits that the names of all temporary files of `path` have in common, however short they are cut."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]


def shortened(stem: str, ending: str) -> str:
    """`stem` and `ending`, with as much of the stem as a file name takes."""
    room = MAX_NAME - len(os.fsencode(ending))
    data = os.fsencode(stem)
    return (stem if len(data) <= room else data[:room].decode(errors="ignore")) + ending
