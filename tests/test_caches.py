"""Built code is reused only if it is whole and this user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vsfmanet.caches import cache_folder, private_folder, read_private, write_private
from vsfmanet.errors import ConfigError

posix = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")


def test_the_cache_lies_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "vsfmanet" / "kernels"
    assert not cache_folder("kernels").exists()


@posix
def test_without_a_home_nothing_is_put_into_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="needs a home folder"):
        cache_folder("kernels")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append("name")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_private(tmp_path / "a", b"content")
    assert events == (["file", "name", "folder"] if os.path.isdir("/proc/self/fd") else events)
    assert events[:2] == ["file", "name"]
    assert (tmp_path / "a").read_bytes() == b"content"
    write_private(tmp_path / "a", b"other", keep=True)
    assert (tmp_path / "a").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@posix
def test_what_another_user_owns_or_may_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder(tmp_path / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    path = folder / "file"
    write_private(path, b"content")
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_private(path) == b"content"
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert read_private(path) is None
    path.chmod(0o600)
    assert read_private(folder) is None
    assert read_private(folder / "missing") is None
    for mode in (0o770, 0o707):
        folder.chmod(mode)
        with pytest.raises(ConfigError, match="a folder that you alone may write to"):
            private_folder(folder)
    folder.chmod(0o700)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    assert read_private(path) is None
    with pytest.raises(ConfigError, match="a folder that you alone may write to"):
        private_folder(folder)
