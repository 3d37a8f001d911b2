"""A folder on a disk that loses power, or fails: what can be left of its files at any moment.

POSIX promises little: the content of a file is on the disk after `fsync` of the file, its name after `fsync` of the
folder. Until then any part of what was done may be lost, in any order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

type Change = Callable[[dict[str, int]], None]
"""Changes the names of a folder: which inode each has."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is on the disk, and what is not yet."""

    names: dict[str, int]
    """Names on the disk."""
    changes: tuple[Change, ...]
    """Changes of names since."""
    synced: dict[int, bytes]
    """Contents on the disk."""
    written: dict[int, bytes]
    """Contents as programs see them."""

    def remains(self) -> Iterator[dict[str, bytes]]:
        """Everything that a loss of power at this moment can leave."""
        seen = []
        for changes in _subsets(self.changes):
            names = dict(self.names)
            for change in changes:
                change(names)
            for keep in (lambda _: b"", lambda data: data, lambda data: data[: len(data) // 2]):
                left = {name: self._content(number, keep) for name, number in names.items()}
                if left not in seen:
                    seen.append(left)
                    yield left

    def _content(self, number: int, keep: Callable[[bytes], bytes]) -> bytes:
        written, synced = self.written[number], self.synced.get(number)
        return written if synced == written else (synced or keep(written))


def _subsets(changes: tuple[Change, ...]) -> Iterator[tuple[Change, ...]]:
    """All beginnings of some changes, each of them alone, and all without each of them."""
    for number in range(len(changes) + 1):
        yield changes[:number]
    for number, change in enumerate(changes):
        yield (change,)
        yield changes[:number] + changes[number + 1 :]


class Disk:
    """Watches the calls that change a folder, and may let one of them fail.

    Args:
        folder: All of its files are on the disk at the beginning.
        fail: Number of the call that fails, from 0, and its error number.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, fail: tuple[int, int] | None = None) -> None:
        self._folder = os.path.realpath(folder)
        self._fail = fail
        self._handles: dict[int, int] = {}  # they keep the inodes from being used again
        self._open, self._fsync = os.open, os.fsync
        self.calls: list[str] = []
        self.moments: list[Moment] = []
        self._changes: list[Change] = []
        self._names = {name: self._number(name) for name in os.listdir(folder)}
        self._synced = {number: self._read(number) for number in self._names.values()}
        self._note("begin")
        for name in ("link", "replace", "rename", "unlink"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        monkeypatch.setattr(os, "open", self._watched_open)
        monkeypatch.setattr(os, "fsync", self._watched_fsync)

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            os.close(handle)

    def _watched(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*paths: Any, **more: Any) -> Any:
            names = [self._name(path) for path in paths]
            if None in names:
                return call(*paths, **more)
            self._count(f"{kind} {names}")
            number = self._number(names[0]) if os.path.lexists(paths[0]) else -1
            result = call(*paths, **more)
            self._changes.append(_change(kind, [str(name) for name in names], number))
            self._note(kind)
            return result

        return watched

    def _watched_open(self, path: Any, flags: int, *more: Any, **others: Any) -> int:
        name = self._name(path)
        if name is None or not flags & os.O_CREAT or os.path.lexists(path):
            return self._open(path, flags, *more, **others)
        self._count(f"create {name}")
        handle = self._open(path, flags, *more, **others)
        self._changes.append(_change("create", [name], self._number(name)))
        self._note("create")
        return handle

    def _watched_fsync(self, handle: int) -> None:
        self._count("fsync")
        self._fsync(handle)
        status = os.fstat(handle)
        if status.st_ino == os.stat(self._folder).st_ino:
            for change in self._changes:
                change(self._names)
            self._changes.clear()
        else:
            self._synced[status.st_ino] = self._read(status.st_ino)
        self._note("fsync")

    def _count(self, call: str) -> None:
        self.calls.append(call)
        if self._fail is not None and len(self.calls) - 1 == self._fail[0]:
            raise OSError(self._fail[1], os.strerror(self._fail[1]))

    def _name(self, path: Any) -> str | None:
        if isinstance(path, int) or os.path.realpath(os.path.dirname(path) or ".") != self._folder:
            return None
        return os.path.basename(os.fsdecode(path))

    def _number(self, name: str | None) -> int:
        handle = self._open(os.path.join(self._folder, str(name)), os.O_RDONLY)
        number = os.fstat(handle).st_ino
        if number in self._handles:
            os.close(handle)
        return self._handles.setdefault(number, handle) and number

    def _read(self, number: int) -> bytes:
        handle = self._handles[number]
        return os.pread(handle, os.fstat(handle).st_size, 0)

    def _note(self, kind: str) -> None:
        self.moments.append(
            Moment(
                names=dict(self._names),
                changes=tuple(self._changes),
                synced=dict(self._synced),
                written={number: self._read(number) for number in self._handles},
            )
        )


def _change(kind: str, names: list[str], number: int) -> Change:
    def change(there: dict[str, int]) -> None:
        if kind in ("replace", "rename", "unlink"):
            there.pop(names[0], None)
        if kind != "unlink":
            there[names[-1]] = number

    return change
