"""Compile the CPU kernels on first use, once per compiler and processor; where that fails, torch does the work."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent
_SOURCES = sorted(_FOLDER.glob("*.cpp"))
_HEADERS = sorted(_FOLDER.glob("*.h"))
# Threads are OpenMP's: the library finds torch's own libgomp loaded already and shares its pool.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_TIMEOUT = 120  # seconds; compiling takes about 9

_log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The C++ kernels for this processor; None, with a line in the log, where they cannot be built."""
    try:
        path = _build(_SOURCES, cache_folder("kernels"), headers=_HEADERS)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: the user has no home
        _log.info("kernels: not available, torch does their work: %s", error)
        return None


def cache_folder(kind: str) -> Path:
    """Where what has been built is kept: `vsfmanet/<kind>` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vsfmanet" / kind


def _build(sources: Sequence[Path], folder: Path, *, headers: Sequence[Path] = ()) -> Path:
    """Path of the library of `sources`, compiled unless `folder` has it.

    The name is a hash of what is compiled, the flags, and what the compiler says of itself and of this processor; so
    another machine that shares the folder never loads instructions that it lacks. Two builders at once write the same
    file.

    Raises:
        OSError: There is no compiler, or the folder cannot be written.
        subprocess.SubprocessError: The compiler failed or hung.
    """
    compiler = shutil.which(os.environ.get("CXX") or "c++")
    if compiler is None:
        raise OSError("no C++ compiler found (CXX, c++)")
    told = _run(compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull)  # version, and "native" spelt out
    texts = [path.read_bytes() for path in (*sources, *headers)]
    key = hashlib.sha256(b"\0".join([*texts, *map(str.encode, _FLAGS), told])).hexdigest()[:16]
    path = folder / f"cpu_{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        made = Path(beside) / path.name
        _run(compiler, *_FLAGS, *map(str, sources), "-o", str(made))
        made.replace(path)
    _log.info("kernels: compiled %s with %s", path, compiler)
    return path


def _run(*command: str) -> bytes:
    """Run the compiler; what it wrote to either stream."""
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
