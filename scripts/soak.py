"""Kill batches at random and count what goes wrong: partial, lost, duplicated and wrong results. All must be 0.

    python scripts/soak.py --kills 100

Makes a few short films, whole and damaged ones, and restores them with `vsfmanet batch` (with a plain enlargement in
place of the network), while batches, jobs and encoders are killed with SIGKILL at random moments and their stderr is
closed. The same command is given again until it ends by itself; then every output is compared, frame by frame, with one
that was made in peace, and the next round begins. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import av
import imageio_ffmpeg

GOOD = "film {}.mkv"
DONE = 3
"""Exit code of a batch that has done all it could: damaged films are refused, and nothing else is amiss."""

SECONDS = 600
"""After which a batch that nobody kills must have ended."""


def main() -> int:
    """Run the soak; the exit code is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--films", type=int, default=6, metavar="N", help="whole ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vsfmanet-soak-") as name:
        folder = Path(name)
        make_sources(folder / "in", options.films)
        expected = make_in_peace(folder / "in", folder / "peace", options.films)
        chance = random.Random(options.seed)
        kills: Counter[str] = Counter()
        wrong: Counter[str] = Counter()
        started = time.monotonic()
        rounds = 0
        while kills.total() < options.kills:
            what, code = one_kill(folder / "in", folder / f"out {rounds}", chance)
            kills[what] += what != ""
            ended = code == DONE
            wrong += examine(folder / f"out {rounds}", expected, finished=ended)
            rounds += ended
        code = run_batch(folder / "in", folder / f"out {rounds}").wait(SECONDS)
        wrong += examine(folder / f"out {rounds}", expected, finished=True)
        wrong["exit code"] += code != DONE
        took = time.monotonic() - started
    hit = ", ".join(f"{count} of {what}" for what, count in sorted(kills.items()) if count)
    found = ", ".join(f"{what} {wrong[what]}" for what in ("partial", "lost", "duplicated", "wrong", "exit code"))
    print(f"{kills.total()} kills ({hit}), {len(expected)} films, {rounds + 1} rounds, {took:.0f} s: {found}")
    return int(wrong.total() > 0)


def make_sources(folder: Path, count: int) -> None:
    """Films of different lengths, and two that are not whole."""
    folder.mkdir()
    for n in range(count):
        subprocess.run(
            [
                imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i",
                f"testsrc2=s=64x48:r=25:d={1 + 0.4 * n}", "-f", "lavfi", "-i", f"sine=d={1 + 0.4 * n}",
                "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", folder / GOOD.format(n),
            ],
            check=True,
        )  # fmt: skip
    data = (folder / GOOD.format(count - 1)).read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) // 2])
    (folder / "text.mkv").write_text("not a video")


def make_in_peace(sources: Path, folder: Path, count: int) -> dict[str, str]:
    """The hash of all frames of each output, by its name."""
    assert run_batch(sources, folder).wait(SECONDS) == DONE
    return {GOOD.format(n): frame_hash(folder / GOOD.format(n)) for n in range(count)}


def one_kill(sources: Path, out: Path, chance: random.Random) -> tuple[str, int]:
    """Start a batch, wait, and hit it somewhere; what was hit, "" if it had ended before, and its exit code."""
    batch = run_batch(sources, out)
    while batch.poll() is None and not children(batch.pid):
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 2))
    if batch.poll() is not None:
        return "", batch.returncode
    what = chance.choice(["batch", "job", "encoder", "stderr"])
    jobs = children(batch.pid)
    encoders = [encoder for job in jobs for encoder in children(job)]
    while what == "encoder" and not encoders and batch.poll() is None:  # one runs only for a part of each job
        jobs = children(batch.pid)
        encoders = [encoder for job in jobs for encoder in children(job)]
    victims = {"batch": [batch.pid], "job": jobs, "encoder": encoders, "stderr": []}[what]
    assert batch.stderr is not None
    if what == "stderr":
        batch.stderr.close()
    for victim in victims or [batch.pid]:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    time.sleep(chance.uniform(0, 0.5))
    batch.kill()
    code = batch.wait()
    deadline = time.monotonic() + 15
    while any(is_alive(process) for process in [*jobs, *encoders]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return what if victims or what == "stderr" else "batch", code


def run_batch(sources: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start `vsfmanet batch`; what has been killed three times is tried again."""
    options = ["--retry", "--reserve=0", "--encoder-args=-preset ultrafast"]
    line = [sys.executable, __file__, "as-vsfmanet", "batch", *options, str(sources), str(out)]
    return subprocess.Popen(line, stderr=subprocess.PIPE)


def examine(out: Path, expected: dict[str, str], *, finished: bool) -> Counter[str]:
    """Compare what is there under final names with what must be; at the end everything must."""
    found: Counter[str] = Counter()
    for path in out.rglob("*") if out.is_dir() else ():
        if "tmp" in path.relative_to(out).parts:  # temporary files of a job: gone when the batch has ended
            found["partial"] += finished
        elif path.suffix != ".mkv" or path.name.startswith("."):
            found["partial"] += finished and (".part." in path.name or path.suffix == ".tmp")
        elif path.name not in expected:
            found["duplicated"] += 1
        elif frame_hash(path) != expected[path.name]:
            found["wrong"] += 1
    if finished:
        found["lost"] = sum(not (out / name).is_file() for name in expected)
    return found


def frame_hash(path: Path) -> str:
    """A hash of all decoded frames and their times."""
    digest = hashlib.sha256()
    with suppress(av.FFmpegError), av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(f"{frame.time}".encode() + frame.to_ndarray().tobytes())
    return digest.hexdigest()


def children(pid: int) -> list[int]:
    """The processes that a process has started, by any of its threads."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def act_as_vsfmanet(arguments: Sequence[str]) -> int:
    """The command line of vsfmanet, with a plain enlargement in place of the network."""
    from vsfmanet import cli
    from vsfmanet.jobs import batch, clip, runner

    clip.restore_clip = lambda node, settings: node.resize.Bicubic(4 * node.width, 4 * node.height)
    vars(runner).update(weights_sha256=lambda model: "none")
    batch.PROGRAM = (sys.executable, __file__, "as-vsfmanet")
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(act_as_vsfmanet(sys.argv[2:]) if sys.argv[1:2] == ["as-vsfmanet"] else main())
