"""What careless or hostile neighbours leave: names, links, pipes, closed streams, signals, files that are not ours."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests import light
from tests.films import H264, ffmpeg, nothing_but, picture
from tests.light import start, wait_for_encoder
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.journal import open_journal
from vsfmanet.jobs.paths import Pairing
from vsfmanet.jobs.record import check_against_record, read_record

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX")


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 s, 25 frames."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(*picture(1), *H264, path)
    return path


def run(
    *arguments: str | Path, before: Callable[[], None] | None = None, folder: Path | None = None, **environment: str
) -> tuple[int, str]:
    """Exit code of `vsfmanet` with a light filter, and its messages."""
    done = subprocess.run(
        [sys.executable, light.FILE, *arguments],
        capture_output=True,
        env=light.environment() | environment,
        cwd=folder,
        preexec_fn=before,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace")


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_has_the_name_of_the_record_is_told_before_the_work(film: Path, tmp_path: Path, kind: str) -> None:
    record = tmp_path / "made.mkv.vsfmanet.json"
    os.mkfifo(record) if kind == "pipe" else record.mkdir()
    for options in ((), ("--overwrite",)):
        if options:
            (tmp_path / "made.mkv").write_bytes(film.read_bytes())
        code, said = run("restore", light.FAST, *options, film, tmp_path / "made.mkv")
        assert code == 2
        assert "the record of the output needs this name" in said


@pytest.mark.parametrize("kind", ["pipe", "endless", "huge"])
def test_a_record_that_is_no_small_file_is_none(tmp_path: Path, kind: str) -> None:
    record = tmp_path / "made.mkv.vsfmanet.json"
    if kind == "pipe":
        os.mkfifo(record)
    elif kind == "endless":
        record.symlink_to("/dev/zero")
    else:
        with record.open("wb") as file:
            file.truncate(1 << 40)
    assert read_record(record) is None


def test_a_script_that_no_parser_can_hold_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "deep.vpy"
    script.write_text(f"x = {'-' * 200_000}1")
    code, said = run("restore", light.FAST, script, tmp_path / "made.mkv")
    assert code == 3
    assert "the script must run" in said
    assert nothing_but(tmp_path, "deep.vpy")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_streams_do_no_harm(film: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """Their numbers would go to the next files that are opened, and messages into these."""
    made = tmp_path / "made.mkv"

    def close() -> None:
        for number in closed:
            os.close(number)

    code, _ = run("restore", light.FAST, "--json", film, made, before=close)
    assert code == 0
    assert check_against_record(made).frames == 25


def test_exit_codes_are_right_where_the_parent_drops_those_of_its_children(film: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mkv").write_text("no video")

    def drop() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    assert run("restore", light.FAST, tmp_path / "text.mkv", tmp_path / "made.mkv", before=drop)[0] == 3
    assert run("restore", "--encoder-args=-crf bogus", film, tmp_path / "made.mkv", before=drop)[0] == 5
    assert run("restore", light.FAST, film, tmp_path / "made.mkv", before=drop)[0] == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_the_parent_has_blocked_stops_a_job(film: Path, tmp_path: Path, name: str) -> None:
    number = getattr(signal, name)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        job = start(film, tmp_path / "made.mkv", pause=0.2)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    wait_for_encoder(job)
    job.send_signal(number)
    job.communicate(timeout=15)
    assert job.returncode == 128 + number
    assert nothing_but(tmp_path)


def test_a_file_that_is_no_journal_is_never_renamed(film: Path, tmp_path: Path) -> None:
    sources = tmp_path / "in"
    sources.mkdir()
    precious = {"film.mkv": film.read_bytes(), "notes.txt": b"notes"}
    for name, content in precious.items():
        (tmp_path / name).write_bytes(content)
    (sources / "film.mkv").write_bytes(film.read_bytes())
    with closing(sqlite3.connect(tmp_path / "photos.db")) as other:
        other.execute("CREATE TABLE photos (name)")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for name in ("film.mkv", "notes.txt", "photos.db", "pipe"):
        options = ("--reserve=0", f"--journal={tmp_path / name}")
        code, said = run("batch", light.FAST, *options, sources, tmp_path / "out")
        assert code == 2, name
        assert "a journal of vsfmanet is needed, got something else" in said
    assert sorted(set(os.listdir(tmp_path)) - {"out"}) == before
    assert all((tmp_path / name).read_bytes() == content for name, content in precious.items())


def test_a_corrupt_journal_of_ours_is_set_aside_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "films.journal"
    job = Pairing(source=tmp_path / "film.mkv", target=tmp_path / "made.mkv", size=1, mtime_ns=-1)
    with open_journal(path) as journal:
        journal.register([job], "recipe")
    path.with_name("films.journal.lock").unlink()  # as in a copy
    with open_journal(path) as journal:
        [row] = journal.register([job], "recipe")
        assert row.job.mtime_ns == -1  # of a film of before 1970
    path.write_bytes(b"garbled" * 100)
    with open_journal(path) as journal:
        journal.register([job], "recipe")
    assert path.with_name("films.journal.bad").read_bytes() == b"garbled" * 100


@pytest.mark.parametrize("link", [".vsfmanet", ".vsfmanet/journal.sqlite3"])
def test_no_link_leads_the_journal_out_of_the_folder(film: Path, tmp_path: Path, link: str) -> None:
    sources, out, elsewhere = tmp_path / "in", tmp_path / "out", tmp_path / "elsewhere"
    for folder in (sources, out, elsewhere):
        folder.mkdir()
    (sources / "film.mkv").write_bytes(film.read_bytes())
    (out / link).parent.mkdir(exist_ok=True)
    (out / link).symlink_to(elsewhere if link == ".vsfmanet" else elsewhere / "new")
    code, said = run("batch", light.FAST, "--reserve=0", sources, out)
    assert code == 2
    assert "a symbolic link could lead out of OUT_DIR" in said
    assert nothing_but(elsewhere)


def test_the_name_of_a_file_commands_no_terminal(film: Path, tmp_path: Path) -> None:
    sources = tmp_path / "in"
    sources.mkdir()
    (sources / "es\x1b[2Jcape\x9b31m\r.mkv").write_bytes(film.read_bytes())
    (sources / "te\x1b]0;xt\x07.mkv").write_text("no video")
    code, said = run("batch", light.FAST, "--reserve=0", sources, tmp_path / "out")
    assert code == 3
    assert "\\x1b[2Jcape" in said
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(said)
    code, said = run("restore", light.FAST, sources / "te\x1b]0;xt\x07.mkv", tmp_path / "made.mkv")
    assert code == 3
    assert "\x1b" not in said


def test_a_folder_that_is_exchanged_for_a_link_during_a_job_leads_nowhere(film: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    job = start(film, out / "made.mkv", pause=1.0)
    wait_for_encoder(job)
    out.rename(tmp_path / "moved")
    out.symlink_to(elsewhere)
    job.communicate(timeout=60)
    assert job.returncode in (5, 7)
    assert nothing_but(elsewhere)
    assert not (tmp_path / "moved" / "made.mkv").exists()


def test_a_job_needs_neither_its_working_folder_nor_many_files_nor_a_known_encoding(film: Path, tmp_path: Path) -> None:
    gone, made = tmp_path / "gone", tmp_path / os.fsdecode(b"um\xc3\xa4\xff.mkv")
    gone.mkdir()

    def hostile() -> None:
        gone.rmdir()
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    poor = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TMPDIR": "/nowhere"}
    code, said = run("restore", light.FAST, film, made, before=hostile, folder=gone, **poor)
    assert code == 0, said
    assert check_against_record(made).frames == 25


@pytest.mark.parametrize("seconds", [-(2**31), -1, 4102444800], ids=["1901", "1969", "2100"])
def test_a_source_of_any_time_is_done_once(film: Path, tmp_path: Path, seconds: int) -> None:
    source, made = tmp_path / "film.mkv", tmp_path / "made.mkv"
    source.write_bytes(film.read_bytes())
    os.utime(source, (seconds, seconds))
    assert run("restore", light.FAST, source, made)[0] == 0
    code, said = run("restore", light.FAST, source, made)
    assert code == 0
    assert "already done" in said
    assert json.loads(record_path(made).read_text())["fingerprint"]["mtime_ns"] == source.stat().st_mtime_ns


def test_a_clock_that_is_set_back_between_the_runs_changes_nothing(film: Path, tmp_path: Path) -> None:
    """The output and its record are then of the future."""
    made, later = tmp_path / "made.mkv", time.time() + 10**8
    assert run("restore", light.FAST, film, made)[0] == 0
    for path in (made, record_path(made)):
        os.utime(path, (later, later))
    assert "already done" in run("restore", light.FAST, film, made)[1]
    assert run("restore", light.FAST, "--overwrite", "--exposure=0.5", film, made)[0] == 0
    assert check_against_record(made.with_name("made.old1.mkv")).frames == 25
