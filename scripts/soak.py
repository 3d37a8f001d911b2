"""Hurt batches at random and count what goes wrong: partial, lost, duplicated and wrong results. All must be 0.

    python scripts/soak.py --kills 200

Makes a few short films, whole and corrupt ones, and restores them with `vsfmanet batch`, in ranges of frames, with a
plain enlargement in place of the network. At random moments batches, jobs and encoders are killed with SIGKILL, the
pipe of a batch's messages is closed, and the disk of the outputs is filled. The same command is given again until it
ends by itself; then every output is compared, frame by frame, with one that was made in peace, and the next round
begins. Linux only: processes are found in /proc.

The outputs are on a small disk in memory where mounting is allowed, and are filled up for real; elsewhere a limit on
the size of files, set on the running processes, makes their writes fail. The last line says which.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import imageio_ffmpeg

GOOD = "film {}.mkv"

DONE = 3
"""Exit code of a batch that has done all it could: corrupt films are refused, and nothing else is amiss."""

DISK = 5
"""Exit code of a batch whose disk is full."""

SECONDS = 600
"""After which a batch that nobody hurts must have ended."""

DISK_SIZE = 24
"""MiB of the small disk: enough for all outputs, twice."""

LIMIT = 20_000
"""Bytes that a file may have where no disk can be mounted."""

CHANCES = {"batch": 3, "job": 3, "encoder": 3, "pipe": 1, "disk": 1}
"""What may be hurt, and how often."""

KILLS = ("batch", "job", "encoder")


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
        with small_disk(folder / "disk") as mounted:
            expected = make_in_peace(folder / "in", folder / "peace", options.films)
            hurt, wrong = Counter[str](), Counter[str]()
            chance, started = random.Random(options.seed), time.monotonic()
            out, rounds = folder / "disk" / "out", 0
            while sum(hurt[what] for what in KILLS) < options.kills:
                what, code = hurt_once(folder / "in", out, chance, mounted=mounted)
                hurt[what] += what != ""
                ended = code == DONE
                wrong += examine(out, expected, finished=ended)
                wrong["exit code"] += what in ("", "disk") and code not in (DONE, DISK)
                print(
                    f"{sum(hurt[kind] for kind in KILLS)} kills, {what or 'nothing'} hurt, {dict(+wrong)}", flush=True
                )
                if ended:
                    rounds += 1
                    subprocess.run(["rm", "-r", out], check=True)
            code = run_batch(folder / "in", out).wait(SECONDS)
            wrong += examine(out, expected, finished=True)
            wrong["exit code"] += code != DONE
            took = time.monotonic() - started
    hit = ", ".join(f"{hurt[what]} of {what}" for what in KILLS)
    how = "a full disk in memory" if mounted else "a limit on the size of files: no disk could be mounted"
    found = ", ".join(f"{what} {wrong[what]}" for what in ("partial", "lost", "duplicated", "wrong", "exit code"))
    print(f"{sum(hurt[what] for what in KILLS)} kills ({hit}), {hurt['pipe']} broken pipes, {hurt['disk']} times {how}")
    print(f"{len(expected)} films and 4 corrupt ones, {rounds + 1} rounds, {took:.0f} s: {found}")
    return int(wrong.total() > 0)


def make_sources(folder: Path, count: int) -> None:
    """Films of different lengths, and four that are not whole."""
    folder.mkdir()
    for n in range(count):
        subprocess.run(
            [
                imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i",
                f"testsrc2=s=64x48:r=25:d={1 + 0.4 * n}", "-f", "lavfi", "-i", f"sine=d={1 + 0.4 * n}",
                "-c:v", "libx264", "-preset", "ultrafast", "-g", "10", "-c:a", "aac", folder / GOOD.format(n),
            ],
            check=True,
        )  # fmt: skip
    data = (folder / GOOD.format(count - 1)).read_bytes()
    (folder / "cut.mkv").write_bytes(data[: len(data) // 2])
    (folder / "hole.mkv").write_bytes(data[: len(data) // 2] + bytes(6000) + data[len(data) // 2 + 6000 :])
    noise = random.Random(1)
    damaged = bytearray(data)
    for _ in range(100):
        damaged[noise.randrange(5000, len(data) - 1000)] = noise.randrange(256)
    (folder / "damaged.mkv").write_bytes(damaged)
    (folder / "text.mkv").write_text("not a video")


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """A file system in memory, where that is allowed; gives whether it is one."""
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}m", "tmpfs", str(place)]
    mounted = subprocess.run(line, stderr=subprocess.DEVNULL, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", place], check=True)


def make_in_peace(sources: Path, folder: Path, count: int) -> dict[str, str]:
    """The hash of all frames of each output, by its name."""
    assert run_batch(sources, folder).wait(SECONDS) == DONE
    return {GOOD.format(n): frame_hash(folder / GOOD.format(n)) for n in range(count)}


def hurt_once(sources: Path, out: Path, chance: random.Random, *, mounted: bool) -> tuple[str, int]:
    """Start a batch, wait, and hurt something; what was hurt, "" if it had ended before, and its exit code."""
    batch = run_batch(sources, out)
    while batch.poll() is None and not children(batch.pid):
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 2))
    if batch.poll() is not None:
        return "", batch.returncode
    what = chance.choices(list(CHANCES), list(CHANCES.values()))[0]
    if what == "disk":
        return what, fill_disk(batch, out, mounted=mounted)
    jobs = children(batch.pid)
    encoders = [encoder for job in jobs for encoder in children(job)]
    while what == "encoder" and not encoders and batch.poll() is None:  # one runs only for a part of each job
        jobs = children(batch.pid)
        encoders = [encoder for job in jobs for encoder in children(job)]
    victims = {"batch": [batch.pid], "job": jobs, "encoder": encoders, "pipe": []}[what]
    assert batch.stderr is not None
    if what == "pipe":
        batch.stderr.close()
        time.sleep(chance.uniform(0, 2))  # it must go on with nobody to talk to
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    time.sleep(chance.uniform(0, 0.5))
    batch.kill()
    code = batch.wait()
    deadline = time.monotonic() + 15
    while any(is_alive(process) for process in [*jobs, *encoders]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return what if victims or what == "pipe" else "batch", code


def fill_disk(batch: subprocess.Popen[bytes], out: Path, *, mounted: bool) -> int:
    """Leave no room until a batch has ended by itself; its exit code."""
    filler = out.parent / "filler"
    if mounted:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    else:
        jobs = children(batch.pid)
        for process in [batch.pid, *jobs, *(encoder for job in jobs for encoder in children(job))]:
            with suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    try:
        return batch.wait(SECONDS)
    finally:
        filler.unlink(missing_ok=True)


def run_batch(sources: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start `vsfmanet batch`; what has been killed three times is tried again."""
    options = ["--retry", "--reserve=0", "--range-frames=20", "--encoder-args=-preset ultrafast"]
    line = [sys.executable, __file__, "as-vsfmanet", "batch", *options, str(sources), str(out)]
    return subprocess.Popen(line, stderr=subprocess.PIPE)


def examine(out: Path, expected: dict[str, str], *, finished: bool) -> Counter[str]:
    """Compare what is there under final names with what must be; at the end everything must, and nothing else."""
    found: Counter[str] = Counter()
    for path in out.rglob("*") if out.is_dir() else ():
        inside = path.relative_to(out)
        if any(part.startswith(".") for part in inside.parts):  # what a job works with: gone when it has ended
            found["partial"] += finished and path.is_file() and not path.name.startswith("journal.sqlite3")
        elif path.suffix == ".mkv" and path.name not in expected:
            found["duplicated"] += 1
        elif path.suffix == ".mkv" and frame_hash(path) != expected[path.name]:
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
    from vsfmanet.jobs import runner, supervise
    from vsfmanet.media import clip
    from vsfmanet.settings import Resolved

    clip.restore_clip = lambda node, settings: node.resize.Bicubic(4 * node.width, 4 * node.height)
    vars(runner).update(
        weights_sha256=lambda model: "none",
        resolved=lambda settings, weights: Resolved(
            model="none",
            weights_sha256=weights,
            backend="torch",
            device="cpu",
            device_name="",
            precision="fp32",
            kernels=None,
        ),
    )
    supervise.PROGRAM = (sys.executable, __file__, "as-vsfmanet")
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(act_as_vsfmanet(sys.argv[2:]) if sys.argv[1:2] == ["as-vsfmanet"] else main())
