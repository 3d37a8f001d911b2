"""Built engines on disk. An engine is reused only if its file is complete, this user's own, and built for the same
weights, size, precision, runtime and device.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vsfmanet.caches import private_folder, read_private, write_private

_MAC_SIZE = 32
_KEY_SIZE = 32
_KEY_NAME = "key"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """Everything that an engine depends on; it decides the file's name and is stored in the file."""

    part: str
    """Part of the network: "stem", "level 0" ..., "bridge" or "finish"."""
    weights_sha256: str
    """Sha256 of the weights file, in hexadecimal."""
    height: int
    """Height of an input frame, pixels."""
    width: int
    """Width of an input frame, pixels."""
    precision: str
    """Data type of the features, such as "float16"."""
    runtime: str
    """Name and version of the library that builds and runs it."""
    device: str
    """What it is built for: name, architecture and driver of a device, or an architecture alone."""
    versions: str
    """Versions of vsfmanet and torch."""

    def digest(self) -> str:
        """Return the name of the engine's file, without its ending."""
        return hashlib.sha256(self.text()).hexdigest()[:32]

    def text(self) -> bytes:
        """Return the specification as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()


class EngineCache:
    """A folder of engines, each one file: a keyed hash, the specification, the engine.

    Engines are code. A file is therefore loaded only if its hash proves that this user's cache wrote all of it;
    truncated, changed, renamed and planted files are rebuilt. Two processes that build the same engine at once both
    get a complete one.

    Args:
        folder: Created if missing, for this user alone.

    Raises:
        ConfigError: The folder belongs to another user, or others may write into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._key = self._secret()

    def fetch[T](self, spec: EngineSpec, build: Callable[[], bytes], load: Callable[[bytes], T]) -> T:
        """Return the engine of a specification; build it unless the cache holds one that can be trusted.

        Args:
            spec: Everything that the engine depends on.
            build: Builds the engine.
            load: Makes an engine ready to run. If it fails with a cached engine, that engine is rebuilt once.
        """
        path = self._folder / f"{spec.digest()}.engine"
        data = self._read(path, spec)
        if data is not None:
            with suppress(RuntimeError, ValueError):
                return load(data)
        return load(self._store(path, spec, build()))

    def ensure(self, spec: EngineSpec, build: Callable[[], bytes]) -> bool:
        """Build the engine of a specification unless the cache holds one that can be trusted; return whether it did."""
        path = self._folder / f"{spec.digest()}.engine"
        if self._read(path, spec) is not None:
            return False
        self._store(path, spec, build())
        return True

    def _store(self, path: Path, spec: EngineSpec, data: bytes) -> bytes:
        body = spec.text() + b"\n" + data
        write_private(path, self._mac(body) + body)
        return data

    def _read(self, path: Path, spec: EngineSpec) -> bytes | None:
        """Return the engine in a file; None unless hash and specification are right."""
        content = read_private(path) or b""
        mac, body = content[:_MAC_SIZE], content[_MAC_SIZE:]
        text, _, data = body.partition(b"\n")
        if not hmac.compare_digest(mac, self._mac(body)) or text != spec.text():
            return None
        return data

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")

    def _secret(self) -> bytes:
        """Return this user's key; create it on first use, and replace one that is damaged or not this user's own.

        A new key makes all engines in the folder untrusted, so that they are rebuilt.

        Raises:
            OSError: The key can be neither read nor replaced.
        """
        path = self._folder / _KEY_NAME
        key = read_private(path)
        if key is not None and len(key) == _KEY_SIZE:
            return key
        write_private(path, secrets.token_bytes(_KEY_SIZE), keep=not path.exists())
        key = read_private(path)
        if key is None or len(key) != _KEY_SIZE:
            raise OSError(f"the key of the cache must be a file of {_KEY_SIZE} bytes, got {path}; remove it")
        return key
