"""Makes a long film in ranges of frames, so that a killed job loses only the range that it was making.

Each range is encoded to a file of its own, which begins with a key frame and needs nothing outside. The files wait in a
hidden folder beside the output, and are joined in the end without encoding them again: their packets, with the exact
times of the source, go to FFmpeg through a pipe, as frames do. The pixels are those of one pass, because those of a
frame depend on the clip and its number alone; where ranges end depends on the clip and the options alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import vapoursynth as vs
from av.container import OutputContainer
from av.video.stream import VideoStream

from vsfmanet.atomic import read_regular, write_whole
from vsfmanet.errors import BusyError, IncompleteError, OutputError
from vsfmanet.jobs.files import WITHIN_WORK, remove, work_path
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.scratch import Scratch
from vsfmanet.media import clip as clips
from vsfmanet.media.clip import Colour, Tally
from vsfmanet.media.coding import one_range
from vsfmanet.media.commands import joined_run, others_run, range_run
from vsfmanet.media.decode import main_track, open_container
from vsfmanet.media.feed import Encoder, Feed, Sink
from vsfmanet.media.ffmpeg import Ffmpeg
from vsfmanet.media.film import Film, attached_covers, mapped_streams
from vsfmanet.media.matroska import damaged_place
from vsfmanet.media.thumbnails import SUFFIX, count_thumbnails
from vsfmanet.settings import is_int

EARLIEST_CUT = Fraction(3, 4)
"""Part of the length after which a range ends at the next scene cut."""

TRIAL_FRAMES = 3
"""Frames of a trial output: with fewer, a changed rate would not show."""

SHORTEST_STEP = Fraction(2, 1000)
"""Shortest time between two frames, seconds; Matroska counts in milliseconds."""

NAME = re.compile(r"(\d{9})-(\d{9})(\.\w+)")
"""Name of a finished range's file: its first frame, and the one after its last."""

COLOUR = "colour.json"
"""File with the colour tags of the film's first frame, which all ranges have."""

CARRIERS = {"nut": {}, "mov": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}}
"""Formats that bring coded frames to FFmpeg with exact times, with options that let them go through a pipe. NUT has no
place for some codecs, such as ProRes; MOV shifts frames that are not coded in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A finished range."""

    path: Path
    """File of the range."""
    frames: range
    """Numbers of its frames in the clip."""
    order: tuple[int, ...]
    """For each packet, the frame that it shows, counted from 0."""
    parameters: bytes
    """Codec parameters that a decoder needs before the first packet."""


class Ranges:
    """The ranges of one output.

    Args:
        film: What the whole must be.
        ffmpeg: Program.
        output: File for the whole.
        ahead: Frames that are asked for ahead of the encoder.
        frames: Numbers of the frames, in the restored clip.
        length: Most frames of a range.
        target: The output.
        folder: For small files.
        scratch: Starts FFmpeg, and clears up.
    """

    def __init__(
        self,
        film: Film,
        *,
        ffmpeg: Ffmpeg,
        output: Path,
        ahead: int,
        frames: range,
        length: int,
        target: Path,
        folder: Path,
        scratch: Scratch,
    ) -> None:
        self._film = film
        self._ffmpeg = ffmpeg
        self._output = output
        self._ahead = ahead
        self._frames = frames
        self._length = length
        self._target = target
        self._folder = folder
        self._scratch = scratch
        self._work = Path()
        self.coded = Path()
        """Trial output of a few frames, as a range is encoded."""
        self.trial = Path()
        """Trial output of a few frames, encoded and joined like the real one."""
        self._found: list[Range] = []

    @property
    def missing(self) -> range:
        """Frames that are in no finished range."""
        return range(self._found[-1].frames.stop if self._found else self._frames.start, self._frames.stop)

    @property
    def thumbnails(self) -> list[Path]:
        """Files with the thumbnails of the frames, range by range."""
        return [each.path.with_suffix(SUFFIX) for each in self._found]

    def open(self, source: str, key: str, blank: bytes) -> None:
        """Try the encoder on some frames, and find the ranges that are finished.

        Args:
            source: `source_digits`.
            key: `job_key`, and `Resolved.arithmetic`. Ranges of another key, encoder or length are never found.
            blank: Samples of a frame.

        Raises:
            OutputError: The encoder cannot work, or what it makes cannot be joined.
        """
        output = self._folder / f"trial{self._film.suffix}"
        trial = replace(self._film, timestamps=self._film.timestamps[:TRIAL_FRAMES], copied=())
        count = len(trial.timestamps)
        self._encode(trial, output, [blank] * count)
        sample = read_range(output, range(count))
        self.coded, self.trial = output, output.with_stem("trial joined")
        self._join(trial, self.trial, [sample], begin=Fraction(0), advance=lambda: None)
        before, after = _first_frame(output), _first_frame(self.trial)
        if before != after or before[0] != trial.aspect:
            raise OutputError(
                "a joined frame must be the one that was coded, with its sample aspect ratio "
                f"{trial.aspect}, but the encoder gives another one, with {after[0]}"
            )
        text = f"{key} {self._ffmpeg.version} {sample.parameters.hex()} {self._length}"
        self._work = work_path(self._target, source, hashlib.sha256(text.encode()).hexdigest()[:8])
        self._work.mkdir(exist_ok=True)
        if self._work.is_symlink():
            raise OutputError(f"{self._work}: a folder is needed for finished ranges, got a symbolic link; remove it")
        self._found = list(self._finished())
        self._scratch.has_ranges = bool(self._found)

    def encode(self, restored: vs.VideoNode, report: Report, tally: Tally, *, after: float = 0.0) -> None:
        """Make the missing ranges.

        Args:
            restored: The restored clip, whole.
            report: Where progress goes.
            tally: Takes note of each frame's properties.
            after: Seconds that the steps after it take.

        Raises:
            VsfmanetError: A frame could not be restored, or not be encoded. Ranges that are finished stay.
        """
        total, missing = len(self._frames), self.missing
        if self._found:
            report.note(f"{total - len(missing)} of {total} frames are there, in {len(self._found)} ranges; going on")
        if not missing:
            return
        left = restored[missing.start : missing.stop]
        shown = clips.read_frames(self._film.source, left, ahead=self._ahead, first=total - len(missing), tally=tally)
        with report.begin("restoring", total, done=total - len(missing), after=after) as progress:
            frame: vs.VideoFrame | None = next(shown)
            assert frame is not None
            report.phase("encoding")
            if not self._found:
                write_whole(self._work / COLOUR, json.dumps(asdict(clips.colour(frame))))

            def samples() -> Iterator[bytes]:
                """Yield the samples of one range; `frame` is then the first of the next one."""
                nonlocal frame
                for count in range(self._length):
                    if frame is None or (count >= EARLIEST_CUT * self._length and _starts_scene(frame, start + count)):
                        return
                    yield clips.frame_bytes(frame)
                    progress.advance()
                    frame = next(shown, None)

            while frame is not None:
                start = self.missing.start
                self._add(samples())

    def join(self, report: Report) -> None:
        """Join the ranges.

        Args:
            report: Where progress goes.

        Raises:
            OutputError: It cannot be written.
        """
        film = self._tagged_film()
        begin = film.timestamps[0] * film.time_base
        if film.start is not None:
            begin -= film.start
            film = self._with_cut_source(film)
        with report.begin("joining", len(self._frames)) as progress:
            self._join(film, self._output, self._found, begin=begin, advance=progress.advance)

    def _add(self, samples: Iterable[bytes]) -> None:
        """Encode the next range, and name it once it is whole."""
        missing = self.missing
        offset = missing.start - self._frames.start
        unfinished = self._scratch.make_unfinished(self._work, self._film.suffix)
        film = replace(self._tagged_film(), timestamps=self._film.timestamps[offset : offset + self._length])
        count = self._encode(film, unfinished, samples)
        frames = range(missing.start, missing.start + count)
        made = read_range(unfinished, frames)
        if self._found and made.parameters != self._found[0].parameters:
            raise OutputError(
                f"{self._target}: all ranges must have the same coding parameters to be joined, but this "
                "encoder changes them from range to range; make it in one pass with --range-frames 0"
            )
        path = self._work / f"{frames.start:09}-{frames.stop:09}{unfinished.suffix}"
        unfinished.with_suffix(SUFFIX).replace(path.with_suffix(SUFFIX))  # flushed before; the range is named last
        self._scratch.finish(unfinished, path)
        self._found.append(replace(made, path=path))

    def _encode(self, film: Film, output: Path, samples: Iterable[bytes]) -> int:
        """Encode frames to a file; return how many."""
        run, kept = range_run(film, self._ffmpeg, output), output.with_suffix(SUFFIX)
        with Encoder(run, film, launch=self._scratch.launch, thumbnails=kept) as encoder:
            for frame in samples:
                encoder.write(frame)
            encoder.finish()
            return encoder.written

    def _finished(self) -> Iterator[Range]:
        """Yield the finished ranges up to the first gap, and delete what cannot be used."""
        there, tagged = {}, self._colour() is not None
        for path in self._work.iterdir():
            match = NAME.fullmatch(path.name)
            if match and match[3] == SUFFIX:
                continue
            if match and tagged:
                there[int(match[1])] = (path, range(int(match[1]), int(match[2])))
            elif path.name != COLOUR and WITHIN_WORK.fullmatch(path.name):
                remove(path)
        first = self._frames.start
        while first in there:
            path, frames = there.pop(first)
            try:
                made = read_range(path, frames)
            except IncompleteError:
                remove(path)
                break
            if count_thumbnails(path.with_suffix(SUFFIX)) != len(frames):
                remove(path)
                break
            yield made
            first = frames.stop

    def _colour(self) -> Colour | None:
        """Colour tags of the film's first frame; None if the file is missing or damaged."""
        try:
            tags = json.loads(read_regular(self._work / COLOUR).decode())
            return Colour(**tags) if all(tag is None or is_int(tag) for tag in tags.values()) else None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None

    def _tagged_film(self) -> Film:
        """The film with the colour of the film's first frame.

        Raises:
            BusyError: The file that keeps it is gone.
        """
        colour = self._colour()
        if colour is None:
            raise BusyError(
                f"{self._target}: another run has taken over and removed {self._work.name}; let that run end"
            )
        return replace(self._film, colour=colour)

    def _join(
        self, film: Film, output: Path, ranges: list[Range], *, begin: Fraction, advance: Callable[[], None]
    ) -> None:
        """Make a whole of ranges, with the first frame at the time `begin` on the clock of the film's source.

        A packet is decoded before it is shown by as many frames as the order of any range asks for; FFmpeg and the
        formats want decoding times that rise, are not below 0, and not above the time of showing.
        """
        stamps = [stamp - film.timestamps[0] for stamp in film.timestamps]
        ahead = max(place - shown for each in ranges for place, shown in enumerate(each.order))
        steps = [later - earlier for earlier, later in pairwise(stamps)]
        step = round(statistics.median(steps)) if steps else 1
        delay = ahead * step
        with ExitStack() as stack:
            first = stack.enter_context(open_container(ranges[0].path)).streams.video[0]
            sink = Sink()
            carrier, container, stream = _carrier(sink, first, reordered=ahead > 0)
            stream.time_base = film.time_base
            begin -= delay * film.time_base
            run = joined_run(film, self._ffmpeg, output, covers=self._folder, carrier=carrier, begin=begin)
            feed = stack.enter_context(Feed(run, film, launch=self._scratch.launch))
            for each in ranges:
                before = feed.written
                with open_container(each.path) as file:
                    for packet in file.demux(video=0):
                        if not packet.size:
                            continue
                        place = feed.written
                        coded = av.Packet(bytes(packet))
                        coded.stream, coded.time_base, coded.is_keyframe = stream, film.time_base, packet.is_keyframe
                        coded.pts = delay + stamps[before + each.order[place - before]]
                        coded.dts = place * step if place < ahead else delay + stamps[place - ahead]
                        container.mux(coded)
                        feed.send(sink.take())
                        feed.written += 1
                        advance()
            container.close()
            feed.send(sink.take())
            feed.finish()

    def _with_cut_source(self, film: Film) -> Film:
        """A film with a source that is cut to the time of the output, and has its clock."""
        kept = mapped_streams(film)
        path = self._folder / (f"others{film.suffix}" if kept else "others.ffmeta")
        cutting = replace(film, copied=tuple(kept))
        with Feed(others_run(cutting, self._ffmpeg, path), cutting, launch=self._scratch.launch) as feed:
            feed.finish()
        moved = (replace(stream, index=number, path=None) for number, stream in enumerate(kept))
        return replace(film, source=replace(film.source, path=path), copied=(*moved, *attached_covers(film)))


def why_one_pass(film: Film) -> str | None:
    """Reason to make a film in one pass; None if it can be made in ranges."""
    steps = [later - earlier for earlier, later in pairwise(film.timestamps)]
    if steps and min(steps) * film.time_base < SHORTEST_STEP:
        return "some frames follow each other within 2 ms"
    return one_range(film.encoder_args)


def read_range(path: Path, frames: range) -> Range:
    """Read the packets of a range, and check that it is whole and decodes by itself.

    Args:
        path: Its file.
        frames: What it must hold.

    Raises:
        IncompleteError: It holds something else.
    """
    try:
        with open_container(path) as container:
            track = main_track(container)
            packets = (packet for packet in container.demux(track) if packet.size) if track else ()
            found = [(packet.pts, packet.is_keyframe) for packet in packets]  # not their data, which may be large
            parameters = bytes(track.codec_context.extradata or b"") if track else b""
        if (place := damaged_place(path)) is not None:
            raise IncompleteError(
                f"{path}: a range must be as it was written, but is damaged at byte {place}; run it again"
            )
    except (av.FFmpegError, OSError) as error:
        raise IncompleteError(f"{path}: a range must be readable, got {error}; run it again") from error
    times = [time for time, _ in found if time is not None]
    rank = {time: n for n, time in enumerate(sorted(times))}
    if len(found) != len(frames) or len(rank) != len(frames):
        raise IncompleteError(
            f"{path}: a range of {len(frames)} frames is needed, got {len(rank)}; leave those of "
            "--encoder-args out that change timing (-r), and report it if it comes back"
        )
    order = tuple(rank[time] for time in times)
    if not found[0][1] or order[0] != 0:
        raise IncompleteError(
            f"{path}: a range must begin with a key frame, but this encoder begins otherwise; make the output "
            "in one pass with --range-frames 0"
        )
    return Range(path=path, frames=frames, order=order, parameters=parameters)


def _first_frame(path: Path) -> tuple[Fraction, bytes]:
    """Return the sample aspect ratio and the samples of the first frame of a file.

    Raises:
        OutputError: It cannot be decoded.
    """
    try:
        with open_container(path) as container:
            track = container.streams.video[0]
            picture = next(container.decode(track)).to_ndarray(format="rgb24")
            aspect = track.sample_aspect_ratio
            return Fraction(aspect.numerator, aspect.denominator) if aspect else Fraction(1), picture.tobytes()
    except (av.FFmpegError, StopIteration, ValueError) as error:
        raise OutputError(f"what the encoder makes must decode, got {error}") from error


def _carrier(sink: Sink, track: VideoStream, *, reordered: bool) -> tuple[str, OutputContainer, VideoStream]:
    """Create a stream for the packets of a track, in a format that holds them.

    Raises:
        OutputError: No format does.
    """
    for name, options in CARRIERS.items():
        if name == "mov" and reordered:
            break
        container = av.open(sink, "w", format=name, container_options={"avoid_negative_ts": "disabled"} | options)
        with suppress(ValueError):
            return name, container, container.add_stream_from_template(track, opaque=True)
    raise OutputError(
        f"ranges must be joined, but nothing carries {track.codec_context.name} to FFmpeg; make the output in "
        "one pass with --range-frames 0"
    )


def _starts_scene(frame: vs.VideoFrame, number: int) -> bool:
    """Whether a restored frame depends on no frame before it."""
    return frame.props.get("FMANetWindowStart") == number
