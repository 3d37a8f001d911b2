"""Built engines on disk: found again only if they are whole, ours, and made for exactly what is asked."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vsfmanet.errors import ConfigError

_MAC_SIZE = 32
_KEY_NAME = "key"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """Everything that an engine depends on. Engines of two specifications never mix."""

    part: str
    """Of the network: "stem", "level 0" ..., "bridge" or "finish"."""
    weights_sha256: str
    height: int
    """Of an input frame, pixels."""
    width: int
    """Of an input frame, pixels."""
    precision: str
    """Type of the features, such as "float16"."""
    runtime: str
    """What builds and runs it, with its version."""
    device: str
    """Name and compute capability, and the driver's version."""
    versions: str
    """Of vsfmanet, torch and CUDA."""

    def digest(self) -> str:
        """Name of the engine's file."""
        return hashlib.sha256(self.text()).hexdigest()[:32]

    def text(self) -> bytes:
        """The specification in one form only."""
        return json.dumps(asdict(self), sort_keys=True).encode()


class EngineCache:
    """A folder of engines, each one file: a keyed hash, the specification, the engine.

    Engines are code, so a file is handed out only if its hash shows that this user's cache has written it whole; cut,
    changed, renamed and planted ones are built anew. Files are written beside and renamed, so that two who build
    at once each get a whole one.

    Args:
        folder: Made if it is not there, for this user alone.

    Raises:
        ConfigError: The folder belongs to somebody else, or others may write into it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.name == "posix":
            found = folder.stat()
            if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(
                    f"restore: engines need a folder that you alone may write to, got {folder} (owner {found.st_uid}, "
                    f"mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it, or set XDG_CACHE_HOME"
                )
        self._folder = folder
        self._key = self._secret()

    def fetch[T](self, spec: EngineSpec, build: Callable[[], bytes], load: Callable[[bytes], T]) -> T:
        """The engine of a specification, built if there is none that can be trusted.

        Args:
            spec: What it must have been made for.
            build: Makes it.
            load: Makes it ready to run; if that fails with one from the cache, it is built anew, once.
        """
        path = self._folder / f"{spec.digest()}.engine"
        data = self._read(path, spec)
        if data is not None:
            with suppress(RuntimeError, ValueError):
                return load(data)
        data = build()
        self._write(path, spec.text() + b"\n" + data)
        return load(data)

    def _read(self, path: Path, spec: EngineSpec) -> bytes | None:
        """The engine in a file, None unless file and specification are right."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        mac, body = content[:_MAC_SIZE], content[_MAC_SIZE:]
        text, _, data = body.partition(b"\n")
        if not hmac.compare_digest(mac, self._mac(body)) or text != spec.text():
            return None
        return data

    def _write(self, path: Path, body: bytes) -> None:
        self._put(path, self._mac(body) + body)

    def _put(self, path: Path, content: bytes, *, replace: bool = True) -> None:
        """Write a file beside its place, then move it there; without `replace` the first one stays."""
        descriptor, name = tempfile.mkstemp(dir=self._folder)  # readable by this user alone
        beside = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            if replace:
                beside.replace(path)
            else:
                with suppress(FileExistsError):
                    path.hardlink_to(beside)
        finally:
            beside.unlink(missing_ok=True)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")

    def _secret(self) -> bytes:
        """This user's key, made on first use."""
        path = self._folder / _KEY_NAME
        if not path.exists():
            self._put(path, secrets.token_bytes(_MAC_SIZE), replace=False)
        return path.read_bytes()
