"""What a job makes before it has a result: a part file, small files, an encoder. They become the result, or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from vsfmanet.errors import IncompleteError, OutputError

MAX_NAME = 255
"""Bytes of a file name that file systems take."""


class TargetTakenError(OutputError):
    """Another run made the output file in the meantime."""

    exit_code = 7


class Scratch:
    """What a job has made that must not outlive it.

    `discard` may be called from any thread, at any time, more than once: also by a signal in the middle of a job.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._part: Path | None = None
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def make_folder(self) -> Path:
        """A new folder for small files, on the temporary disk."""
        with self._lock:
            self._check_open()
            self._folder = Path(tempfile.mkdtemp(prefix="vsfmanet-"))
            return self._folder

    def make_part(self, target: Path) -> Path:
        """A new, empty, hidden file beside `target`: shows before the work that the place can be written.

        Raises:
            OutputError: It cannot.
        """
        identity = f".{secrets.token_hex(4)}.part{target.suffix}"
        stem = os.fsencode(target.stem)[: MAX_NAME - 1 - len(os.fsencode(identity))].decode(errors="ignore")
        part = target.with_name(f".{stem}{identity}")
        with self._lock:
            self._check_open()
            try:
                part.touch(exist_ok=False)
            except OSError as error:
                raise OutputError(
                    f"restore: {target}: the output folder must take new files, but {part.name} cannot be made there "
                    f"({error.strerror}); make the folder, or choose another"
                ) from error
            self._part = part
            return part

    def launch(self, line: list[str]) -> subprocess.Popen[bytes]:
        """Start an encoder, in a group of its own: Ctrl-C must not reach it, or it would end as if all were well.

        Raises:
            OutputError: It cannot be started.
        """
        with self._lock:
            self._check_open()
            try:
                self._process = subprocess.Popen(
                    line,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise OutputError(f"restore: {line[0]} must start, but does not ({error}); install ffmpeg") from error
            return self._process

    def publish(self, part: Path, target: Path, *, overwrite: bool) -> None:
        """Give the part file its final name, with all of it on the disk.

        Args:
            part: From `make_part`.
            target: Final name, in the same folder.
            overwrite: Whether another file of this name is replaced.

        Raises:
            TargetTakenError: There is another file of this name; the result stays under its part name.
        """
        _sync(part)
        try:
            if overwrite:
                part.replace(target)
            else:
                _move(part, target)
        except FileExistsError as error:
            self._part = None
            raise TargetTakenError(
                f"restore: {target}: another file took this name during the job; the verified result is {part.name}, "
                "rename it yourself"
            ) from error
        self._part = None
        if os.name == "posix":
            _sync(target.parent)

    def discard(self) -> None:
        """Kill the encoder, delete the files, and let nothing new be made."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                kill(self._process)
            if self._part is not None:
                self._part.unlink(missing_ok=True)
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self._closed:
            raise IncompleteError("restore: the job has been stopped")


def kill(process: subprocess.Popen[bytes]) -> int:
    """End a process that `Scratch.launch` has started, and what it has started, if it runs; returns its exit code."""
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            with suppress(ProcessLookupError):  # another thread may have been faster
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group: the user's ffmpeg may be a script
    return process.wait()


def _move(part: Path, target: Path) -> None:
    """Rename without replacing: a second name, then one less; where files have one name only, a claim first."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # FAT, some network shares
        target.touch(exist_ok=False)
        part.replace(target)
    else:
        part.unlink()


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
