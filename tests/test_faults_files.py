"""Files as people have them, each with what is right for it. Those in `cases/` are FFmpeg's test patterns."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.films import (
    FFMPEG,
    H264,
    LOSSLESS,
    ffmpeg,
    frames_hash,
    lighten,
    packets,
    picture,
    restore,
    sound,
    steps,
    times,
)
from vsfmanet.cli import main
from vsfmanet.errors import DamagedError, FormatError, OutputError
from vsfmanet.jobs import opening, runner
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.record import read_record
from vsfmanet.media import clip as clips
from vsfmanet.media import edges
from vsfmanet.media import source as sources
from vsfmanet.media.clip import SourceClip
from vsfmanet.media.commands import whole_run
from vsfmanet.media.decode import Decoded, decode, decode_all
from vsfmanet.media.ffmpeg import Ffmpeg, Run
from vsfmanet.media.film import Film
from vsfmanet.media.log import logged
from vsfmanet.media.source import inspect
from vsfmanet.media.thumbnails import frame_planes
from vsfmanet.media.verify import check_trial
from vsfmanet.settings import RestoreSettings
from vsfmanet.sizes import result_size

pytestmark = pytest.mark.usefixtures("in_this_process")

CASES = Path(__file__).with_name("cases")


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    lighten(monkeypatch)


def opened(path: Path) -> SourceClip:
    """What the filter gets of a file."""
    return clips.open_clip(inspect(path), threads=0)


def apart(path: Path) -> Fraction:
    """From the first frame to the first packet of sound, seconds."""
    return packets(path, 1)[0][0] - times(path)[0]


# Damage in the first key frame


CODECS = {
    "h264": ("mkv", [*H264]),
    "mpeg2video": ("ts", ["-c:v", "mpeg2video", "-bf", "2"]),
    "mpeg4": ("avi", ["-c:v", "mpeg4"]),
    "wmv2": ("wmv", ["-c:v", "wmv2"]),
    "ffv1": ("mkv", ["-c:v", "ffv1"]),
    "mjpeg": ("mov", ["-c:v", "mjpeg"]),
    "prores": ("mov", ["-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"]),
    "av1": ("mkv", ["-c:v", "libsvtav1", "-preset", "13", "-svtav1-params", "lp=1"]),
}


@pytest.fixture(scope="session", params=CODECS)
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of each codec."""
    suffix, options = CODECS[request.param]
    path = tmp_path_factory.mktemp("films") / f"{request.param}.{suffix}"
    ffmpeg(*picture(0.48), *options, path)
    return path


def flipped(film: Path, folder: Path, count: int) -> list[Path]:
    """Copies of a film, each with another bit flipped in its first key frame."""
    data, chance = film.read_bytes(), random.Random(film.name)
    with av.open(str(film)) as container:
        first = bytes(next(packet for packet in container.demux(video=0) if packet.size))
    inside = data.index(first[-24:]) + 24 - len(first) + 24  # transport streams have headers of their own between
    made = []
    for number in range(count):
        changed = bytearray(data)
        changed[chance.randrange(inside, inside + len(first) - 26)] ^= 1 << chance.randrange(8)
        made.append(folder / f"{number}{film.suffix}")
        made[-1].write_bytes(changed)
    return made


def test_a_first_key_frame_that_ffmpeg_complains_of_is_damage(film: Path, tmp_path: Path) -> None:
    assert inspect(film).faults == opened(film).faults == ()
    complained = 0
    for path in flipped(film, tmp_path, 10):
        line = [FFMPEG, "-v", "error", "-i", path, "-f", "null", "-"]
        if subprocess.run(line, capture_output=True, check=False).stderr:
            complained += 1
            assert is_called_damaged(path), path
    assert complained


class Corrupt:
    """A frame that its decoder marks as corrupt."""

    is_corrupt = True

    def __init__(self, frame: av.VideoFrame) -> None:
        self._frame = frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frame, name)


@pytest.mark.parametrize("damaged", [0, 4])
def test_a_frame_that_is_marked_as_corrupt_without_a_message_is_damage(
    film: Path, damaged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the source and in the output."""
    real = decode

    def marked(*arguments: Any) -> Iterator[Any]:
        count = 0
        for step in real(*arguments):
            frames = tuple(Corrupt(frame) if count + i == damaged else frame for i, frame in enumerate(step.frames))
            count += len(frames)
            yield SimpleNamespace(packet=step.packet, frames=frames, complaint=step.complaint)

    check_trial(film, (64, 48), times(film))
    monkeypatch.setattr("vsfmanet.media.decode.decode", marked)
    monkeypatch.setattr("vsfmanet.media.verify.decode", marked)
    with pytest.raises(OutputError, match=f"frame {damaged} is damaged"):
        check_trial(film, (64, 48), times(film))
    [fault] = opened(film).faults
    assert fault.startswith("1 frames decode with errors")


def is_called_damaged(path: Path) -> bool:
    """Whether a file is refused for its damage, or restored only if the user asks for what is left."""
    try:
        return bool(inspect(path).faults + opened(path).faults)
    except DamagedError:
        return True


def test_no_film_with_a_damaged_first_key_frame_is_restored_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, made = tmp_path / "film.mkv", tmp_path / "made.mkv"
    ffmpeg(*picture(0.48), "-c:v", "mjpeg", film)  # its decoder marks no frame as corrupt
    damaged = next(path for path in flipped(film, tmp_path, 40) if is_called_damaged(path))
    assert restore(damaged, made) == 3
    assert "frames decode with errors, the first near 0.00 s" in capsys.readouterr().err
    assert not made.exists()
    assert restore(damaged, made, "--on-damage=salvage") == 0


def test_a_recording_that_starts_inside_a_group_of_pictures_is_whole(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.ts", tmp_path / "part.ts"
    ffmpeg(*picture(2), "-c:v", "mpeg2video", "-bf", "2", "-g", "12", whole)
    data = whole.read_bytes()
    part.write_bytes(data[188 * (len(data) // 188 // 3) :])
    clip = opened(part)
    assert inspect(part).starts_open
    assert clip.faults == ()
    assert any("starts inside a group of pictures" in notice for notice in clip.notices)


# Timelines


def test_timestamps_that_start_again_are_refused_where_there_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(CASES / "cat-reset.ts", tmp_path / "made.mkv") == 3
    said = capsys.readouterr().err
    assert "start again at frame 25, from 2.37 s to 1.41 s" in said
    assert "remux the file first (ffmpeg -i IN -map 0 -c copy OUT.mkv)" in said
    remuxed = tmp_path / "remuxed.mkv"
    ffmpeg("-i", CASES / "cat-reset.ts", "-map", "0", "-c", "copy", remuxed)
    assert restore(remuxed, tmp_path / "made.mkv") == 0
    assert max(abs(time - Fraction(n, 25)) for n, time in enumerate(steps(tmp_path / "made.mkv"))) < Fraction(2, 100)


def test_one_doubled_timestamp_moves_one_frame_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made = CASES / "vfr-one-doubled-timestamp.mkv", tmp_path / "made.mkv"
    assert restore(source, made) == 0
    assert "1 of 36 frames have no usable timestamp, the first is frame 20" in capsys.readouterr().err
    before, after = steps(source), steps(made)
    assert [n for n in range(36) if before[n] != after[n]] == [20]
    assert after[19] < after[20] < after[21]


def test_missing_timestamps_at_the_beginning_are_counted_back_from_the_first(tmp_path: Path) -> None:
    source, made = CASES / "neg.mkv", tmp_path / "made.mkv"
    assert restore(source, made) == 0
    assert steps(made) == [Fraction(n, 25) for n in range(20)]
    first_known = next(frame_time for frame_time in times(source))  # of frame 13, the first that has one
    begun = first_known - 13 * Fraction(1, 25)
    assert abs(apart(made) - (packets(source, 1)[0][0] - begun)) <= Fraction(2, 1000)


def test_the_place_of_sound_is_checked_against_times_that_were_never_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = clips._timestamps

    def late(*given: object) -> object:
        made, unit, notices = real(*given)  # type: ignore[arg-type]
        return tuple(time + 500 for time in made), unit, notices

    monkeypatch.setattr(clips, "_timestamps", late)
    assert restore(CASES / "neg.mkv", tmp_path / "made.mkv") == 6
    assert "the start of audio stream 1 (aac) must keep its place, but moved by -0.500 s" in capsys.readouterr().err
    assert not (tmp_path / "made.mkv").exists()


# The shape and the edges of the picture


@pytest.mark.parametrize(
    ("name", "aspect"),
    [
        ("aspect-by-container.mkv", Fraction(32, 27)),
        ("aspect-by-container.mp4", Fraction(32, 27)),
        ("aspect-by-container-mpeg2.mkv", Fraction(32, 27)),
        ("aspect-by-container-mpeg4.mkv", Fraction(32, 27)),
    ],
)
def test_the_aspect_of_the_container_wins_over_that_of_the_codec(tmp_path: Path, name: str, aspect: Fraction) -> None:
    made = tmp_path / "made.mkv"
    assert restore(CASES / name, made) == 0
    assert abs(inspect(made).aspect / aspect - 1) < Fraction(1, 100)


@pytest.mark.parametrize("name", ["clap.mp4", "clap.mov", "pixelcrop.mkv"])
def test_edges_that_the_container_hides_are_cut_off_as_ffmpeg_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lighten(monkeypatch, scale=1)
    made, wanted = tmp_path / "made.mkv", tmp_path / "wanted.mkv"
    assert restore(CASES / name, made, LOSSLESS) == 0
    ffmpeg("-i", CASES / name, "-c:v", "ffv1", wanted)
    with av.open(str(made)) as one, av.open(str(wanted)) as other:
        for frame, right in zip(one.decode(video=0), other.decode(video=0), strict=True):
            assert (frame.width, frame.height) == (80, 48)
            assert frame.to_ndarray().tobytes() == right.to_ndarray().tobytes()


@pytest.mark.parametrize("way", ["90", "180", "270", "flip"])
def test_hidden_edges_are_cut_off_however_the_picture_is_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    lighten(monkeypatch, scale=1)
    turned, made, wanted = tmp_path / "turned.mp4", tmp_path / "made.mkv", tmp_path / "wanted.mkv"
    ffmpeg(*picture(0.2, size="96x64"), "-c:v", "libx264", "-qp", "0", tmp_path / "flat.mp4")
    turning = ["-display_hflip"] if way == "flip" else ["-display_rotation", way]
    ffmpeg(*turning, "-i", tmp_path / "flat.mp4", "-c", "copy", turned)
    data = turned.read_bytes()
    entry = (
        data.index(b"avc1", data.index(b"stsd")) - 4
    )  # of the sample description, to which a clean aperture is appended
    numbers = (80, 1, 48, 1, 4, 1, -2, 1)  # width, height, and how far their centre lies right and below, as fractions
    aperture = (40).to_bytes(4) + b"clap" + b"".join(number.to_bytes(4, signed=True) for number in numbers)
    size = int.from_bytes(data[entry : entry + 4])
    longer = bytearray(data[: entry + size] + aperture + data[entry + size :])  # the index comes last in this file
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = longer.index(box, longer.index(b"moov")) - 4
        longer[place : place + 4] = (int.from_bytes(longer[place : place + 4]) + len(aperture)).to_bytes(4)
    turned.write_bytes(longer)
    assert inspect(turned).crop == (12, 4, 6, 10)
    assert restore(turned, made, LOSSLESS) == 0
    ffmpeg("-i", turned, "-c:v", "ffv1", wanted)
    assert inspect(wanted).size in ((80, 48), (48, 80))
    assert frames_hash(made) == frames_hash(wanted)


@pytest.mark.parametrize(("scale", "size"), [(4, (388, 252)), (2, (194, 126)), (1, (98, 64))])
def test_an_odd_size_is_restored_to_its_last_column_and_row(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scale: int,
    size: tuple[int, int],
) -> None:
    lighten(monkeypatch, scale=scale)
    source, made = CASES / "odd420.mkv", tmp_path / "made.mkv"
    assert restore(source, made, LOSSLESS) == 0
    assert ("a column or row too many is left" in capsys.readouterr().err) == (scale == 1)
    with av.open(str(source)) as before, av.open(str(made)) as after:
        for frame, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            assert (other.width, other.height) == size
            pairs = list(zip(frame_planes(frame), frame_planes(other), strict=True))
            for wanted, plane in pairs if scale < 4 else pairs[:1]:  # the stand-in moves chroma by parts of a sample
                last = min(scale * wanted.shape[0], plane.shape[0]), min(scale * wanted.shape[1], plane.shape[1])
                enlarged = wanted.repeat(scale, axis=0).repeat(scale, axis=1)
                assert np.array_equal(enlarged[: last[0], : last[1]], plane[: last[0], : last[1]])
    assert main(["verify", "--source", str(source), str(made)]) == 0


def test_an_odd_size_leaves_no_padding_in_an_output_of_another_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enlarge(node: vs.VideoNode, settings: RestoreSettings) -> vs.VideoNode:
        size = result_size(settings, node.width, node.height, multiples=(2, 2))
        assert size is not None
        return node.resize.Spline36(*size, format=settings.output_format)

    monkeypatch.setattr(clips, "restore_clip", enlarge)
    source, made = CASES / "odd420.mkv", tmp_path / "made.mkv"
    assert restore(source, made, LOSSLESS, "--height=252") == 0
    assert inspect(made).aspect == inspect(source).aspect
    with av.open(str(source)) as before, av.open(str(made)) as after:
        for frame, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            assert (other.width, other.height, other.format.name) == (388, 252, "yuv420p")
            luma = frame_planes(frame)[0]
            still = vs.core.std.BlankClip(None, 97, 63, vs.GRAY8, length=1)
            blank = still.get_frame(0).copy()
            np.copyto(np.asarray(blank[0]), luma)
            wanted = still.std.ModifyFrame(still, lambda n, f, blank=blank: blank).resize.Spline36(388, 252)
            off = np.asarray(wanted.get_frame(0)[0]).astype(int) - frame_planes(other)[0]
            assert np.abs(off).max() <= 1
    assert main(["verify", "--source", str(source), str(made)]) == 0


def test_frames_of_an_odd_size_do_not_depend_on_the_order_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "KEPT_FRAMES", 3)
    node = opened(CASES / "odd420.mkv").node
    wanted = [clips.frame_bytes(frame) for frame in opened(CASES / "odd420.mkv").node.frames()]
    assert len(set(wanted)) == 20
    for n in (0, 19, 7, 8, 5, 12, 0, 3):
        assert clips.frame_bytes(node.get_frame(n)) == wanted[n]


def test_a_display_matrix_of_zeros_turns_nothing(tmp_path: Path) -> None:
    assert restore(CASES / "zero-matrix.mp4", tmp_path / "made.mkv") == 0
    assert inspect(tmp_path / "made.mkv").size == (192, 128)


def test_a_change_of_colour_is_refused_with_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(CASES / "matrix-change.ts", tmp_path / "made.mkv") == 3
    told = "one colour matrix throughout is needed, but it changes at 2.00 s; cut the file there"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "aspects"), [("sar-change-h264.ts", ("16/15", "64/45")), ("sar-change.ts", ("1", "221/150"))]
)
def test_parts_of_one_aspect_are_restored_with_it_and_no_others(
    tmp_path: Path, name: str, aspects: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, refused = CASES / name, tmp_path / "refused.mkv"
    assert restore(source, refused) == 3
    told = "but it changes at 2.00 s; restore the parts: --end 15, and --start 15"
    assert told in capsys.readouterr().err
    assert restore(source, refused, "--start=14") == 3
    for part, aspect, first in zip(("--end=15", "--start=15"), aspects, (0, 15), strict=True):
        made = tmp_path / f"{first}.mkv"
        assert restore(source, made, part) == 0
        assert inspect(made).aspect == pytest.approx(Fraction(aspect), rel=0.01)
        assert len(times(made)) == 15
        if name == "sar-change.ts":  # a timestamp is doubled at the joint
            begins = packets(made, 1)[0][0] - times(made)[0]
            assert -0.03 < begins < 0.03


@pytest.mark.parametrize("name", ["rot45.mp4", "qtrle555.mov"])
def test_what_is_whole_but_not_supported_is_not_called_damaged(name: str) -> None:
    with pytest.raises(FormatError, match="unsupported: ") as refused:
        opened(CASES / name)
    assert "repair" not in str(refused.value)


# Pauses and hidden frames


@pytest.mark.parametrize(
    "name",
    ["phone-one-drop.mp4", "screen-pause.mp4", "hold-first.gif", "avi-drop.avi", "webm-one-drop.webm"],
)
def test_a_pause_is_no_damage_and_keeps_its_length(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made.mkv"
    assert restore(CASES / name, made) == 0
    off = [abs(one - other) for one, other in zip(steps(CASES / name), steps(made), strict=True)]
    assert max(off) <= Fraction(1, 1000)


def test_a_hole_in_the_bytes_is_damage_also_where_a_pause_could_be(tmp_path: Path) -> None:
    film, holed = tmp_path / "film.mkv", tmp_path / "holed.mkv"
    ffmpeg(*picture(2), *sound(2), *H264, "-g", "10", "-c:a", "aac", film)
    data = bytearray(film.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 6000] = bytes(6000)
    holed.write_bytes(data)
    assert any("no frames between" in fault for fault in inspect(holed).faults)


def test_hidden_frames_of_vp9_are_not_missed(tmp_path: Path) -> None:
    assert restore(CASES / "vp9-split.webm", tmp_path / "made.mkv") == 0
    assert len(times(tmp_path / "made.mkv")) == len(times(CASES / "vp9-split.webm"))


# Files that FFmpeg opens and cannot decode


def test_a_drawing_has_no_video_track_and_does_not_end_a_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    drawing = tmp_path / "in" / "drawing.svg"
    drawing.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="8" height="8"/></svg>'
    )
    assert restore(drawing, tmp_path / "made.mkv") == 3
    assert "no video track" in capsys.readouterr().err
    assert main(["probe", str(drawing)]) == 3
    assert main(["batch", "--dry-run", "--include=*.svg", str(tmp_path / "in"), str(tmp_path / "out")]) in (0, 3)
    assert "Traceback" not in capsys.readouterr().err


# What is lost on the way


@pytest.mark.parametrize("options", [(), ("--range-frames=7",)], ids=["one pass", "ranges"])
def test_a_subtitle_that_begins_before_the_picture_is_shown_from_the_beginning(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    made = tmp_path / "made.mkv"
    assert restore(CASES / "sub-before-picture.mkv", made, *options) == 0
    assert [content for _, content in packets(made, 2)] == [b"Opening line", b"later"]
    assert packets(made, 2)[0][0] == times(made)[0] == 0
    assert packets(made, 2)[1][0] == Fraction(670, 1000)
    spans = inspect(made).others[1].spans
    assert spans[0] == (Fraction(0), Fraction(620, 1000))


def test_a_part_begins_with_the_subtitle_that_is_shown_then(tmp_path: Path) -> None:
    film, words, made = tmp_path / "film.mkv", tmp_path / "words.srt", tmp_path / "made.mkv"
    words.write_text(
        "1\n00:00:00,000 --> 00:00:00,200\ngone\n\n2\n00:00:00,300 --> 00:00:01,000\nshown\n\n"
        "3\n00:00:01,200 --> 00:00:01,500\nlater\n"
    )
    ffmpeg(*picture(2), "-i", words, *H264, "-c:s", "srt", "-metadata:s:s", "language=deu", film)
    assert restore(film, made, "--start=10", "--end=40") == 0
    assert packets(made, 1) == [(0, b"shown"), (Fraction(8, 10), b"later")]
    track = inspect(made).others[0]
    assert track.spans[0] == (Fraction(0), Fraction(6, 10))
    assert track.tags["language"] == "deu"


@pytest.mark.parametrize("name", ["vp9-440-10.webm", "y440p12.mkv"])
@pytest.mark.parametrize("coding", [LOSSLESS, "--encoder-args=-preset ultrafast"], ids=["lossless", "default"])
def test_4_4_0_of_more_than_8_bits_is_the_picture_that_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, coding: str
) -> None:
    lighten(monkeypatch, scale=1)
    made = tmp_path / "made.mkv"
    assert restore(CASES / name, made, coding) == 0
    with av.open(str(CASES / name)) as before, av.open(str(made)) as after:
        for one, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            depth = one.format.components[0].bits
            assert other.format.components[0].bits == depth
            apart = [
                np.abs(np.repeat(a, len(b) // len(a), axis=0).astype(int) - b).mean() / 2 ** (depth - 8)
                for a, b in zip(frame_planes(one), frame_planes(other), strict=True)
            ]
            assert max(apart) <= (0 if coding == LOSSLESS else 4)


@pytest.mark.parametrize("name", ["a_adpcm_ima_wav.avi", "a_pcm_mulaw.avi", "a_wmav2.avi", "wmv2.wmv"])
def test_sound_that_ffmpeg_copies_to_matroska_is_copied(tmp_path: Path, name: str) -> None:
    assert restore(CASES / name, tmp_path / "made.mkv") == 0
    before, after = packets(CASES / name, 1), packets(tmp_path / "made.mkv", 1)
    assert b"".join(content for _, content in after) == b"".join(content for _, content in before)


def test_what_a_container_can_hold_is_asked_of_the_ffmpeg_that_does_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    film = tmp_path / "film.mkv"
    ffmpeg(*picture(0.4), *sound(0.4), *H264, "-c:a", "pcm_s16le", film)
    assert restore(film, tmp_path / "made.mp4") == 0
    old = tmp_path / "ffmpeg"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *-version*) echo "ffmpeg version 7.0";; *"-map 1:"*"-f mp4 "*) exit 1;; '
        f'*) exec "{FFMPEG}" "$@";; esac\n'
    )  # stands for 5.1, which writes no PCM to MP4
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert restore(film, tmp_path / "other.mp4") == 2
    assert ".mp4 must hold what is copied, but cannot hold audio stream 1 (pcm_s16le)" in capsys.readouterr().err


def test_flags_of_the_source_own_coding_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Run] = []
    inspected = inspect(CASES / "aspect-by-container.mkv")
    monkeypatch.setattr(
        opening, "inspect", lambda path: replace(inspected, disposition=("default", "multilayer", "dependent"))
    )

    def kept(film: Film, ffmpeg: Ffmpeg, output: Path, *, covers: Path) -> Run:
        runs.append(whole_run(film, ffmpeg, output, covers=covers))
        return runs[-1]

    monkeypatch.setattr(runner, "whole_run", kept)
    assert restore(CASES / "aspect-by-container.mkv", tmp_path / "made.mkv") == 0
    assert all(run.line[run.line.index("-disposition:v:0") + 1] == "default" for run in runs)
    assert runs


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_bytes_that_are_missing_after_the_last_packet_are_no_damage(tmp_path: Path, suffix: str) -> None:
    film = tmp_path / f"film{suffix}"
    ffmpeg(*picture(0.4), *sound(0.4), "-c:v", "mpeg4", "-c:a", "mp2", film)
    data = bytearray(film.read_bytes())
    if suffix == ".mp4":  # the index comes last
        place = data.index(b"mdat") - 4
        size = int.from_bytes(data[place : place + 4])
        data[:] = data[: place + size] + bytes(8) + data[place + size :]
        data[place : place + 4] = (size + 8).to_bytes(4)
    film.write_bytes(data if suffix == ".mp4" else data[:-8])  # cuts the index
    assert inspect(film).faults == ()
    assert restore(film, tmp_path / "made.mkv") == 0
    assert len(times(tmp_path / "made.mkv")) == 10


def test_lost_sound_at_the_end_is_damage(tmp_path: Path) -> None:
    film, cut = tmp_path / "film.mp4", tmp_path / "cut.mp4"
    ffmpeg(*picture(0.4), *sound(0.4), *H264, "-c:a", "aac", "-movflags", "+faststart", film)
    with av.open(str(film)) as container:
        last = max((packet.pos or 0) + packet.size for packet in container.demux() if packet.stream_index == 1)
    cut.write_bytes(film.read_bytes()[: last - 4])
    assert any("the end is missing" in fault for fault in inspect(cut).faults)


def test_the_user_can_choose_the_ffmpeg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, mine = CASES / "aspect-by-container.mkv", tmp_path / "my ffmpeg"
    assert restore(film, tmp_path / "made.mkv", f"--ffmpeg={mine}") == 2
    assert "my ffmpeg: an FFmpeg 5.1 or newer that runs is needed" in capsys.readouterr().err
    mine.write_text(f'#!/bin/sh\nexec "{FFMPEG}" "$@"\n')
    mine.chmod(0o755)
    assert restore(film, tmp_path / "made.mkv", f"--ffmpeg={mine}") == 0
    assert f"({mine})" in capsys.readouterr().err


def test_an_encoder_that_writes_no_frame_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.mkv"
    assert restore(CASES / "aspect-by-container.mkv", made, "--encoder-args=-preset ultrafast -vf select=0") == 5
    said = capsys.readouterr().err
    assert "the encoder's output must decode" in said or "the encoder must write each frame" in said
    assert "restoring 1/" not in said


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("options", [(), ("--range-frames=7",)], ids=["one pass", "ranges"])
def test_sound_of_an_mp4_is_heard_from_its_first_sample(tmp_path: Path, options: tuple[str, ...], suffix: str) -> None:
    """Its edit list hides the samples with which the decoder starts, and the copy must have them."""
    film, made = tmp_path / "film.mp4", tmp_path / f"made{suffix}"
    ffmpeg(*picture(1), *sound(1), *H264, "-c:a", "aac", film)
    assert restore(film, made, *options) == 0
    (begin, before), (other_begin, after) = heard(film), heard(made)
    assert abs(begin - other_begin) <= Fraction(1, 1000)
    assert len(before) == len(after)
    assert np.abs(before - after)[:20000].max() < 1e-5


def heard(path: Path) -> tuple[Fraction, NDArray[np.float32]]:
    """When the sound of a film starts, from its first frame, and its samples."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.audio[0]))
    assert frames[0].pts is not None
    assert frames[0].time_base is not None
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    unit = Fraction(frames[0].time_base.numerator, frames[0].time_base.denominator)
    return frames[0].pts * unit - times(path)[0], samples


def test_matroska_whose_elements_contradict_each_other_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = CASES / "broken-element.webm"  # four bits flipped: FFmpeg reads 2 of 12 frames
    assert len(times(broken)) == 2
    assert restore(broken, tmp_path / "made.mkv") == 3
    assert "its structure is damaged (Element at 0x18c" in capsys.readouterr().err


def test_a_decoder_that_cannot_be_opened_is_damage_and_no_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restore(CASES / "unopened.mkv", tmp_path / "made.mkv") == 3  # bits flipped in the decoder's parameters
    assert "frames decode with errors" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["vp9-split.webm", "phone-one-drop.mp4"])
def test_a_frame_that_only_one_of_two_decoders_shows_is_missed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(CASES / name).faults == ()
    real = decode_all

    def with_another(path: Path, **options: Any) -> Decoded:
        decoded = real(path, **options)
        return replace(decoded, times=(*decoded.times, None))

    monkeypatch.setattr(clips, "decode_all", with_another)
    [fault] = opened(CASES / name).faults
    assert "frames, but FFmpeg decodes" in fault


# Damage that films of all kinds have shown under scripts/mutate_films.py


STRUCTURES = {
    "mkv": ["-c:v", "mjpeg"],
    "flv": [*H264, "-g", "1"],
    "wmv": ["-c:v", "wmv2", "-g", "1"],
    "nut": ["-c:v", "rawvideo"],
    "ogv": ["-c:v", "libtheora", "-g", "1"],
}


@pytest.mark.parametrize("suffix", STRUCTURES)
def test_a_file_of_which_its_demuxer_complains_is_damaged(suffix: str, tmp_path: Path) -> None:
    film, spoilt = tmp_path / f"film.{suffix}", tmp_path / f"spoilt.{suffix}"
    ffmpeg(*picture(0.8), *STRUCTURES[suffix], film)
    with av.open(str(film)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data, (place, size) = bytearray(film.read_bytes()), places[9]
    if suffix in ("mkv", "flv", "ogv"):
        data[place - 4 : place + size] = bytes(size + 4)
    else:
        del data[place + size // 4 : place + size // 2]
    spoilt.write_bytes(data)
    assert inspect(film).faults == ()
    assert any("its structure is damaged" in fault for fault in inspect(spoilt).faults)


def test_bytes_that_an_avi_lacks_before_its_frames_are_damage(tmp_path: Path) -> None:
    """FFmpeg finds the frames behind the hole, and shows one less."""
    film, spoilt = tmp_path / "film.avi", tmp_path / "spoilt.avi"
    ffmpeg(*picture(0.8), "-c:v", "rawvideo", film)
    data = bytearray(film.read_bytes())
    data[(start := data.index(b"movi") - 16) : start + 5000] = bytes(5000)
    spoilt.write_bytes(data)
    assert inspect(film).faults == ()
    assert any("wrong during header parsing" in fault for fault in inspect(spoilt).faults)


@pytest.mark.parametrize("lost", [(5, 6), (17, 18), (19, None)])
def test_an_mxf_that_lacks_a_frame_is_damaged(tmp_path: Path, lost: tuple[int, int | None]) -> None:
    film, spoilt = tmp_path / "film.mxf", tmp_path / "spoilt.mxf"
    ffmpeg(*picture(0.8), *sound(0.8), "-c:v", "mpeg2video", "-c:a", "pcm_s16le", "-ar", "48000", film)
    with av.open(str(film)) as container:
        places = [packet.pos or 0 for packet in container.demux(video=0) if packet.size]
    data, (first, last) = bytearray(film.read_bytes()), lost
    del data[places[first] : None if last is None else places[last]]
    spoilt.write_bytes(data)
    assert inspect(film).faults == ()
    assert inspect(spoilt).faults[0].startswith("declared 20 frames, found 19")


def test_what_a_decoders_threads_log_between_two_packets_is_read_with_the_next(tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    ffmpeg(*picture(0.8), *H264, film)
    with av.open(str(film)) as container:
        steps = decode(container, container.streams.video[0])
        assert next(steps).complaint == ""
        thread = threading.Thread(target=av.logging.log, args=(av.logging.ERROR, "h264", "a macroblock is damaged"))
        thread.start()
        thread.join()
        assert next(steps).complaint == "a macroblock is damaged"
        assert next(steps).complaint == ""


def test_logs_of_several_files_may_be_closed_in_any_order() -> None:
    """As those of generators are that nobody has read to their end."""
    level = av.logging.get_level()
    with ExitStack() as first, ExitStack() as second:
        one, two = first.enter_context(logged()), second.enter_context(logged())
        av.logging.log(av.logging.ERROR, "h264", "both")
        first.close()
        av.logging.log(av.logging.ERROR, "h264", "the second")
        assert [text for _, _, text in one.take()] == ["both"]
        assert [text for _, _, text in two.take()] == ["both", "the second"]
        assert two.take() == []
    assert av.logging.get_level() == level


def test_errors_of_a_demuxer_that_prove_no_damage_are_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    film, made = tmp_path / "film.nut", tmp_path / "made.mkv"
    ffmpeg(*picture(0.4), *H264, film)
    real = sources._tally

    def with_error(*args: Any) -> Any:
        av.logging.log(av.logging.ERROR, "nut", "something is odd")
        return real(*args)

    monkeypatch.setattr(sources, "_tally", with_error)
    assert restore(film, made) == 0
    assert "FFmpeg reports of the file: something is odd" in capsys.readouterr().err
    record = read_record(record_path(made))
    assert record is not None
    assert any("something is odd" in warning for warning in record.warnings)


def test_a_repeated_packet_of_asf_that_hides_a_frame_is_damage() -> None:
    """FFmpeg shows 19 of the 20 frames, and complains once."""
    assert any("packet_obj_size" in fault for fault in inspect(CASES / "repeated-packet.wmv").faults)


def test_a_frame_that_a_transport_stream_has_lost_is_missed(tmp_path: Path) -> None:
    film, lacking = tmp_path / "film.ts", tmp_path / "lacking.ts"
    ffmpeg(*picture(0.8), *H264, "-bf", "2", film)
    data = film.read_bytes()
    pieces = [data[place : place + 188] for place in range(0, len(data), 188)]
    of_picture = [piece[1] & 0x1F == 1 and piece[2] == 0 for piece in pieces]  # packet identifier 256
    begins = [n for n, piece in enumerate(pieces) if of_picture[n] and piece[1] & 0x40]
    assert len(begins) == 20
    for begin, end in pairwise(begins[2:]):  # FFmpeg itself does not notice that the second one is missing
        kept = [piece for n, piece in enumerate(pieces) if not (of_picture[n] and begin <= n < end)]
        lacking.write_bytes(b"".join(kept))
        assert any("packets are lost at" in fault for fault in inspect(lacking).faults)
    assert inspect(film).faults == ()


def test_a_file_that_begins_without_a_key_frame_is_damaged_where_it_is_no_recording(tmp_path: Path) -> None:
    film, headless = tmp_path / "film.wmv", tmp_path / "headless.wmv"
    ffmpeg(*picture(0.8), "-c:v", "wmv2", "-g", "8", film)
    with av.open(str(film)) as before, av.open(str(headless), "w") as after:
        track = after.add_stream_from_template(before.streams.video[0], opaque=True)
        for packet in list(before.demux(video=0))[1:-1]:
            packet.stream = track
            after.mux(packet)
    assert is_called_damaged(headless)


def test_sound_that_ffmpeg_cannot_copy_to_its_end_is_found_before_the_work_and_stops_no_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, spoilt, made = tmp_path / "film.ts", tmp_path / "spoilt.ts", tmp_path / "made.mkv"
    ffmpeg(*picture(4), *sound(4), *H264, "-c:a", "aac", "-b:a", "32k", film)
    data = bytearray(film.read_bytes())
    places = [place for place in range(len(data) - 1) if data[place] == 0xFF and data[place + 1] == 0xF1]
    data[places[-20]] = 0  # a header of AAC in transport streams (ADTS)
    spoilt.write_bytes(data)
    assert restore(film, made) == 0
    made.unlink()
    assert restore(spoilt, made) == 3
    said = capsys.readouterr().err
    assert "FFmpeg stops at audio stream 1 (aac) (Error parsing ADTS frame header!)" in said
    assert "restoring 1" not in said.partition("spoilt.ts with")[2]
    assert restore(spoilt, made, "--no-audio") == 0


def test_a_copy_that_is_killed_says_nothing_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / "ffmpeg"
    killed.write_text(f'#!/bin/sh\ncase "$*" in */dev/null) kill -9 $$;; *) exec "{FFMPEG}" "$@";; esac\n')
    killed.chmod(0o755)
    assert restore(CASES / "wmv2.wmv", tmp_path / "made.mkv", f"--ffmpeg={killed}") == 5  # and 3 for a damaged film


def test_transparency_that_is_left_out_is_in_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, made = tmp_path / "film.mov", tmp_path / "made.mkv"
    ffmpeg(*picture(0.12), "-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le", film)
    assert restore(film, made) == 0
    assert "the transparency channel is not carried over" in capsys.readouterr().err
    record = read_record(record_path(made))
    assert record is not None
    assert "the transparency channel is not carried over" in record.warnings


def test_sound_whose_samples_are_counted_as_frames_is_whole(tmp_path: Path) -> None:
    film = tmp_path / "film.mov"
    ffmpeg(*picture(0.8), *sound(0.8), *H264, "-c:a", "pcm_s16le", film)
    assert inspect(film).faults == ()
    assert restore(film, tmp_path / "made.mov") == 0


def test_a_frame_of_theora_that_is_shown_on_is_no_damage(tmp_path: Path) -> None:
    film, made = tmp_path / "film.ogv", tmp_path / "made.mkv"
    ffmpeg(*picture(0.8), "-c:v", "libtheora", "-g", "8", film)
    with av.open(str(film)) as container:
        kept = [packet.pts for packet in container.demux(video=0) if packet.size]
        assert len(kept) < 20
    assert opened(film).faults == ()
    assert restore(film, made) == 0
    assert len(times(made)) == len(kept)
