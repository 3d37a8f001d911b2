"""One job in a process of its own: it cannot outlive its batch, hang unseen, or take the batch with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
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
        temporary: Folder for its temporary files, which it cannot delete if it is killed.
    """

    def __init__(self, line: Sequence[str], *, temporary: Path) -> None:
        own_group: dict[str, Any] = {"process_group": 0}  # Ctrl-C is for the batch, which ends it in order
        if sys.platform == "win32":
            own_group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
            **own_group,
        )
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
        while (code := self._process.poll()) is None:
            time.sleep(POLL)
            self._count_work()
            look()
            if time.monotonic() - self._heard > stall_limit:
                self.stop()
                code = None
                break
        for reader in self._readers:
            reader.join(timeout=GRACE)  # an encoder that outlives its job for a moment may hold the pipe
        return code

    def stop(self) -> None:
        """End it: with time to clear up, then at once."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE)
            return
        if sys.platform == "win32":
            self._process.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def error(self) -> tuple[str, str]:
        """Kind and text of the error that ended it, as its `--json` tells; otherwise "" and its last lines."""
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(self._outputs["stdout"])
            return str(told["error"]), str(told["message"])
        lines = self._outputs["stderr"].decode(errors="replace").strip().splitlines()
        return "", "\n".join(lines[-20:])

    def _drain(self, name: str, pipe: IO[bytes]) -> None:
        """Read what the child says, and keep the beginning and the end of it."""
        while chunk := os.read(pipe.fileno(), 65536):
            self._heard = time.monotonic()
            self._keep(name, chunk if name == "stdout" else self._without_events(chunk))
        if name == "stderr":
            self._keep(name, self._rest)

    def _keep(self, name: str, chunk: bytes) -> None:
        text = self._outputs[name] + chunk
        self._outputs[name] = text if len(text) <= HEAD + TAIL else text[:HEAD] + text[-TAIL:]

    def _without_events(self, chunk: bytes) -> bytes:
        """What there is to keep of whole lines: all but progress, and of other events the text."""
        lines, _, self._rest = (self._rest + chunk).rpartition(b"\n")
        if len(self._rest) > LONGEST_LINE:
            lines, self._rest = lines + self._rest, b""
        if EVENT in lines:
            lines = b"\n".join(told for line in lines.split(b"\n") if (told := self._take(line)) is not None)
        return lines + b"\n" if lines else b""

    def _take(self, line: bytes) -> bytes | None:
        """Read a line; returns what there is to keep of it."""
        if not line.startswith(EVENT):
            return line
        with suppress(ValueError, KeyError, TypeError):
            event = json.loads(line)
            if event["event"] != "progress":
                return str(event["text"]).encode(errors="replace")
            self.progress = Progress(
                step=str(event["step"]),
                done=int(event["done"]),
                total=int(event["total"]),
                speed=event.get("speed"),
                seconds_left=event.get("seconds_left"),
            )
            return None
        return line

    def _count_work(self) -> None:
        """Before the first frame there is nothing to tell, so that work of the processor counts as progress too.

        Not afterwards: a lost device can keep it busy with waiting.
        """
        if sys.platform != "linux" or self.progress is not None:
            return
        with suppress(OSError, IndexError):
            with open(f"/proc/{self._process.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            if used >= self._processor_time + 1:
                self._processor_time = used
                self._heard = time.monotonic()


def die_with(parent: int) -> None:
    """Have this process killed when the batch that started it ends, however that ends. Linux only.

    Args:
        parent: Process id of the batch.
    """
    if sys.platform != "linux":
        return
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
