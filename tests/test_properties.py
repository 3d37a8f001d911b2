"""Properties of the pure parts, over values that nobody chose.

The examples are the same on every run. `HYPOTHESIS_PROFILE=long` draws others, and more of them.
"""

from __future__ import annotations

import json
import string
import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vsfmanet.errors import ConfigError, ExposureError
from vsfmanet.exposures.estimate import CONFIDENT, HELD, REACH, Estimate, settle
from vsfmanet.exposures.sidecar import read_sidecar, sidecar_text
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.paths import Pairing, _collisions, _is_in, _natural
from vsfmanet.media.encoder_args import OF_FILES, OPTION, WITHOUT_VALUE, parse_encoder_args
from vsfmanet.media.meter import clock
from vsfmanet.segments import Reach, SegmentGrid, scene_around
from vsfmanet.settings import MAX_SEGMENT, RestoreSettings
from vsfmanet.tiling import Box, tiles

REACHES = st.builds(Reach, before=st.integers(0, 40), after=st.integers(0, 40), period=st.integers(1, 40))
GRIDS = st.builds(SegmentGrid, num_frames=st.integers(1, 400), length=st.integers(1, MAX_SEGMENT), reach=REACHES)
EXPOSURES = st.floats(0, 1, exclude_min=True)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
NUMBERED = st.text(st.characters(categories=["L", "N"], codec="utf-8"), max_size=6)
"""Names with all that passes for a digit in some script."""


@given(GRIDS)
def test_segments_cover_a_clip_once_and_their_windows_hold_what_is_needed(grid: SegmentGrid) -> None:
    covered: list[int] = []
    for segment in range(grid.count):
        frames, window = range(*grid.bounds(segment)), grid.window(segment)
        covered += frames
        for n in frames:
            first, last = grid.reach.of(n)
            assert max(first, 0) in window
            assert min(last, grid.num_frames - 1) in window
        slots = [grid.slot(segment, n) for n in window]
        assert slots == list(range(slots[0], slots[0] + len(window)))
        assert 0 <= slots[0] <= slots[-1] < grid.slots
    assert covered == list(range(grid.num_frames))


@given(GRIDS)
def test_every_slot_of_a_padded_clip_has_a_frame_for_every_window(grid: SegmentGrid) -> None:
    before, after = grid.padding
    padded = before + grid.num_frames + after
    for slot in range(grid.slots):
        assert len(range(slot, padded, grid.length)) >= grid.count
    for segment in (0, grid.count - 1):
        for n in grid.window(segment):
            assert grid.slot(segment, n) + segment * grid.length - before == n


@given(REACHES, st.integers(0, 1000))
def test_a_reach_never_goes_further_back_for_a_later_frame(reach: Reach, n: int) -> None:
    first, last = reach.of(n)
    assert n - reach.furthest <= first <= n <= last
    assert first <= reach.of(n + 1)[0]


@given(st.sets(st.integers(0, 30)), st.lists(st.integers(0, 30), min_size=3, max_size=3).map(sorted))
def test_the_scene_around_a_frame_ends_at_the_nearest_cuts(cuts: set[int], numbers: list[int]) -> None:
    first, n, last = numbers
    together = [k for k in range(first, last + 1) if not cuts.intersection(range(min(k, n) + 1, max(k, n) + 1))]
    asked: list[int] = []

    def starts_scene(k: int) -> bool:
        asked.append(k)
        return k in cuts

    assert list(scene_around(n, first, last, starts_scene)) == together
    assert all(first < k <= last for k in asked)


@given(st.tuples(st.integers(1, 300), st.integers(1, 300)), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_tiles_cover_a_frame_once_and_are_nearly_equal(size: tuple[int, int], tile: tuple[int, int]) -> None:
    boxes = list(tiles(size, tile))
    heights, widths = ({box.bottom - box.top for box in boxes}, {box.right - box.left for box in boxes})
    assert max(heights) <= tile[0]
    assert max(widths) <= tile[1]
    assert min(heights) >= max(1, max(heights) - 1)
    assert min(widths) >= max(1, max(widths) - 1)
    assert sum((box.bottom - box.top) * (box.right - box.left) for box in boxes) == size[0] * size[1]
    corners = {(box.top, box.left) for box in boxes}
    assert {(0, 0)} <= corners
    for box in boxes:
        assert box.bottom == size[0] or (box.bottom, box.left) in corners
        assert box.right == size[1] or (box.top, box.right) in corners


@given(
    st.tuples(st.integers(1, 99), st.integers(1, 99)),
    st.tuples(st.integers(1, 99), st.integers(1, 99)),
    st.integers(0, 40),
)
def test_a_grown_tile_holds_the_tile_and_stays_in_the_frame(
    size: tuple[int, int], tile: tuple[int, int], reach: int
) -> None:
    for box in tiles(size, tile):
        outer = box.grown(reach, *size)
        assert 0 <= outer.top <= box.top < box.bottom <= outer.bottom <= size[0]
        assert 0 <= outer.left <= box.left < box.right <= outer.right <= size[1]
        inner = box.within(outer)
        assert (
            Box(
                top=inner.top + outer.top,
                left=inner.left + outer.left,
                bottom=inner.bottom + outer.top,
                right=inner.right + outer.left,
            )
            == box
        )


ESTIMATES = st.one_of(st.none(), st.builds(Estimate, value=EXPOSURES, confidence=st.floats(0, 1)))


@given(st.lists(ESTIMATES, min_size=1, max_size=3 * REACH), st.data())
def test_a_settled_exposure_lies_between_confident_ones_that_are_near(
    estimates: list[Estimate | None], data: st.DataObject
) -> None:
    own = data.draw(st.integers(0, len(estimates) - 1))
    estimate = estimates[own]
    assume(estimate is not None)
    assert estimate is not None
    near = estimates[max(0, own - REACH) : own + REACH + 1]
    sure = [one.value for one in near if one is not None and one.confidence >= CONFIDENT]
    held = estimates[max(0, own - HELD) : own + HELD + 1]
    found = settle(estimates, own)
    if any(one is not None and one.confidence >= CONFIDENT for one in held):
        assert found is not None
        assert min(sure) <= found.value <= max(sure)
        assert found.confidence == estimate.confidence
    else:
        assert found is None


@given(
    st.lists(ESTIMATES, min_size=2 * REACH + 1, max_size=2 * REACH + 1),
    st.lists(ESTIMATES, max_size=9),
    st.lists(ESTIMATES, max_size=9),
)
def test_estimates_beyond_the_reach_change_nothing(
    near: list[Estimate | None], before: list[Estimate | None], after: list[Estimate | None]
) -> None:
    assume(near[REACH] is not None)
    assert settle([*before, *near, *after], len(before) + REACH) == settle(near, REACH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that every example writes anew."""
    return tmp_path_factory.mktemp("properties")


@given(st.lists(st.one_of(st.none(), EXPOSURES), min_size=1, max_size=40), st.sampled_from([".csv", ".json"]))
def test_a_sidecar_that_was_written_is_read_back(folder: Path, exposures: list[float | None], suffix: str) -> None:
    path = folder / f"sidecar{suffix}"
    sources = [None if one is None else "argument" for one in exposures]
    path.write_text(sidecar_text(suffix, exposures=exposures, sources=sources, times=range(len(exposures))))
    assert read_sidecar(path, num_frames=len(exposures)) == tuple(exposures)
    for wrong in (len(exposures) - 1, len(exposures) + 1):
        with pytest.raises(ExposureError):
            read_sidecar(path, num_frames=wrong)


HEADER = "frame,exposure\n"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(string.digits + ",.frameexposure-+eE \n\"'", max_size=200).map(
            lambda t: f"frame,exposure\n{t}".encode()
        ),
        JSON_VALUES.map(lambda value: json.dumps({"exposure": value}).encode()),
    ),
    st.sampled_from([".csv", ".json"]),
    st.integers(1, 5),
)
@example(b'{"exposure": [0]}', ".json", 1)
@example(b"frame,exposure\n0,0", ".csv", 1)
@example(b"frame,exposure\n0,nan", ".csv", 1)
def test_a_sidecar_of_any_content_is_read_or_refused(folder: Path, content: bytes, suffix: str, frames: int) -> None:
    path = folder / f"any{suffix}"
    path.write_bytes(content)
    try:
        exposures = read_sidecar(path, num_frames=frames)
    except ExposureError:
        return
    assert len(exposures) == frames
    assert all(one is None or 0 < one <= 1 for one in exposures)


@given(st.lists(NUMBERED, max_size=9, unique_by=str.casefold))
@example(["1\N{SUPERSCRIPT TWO}3", "\N{ARABIC-INDIC DIGIT TWO}", "02", "2"])
def test_files_are_sorted_whatever_their_names(names: list[str]) -> None:
    ordered = sorted(names, key=_natural)
    assert sorted(ordered) == sorted(names)
    assert [_natural(name) for name in ordered] == sorted(_natural(name) for name in names)


@given(st.lists(st.integers(0, 10**30), max_size=9), NAMES.filter(lambda name: not name[-1].isdecimal()))
def test_numbers_in_names_are_sorted_by_their_value(numbers: list[int], name: str) -> None:
    assert sorted((f"{name}{n}" for n in numbers), key=_natural) == [f"{name}{n}" for n in sorted(numbers)]


@given(NAMES, st.integers(1, 9))
def test_a_file_is_in_one_shard(name: str, count: int) -> None:
    assert sum(_is_in((number, count), Path(name)) for number in range(1, count + 1)) == 1


@given(NAMES, st.sampled_from(["NFC", "NFD"]), st.booleans())
def test_outputs_that_a_file_system_takes_as_one_are_found(name: str, form: Literal["NFC", "NFD"], upper: bool) -> None:
    other = unicodedata.normalize(form, name.upper() if upper and name.upper().lower() == name else name)
    root = Path("/out")
    jobs = [Pairing(source=Path("/in") / each, target=root / each, size=1, mtime_ns=0) for each in (name, other)]
    assert len(_collisions(jobs, root)) == 1
    assert _collisions(jobs[:1], root) == {}


@given(st.text(max_size=60))
def test_encoder_options_are_pairs_or_refused(text: str) -> None:
    try:
        words = parse_encoder_args(text)
    except ConfigError:
        return
    assert len(words) % 2 == 0
    for word in words[::2]:
        option = OPTION.fullmatch(word)
        assert option is not None
        assert option[1] not in WITHOUT_VALUE | OF_FILES


@given(st.floats(0, 1e7))
def test_a_clock_shows_the_seconds(seconds: float) -> None:
    *hours, minutes, rest = map(int, clock(seconds).split(":"))
    shown = 3600 * (hours[0] if hours else 0) + 60 * minutes + rest
    assert abs(shown - seconds) <= 1
    assert 0 <= rest < 60
    assert not hours or 0 <= minutes < 60


PATHS = NAMES.map(Path)
SETTINGS = st.builds(
    RestoreSettings,
    model=NAMES,
    exposure=st.one_of(EXPOSURES, st.sampled_from(["auto", "estimate", "film.csv"])),
    source_path=st.none() | NAMES,
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    device_index=st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True).map(tuple),
    precision=st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
    tile=st.none() | st.tuples(st.integers(16, 4096), st.integers(16, 4096)),
    segment=st.none() | st.integers(1, MAX_SEGMENT),
    sc_threshold=st.none() | st.floats(0, 1),
    skip=st.booleans(),
)
JOBS = st.builds(
    RestoreJob,
    source=PATHS,
    target=NAMES.map(lambda name: Path(f"{name}.mkv")),
    settings=SETTINGS,
    start=st.integers(0, 99),
    end=st.none() | st.integers(100, 999),
    audio=st.booleans(),
    overwrite=st.booleans(),
    range_frames=st.integers(0, 999),
    reserve=st.floats(0, 99),
)


@given(JOBS)
def test_a_job_comes_through_json_unchanged(job: RestoreJob) -> None:
    assert RestoreJob.from_json(json.loads(json.dumps(job.to_json()))) == job


@given(JSON_VALUES, JOBS, st.data())
def test_a_job_with_a_field_of_another_kind_is_refused_or_taken_as_a_whole(
    value: Any, job: RestoreJob, data: st.DataObject
) -> None:
    table = job.to_json()
    name = data.draw(st.sampled_from(sorted(table)))
    try:
        read = RestoreJob.from_json({**table, name: value})
    except ConfigError:
        return
    assert isinstance(read.to_json(), dict)
