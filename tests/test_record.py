"""The record beside an output: what makes a job done, what makes it another, and what is never trusted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import vapoursynth as vs

from tests.films import FAST, H264, ffmpeg, lighten, picture, sound
from vsfmanet.cli import main
from vsfmanet.errors import BusyError
from vsfmanet.jobs import opening, scratch
from vsfmanet.jobs.files import move_new, part_path, pending_path, record_path, sweep
from vsfmanet.jobs.job import RestoreJob, recipe
from vsfmanet.jobs.record import EDGE, Fingerprint, Record, find_done, job_key, read_record, write_record
from vsfmanet.jobs.scratch import Scratch
from vsfmanet.media import clip as clips
from vsfmanet.settings import Resolved, RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten frames and sound."""
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    ffmpeg(*picture(0.4, size="32x32"), *sound(0.4), *H264, "-c:a", "aac", path)
    return path


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch, scale=4)


@pytest.fixture
def made(film: Path, tmp_path: Path) -> Path:
    """A finished output."""
    path = tmp_path / "made.mkv"
    assert main(["restore", FAST, str(film), str(path)]) == 0
    return path


def recorded(target: Path) -> Record:
    record = read_record(record_path(target))
    assert record is not None
    return record


# What a record says


def test_a_run_that_dies_between_the_name_and_the_record_is_completed(film: Path, made: Path) -> None:
    pending = pending_path(part_path(made, 1))
    record_path(made).rename(pending)
    written = made.stat().st_mtime_ns
    sweep(made)  # as whoever watched it die does
    assert pending.exists()
    assert main(["restore", FAST, str(film), str(made)]) == 0
    assert made.stat().st_mtime_ns == written
    assert sorted(os.listdir(made.parent)) == ["made.mkv", "made.mkv.vsfmanet.json"]


def test_a_record_that_cannot_be_put_beside_its_output_is_not_lost(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "made.mkv"
    with monkeypatch.context() as patch:  # a folder of that name stands for a disk that fails between two steps
        patch.setattr(opening, "check_unchanged", lambda _: record_path(target).mkdir())
        assert main(["restore", FAST, str(film), str(target)]) == 5
    record_path(target).rmdir()
    written = target.stat().st_mtime_ns
    assert main(["restore", FAST, str(film), str(target)]) == 0
    assert target.stat().st_mtime_ns == written
    assert sorted(os.listdir(tmp_path)) == ["made.mkv", "made.mkv.vsfmanet.json"]


def test_an_older_output_stays_where_its_record_cannot_be_renamed(
    film: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, target: Path) -> Path:
        if path == record_path(made):
            raise OSError(errno.EIO, "Input/output error")
        return replaced(path, target)

    before, replaced = made.read_bytes(), Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert main(["restore", f"{FAST} -crf 30", "--overwrite", str(film), str(made)]) == 5
    assert made.read_bytes() == before
    assert main(["verify", str(made)]) == 0
    assert sorted(os.listdir(made.parent)) == ["made.mkv", "made.mkv.vsfmanet.json"]


@pytest.mark.parametrize("older", [False, True])
def test_a_part_that_cannot_be_deleted_is_told_and_the_output_has_its_record(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], older: bool
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith(".part.mkv"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok)

    target, unlink = tmp_path / "made.mkv", Path.unlink
    if older:
        assert main(["restore", FAST, str(film), str(target)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert main(["restore", f"{FAST} -crf 30", "--overwrite", str(film), str(target)]) == 0
    assert "cannot be deleted (Operation not permitted)" in capsys.readouterr().err
    assert main(["verify", str(target)]) == 0
    sweep(target)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_record_that_is_nested_deeply_is_none(film: Path, made: Path) -> None:
    record_path(made).write_text("[" * 100_000)
    assert read_record(record_path(made)) is None
    assert main(["restore", FAST, str(film), str(made)]) == 2


def test_an_older_output_stays_where_the_new_one_cannot_take_its_name(
    film: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.read_bytes()

    def fill_up(path: Path, target: Path) -> None:
        if ".part" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        move_new(path, target)

    monkeypatch.setattr(scratch, "move_new", fill_up)
    assert main(["restore", f"{FAST} -crf 30", "--overwrite", str(film), str(made)]) == 5
    assert made.read_bytes() == before
    assert main(["verify", str(made)]) == 0
    assert sorted(os.listdir(made.parent)) == ["made.mkv", "made.mkv.vsfmanet.json"]


def test_a_record_says_what_an_output_was_made_of(film: Path, made: Path) -> None:
    record = recorded(made)
    assert (record.source, record.frames, record.width, record.height) == (str(film), 10, 128, 128)
    assert record.recipe.weights_sha256 == "weights of fmanetpp_x4_fast"
    assert record.output_size == made.stat().st_size
    assert record.verdict == "verified"
    assert {"vapoursynth", "torch", "ffmpeg", "python"} <= set(record.versions)
    assert sorted(os.listdir(made.parent)) == ["made.mkv", "made.mkv.vsfmanet.json"]


def test_a_fingerprint_sees_both_ends_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2 * EDGE + 1000)
    seen = {Fingerprint.of(path).sha256}
    for place in (0, 2 * EDGE + 999):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        seen.add(Fingerprint.of(path).sha256)
    assert len(seen) == 3


@pytest.mark.parametrize("size", [0, 1, EDGE - 1, EDGE, EDGE + 1])
def test_a_fingerprint_takes_small_files_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(size))
    before = Fingerprint.of(path)
    assert before.size == size
    path.write_bytes(bytes(size) + b"x")
    assert Fingerprint.of(path).sha256 != before.sha256


def test_what_changes_the_output_makes_another_job_and_nothing_else_does() -> None:
    job = RestoreJob(source=Path("in.mkv"), target=Path("out.mkv"))
    settings: dict[str, Any] = {
        "model": "other", "exposure": 0.5, "precision": "fp32", "sc_threshold": 0.1,
        "device": "cpu", "device_index": (1,), "segment": 3, "backend": "onnx", "tile": (64, 48),
        "skip": True, "output_format": 3, "source_path": Path("camera.mp4"), "height": 480, "width": 640, "scale": 2.0,
        "strength": 0.5, "grain": 0.5, "shutter": 0.5, "self_check": True, "provider": "cpu",
    }  # fmt: skip
    own: dict[str, Any] = {
        "start": 1, "end": 9, "encoder_args": "-crf 1", "audio": False, "subtitles": False, "attachments": False,
        "on_damage": "salvage", "target": Path("elsewhere.mkv"), "source": Path("moved.mkv"), "overwrite": True,
        "deinterlace": True, "range_frames": 7, "reserve": 1.0, "ffmpeg": Path("ffmpeg"),
        "preset": "av1", "bit_depth": 12, "audio_from": Path("film.mkv"),
    }  # fmt: skip
    pictures: dict[str, Any] = {"fps": "30", "start_number": 5}
    assert settings.keys() == {each.name for each in fields(RestoreSettings)}
    assert own.keys() | pictures.keys() | {"settings"} == {each.name for each in fields(RestoreJob)}
    of_pictures = RestoreJob(source=Path("in/%d.png"), target=Path("out/%d.png"))
    digests = {recipe(replace(of_pictures, **{name: value})).digest() for name, value in pictures.items()}
    assert len(digests | {recipe(of_pictures).digest()}) == 3
    same = {
        name
        for name, value in (settings | own).items()
        for other in [
            replace(job, settings=replace(job.settings, **({"backend": "onnx"} | {name: value})))
            if name == "provider"  # which is for that backend only
            else replace(job, settings=replace(job.settings, **{name: value}))
            if name in settings
            else replace(job, **{name: value})
        ]
        if recipe(other).digest() == recipe(job).digest()
    }
    elsewhere = {"device", "device_index", "segment", "backend", "provider", "tile", "source_path"}
    assert same == elsewhere | {"source", "target", "overwrite", "range_frames", "reserve", "ffmpeg"}


def test_the_record_states_what_was_resolved_and_how_the_output_was_made(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        if n:
            frame.props["FMANetExposureSource"] = "prop" if n < 4 else "network"
        return frame

    monkeypatch.setattr(clips, "restore_clip", lambda node, _: node.std.ModifyFrame(node, known))
    made = tmp_path / "made.mkv"
    before = datetime.now(UTC).replace(microsecond=0)
    options = ["--device=cpu", "--precision=fp32", "--model=other", "--encoder-args=-crf 20"]
    assert main(["restore", *options, str(film), str(made)]) == 0
    record = read_record(record_path(made))
    assert record is not None
    assert record.exposures == {"unknown": 1, "prop": 3, "network": 6}
    resolved = dict(record.resolved)
    assert resolved.pop("kernels") in ("cpp", None)
    assert resolved.pop("device_name")
    assert resolved == {
        "model": "other",
        "weights_sha256": "weights of other",
        "backend": "torch",
        "device": "cpu",
        "precision": "fp32",
        "provider": None,
    }
    assert Path(record.ffmpeg).is_file()
    assert record.encoder_args == "-c:v libx264 -preset medium -crf 16 -pix_fmt yuv420p -crf 20"
    assert before <= datetime.fromisoformat(record.finished) <= datetime.now(UTC)
    assert 0 < record.seconds < 300


@pytest.mark.parametrize(
    "change",
    [{"precision": "bf16"}, {"backend": "onnx"}, {"device": "cuda"}, {"kernels": None}],
    ids=lambda change: next(iter(change)),
)
def test_what_computes_the_pixels_is_part_of_the_arithmetic(change: dict[str, Any]) -> None:
    one = Resolved(
        model="a",
        weights_sha256="0",
        backend="torch",
        device="cpu",
        device_name="AVX2",
        precision="fp32",
        kernels="cpp",
    )
    assert replace(one, **change).arithmetic != one.arithmetic
    assert replace(one, device_name="AVX512").arithmetic == one.arithmetic


# Done means done


def test_a_job_that_is_done_is_not_done_again(
    film: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = made.stat().st_mtime_ns
    assert main(["restore", FAST, "--json", str(film), str(made)]) == 0
    said = capsys.readouterr()
    assert "already done" in said.err
    assert json.loads(said.out)["output_sha256"] == recorded(made).output_sha256
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["options", "output", "source", "no record", "bad record", "later record"])
def test_a_different_file_in_the_place_of_the_output_is_refused(film: Path, made: Path, change: str) -> None:
    source = made.with_name("source.mkv")
    source.write_bytes(film.read_bytes())
    os.utime(source, ns=(film.stat().st_atime_ns, film.stat().st_mtime_ns))
    options = [FAST]
    record = record_path(made)
    if change == "options":
        options = ["--encoder-args=-preset superfast"]
    elif change == "output":
        made.write_bytes(made.read_bytes() + b"x")
    elif change == "source":
        os.utime(source, ns=(1, 1))
    elif change == "no record":
        record.unlink()
    elif change == "bad record":
        record.write_text("{}")
    else:
        record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    before = made.read_bytes()
    assert main(["restore", *options, str(source), str(made)]) == 2
    assert made.read_bytes() == before


def test_a_run_that_was_killed_between_name_and_record_is_completed(film: Path, made: Path) -> None:
    part = part_path(made, 1)
    record_path(made).rename(pending_path(part))
    assert main(["restore", FAST, str(film), str(made)]) == 0
    assert recorded(made).frames == 10
    assert not pending_path(part).exists()


def test_a_waiting_record_of_another_file_is_not_taken(film: Path, made: Path) -> None:
    record = recorded(made)
    record_path(made).unlink()
    part = Scratch().make_part(made)
    write_record(replace(record, output_sha256="0" * 64), pending_path(part))
    assert find_done(made, lambda: record.key) is None


def test_an_output_that_is_made_again_keeps_the_old_one_with_its_record(film: Path, made: Path) -> None:
    before = made.read_bytes()
    assert main(["restore", "--encoder-args=-preset superfast", "--overwrite", str(film), str(made)]) == 0
    old = made.with_name("made.old1.mkv")
    assert old.read_bytes() == before
    for path in (old, made):
        assert main(["verify", str(path)]) == 0


def test_exposures_beside_a_source_reach_the_filter_and_make_another_job(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def look(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        seen.append(settings.exposure)
        return node

    monkeypatch.setattr(clips, "restore_clip", look)
    source, sidecar = tmp_path / "film.one.mkv", tmp_path / "film.one.exposure.json"
    source.write_bytes(film.read_bytes())
    without = Fingerprint.of(source)
    sidecar.write_text('{"exposure": []}')
    assert Fingerprint.of(source) != without
    for number, options in enumerate(([], ["--exposure=0.5"])):
        assert main(["restore", FAST, *options, str(source), str(tmp_path / f"{number}.mkv")]) == 0
    assert seen == [str(sidecar), 0.5]


# Two at once


def test_two_runs_do_not_make_the_same_output(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Scratch()
    other.make_part(tmp_path / "made.mkv")
    assert main(["restore", FAST, str(film), str(tmp_path / "made.mkv")]) == 7
    assert "another run is making this file" in capsys.readouterr().err
    other.discard()
    assert main(["restore", FAST, str(film), str(tmp_path / "made.mkv")]) == 0


def test_what_a_dead_run_left_is_swept(film: Path, tmp_path: Path) -> None:
    target = tmp_path / "made.mkv"
    script = (
        "import os, sys; from pathlib import Path; from vsfmanet.jobs.scratch import Scratch; "
        "Scratch(attempt=7).make_part(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, target], check=False)
    [part] = tmp_path.iterdir()
    assert ".7-" in part.name
    assert main(["restore", FAST, str(film), str(target)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["made.mkv", "made.mkv.vsfmanet.json"]


def test_a_frozen_run_that_thaws_cannot_publish(made: Path, tmp_path: Path) -> None:
    """As on a share without locks, where a later attempt sweeps what looks dead."""
    late, target = Scratch(attempt=1), tmp_path / "other.mkv"
    part = late.make_part(target)
    part.unlink()
    later = Scratch(attempt=2)
    later.publish(later.make_part(target), target, recorded(made), overwrite=False)
    with pytest.raises(BusyError, match="another run has taken over"):
        late.publish(part, target, recorded(made), overwrite=False)
    assert target.stat().st_size == 0  # of the later one


def test_of_two_runs_of_one_job_one_publishes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "sweep", lambda target: [])  # as when both start at the same moment
    target = tmp_path / "other.mkv"
    runs = [Scratch(attempt=1), Scratch(attempt=2)]
    parts = [run.make_part(target) for run in runs]
    for part in parts:
        part.write_bytes(made.read_bytes())

    def overtaken(path: Path, name: Path) -> None:
        monkeypatch.setattr(scratch, "move_new", move_new)
        runs[0].publish(parts[0], target, recorded(made), overwrite=False)
        move_new(path, name)

    monkeypatch.setattr(scratch, "move_new", overtaken)  # after the other has looked whether it is there
    with pytest.raises(BusyError, match="another run has made this very file"):
        runs[1].publish(parts[1], target, recorded(made), overwrite=False)
    runs[1].discard()
    assert sorted(path.name for path in tmp_path.glob("*other*")) == ["other.mkv", "other.mkv.vsfmanet.json"]
    assert sorted(tmp_path.glob(".other*")) == []


def test_of_two_runs_that_overwrite_one_publishes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "sweep", lambda target: [])  # as on a share without locks: neither sees the other
    target = tmp_path / "other.mkv"
    target.write_text("of other settings")
    runs = [Scratch(attempt=1), Scratch(attempt=2)]
    parts = [run.make_part(target) for run in runs]
    for part in parts:
        part.write_bytes(made.read_bytes())
    runs[0].publish(parts[0], target, recorded(made), overwrite=True)
    with pytest.raises(BusyError, match="another run has made this very file"):
        runs[1].publish(parts[1], target, recorded(made), overwrite=True)
    runs[1].discard()
    assert sorted(path.name for path in tmp_path.glob("*other*")) == [
        "other.mkv",
        "other.mkv.vsfmanet.json",
        "other.old1.mkv",
    ]


# The command


def test_verify_checks_a_file_against_its_record(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(made)]) == 0
    assert json.loads(capsys.readouterr().out) == {"verdict": "verified", "file": str(made), "frames": 10}
    data = bytearray(made.read_bytes())
    data[len(data) // 2] ^= 1
    made.write_bytes(data)
    assert main(["verify", str(made)]) == 6
    assert "has changed since" in capsys.readouterr().err
    made.write_bytes(data[:-1])
    assert main(["verify", str(made)]) == 6
    assert "bytes are needed" in capsys.readouterr().err
    made.unlink()
    assert main(["verify", str(made)]) == 6


def test_verify_without_a_record_asks_for_the_source(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(film)]) == 6
    assert "--source" in capsys.readouterr().err


def test_verify_compares_with_a_source_for_people_with_their_own_pipes(
    film: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_path(made).unlink()
    assert main(["verify", str(made), "--source", str(film)]) == 0
    mute, cut = made.with_name("mute.mkv"), made.with_name("cut.mkv")
    ffmpeg("-i", made, "-c", "copy", "-an", mute)
    ffmpeg("-i", made, "-c", "copy", "-frames:v", "7", cut)
    assert main(["verify", str(mute), "--source", str(film)]) == 6
    assert main(["verify", str(mute), "--source", str(film), "--no-audio"]) == 0
    capsys.readouterr()
    assert main(["verify", str(cut), "--source", str(film)]) == 6
    assert "10 frames are needed, got 7" in capsys.readouterr().err
    assert main(["verify", str(film), "--source", str(film)]) == 2
    assert main(["verify", str(made), "--source", str(made.with_name("nothing.mkv"))]) == 3
    assert main(["verify", str(made.with_name("nothing.mkv")), "--source", str(film)]) == 6


def test_errors_are_told_as_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mkv").write_text("not a video")
    assert main(["restore", "--json", str(tmp_path / "text.mkv"), str(tmp_path / "made.mkv")]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["error"], told["exit_code"]) == ("SourceError", 3)


def test_keys_differ_by_source_and_recipe(film: Path, tmp_path: Path) -> None:
    one = Fingerprint.of(film)
    assert job_key(one, "a") != job_key(one, "b")
    assert job_key(one, "a") != job_key(replace(one, mtime_ns=1), "a")


@pytest.mark.parametrize("limits", [("--start", "5"), ("--end", "0:00:00.5")])
def test_a_part_is_not_compared_with_its_whole_source(
    film: Path, tmp_path: Path, limits: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "part.mkv"
    assert main(["restore", FAST, *limits, str(film), str(target)]) == 0
    assert main(["verify", str(target)]) == 0
    assert main(["verify", "--source", str(film), str(target)]) == 2
    said = capsys.readouterr().err
    assert "by its record the file is a part (--start, --end); leave --source out" in said
    assert "make it again" not in said
