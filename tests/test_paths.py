"""What a batch takes from a folder, in which order, and which names it refuses before it starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vsfmanet.atomic import MAX_NAME
from vsfmanet.errors import ConfigError
from vsfmanet.jobs.files import part_path, pending_path, record_path
from vsfmanet.jobs.paths import Selection, Survey, survey


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return folder


def look(tmp_path: Path, *names: str, selection: Selection | None = None) -> Survey:
    return survey(tree(tmp_path / "in", *names), tmp_path / "out", selection or Selection())


def taken(found: Survey, tmp_path: Path) -> list[str]:
    return [str(job.source.relative_to(tmp_path / "in")) for job in found.jobs]


def test_folders_are_mirrored(tmp_path: Path) -> None:
    found = look(tmp_path, "a/b/film.mov", "film.mkv")
    assert [str(job.target.relative_to(tmp_path / "out")) for job in found.jobs] == ["a/b/film.mkv", "film.mkv"]
    assert found.problems == []


def test_files_come_in_natural_order_or_the_smallest_first(tmp_path: Path) -> None:
    names = ("part 10.mkv", "part 2.mkv", "Part 1.mkv", "a.mkv")
    assert taken(look(tmp_path, *names), tmp_path) == ["a.mkv", "Part 1.mkv", "part 2.mkv", "part 10.mkv"]
    shortest = look(tmp_path, *names, selection=Selection(order="shortest"))
    assert taken(shortest, tmp_path) == ["a.mkv", "Part 1.mkv", "part 2.mkv", "part 10.mkv"]
    with pytest.raises(ConfigError, match="'natural', 'shortest', got 'random'"):
        Selection(order="random")  # type: ignore[arg-type]


def test_only_videos_that_are_not_hidden_are_taken(tmp_path: Path) -> None:
    assert taken(look(tmp_path, "a.MKV", "b.txt", "._c.mkv", ".git/d.mkv", "e.avi"), tmp_path) == ["a.MKV", "e.avi"]


def test_include_and_exclude_fit_names_paths_and_folders(tmp_path: Path) -> None:
    names = ("x/a.mkv", "x/a sample.mkv", "extras/b.mkv", "c.dat")
    selection = Selection(include=("*.mkv", "c.*"), exclude=("*sample*", "extras"))
    assert taken(look(tmp_path, *names, selection=selection), tmp_path) == ["c.dat", "x/a.mkv"]
    assert taken(look(tmp_path, *names, selection=Selection(include=("x/*",))), tmp_path) == [
        "x/a sample.mkv",
        "x/a.mkv",
    ]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("CON.mkv",), "device on Windows"),
        (("lpt1/a.mkv",), "device on Windows"),
        (("end. /a.mkv",), "blank or dot"),
        (("end./a.mkv",), "blank or dot"),
        (("x" * 240 + ".mkv",), "at most 240 bytes"),
    ],
)
def test_names_that_cannot_work_everywhere_are_listed(tmp_path: Path, names: tuple[str, ...], problem: str) -> None:
    [text] = look(tmp_path, *names).problems
    assert problem in text


@pytest.mark.parametrize(
    ("names", "outputs", "refused"),
    [
        (("a.avi", "a.mp4"), {"a.avi": "a.mkv", "a.mp4": "a.mp4.mkv"}, {}),
        (("Film.mkv", "film.mkv"), {"Film.mkv": "Film.mkv", "film.mkv": "film.mkv.mkv"}, {}),
        (("\u00e9.mkv", "e\u0301.avi"), {"e\u0301.avi": "e\u0301.mkv", "\u00e9.mkv": "\u00e9.mkv.mkv"}, {}),
        (("a.avi", "a.mp4", "a.mp4.mkv"), {"a.avi": "a.mkv", "a.mp4": "a.mp4.mkv"}, {"a.mp4.mkv": "same name"}),
        (("a.avi", "a.mkv/b.mkv"), {"a.mkv/b.mkv": "a.mkv/b.mkv"}, {"a.avi": "name of a folder"}),
    ],
)  # fmt: skip
def test_outputs_of_one_name_are_told_apart(
    tmp_path: Path, names: tuple[str, ...], outputs: dict[str, str], refused: dict[str, str]
) -> None:
    found = look(tmp_path, *names)
    if len([path for path in (tmp_path / "in").rglob("*") if path.is_file()]) < len(names):
        pytest.skip("this file system takes these names as one")
    root, out = tmp_path / "in", tmp_path / "out"
    assert {
        job.source.relative_to(root).as_posix(): job.target.relative_to(out).as_posix() for job in found.jobs
    } == outputs
    assert [job.source.relative_to(root).as_posix() for job, _ in found.refused] == list(refused)
    assert all(text in why for text, (_, why) in zip(refused.values(), found.refused, strict=True))
    assert found.problems == []


def test_all_usual_suffixes_are_taken_but_no_programs(tmp_path: Path) -> None:
    names = [f"{n}.{suffix}" for n, suffix in enumerate(
        ("gif", "apng", "webp", "hevc", "264", "265", "m2t", "3g2", "f4v", "mod", "tod", "ts", "MKV", "h264")
    )]  # fmt: skip
    for name in names:
        tree(tmp_path / "in", name)
        (tmp_path / "in" / name).write_bytes(b"G@\x11\x10\0B\xf0%" + b"\xff" * 200)  # of a transport stream
    for name in ("app.ts", "umlaut.ts", "program.mod"):
        (tmp_path / "in" / name).write_text("export const \u00fcber = 1;\n" * 300, encoding="utf-8")
    assert sorted(taken(look(tmp_path), tmp_path)) == sorted(names)


def test_odd_names_that_work_are_taken(tmp_path: Path) -> None:
    names = ("-a.mkv", "%d.mkv", "$(touch x).mkv", " b.mkv", "new\nline.mkv", os.fsdecode(b"latin\xe4.mkv"))
    found = look(tmp_path, *names)
    assert found.problems == []
    assert len(found.jobs) == len(names)


def test_links_are_told_and_not_followed(tmp_path: Path) -> None:
    tree(tmp_path / "elsewhere", "secret.mkv")
    tree(tmp_path / "in", "a.mkv")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b.mkv").symlink_to(tmp_path / "elsewhere" / "secret.mkv")
    found = look(tmp_path)
    assert taken(found, tmp_path) == ["a.mkv"]
    assert len(found.skipped) == 3


def test_an_output_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "loop").symlink_to("loop")
    found = look(tmp_path, "a/b.mkv", "loop/c.mkv")
    assert len(found.problems) == 2
    assert all("could lead out of OUT_DIR" in problem for problem in found.problems)


def test_an_output_that_is_a_link_a_folder_or_its_source_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "in", "a.mkv", "b.mkv", "c.mkv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.mkv").symlink_to(tmp_path / "in" / "a.mkv")
    (tmp_path / "out" / "b.mkv").mkdir()
    (tmp_path / "out" / "c.mkv").hardlink_to(tmp_path / "in" / "c.mkv")
    problems = look(tmp_path).problems
    assert [("regular file" in text, "own source" in text) for text in problems] == [
        (True, False),
        (True, False),
        (False, True),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_pipes_are_refused_without_opening_them(tmp_path: Path) -> None:
    tree(tmp_path / "in", "a.mkv")
    os.mkfifo(tmp_path / "in" / "pipe.mkv")
    [text] = look(tmp_path).problems
    assert "regular file is needed" in text


def test_the_two_folders_must_differ_and_the_first_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IN_DIR must be a folder"):
        survey(tmp_path / "nowhere", tmp_path, Selection())
    (tmp_path / "in").mkdir()
    (tmp_path / "same").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="another folder than IN_DIR"):
        survey(tmp_path / "in", tmp_path / "same", Selection())


def test_outputs_inside_the_sources_are_not_taken_as_sources(tmp_path: Path) -> None:
    tree(tmp_path, "a.mkv", "out/b.mkv")
    assert [job.source.name for job in survey(tmp_path, tmp_path / "out", Selection()).jobs] == ["a.mkv"]


@pytest.mark.parametrize("stem", ["film", "x" * 251, "ü" * 125])
def test_the_names_beside_an_output_fit_the_file_system_and_differ_from_others(tmp_path: Path, stem: str) -> None:
    target = tmp_path / f"{stem}.mkv"
    part = part_path(target, 12)
    for path in (part, pending_path(part), record_path(target)):
        assert path.parent == tmp_path
        assert len(os.fsencode(path.name)) <= MAX_NAME
    assert record_path(target) != record_path(target.with_name(f"{stem[:-1]}y.mkv"))


def test_every_file_is_in_one_shard_and_stays_there(tmp_path: Path) -> None:
    names = [f"{folder}/film {n}.mkv" for folder in ("a", "b") for n in range(40)]
    shards = [taken(look(tmp_path, *names, selection=Selection(shard=(n, 3))), tmp_path) for n in (1, 2, 3)]
    assert sorted(name for shard in shards for name in shard) == sorted(names)
    assert min(map(len, shards)) > 15
    more = look(tmp_path, *names, "new.mkv", selection=Selection(shard=(2, 3)))
    assert set(taken(more, tmp_path)) - {"new.mkv"} == set(shards[1])
    assert more.elsewhere + len(more.jobs) == len(names) + 1
    # By sha256 of the path, so that other machines and releases agree.
    half = look(tmp_path / "other", "film 0.mkv", "film 2.mkv", "\udcff.mkv", selection=Selection(shard=(1, 2)))
    assert "film 2.mkv" in taken(half, tmp_path / "other")
    assert "film 0.mkv" not in taken(half, tmp_path / "other")
    for shard in ((0, 2), (3, 2)):
        with pytest.raises(ConfigError, match="a shard of 1/N to N/N is needed"):
            Selection(shard=shard)


def test_names_are_told_apart_alike_in_every_shard(tmp_path: Path) -> None:
    names = ("film.avi", "film.mp4", "film.mp4.mkv")
    found = [look(tmp_path, *names, selection=Selection(shard=(n, 4))) for n in range(1, 5)]
    assert sorted(job.target.name for shard in found for job in shard.jobs) == ["film.mkv", "film.mp4.mkv"]
    assert [job.source.name for shard in found for job, _ in shard.refused] == ["film.mp4.mkv"]
