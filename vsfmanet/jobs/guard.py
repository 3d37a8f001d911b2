"""One job under guard: it runs in a process of its own, and a process that cannot crash or hang with it looks on.

What counts is what there is at the end, not how the job ended: a library may call `exit(0)` in the middle of a film.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from vsfmanet.errors import ConfigError, IncompleteError
from vsfmanet.jobs.child import PROGRAM, Child, Progress
from vsfmanet.jobs.files import TemporaryFolder, record_path, sweep
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.progress import Report, frames_state
from vsfmanet.jobs.record import read_record


class GuardedJob:
    """A job of `vsfmanet restore`.

    Args:
        job: What is to be done; the process gets it as JSON.
        stall_limit: Seconds without progress after which it is stopped.
        as_json: Whether what it tells is told on as JSON.

    Raises:
        ConfigError: The limit is not above 0.
    """

    def __init__(self, job: RestoreJob, *, stall_limit: float, as_json: bool) -> None:
        self._line = [*PROGRAM, "restore", "--job", "-", f"--parent={os.getpid()}"]
        self._job = json.dumps(job.to_json()).encode()
        if not stall_limit > 0:
            raise ConfigError(f"restore: a stall limit above 0 s is needed, got {stall_limit}; mend --stall-limit")
        self._target = job.target
        self._stall_limit = stall_limit
        self._as_json = as_json
        self._report = Report(as_json=as_json)
        self._step = ""
        self._lock = threading.Lock()
        self._stopped = False
        self._child: Child | None = None
        self._temporary: TemporaryFolder | None = None

    def run(self) -> tuple[int, bytes]:
        """Do it.

        Returns:
            Its exit code, 0 only if the output is there with its record; and what it wrote to stdout.

        Raises:
            IncompleteError: It crashed, hung, or ended without an output.
        """
        with self._lock:
            if self._stopped:
                raise IncompleteError("restore: the job has been stopped")
            self._temporary = TemporaryFolder()
            self._child = child = Child(
                self._line, stdin=self._job, temporary=self._temporary.path, hear=self._tell_on, own_group=False
            )
        code = child.wait(self._stall_limit, lambda: None)
        self._clear_up()
        if self._is_published(child.result):
            if code != 0:
                self._report.warn(
                    f"the process crashed at its end ({code}), after the output was verified and published"
                )
            return 0, child.result
        if code is not None and _is_own(code, child.result):
            return code, child.result
        sweep(self._target)
        raise IncompleteError(f"restore: {self._target}: {self._why(code, child)}")

    def stop(self) -> None:
        """End it; may be called from any thread, at any time."""
        with self._lock:
            self._stopped = True
        if self._child is not None:
            self._child.stop()
            self._clear_up()

    def _clear_up(self) -> None:
        self._report.close()
        if self._temporary is not None:
            self._temporary.close()

    def _is_published(self, result: bytes) -> bool:
        """Whether the job has told a record, and that lies beside an output of its size."""
        with suppress(ValueError, TypeError, KeyError, OSError):
            told, record = json.loads(result), read_record(record_path(self._target))
            return (
                record is not None
                and record.output_sha256 == told["output_sha256"]
                and self._target.stat().st_size == record.output_size
            )
        return False

    def _why(self, code: int | None, child: Child) -> str:
        """What became of a job that neither made its output nor said why."""
        how = "the job ended as if all were well" if code == 0 else f"the job crashed or was killed ({code})"
        if code is None:
            how = f"no progress for {self._stall_limit:g} s (--stall-limit), so that the job was stopped"
        _, said = child.error()
        words = f" Its last words were:\n{said}" if said else ""
        return (
            f"a whole output is needed, but {how} {_place(child.progress)}; nothing was published. Try again, and "
            f"report it if it comes back.{words}"
        )

    def _tell_on(self, told: bytes | Mapping[str, Any]) -> None:
        """Tell the user what the job tells, as if it ran here."""
        if isinstance(told, bytes) or self._as_json:
            line = told.decode(errors="replace") if isinstance(told, bytes) else f"{json.dumps(told)}\n"
            with suppress(OSError):
                sys.stderr.write(line)
                sys.stderr.flush()
        elif told["event"] == "progress":
            self._show(told)
        elif told["event"] == "warning":
            self._report.warn(told["text"])
        else:
            self._report.note(f"vsfmanet: error: {told['text']}" if told["event"] == "error" else told["text"])

    def _show(self, told: Mapping[str, Any]) -> None:
        done, total = told["done"], told["total"]
        if told["step"] != self._step:
            self._report.close()
            self._report.begin(told["step"], total)
            self._step = told["step"]
        state = frames_state(done, total, told.get("speed"), told.get("seconds_left"))
        self._report.show(state, done, {}, last=done == total)
        if done == total:
            self._report.close()


def _is_own(code: int, result: bytes) -> bool:
    """Whether it was the job that chose this exit code, and not a library in it."""
    if code == 1 or code > 128:  # a bug, with its traceback; a signal
        return True
    with suppress(ValueError, TypeError, KeyError):
        return bool(json.loads(result)["exit_code"] == code)
    return False


def _place(progress: Progress | None) -> str:
    """How far a job came."""
    return (
        "before the first frame" if progress is None else f"{progress.step} {progress.done} of {progress.total} frames"
    )
