"""Files and processes of a running job: part file, temporary folder, unfinished range, encoder. All go when it ends."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from vsfmanet.atomic import create_new, sync
from vsfmanet.errors import BusyError, IncompleteError, OutputError
from vsfmanet.jobs.files import (
    TemporaryFolder,
    hold,
    is_same,
    move_aside,
    move_new,
    part_path,
    pending_path,
    record_path,
    remove,
    settle,
    sweep,
)
from vsfmanet.jobs.record import Record, find_done, write_pending, write_record
from vsfmanet.media.ffmpeg import kill

_log = logging.getLogger(__name__)


class Scratch:
    """Owns the files and the process of a job that must not outlive it.

    `discard` may be called from any thread, at any time, more than once, as by a signal in the middle of a job.

    Args:
        attempt: Number of the attempt, for the names of its files.
    """

    def __init__(self, *, attempt: int = 1) -> None:
        self.attempt = attempt
        self.has_ranges = False
        """Whether there are finished ranges, which `discard` keeps."""
        self._lock = threading.Lock()
        self._part: Path | None = None
        self._target: Path | None = None
        self._held: int | None = None
        self._folder: TemporaryFolder | None = None
        self._unfinished: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def make_folder(self) -> Path:
        """Create a folder on the temporary disk."""
        with self._lock:
            self._check_open()
            self._folder = TemporaryFolder()
            return self._folder.path

    def make_part(self, target: Path) -> Path:
        """Create an empty, hidden file beside `target`, which proves before the work that the folder takes files.

        What earlier attempts left there is deleted first. An attempt that was only suspended then finds its part file
        gone, and cannot publish it.

        Raises:
            BusyError: Another run is making `target`.
            OutputError: The file cannot be created.
        """
        with self._lock:
            self._check_open()
            if living := sweep(target):
                raise BusyError(f"{target}: another run is making this file ({living[0].name}); let it end, or stop it")
            part = part_path(target, self.attempt)
            try:
                self._held = hold(part)
            except OSError as error:
                raise OutputError(
                    f"{target}: the output folder must take new files, but {part.name} cannot be created "
                    f"({error.strerror}); make the folder, or choose another"
                ) from error
            self._part, self._target = part, target
            return part

    def make_unfinished(self, folder: Path, suffix: str) -> Path:
        """Create an empty file for the next range, in the folder of the finished ones.

        Raises:
            OSError: It cannot be created.
        """
        with self._lock:
            self._check_open()
            unfinished = folder / f"{secrets.token_hex(8)}.unfinished{suffix}"
            os.close(create_new(unfinished))
            self._unfinished = unfinished
            return unfinished

    def finish(self, unfinished: Path, path: Path) -> None:
        """Flush a whole range to the disk, and give it its final name."""
        sync(unfinished)
        with self._lock:
            self._check_open()
            unfinished.replace(path)
            self._unfinished, self.has_ranges = None, True
        sync(path.parent)

    def launch(self, line: list[str]) -> subprocess.Popen[bytes]:
        """Start FFmpeg in a process group of its own: at Ctrl-C it would end the file as if it were complete.

        FFmpeg inherits a copy of this process's stderr. The supervisor reads that to its end, and so waits for an
        FFmpeg that outlives the job for a moment and may still write its file.

        Raises:
            OutputError: It cannot be started.
        """
        with self._lock:
            self._check_open()
            shared: list[int] = []
            group: dict[str, int] = {}
            if sys.platform == "win32":
                group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
            else:
                with suppress(OSError):  # there may be none
                    shared.append(os.dup(2))
            try:
                self._process = subprocess.Popen(
                    line,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=shared,
                    **group,  # type: ignore[call-overload]
                )
            except OSError as error:
                raise OutputError(f"{line[0]} must start, but does not ({error}); install ffmpeg") from error
            finally:
                for handle in shared:
                    os.close(handle)
            return self._process

    def publish(
        self, part: Path, target: Path, record: Record, *, overwrite: bool, pictures: Path | None = None
    ) -> None:
        """Flush the part file to the disk, give it its final name, and put its record beside it.

        Until then the record waits beside the part file, so that a run that is killed in between can be completed.

        Args:
            part: From `make_part`.
            target: Final name, in the same folder.
            record: Of the part file.
            overwrite: Rename another file of this name first, with its record, to `.old1`, `.old2` ...
            pictures: A folder that gets the name in place of the part file, whose lock it has had.

        Raises:
            BusyError: Another file has the name, and the result is kept as `.new1`; or another attempt has taken over,
                or made the same output.
        """
        _refuse_twin(target, record)
        made = pictures or part
        try:
            sync(part)
            if pictures is not None:
                sync(pictures)
                with suppress(OSError):
                    target.rmdir()  # an empty folder, made for them
            with self._lock:  # no signal may come between the name and the record
                self._check_open()
                self._check_held(part)
                write_pending(record, pending_path(part))
                self._release(windows_only=True)
                if overwrite and target.exists():
                    kept = move_aside(target, target, "old", part=part)
                    with suppress(FileNotFoundError):
                        record_path(target).replace(record_path(kept))
                    sync(target.parent)
                try:
                    move_new(made, target)
                except OSError as error:
                    if not is_same(made, target):
                        raise
                    _log.warning("%s is left over and cannot be deleted (%s); delete it yourself", part, error.strerror)
                if made is not part:
                    self._release()
                    remove(part)
                self._part = None  # from here on `discard` must keep the record, even if it cannot get its own name
                try:
                    pending_path(part).replace(record_path(target))
                except FileNotFoundError:  # another run has found the output, and swept
                    write_record(record, record_path(target))
                sync(target.parent)
                settle(target)
        except FileNotFoundError as error:
            raise BusyError(
                f"{target}: another run has taken over and removed {part.name}; let that run end"
            ) from error
        except FileExistsError as error:
            _refuse_twin(target, record)
            beside = move_aside(made, target, "new")
            pending_path(part).replace(record_path(beside))
            raise BusyError(
                f"{target}: another file took this name during the job; the verified result is {beside.name}, "
                "rename it yourself"
            ) from error

    def discard(self) -> bool:
        """Kill FFmpeg, delete the files, and allow no new ones; an older output has its name again.

        Returns:
            Whether there are finished ranges, which stay.
        """
        with self._lock:
            self._closed = True
            if self._process is not None:
                kill(self._process)
            self._release()
            if self._part is not None:
                remove(self._part)
                remove(pending_path(self._part))
            if self._target is not None:
                settle(self._target)  # an older output that has given way to one that was not published
            if self._unfinished is not None:
                for path in self._unfinished.parent.glob(f"{self._unfinished.stem}.*"):  # thumbnails too
                    remove(path)
            if self._folder is not None:
                self._folder.close()
            return self.has_ranges

    def _release(self, *, windows_only: bool = False) -> None:
        """Unlock the part file; Windows cannot rename an open file."""
        if self._held is not None and (sys.platform == "win32" or not windows_only):
            os.close(self._held)
            self._held = None

    def _check_held(self, part: Path) -> None:
        """Check that the part file is still the one that was created, and not one that FFmpeg has created anew where
        it was deleted or where its folder was exchanged for another.

        Raises:
            FileNotFoundError: It is gone, or is another file.
        """
        if self._held is not None and not os.path.samestat(os.fstat(self._held), part.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(part))

    def _check_open(self) -> None:
        if self._closed:
            raise IncompleteError("the job has been stopped")


def _refuse_twin(target: Path, record: Record) -> None:
    """Refuse to replace the output of another run of the same job.

    Raises:
        BusyError: It is there, and whole.
    """
    if target.exists() and find_done(target, lambda: record.key) is not None:
        raise BusyError(f"{target}: another run has made this very file meanwhile; nothing is left to do")
