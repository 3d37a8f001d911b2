"""`vsfmanet` as a program, with a light filter in place of the network, which is slow or dies as the environment says.

LIGHT_SCALE enlarges the frames, LIGHT_PAUSE is the time that a frame takes in seconds, and LIGHT_FAULT is what happens
at frame 20: the name of a signal, "exit" or "hang"; or "between", a kill once an older output has given way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from vsfmanet.jobs.supervise import family

if TYPE_CHECKING:
    import vapoursynth as vs

    from vsfmanet.settings import Resolved, RestoreSettings

FILE = Path(__file__)

FAST = "--encoder-args=-preset ultrafast"

FAULTY = 20
"""Number of the frame at which the fault happens."""


def start(
    source: Path,
    made: Path,
    *options: str,
    fault: str = "",
    pause: float = 0.0,
    scale: int = 1,
    temporary: Path | None = None,
    before: Sequence[str] = (),
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start `vsfmanet restore` in a process of its own, that leads a group of its own."""
    return subprocess.Popen(
        [*before, sys.executable, FILE, "restore", FAST, *options, source, made],
        stdout=stdout,
        stderr=stderr,
        env=environment(fault=fault, pause=pause, scale=scale) | ({"TMPDIR": str(temporary)} if temporary else {}),
        start_new_session=True,
    )


def environment(*, fault: str = "", pause: float = 0.0, scale: int = 1) -> dict[str, str]:
    """The environment of the program."""
    light = {"LIGHT_FAULT": fault, "LIGHT_PAUSE": str(pause), "LIGHT_SCALE": str(scale)}
    given = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # few users set it
    return given | light | {"PYTHONPATH": str(FILE.parents[1])}


def is_encoder(process: psutil.Process) -> bool:
    """Whether a process is the FFmpeg of the real frames, not that of the trial."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return "-copyts" in line and not any("trial" in word for word in line)


def wait_for_encoder(job: subprocess.Popen[bytes]) -> psutil.Process:
    """Wait until the encoder of the real frames runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert job.poll() is None
        for process in family(job.pid):
            if is_encoder(process):
                return process
        time.sleep(0.02)
    raise AssertionError("no encoder")


def wait_until_gone(*processes: psutil.Process) -> None:
    """Wait until processes have ended; 15 s at most."""
    deadline = time.monotonic() + 15
    while any(is_alive(process) for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def replace_network(restore: Callable[[vs.VideoNode, RestoreSettings], vs.VideoNode]) -> None:
    """Let a function restore clips in this process, in place of a network; no weights are looked for."""
    from vsfmanet.jobs import job, runner
    from vsfmanet.media import clip
    from vsfmanet.settings import Resolved

    def resolved(_: RestoreSettings, weights: str) -> Resolved:
        return Resolved(
            model="none",
            weights_sha256=weights,
            backend="torch",
            device="cpu",
            device_name="",
            precision="fp32",
            kernels=None,
        )

    vars(clip).update(restore_clip=restore)
    for module in (job, runner):
        vars(module).update(weights_sha256=lambda model: "none")
    vars(runner).update(resolved=resolved)


def main() -> int:
    """Run the command line with a light filter."""
    from vsfmanet import cli
    from vsfmanet.jobs import scratch, supervise
    from vsfmanet.jobs.files import move_aside
    from vsfmanet.media import clip

    fault, pause = os.environ.get("LIGHT_FAULT", ""), float(os.environ.get("LIGHT_PAUSE", "0"))
    scale = int(os.environ.get("LIGHT_SCALE", "1"))

    def die_after(path: Path, target: Path, tag: str, *, part: Path | None = None) -> Path:
        move_aside(path, target, tag, part=part)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def restore(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        node = clip.converted(node, settings.output_format)

        def at(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
            time.sleep(pause)
            if n == FAULTY and fault == "exit":
                os._exit(0)
            if n == FAULTY and fault == "hang":
                time.sleep(60)
            if n == FAULTY and fault not in ("", "between"):
                os.kill(os.getpid(), getattr(signal, fault))
            return f

        if fault == "between":
            vars(scratch).update(move_aside=die_after)
        changed = node.std.ModifyFrame(node, at) if fault or pause else node
        return changed if scale == 1 else changed.resize.Bicubic(scale * node.width, scale * node.height)

    replace_network(restore)
    vars(supervise).update(PROGRAM=(sys.executable, str(FILE)))
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
