"""Batches of stand-in jobs: what is done exactly once, whatever is killed, damaged, full or in the way."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest
import vapoursynth as vs

from tests import light
from tests.batch_stub import content, stand_in, stub_recipe
from tests.films import H264, Terminal, ffmpeg, picture, shown_lines, sound
from tests.light import is_alive, wait_until_gone
from vsfmanet import __version__
from vsfmanet.cli import main
from vsfmanet.jobs import batch, journal, page, progress, supervise
from vsfmanet.jobs.files import move_aside, part_path, record_path
from vsfmanet.jobs.job import BatchOptions, RestoreJob, recipe
from vsfmanet.jobs.journal import open_journal
from vsfmanet.jobs.paths import Pairing, Selection, survey
from vsfmanet.jobs.record import check_against_record, read_record
from vsfmanet.jobs.supervise import family
from vsfmanet.media import clip as clips
from vsfmanet.media.pictures import split_jpegs
from vsfmanet.settings import RestoreSettings

STUB = Path(__file__).with_name("batch_stub.py")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="a child dies with its batch only on Linux")


SUPERVISE, MEASURE = supervise.supervise, batch.measure_speed


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor encoders, nor processes for the jobs."""
    monkeypatch.setattr(supervise, "supervise", stand_in)
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(STUB)))
    monkeypatch.setattr(batch, "recipe", lambda job: stub_recipe(job.encoder_args))
    monkeypatch.setattr(batch, "model_scale", lambda model: 4)
    monkeypatch.setattr(batch, "measure_speed", lambda settings, size, source: (size[0] * size[1] / 0.5, size))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job in a process of its own."""
    monkeypatch.setattr(supervise, "supervise", SUPERVISE)


def put(folder: Path, *words: str) -> list[Path]:
    """Make sources that do what they say."""
    paths = [folder / f"{n} {word}.mkv" for n, word in enumerate(words, start=1)]
    for path, word in zip(paths, words, strict=True):
        path.write_text(f"{word} {path.stem}")
    return paths


def run(sources: Path, made: Path, *options: str) -> int:
    return main(["batch", "--reserve=0", *options, str(sources), str(made)])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def outputs(made: Path) -> list[str]:
    """Every file in the folder of outputs but the journal, the report and the records."""
    names = (path.relative_to(made) for path in made.rglob("*") if path.is_file())
    kept = (name for name in names if name.parts[0] != batch.FOLDER and name.name != batch.REPORT)
    return sorted(str(name) for name in kept if not name.name.endswith(".vsfmanet.json"))


def attempts(made: Path) -> dict[str, int]:
    """The number of the last attempt at each source, from the journal."""
    with closing(sqlite3.connect(made / batch.FOLDER / "journal.sqlite3")) as connection:
        return {os.fsdecode(path): n for path, n in connection.execute("SELECT source, attempts FROM jobs")}


# What becomes of the jobs


@pytest.mark.usefixtures("processes")
def test_one_bad_file_does_not_stop_the_others(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = put(sources, "refused", "damaged", "bug", "ok", "flood")
    (sources / "deeper").mkdir()
    put(sources / "deeper", "ok")
    assert run(sources, made) == 1
    report = made / batch.REPORT
    assert last_line(capsys) == f"done 3, refused 1, damaged 1, failed 1, left 0; report: {report}"
    assert outputs(made) == ["4 ok.mkv", "5 flood.mkv", "deeper/1 ok.mkv"]
    assert (made / "4 ok.mkv").read_text() == content(paths[3])
    html = report.read_text()
    assert "1 refused.mkv: refused; mend it" in html
    assert html.index("3 bug.mkv") < html.index("2 damaged.mkv") < html.index("4 ok.mkv")  # what needs a look is first


def test_case_34_sources_of_one_name_are_all_restored_and_what_cannot_be_is_refused_alone(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("film.mkv", "film.mp4", "other.mkv"):
        (sources / name).write_text(f"ok {name}")
    assert run(sources, made) == 0
    assert outputs(made) == ["film.mkv", "film.mp4.mkv", "other.mkv"]
    (sources / "film.avi").write_text("ok that comes first, but later than the one that has the name")
    assert run(sources, made) == 0
    assert outputs(made) == ["film.avi.mkv", "film.mkv", "film.mp4.mkv", "other.mkv"]
    assert (made / "film.mkv").read_text() == content(sources / "film.mkv")
    (sources / "film.mp4.mkv").write_text("ok in the way")
    capsys.readouterr()
    assert run(sources, made) == 3
    assert last_line(capsys).startswith("done 4, refused 1, damaged 0, failed 0, left 0")
    assert "rename one of them" in (made / batch.REPORT).read_text()
    assert outputs(made) == ["film.avi.mkv", "film.mkv", "film.mp4.mkv", "other.mkv"]


@pytest.mark.parametrize(
    ("words", "code"),
    [(["ok"], 0), (["refused", "ok"], 3), (["damaged"], 3), (["refused", "wrong"], 6), (["wrong", "bug"], 1)],
)
def test_the_exit_code_is_the_first_that_applies(sources: Path, made: Path, words: list[str], code: int) -> None:
    put(sources, *words)
    assert run(sources, made) == code


@pytest.mark.usefixtures("processes")
def test_a_job_that_kills_its_process_is_quarantined_after_three_attempts(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crash, vanish, good = put(sources, "crash", "vanish", "ok")
    assert run(sources, made) == 6
    assert last_line(capsys).startswith("done 1, refused 0, damaged 0, failed 2, left 0")
    assert attempts(made) == {str(crash): 3, str(vanish): 3, str(good): 1}
    assert outputs(made) == ["3 ok.mkv"]
    assert run(sources, made) == 6  # not again, unless asked
    assert attempts(made)[str(crash)] == 3
    assert run(sources, made, "--retry") == 6
    assert attempts(made)[str(crash)] == 6


@pytest.mark.usefixtures("processes")
def test_a_job_without_progress_is_stopped(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(sources, "hang", "ok")
    assert run(sources, made, "--stall-limit=1") == 6
    said = capsys.readouterr().err
    assert "no progress for 3 s" in said  # three times the limit, as long as it prepares
    assert "done 1, refused 0, damaged 0, failed 1, left 0" in said
    assert outputs(made) == ["2 ok.mkv"]


@pytest.mark.parametrize(("word", "code"), [("disk", 5), ("device", 4)])
def test_a_fault_of_the_machine_stops_the_batch_which_then_goes_on(
    sources: Path, made: Path, word: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok", word, "ok")
    assert run(sources, made) == code
    assert last_line(capsys).startswith("done 1, refused 0, damaged 0, failed 1, left 1")
    put(sources, "ok", "ok")  # the fault is mended: the second source is another file now
    (sources / f"2 {word}.mkv").unlink()
    assert run(sources, made) == 0


def test_a_job_that_stopped_the_batch_comes_last_the_next_time(sources: Path, made: Path) -> None:
    put(sources, "disk", "ok", "ok")
    assert run(sources, made) == 5
    assert outputs(made) == []
    assert run(sources, made) == 5
    assert outputs(made) == ["2 ok.mkv", "3 ok.mkv"]


def test_too_little_room_on_the_disk_pauses_the_batch(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok")
    assert run(sources, made, "--reserve=1000000") == 5
    assert last_line(capsys).startswith("done 0, refused 0, damaged 0, failed 0, left 1")
    assert run(sources, made) == 0


@pytest.mark.usefixtures("processes")
def test_the_warnings_of_a_job_reach_the_user_the_report_and_the_journal(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [source] = put(sources, "warn <b>")
    assert run(sources, made) == 0
    assert f"warning: {source}: look at this" in capsys.readouterr().err
    assert "warning: look at this" in (made / batch.REPORT).read_text()
    with closing(sqlite3.connect(made / batch.FOLDER / "journal.sqlite3")) as connection:
        assert connection.execute("SELECT warnings FROM jobs").fetchall() == [('["look at this"]',)]


def test_many_jobs_with_bad_ones_among_them_are_reported_exactly(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [("refused" if n % 10 == 3 else "ok") for n in range(20)]
    put(sources, *words)
    assert run(sources, made) == 3
    assert last_line(capsys).startswith("done 18, refused 2, damaged 0, failed 0, left 0")
    assert len(outputs(made)) == 18


def test_thousands_of_files_are_found_and_resumed_in_seconds(sources: Path, made: Path, tmp_path: Path) -> None:
    for n in range(2000):
        (sources / f"{n}.mkv").touch()
    started = time.monotonic()
    jobs = survey(sources, made, Selection()).jobs
    with open_journal(tmp_path / "journal") as opened:
        rows = opened.register(jobs, "recipe")
    assert [row.job.source.stem for row in rows] == [str(n) for n in range(2000)]
    with open_journal(tmp_path / "journal") as opened:
        assert [row.id for row in opened.register(jobs, "recipe")] == [row.id for row in rows]
    assert time.monotonic() - started < 10


# Again


def test_the_same_command_again_does_nothing(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(sources, "ok", "ok")
    assert run(sources, made) == 0
    before = {path: path.stat().st_mtime_ns for path in made.glob("*.mkv")}
    capsys.readouterr()
    assert run(sources, made, "--resume") == 0
    assert "0 of 2 jobs to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in made.glob("*.mkv")} == before


def test_resume_refuses_to_begin(sources: Path, made: Path) -> None:
    put(sources, "ok")
    assert run(sources, made, "--resume") == 2
    assert not made.exists()


def test_other_settings_and_changed_sources_are_other_jobs_and_the_old_outputs_stay(sources: Path, made: Path) -> None:
    first, _ = put(sources, "ok", "ok")
    assert run(sources, made) == 0
    old = (made / "1 ok.mkv").read_text()
    assert run(sources, made, "--encoder-args=-crf 20") == 0
    assert outputs(made) == ["1 ok.mkv", "1 ok.old1.mkv", "2 ok.mkv", "2 ok.old1.mkv"]
    first.write_text("ok and longer")
    assert run(sources, made, "--encoder-args=-crf 20") == 0
    assert outputs(made) == ["1 ok.mkv", "1 ok.old1.mkv", "1 ok.old2.mkv", "2 ok.mkv", "2 ok.old1.mkv"]
    assert (made / "1 ok.old1.mkv").read_text() == old
    assert (made / "1 ok.mkv").read_text() == "restored ok and longer"
    for name in outputs(made):
        assert check_against_record(made / name).frames == 1


def test_an_older_output_to_which_a_killed_batch_had_given_another_name_has_its_own_again(
    sources: Path, made: Path
) -> None:
    put(sources, "ok")
    assert run(sources, made) == 0
    target = made / "1 ok.mkv"
    part = part_path(target, 1)
    part.touch()
    move_aside(target, target, "old", part=part)
    assert run(sources, made) == 0
    assert outputs(made) == ["1 ok.mkv"]
    assert attempts(made) == {str(sources / "1 ok.mkv"): 1}  # it is that of this job


def test_outputs_that_are_gone_or_damaged_are_found_and_only_those_made_again(sources: Path, made: Path) -> None:
    gone, flipped, whole = put(sources, "ok", "ok", "ok")
    assert run(sources, made) == 0
    (made / gone.name).unlink()
    (made / flipped.name).write_text(content(flipped).replace("restored", "restoreD"))
    assert run(sources, made, "--recheck") == 0
    assert attempts(made) == {str(gone): 2, str(flipped): 2, str(whole): 1}
    for source in (gone, flipped, whole):
        assert (made / source.name).read_text() == content(source)


# In the way


def test_a_file_that_is_not_ours_is_never_replaced(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok", "ok")
    made.mkdir()
    (made / "2 ok.mkv").write_text("precious")
    assert run(sources, made) == 2
    assert "without a record" in capsys.readouterr().err
    assert outputs(made) == ["2 ok.mkv"]  # nothing was begun
    assert (made / "2 ok.mkv").read_text() == "precious"


def test_folders_beside_the_journal_are_left_alone_and_nothing_is_shared(
    sources: Path, made: Path, tmp_path: Path
) -> None:
    put(sources, "ok")
    for name in ("films.tmp", "journal.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    for name in ("films.sqlite", "journal.1", "journal.2"):
        assert run(sources, made, f"--journal={tmp_path / name}") == 0
    assert [(tmp_path / name / "precious").exists() for name in ("films.tmp", "journal.tmp")] == [True, True]


def test_a_second_runner_ends_at_once(sources: Path, made: Path) -> None:
    put(sources, "ok")
    with open_journal(made / batch.FOLDER / "journal.sqlite3"):
        started = time.monotonic()
        assert run(sources, made) == 7
        assert time.monotonic() - started < 2
    assert outputs(made) == []


def test_a_journal_on_a_network_file_system_is_refused(
    sources: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok")
    monkeypatch.setattr(journal, "file_system", lambda folder: "nfs4")
    assert run(sources, made) == 2
    assert "local disk, got nfs4" in capsys.readouterr().err


BROKEN: dict[str, str | Callable[[bytes], bytes]] = {
    "garbage": lambda data: b"garbage" * 1000,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "half written": lambda data: data[:100] + bytes(len(data) - 100),
    "not as its index": lambda data: data.replace(b"3 ok.mkv", b"4 ok.mkv", 1),  # SQLite's quick check takes it
    "unknown state": "UPDATE jobs SET state = 'dome' WHERE id = 3",
    "text for a number": "UPDATE jobs SET frames = 'many' WHERE id = 3",
    "nested deeply": f"UPDATE jobs SET warnings = '{'[' * 100_000}'",
    "not text": "UPDATE jobs SET cause = CAST(x'89' AS TEXT)",
    "a name that is not text": lambda data: data.replace(b"autoindex_jobs_1", b"autoindex\x89jobs_1"),
    "another table": "ALTER TABLE jobs RENAME TO films",
}
"""How a journal is broken: its bytes, or its rows by a statement."""


@pytest.mark.parametrize("way", BROKEN)
def test_a_corrupt_journal_is_kept_and_made_again_from_the_records(sources: Path, made: Path, way: str) -> None:
    put(sources, "ok", "ok", "ok")
    assert run(sources, made) == 0
    (made / "2 ok.mkv").write_text("not what was verified")  # unknown never becomes done
    path, change = made / batch.FOLDER / "journal.sqlite3", BROKEN[way]
    if isinstance(change, str):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change)
            connection.commit()
    else:
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert path.read_bytes() != before
    broken = path.read_bytes()
    assert run(sources, made) == 0
    assert path.with_name("journal.sqlite3.bad").read_bytes() == broken
    assert attempts(made) == {str(sources / "1 ok.mkv"): 0, str(sources / "2 ok.mkv"): 1, str(sources / "3 ok.mkv"): 0}
    assert outputs(made) == ["1 ok.mkv", "2 ok.mkv", "2 ok.old1.mkv", "3 ok.mkv"]


def test_a_newer_journal_is_left_in_place(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(sources, "ok")
    path = made / batch.FOLDER / "journal.sqlite3"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE later (x)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert run(sources, made) == 2
    assert "got 99; update vsfmanet" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(("version", "without"), [(1, ("picture", "warnings")), (2, ("warnings",))])
def test_an_older_journal_is_brought_up_to_date(
    sources: Path, made: Path, version: int, without: tuple[str, ...]
) -> None:
    put(sources, "ok", "ok")
    assert run(sources, made, "--include=1*") == 0
    path = made / batch.FOLDER / "journal.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        for column in without:
            connection.execute(f"ALTER TABLE jobs DROP COLUMN {column}")
        connection.execute(f"PRAGMA user_version = {version}")
    assert run(sources, made) == 0
    assert attempts(made) == {str(sources / "1 ok.mkv"): 1, str(sources / "2 ok.mkv"): 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (journal.VERSION,)
    assert not path.with_name("journal.sqlite3.bad").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], stderr=subprocess.DEVNULL, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_of_the_journal_pauses_the_batch_and_nothing_is_lost(
    sources: Path, made: Path, small_disk: Path
) -> None:
    put(sources, *["ok"] * 5)
    path = small_disk / "journal"
    assert run(sources, made, f"--journal={path}", "--include=1*") == 0
    filler = small_disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    path.with_name("journal-wal").unlink(missing_ok=True)
    assert run(sources, made, f"--journal={path}") == 5
    filler.unlink()
    assert run(sources, made, f"--journal={path}") == 0
    assert len(outputs(made)) == 5


def test_a_picture_shows_one_moment_before_and_after(tmp_path: Path) -> None:
    film, made = tmp_path / "film.mp4", tmp_path / "made.mkv"
    fading = ["-vf", "fade=out:d=1.5:st=0.2", *H264]  # so that other moments have another brightness
    ffmpeg(*picture(2, size="128x96"), *sound(3), *fading, "-c:a", "aac", "-output_ts_offset", "1.5", film)
    ffmpeg("-i", film, "-c", "copy", made)  # Matroska says how long all of it is, MP4 how long each track is
    shown = []
    for data in split_jpegs(page.before_and_after(film, made)):
        with av.open(io.BytesIO(data), "r") as container:
            shown.append(next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int))
    before, after = shown
    assert before.std() > 10
    assert abs(before.mean() - after.mean()) < 0.5


# Several runners


def test_shards_run_at_once_in_one_folder_and_a_last_run_finds_what_they_have_done(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, *["ok"] * 5, "refused")
    jobs = [start(sources, made, f"--shard={n}/2", pause=0.05, inside=True) for n in (1, 2)]
    said = [job.communicate(timeout=60)[1].decode() for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 3]
    assert len(outputs(made)) == 5 + len(jobs)  # their reports
    done = [int(found[1]) for text in said if (found := re.search(r"^done (\d+), ", text, re.MULTILINE))]
    assert sum(done) == 5
    assert 5 not in done
    for n in (1, 2):
        assert f"{made}/vsfmanet-report-{n}-of-2.html" in said[n - 1]
    assert run(sources, made) == 3
    assert "done 5, refused 1" in last_line(capsys)
    assert list(attempts(made).values()).count(0) == 5


def test_a_shard_without_files_has_nothing_to_do_and_is_done(sources: Path, made: Path) -> None:
    put(sources, "ok")
    assert [run(sources, made, f"--shard={n}/40") for n in range(1, 41)] == [0] * 40
    assert "1 ok.mkv" in outputs(made)
    assert run(sources, made, "--shard=0/2") == 2


def test_two_runners_with_journals_of_their_own_make_each_output_once(
    sources: Path, made: Path, tmp_path: Path
) -> None:
    put(sources, *["ok"] * 6)
    jobs = [start(sources, made, f"--journal={tmp_path / name}", pause=0.05, inside=True) for name in ("one", "other")]
    for job in jobs:
        job.communicate(timeout=60)
    assert {job.returncode for job in jobs} <= {0, 7}
    assert run(sources, made) == 0
    assert outputs(made) == sorted(f"{n} ok.mkv" for n in range(1, 7))  # and none made twice, as .old1 or .new1


# Kills and signals


def start(sources: Path, made: Path, *options: str, pause: float = 0, inside: bool = False) -> subprocess.Popen[bytes]:
    """A batch in a process of its own, with its jobs inside it or in others."""
    return subprocess.Popen(
        [sys.executable, STUB, "batch", "--reserve=0", *options, sources, made],
        env=os.environ
        | {"STUB_PAUSE": str(pause), "PYTHONPATH": str(STUB.parents[1])}
        | ({"STUB_INSIDE": "1"} if inside else {}),
        stderr=subprocess.PIPE,
    )


def wait_for_child(job: subprocess.Popen[bytes]) -> psutil.Process:
    """Wait until a batch runs a job."""
    deadline = time.monotonic() + 60
    while not (found := family(job.pid)):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.01)
    return found[0]


@on_linux
def test_after_any_kills_the_same_command_makes_everything_once(sources: Path, made: Path) -> None:
    paths = put(sources, *["ok"] * 12)
    chance = random.Random(5)
    kills: Counter[str] = Counter()
    while kills.total() < 10:
        job = start(sources, made, pause=0.03)
        try:
            child = wait_for_child(job)
        except AssertionError:  # it has done everything before a kill
            assert job.wait() == 0
            break
        time.sleep(chance.uniform(0, 0.5))
        for _ in range(chance.choice([0, 2])):  # first some of its jobs, then the batch
            for each in family(job.pid):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
                    kills["job"] += 1
            time.sleep(chance.uniform(0, 0.2))
        orphans = family(job.pid)
        job.kill()
        job.communicate()
        kills["batch"] += 1
        wait_until_gone(child, *orphans)
        for path in made.glob("[!.]*.mkv"):
            assert path.read_text() == content(sources / path.name)  # a final name is a proof
    assert run(sources, made, "--retry") == 0
    assert outputs(made) == sorted(path.name for path in paths)  # nothing partial, lost or twice
    for path in paths:
        assert check_against_record(made / path.name).frames == 1
        assert (made / path.name).read_text() == content(path)


@on_linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_batch_and_its_job(sources: Path, made: Path, number: int, code: int) -> None:
    put(sources, "ok", "hang")
    job = start(sources, made)
    deadline = time.monotonic() + 60
    while not list(made.glob(".2 hang.*.part.mkv")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    [child] = family(job.pid)
    started = time.monotonic()
    job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert job.returncode == code
    assert re.search(rb"^done 1, refused 0, damaged 0, failed 0, left 1; report: ", said, re.MULTILINE)
    assert not is_alive(child)
    (sources / "2 hang.mkv").write_text("ok now")
    assert run(sources, made) == 0


# Real jobs


@pytest.fixture
def real_jobs(monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    """Jobs that restore, with a plain enlargement in place of the network, and a film of a second."""
    monkeypatch.setattr(supervise, "supervise", SUPERVISE)
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(light.FILE)))
    monkeypatch.setenv("LIGHT_SCALE", "4")
    monkeypatch.setattr(batch, "recipe", recipe)
    for module in ("job", "runner"):
        monkeypatch.setattr(f"vsfmanet.jobs.{module}.weights_sha256", lambda model: "none")
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1",
            "-c:v", "libx264", "-preset", "ultrafast", sources / "film.mkv",
        ],
        check=True,
    )  # fmt: skip


@pytest.mark.usefixtures("real_jobs")
def test_real_files_are_restored_and_bad_ones_named(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (sources / "film.mkv").read_bytes()
    (sources / "half.mkv").write_bytes(data[: len(data) // 2])
    (sources / "text.mkv").write_text("not a video")
    assert run(sources, made, "--encoder-args=-preset ultrafast") == 3
    said = capsys.readouterr().err
    assert "done 1, refused 1, damaged 1, failed 0, left 0" in said.splitlines()[-1]
    assert outputs(made) == ["film.mkv"]
    html = (made / batch.REPORT).read_text()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)" width="256" height="180"', html)
    assert [alt for _, alt in pictures] == ["film.mkv, the source enlarged", "film.mkv, restored"]
    for data, _ in pictures:
        with av.open(io.BytesIO(base64.b64decode(data)), "r") as container:
            frame = next(container.decode(video=0))
            assert (frame.width, frame.height) == (256, 180)  # the output has 256x192
    assert '<a href="film.mkv">film.mkv</a>' in html  # the page can move with its folder
    assert "<dt>--encoder-args</dt><dd><code>-preset ultrafast</code></dd>" in html
    assert f"vsfmanet {__version__}; report of {datetime.now():%Y-%m-%d}" in html
    assert check_against_record(made / "film.mkv").frames == 25
    assert main(["verify", str(made / "film.mkv"), "--source", str(sources / "film.mkv")]) == 0
    assert os.listdir(made / batch.FOLDER) == ["journal.sqlite3", "journal.sqlite3.lock"]


@pytest.mark.usefixtures("real_jobs")
def test_exposures_beside_a_source_are_part_of_its_job(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def restore() -> str:
        assert run(sources, made, "--encoder-args=-preset ultrafast", "--range-frames=10") == 0
        return capsys.readouterr().err

    assert "1 of 1 jobs to do" in restore()
    sidecar = sources / "film.exposure.csv"
    sidecar.write_text("frame,exposure\n" + "".join(f"{n},0.5\n" for n in range(25)))
    assert "1 of 1 jobs to do" in restore()
    assert "0 of 1 jobs to do" in restore()
    assert outputs(made) == ["film.mkv", "film.old1.mkv"]
    sidecar.write_text("frame,exposure\n" + "".join(f"{n},0.4\n" for n in range(25)))
    os.utime(sidecar, ns=(1, 1))  # an older time does not hide it where every byte is compared
    assert run(sources, made, "--encoder-args=-preset ultrafast", "--range-frames=10", "--recheck") == 0
    assert len(outputs(made)) == 3


@pytest.mark.usefixtures("real_jobs")
def test_progress_of_the_whole_batch_is_told_as_json(
    sources: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "JSON_INTERVAL", 0)
    (sources / "film 2.mkv").write_bytes((sources / "film.mkv").read_bytes())
    (sources / "text.mkv").write_text("not a video")
    assert run(sources, made, "--encoder-args=-preset ultrafast", "--progress=json") == 3
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [event for event in events if event["event"] == "progress"]
    assert {event["step"] for event in told} == {"batch"}
    assert {event["total"] for event in told} == {3}
    assert [event["done"] for event in told] == sorted(event["done"] for event in told)
    assert any(event.get("job_step") == "restoring" and event["job_total"] == 25 for event in told)
    assert any(event.get("seconds_left", 0) > 0 for event in told)
    assert [event["text"].partition(":")[0] for event in events if event["event"] == "note"][
        -1
    ] == "done 2, refused 1, damaged 0, failed 0, left 0; report"


@pytest.mark.usefixtures("real_jobs")
def test_a_job_that_the_disk_cannot_hold_is_not_begun(
    sources: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"--journal={tmp_path / 'journal'}", "--encoder-args=-c:v ffv1")
    assert run(sources, small_disk, *options) == 5
    said = capsys.readouterr().err
    assert "1.2 times what 25 frames are expected to take" in said
    assert "restoring" not in said
    assert outputs(small_disk) == []


@pytest.mark.usefixtures("real_jobs")
def test_a_full_disk_of_the_outputs_pauses_the_batch(
    sources: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        f"--journal={tmp_path / 'journal'}",
        "--encoder-args=-c:v png",
    )  # larger than expected
    assert run(sources, small_disk, *options) == 5
    assert outputs(small_disk) == []
    assert last_line(capsys).startswith("done 0, refused 0, damaged 0, failed 1, left 0")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert run(sources, small_disk, *options) == 0
    assert outputs(small_disk) == ["film.mkv"]


# The command line


def test_a_dry_run_makes_nothing_and_tells_frames_and_sizes(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok")
    (sources / "film.y4m").write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420\n" + b"FRAME\n".ljust(6 + 64 * 72, b"\x80") * 50)
    assert run(sources, made, "--dry-run") == 0
    said = capsys.readouterr().err
    assert "1 ok.mkv: cannot be opened" in said
    assert "50 frames of 64x48, 0:00:02" in said
    assert "2 files, about 50 frames; about 4.61e-05 GB" in said
    assert "about 0:00:25 on this device (measured: 0.5 s for a frame of 64x48" in said
    assert not made.exists()


def test_a_dry_run_reads_the_journal_and_sees_interlaced_films(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok", "refused")
    assert run(sources, made) == 3
    before = (made / batch.FOLDER / batch.JOURNAL).read_bytes()
    (sources / "3 new.mkv").write_text("new")
    ffmpeg(*picture(1), "-vf", "tinterlace=4", "-flags", "+ildct+ilme", "-c:v", "mpeg2video", sources / "woven.mkv")
    capsys.readouterr()
    assert run(sources, made, "--dry-run") == 0
    said = capsys.readouterr().err
    assert f"1 ok.mkv: done, {made / '1 ok.mkv'}" in said
    assert "2 refused.mkv: refused before, --retry tries it again: 2 refused.mkv: refused; mend it" in said
    assert f"3 new.mkv -> {made / '3 new.mkv'}" in said
    assert "interlaced, will be refused without --deinterlace" in said
    assert "2 files to do, 2 not, about 0 frames" in said
    assert (made / batch.FOLDER / batch.JOURNAL).read_bytes() == before
    assert run(sources, made, "--dry-run", "--retry", "--deinterlace") == 0
    assert "3 files to do, 1 not" in (said := capsys.readouterr().err)
    assert "interlaced" not in said


def test_files_that_are_passed_over_are_named(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(sources, "ok")
    for name in ("words.srt", "1 ok.exposure.csv", ".hidden.txt", "no.tmp", *(f"page {n}.txt" for n in range(8))):
        (sources / name).write_text("text")
    assert run(sources, made, "--exclude=*.tmp") == 0
    assert (
        "passed over, as no videos by their names (--include): page 0.txt, page 1.txt, page 2.txt, page 3.txt, "
        "page 4.txt, page 5.txt, page 6.txt, page 7.txt and 1 more"
    ) in capsys.readouterr().err


def test_a_file_of_exposures_is_not_for_a_batch(sources: Path, made: Path) -> None:
    put(sources, "ok")
    assert run(sources, made, "--exposure=film.csv") == 2


@pytest.mark.parametrize("name", ["film.mkv", "a name that is much too long for any terminal.mkv"])
def test_the_line_of_a_batch_fits_a_terminal_of_80_columns(
    sources: Path, made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    (sources / name).write_text("ok")
    job = Pairing(source=sources / name, target=made / "film.mkv", size=10**9, mtime_ns=0)
    template = RestoreJob(source=sources, target=made / "any.mkv")
    told = {"step": "restoring", "done": 123456, "total": 987654, "speed": 0.1, "seconds_left": 1e7}
    shown = []
    for event in ({"event": "phase", "name": "trying the encoder"}, {"event": "progress"} | told):
        screen = Terminal()
        report = progress.Report(screen)
        working = batch.Batch(BatchOptions(in_folder=sources, out_folder=made, template=template), report)
        with report.begin("batch", 1000):
            row = batch._refused(job, "", 1)
            working._hear(event, row=row, number=999, total=1000, started=time.monotonic(), waiting=10**12)
        lines = shown_lines(screen)
        assert max(map(len, lines)) <= 80
        shown.append(lines[-1])
    assert "trying the encoder" in shown[0]
    assert re.search(r"999/1000 .+: restoring 12 %, all in [\d:]+", shown[1])


def test_the_report_escapes_names(sources: Path, made: Path) -> None:
    (sources / "<b>&.mkv").write_text("ok")
    assert run(sources, made) == 0
    assert "&lt;b&gt;&amp;.mkv" in (made / batch.REPORT).read_text()


def test_records_are_beside_the_outputs(sources: Path, made: Path) -> None:
    put(sources, "ok")
    assert run(sources, made) == 0
    assert record_path(made / "1 ok.mkv") == made / "1 ok.mkv.vsfmanet.json"
    assert main(["verify", str(made / "1 ok.mkv")]) == 0


def test_doubtful_frames_stand_in_the_report_once(sources: Path, made: Path) -> None:
    [path] = put(sources, "ok")
    assert run(sources, made) == 0
    record_file = made / f"{path.stem}.mkv.vsfmanet.json"
    record = read_record(record_file)
    assert record is not None
    row = batch._refused(Pairing(source=path, target=made / path.name, size=1, mtime_ns=0), "", 1)
    for _ in range(2):  # a later run finds it done
        row = batch._done(row, replace(record, doubtful={"40": 0.9, "7": 0.5}), seconds=1.0)
    assert row.warnings == ("blurred again, these frames are far from their source; look at them first: 7, 40",)
    template = RestoreJob(source=sources, target=made / "any.mkv")
    options = BatchOptions(in_folder=sources, out_folder=made, template=template)
    page.write_page(made / "page.html", [row], options, now=datetime.now(UTC))
    assert (made / "page.html").read_text().count("look at them first: 7, 40") == 1


def test_the_speed_is_measured_with_frames_of_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "measure_speed", MEASURE)
    film = tmp_path / "film.mkv"
    ffmpeg(*picture(2, size="128x96"), "-vf", "noise=alls=30", "-pix_fmt", "yuv420p10le", "-c:v", "ffv1", film)
    (tmp_path / "none.mkv").write_text("no film")
    seen: list[tuple[int, int, float]] = []

    def restore_clip(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        seen.append((node.width, node.num_frames, float(np.asarray(node.get_frame(0)[0]).std())))
        return node

    monkeypatch.setattr(clips, "restore_clip", restore_clip)
    speed, size = batch.measure_speed(RestoreSettings(), (128, 96), film)
    assert speed > 0
    assert size == (128, 96)
    assert [(width, count) for width, count, _ in seen] == [(86, 12), (128, 12)]
    assert all(deviation > 20 for *_, deviation in seen)
    seen.clear()
    batch.measure_speed(RestoreSettings(), (128, 96), tmp_path / "none.mkv")
    assert all(deviation == 0 for *_, deviation in seen)


def test_scripts_are_taken_if_they_are_asked_for(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [path] = put(sources, "ok")
    (sources / "crop.vpy").write_text(
        "import vapoursynth as vs\nvs.core.std.BlankClip(width=64, height=48, length=30, fpsnum=10).set_output()\n"
    )
    (sources / "wrong.vpy").write_text("1 / 0\n")
    assert run(sources, made, "--dry-run") == 0
    assert "passed over, as no videos by their names (--include): crop.vpy, wrong.vpy" in capsys.readouterr().err
    assert run(sources, made, "--include=*.vpy", "--dry-run") == 0
    told = capsys.readouterr().err
    assert "crop.mkv: 30 frames of 64x48, 0:00:03" in told
    assert "cannot be used (" in told
    assert "line 1: ZeroDivisionError" in told
    assert f"passed over, as no videos by their names (--include): {path.name}" in told
