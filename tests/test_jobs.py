"""The parts of a job, each on its own: what verification finds, what is cleared away, what the encoder is told."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import pytest
import vapoursynth as vs

from tests.films import H264, ffmpeg, picture, sound
from vsfmanet.errors import ConfigError, FormatError, IncompleteError, OutputError
from vsfmanet.jobs.files import move_new
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.jobs.scratch import Scratch
from vsfmanet.media import clip, source
from vsfmanet.media import ffmpeg as programs
from vsfmanet.media.coding import choose_encoder
from vsfmanet.media.deinterlace import deinterlaced
from vsfmanet.media.feed import NutStream
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import clock
from vsfmanet.media.verify import Needed, verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames at 25 per second, with sound."""
    path = tmp_path_factory.mktemp("made") / "made.mkv"
    ffmpeg(*picture(1), *sound(1), *H264, "-c:a", "aac", path)
    return path


TIMES = [Fraction(n, 25) for n in range(25)]


def check(
    made: Path,
    *,
    times: list[Fraction] = TIMES,
    size: tuple[int, int] = (64, 48),
    aspect: Fraction | None = Fraction(1),
    streams: list[source.Stream] | None = None,
    lively: Collection[int] = (),
    original: Path | None = None,
    extent: str = "whole",
) -> None:
    """Verify a file against its source, or itself."""
    found = source.inspect(original or made)
    needed = Needed(
        source=found,
        size=size,
        aspect=aspect,
        pictures=None,
        likeness="unknown",
        hdr=Hdr(),
        anchors=[(0, times[0]), (len(times) - 1, times[-1])],
        times=times,
        lively=lively,
        copied=found.others if streams is None else streams,
        extent=extent,
        chapters=True,
        names=True,
    )
    verify(made, needed, advance=lambda: None, remedy="")


# Verification


def test_verification_passes_a_whole_file_also_when_all_of_it_is_shifted(made: Path) -> None:
    check(made)
    [sound] = source.inspect(made).of_kind("audio")
    shift = Fraction(7, 2)
    assert sound.first is not None
    assert sound.end is not None
    moved = replace(sound, first=sound.first + shift, end=sound.end + shift)
    check(made, times=[time + shift for time in TIMES], streams=[moved])


def test_verification_finds_missing_and_surplus_frames(made: Path) -> None:
    with pytest.raises(IncompleteError, match="26 frames are needed, got 25"):
        check(made, times=[*TIMES, Fraction(1)])
    with pytest.raises(IncompleteError, match="24 frames are needed, got 25"):
        check(made, times=TIMES[:-1])


def test_verification_finds_one_frame_that_is_late(made: Path) -> None:
    late = [*TIMES[:12], TIMES[12] + Fraction(3, 1000), *TIMES[13:]]
    with pytest.raises(IncompleteError, match=r"frame 12 is needed at 0\.483 s from the first, got 0\.480 s"):
        check(made, times=late)


def test_verification_finds_a_wrong_size(made: Path) -> None:
    with pytest.raises(IncompleteError, match="frames of 128x96 are needed, got 64x48"):
        check(made, size=(128, 96))


def test_verification_finds_a_frame_of_one_colour_where_the_source_has_a_picture(tmp_path: Path, made: Path) -> None:
    check(made, lively={0, 12, 24})
    dark = tmp_path / "dark.mkv"
    fade = ["-vf", "fade=out:st=0.9:d=0.02", "-c:v", "libx264", "-c:a", "copy"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", made, *fade, dark], check=True)
    check(dark)
    check(dark, lively={0, 12})
    with pytest.raises(IncompleteError, match="a picture is needed in frame 24, as in the source, got one colour"):
        check(dark, lively={0, 12, 24})


def test_verification_finds_a_missing_stream(made: Path) -> None:
    [sound] = source.inspect(made).of_kind("audio")
    with pytest.raises(IncompleteError, match="2 audio, 0 subtitle, 0 attachment are needed"):
        check(made, streams=[sound, sound])


def test_verification_finds_sound_that_has_moved_or_is_cut(made: Path) -> None:
    [sound] = source.inspect(made).of_kind("audio")
    assert sound.first is not None
    assert sound.end is not None
    with pytest.raises(IncompleteError, match=r"the start of audio stream 1 \(aac\) must keep its place"):
        check(made, streams=[replace(sound, first=sound.first + Fraction(1, 4), end=sound.end)])
    with pytest.raises(IncompleteError, match=r"the end of audio stream 1 \(aac\) must keep its place"):
        check(made, streams=[replace(sound, first=sound.first, end=sound.end + Fraction(1, 4))])


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames with sound, subtitles, chapters, a font, titles and languages."""
    folder = tmp_path_factory.mktemp("rich")
    path = folder / "rich.mkv"
    (folder / "words.srt").write_text(
        "1\n00:00:00,100 --> 00:00:00,400\none\n\n2\n00:00:00,500 --> 00:00:00,700\ntwo\n"
    )
    (folder / "font.ttf").write_bytes(b"not really a font")
    (folder / "chapters.txt").write_text(
        ";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=480\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=480\nEND=1000\ntitle=Two\n"
    )
    ffmpeg(
        *picture(1), *sound(1), "-i", folder / "words.srt", "-i", folder / "chapters.txt",
        "-map", "0", "-map", "1", "-map", "2", "-map_metadata", "3", "-map_chapters", "3",
        "-vf", "setsar=12/11", *H264, "-c:a", "aac", "-c:s", "srt",
        "-metadata:s:a", "language=fra", "-metadata:s:a", "title=Talk",
        "-attach", folder / "font.ttf", "-metadata:s:t", "mimetype=font/ttf", path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (["-bsf:a", r"noise=drop=eq(n\,20)"], r"audio stream 1 \(aac\) must hold what it held, 45 packets, got 44"),
        (["-bsf:a", r"noise=amount=eq(n\,20)"], "45 packets, got as many, but from number 20 on 1 of them are others"),
        (["-bsf:s", r"noise=drop=eq(n\,1)"], r"subtitle stream 2 \(srt\) must hold what it held, 2 packets, got 1"),
        (
            ["-map_chapters", "-1"],
            r"chapter 'One' at 0\.000 to 0\.480 s from the first frame is needed, got none like it",
        ),
        (["-metadata", "title=Another"], "the title 'A film' is needed, got 'Another'"),
        (["-metadata:s:a", "title="], r"the title 'Talk' of audio stream 1 \(aac\) is needed, got ''"),
        (["-metadata:s:a", "language=deu"], r"the language fra of audio stream 1 \(aac\) is needed, got deu"),
        (["-metadata:s:t", "filename=a.ttf"], "attachments called font.ttf are needed, got a.ttf"),
        (["-aspect", "4:3"], r"samples of the aspect ratio 12/11 \(SAR\) are needed, got 1"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_verification_finds_whatever_is_not_as_it_was(
    rich: Path, tmp_path: Path, change: list[str], verdict: str
) -> None:
    copy, other = tmp_path / "copy.mkv", tmp_path / "other.mkv"
    ffmpeg("-i", rich, "-map", "0", "-c", "copy", copy)
    check(copy, aspect=Fraction(12, 11), original=rich)
    # Without the bitstream's own ratio, which H.264 has beside the container's.
    unshaped = ["-bsf:v", "h264_metadata=sample_aspect_ratio=1"] if change[0] == "-aspect" else []
    ffmpeg("-i", rich, "-map", "0", "-c", "copy", *unshaped, *change, other)
    with pytest.raises(IncompleteError, match=verdict):
        check(other, aspect=Fraction(12, 11), original=rich)


def test_verification_finds_other_attachments_and_surplus_chapters(rich: Path, tmp_path: Path) -> None:
    other, font = tmp_path / "other.mkv", tmp_path / "font.ttf"
    font.write_bytes(b"another one")
    ffmpeg(
        "-i",
        rich,
        "-map",
        "0",
        "-map",
        "-0:t",
        "-c",
        "copy",
        "-attach",
        font,
        "-metadata:s:t",
        "mimetype=font/ttf",
        other,
    )
    with pytest.raises(IncompleteError, match="must hold what it held, but nothing that is attached does"):
        check(other, aspect=None, original=rich)
    bare = tmp_path / "bare.mkv"
    ffmpeg("-i", rich, "-map", "0", "-c", "copy", "-map_chapters", "-1", bare)
    with pytest.raises(IncompleteError, match=r"chapter 'One' at 0.000 to 0.480 s from the first frame is too much"):
        check(rich, aspect=None, original=bare)


def test_verification_of_a_part_finds_gaps_in_its_sound(rich: Path, tmp_path: Path) -> None:
    part, other = tmp_path / "part.mkv", tmp_path / "other.mkv"
    ffmpeg(
        "-i",
        rich,
        "-map",
        "0:v",
        "-map",
        "0:a",
        "-c:v",
        "copy",
        "-c:a",
        "copy",
        "-bsf:a",
        r"noise=drop=gt(n\,30)",
        part,
    )
    ffmpeg("-i", part, "-map", "0", "-c", "copy", "-bsf:a", r"noise=drop=eq(n\,20)", other)
    tracks = source.inspect(rich).of_kind("audio")
    check(part, aspect=None, streams=tracks, original=rich, extent="part")
    with pytest.raises(IncompleteError, match="must hold a part of what it held, without gaps"):
        check(other, aspect=None, streams=tracks, original=rich, extent="part")
    check(other, aspect=None, streams=tracks, original=rich, extent="damaged")
    with pytest.raises(IncompleteError, match="45 packets, got 31"):
        check(part, aspect=None, streams=tracks, original=rich)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_verification_finds_a_file_that_is_cut(made: Path, tmp_path: Path, keep: float) -> None:
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(made.read_bytes()[: int(keep * made.stat().st_size)])
    with pytest.raises(IncompleteError):
        check(cut, original=made)


# Damage


@pytest.mark.parametrize(
    ("shown", "gaps"),
    [
        ([40 * n for n in range(100)], 0),
        ([40 * n for n in range(100) if not 50 <= n < 60], 1),
        ([40 * n for n in range(30) if not 10 <= n < 20], 1),  # also where it is a large part of a short film
        ([40 * n for n in range(100) if n != 50], 0),  # one frame that an encoder dropped
        ([*range(0, 2000, 40), *range(2000, 6000, 80)], 0),  # two rates
        ([0, 40, 2000], 0),  # too few to have a rate
        ([0], 0),
        ([], 0),
    ],
)
def test_a_gap_counts_as_damage_only_in_a_constant_rate(shown: list[int], gaps: int) -> None:
    assert len(source._gaps([source.Shown(time, 40, -1) for time in shown], Fraction(1, 1000), hole=None)) == gaps


# What must not outlive a job


def test_discard_kills_and_deletes_whatever_a_job_has_made(tmp_path: Path) -> None:
    work = Scratch()
    part, folder = work.make_part(tmp_path / "made.mkv"), work.make_folder()
    (folder / "something").touch()
    process = work.launch([sys.executable, "-c", "input()"])
    threading.Thread(target=work.discard).start()
    assert process.wait(timeout=10) != 0
    work.discard()
    assert not part.exists()
    assert not folder.exists()
    with pytest.raises(IncompleteError, match="stopped"):
        work.launch([sys.executable, "-c", "pass"])
    with pytest.raises(IncompleteError, match="stopped"):
        work.make_part(tmp_path / "made.mkv")


def test_a_part_file_is_hidden_beside_its_target_with_its_suffix(tmp_path: Path) -> None:
    for stem in ("film", "x" * 251, "ü" * 125):
        part = Scratch().make_part(tmp_path / f"{stem}.mkv")
        assert part.parent == tmp_path
        assert part.name.startswith(f".{stem[:100]}")
        assert part.name.endswith(".part.mkv")
        assert len(os.fsencode(part.name)) <= 255


@pytest.mark.parametrize("by_system", [True, False])
def test_a_target_is_never_replaced_where_files_have_one_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_system: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    if not by_system:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    part, target = tmp_path / "part", tmp_path / "target"
    part.write_text("made")
    move_new(part, target)
    assert target.read_text() == "made"
    assert not part.exists()
    part.write_text("again")
    with pytest.raises(FileExistsError):
        move_new(part, target)
    assert target.read_text() == "made"
    with pytest.raises(FileNotFoundError):
        move_new(tmp_path / "gone", tmp_path / "new")
    assert not (tmp_path / "new").exists()  # no claim stays under a final name


@pytest.mark.parametrize("target", ["made.avi", "made.webm", "made", "made.txt"])
def test_containers_without_exact_timestamps_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"\.mkv"):
        RestoreJob(source=Path("in.mkv"), target=Path(target))


# What the encoder is told


@pytest.mark.parametrize(
    ("pixel_format", "container", "expected"),
    [
        ("yuv420p", ".mkv", "-c:v libx264 -preset medium -crf 16 -pix_fmt yuv420p"),
        ("yuv411p", ".mkv", "-c:v libx264 -preset medium -crf 16 -pix_fmt yuv444p"),
        ("gbrp", ".mkv", "-c:v libx264rgb -preset medium -crf 16 -pix_fmt rgb24"),
        ("gray16le", ".mkv", "-c:v libx265 -preset medium -crf 16 -pix_fmt gray12le"),
        ("yuv422p10le", ".mp4", "-c:v libx265 -preset medium -crf 16 -pix_fmt yuv422p10le -tag:v hvc1"),
    ],
)
def test_default_encoder(pixel_format: str, container: str, expected: str) -> None:
    assert " ".join(choose_encoder("", pixel_format, container)) == expected


def test_encoder_arguments_extend_the_default_or_replace_it() -> None:
    assert choose_encoder("-crf 20", "yuv420p", ".mkv")[-2:] == ("-crf", "20")
    assert choose_encoder("-c:v ffv1 -x 'a b'", "yuv420p", ".mkv") == ("-c:v", "ffv1", "-x", "a b")


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("version", "before_ours", "without_ours"),
    [
        ("4.4.2-0ubuntu", False, False),
        ("5.1.9", False, True),
        ("7.0", True, True),
        ("n8.0.1", True, True),
        ("N-12345-gabcdef", True, True),
    ],
)
def test_the_ffmpeg_on_the_path_is_taken_before_ours_if_it_is_recent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, before_ours: bool, without_ours: bool
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho 'ffmpeg version {version} Copyright'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (programs.find_ffmpeg().path == program) == before_ours
    monkeypatch.setattr(programs, "_bundled_ffmpeg", lambda: None)
    if without_ours:
        assert programs.find_ffmpeg().path == program
        assert programs.find_ffmpeg().version == f"ffmpeg version {version} Copyright"
        assert programs.find_ffmpeg(program).path == program
    else:
        with pytest.raises(OutputError, match=r"5\.1 or newer is needed"):
            programs.find_ffmpeg()
        with pytest.raises(ConfigError, match="choose another with --ffmpeg"):
            programs.find_ffmpeg(program)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_ffmpeg_that_a_signal_ends_is_asked_again(tmp_path: Path, times: int) -> None:
    program, asked = tmp_path / "ffmpeg", tmp_path / "asked"
    program.write_text(
        f"#!/bin/sh\necho >> '{asked}'\n[ $(wc -l < '{asked}') -gt {times} ] || kill -9 $$\necho 'ffmpeg version 7.0'\n"
    )
    program.chmod(0o755)
    if times < programs.ATTEMPTS:
        assert programs.find_ffmpeg(program).release == (7, 0)
    else:
        with pytest.raises(ConfigError, match="that runs is needed"):
            programs.find_ffmpeg(program)
    assert len(asked.read_text().splitlines()) == min(times + 1, programs.ATTEMPTS)


def test_an_ffmpeg_that_does_not_start_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="must start"):
        Scratch().launch(["/nonexistent/ffmpeg"])


@pytest.mark.parametrize("name", ["YUV420P8", "YUV444P16", "YUV422P10", "RGB24", "RGB48", "GRAY8", "GRAY16"])
def test_frames_travel_with_samples_and_timestamps_unchanged(name: str) -> None:
    node = vs.core.std.BlankClip(format=getattr(vs, name), width=50, height=34, length=3, keep=True)
    values = [(n + 1) * 20 for n in range(node.format.num_planes)]
    frame = node.std.BlankClip(color=values).get_frame(0)
    samples = clip.frame_bytes(frame)
    stamps = [0, 33, 1000]
    data = nut_of(samples, stamps, clip.pixel_format(node.format), (50, 34))
    with av.open(io.BytesIO(data), "r") as container:
        decoded = list(container.decode(video=0))
    assert [round(shown.time * 1000) for shown in decoded] == stamps
    first_of_planes = [
        int.from_bytes(bytes(plane)[: 1 + (node.format.bits_per_sample > 8)], "little") for plane in decoded[0].planes
    ]
    assert first_of_planes == ([values[1], values[2], values[0]] if name.startswith("RGB") else values)  # G, B, R


def nut_of(samples: bytes, stamps: list[int], pixel_format: str, size: tuple[int, int]) -> bytes:
    """Frames as the encoder gets them."""
    stream = NutStream(size=size, pixel_format=pixel_format, rate=Fraction(30000, 1001), time_base=Fraction(1, 1000))
    return b"".join([*(stream.frame(samples, stamp) for stamp in stamps), stream.end()])


@pytest.mark.parametrize("name", ["GrayS", "RGBS", "YUV444PH"])
def test_formats_that_no_encoder_takes_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match=name):
        clip.pixel_format(vs.core.get_video_format(getattr(vs, name.upper())))


# Interlaced frames


@pytest.mark.parametrize(("name", "parity"), [("yuv420p", "tff"), ("yuv422p10le", "bff"), ("gbrp", "tff")])
def test_interlaced_frames_are_made_whole_as_ffmpeg_does_in_any_order(tmp_path: Path, name: str, parity: str) -> None:
    woven, whole = tmp_path / "woven.mkv", tmp_path / "whole.mkv"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error"]
    moving = f"testsrc2=s=70x50:r=50:d=0.4,format={name},interlace=scan={parity},setfield={parity}"
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", moving, "-c:v", "ffv1", woven], check=True)
    subprocess.run(
        [*ffmpeg, "-i", woven, "-vf", f"bwdif=mode=send_frame:parity={parity}", "-c:v", "ffv1", whole], check=True
    )
    made = deinterlaced(clip.open_clip(source.inspect(woven), threads=0, interlaced=True).node)
    expected = clip.open_clip(source.inspect(whole), threads=0, interlaced=True).node
    assert made.num_frames == expected.num_frames == 10
    for n in (4, 0, 9, 1, 4, 8, 2, 3, 5, 6, 7):
        assert clip.frame_bytes(made.get_frame(n)) == clip.frame_bytes(expected.get_frame(n))
        assert made.get_frame(n).props["_FieldBased"] == 0


def test_whole_frames_are_not_deinterlaced() -> None:
    node = vs.core.std.BlankClip(format=vs.YUV420P8, width=16, height=16, length=1, color=[9, 8, 7])
    made = deinterlaced(node)
    assert clip.frame_bytes(made.get_frame(0)) == clip.frame_bytes(node.get_frame(0))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (360000, "100:00:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
