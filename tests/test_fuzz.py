"""Bytes that nobody wrote, for every parser of files that others may have written, cut short or garbled.

Each target begins with whole files and changes them. What is not listed here has its target elsewhere: telemetry and
subtitles in `test_cameras`, records and lists of jobs in `test_files`, options of encoders in `test_properties`, and
containers in `scripts/mutate_films.py`. The tests run them with few examples; CI with others
each time, for about a minute: `pytest -m fuzz --hypothesis-profile fuzz`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from vsfmanet.errors import ConfigError, ExposureError, IncompleteError, WeightsError
from vsfmanet.exposures.sidecar import read_sidecar, sidecar_text
from vsfmanet.jobs.journal import VERSION, open_journal
from vsfmanet.jobs.paths import Pairing
from vsfmanet.jobs.record import script_files
from vsfmanet.jobs.supervise import Watch
from vsfmanet.media.bounds import missing_bytes
from vsfmanet.media.matroska import damaged_place
from vsfmanet.media.thumbnails import ThumbnailWriter, count_thumbnails, read_thumbnails
from vsfmanet.weights import load_model

pytestmark = pytest.mark.fuzz

CASES = Path(__file__).with_name("cases")

CONTAINERS = tuple(
    (CASES / name).read_bytes()
    for name in ("aspect-by-container.mkv", "zero-matrix.mp4", "avi-drop.avi", "broken-element.webm", "clap.mov")
)


def mangled(*whole: bytes) -> st.SearchStrategy[bytes]:
    """Cut, spliced and altered bytes, and some that are nothing at all."""

    def splice(data: bytes, start: int, length: int, other: bytes) -> bytes:
        place = start % (len(data) + 1)
        return data[:place] + other + data[place + length :]

    near = st.integers(0, 400) | st.integers(0)  # most of what is parsed comes first
    return st.binary(max_size=300) | st.builds(
        splice, st.sampled_from(whole), near, st.integers(0, 40) | st.integers(0), st.binary(max_size=16)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that every example writes anew."""
    return tmp_path_factory.mktemp("fuzz")


@given(mangled(*CONTAINERS))
def test_no_bytes_of_a_container_make_the_search_for_its_end_or_its_checksums_fail(folder: Path, data: bytes) -> None:
    path = folder / "film"
    path.write_bytes(data)
    assert missing_bytes(path) >= 0
    place = damaged_place(path)
    assert place is None or 0 <= place < len(data)


def thumbnails(folder: Path) -> bytes:
    """A whole file of thumbnails."""
    writer = ThumbnailWriter(folder / "whole", size=(16, 16), pixel_format="yuv420p", hashed=True)
    for _ in range(3):
        writer.add(bytes(16 * 16 * 3 // 2))
    writer.close()
    return (folder / "whole").read_bytes()


HEADS = st.fixed_dictionaries(
    {
        "size": st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=3) | st.none(),
        "format": st.sampled_from(["yuv420p", "gbrp", "cuda", "pal8", "no", ""]) | st.integers(),
        "hashed": st.booleans() | st.integers(),
    }
)


@given(st.data())
def test_no_bytes_of_a_file_of_thumbnails_raise_anything_unforeseen(folder: Path, data: st.DataObject) -> None:
    path, whole = folder / "film.thumbnails", thumbnails(folder)
    head = st.builds(lambda table: json.dumps(table).encode() + b"\n" + whole[60:], HEADS)
    path.write_bytes(data.draw(mangled(whole) | head))
    count = count_thumbnails(path)
    assert count is None or count >= 0
    with suppress(IncompleteError):
        assert len(list(read_thumbnails([path]))) <= len(whole)


SIDECARS = [
    sidecar_text(suffix, exposures=[0.5, None, 1.0], sources=["argument", None, "telemetry"], times=[0.0, 0.04, 0.08])
    for suffix in (".csv", ".json")
]


@given(mangled(*(text.encode() for text in SIDECARS)), st.sampled_from([".csv", ".json"]))
def test_no_bytes_of_a_sidecar_raise_anything_unforeseen(folder: Path, data: bytes, suffix: str) -> None:
    path = folder / f"film.exposure{suffix}"
    path.write_bytes(data)
    with suppress(ExposureError):
        exposures = read_sidecar(path, num_frames=3)
        assert all(exposure is None or 0 < exposure <= 1 for exposure in exposures)


WEIGHTS = save(
    {"a": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float16)},
    metadata={"vsfmanet": json.dumps({"kind": "fmanetpp", "config": {"width": 9}})},
)


@given(mangled(WEIGHTS))
def test_no_bytes_of_a_weights_file_raise_anything_unforeseen(folder: Path, data: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        load_model(str(path))


@given(mangled(b"SQLite format 3\0" + bytes(84)), st.booleans())
def test_no_bytes_of_a_journal_raise_anything_unforeseen(folder: Path, data: bytes, is_whole: bool) -> None:
    path = folder / "journal.sqlite3"
    for left in folder.glob("journal.sqlite3*"):
        left.unlink()
    job = Pairing(source=folder / "film.mkv", target=folder / "made.mkv", size=1, mtime_ns=1)
    whole = bytearray(data)
    if is_whole:  # a real one, of which some bytes are replaced
        with open_journal(path) as journal:
            journal.register([job], "recipe")
        whole = bytearray(path.read_bytes())
        place = int.from_bytes(data[:4]) % max(1, len(whole))
        whole[place : place + len(data)] = data
    else:
        path.with_name("journal.sqlite3.lock").touch()  # otherwise it is not taken for one of ours
    path.write_bytes(whole)
    try:
        with open_journal(path) as journal:
            [row] = journal.register([job], "recipe")
            assert row.job == job
    except ConfigError:
        assert int.from_bytes(whole[60:64]) > VERSION  # user_version: SQLite's file format, 1.3
        assert path.read_bytes() == whole


@given(mangled(b"SQLite format 3\0" + bytes(84)))
def test_no_bytes_of_a_file_that_is_no_journal_raise_anything_unforeseen(folder: Path, data: bytes) -> None:
    path = folder / "film.mkv"
    path.write_bytes(data)
    if data:
        with pytest.raises(ConfigError, match="got something else"), open_journal(path):
            raise AssertionError
        assert path.read_bytes() == data
        assert sorted(folder.glob("film.mkv*")) == [path]


SCRIPT = b"import other\nimport vapoursynth as vs\nclip = vs.core.bs.VideoSource('film.mkv')\nclip.set_output()\n"


@given(mangled(SCRIPT) | st.text().map(str.encode) | st.integers(0, 10**5).map(lambda depth: b"(" * depth))
def test_no_bytes_of_a_script_make_the_search_for_its_files_fail(folder: Path, data: bytes) -> None:
    path = folder / "film.vpy"
    path.write_bytes(data)
    assert all(each.is_file() for each in script_files(path))


EVENTS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "done", "x"]), inner),
    max_leaves=4,
)


@given(
    st.dictionaries(st.sampled_from(["event", "name", "step", "done", "total"]), EVENTS)
    | st.fixed_dictionaries({"event": st.just("progress"), "step": EVENTS, "done": EVENTS, "total": EVENTS})
)
def test_no_event_of_a_job_raises_anything_unforeseen(event: dict[str, Any]) -> None:
    watch = Watch()
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        watch.note(event)
    assert watch.place()
    assert watch.overdue(600, lambda: 0.0) is None
