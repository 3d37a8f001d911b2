"""A job in a process of its own, watched by one that cannot crash or hang with it; and the judgement of its end.

What counts is what there is at the end, not how the process ended: a library may call `exit(0)` in the middle of a
film. The process reads its job as JSON from stdin, writes its events to stderr (see `vsfmanet.jobs.progress`), and its
record or its error as JSON to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from vsfmanet.errors import IncompleteError
from vsfmanet.jobs.files import TemporaryFolder, record_path, sweep
from vsfmanet.jobs.job import STALL_LIMIT, RestoreJob, check_stall_limit
from vsfmanet.jobs.record import Record, adopt, content, is_intact, read_record, record_of
from vsfmanet.media.containers import PIPE

PHASES = {
    **dict.fromkeys(("reading", "decoding", "indexing", "checking"), 100.0),
    **dict.fromkeys(("preparing", "finishing"), 3.0),
    "trying the encoder": 0.2,  # two frames
}
"""Longest duration of a phase in which a job counts no frames, in stall limits."""

WORKING = {"reading", "decoding", "indexing", "checking"}
"""Phases in which use of the processor counts as progress: those that read a file once, and cannot loop."""

HEAD, TAIL = 16384, 49152
"""Bytes kept of the beginning and of the end of each output of a process."""

LAST_LINES = 20
"""Lines of a crashed process that are part of the message."""

MOST_WARNINGS = 100
"""Warnings kept of one job."""

GRACE = 5.0
"""Seconds that a process has to delete its files before it is killed; it needs less than one."""

POLL = 0.05
"""Seconds between two looks at a process."""

ASLEEP = 5.0
"""If two polls lie this many seconds apart, this process was suspended, as by Ctrl-Z or a machine that sleeps."""

KEPT_BUFFERS = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.top_pad=67108864"
    ":glibc.malloc.trim_threshold=2147483647:glibc.malloc.hugetlb=1"
}
"""Lets glibc keep freed memory for the next buffers, of all threads alike, and ask for huge pages. By itself it keeps
none above 32 MiB, and the system clears each page that it hands out: a fifth of the CPU time of `paper` at 320x180. In
pages of 4 KiB, features of megabytes miss the processor's table of addresses all the time. It must be set before a
process starts."""

PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "vsfmanet")
"""Command line of vsfmanet; with `-P` no module is taken from the working folder. Tests put something light here."""

EVENT = b'{"event": '
"""Beginning of a line that is an event."""

LONGEST_LINE = 65536
"""Bytes that are kept in the hope of the end of a line."""

type Event = Mapping[str, Any]
type Verdict = Literal["done", "refused", "damaged", "busy", "machine", "bug", "failed"]

MACHINE = {4, 5, 8}
"""Exit codes of faults that the next job would have too: device, disk or encoder, weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a job ended."""

    code: int
    """Exit code: 0 only if the output is there, verified, with its record; 6 for every end that is no error of ours."""
    record: Record | None = None
    """Of the output, if the job is done."""
    error: str = ""
    """Class of the error that ended it; "" for others."""
    cause: str = ""
    """Why there is no result."""
    warnings: tuple[str, ...] = ()
    """What the user should not miss."""

    @property
    def verdict(self) -> Verdict:
        """What the end means for the job and for those after it."""
        if self.code in MACHINE:
            return "machine"
        if self.code in (2, 3):
            return "damaged" if self.error == "DamagedError" else "refused"
        named: dict[int, Verdict] = {0: "done", 1: "bug", 7: "busy"}
        return named.get(self.code, "failed")

    def to_json(self) -> dict[str, object]:
        """Build what `vsfmanet restore --json` prints: the record, or the error."""
        if self.record is not None:
            return asdict(self.record)
        return {"error": self.error, "message": self.cause, "exit_code": self.code}


class Stop:
    """Ends the job that `supervise` runs and lets no other begin. May be called from any thread, more than once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._process: Process | None = None

    def __call__(self) -> None:
        """End the job in order; returns when it has ended."""
        with self._lock:
            self._stopped = True
            process = self._process
        if process is not None:
            process.stop()

    def check(self) -> None:
        """Raise an error if it was called.

        Raises:
            IncompleteError: It was.
        """
        if self._stopped:
            raise IncompleteError("the job has been stopped")

    def start(self, begin: Callable[[], Process]) -> Process:
        """Begin a process, which this object then ends.

        Raises:
            IncompleteError: The job has been stopped.
        """
        with self._lock:
            self.check()
            self._process = begin()
            return self._process


def supervise(
    job: RestoreJob,
    *,
    attempt: int = 1,
    stall_limit: float = STALL_LIMIT,
    hear: Callable[[Event | bytes], None] = lambda _: None,
    stop: Stop | None = None,
    own_group: bool = True,
) -> Outcome:
    """Do a job in a process of its own. Nothing of the process is left when this returns.

    Args:
        job: What is to be done.
        attempt: Number of the attempt.
        stall_limit: Seconds without progress after which the process is stopped.
        hear: Called with each event, and with what the process writes to stderr besides. From another thread.
        stop: Ends the job early.
        own_group: Whether Ctrl-C does not reach the process, because the caller ends it in order.

    Raises:
        ConfigError: `stall_limit` is not above 0.
        IncompleteError: The job has been stopped.
        OSError: The temporary folder cannot be created.
    """
    check_stall_limit(stall_limit)
    stop = stop or Stop()
    before = _stamp(record_path(job.output))
    temporary = TemporaryFolder()
    try:
        order = "-"
        if PIPE in (job.source, job.target):  # the process's stdin and stdout are for frames
            path = temporary.path / "job.json"
            path.write_text(json.dumps(job.to_json()), encoding="utf-8")
            order = str(path)
        line = [*PROGRAM, "restore", "--job", order, f"--attempt={attempt}", f"--parent={os.getpid()}"]
        process = stop.start(lambda: Process(line, job=job, temporary=temporary, hear=hear, own_group=own_group))
        code = process.wait(stall_limit)
    finally:
        temporary.close()  # a process that is killed cannot delete its files
    stop.check()
    return judge(job, process, code, renewed=_stamp(record_path(job.output)) != before)


def judge(job: RestoreJob, process: Process, code: int | None, *, renewed: bool) -> Outcome:
    """Judge how a job ended, by its output, its record and its own words; what a dead process left is deleted.

    Args:
        job: What was to be done.
        process: The process that did it, which has ended.
        code: Its exit code, below 0 if a signal ended it; None if it was stopped for lack of progress.
        renewed: Whether there is another record beside the output than before.
    """
    told = process.result()
    record = _published(job, told, renewed=renewed) if job.target != PIPE else record_of(told) if code == 0 else None
    if record is not None:
        warnings = process.warnings
        if code != 0:
            warnings += (f"the process crashed at its end ({code}), after the output was verified and published",)
        return Outcome(code=0, record=record, warnings=warnings)
    error, message = str(told.get("error", "")), str(told.get("message", ""))
    sweep(job.output)
    if code is not None and told.get("exit_code") == code and error:
        return Outcome(code=code, error=error, cause=message, warnings=process.warnings)
    words = process.last_words()
    if code == 1:  # a bug, with its traceback
        return Outcome(code=1, cause=words, warnings=process.warnings)
    how = f"the job crashed or was killed ({code})"
    if code is None:
        how = f"no progress for {process.waited:g} s (--stall-limit), so that the job was stopped"
    elif code == 0:
        how = "the job ended as if all were well"
    elif code > 128:
        how = f"the job was stopped by {_signal_name(code - 128)} from outside"
    last = f" Its last words were:\n{words}" if words else ""
    return Outcome(
        code=6,
        cause=f"{job.output}: a whole output is needed, but {how} {process.place()}; nothing was published. Try again, "
        f"and report it if it comes back.{last}",
        warnings=process.warnings,
    )


def _published(job: RestoreJob, told: Mapping[str, Any], *, renewed: bool) -> Record | None:
    """The record of the output, if this job has published it.

    The job names it in its last words; if those are lost, it is a record that is newer than the job and fits its output
    to the byte.
    """
    record = read_record(record_path(job.output))
    if record is not None and "output_sha256" in told:
        with suppress(OSError):
            if (told["output_sha256"], content(job.output)[0]) == (record.output_sha256, record.output_size):
                return record
    if "error" in told:
        return None
    with suppress(OSError):
        if record is not None and renewed and _is_of(record, job) and is_intact(job.output, record):
            return record
        waiting = adopt(job.output)  # of a process that died between the name and the record
        return waiting if waiting is not None and _is_of(waiting, job) else None
    return None


def _is_of(record: Record, job: RestoreJob) -> bool:
    """Whether a record names the source of a job."""
    return record.source == job.source_name


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; None for none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _signal_name(number: int) -> str:
    """Name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Process:
    """A running job.

    Args:
        line: Its command line.
        job: What it reads from stdin.
        temporary: Its temporary files; they are deleted when it is stopped.
        hear: Called with each event, and with what it writes to stderr besides. From another thread.
        own_group: Whether it is in a process group of its own.
    """

    def __init__(
        self,
        line: Sequence[str],
        *,
        job: RestoreJob,
        temporary: TemporaryFolder,
        hear: Callable[[Event | bytes], None],
        own_group: bool,
    ) -> None:
        group: dict[str, Any] = {"process_group": 0} if own_group else {}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if own_group else {}
        self._process = subprocess.Popen(
            line,
            stdin=None if job.source == PIPE else subprocess.PIPE,
            stdout=None if job.target == PIPE else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=KEPT_BUFFERS | os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary.path)),
            **group,
        )
        self._target, self._temporary, self._hear = job.output, temporary, hear
        self._outputs = {"stdout": b"", "stderr": b""}
        self._rest = b""
        self._result: Mapping[str, Any] | None = None
        self._warnings: list[str] = []
        self._watch = Watch()
        self.waited = 0.0
        """Seconds without progress after which it was stopped."""
        self._readers = [
            threading.Thread(target=self._drain, args=(name, pipe), daemon=True)
            for name, pipe in (("stdout", self._process.stdout), ("stderr", self._process.stderr))
            if pipe is not None
        ]
        for reader in self._readers:
            reader.start()
        if self._process.stdin is not None:
            with suppress(OSError), self._process.stdin as pipe:  # it may have ended already
                pipe.write(json.dumps(job.to_json()).encode())

    def wait(self, stall_limit: float) -> int | None:
        """Wait for the end.

        Args:
            stall_limit: Seconds without progress after which the process is stopped.

        Returns:
            Its exit code, below 0 if a signal ended it; None if it was stopped for lack of progress.
        """
        while (code := self._process.poll()) is None:
            time.sleep(POLL)
            limit = self._watch.overdue(stall_limit, lambda: _processor_seconds(self._process.pid))
            if limit is not None:
                self.waited = limit
                self.stop()
                break
        self._read_to_end()
        return code

    def stop(self) -> None:
        """End it, with time to delete its files; if it does not use that, kill it and delete them here.

        Windows has no such time: to terminate a process is to kill it.
        """
        gentle = sys.platform != "win32"
        left = family(self._process.pid)  # an encoder, which may hang too
        self._process.terminate()
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            gentle = False
            left = family(self._process.pid)
            self._process.kill()
        if gentle:
            self._read_to_end()
        else:
            for each in left:
                with suppress(psutil.Error):
                    each.kill()
            self._process.wait()
            sweep(self._target)
        self._temporary.close()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings among its events."""
        return tuple(self._warnings)

    def result(self) -> Mapping[str, Any]:
        """The JSON object that it wrote to stdout, or as an event if stdout carries frames; empty without one."""
        if self._result is not None:
            return self._result
        with suppress(ValueError, RecursionError):
            told = json.loads(self._outputs["stdout"])
            return told if isinstance(told, dict) else {}
        return {}

    def last_words(self) -> str:
        """The last lines that it wrote to stderr, without progress."""
        lines = self._outputs["stderr"].decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:])

    def place(self) -> str:
        """How far it came, in words."""
        return self._watch.place()

    def _read_to_end(self) -> None:
        for reader in self._readers:
            reader.join(timeout=GRACE)  # an encoder that outlives its job for a moment may hold the pipe

    def _drain(self, name: str, pipe: IO[bytes]) -> None:
        """Read an output of the process, and keep the beginning and the end of it."""
        while chunk := os.read(pipe.fileno(), 65536):
            self._keep(name, chunk if name == "stdout" else self._without_events(chunk))
        if name == "stderr" and self._rest:
            self._hear(self._rest + b"\n")
            self._keep(name, self._rest)

    def _keep(self, name: str, chunk: bytes) -> None:
        text = self._outputs[name] + chunk
        self._outputs[name] = text if len(text) <= HEAD + TAIL else text[:HEAD] + text[-TAIL:]

    def _without_events(self, chunk: bytes) -> bytes:
        """What there is to keep of whole lines: the text of messages, and all that is no event."""
        lines, _, self._rest = (self._rest + chunk).rpartition(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines, self._rest = lines + self._rest, b""
        if not lines:
            return b""
        if EVENT not in lines:
            self._hear(lines + b"\n")
            return lines + b"\n"
        kept = [told for line in lines.split(b"\n") if (told := self._take(line)) is not None]
        return b"".join(line + b"\n" for line in kept)

    def _take(self, line: bytes) -> bytes | None:
        """Read a line and pass it on; returns what there is to keep of it."""
        try:
            event = json.loads(line) if line.startswith(EVENT) else {}
            if event["event"] == "result":
                self._result = dict(event["value"])
                return None
            text = None if self._watch.note(event) else str(event["text"]).encode(errors="replace")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            self._hear(line + b"\n")
            return line
        if event["event"] == "warning" and len(self._warnings) < MOST_WARNINGS:
            self._warnings.append(str(event["text"]))
        self._hear(event)
        return text


class Watch:
    """Knows by a job's events whether it goes on.

    Where it counts frames, another frame is progress. Everything before and after is a phase with a limit of its own:
    an encoder whose filter never ends keeps a processor busy for ever.
    """

    def __init__(self) -> None:
        self._phase = "preparing"
        self._counting: tuple[int, int] | None = None  # frames done, and their total
        self._used = 0.0
        self._heard = self._begun = self._looked = time.monotonic()

    def note(self, event: Event) -> bool:
        """Take note of an event; returns whether it was about progress.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: The event lacks something, or holds something else.
        """
        if event["event"] == "phase":
            self._phase, self._counting = str(event["name"]), None
            self._heard = self._begun = time.monotonic()
            return True
        if event["event"] != "progress":
            return False
        step, counting = str(event["step"]), (int(event["done"]), int(event["total"]))
        if (step, counting) != (self._phase, self._counting):
            self._phase, self._counting = step, counting
            self._heard = self._begun = time.monotonic()
        return True

    def overdue(self, stall_limit: float, used: Callable[[], float]) -> float | None:
        """Return the limit that is passed; None while there is hope.

        Args:
            stall_limit: Seconds that a job may take for a frame, and the measure of the limits of phases.
            used: Returns the seconds of processor time that the job has used.
        """
        now = time.monotonic()
        since, self._looked = now - self._looked, now
        if since > ASLEEP:  # it was not the job that stood still
            self._heard += since
            self._begun += since
        counts = self._counting is not None and self._counting[0] < self._counting[1]
        phase = self._phase if self._counting is None else "checking"
        limit = stall_limit * (1.0 if counts else PHASES.get(phase, 1.0))
        if now - self._begun > limit:
            return limit
        if counts or phase not in WORKING:
            return None
        time_used = used()
        if time_used >= self._used + 1:
            self._used, self._heard = time_used, now
        return stall_limit if now - self._heard > stall_limit else None

    def place(self) -> str:
        """How far the job came, in words."""
        if self._counting is None:
            return f"while {self._phase}" if self._phase != "preparing" else "before the first frame"
        return f"{self._phase} {self._counting[0]} of {self._counting[1]} frames"


def family(pid: int) -> list[psutil.Process]:
    """Return the processes that a process has started, such as an encoder, and theirs."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _processor_seconds(pid: int) -> float:
    """Seconds of processor time that a process and its children have used."""
    used = 0.0
    with suppress(psutil.Error):
        for each in (psutil.Process(pid), *family(pid)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                used += times.user + times.system
    return used


def die_with(parent: int) -> None:
    """Have this process killed when the one that started it ends, however it ends.

    Args:
        parent: Its process id.
    """
    if sys.platform == "linux":
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os.kill(os.getpid(), signal.SIGKILL)
        return

    def follow() -> None:
        with suppress(psutil.Error):
            psutil.Process(parent).wait()
        for each in family(os.getpid()):
            with suppress(psutil.Error):
                each.kill()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
