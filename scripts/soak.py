"""Hurt batches at random and count what goes wrong: partial, lost, duplicated and wrong results. All must be 0.

    python scripts/soak.py --events 300

Makes a few short films, whole and corrupt ones, and restores them with `vsfmanet batch`, in ranges of frames, with a
plain enlargement in place of the network. At random moments batches, jobs and encoders are killed, told to stop, or
suspended; the pipe of a batch's messages is closed; a second batch works in the same folder; the disk of the outputs is
filled; the journal or a record is garbled; one bit of a source is flipped. The same command is given again until it
ends by itself; then every output is compared, frame by frame, with one that was made in peace, and the next round
begins.

The outputs are on a small disk in memory where mounting is allowed, and are filled up for real; elsewhere a limit on
the size of files, set on the running processes, makes their writes fail. The last line says which. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import imageio_ffmpeg
import psutil

from tests import light
from tests.light import is_alive
from vsfmanet.jobs.supervise import family

GOOD = "film {}.mkv"

DONE = 3
"""Exit code of a batch that has done all it could: corrupt films are refused, and nothing else is amiss."""

DISK = 5
"""Exit code of a batch whose disk is full, or whose encoder has failed."""

BUSY = 7
"""Exit code of a batch of which another one has made a file."""

SECONDS = 600
"""After which a batch that nobody hurts must have ended."""

DISK_SIZE = 24
"""MiB of the small disk: enough for all outputs, twice."""

LIMIT = 20_000
"""Bytes that a file may have where no disk can be mounted."""

CHANCES = {
    **dict.fromkeys(("batch", "job", "encoder"), 3),
    **dict.fromkeys(("term", "pause", "pipe", "rival", "disk", "journal", "record", "bit"), 1),
}
"""What may happen, and how often."""

BIT = "bit.mkv"
"""Copy of a whole film in which bits are flipped."""


def main() -> int:
    """Run the soak; the exit code is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", "--kills", type=int, default=20, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument("--films", type=int, default=6, metavar="N", help="whole ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: %(default)s)")
    parser.add_argument("--only", metavar="WHAT", choices=list(CHANCES), help="one kind of event")
    options = parser.parse_args()
    chances = CHANCES if options.only is None else {options.only: 1}
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        sources = folder / "in"
        make_sources(sources, options.films)
        with small_disk(folder / "disk") as mounted:
            expected = make_in_peace(sources, folder / "peace", options.films)
            hurt, wrong = Counter[str](), Counter[str]()
            chance, started = random.Random(options.seed), time.monotonic()
            out, rounds, garbled = folder / "disk" / "out", 0, False
            while hurt.total() < options.events:
                batch = run_batch(sources, out)
                what, code = hurt_once(batch, sources, out, chance, chances, mounted=mounted)
                hurt[what] += what != ""
                garbled |= what in ("journal", "record")
                ended = code == DONE
                if what == "bit":
                    expected[BIT] = [*expected.get(BIT, []), expect_of_bit(sources, folder / "bit")]
                wrong += examine(out, expected, finished=ended, garbled=garbled)
                if code not in ALLOWED.get(what, {DONE}):
                    wrong["exit code"] += 1
                    print(f"exit code {code} after {what or 'none'}:\n{messages(batch)}")
                print(f"{hurt.total()} events, last: {what or 'none'}, {dict(+wrong)}", flush=True)
                if ended:
                    rounds, garbled = rounds + 1, False
                    expected = {name: hashes[-1:] for name, hashes in expected.items()}
                    subprocess.run(["rm", "-r", out], check=True)
            code = run_batch(sources, out).wait(SECONDS)
            wrong += examine(out, expected, finished=True, garbled=garbled)
            wrong["exit code"] += code != DONE
            took = time.monotonic() - started
    how = "a full disk in memory" if mounted else "a limit on the size of files: no disk could be mounted"
    found = ", ".join(f"{what} {wrong[what]}" for what in ("partial", "lost", "duplicated", "wrong", "exit code"))
    events = ", ".join(f"{what} {hurt[what]}" for what in CHANCES)
    print(f"{hurt.total()} events ({events}; disk: {how})")
    print(f"{len(expected)} films and 4 corrupt ones, {rounds + 1} rounds, {took:.0f} s: {found}")
    return int(wrong.total() > 0)


ALLOWED = {
    **{what: {-signal.SIGKILL, DONE} for what in ("batch", "job", "pipe", "journal", "record", "bit")},
    "encoder": {-signal.SIGKILL, DONE, DISK},  # it may end because of it, before it is killed too
    "term": {128 + signal.SIGTERM, -signal.SIGTERM, DONE},  # by the signal itself once all is done and printed
    "rival": {DONE, BUSY},
    "disk": {DONE, DISK},
}
"""Exit codes of a batch to which something has happened."""


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


def make_in_peace(sources: Path, folder: Path, count: int) -> dict[str, list[str]]:
    """The hash of all frames of each output, by its name: those that it may have, the last for the source as it is."""
    assert run_batch(sources, folder).wait(SECONDS) == DONE
    return {GOOD.format(n): [frame_hash(folder / GOOD.format(n))] for n in range(count)}


def hurt_once(
    batch: subprocess.Popen[bytes],
    sources: Path,
    out: Path,
    chance: random.Random,
    chances: dict[str, int],
    *,
    mounted: bool,
) -> tuple[str, int]:
    """Wait, and let something happen to a batch; return what, "" if it had ended before, and its exit code."""
    while batch.poll() is None and not family(batch.pid):
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 2))
    if batch.poll() is not None:
        return "", batch.returncode
    what = chance.choices(list(chances), list(chances.values()))[0]
    if what == "disk":
        return what, fill_disk(batch, out, mounted=mounted)
    if what == "rival":
        other = run_batch(sources, out, f"--journal={out.parent / 'rival.sqlite3'}")
        codes = {batch.wait(SECONDS), other.wait(SECONDS)}
        for path in out.parent.glob("rival.sqlite3*"):
            path.unlink()
        return what, max(codes - {DONE}, default=DONE) if codes <= ALLOWED["rival"] else -1
    if what == "pause":
        everything = [psutil.Process(batch.pid), *family(batch.pid)]
        for signal_number in (signal.SIGSTOP, signal.SIGCONT):
            for process in everything:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal_number)
            time.sleep(chance.uniform(0, 2))
        return what, batch.wait(SECONDS)
    processes = family(batch.pid)
    encoders = [process for process in processes if is_encoder(process)]
    while what == "encoder" and not encoders and batch.poll() is None:  # one runs only for a part of each job
        processes = family(batch.pid)
        encoders = [process for process in processes if is_encoder(process)]
    victims = {"job": processes, "encoder": encoders}.get(what, [])
    if what == "pipe":
        assert batch.stderr is not None
        batch.stderr.close()
        time.sleep(chance.uniform(0, 2))  # it must continue with nobody to read its messages
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    time.sleep(chance.uniform(0, 0.5))
    if what == "term":
        batch.terminate()
    else:
        batch.kill()
    code = batch.wait()
    deadline = time.monotonic() + 15
    while any(is_alive(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    if what == "journal":
        garble(out / ".vsfmanet" / "journal.sqlite3", chance)
    if what == "record":
        records = sorted(out.rglob("*.vsfmanet.json"))
        if records:
            garble(chance.choice(records), chance)
    if what == "bit":
        data = bytearray((sources / GOOD.format(0)).read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (sources / BIT).write_bytes(data)
    return what, code


def messages(batch: subprocess.Popen[bytes]) -> str:
    """The messages of a batch that has ended, without its progress."""
    if batch.stderr is None or batch.stderr.closed:
        return ""
    return batch.stderr.read().decode(errors="replace").replace("\r", "\n")[-4000:]


def garble(path: Path, chance: random.Random) -> None:
    """Cut a file, or overwrite a part of it."""
    if not path.is_file():
        return
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data) + 1)
    if chance.random() < 0.5:
        del data[place:]
    else:
        data[place : place + 100] = chance.randbytes(min(100, len(data) - place))
    path.write_bytes(data)


def expect_of_bit(sources: Path, folder: Path) -> str:
    """The hash of the film with a flipped bit, made in peace; "" if it is refused, as an earlier one then stays."""
    subprocess.run(["rm", "-rf", folder], check=True)
    folder.mkdir()
    line = [*PROGRAM, "restore", *OPTIONS, str(sources / BIT), str(folder / BIT)]
    run = subprocess.run(line, env=light.environment(scale=4), stderr=subprocess.PIPE, check=False)
    code = run.returncode
    if code not in (0, DONE):
        print(f"made in peace, {BIT} ends with exit code {code}: {run.stderr[-1000:]!r}")
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", sources / BIT, "-map", "0:v", "-f", "null", "-"]
    said = subprocess.run(ffmpeg, capture_output=True, check=False).stderr
    if code == 0 and said:
        print(f"FFmpeg complains of {BIT}, which was restored: {said[:200]!r}")
    return frame_hash(folder / BIT) if code == 0 else ""


def fill_disk(batch: subprocess.Popen[bytes], out: Path, *, mounted: bool) -> int:
    """Leave no room until a batch has ended by itself; its exit code."""
    filler = out.parent / "filler"
    if mounted:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    else:
        for process in [batch.pid, *(each.pid for each in family(batch.pid))]:
            with suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    try:
        return batch.wait(SECONDS)
    finally:
        filler.unlink(missing_ok=True)


PROGRAM = (sys.executable, str(light.FILE))
"""`vsfmanet` with a plain enlargement in place of the network."""

OPTIONS = ("--range-frames=20", "--encoder-args=-preset ultrafast")
"""Options of every job."""


def run_batch(sources: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start `vsfmanet batch`; what has been killed three times is tried again, and all bytes are compared."""
    line = [*PROGRAM, "batch", "--retry", "--recheck", "--reserve=0", *OPTIONS, *options, str(sources), str(out)]
    return subprocess.Popen(line, env=light.environment(scale=4), stderr=subprocess.PIPE)


def examine(out: Path, expected: dict[str, list[str]], *, finished: bool, garbled: bool) -> Counter[str]:
    """Compare what is there under final names with what must be; at the end everything must, and nothing else.

    Where a record was garbled, nothing proves its output: it is made again, and the old one kept as `.old1`.
    """
    found: Counter[str] = Counter()
    for path in out.rglob("*") if out.is_dir() else ():
        inside = path.relative_to(out)
        wanted = expected.get(path.name, [])
        if any(part.startswith(".") for part in inside.parts):  # what a job works with: gone when it has ended
            if finished and path.is_file() and not path.name.startswith("journal.sqlite3"):
                found["partial"] += 1
                print(f"partial: {path}")
        elif path.suffix == ".mkv" and not wanted and ".old" in path.name and (garbled or path.name.startswith("bit")):
            continue
        elif path.suffix == ".mkv" and path.name not in expected:
            found["duplicated"] += 1
            print(f"duplicated: {path}")
        elif path.suffix == ".mkv" and (finished or path.name != BIT) and frame_hash(path) not in wanted:
            found["wrong"] += 1  # until the end, that of a film with a flipped bit may be of an earlier bit
            print(f"wrong: {path}, got {frame_hash(path)}, needed one of {wanted}")
    if finished:
        found["lost"] = sum(wanted[-1] != "" and not (out / name).is_file() for name, wanted in expected.items())
    return found


def frame_hash(path: Path) -> str:
    """A hash of all decoded frames and their times."""
    digest = hashlib.sha256()
    with suppress(av.FFmpegError), av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(f"{frame.time}".encode() + frame.to_ndarray().tobytes())
    return digest.hexdigest()


def is_encoder(process: psutil.Process) -> bool:
    """Whether a process is an FFmpeg."""
    try:
        return "ffmpeg" in process.name()
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(main())
