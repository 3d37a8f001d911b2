"""Temporary files and folders: created exclusively, never through a link, and nothing is deleted that is not ours."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.films import nothing_but
from vsfmanet import atomic
from vsfmanet.atomic import TEMPORARY, replacing, write_new, write_whole
from vsfmanet.cluster.joblist import read_list
from vsfmanet.errors import ConfigError
from vsfmanet.jobs import files
from vsfmanet.jobs.files import HELD, PREFIX, TemporaryFolder, locked, part_path, remove_work, sweep, work_path
from vsfmanet.jobs.record import read_record

KILLED = """
import os, sys
from pathlib import Path
from vsfmanet.atomic import replacing
from vsfmanet.jobs.files import TemporaryFolder
folder = TemporaryFolder()
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print(flush=True)
    sys.stdin.read() if sys.argv[2] == "live" else os.kill(os.getpid(), 9)
"""
"""Has a temporary folder and a file that is half written, and is then killed, or lives until its stdin is closed."""

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


def start(path: Path, fate: str) -> subprocess.Popen[bytes]:
    """A process that writes `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, path, fate],
        env=os.environ | {"TMPDIR": str(path.parent / "tmp"), "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"\n"
    return process


def test_a_file_has_all_of_its_new_content_or_does_not_change(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.write("text")  # type: ignore[call-overload]
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert nothing_but(tmp_path, "file.txt")


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"

    def write(number: int) -> None:
        for _ in range(60):
            write_whole(path, str(number))

    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(write, range(4)):
            pass
    assert path.read_text() in "0123"
    assert nothing_but(tmp_path, "file.txt")


@on_posix
def test_no_link_that_lies_in_wait_has_its_target_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, path = tmp_path / "precious", tmp_path / "vsfmanet-report.html"
    precious.write_text("precious")
    for name in ("vsfmanet-report.tmp", path.name):
        (tmp_path / name).symlink_to(precious)
    write_whole(path, "report")
    assert path.read_text() == "report"
    assert not path.is_symlink()
    (tmp_path / "new").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "new", "record")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)  # somebody who guesses the name
    (tmp_path / f".{path.name}.{atomic.identity(path)}.{'0' * 16}.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_whole(path, "other report")
    part_path(tmp_path / "film.mkv", 1).symlink_to(precious)
    with pytest.raises(FileExistsError):
        files.hold(part_path(tmp_path / "film.mkv", 1))
    (tmp_path / "journal.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "journal.lock"):
        pass
    assert precious.read_text() == "precious"


def test_the_next_writer_deletes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    path, folder = tmp_path / "file.txt", tmp_path / "tmp"
    folder.mkdir()
    others = [".file.txt.tmp", "file.tmp", f".other.{atomic.identity(tmp_path / 'other')}.{'0' * 16}.tmp"]
    for name in others:
        (tmp_path / name).touch()
    assert start(path, "die").wait(30) == -9
    living = start(path, "live")
    assert len([name for name in os.listdir(tmp_path) if TEMPORARY.match(name)]) == 2  # the living one's, and another
    write_whole(path, "text")
    assert len([name for name in os.listdir(tmp_path) if TEMPORARY.match(name)]) == 2
    living.communicate(timeout=30)
    assert living.returncode == 0
    assert path.read_text() == "half"
    assert nothing_but(tmp_path, *others, "file.txt", "tmp")


def test_the_temporary_folders_of_killed_processes_are_swept_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    (folder / f"{PREFIX}mine").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / HELD).touch()
    assert start(tmp_path / "file.txt", "die").wait(30) == -9
    living = start(tmp_path / "file.txt", "live")
    left = {path.name for path in folder.iterdir() if path.name.startswith(PREFIX)}
    assert len(left) == 3 - 1  # starting has swept that of the first
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    TemporaryFolder().close()
    assert left == {path.name for path in folder.iterdir() if path.name.startswith(PREFIX)}
    living.kill()
    living.communicate(timeout=30)
    TemporaryFolder().close()
    assert nothing_but(folder, f"{PREFIX}mine", "other")


def test_of_a_folder_of_ranges_only_our_files_are_deleted(tmp_path: Path) -> None:
    target = tmp_path / "film.mkv"
    work, link = work_path(target, "0" * 8, "0" * 8), work_path(target, "1" * 8, "1" * 8)
    elsewhere = tmp_path / "elsewhere"
    for folder in (work, elsewhere):
        folder.mkdir()
        for name in ("000000000-000000013.mkv", "colour.json", "0123456789abcdef.unfinished.mkv", "precious.mkv"):
            (folder / name).touch()
    link.symlink_to(elsewhere)
    remove_work(target)
    assert nothing_but(work, "precious.mkv")
    assert len(list(elsewhere.iterdir())) == 4
    (work / "precious.mkv").unlink()
    remove_work(target)
    assert not work.exists()


def test_a_part_file_that_cannot_be_deleted_is_told_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))

    target = tmp_path / "film.mkv"
    part_path(target, 1).touch()
    monkeypatch.setattr(Path, "unlink", refuse)
    assert sweep(target) == []
    assert "cannot be deleted (Operation not permitted); delete it yourself" in caplog.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_of_a_record_or_of_a_list_of_jobs_raise_anything_unforeseen(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "made.mkv.vsfmanet.json"
    names = ["format", "frames", "output_size", "fingerprint", "recipe", "warnings", "key", "jobs", "template"]
    table = data.draw(st.dictionaries(st.sampled_from(names), VALUES) | VALUES)
    text = json.dumps({"format": 1, **table} if isinstance(table, dict) else table).encode()
    path.write_bytes(data.draw(st.sampled_from([text, text[: len(text) // 2]]) | st.binary(max_size=50)))
    assert read_record(path) is None
    with pytest.raises(ConfigError, match="the list of jobs must be readable"):
        read_list(path)
