"""Power is lost, or a call fails, anywhere in publishing: what has its name is whole, and what is whole is found."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch_stub import stub_recipe
from tests.disk import Disk
from vsfmanet.atomic import write_whole
from vsfmanet.errors import VsfmanetError
from vsfmanet.jobs.files import RECORD_SUFFIX, record_path, settle, sweep
from vsfmanet.jobs.journal import open_journal
from vsfmanet.jobs.record import Fingerprint, Record, find_done, write_record
from vsfmanet.jobs.scratch import Scratch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed there")

OLD, NEW = b"of other settings" * 9, b"the output of this job" * 9


def record_of(content: bytes, key: str) -> Record:
    return Record(
        key=key,
        attempt=1,
        source="/film.mkv",
        fingerprint=Fingerprint(size=1, mtime_ns=1, sha256=""),
        recipe=stub_recipe(""),
        versions={},
        frames=1,
        width=4,
        height=4,
        output_size=len(content),
        output_sha256=hashlib.sha256(content).hexdigest(),
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def put_older(out: Path) -> None:
    """An output of another job, with its record."""
    (out / "made.mkv").write_bytes(OLD)
    write_record(record_of(OLD, "old"), record_path(out / "made.mkv"))


def publish(out: Path, *, overwrite: bool) -> None:
    """Make an output, as a job does."""
    work, target = Scratch(), out / "made.mkv"
    try:
        part = work.make_part(target)
        part.write_bytes(NEW)
        work.publish(part, target, record_of(NEW, "new"), overwrite=overwrite)
    finally:
        work.discard()


def check(out: Path, *, overwrite: bool, done: bool) -> None:
    """What has its name is whole, what is whole is found, and nothing that was there is lost."""
    target = out / "made.mkv"
    content = target.read_bytes() if target.exists() else None
    assert content in ((OLD, NEW, None) if overwrite else (NEW, None))
    if done:
        assert record_path(target).exists()
    found = find_done(target, lambda: "new")
    assert (found is not None) == (content == NEW)
    if done:
        assert content == NEW
    if overwrite:
        assert OLD in [path.read_bytes() for path in out.glob("made*.mkv")]
    sweep(target)
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.suffix == ".mkv"]


def lay_out(folder: Path, left: dict[str, bytes]) -> Path:
    """A folder with what is left; two names of equal content are links to one file, as they were."""
    folder.mkdir()
    first = dict[bytes, Path]()
    for name, content in left.items():
        path = folder / name
        if content and content in first:
            path.hardlink_to(first[content])
        else:
            path.write_bytes(content)
        first.setdefault(content, path)
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_case_49_after_a_loss_of_power_what_is_published_is_whole_and_what_is_whole_is_found(
    tmp_path: Path, out: Path, overwrite: bool
) -> None:
    if overwrite:
        put_older(out)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(out, patch)
        publish(out, overwrite=overwrite)
    number = itertools.count()
    for moment in disk.moments:
        for left in moment.remains():
            folder = lay_out(tmp_path / f"after {next(number)}", left)
            check(folder, overwrite=overwrite, done=moment is disk.moments[-1])
    assert next(number) > 20
    disk.close()


def test_an_older_output_whose_job_ends_anywhere_has_its_name_again_or_gives_way_to_the_new_one(
    tmp_path: Path, out: Path
) -> None:
    """At each moment power may be lost or the job be killed; then the next run does the job again."""
    put_older(out)
    older = record_path(out / "made.mkv").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(out, patch)
        publish(out, overwrite=True)
    number, empty = itertools.count(), 0
    for moment in disk.moments:
        for left in moment.remains():
            folder = lay_out(tmp_path / f"after {next(number)}", left)
            target = folder / "made.mkv"
            empty += not target.exists()
            settle(target)
            assert target.read_bytes() in (OLD, NEW)
            if target.read_bytes() == OLD:  # as it was before
                assert not list(folder.glob("*.old*"))
                assert record_path(target).read_bytes() == older
            if find_done(target, lambda: "new") is None:
                publish(folder, overwrite=True)
            sweep(target)
            there = {path.name: path.read_bytes() for path in folder.iterdir()}
            assert sorted(there) == [
                f"made{old}.mkv{record}" for old in ("", ".old1") for record in ("", RECORD_SUFFIX)
            ]
            assert (there["made.mkv"], there["made.old1.mkv"]) == (NEW, OLD)
            assert there[f"made.old1.mkv{RECORD_SUFFIX}"] == older
    assert empty > 2
    disk.close()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EPERM"])
def test_case_52_a_call_that_fails_anywhere_loses_nothing(tmp_path: Path, overwrite: bool, error: str) -> None:
    for number in itertools.count():
        out = tmp_path / f"out {number}"
        out.mkdir()
        if overwrite:
            put_older(out)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(out, patch, fail=(number, getattr(errno, error)))
            try:
                publish(out, overwrite=overwrite)
                done = True
            except (OSError, VsfmanetError):
                done = False
        disk.close()
        if overwrite and not done:  # the name is never left empty
            assert (out / "made.mkv").exists()
        check(out, overwrite=overwrite, done=done)
        if len(disk.calls) <= number:
            break
    assert number > 8


def test_case_49_a_range_has_its_name_only_if_it_is_whole(tmp_path: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(out, patch)
        work = Scratch()
        unfinished = work.make_unfinished(out, ".mkv")
        unfinished.write_bytes(NEW)
        work.finish(unfinished, out / "000000000-000000013.mkv")
    for moment in disk.moments:
        for left in moment.remains():
            assert left.get("000000000-000000013.mkv") in ((NEW,) if moment is disk.moments[-1] else (NEW, None))
    disk.close()


@pytest.mark.parametrize("write", [write_whole, lambda path, text: write_record(record_of(NEW, text), path)])
def test_case_49_a_file_that_is_replaced_has_the_old_content_or_the_new_one(
    out: Path, write: Callable[[Path, str], None]
) -> None:
    path = out / "file.json"
    write(path, "old")
    old = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(out, patch)
        write(path, "new")
    new = path.read_bytes()
    for moment in disk.moments:
        for left in moment.remains():
            assert left["file.json"] in ((new,) if moment is disk.moments[-1] else (old, new))
    disk.close()


def test_case_49_the_journal_is_flushed_with_every_change(out: Path) -> None:
    with open_journal(out / "journal") as journal:
        settings = [
            journal._connection.execute(f"PRAGMA {name}").fetchone() for name in ("synchronous", "journal_mode")
        ]
        assert settings == [(2,), ("wal",)]  # FULL
    assert os.listdir(out)
