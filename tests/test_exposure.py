"""Where a frame's exposure comes from."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

import vsfmanet
from tests.fakes import MixingRestorer, noise_clip, restore_with
from tests.gopro import FRAMES, evenly, write_gopro
from vsfmanet.errors import ExposureError
from vsfmanet.exposures import Exposures, KnownExposure, gather
from vsfmanet.exposures.props import frame_interval
from vsfmanet.exposures.sidecar import sidecar_text
from vsfmanet.settings import ExposureArgument, check_exposure

FILM = Fraction(1, 24)


def known_to(argument: ExposureArgument = "auto", *, num_frames: int = 9, source_path: Path | None = None) -> Exposures:
    return gather(argument, num_frames=num_frames, nominal_interval=FILM, source_path=source_path)


def answer(exposures: Exposures, n: int, props: Mapping[str, object]) -> tuple[object, ...] | None:
    known = exposures.resolve(n, props)
    return None if known is None else (known.value, known.source)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# The argument


@pytest.mark.parametrize("value", [0.5, 1, 1.0, 1e-3, Fraction(1, 5), np.float32(0.25)])
def test_a_number_up_to_one_is_the_exposure_of_all_frames(value: float) -> None:
    assert known_to(value).resolve(3, {}) == KnownExposure(value=float(value), source="argument")


def test_auto_leaves_the_exposure_to_other_sources() -> None:
    assert known_to("auto").resolve(3, {}) is None


@pytest.mark.parametrize("value", [0, -0.5, 1.01, math.nan, math.inf, True, None, "0.5", "network", "", [0.5]])
def test_any_other_argument_is_refused(value: object) -> None:
    with pytest.raises(ExposureError, match=r'^exposure must be "auto" or a number in \(0, 1\], got'):
        check_exposure(value)


def test_the_argument_comes_before_the_properties() -> None:
    props = {"FMANetExposure": 0.2, "ExposureTime": 0.01}
    assert known_to(0.5).resolve(3, props) == KnownExposure(value=0.5, source="argument")


def test_a_function_takes_number_and_properties_and_may_return_none() -> None:
    def ask(frame: int, props: Mapping[str, object]) -> float | None:
        return 0.1 * frame if props.get("Night") else None

    exposures = known_to(ask)
    assert answer(exposures, 3, {"Night": 1, "FMANetExposure": 0.2}) == (pytest.approx(0.3), "argument")
    assert answer(exposures, 4, {"FMANetExposure": 0.2}) == (0.2, "prop")
    assert answer(exposures, 5, {}) is None


@pytest.mark.parametrize("answer", ["0.5", math.nan, 0, -1, 1.5, True, [0.5]])
def test_the_error_of_a_functions_wrong_result_names_the_frame(answer: object) -> None:
    with pytest.raises(ExposureError, match=r"exposure function must return a number .* got .* at frame 7; return"):
        known_to(lambda n, props: answer).resolve(7, {})  # type: ignore[arg-type, return-value]


# Sidecar files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("all.csv", "frame,exposure\n0,0.5\n1,\n2,1\n"),
        ("all.CSV", "\ufeffexposure, frame, note\n1, 2, last\n0.5, 0, first\n\n, 1, between\n"),
        ("all.json", '{"exposure": [0.5, null, 1], "camera": "?"}'),
    ],
)
def test_a_sidecar_gives_each_frame_its_exposure_or_leaves_it_open(tmp_path: Path, name: str, text: str) -> None:
    exposures = known_to(written(tmp_path, name, text), num_frames=3)
    assert exposures.resolve(0, {"FMANetExposure": 0.2}) == KnownExposure(value=0.5, source="argument")
    assert exposures.resolve(1, {"FMANetExposure": 0.2}) == KnownExposure(value=0.2, source="prop")
    assert exposures.resolve(1, {}) is None
    assert exposures.resolve(2, {}) == KnownExposure(value=1.0, source="argument")


def test_the_path_of_a_sidecar_may_be_text(tmp_path: Path) -> None:
    path = written(tmp_path, "all.csv", "frame,exposure\n0,0.5\n")
    assert known_to(str(path), num_frames=1).resolve(0, {}) == KnownExposure(value=0.5, source="argument")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_sidecar_that_was_written_reads_the_same(tmp_path: Path, suffix: str) -> None:
    text = sidecar_text(suffix, exposures=[1 / 3, None], sources=["telemetry", None], times=[0.0, 1 / 24])
    exposures = known_to(written(tmp_path, f"all{suffix}", text), num_frames=2)
    assert exposures.argument == (1 / 3, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frame,exposure\n0,0.5\n1,fast\n2,0.5\n", r"row 3 \(frame 1\): the exposure must be .* got 'fast'"),
        ("frame,exposure\n0,0.5\n1,nan\n2,0.5\n", r"row 3 \(frame 1\): the exposure must be .* got nan"),
        ("frame,exposure\n0,0\n1,0.5\n2,0.5\n", r"row 2 \(frame 0\): the exposure must be .* got 0.0"),
        ("frame,exposure\n0,-0.5\n1,0.5\n2,0.5\n", r"row 2 \(frame 0\): the exposure must be .* got -0.5"),
        ("frame,exposure\n0,0.5\n1,0.5\n2,1.5\n", r"row 4 \(frame 2\): the exposure must be .* got 1.5"),
        ("frame,exposure\n0,0.5\n1,0.5\n1,0.5\n2,0.5\n", "row 4: each of the frames 0 to 2 .* frame 1 a second time"),
        ("frame,exposure\n0,0.5\n1,0.5\n2,0.5\n3,0.5\n", "row 5: each of the frames 0 to 2 .* got frame 3;"),
        ("frame,exposure\n-1,0.5\n", "row 2: each of the frames 0 to 2 .* got frame -1;"),
        ("frame,exposure\n0,0.5\n2,0.5\n", "3 frames are needed, got 2, without frame 1"),
        ("frame,exposure\n", "3 frames are needed, got 0, without frame 0"),
        ("frame,exposure\nx,0.5\n", "row 2: the frame must be a whole number, got 'x'"),
        ("frame,exposure\n0\n", "row 2: 2 cells are needed"),
        ("frame,exposure\n0,0,5\n", "row 2: 2 cells are needed"),
        ("frame;exposure\n0;0.5\n", "the first line must name the columns .* got frame;exposure"),
        ("", "the first line must name the columns .* got nothing"),
        ("0,0.5\n1,0.5\n", "the first line must name the columns"),
        (f"frame,exposure\n0,{'5' * 200_000}\n", "must be readable CSV or JSON text"),
    ],
)
def test_the_error_of_a_csv_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, "all.csv", text)
    with pytest.raises(ExposureError, match=f"^.*all.csv.*{message}"):
        known_to(path, num_frames=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"exposure": [0.5, "0.5", 0.5]}', "frame 1: the exposure must be .* got '0.5'"),
        ('{"exposure": [0.5, NaN, 0.5]}', "frame 1: the exposure must be .* got nan"),
        ('{"exposure": [true, 0.5, 0.5]}', "frame 0: the exposure must be .* got True"),
        ('{"exposure": [0.5, 0.5, 1.5]}', "frame 2: the exposure must be .* got 1.5"),
        ('{"exposure": [0.5, [0.5], 0.5]}', r"frame 1: the exposure must be .* got \[0.5\]"),
        ('{"exposure": [0.5, 0.5]}', "3 frames are needed, got 2, without frame 2"),
        ('{"exposure": [0.5, 0.5, 0.5, 0.5]}', "frame 3: each of the frames 0 to 2 .* got frame 3;"),
        ('{"exposure": 0.5}', 'an object with a list "exposure" is needed'),
        ("[0.5, 0.5, 0.5]", 'an object with a list "exposure" is needed'),
        ('{"exposure": [0.5', "must be readable CSV or JSON text, got"),
        ("[" * 100_000, "must be readable CSV or JSON text, got"),
    ],
)
def test_the_error_of_a_json_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, "all.json", text)
    with pytest.raises(ExposureError, match=f"^.*all.json.*{message}"):
        known_to(path, num_frames=3)


def test_a_sidecar_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExposureError, match=r"^the exposure file .*gone.csv must be readable .* No such file"):
        known_to(tmp_path / "gone.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExposureError, match=r"^the exposure file .*bytes.csv must be readable .* decode"):
        known_to(tmp_path / "bytes.csv")


# Properties


def test_our_property_comes_before_the_exposure_time() -> None:
    props = {"FMANetExposure": 0.2, "ExposureTime": 0.01}
    assert known_to().resolve(3, props) == KnownExposure(value=0.2, source="prop")


def test_the_exposure_time_is_divided_by_the_frame_interval() -> None:
    known = known_to().resolve(3, {"ExposureTime": 1 / 48})
    assert known is not None
    assert known.value == pytest.approx(0.5)
    assert known.source == "prop"


def test_without_any_the_exposure_is_unknown() -> None:
    assert known_to().resolve(3, {"_DurationNum": 1, "_DurationDen": 24}) is None


@pytest.mark.parametrize(("num", "den"), [(33, 1000), (34, 1000), (1, 30)])
def test_durations_rounded_to_milliseconds_count_as_the_nominal_one(num: int, den: int) -> None:
    props = {"_DurationNum": num, "_DurationDen": den}
    assert frame_interval(props, Fraction(1, 30)) == Fraction(1, 30)


@pytest.mark.parametrize(("num", "den"), [(1, 60), (67, 1000), (1001, 30000)])
def test_other_durations_are_preferred_to_an_average_rate(num: int, den: int) -> None:
    props = {"_DurationNum": num, "_DurationDen": den}
    assert frame_interval(props, Fraction(1, 30)) == Fraction(num, den)


def test_a_clip_without_a_rate_has_its_frames_durations() -> None:
    assert frame_interval({"_DurationNum": 33, "_DurationDen": 1000}, None) == Fraction(33, 1000)


@pytest.mark.parametrize("props", [{}, {"_DurationNum": 0, "_DurationDen": 1}, {"_DurationNum": 1}])
def test_a_frame_without_a_duration_has_the_nominal_one(props: dict[str, object]) -> None:
    assert frame_interval(props, FILM) == FILM
    assert frame_interval(props, None) is None


def test_a_shutter_time_rounded_above_the_interval_is_a_full_exposure() -> None:
    known = known_to().resolve(0, {"ExposureTime": 0.0417})
    assert known is not None
    assert known.value == 1.0


@pytest.mark.parametrize(
    ("props", "message"),
    [
        ({"FMANetExposure": 1.5}, r"FMANetExposure must be in \(0, 1\], got 1.5 at frame 7"),
        ({"FMANetExposure": 0}, r"FMANetExposure must be in \(0, 1\], got 0.0 at frame 7"),
        ({"FMANetExposure": math.nan}, r"FMANetExposure must be in \(0, 1\], got nan at frame 7"),
        ({"FMANetExposure": "0.5"}, "FMANetExposure must be one number, got '0.5' at frame 7"),
        ({"ExposureTime": [0.01, 0.02]}, r"ExposureTime must be one number, got \[0.01, 0.02\] at frame 7"),
        (
            {"ExposureTime": -1.0},
            "ExposureTime must be above 0 and at most the frame interval of .* s, got -1.0 at frame 7",
        ),
        (
            {"ExposureTime": 20},
            "ExposureTime must be above 0 and at most the frame interval of .* s, got 20.0 at frame 7",
        ),
    ],
)
def test_a_property_that_cannot_be_an_exposure_is_named(props: dict[str, object], message: str) -> None:
    with pytest.raises(ExposureError, match=f"^{message}"):
        known_to().resolve(7, props)


def test_an_exposure_time_without_any_duration_is_refused() -> None:
    exposures = gather("auto", num_frames=9, nominal_interval=None)
    with pytest.raises(ExposureError, match="ExposureTime needs a frame duration to divide by, got none at frame 7"):
        exposures.resolve(7, {"ExposureTime": 0.01})


# Telemetry


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A file whose camera recorded an exposure of 0.3."""
    return write_gopro(tmp_path / "clip.mp4", evenly([0.01] * FRAMES))


def test_telemetry_comes_after_the_properties(recording: Path) -> None:
    exposures = known_to(num_frames=FRAMES, source_path=recording)
    assert answer(exposures, 59, {}) == (pytest.approx(0.3, rel=1e-3), "telemetry")
    assert answer(exposures, 59, {"FMANetExposure": 0.2}) == (0.2, "prop")


def test_telemetry_is_used_where_a_function_returns_none(recording: Path) -> None:
    exposures = known_to(lambda n, props: 0.5 if n == 1 else None, num_frames=FRAMES, source_path=recording)
    assert answer(exposures, 1, {}) == (0.5, "argument")
    assert answer(exposures, 2, {}) == (pytest.approx(0.3, rel=1e-3), "telemetry")


def test_a_number_for_all_frames_needs_no_telemetry(tmp_path: Path) -> None:
    assert known_to(0.5, source_path=tmp_path / "gone.mp4").telemetry == ()


# The filter's functions


def exposure_of(frame: vs.VideoFrame) -> tuple[object, ...]:
    names = ("FMANetExposure", "FMANetExposureSource", "FMANetExposureConfidence")
    return tuple(frame.props.get(name) for name in names)


def test_exposure_writes_known_exposures_and_leaves_other_frames_unchanged() -> None:
    clip = vsfmanet.exposure(noise_clip(3), exposure=lambda n, props: 0.25 if n == 1 else None)
    assert [exposure_of(frame) for frame in clip.frames()] == [(None,) * 3, (0.25, "argument", 1.0), (None,) * 3]


def test_written_exposures_stay_with_their_frames_when_the_clip_is_cut(recording: Path) -> None:
    tagged = vsfmanet.exposure(noise_clip(FRAMES), source_path=recording)
    assert exposure_of(tagged.get_frame(0)) == (pytest.approx(0.3, rel=1e-3), "telemetry", 1.0)
    restored = restore_with(tagged[20:23], MixingRestorer())
    assert exposure_of(restored.get_frame(1))[:2] == (pytest.approx(0.3, rel=1e-3), "prop")


def test_restore_uses_telemetry_and_names_it_as_the_source(recording: Path) -> None:
    restored = restore_with(noise_clip(FRAMES), MixingRestorer(), source_path=recording)
    assert exposure_of(restored.get_frame(30))[:2] == (pytest.approx(0.3, rel=1e-3), "telemetry")


def test_telemetry_that_does_not_fit_the_clip_is_not_used_with_a_warning(
    recording: Path, caplog: pytest.LogCaptureFixture
) -> None:
    restored = restore_with(noise_clip(FRAMES)[10:15], MixingRestorer(), source_path=recording)
    assert exposure_of(restored.get_frame(0))[1] == "network"
    assert "is for 60 frames, but the clip has 5" in caplog.text


def test_restore_takes_a_sidecar_and_counts_its_frames(tmp_path: Path) -> None:
    path = written(tmp_path, "all.json", json.dumps({"exposure": [0.1, 0.2, 0.3]}))
    restored = restore_with(noise_clip(3), MixingRestorer(), exposure=path, segment=2)
    assert [exposure_of(restored.get_frame(n))[:2] for n in (2, 0, 1)] == [
        (0.3, "argument"), (0.1, "argument"), (0.2, "argument"),
    ]  # fmt: skip
    with pytest.raises(ExposureError, match=r"all.json: 4 frames are needed, got 3, without frame 3"):
        restore_with(noise_clip(4), MixingRestorer(), exposure=path)


def test_a_function_takes_the_clips_frame_numbers_for_any_segment() -> None:
    def ask(n: int, props: Mapping[str, object]) -> float:
        return (n + 1) / 10

    clips = [restore_with(noise_clip(9), MixingRestorer(), exposure=ask, segment=length) for length in (1, 4, 64)]
    assert [[exposure_of(clip.get_frame(n))[0] for n in (8, 0, 4)] for clip in clips] == [[0.9, 0.1, 0.5]] * 3


@pytest.mark.parametrize("prefetch", [1, 8, 32])
@pytest.mark.parametrize("skip", [False, True])
def test_a_function_is_called_once_a_frame_while_frames_are_read_in_order(prefetch: int, skip: bool) -> None:
    vs.core.num_threads = 2  # few, so that a window is read long after its frames were asked for
    asked: list[int] = []

    def ask(n: int, props: Mapping[str, object]) -> float | None:
        asked.append(n)
        return None if n % 3 else 0.5

    restored = restore_with(noise_clip(150), MixingRestorer(scale=1), exposure=ask, segment=5, skip=skip)
    frames = list(restored.frames(prefetch=prefetch, close=False))
    assert sorted(asked) == list(range(150))
    assert [frame.props["FMANetExposureSource"] for frame in frames[:4]] == [
        "argument",
        "network",
        "network",
        "argument",
    ]


@pytest.mark.parametrize("function", ["restore", "exposure"])
def test_a_function_is_called_once_a_frame_in_any_order(function: str) -> None:
    asked: list[int] = []

    def ask(n: int, props: Mapping[str, object]) -> float | None:
        asked.append(n)
        return None if n % 3 else (n + 1) / 2000

    clip = noise_clip(1100)  # far more frames than are cached
    if function == "restore":
        result = restore_with(clip, MixingRestorer(scale=1), exposure=ask)
    else:
        result = vsfmanet.exposure(clip, exposure=ask)
    order = random.Random(0).sample(range(clip.num_frames), 60)
    for n in [*order, *reversed(order)]:
        props = result.get_frame(n).props
        assert n % 3 or exposure_of(result.get_frame(n))[:2] == ((n + 1) / 2000, "argument")
        assert props.get("FMANetExposureSource") != "argument" or n % 3 == 0
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": "clip.mkv"}, "exposure: clip must be a video clip, got str"),
        ({"exposure": 2}, 'exposure: exposure must be "auto" or a number'),
        ({"exposure": "gone.json"}, "exposure: the exposure file gone.json must be readable"),
        ({"source_path": "gone.mp4"}, "exposure: source_path must be the file that the clip comes from"),
    ],
)
def test_errors_begin_with_the_name_of_the_function(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(vs.Error, match=f"^{message}"):
        vsfmanet.exposure(**{"clip": noise_clip(1), **arguments})
