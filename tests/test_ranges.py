"""Long films in ranges: the same frames, times and streams as in one pass, whatever was killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
import vapoursynth as vs

from tests.fakes import MixingRestorer, restore_with
from vsfmanet import devices, kernels
from vsfmanet.cli import main
from vsfmanet.jobs import job, opening, ranges, runner
from vsfmanet.jobs.files import record_path
from vsfmanet.jobs.progress import Report
from vsfmanet.media import clip as clips
from vsfmanet.media.ffmpeg import find_ffmpeg
from vsfmanet.settings import RestoreSettings

pytestmark = pytest.mark.usefixtures("in_this_process")

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
LOSSLESS = "-c:v ffv1"
QUICK = "-preset veryfast"


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *arguments], check=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, 30 at 30 and 30 at 15 per second, with a cut at frame 18; sound from before the picture; chapters."""
    folder = tmp_path_factory.mktemp("film")
    (folder / "chapters.txt").write_text(
        ";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=First\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=3500\ntitle=Second\n"
    )
    (folder / "words.srt").write_text(
        "1\n00:00:01,200 --> 00:00:01,600\none\n\n2\n00:00:02,200 --> 00:00:02,600\ntwo\n"
    )
    path = folder / "film.mkv"
    ffmpeg(
        "-f", "lavfi", "-i", "sine=d=4", "-itsoffset", "0.5", "-f", "lavfi", "-i", "testsrc2=s=32x24:r=30:d=3",
        "-i", folder / "words.srt", "-i", folder / "chapters.txt", "-map", "1", "-map", "0", "-map", "2",
        "-map_metadata", "3", "-map_chapters", "3",
        "-vf", "select='lt(t,1.5)+not(mod(n,2))',negate=enable='gte(n,18)',setsar=12/11,"
        "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709",
        "-fps_mode", "passthrough", "-enc_time_base", "1/1000",
        "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "-c:s", "srt", path,
    )  # fmt: skip
    return path


@pytest.fixture(autouse=True)
def light_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter with a stand-in that mixes each frame with its neighbours up to the next cut."""

    def restore(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        return restore_with(node, MixingRestorer(), segment=4)

    monkeypatch.setattr(clips, "restore_clip", restore)
    for module in (job, runner):
        monkeypatch.setattr(module, "weights_sha256", lambda model: f"weights of {model}")


def restore(film: Path, made: Path, encoder: str, length: int, *options: str) -> int:
    line = ["restore", f"--encoder-args={encoder}", f"--range-frames={length}", *options, str(film), str(made)]
    return main(line)


def shown(path: Path) -> list[tuple[Fraction, str]]:
    """Time and hash of every decoded frame."""
    with av.open(str(path)) as container:
        unit = container.streams.video[0].time_base
        return [
            (
                frame.pts * Fraction(unit.numerator, unit.denominator),
                hashlib.sha256(frame.to_ndarray().tobytes()).hexdigest(),
            )
            for frame in container.decode(video=0)
            if frame.pts is not None
        ]


def about(path: Path) -> dict[str, object]:
    """All that a file holds beside the coded picture."""
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        kinds = {stream.index: stream.type for stream in container.streams}
        packets: dict[str, list[tuple[int | None, bytes]]] = {}
        for packet in container.demux():
            if packet.size and kinds[packet.stream_index] != "video":
                packets.setdefault(kinds[packet.stream_index], []).append((packet.pts, bytes(packet)))
        return {
            "packets": packets,
            "kinds": kinds,
            "chapters": [
                (entry["start"] * entry["time_base"], entry["end"] * entry["time_base"], entry["metadata"])
                for entry in container.chapters()
            ],
            "title": container.metadata.get("title"),
            "aspect": track.sample_aspect_ratio,
            "colour": (track.color_primaries, track.color_trc, track.colorspace, track.color_range),
            "location": track.codec_context.chroma_sample_location,
        }


def work_folders(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".work")]


@pytest.fixture
def borders(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The frames of every range that is finished, as they come."""
    made: list[range] = []
    read = ranges.read_range

    def note(path: Path, frames: range) -> ranges.Range:
        if path.parent.suffix == ".work" and ".unfinished" in path.name:
            made.append(frames)
        return read(path, frames)

    monkeypatch.setattr(ranges, "read_range", note)
    return made


@pytest.mark.parametrize(
    ("encoder", "suffix"),
    [
        (LOSSLESS, ".mkv"),
        (QUICK, ".mkv"),
        (QUICK, ".mp4"),
        ("-c:v prores_ks", ".mov"),
        ("-c:v libx265 -preset ultrafast", ".mp4"),
    ],
)
@pytest.mark.parametrize("limits", [(), ("--start=7", "--end=52")])
def test_a_film_joined_from_ranges_is_that_of_one_pass(
    film: Path, tmp_path: Path, borders: list[range], encoder: str, suffix: str, limits: tuple[str, ...]
) -> None:
    options = [*limits, *(["--no-subtitles"] if suffix != ".mkv" else [])]
    one, joined = tmp_path / f"one{suffix}", tmp_path / f"joined{suffix}"
    assert restore(film, one, encoder, 0, *options) == 0
    assert restore(film, joined, encoder, 13, *options) == 0
    assert len(borders) >= 4
    frames, other = shown(one), shown(joined)
    assert [time for time, _ in other] == [time for time, _ in frames]
    if encoder in (LOSSLESS, "-c:v prores_ks"):  # every frame is coded by itself
        assert other == frames
    assert about(joined) == about(one)
    assert work_folders(tmp_path) == []


def test_a_range_ends_at_a_cut_where_there_is_one(film: Path, tmp_path: Path, borders: list[range]) -> None:
    assert restore(film, tmp_path / "made.mkv", QUICK, 20) == 0  # the cut is at frame 18
    assert borders == [range(18), range(18, 38), range(38, 58), range(58, 60)]


def test_a_film_of_one_range_is_made_in_one_pass(film: Path, tmp_path: Path, borders: list[range]) -> None:
    assert restore(film, tmp_path / "made.mkv", QUICK, 60) == 0
    assert borders == []


class _Killed(BaseException):
    """As if the process were gone: nothing is cleared up."""


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Have the filter fail at a frame."""

    def change(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == number:
            raise RuntimeError("out of luck")
        return f

    def restore(node: vs.VideoNode, _: RestoreSettings) -> vs.VideoNode:
        restored = restore_with(node, MixingRestorer(), segment=4)
        return restored.std.ModifyFrame(restored, change)

    monkeypatch.setattr(clips, "restore_clip", restore)


def test_a_job_goes_on_after_the_last_whole_range(
    film: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    borders: list[range],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, made = tmp_path / "whole.mkv", tmp_path / "made.mkv"
    assert restore(film, whole, LOSSLESS, 0) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 47)
        assert restore(film, made, LOSSLESS, 13) == 6
    assert "frame 47 of 60" in capsys.readouterr().err
    [work] = work_folders(tmp_path)
    assert len(os.listdir(tmp_path / work)) == 7  # three ranges with their thumbnails, and how they are tagged
    (tmp_path / work / "1234.unfinished.mkv").write_bytes(b"of a run that was killed")
    assert borders == [range(13), range(13, 26), range(26, 39)]
    with monkeypatch.context() as patch:
        stop_at(patch, 20)  # a frame that is there is not asked for again
        assert restore(film, made, LOSSLESS, 13) == 0
    assert borders[3:] == [range(39, 52), range(52, 60)]
    assert "39 of 60 frames are there, in 3 ranges; going on" in capsys.readouterr().err
    assert shown(made) == shown(whole)
    assert work_folders(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other frames", "colour", "no colour", "a bit"])
def test_a_range_that_is_not_whole_is_made_again(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borders: list[range], damage: str
) -> None:
    made = tmp_path / "made.mkv"
    with monkeypatch.context() as patch:
        stop_at(patch, 47)
        assert restore(film, made, LOSSLESS, 13) == 6
    [work] = work_folders(tmp_path)
    second = tmp_path / work / "000000013-000000026.mkv"
    if damage == "gone":
        second.unlink()
    elif damage == "colour":
        (tmp_path / work / ranges.COLOUR).write_text("[" * 100_000)
    elif damage == "no colour":
        tags = dict.fromkeys(("range", "primaries", "transfer", "matrix", "chroma_location"), "-map 9")
        (tmp_path / work / ranges.COLOUR).write_text(json.dumps(tags))
    elif damage == "other frames":
        second.rename(second.with_name("000000013-000000027.mkv"))
    elif damage == "a bit":  # in the middle of a frame: only the checksums of Matroska show it before the whole is made
        data = bytearray(second.read_bytes())
        data[len(data) // 2] ^= 1
        second.write_bytes(data)
    else:
        second.write_bytes(second.read_bytes()[: 0 if damage == "empty" else 20_000])
    borders.clear()
    assert restore(film, made, LOSSLESS, 13) == 0
    assert borders[0] == (range(13) if "colour" in damage else range(13, 26))
    assert restore(film, tmp_path / "whole.mkv", LOSSLESS, 0) == 0
    assert shown(made) == shown(tmp_path / "whole.mkv")


def test_ranges_of_other_settings_are_never_mixed(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borders: list[range]
) -> None:
    made = tmp_path / "made.mkv"
    for encoder, length in (("-preset ultrafast -crf 30", 13), (QUICK, 13), (QUICK, 12)):
        with monkeypatch.context() as patch:
            stop_at(patch, 47)
            borders.clear()
            assert restore(film, made, encoder, length) == 6
            assert borders[0] == range(length)
    assert len(work_folders(tmp_path)) == 3
    borders.clear()
    assert restore(film, made, QUICK, 13) == 0
    assert borders == [range(39, 52), range(52, 60)]
    assert work_folders(tmp_path) == []  # those of the others too: the output is done


def test_ranges_of_a_source_that_has_changed_and_is_refused_do_not_stay(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other, made = tmp_path / "film.mkv", tmp_path / "other.mkv", tmp_path / "made.mkv"
    source.write_bytes(film.read_bytes())
    with monkeypatch.context() as patch:
        stop_at(patch, 47)
        assert restore(source, made, QUICK, 13) == 6
    [work] = work_folders(tmp_path)
    (tmp_path / work / "1234.unfinished.mkv").touch()
    other.write_bytes(film.read_bytes()[:30_000])
    assert restore(other, made, QUICK, 13) == 3  # another source: those of the first may still be used
    assert restore(tmp_path / "none.mkv", made, QUICK, 13) == 3
    assert restore(source, made, QUICK, 13, "--start=99:00", "--end=99:01") == 2
    assert work_folders(tmp_path) == [work]
    source.write_bytes(other.read_bytes())
    assert restore(source, made, QUICK, 13) == 3
    assert sorted(os.listdir(tmp_path)) == ["film.mkv", "other.mkv"]


@pytest.mark.parametrize("moment", ["before the work", "after the work"])
def test_ranges_of_an_output_that_another_run_has_made_do_not_stay(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    made, rival = tmp_path / "made.mkv", tmp_path / "rival.mkv"
    assert restore(film, rival, QUICK, 13) == 0

    def overtaken(*_: object, **__: object) -> None:
        for path in (rival, record_path(rival)):
            path.rename(tmp_path / path.name.replace("rival", "made"))

    if moment == "before the work":
        monkeypatch.setattr(runner, "check_copying", overtaken)
    else:
        monkeypatch.setattr(opening, "check_unchanged", overtaken)
    assert restore(film, made, QUICK, 13) == 7
    assert sorted(os.listdir(tmp_path)) == ["made.mkv", "made.mkv.vsfmanet.json"]


@pytest.mark.parametrize("what", ["precision", "kernels", "ffmpeg"])
def test_ranges_of_other_arithmetic_are_never_mixed(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borders: list[range], what: str
) -> None:
    """As when a film that was begun on one machine is continued on another, by the same command."""
    monkeypatch.setattr(devices, "has_fast_bf16", lambda: True)
    monkeypatch.setattr(kernels, "kernels_for", lambda tensor: kernels)
    made = tmp_path / "made.mkv"
    with monkeypatch.context() as patch:
        stop_at(patch, 20)
        assert restore(film, made, QUICK, 13) == 6
    assert borders == [range(13)]
    if what == "precision":
        monkeypatch.setattr(devices, "has_fast_bf16", lambda: False)
    elif what == "kernels":
        monkeypatch.setattr(kernels, "kernels_for", lambda tensor: None)
    else:
        other = replace(find_ffmpeg(), version="ffmpeg version N-1")
        monkeypatch.setattr(runner, "find_ffmpeg", lambda *_, **__: other)
    assert restore(film, made, QUICK, 13) == 0
    assert borders[1] == range(13)


def test_ranges_that_make_a_wrong_whole_are_not_used_again(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def join(self: ranges.Ranges, report: Report) -> None:
        self._found.pop(1)
        self._film = replace(self._film, timestamps=self._film.timestamps[:47])
        whole(self, report)

    whole = ranges.Ranges.join
    with monkeypatch.context() as patch:
        patch.setattr(ranges.Ranges, "join", join)
        assert restore(film, tmp_path / "made.mkv", QUICK, 13) == 6
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("-c:v ffv1 -vf hqdn3d", "has -vf"),
        ("-x264-params pass=1:stats=STATS", "several passes"),  # not /dev/null: x264 renames a file to that name
        ("-c:v utvideo", "joined"),
    ],
)
def test_what_cannot_be_joined_is_made_in_one_pass(
    film: Path, tmp_path: Path, borders: list[range], capsys: pytest.CaptureFixture[str], encoder: str, reason: str
) -> None:
    encoder = encoder.replace("STATS", os.path.relpath(tmp_path / "stats"))  # a colon separates x264's options
    assert restore(film, tmp_path / "made.mkv", encoder, 13) == 0
    said = capsys.readouterr().err
    assert "made in one pass" in said
    assert reason in said
    assert borders == []
    assert len(shown(tmp_path / "made.mkv")) == 60


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize("kills", [1, 2])
def test_a_trial_that_a_signal_ends_is_made_again(
    film: Path, tmp_path: Path, borders: list[range], capsys: pytest.CaptureFixture[str], kills: int
) -> None:
    program, killed = tmp_path / "ffmpeg", tmp_path / "killed"
    killed.touch()
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in *trial*) if [ $(wc -l < '{killed}') -lt {kills} ]; then echo >> '{killed}'; "
        f"kill -9 $$; fi;; esac\nexec '{find_ffmpeg().path}' \"$@\"\n"
    )
    program.chmod(0o755)
    command = ["restore", f"--ffmpeg={program}", "--range-frames=13", f"--encoder-args={QUICK}", str(film)]
    assert main([*command, str(tmp_path / "made.mkv")]) == 0
    assert ("made in one pass" in capsys.readouterr().err) == (kills == runner.TRIALS)
    assert bool(borders) == (kills < runner.TRIALS)
    assert len(shown(tmp_path / "made.mkv")) == 60
