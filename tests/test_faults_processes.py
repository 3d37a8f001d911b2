"""The fault table, section C: filters that fail, processes that die, signals, encoders that hang, clocks that jump."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import vapoursynth as vs

from tests import light
from tests.batch_stub import stub_recipe
from tests.films import (
    FAST,
    FFMPEG,
    H264,
    ffmpeg,
    frames_hash,
    lighten,
    nothing_but,
    packets,
    picture,
    restore,
    sound,
    times,
)
from tests.light import is_alive, is_encoder, start, wait_for_encoder, wait_until_gone
from vsfmanet.cli import main
from vsfmanet.jobs import batch, job, runner, supervise
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.supervise import PROGRAM, family
from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.usefixtures("in_this_process"),
]


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch)


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 s, 50 frames."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(*picture(2), *H264, path)
    return path


# 38 to 42: what dies


@pytest.mark.parametrize("kind", ["nothing", "another size"])
def test_case_38_a_frame_that_is_none_or_of_another_size_is_told_with_its_number(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    def change(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        other = node.std.BlankClip(width=32, length=1).get_frame(0) if kind == "another size" else None
        return node.std.ModifyFrame(node, lambda n, f: other if n == 20 else f)

    monkeypatch.setattr(clips, "restore_clip", change)
    assert restore(film, tmp_path / "made.mkv") == 6
    assert "the filter failed at frame 20 of 50" in capsys.readouterr().err
    assert nothing_but(tmp_path)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("SIGSEGV", "the job crashed or was killed (-11)"),
        ("SIGABRT", "the job crashed or was killed (-6)"),
        ("exit", "the job ended as if all were well"),
    ],
)
def test_case_39_a_process_that_dies_in_the_filter_is_never_a_success_and_leaves_nothing(
    film: Path, tmp_path: Path, fault: str, why: str
) -> None:
    made = tmp_path / "made.mkv"
    job = start(film, made, fault=fault)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 6
    assert re.search(rf"a whole output is needed, but {re.escape(why)} restoring \d+ of 50 frames".encode(), said)
    assert nothing_but(tmp_path)
    assert start(film, made).wait(60) == 0
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


def test_case_39_an_older_output_does_not_pass_for_that_of_a_job_that_vanished(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    assert start(film, made).wait(60) == 0
    job = start(film, made, "--overwrite", "--exposure=0.5", fault="exit")
    _, said = job.communicate(timeout=60)
    assert job.returncode == 6, said
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


def test_an_older_output_of_a_job_that_is_killed_between_the_two_names_is_there_again(
    film: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made.mkv"
    assert start(film, made).wait(60) == 0
    before = made.read_bytes()
    for options in (["--no-audio"], ["--no-subtitles"]):  # the second finds what the first has left, and does its job
        alone = ["--stall-limit=60", *options, "--overwrite"]
        assert start(film, made, *alone, fault="between").wait(60) == 6
        assert made.read_bytes() == before
        assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


def test_case_44_a_job_that_hangs_is_stopped_by_its_guard(film: Path, tmp_path: Path) -> None:
    job = start(film, tmp_path / "made.mkv", "--stall-limit=5", fault="hang")
    _, said = job.communicate(timeout=60)
    assert job.returncode == 6
    assert b"no progress for 5 s (--stall-limit), so that the job was stopped restoring" in said
    assert nothing_but(tmp_path)


def test_a_guarded_job_tells_and_gives_what_it_tells_and_gives_without_its_guard(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    job = start(film, made, "--json", stdout=subprocess.PIPE)
    given, said = job.communicate(timeout=60)
    assert json.loads(given) == json.loads(record_path(made).read_text())
    assert b"restoring 50/50 frames" in said
    assert b"verifying 50/50 frames" in said
    assert b"decoding 50/50 frames" in said
    lines = [line for line in said.splitlines() if not line.endswith(b" ...")]  # without the names of phases
    assert len(lines) == 5  # and which file, and what became of it
    commands = [("--progress=json", "--json"), ("--json",)]
    refused = [start(film, made, "--overwrite", "--end=51", *each, stdout=subprocess.PIPE) for each in commands]
    for job, as_json in zip(refused, (True, False), strict=True):
        given, said = job.communicate(timeout=60)
        assert job.returncode == json.loads(given)["exit_code"] == 2
        last = said.splitlines()[-1]
        text = json.loads(last)["text"] if as_json else last.decode()
        assert text.removeprefix("vsfmanet: error: ") == json.loads(given)["message"]


def test_an_encoder_whose_filter_never_ends_is_stopped_in_its_trial(film: Path, tmp_path: Path) -> None:
    endless = f"{FAST} -vf loop=loop=-1:size=1"
    job = start(film, tmp_path / "made.mkv", endless, "--stall-limit=25")
    _, said = job.communicate(timeout=60)
    assert job.returncode == 6, said
    assert b"no progress for 5 s (--stall-limit), so that the job was stopped while trying the encoder" in said
    assert nothing_but(tmp_path)


def test_a_result_that_stdout_cannot_take_is_told_and_the_output_stays(film: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.mkv"
    with Path("/dev/full").open("wb") as full:
        job = start(film, made, "--json", stdout=full.fileno())
        _, said = job.communicate(timeout=60)
    assert job.returncode == 5
    assert b"stdout must take the result, but No space left on device" in said
    assert b"Traceback" not in said
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


@pytest.mark.parametrize("name", ["film.mkv", "missing.mkv"])
def test_messages_that_nobody_reads_do_not_change_the_exit_code(film: Path, tmp_path: Path, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    job = start(film.with_name(name), tmp_path / "made.mkv", stderr=writer)
    os.close(writer)
    assert job.wait(60) == (0 if name == "film.mkv" else 3)
    assert (tmp_path / "made.mkv").exists() == (name == "film.mkv")


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(film: Path, tmp_path: Path) -> None:
    job = start(film, tmp_path / "made.mkv", pause=0.02, before=["nohup"])
    wait_for_encoder(job)
    os.killpg(job.pid, signal.SIGHUP)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


def test_a_module_in_the_working_folder_is_not_taken_for_one_of_ours(film: Path, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("open('marker', 'w')")
    line = [*PROGRAM, "restore", str(film), str(tmp_path / "made.mkv"), "--end=0"]
    assert subprocess.run(line, cwd=tmp_path, capture_output=True).returncode == 2
    assert nothing_but(tmp_path, "av.py")


@pytest.mark.parametrize("way", ["twice", "group", "encoder"])
def test_case_40_an_interrupt_is_never_a_success_whoever_gets_it(film: Path, tmp_path: Path, way: str) -> None:
    job = start(film, tmp_path / "made.mkv", pause=0.1)
    encoder = wait_for_encoder(job)
    time.sleep(0.3)
    started = time.monotonic()
    if way == "encoder":
        encoder.send_signal(signal.SIGINT)
    elif way == "group":
        os.killpg(job.pid, signal.SIGINT)
    else:
        job.send_signal(signal.SIGINT)
        time.sleep(0.1)
        with suppress(ProcessLookupError):
            job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=30)
    assert time.monotonic() - started < 15
    assert job.returncode == (5 if way == "encoder" else 130), said
    assert (b"the encoder must take all frames" if way == "encoder" else b"stopped by SIGINT") in said
    wait_until_gone(encoder)
    assert nothing_but(tmp_path)


def test_case_41_closing_the_terminal_ends_the_job(film: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    login = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(2, termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", login, light.FILE, "restore", FAST, film, tmp_path / "made.mkv"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=light.environment(pause=0.1),
    )
    os.close(theirs)
    encoder = wait_for_encoder(job)
    os.close(ours)
    assert job.wait(timeout=30) == 129
    wait_until_gone(encoder)
    assert nothing_but(tmp_path)


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, 30 at 30 and 30 at 15 per second; sound from before the picture."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(
        *sound(4), "-itsoffset", "0.5", *picture(3, size="32x24", rate=30), "-map", "1", "-map", "0",
        "-vf", "select='lt(t,1.5)+not(mod(n,2))'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000",
        *H264, "-c:a", "aac", path,
    )  # fmt: skip
    return path


def test_case_42_after_kills_at_random_moments_the_same_command_gives_the_same_frames(
    long_film: Path, tmp_path: Path
) -> None:
    made, temporary, chance = tmp_path / "made.mkv", tmp_path / "tmp", random.Random(42)
    peace = tmp_path / "peace" / "made.mkv"
    for folder in (peace.parent, temporary):
        folder.mkdir()
    options = ("--range-frames=7", "--progress=json")
    assert start(long_film, peace, *options, stderr=subprocess.DEVNULL).wait(60) == 0
    finished = set[Path]()
    for what in ("job", "encoder", "job", "stop", "job"):
        job = start(long_film, made, *options, pause=0.03, temporary=temporary)
        assert job.stderr is not None
        while b'"step": "restoring"' not in (line := job.stderr.readline()):
            assert line
        time.sleep(chance.uniform(0, 0.7))
        processes = family(job.pid)
        encoders = [process for process in processes if is_encoder(process)]
        if what == "encoder" and encoders:
            encoders[0].kill()
        else:
            job.send_signal(signal.SIGTERM if what == "stop" else signal.SIGKILL)
        _, said = job.communicate(timeout=30)
        wait_until_gone(*processes)
        assert job.returncode in {"job": {-9}, "encoder": {5, -9}, "stop": {143}}[what]
        assert not made.exists()
        assert sum(path.name.endswith(".part.mkv") for path in tmp_path.iterdir()) == (job.returncode == -9)
        there = set(tmp_path.glob(".*.work/*-*.mkv"))
        assert there >= finished  # nothing that was whole is lost
        finished = there
        assert (b"the same command continues" in said) == (job.returncode != -9 and bool(finished)) or what == "encoder"
    assert finished
    assert start(long_film, made, *options, stderr=subprocess.DEVNULL, temporary=temporary).wait(60) == 0
    assert frames_hash(made) == frames_hash(peace)
    assert times(made) == times(peace)
    assert packets(made, 1) == packets(peace, 1)
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json", "peace", "tmp")
    assert nothing_but(temporary)


def test_case_48_a_job_that_is_stopped_with_its_guard_goes_on_when_both_wake(film: Path, tmp_path: Path) -> None:
    job = start(film, tmp_path / "made.mkv", "--stall-limit=5", pause=0.05)
    wait_for_encoder(job)
    os.killpg(job.pid, signal.SIGSTOP)  # as Ctrl-Z does, and much like a machine that sleeps
    time.sleep(7)
    os.killpg(job.pid, signal.SIGCONT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    assert nothing_but(tmp_path, "made.mkv", "made.mkv.vsfmanet.json")


# 43 to 47: encoders and clocks


def test_a_filter_that_gives_black_where_there_is_a_picture_is_found(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node.std.BlankClip(keep=True))
    assert restore(film, tmp_path / "made.mkv") == 6
    assert "a picture is needed in frame 0, as in the source, got one colour" in capsys.readouterr().err
    assert nothing_but(tmp_path)


@contextmanager
def encoder(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> Iterator[None]:
    """A stand-in that works for the version and for the trial, and then does what it is told."""
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *trial*|*/dev/null|*-version) exec {FFMPEG} "$@";; esac\n{lines}\n')
    program.chmod(0o755)
    with monkeypatch.context() as context:
        context.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


def test_case_43_an_encoder_that_closes_its_input_is_told_with_its_last_words(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with encoder(tmp_path / "bin", monkeypatch, 'exec <&-\necho "no more, thanks" >&2\nsleep 0.5\nexit 0'):
        assert restore(film, tmp_path / "out" / "made.mkv") == 5
    said = capsys.readouterr().err
    assert "of 50 with exit code 0" in said
    assert "no more, thanks" in said
    assert nothing_but(tmp_path / "out")


def test_case_39_an_encoder_that_makes_its_file_after_its_job_died_leaves_nothing(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    late = 'for last; do :; done\ncat > /dev/null\nsleep 1\necho late > "${last#file:}"\ncp "${last#file:}" "$0.made"'
    with encoder(tmp_path / "bin", monkeypatch, late):
        job = start(film, tmp_path / "out" / "made.mkv", fault="SIGSEGV")
        job.communicate(timeout=60)
    assert job.returncode == 6
    assert (tmp_path / "bin" / "ffmpeg.made").read_text() == "late\n"  # before the job was over
    assert nothing_but(tmp_path / "out")


@pytest.mark.parametrize("who", ["encoder", "job"])
def test_case_44_what_hangs_is_stopped_by_the_watchdog(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], who: str
) -> None:
    sources, out = tmp_path / "in", tmp_path / "out"
    sources.mkdir()
    (sources / "film.mkv").write_bytes(film.read_bytes())
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(light.FILE)))
    for module in (job, runner):
        monkeypatch.setattr(module, "weights_sha256", lambda model: "none")
    monkeypatch.setattr(batch, "TRIES", 1)
    whom = "$$" if who == "encoder" else "$PPID"
    options = ["--reserve=0", FAST]
    earlier = family(os.getpid())  # of other tests
    with encoder(tmp_path / "bin", monkeypatch, f"kill -STOP {whom}\nexec sleep 60"):
        assert main(["batch", *options, "--stall-limit=10", str(sources), str(out)]) == 6
    assert "no progress for 10 s" in capsys.readouterr().err
    assert [path.name for path in out.iterdir() if ".part." in path.name or path.suffix == ".mkv"] == []
    assert not [process for process in family(os.getpid()) if process not in earlier and is_alive(process)]
    monkeypatch.setattr(batch, "TRIES", 3)
    assert main(["batch", *options, "--retry", str(sources), str(out)]) == 0
    assert len(times(out / "film.mkv")) == 50


def test_case_45_an_encoder_without_the_codec_is_found_before_the_first_frame(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        return node.std.ModifyFrame(node, lambda n, f: pytest.fail("a frame was made"))

    monkeypatch.setattr(clips, "restore_clip", never)
    assert restore(film, tmp_path / "made.mkv", "--encoder-args=-c:v h264_nowhere") == 5
    assert "Unknown encoder 'h264_nowhere'" in capsys.readouterr().err
    assert nothing_but(tmp_path)


def test_case_46_a_flood_of_messages_neither_blocks_nor_fills_memory(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    flood = f'yes "noise noise noise noise noise" | head -c 100000000 >&2\nexec {FFMPEG} "$@"'
    with encoder(tmp_path / "bin", monkeypatch, flood):
        assert restore(film, tmp_path / "out" / "made.mkv") == 0
    assert len(capsys.readouterr().err) < 10_000
    assert len(times(tmp_path / "out" / "made.mkv")) == 50


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_case_47_a_clock_that_jumps_by_a_day_makes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    sources, out = tmp_path / "in", tmp_path / "out"
    sources.mkdir()
    for number in range(3):
        (sources / f"{number}.mkv").write_text("ok")
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(Path(__file__).with_name("batch_stub.py"))))
    monkeypatch.setattr(batch, "recipe", lambda job: stub_recipe(job.encoder_args))
    monkeypatch.setattr(time, "time", jumping(time.time, jump))
    monkeypatch.setattr(time, "time_ns", jumping(time.time_ns, jump * 1e9))
    assert main(["batch", "--reserve=0", str(sources), str(out)]) == 0
    assert main(["batch", "--reserve=0", str(sources), str(out)]) == 0
    said = capsys.readouterr().err
    assert said.count("[1/3]") == said.count("[3/3]") == 1
    assert "0 of 3 jobs to do" in said
    assert sorted(path.name for path in out.glob("*.mkv")) == ["0.mkv", "1.mkv", "2.mkv"]


def jumping(clock: Callable[[], float], jump: float) -> Callable[[], float]:
    """A clock that is a day off more each time it is read."""
    reads = 0

    def read() -> float:
        nonlocal reads
        reads += 1
        return clock() + reads * jump

    return read
