"""One job in a process of its own: it cannot outlive whoever started it, hang unseen, or take others with it."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HEAD, TAIL = 16384, 49152
"""Bytes kept of the beginning and of the end of what a child says."""

GRACE = 5.0
"""Seconds that a child has to clear up before it is killed; it needs less than one."""

POLL = 0.05
"""Seconds between two looks at a child."""

ASLEEP = 5.0
"""Seconds between two looks after which whoever looks must have been stopped."""

KEPT_BUFFERS = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.top_pad=67108864"
    ":glibc.malloc.trim_threshold=2147483647"
}
"""Lets glibc keep freed memory for the next buffers, of all threads alike. By itself it keeps none above 32 MiB, and
the system clears each page that it gives out: a fifth of the CPU time of `paper` at 320x180. It must be set before a
process starts."""

PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "vsfmanet")
"""What runs one job; with `-P` no module is taken from the working folder. Tests put something light here."""

EVENT = b'{"event": '
"""How a line of `--progress=json` begins."""

LONGEST_LINE = 65536
"""Bytes that are kept in the hope of the end of a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a job is, as it tells."""

    step: str
    """What it does to its frames."""
    done: int
    """Frames."""
    total: int
    """Frames."""
    speed: float | None
    """Frames per second; None at the beginning."""
    seconds_left: float | None
    """For this step; None at the beginning."""


class Child:
    """A running job.

    Args:
        line: Its command line.
        stdin: What it can read there; less than a pipe holds.
        temporary: Folder for its temporary files, which it cannot delete if it is killed.
        hear: Called with each event that it tells, and with all other lines of its stderr as they are.
        own_group: Whether it is to be out of reach of Ctrl-C, because whoever started it ends it in order.
    """

    def __init__(
        self,
        line: Sequence[str],
        *,
        stdin: bytes | None = None,
        temporary: Path,
        hear: Callable[[bytes | Mapping[str, Any]], None] = lambda _: None,
        own_group: bool = True,
    ) -> None:
        group: dict[str, Any] = {"process_group": 0} if own_group else {}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if own_group else {}
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=KEPT_BUFFERS | os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            **group,
        )
        if self._process.stdin is not None:
            with suppress(OSError), self._process.stdin as pipe:  # it may have ended before it reads
                pipe.write(stdin or b"")
        self._hear = hear
        self._outputs = {"stdout": b"", "stderr": b""}
        self.progress: Progress | None = None
        self._rest = b""
        self._heard = time.monotonic()
        self._processor_time = 0.0
        self._readers = [
            threading.Thread(target=self._drain, args=("stdout", self._process.stdout), daemon=True),
            threading.Thread(target=self._drain, args=("stderr", self._process.stderr), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, stall_limit: float, look: Callable[[], None]) -> int | None:
        """Wait for the end.

        Args:
            stall_limit: Seconds without progress after which the child is stopped.
            look: Called every moment.

        Returns:
            Its exit code, below 0 if a signal ended it; None if it was stopped for lack of progress.
        """
        looked = time.monotonic()
        while (code := self._process.poll()) is None:
            time.sleep(POLL)
            since, looked = time.monotonic() - looked, time.monotonic()
            if since > ASLEEP:  # it was not the job that stood still, but all of us: Ctrl-Z, a machine that slept
                self._heard += since
            self._count_work()
            look()
            if time.monotonic() - self._heard > stall_limit:
                self.stop()
                code = None
                break
        self._read_to_end()
        return code

    def stop(self) -> None:
        """End it: with time to clear up, then at once."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE)
            self._read_to_end()
            return
        left = _children(self._process.pid)  # an encoder that hangs too
        self._process.kill()
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    @property
    def result(self) -> bytes:
        """What it has written to stdout."""
        return self._outputs["stdout"]

    def error(self) -> tuple[str, str]:
        """Kind and text of the error that ended it, as its `--json` tells; otherwise "" and its last lines."""
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(self.result)
            return str(told["error"]), str(told["message"])
        lines = self._outputs["stderr"].decode(errors="replace").strip().splitlines()
        return "", "\n".join(lines[-20:])

    def _read_to_end(self) -> None:
        for reader in self._readers:
            reader.join(timeout=GRACE)  # an encoder that outlives its job for a moment may hold the pipe

    def _drain(self, name: str, pipe: IO[bytes]) -> None:
        """Read what the child says, and keep the beginning and the end of it."""
        while chunk := os.read(pipe.fileno(), 65536):
            self._heard = time.monotonic()
            self._keep(name, chunk if name == "stdout" else self._without_events(chunk))
        if name == "stderr" and self._rest:
            self._hear(self._rest + b"\n")
            self._keep(name, self._rest)

    def _keep(self, name: str, chunk: bytes) -> None:
        text = self._outputs[name] + chunk
        self._outputs[name] = text if len(text) <= HEAD + TAIL else text[:HEAD] + text[-TAIL:]

    def _without_events(self, chunk: bytes) -> bytes:
        """What there is to keep of whole lines: all but progress, and of other events the text."""
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
        """Read a line, and tell it on; returns what there is to keep of it."""
        try:
            event = json.loads(line) if line.startswith(EVENT) else {}
            progress = None
            if event.get("event") == "progress":
                progress = Progress(
                    step=str(event["step"]),
                    done=int(event["done"]),
                    total=int(event["total"]),
                    speed=event.get("speed"),
                    seconds_left=event.get("seconds_left"),
                )
            text = None if progress else str(event["text"]).encode(errors="replace")
        except (ValueError, KeyError, TypeError):
            self._hear(line + b"\n")
            return line
        self._hear(event)
        self.progress = progress or self.progress
        return text

    def _count_work(self) -> None:
        """Where there is nothing to tell for long, before the first frame and after the last, work counts as progress.

        Not in between: a lost device can keep a processor busy with waiting.
        """
        told = self.progress
        if sys.platform != "linux" or (told is not None and told.done < told.total):
            return
        used = _processor_seconds(self._process.pid)
        if used >= self._processor_time + 1:
            self._processor_time = used
            self._heard = time.monotonic()


def _children(pid: int) -> list[int]:
    """What a process has started, from any of its threads; nothing where there is no /proc."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _processor_seconds(pid: int) -> float:
    """What a process and its children, such as an encoder, have used of the processor. Linux only."""
    ticks = 0
    for each in (pid, *_children(pid)):
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def die_with(parent: int) -> None:
    """Have this process killed when that which started it ends, however that ends. Linux only.

    Args:
        parent: Its process id.
    """
    if sys.platform != "linux":
        return
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
