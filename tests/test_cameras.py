"""Shutter times of Sony, DJI and Insta360 cameras, in files made after the descriptions of their formats."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cameras import dji_packet, insta360_tail, sony_packet, subtitles
from tests.gopro import FRAMES, RATE, Recorded, payload, write_film
from vsfmanet.exposures.cameras import DJI_TRACK, TrackReader, read_insta360, read_srt
from vsfmanet.exposures.telemetry import MIN_EXPOSURE, Telemetry, read_telemetry

Tracked = list[tuple[bytes, float, float]]

RAMP = [60 + 2 * n for n in range(FRAMES)]
"""Reciprocals of the shutter times, different for each frame."""

EXPOSURES = [RATE / one for one in RAMP]


def by_frames(packets: list[bytes]) -> Tracked:
    return [(packet, n / RATE, 1 / RATE) for n, packet in enumerate(packets)]


def read(path: Path, packets: Tracked, *, name: str = "", codec: str = "bin_data", frames: int = FRAMES) -> Telemetry:
    write_film(path / "film.mp4", packets, name=name, codec=codec)
    return read_telemetry(path / "film.mp4", num_frames=frames)


def test_sony_records_the_shutter_time_of_each_frame(tmp_path: Path) -> None:
    telemetry = read(tmp_path, by_frames([sony_packet((1, one), rate=(RATE, 1)) for one in RAMP]))
    assert telemetry.exposures == pytest.approx(EXPOSURES, rel=1e-3)
    assert telemetry.notice is None


def test_sony_frames_of_changing_length_find_their_shutter_by_time(tmp_path: Path) -> None:
    times = [n / 30 for n in range(30)] + [1 + n / 15 for n in range(16)]
    spans = list(zip(times[:-1], np.diff(times), strict=True))
    packets = [(sony_packet((1, 50 if start < 1 else 100)), start, span) for start, span in spans]
    write_film(tmp_path / "film.mp4", packets, times=times)
    telemetry = read_telemetry(tmp_path / "film.mp4", num_frames=45)
    assert telemetry.exposures == pytest.approx([0.6] * 30 + [0.15] * 15, rel=1e-3)


def test_slow_motion_of_sony_counts_by_its_rate_of_capture(tmp_path: Path) -> None:
    # A 240th of a second at 120 frames a second is half of the way from frame to frame, at whatever rate it is shown.
    telemetry = read(tmp_path, by_frames([sony_packet((1, 240), rate=(120_000, 1001))] * FRAMES))
    assert telemetry.exposures == pytest.approx([0.5] * FRAMES, rel=2e-3)


def test_sony_may_record_an_angle_instead_of_a_time(tmp_path: Path) -> None:
    telemetry = read(tmp_path, by_frames([sony_packet(None, rate=(RATE, 1), degrees=172.8)] * FRAMES))
    assert telemetry.exposures == pytest.approx([0.48] * FRAMES, rel=1e-3)


@pytest.mark.parametrize(("product", "field"), [("ac203", 4), ("wm265e", 3), ("Mini4_Pro", 10)])
@pytest.mark.parametrize("packed", [True, False])
def test_dji_records_the_shutter_time_in_the_field_of_its_product(
    tmp_path: Path, product: str, field: int, packed: bool
) -> None:
    packets = [
        dji_packet((1, one), clock=100 + n / RATE, product=None if n else product, field=field, packed=packed)
        for n, one in enumerate(RAMP)
    ]
    telemetry = read(tmp_path, by_frames(packets), name=DJI_TRACK)
    assert telemetry.exposures == pytest.approx(EXPOSURES, rel=1e-3)
    assert telemetry.notice is None


def test_an_unknown_product_of_dji_is_not_guessed(tmp_path: Path) -> None:
    packets = [dji_packet((1, 60), clock=None, product=None if n else "wm999") for n in range(FRAMES)]
    assert read(tmp_path, by_frames(packets), name=DJI_TRACK) == Telemetry()


def test_a_time_lapse_of_dji_is_not_used_and_the_notice_names_it(tmp_path: Path) -> None:
    packets = [dji_packet((1, 60), clock=2.0 * n, product="ac204") for n in range(FRAMES)]
    telemetry = read(tmp_path, by_frames(packets), name=DJI_TRACK)
    assert telemetry.exposures == ()
    assert "was taken over 118.0 s that are shown in 2.0 s, as in a time lapse" in str(telemetry.notice)


@pytest.mark.parametrize(
    "line",
    [
        '<font size="36">SrtCnt : 1, DiffTime : 33ms\n[iso : 100] [shutter : 1/{}.0] [fnum : 280] [ev : 0]</font>',
        "HOME(2.1,41.3) 2019.01.01 12:00:00\nISO:100 Shutter:{} EV:0 Fnum:F2.8",
        "F/2.8, SS {}.00, ISO 100, EV 0, GPS (2.2341, 41.4247, 19), D 2.80m, H 0.00m, H.S 0.00m/s",
    ],
)
def test_dji_subtitles_beside_the_film_are_read(tmp_path: Path, line: str) -> None:
    (tmp_path / "film.SRT").write_text(subtitles([line.format(one) for one in RAMP], seconds=1 / RATE))
    telemetry = read(tmp_path, [])
    # Subtitles count in milliseconds, so a frame has a little of its neighbour's.
    assert telemetry.exposures == pytest.approx(EXPOSURES, rel=5e-3)
    assert telemetry.notice is None


def test_dji_subtitles_in_the_film_that_change_each_second_become_a_rolling_mean(tmp_path: Path) -> None:
    lines = [f"F/2.8, SS {one}, ISO 100, EV 0".encode() for one in (60, 120)]
    packets = [(len(line).to_bytes(2, "big") + line, float(n), 1.0) for n, line in enumerate(lines)]
    telemetry = read(tmp_path, packets, codec="mov_text")
    middles = (np.arange(FRAMES) + 0.5) / RATE
    expected = np.interp(middles, [0.5, 1.5], [0.5, 0.25])
    np.testing.assert_allclose(np.array(telemetry.exposures, dtype=float), expected, atol=1e-3)


def test_subtitles_of_another_film_are_not_used_and_the_notice_names_them(tmp_path: Path) -> None:
    (tmp_path / "film.srt").write_text(subtitles(["[shutter : 1/60.0]"] * 150, seconds=1 / RATE))
    telemetry = read(tmp_path, [])
    assert telemetry.exposures == ()
    assert f"{tmp_path / 'film.srt'} is 5.0 s long, but the film is 2.0 s" in str(telemetry.notice)


def test_subtitles_with_words_are_no_telemetry(tmp_path: Path) -> None:
    (tmp_path / "film.srt").write_text(subtitles(["Close the shutters!", "It is 1/2 past nine."], seconds=1.0))
    assert read(tmp_path, []) == Telemetry()


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("ticks", [1_000_000, 1000])
def test_insta360_records_the_shutter_times_after_the_end_of_the_file(
    tmp_path: Path, indexed: bool, ticks: int
) -> None:
    # Some entries come before the first frame that was kept, and some after the last.
    clocks = [round(5 * ticks + n * ticks / RATE) for n in range(-6, FRAMES + 4)]
    shutter = [0.001] * 6 + [1 / one for one in RAMP] + [0.001] * 4
    path = write_film(tmp_path / "film.mp4", [])
    path.write_bytes(path.read_bytes() + insta360_tail(clocks, shutter, first=clocks[6], indexed=indexed))
    telemetry = read_telemetry(path, num_frames=FRAMES)
    assert telemetry.exposures == pytest.approx(EXPOSURES, rel=2e-3)
    assert telemetry.notice is None


def test_insta360_footage_in_slow_motion_is_not_used_and_the_notice_names_it(tmp_path: Path) -> None:
    clocks = [round(1e6 * n / 240) for n in range(10 * FRAMES)]
    path = write_film(tmp_path / "film.mp4", [], times=[n / RATE for n in range(10 * FRAMES + 1)])
    path.write_bytes(path.read_bytes() + insta360_tail(clocks, [0.002] * 10 * FRAMES, first=0, indexed=True))
    telemetry = read_telemetry(path, num_frames=10 * FRAMES)
    assert telemetry.exposures == ()
    assert "is 2.5 s long, but the film is 20.0 s" in str(telemetry.notice)


def test_data_that_are_cut_off_or_not_of_a_camera_are_not_read(tmp_path: Path) -> None:
    sony, dji = sony_packet((1, 60)), dji_packet((1, 60), clock=1.0, product="ac203")
    noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    for data in [sony[:end] for end in range(len(sony) - 64)] + [noise, b"\x00\x1c" + noise, b""]:
        assert TrackReader(is_dji=False).read(data, 0.0, 1.0) is None
    for data in [dji[:end] for end in range(len(dji))] + [noise, b"\xff" * 50, b""]:
        assert TrackReader(is_dji=True).read(data, 0.0, 1.0) is None
    tail = insta360_tail([0, 33_333], [0.01, 0.01], first=0, indexed=False)
    for data in [noise + tail[:-1], tail[60:], noise[:300] + tail[-72:]]:
        (tmp_path / "cut").write_bytes(data)
        assert read_insta360(tmp_path / "cut") == []


# Bytes that no camera wrote

PACKETS = [
    sony_packet((1, 60), rate=(RATE, 1), degrees=90),
    dji_packet((1, 60), clock=1.0, product="ac203"),
    payload(Recorded(shutter=[0.01] * 8)),
]


def mangled(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Cut, spliced and altered bytes, and some that are nothing at all."""

    def splice(data: bytes, start: int, stop: int, other: bytes) -> bytes:
        return data[: start % (len(data) + 1)] + other + data[stop % (len(data) + 1) :]

    return st.one_of(
        st.binary(max_size=300), st.builds(splice, whole, st.integers(0), st.integers(0), st.binary(max_size=9))
    )


@pytest.mark.fuzz
@given(mangled(st.sampled_from(PACKETS)), st.booleans())
def test_no_bytes_make_a_packet_fail(data: bytes, is_dji: bool) -> None:
    reader = TrackReader(is_dji=is_dji)
    reader.read(PACKETS[1], 0.0, 1.0)  # names a product
    packet = reader.read(data, 0.0, 1.0)
    assert packet is None or len(packet.shutter) > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for files that every example writes anew."""
    return tmp_path_factory.mktemp("cameras")


TAILS = [insta360_tail([0, 33_333, 66_666], [0.01] * 3, first=0, indexed=indexed) for indexed in (True, False)]


@pytest.mark.fuzz
@given(mangled(st.sampled_from(TAILS)))
def test_no_bytes_after_the_end_of_a_film_make_it_fail(folder: Path, data: bytes) -> None:
    (folder / "film.insv").write_bytes(b"film" * 20 + data + TAILS[0][-72:])
    starts = [packet.start for packet in read_insta360(folder / "film.insv")]
    assert starts == sorted(starts)


LINES = st.one_of(
    st.sampled_from(
        ["00:00:01,000 --> 00:00:02,000", "[shutter : 1/60.0]", "Shutter:", "SS 1", "SS 0", "--> ", "", "12"]
    ),
    st.text(max_size=30),
)


@pytest.mark.fuzz
@given(st.lists(LINES, max_size=6), st.sampled_from(["\n", "\r\n", " "]))
def test_no_text_makes_subtitles_fail(folder: Path, lines: list[str], end: str) -> None:
    (folder / "film.srt").write_bytes(end.join(lines).encode("utf-8", errors="surrogatepass"))
    for packet in read_srt(folder / "film.srt"):
        assert packet.duration >= 0
        assert packet.shutter[0] >= 0


@pytest.mark.parametrize(
    "text",
    ["1" * 300_000, "00:" * 100_000, "SS " * 100_000, "shutter" + " " * 300_000, "\n" * 300_000, "\n " * 150_000,
     "00:00:01,000 --> 00:00:02,000\n" * 10_000],
    ids=["digits", "times", "words", "spaces", "lines", "blank lines", "cues"],
)  # fmt: skip
def test_subtitles_take_time_in_proportion_to_their_length(folder: Path, text: str) -> None:
    (folder / "long.srt").write_text(text)
    started = time.process_time()
    assert read_srt(folder / "long.srt") == []
    assert time.process_time() - started < 1  # by squares it would be minutes


def test_a_clock_or_a_time_of_any_length_is_no_error(folder: Path) -> None:
    stream = _gpmf(b"TICK", b"L", 4, b"\1" + bytes(999)) + _gpmf(b"SHUT", b"f", 4, struct.pack(">f", 0.01))
    data = _gpmf(b"DEVC", b"\0", 1, _gpmf(b"STRM", b"\0", 1, stream))
    packet = TrackReader(is_dji=False).read(data, 0.0, 1.0)
    assert packet is not None
    assert packet.clock is None
    (folder / "late.srt").write_text("9" * 5000 + ":00:00,000 --> 00:00:01,000\nSS 60\n")
    assert read_srt(folder / "late.srt") == []


def _gpmf(key: bytes, kind: bytes, size: int, value: bytes) -> bytes:
    return struct.pack(">4scBH", key, kind, size, len(value) // size) + value + b"\0" * (-len(value) % 4)


@pytest.mark.fuzz
@given(st.data())
def test_no_byte_changed_in_a_film_makes_its_telemetry_fail(film: bytes, folder: Path, data: st.DataObject) -> None:
    changed = bytearray(film)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(film) - 1))] = data.draw(st.integers(0, 255))
    (folder / "film.mp4").write_bytes(changed)
    exposures = read_telemetry(folder / "film.mp4", num_frames=FRAMES).exposures
    assert all(one is None or MIN_EXPOSURE <= one <= 1 for one in exposures)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small film with shutter times."""
    path = write_film(tmp_path_factory.mktemp("film") / "film.mp4", [(PACKETS[2], 0.0, 1.0), (PACKETS[2], 1.0, 1.0)])
    return path.read_bytes()
