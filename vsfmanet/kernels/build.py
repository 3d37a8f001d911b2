"""Load the CPU kernels: compiled ones of the package, or else compiled on first use, once per compiler and processor.

Where both fail, torch does the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vsfmanet.caches import cache_folder, private_folder, read_private, write_private
from vsfmanet.errors import ConfigError
from vsfmanet.kernels.flags import FLAGS, LEVELS, NATIVE

_FOLDER = Path(__file__).parent
_SOURCES = sorted(_FOLDER.glob("*.cpp"))
_HEADERS = sorted(_FOLDER.glob("*.h"))
_PREBUILT = _FOLDER / "prebuilt"
_FLAGS = (*FLAGS, *NATIVE)
_TIMEOUT = 120  # seconds; compiling takes about 9

_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the C++ kernels for this processor; None, with a line in the log, where there are none.

    Where the cache folder cannot be trusted or created, they are compiled in a temporary folder at every start, and a
    warning is logged.
    """
    if (ready := prebuilt()) is not None:
        try:
            return ctypes.CDLL(str(ready))
        except OSError as error:
            _log.info("kernels of the package cannot be loaded: %s", error)
    try:
        try:
            folder = private_folder(cache_folder("kernels"))
        except (OSError, ConfigError) as error:
            _log.warning("kernels are compiled anew at every start: %s", error)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as once:
                return ctypes.CDLL(str(_build(_SOURCES, Path(once), headers=_HEADERS)))
        return ctypes.CDLL(str(_build(_SOURCES, folder, headers=_HEADERS)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no kernels, torch computes in their place: %s", error)
        return None


def prebuilt() -> Path | None:
    """Return the kernels in the package that this processor runs best; None if the package has none for it."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    capability = torch.backends.cpu.get_cpu_capability()
    runs = {
        "x86-64-v4-bf16": capability == "AVX512" and torch.cpu._is_avx512_bf16_supported(),
        "x86-64-v4": capability == "AVX512",
        "x86-64-v3": capability in ("AVX2", "AVX512"),
    }
    paths = [_PREBUILT / f"{level}.so" for level in LEVELS if runs[level]]
    return next((path for path in paths if path.is_file()), None)


def _build(sources: Sequence[Path], folder: Path, *, headers: Sequence[Path] = ()) -> Path:
    """Return the path of the library of `sources`; compile it unless `folder` holds one that can be trusted.

    The file's name has two parts. The first is a hash of the sources, the flags and the compiler's description of
    itself and of this processor, so that another machine that shares the folder never loads instructions that it lacks.
    The second is a hash of the library itself: a truncated or changed file is compiled again, and one that belongs to
    another user or that others may write to is never loaded.

    Args:
        sources: C++ files.
        folder: Existing folder that only this user can write to.
        headers: Files that the sources include.

    Raises:
        OSError: There is no compiler, or the folder cannot be written to.
        subprocess.SubprocessError: The compiler failed or hung.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise OSError("no C++ compiler found (CXX, c++)")
    target = _run(compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull)  # its version, and what "native" means here
    texts = [path.read_bytes() for path in (*sources, *headers)]
    key = _digest(b"\0".join([*texts, *map(str.encode, _FLAGS), target]))
    for path in sorted(folder.glob(f"cpu_{key}_*.so")):
        content = read_private(path)
        if content is not None and path.name == f"cpu_{key}_{_digest(content)}.so":
            return path
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        made = Path(beside) / "cpu.so"
        _run(compiler, *_FLAGS, *map(str, sources), "-o", str(made))
        content = made.read_bytes()
    path = folder / f"cpu_{key}_{_digest(content)}.so"
    write_private(path, content)
    _log.info("kernels compiled to %s with %s", path, compiler)
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(*command: str) -> bytes:
    """Run the compiler and return its output.

    Raises:
        subprocess.SubprocessError: It failed, or ran longer than `_TIMEOUT`.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise subprocess.SubprocessError(f"{command[0]} failed: {done.stdout.decode(errors='replace').strip()[-500:]}")
    return done.stdout
