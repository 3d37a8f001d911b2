"""Damage small films at random, restore each, and count what goes wrong. All counts must be 0.

    python scripts/mutate_films.py --films 300
    python scripts/mutate_films.py --only 17 --keep mutated

Makes films in many codecs and containers, and changes each copy in another way: bits are flipped, bytes are garbled,
cut off, left out, repeated or exchanged, packets are dropped or repeated. A copy is restored with nothing in place of
the network and encoded without loss. What counts as wrong:

wrong frames   it was restored, and the output shows other frames than FFmpeg decodes from the copy
concealed      it was restored without a warning, with frames that the whole film does not have, although FFmpeg
               complains of the copy
wrong times    it was restored, and a frame is shown at another time than FFmpeg shows it, without a warning
left over      it was refused, and something is left of the output; or restored, and more than the output and its record
wrong exit code  it was refused, but not for its own fault: such an exit code ends a batch
crash          the program ended with a traceback, or by a signal
hang           it did not end

FFmpeg decodes some damaged films without complaint, such as HEVC, VP8 and VP9: these count as whole.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import imageio_ffmpeg

from tests.light import replace_network

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()

Wrong = Literal["wrong frames", "concealed", "wrong times", "left over", "wrong exit code", "crash", "hang"]
WRONG = (*get_args(Wrong), "whole ones refused")

X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "8")
AAC, MP3 = ("-c:a", "aac"), ("-c:a", "libmp3lame")

KINDS: dict[str, tuple[str, ...]] = {
    "h264.mkv": (*X264, "-bf", "2", "-c:a", "libopus"),
    "h264.mp4": (*X264, "-bf", "2", *AAC),
    "h264-fragmented.mp4": (*X264, *AAC, "-movflags", "frag_keyframe+empty_moov"),
    "h264.mov": (*X264, "-c:a", "pcm_s16le"),
    "h264.ts": (*X264, "-bf", "2", *AAC),
    "h264.avi": (*X264, *MP3),
    "h264.flv": (*X264, *AAC),
    "h264.h264": X264,
    "hevc.mkv": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:pools=1:keyint=8", *AAC),
    "hevc.mp4": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:pools=1:keyint=8"),
    "av1.mkv": ("-c:v", "libsvtav1", "-preset", "13", "-g", "8", "-svtav1-params", "lp=1"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-g", "8", "-c:a", "libvorbis"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "8", "-c:a", "libopus"),
    "theora.ogv": ("-c:v", "libtheora", "-g", "8", "-c:a", "libvorbis"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-g", "8", "-c:a", "mp2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-g", "8", "-c:a", "mp2"),
    "mpeg2.mkv": ("-c:v", "mpeg2video", "-bf", "2", "-g", "8", *AAC),
    "mpeg2.mxf": ("-c:v", "mpeg2video", "-g", "8", "-ar", "48000", "-c:a", "pcm_s16le"),
    "mpeg1.mpg": ("-c:v", "mpeg1video", "-g", "8", "-c:a", "mp2"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-g", "8", *MP3),
    "mpeg4.mp4": ("-c:v", "mpeg4", "-bf", "2", "-g", "8", *AAC),
    "wmv2.wmv": ("-c:v", "wmv2", "-g", "8", "-c:a", "wmav2"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "mjpeg.mov": ("-c:v", "mjpeg"),
    "ffv1.mkv": ("-c:v", "ffv1", "-level", "3", "-c:a", "flac"),
    "prores.mov": ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"),
    "dnxhd.mov": ("-c:v", "dnxhd", "-profile:v", "dnxhr_sq", "-s", "256x128"),
    "utvideo.avi": ("-c:v", "utvideo", "-pix_fmt", "yuv422p"),
    "huffyuv.mkv": ("-c:v", "ffvhuff", "-pix_fmt", "yuv420p"),
    "png.mov": ("-c:v", "png", "-pix_fmt", "rgb24"),
    "raw.avi": ("-c:v", "rawvideo", "-pix_fmt", "yuv420p"),
    "raw.nut": ("-c:v", "rawvideo", "-pix_fmt", "yuv420p"),
    "raw.y4m": ("-pix_fmt", "yuv420p",),
}  # fmt: skip
"""The films, each with FFmpeg's options; those of the sound where it has some."""

RGB = {"png.mov"}
"""Films whose frames are compared as `gbrp`, which FFmpeg and VapourSynth store in another order."""

FRAMES, RATE = 20, 25

COMPLAINT = re.compile(r"\[(error|fatal|panic)\]|corrupt")
OF_SOUND = re.compile(r"^\[(aac|mp[23]float|vorbis|opus|flac|wmav2|pcm\w*) @|Packet corrupt \(stream = [1-9]")
"""Messages of FFmpeg about damage, and those of them about sound, track 1 of each film, which is copied as it is."""

OWN_FAULT = {2, 3, 6}
"""Exit codes of files that cannot be restored; other files of a batch can."""

SECONDS = 600
"""After which a restoration hangs."""

SLACK = Fraction(2, 100)
"""Most seconds by which the times of a frame may differ: containers round, and some FFmpeg releases differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What FFmpeg shows of a file."""

    frames: tuple[str, ...]
    """A hash of each frame."""
    times: tuple[Fraction, ...]
    """When each is shown after the first, seconds."""
    complaint: str
    """FFmpeg's first message about damage; empty if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How a restoration ended."""

    code: int | None
    """Exit code, below 0 for a signal; None if it did not end."""
    said: str
    """What it wrote to stderr."""


def main() -> int:
    """Damage films; the exit code is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=60, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all choices (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="N", help="only this one of them")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep films here with which something went wrong")
    options = parser.parse_args()
    numbers = range(options.films) if options.only is None else [options.only]
    wrong, ends = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mutate-") as name, Restorer(Path(name) / "tmp") as restorer:
        folder = Path(name)
        kinds = list(KINDS) if options.only is None else [list(KINDS)[options.only % len(KINDS)]]
        films = {kind: make_film(folder / kind) for kind in kinds}
        whole = {kind: shown_by_ffmpeg(path) for kind, path in films.items()}
        if options.only is None:
            refused = [kind for kind in KINDS if examine(restorer, films[kind], whole[kind], ())[0].code != 0]
            wrong["whole ones refused"] = len(refused)
            print(f"whole films refused: {', '.join(refused) or 'none'}", flush=True)
        for number in numbers:
            chance = random.Random(f"{options.seed} {number}")
            kind = list(KINDS)[number % len(KINDS)]
            how, data = mutate(films[kind], chance)
            copy = folder / f"{number}-{kind}"
            copy.write_bytes(data)
            for arguments in ((), ("--on-damage=salvage",)):
                end, found = examine(restorer, copy, whole[kind], arguments)
                if found:  # FFmpeg reports some damage once in a process, and a job has one of its own
                    restorer.end()
                    end, found = examine(restorer, copy, whole[kind], arguments)
                ends[f"exit code {end.code}{' '.join(('', *arguments))}"] += 1
                wrong.update(dict.fromkeys(found, 1))
                for each, why in found.items():
                    print(f"{number}: {kind}, {how}{' '.join(('', *arguments))}: {each}: {why}", flush=True)
                if found and options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(copy, options.keep)
                if end.code != 3 or found:
                    break
            copy.unlink()
            if number % 20 == 19:
                print(f"{number + 1} films, {dict(ends)}, {dict(wrong)}", flush=True)
    counts = ", ".join(f"{each} {wrong[each]}" for each in WRONG)
    print(f"{len(numbers)} films ({', '.join(f'{end}: {count}' for end, count in sorted(ends.items()))}): {counts}")
    return int(wrong.total() > 0)


def make_film(path: Path) -> Path:
    """Make a whole film; with sound if its options have some."""
    options = KINDS[path.name]
    seconds = FRAMES / RATE
    sound = ["-f", "lavfi", "-i", f"sine=d={seconds}"] if "-c:a" in options else []
    picture = ["-f", "lavfi", "-i", f"testsrc2=s=64x48:r={RATE}:d={seconds}"]
    subprocess.run([FFMPEG, "-loglevel", "error", *picture, *sound, *options, path], check=True)
    return path


def mutate(film: Path, chance: random.Random) -> tuple[str, bytes]:
    """Change a film; returns how, and its bytes."""
    change = chance.choice([flip_bits, flip_in_packet, garble, blank, cut, leave_out, repeat, exchange, spoil_packets])
    return change.__name__, change(film, chance)


def flip_bits(film: Path, chance: random.Random) -> bytes:
    """Flip up to eight bits anywhere."""
    data = bytearray(film.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flip_in_packet(film: Path, chance: random.Random) -> bytes:
    """Flip one bit in a packet of the picture."""
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    known = [(place, size) for place, size in places if place is not None and 0 <= place < len(data)]
    place, size = chance.choice(known or [(0, len(data))])
    data[min(len(data) - 1, place + chance.randrange(size))] ^= 1 << chance.randrange(8)
    return bytes(data)


def garble(film: Path, chance: random.Random) -> bytes:
    """Overwrite some bytes with others."""
    data = bytearray(film.read_bytes())
    begin, end = piece(len(data), chance)
    data[begin:end] = chance.randbytes(end - begin)
    return bytes(data)


def blank(film: Path, chance: random.Random) -> bytes:
    """Overwrite some bytes with zeros."""
    data = bytearray(film.read_bytes())
    begin, end = piece(len(data), chance)
    data[begin:end] = bytes(end - begin)
    return bytes(data)


def cut(film: Path, chance: random.Random) -> bytes:
    """Cut the end off, often a short one."""
    data = film.read_bytes()
    return data[: -chance.randint(1, chance.choice((16, 256, len(data) - 1)))]


def leave_out(film: Path, chance: random.Random) -> bytes:
    """Leave some bytes out."""
    data = film.read_bytes()
    begin, end = piece(len(data), chance)
    return data[:begin] + data[end:]


def repeat(film: Path, chance: random.Random) -> bytes:
    """Repeat some bytes."""
    data = film.read_bytes()
    begin, end = piece(len(data), chance)
    return data[:end] + data[begin:]


def exchange(film: Path, chance: random.Random) -> bytes:
    """Exchange two pieces of one length."""
    data = bytearray(film.read_bytes())
    begin, end = piece(len(data), chance)
    other = chance.randrange(len(data) - (end - begin) + 1)
    if abs(other - begin) >= end - begin:
        one, two = data[begin:end], data[other : other + end - begin]
        data[begin:end], data[other : other + end - begin] = two, one
    return bytes(data)


def spoil_packets(film: Path, chance: random.Random) -> bytes:
    """Drop, repeat, cut or change some packets, in a container that is whole."""
    made = film.with_name(f"spoiled-{film.name}")
    with av.open(str(film)) as before, suppress(av.FFmpegError, ValueError), av.open(str(made), "w") as after:
        tracks = {stream.index: after.add_stream_from_template(stream, opaque=True) for stream in before.streams}
        for packet in before.demux():
            if not packet.size:
                continue
            content, times, fate = bytearray(bytes(packet)), 1, chance.random()
            if fate < 0.03:
                times = 0
            elif fate < 0.06:
                times = 2
            elif fate < 0.09:
                del content[chance.randrange(1, len(content) + 1) :]
            elif fate < 0.15:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            for _ in range(times):
                coded = av.Packet(bytes(content))
                coded.stream, coded.time_base = tracks[packet.stream_index], packet.time_base
                coded.pts, coded.dts, coded.duration = packet.pts, packet.dts, packet.duration
                coded.is_keyframe = packet.is_keyframe
                after.mux(coded)
    try:
        return made.read_bytes() if made.is_file() and made.stat().st_size else flip_bits(film, chance)
    finally:
        made.unlink(missing_ok=True)


def piece(length: int, chance: random.Random) -> tuple[int, int]:
    """Where a piece of a file begins and ends."""
    size = min(length // 2, chance.choice((1, 4, 32, 188, 500, 3000)))
    begin = chance.randrange(length - size + 1)
    return begin, begin + size


class Restorer:
    """A process that restores films one after the other; another one begins if it dies.

    Args:
        folder: For temporary files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Restorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def restore(self, source: Path, target: Path, arguments: Sequence[str]) -> End:
        """Restore a film."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "as-vsfmanet"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        process, log = self._process, self._folder / "log"
        log.touch()
        assert process.stdin is not None
        assert process.stdout is not None
        job = {"arguments": ["restore", LOSSLESS, *arguments, "--", str(source), str(target)], "log": str(log)}
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self.end()
            return End(code=None, said=log.read_text(errors="replace"))
        answer = process.stdout.readline()
        said = log.read_text(errors="replace")
        return End(code=json.loads(answer) if answer else process.wait(), said=said)

    def end(self) -> None:
        """End the process; the next film starts another one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


LOSSLESS = "--encoder-args=-c:v ffv1"


def examine(restorer: Restorer, copy: Path, whole: Shown, arguments: Sequence[str]) -> tuple[End, dict[Wrong, str]]:
    """Restore a damaged film; returns how that ended, and what went wrong."""
    found: dict[Wrong, str] = {}
    out = copy.with_name("out")
    out.mkdir()
    end = restorer.restore(copy, out / "made.mkv", arguments)
    last = end.said.strip().rpartition("\n")[2][:300]
    if end.code is None:
        found["hang"] = last
    elif end.code < 0 or end.code == 1 or "Traceback" in end.said:
        found["crash"] = f"{end.code} {last}"
    elif end.code == 0:
        if not arguments:
            found |= compared(copy, out / "made.mkv", whole, end.said)
        if names := {path.name for path in out.iterdir()} - {"made.mkv", "made.mkv.vsfmanet.json"}:
            found["left over"] = ", ".join(names)
    else:
        if names := {path.name for path in out.iterdir()}:
            found["left over"] = ", ".join(names)
        if end.code not in OWN_FAULT:
            found["wrong exit code"] = f"{end.code} {last}"
    shutil.rmtree(out)
    return end, found


def compared(copy: Path, made: Path, whole: Shown, said: str) -> dict[Wrong, str]:
    """What is wrong with the output of a damaged film that was restored without complaint."""
    found: dict[Wrong, str] = {}
    before, after = shown_by_ffmpeg(copy), shown_by_ffmpeg(made, rgb=copy.name.partition("-")[2] in RGB)
    if before.frames != after.frames:
        same = sum(one == other for one, other in zip(before.frames, after.frames, strict=False))
        found["wrong frames"] = f"{len(before.frames)} by FFmpeg, {len(after.frames)} of ours, {same} alike"
    elif "timestamp" not in said and any(
        abs(one - other) > SLACK for one, other in zip(before.times, after.times, strict=True)
    ):
        found["wrong times"] = f"{list(map(float, before.times))}, got {list(map(float, after.times))}"
    if before.complaint and after.frames != whole.frames and "FFmpeg reports of the file" not in said:
        found["concealed"] = before.complaint
    return found


def shown_by_ffmpeg(path: Path, *, rgb: bool | None = None) -> Shown:
    """Decode a file with FFmpeg."""
    rgb = any(path.name.endswith(name) for name in RGB) if rgb is None else rgb
    line = [FFMPEG, "-hide_banner", "-nostats", "-loglevel", "level+warning", "-i", path, "-map", "0:v:0"]
    line += ["-fps_mode", "passthrough", *(("-pix_fmt", "gbrp") if rgb else ()), "-f", "framemd5", "-"]
    run = subprocess.run(line, capture_output=True, check=False)
    said = run.stderr.decode(errors="replace").splitlines()
    table = run.stdout.decode(errors="replace")
    unit = re.search(r"^#tb 0: (\d+)/(\d+)", table, re.MULTILINE)
    rows = [line.replace(" ", "").split(",") for line in table.splitlines() if line and not line.startswith("#")]
    times = [int(row[2]) * Fraction(int(unit[1]), int(unit[2])) for row in rows] if unit else []
    return Shown(
        frames=tuple(row[-1] for row in rows),
        times=tuple(time - times[0] for time in times),
        complaint=next((line for line in said if COMPLAINT.search(line) and not OF_SOUND.search(line)), ""),
    )


def act_as_vsfmanet() -> int:
    """Restore the films that are named on stdin, with nothing in place of the network."""
    import os

    from vsfmanet import cli
    from vsfmanet.cli import restore

    replace_network(lambda node, settings: node)
    vars(restore).update(_guarded=lambda job, reporting, *, stall_limit: restore._here(job, reporting))
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        log = os.open(job["log"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(log, 2)
        os.close(log)
        code = cli.main(job["arguments"])
        sys.stderr.flush()
        print(code, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(act_as_vsfmanet() if sys.argv[1:2] == ["as-vsfmanet"] else main())
