"""Where built code is kept between runs: compiled kernels and engines, in folders that only this user can write to."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from vsfmanet.atomic import replacing
from vsfmanet.errors import ConfigError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(kind: str) -> Path:
    """Return the path of `vsfmanet/<kind>` in the user's cache folder; it need not exist yet.

    Raises:
        ConfigError: The user has no home folder.
    """
    try:
        folder = platformdirs.user_cache_path("vsfmanet", appauthor=False) / kind
    except RuntimeError as error:
        raise ConfigError(f"the cache needs a home folder, got none ({error}); set XDG_CACHE_HOME") from error
    if not folder.is_absolute():  # older releases of platformdirs return "~/.cache"
        raise ConfigError(f"the cache needs a home folder, got {folder}; set XDG_CACHE_HOME")
    return folder


def private_folder(folder: Path) -> Path:
    """Create a folder for this user alone, or check an existing one, and return it.

    Raises:
        ConfigError: The folder belongs to another user, or others may write into it.
        OSError: It cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if not _is_private(found):
        raise ConfigError(
            f"the cache needs a folder that you alone may write to, got {folder} (owner {found.st_uid}, "
            f"mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it, or set XDG_CACHE_HOME"
        )
    return folder


def read_private(path: Path) -> bytes | None:
    """Return the content of a cached file; None unless it is a file of this user that no other may write to."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            return file.read() if stat.S_ISREG(found.st_mode) and _is_private(found) else None
    except OSError:
        return None


def write_private(path: Path, content: bytes, *, keep: bool = False) -> None:
    """Write a file that this user alone may read, whole or not at all: see `atomic.replacing`."""
    with replacing(path, mode=0o600, keep=keep) as file:
        file.write(content)


def _is_private(found: os.stat_result) -> bool:
    """Return whether a file or folder belongs to this user alone and no other may write to it; True without modes."""
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & _WRITABLE_BY_OTHERS)
