"""Where a frame's exposure comes from."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from vsfmanet.errors import ExposureError
from vsfmanet.exposure import KnownExposure, check_argument, resolve
from vsfmanet.exposure.props import frame_interval

FILM = Fraction(1, 24)


@pytest.mark.parametrize("value", [0.5, 1, 1.0, 1e-3, Fraction(1, 5), np.float32(0.25)])
def test_a_number_up_to_one_is_an_exposure(value: float) -> None:
    assert check_argument(value) == float(value)


def test_auto_leaves_the_exposure_to_other_sources() -> None:
    assert check_argument("auto") is None


@pytest.mark.parametrize("value", [0, -0.5, 1.01, math.nan, math.inf, True, None, "0.5", "network", [0.5]])
def test_any_other_argument_is_refused(value: object) -> None:
    with pytest.raises(ExposureError, match=r'restore: exposure must be "auto" or a number in \(0, 1\], got'):
        check_argument(value)


def test_the_argument_comes_before_the_properties() -> None:
    props = {"FMANetExposure": 0.2, "ExposureTime": 0.01}
    known = resolve(0.5, props, frame=3, nominal_interval=FILM)
    assert known == KnownExposure(value=0.5, source="argument")


def test_our_property_comes_before_the_exposure_time() -> None:
    props = {"FMANetExposure": 0.2, "ExposureTime": 0.01}
    known = resolve(None, props, frame=3, nominal_interval=FILM)
    assert known == KnownExposure(value=0.2, source="prop")


def test_the_exposure_time_is_set_against_the_frame_interval() -> None:
    known = resolve(None, {"ExposureTime": 1 / 48}, frame=3, nominal_interval=FILM)
    assert known is not None
    assert known.value == pytest.approx(0.5)
    assert known.source == "prop"


def test_without_any_the_network_is_left_to_see() -> None:
    assert resolve(None, {"_DurationNum": 1, "_DurationDen": 24}, frame=3, nominal_interval=FILM) is None


@pytest.mark.parametrize(("num", "den"), [(33, 1000), (34, 1000), (1, 30)])
def test_durations_rounded_to_milliseconds_count_as_the_nominal_one(num: int, den: int) -> None:
    props = {"_DurationNum": num, "_DurationDen": den}
    assert frame_interval(props, Fraction(1, 30)) == Fraction(1, 30)


@pytest.mark.parametrize(("num", "den"), [(1, 60), (67, 1000), (1001, 30000)])
def test_other_durations_are_believed_over_an_average_rate(num: int, den: int) -> None:
    props = {"_DurationNum": num, "_DurationDen": den}
    assert frame_interval(props, Fraction(1, 30)) == Fraction(num, den)


def test_a_clip_without_a_rate_has_its_frames_durations() -> None:
    assert frame_interval({"_DurationNum": 33, "_DurationDen": 1000}, None) == Fraction(33, 1000)


@pytest.mark.parametrize("props", [{}, {"_DurationNum": 0, "_DurationDen": 1}, {"_DurationNum": 1}])
def test_a_frame_without_a_duration_has_the_nominal_one(props: dict[str, object]) -> None:
    assert frame_interval(props, FILM) == FILM
    assert frame_interval(props, None) is None


def test_a_shutter_time_rounded_above_the_interval_is_a_full_exposure() -> None:
    known = resolve(None, {"ExposureTime": 0.0417}, frame=0, nominal_interval=FILM)
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
    with pytest.raises(ExposureError, match=f"restore: {message}"):
        resolve(None, props, frame=7, nominal_interval=FILM)


def test_an_exposure_time_without_any_duration_is_refused() -> None:
    with pytest.raises(
        ExposureError, match="ExposureTime needs a frame duration to be set against, got none at frame 7"
    ):
        resolve(None, {"ExposureTime": 0.01}, frame=7, nominal_interval=None)
