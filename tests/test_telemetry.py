"""Shutter times that the camera recorded, matched with the frames."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.gopro import FRAMES, RATE, Recorded, evenly, payload, write_gopro
from vsfmanet.errors import ExposureError
from vsfmanet.exposures.cameras import TrackReader
from vsfmanet.exposures.telemetry import Telemetry, read_telemetry

RAMP = [(0.2 + 0.01 * n) / RATE for n in range(FRAMES)]
"""Shutter times, different for each frame."""


def read(path: Path, packets: list[Recorded], times: list[float] | None = None) -> Telemetry:
    write_gopro(path / "clip.mp4", packets, times=times)
    return read_telemetry(path / "clip.mp4", num_frames=FRAMES if times is None else len(times) - 1)


def known(telemetry: Telemetry) -> list[float]:
    return [math.nan if value is None else value for value in telemetry.exposures]


def test_a_shutter_time_for_each_frame_becomes_its_exposure(tmp_path: Path) -> None:
    telemetry = read(tmp_path, evenly(RAMP))
    assert telemetry.exposures == pytest.approx([0.2 + 0.01 * n for n in range(FRAMES)], rel=1e-3)
    assert telemetry.notice is None


def test_the_last_packet_ends_with_the_pictures_and_not_where_it_claims(tmp_path: Path) -> None:
    times = [n / RATE for n in range(46)]
    telemetry = read(tmp_path, evenly(RAMP[:45]), times)
    assert telemetry.exposures == pytest.approx([0.2 + 0.01 * n for n in range(45)], rel=1e-3)


def test_frames_find_their_shutter_times_by_time_and_not_by_number(tmp_path: Path) -> None:
    # 1 s at 30 frames per second, then 1 s at 15; the shutter is halved after 1 s.
    times = [n / 30 for n in range(30)] + [1 + n / 15 for n in range(16)]
    telemetry = read(tmp_path, evenly([0.02] * 30 + [0.01] * 30), times)
    assert telemetry.exposures == pytest.approx([0.6] * 30 + [0.15] * 15, rel=1e-3)


def test_telemetry_that_is_coarser_than_the_frames_becomes_a_rolling_mean(tmp_path: Path) -> None:
    # Two samples a second. Each is the whole truth at its middle, and between two middles they take turns.
    telemetry = read(tmp_path, evenly([0.01, 0.02, 0.01, 0.02], per_second=2))
    exposures = np.array(known(telemetry))
    middles = (np.arange(FRAMES) + 0.5) / RATE
    expected = np.interp(middles, [0.25, 0.75, 1.25, 1.75], [0.3, 0.6, 0.3, 0.6])
    np.testing.assert_allclose(exposures, expected, atol=1e-3)
    assert telemetry.notice is None


def test_telemetry_that_is_finer_than_the_frames_is_averaged_over_each(tmp_path: Path) -> None:
    telemetry = read(tmp_path, evenly([0.01, 0.02] * FRAMES, per_second=2 * RATE))
    assert telemetry.exposures == pytest.approx([0.45] * FRAMES, rel=1e-3)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, 0.0, -0.01])
def test_samples_that_cannot_be_shutter_times_leave_their_frames_open(tmp_path: Path, nonsense: float) -> None:
    telemetry = read(tmp_path, evenly([nonsense if 10 <= n < 20 else 0.01 for n in range(FRAMES)]))
    assert np.flatnonzero(np.isnan(known(telemetry))).tolist() == list(range(10, 20))
    assert np.nanmax(known(telemetry)) == pytest.approx(0.3, rel=1e-3)
    assert "has a shutter time for 50 of 60 frames" in str(telemetry.notice)


@pytest.mark.parametrize("tiny", [1e-30, 1e-12])
def test_shutter_times_too_short_for_any_camera_are_unknown_and_not_zero(tmp_path: Path, tiny: float) -> None:
    telemetry = read(tmp_path, evenly([tiny if 10 <= n < 20 else 0.01 for n in range(FRAMES)]))
    assert [n for n, value in enumerate(telemetry.exposures) if value is None] == list(range(10, 20))
    assert min(value for value in telemetry.exposures if value is not None) == pytest.approx(0.3, rel=1e-3)
    assert "has a shutter time for 50 of 60 frames" in str(telemetry.notice)


def test_telemetry_that_ends_early_leaves_the_other_frames_open(tmp_path: Path) -> None:
    telemetry = read(tmp_path, evenly([0.01] * 30))
    assert np.isfinite(known(telemetry)).tolist() == [True] * 30 + [False] * 30
    assert "has a shutter time for 30 of 60 frames" in str(telemetry.notice)


def test_telemetry_for_another_number_of_frames_is_not_used_and_the_notice_names_both(tmp_path: Path) -> None:
    path = write_gopro(tmp_path / "clip.mp4", evenly(RAMP))
    telemetry = read_telemetry(path, num_frames=FRAMES - 1)
    assert telemetry.exposures == ()
    assert "is for 60 frames, but the clip has 59 (call vsfmanet.exposure on the whole clip" in str(telemetry.notice)


def test_telemetry_of_a_time_lapse_is_not_used_and_the_notice_names_it(tmp_path: Path) -> None:
    fast = [Recorded(shutter=[0.01] * 30, start=float(k), clock=10.0 * k) for k in range(2)]
    telemetry = read(tmp_path, fast)
    assert telemetry.exposures == ()
    assert "was taken over 10.0 s that are shown in 1.0 s, as in a time lapse" in str(telemetry.notice)


def test_shutter_times_longer_than_a_frame_are_not_used_and_the_notice_names_them(tmp_path: Path) -> None:
    telemetry = read(tmp_path, evenly([0.01] * 40 + [0.05] * 20))
    assert telemetry.exposures == ()
    assert "has shutter times longer than a frame" in str(telemetry.notice)


def test_a_shutter_time_rounded_above_the_frame_is_a_full_exposure(tmp_path: Path) -> None:
    assert known(read(tmp_path, evenly([0.0335] * FRAMES))) == [1.0] * FRAMES


def test_an_unexpected_scale_is_not_guessed(tmp_path: Path) -> None:
    assert read(tmp_path, [Recorded(shutter=[5.0] * 30, scale=1000)]) == Telemetry()


def test_a_file_without_telemetry_or_of_another_kind_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, []) == Telemetry()
    (tmp_path / "words.mkv").write_text("no video")
    assert read_telemetry(tmp_path / "words.mkv", num_frames=3) == Telemetry()


def test_a_packet_that_is_cut_off_has_no_shutter_times() -> None:
    data, reader = payload(Recorded(shutter=RAMP)), TrackReader(is_dji=False)
    for end in range(len(data)):
        assert reader.read(data[:end], 0.0, 1.0) is None
    assert reader.read(8 * b"DEVC" + data, 0.0, 1.0) is None
    whole = reader.read(data + b"more", 0.0, 1.0)
    assert whole is not None
    np.testing.assert_allclose(whole.shutter, RAMP, rtol=1e-6)


def test_a_missing_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExposureError, match=r"^source_path must be the file .* there is no file"):
        read_telemetry(tmp_path / "gone.mp4", num_frames=3)
