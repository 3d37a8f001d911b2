"""The runs of FFmpeg that make an output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from vsfmanet.media.clip import Colour
from vsfmanet.media.coding import CONTAINING, FILTERS
from vsfmanet.media.ffmpeg import Ffmpeg, Run
from vsfmanet.media.film import Film, attached_covers, cover_file, mapped_streams
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.source import Stream

PATIENCE = ("-max_muxing_queue_size", "9999")
"""Packets of sound that may wait for the first frame, which may be minutes away."""

OF_CODING = {"attached_pic", "dependent", "multilayer", "still_image", "timed_thumbnails"}
"""Dispositions that describe the source's own coding (such as MV-HEVC), not what the video is for."""

STALE_TAGS = (
    *("bps", "creation_time", "duration", "encoder", "handler_name", "number_of", "rotate", "vendor_id", "_stat"),
)
"""Beginnings of tags that describe the source's own coding, not the video."""


def whole_run(film: Film, ffmpeg: Ffmpeg, output: Path, *, covers: Path) -> Run:
    """Encode frames from stdin to a whole output, and copy everything else from the source.

    Args:
        film: Specification of the output.
        ffmpeg: Program.
        output: File to write.
        covers: Folder with the cover pictures as `cover_file` names them.
    """
    begin = _seconds(film.timestamps[0] * film.time_base)
    frames = [*_colour_args(film.colour), *_hdr_args(film.hdr), "-itsoffset", begin, "-f", "nut", "-i", "pipe:0"]
    made = [*_video_stream(film), *_coding_args(film), *_copy_args(film, covers), *PATIENCE, *_limits(film)]
    return Run(ffmpeg=ffmpeg, inputs=(*frames, *_inputs(film)), arguments=tuple(made), output=output)


def range_run(film: Film, ffmpeg: Ffmpeg, output: Path) -> Run:
    """Encode frames from stdin to a range without other streams; its clock starts with the first frame."""
    frames = (*_colour_args(film.colour), *_hdr_args(film.hdr), "-f", "nut", "-i", "pipe:0")
    return Run(ffmpeg=ffmpeg, inputs=frames, arguments=("-map", "0:v:0", *_coding_args(film)), output=output)


def others_run(film: Film, ffmpeg: Ffmpeg, output: Path) -> Run:
    """Copy all but the video, cut to the time of the output, on the output's clock."""
    made = [text for stream in film.copied for text in ("-map", _place(film, stream, first=0))]
    made += ["-map_metadata", "0", "-map_chapters", "0", "-c", "copy", *_limits(film)]
    return Run(ffmpeg=ffmpeg, inputs=tuple(_inputs(film)), arguments=tuple(made), output=output)


def joined_run(film: Film, ffmpeg: Ffmpeg, output: Path, *, covers: Path, carrier: str, begin: Fraction) -> Run:
    """Write a whole output with coded frames from stdin, and copy everything else from the source.

    Args:
        film: Specification of the output; nothing is cut, since FFmpeg cuts by decoding time and would drop frames.
        ffmpeg: Program.
        output: File to write.
        covers: As for `whole_run`.
        carrier: Format of the input.
        begin: Time of its zero on the source's clock, seconds.
    """
    frames = [*_hdr_args(film.hdr), "-itsoffset", _seconds(begin), "-f", carrier, "-i", "pipe:0"]
    made = [*_video_stream(film), "-c:v:0", "copy", *_colour_args(film.colour), *_aspect_args(film)]
    made += [*_container_args(film.encoder_args), *_copy_args(film, covers), *PATIENCE]
    return Run(ffmpeg=ffmpeg, inputs=(*frames, *_inputs(film)), arguments=tuple(made), output=output)


def early_run(film: Film, ffmpeg: Ffmpeg, output: Path, early: Sequence[Stream]) -> Run:
    """Copy subtitles; packets that begin before the output and last into it are cut to its beginning."""
    assert film.start is not None
    made: list[str] = []
    for number, stream in enumerate(early):
        gone = "+".join(f"eq(n\\,{n})" for n, (_, end) in enumerate(stream.spans) if end <= film.start) or "0"
        moved = f"max(PTS\\,ceil({_seconds(film.start)}/TB))"
        clipped = f"noise=drop='{gone}',setts=pts='{moved}':dts='{moved}':duration='DURATION+PTS-{moved}'"
        made += ["-map", f"0:{stream.index}", f"-bsf:s:{number}", clipped]
    inputs = ("-protocol_whitelist", "file", "-i", f"file:{film.source.path}")
    return Run(ffmpeg=ffmpeg, inputs=inputs, arguments=(*made, "-c", "copy"), output=output)


def _inputs(film: Film) -> list[str]:
    """Options for the files that are copied from: the source, and others of single streams."""
    paths = [film.source.path, *_other_files(film)]
    return [text for path in paths for text in ("-protocol_whitelist", "file", "-i", f"file:{path}")]


def _other_files(film: Film) -> list[Path]:
    return list(dict.fromkeys(stream.path for stream in film.copied if stream.path is not None))


def _place(film: Film, stream: Stream, *, first: int) -> str:
    """A stream as FFmpeg's option -map names it, where `first` is the number of the source among the inputs."""
    file = first if stream.path is None else first + 1 + _other_files(film).index(stream.path)
    return f"{file}:{stream.index}"


def _video_stream(film: Film) -> list[str]:
    """Options that map the video, and for metadata of the file and its streams."""
    line = ["-map", "0:v:0", "-map_metadata", "1", "-map_chapters", "1"]
    for number, stream in enumerate(mapped_streams(film), start=1):
        if stream.kind in ("audio", "subtitle") and "title" in stream.tags:  # FFmpeg reads it from MP4 as a "name"
            line += [f"-metadata:s:{number}", f"title={stream.tags['title']}", f"-metadata:s:{number}", "name="]
    for key, value in film.source.video.tags.items():
        if not key.startswith(STALE_TAGS):
            line += ["-metadata:s:v:0", f"{key}={value}"]
    # Said even where there is none: otherwise FFmpeg marks the first track of each kind as the default one.
    line += ["-disposition:v:0", "+".join(flag for flag in film.source.disposition if flag not in OF_CODING) or "0"]
    return line


def _limits(film: Film) -> list[str]:
    """Options that cut to the time of the output."""
    start = [] if film.start is None else ["-ss", _seconds(film.start)]
    return start if film.duration is None else [*start, "-t", _seconds(film.duration)]


def _coding_args(film: Film) -> list[str]:
    """Options for an encoder that gets frames with their times."""
    unit = f"{film.time_base.numerator}:{film.time_base.denominator}"
    line = ["-fps_mode:v:0", "passthrough", "-enc_time_base:v:0", unit]
    return [*line, *_colour_args(film.colour), *_video_args(film)]


def _aspect_args(film: Film) -> list[str]:
    """The display aspect ratio, for codecs that leave it to the container. FFmpeg rounds what has larger terms."""
    terms = (film.aspect * Fraction(*film.size)).as_integer_ratio()
    return [] if film.aspect == 1 or max(terms) > 255 else ["-aspect:v:0", f"{terms[0]}:{terms[1]}"]


def _container_args(encoder_args: Sequence[str]) -> list[str]:
    """The encoder's options that belong to the container."""
    pairs = zip(encoder_args[::2], encoder_args[1::2], strict=True)  # `one_range` has let nothing else pass
    return [text for pair in pairs if pair[0].removeprefix("-").partition(":")[0] in CONTAINING for text in pair]


def _video_args(film: Film) -> list[str]:
    """The encoder's options, with the sample aspect ratio set before the user's filters."""
    ratio = f"{film.aspect.numerator}/{film.aspect.denominator}"
    filters = [] if film.aspect == 1 else [f"setsar=sar={ratio}:max={max(film.aspect.as_integer_ratio())}"]
    arguments = []
    given = iter(film.encoder_args)
    for argument in given:
        if argument in FILTERS:
            filters.append(next(given, ""))
        else:
            arguments.append(argument)
    return [*(["-filter:v:0", ",".join(filters)] if filters else []), *arguments]


def _copy_args(film: Film, covers: Path) -> list[str]:
    """Options that copy streams."""
    attached, mapped = attached_covers(film), mapped_streams(film)
    line = ["-c:a", "copy", "-c:s", "copy", "-c:t", "copy"]
    for stream in mapped:
        line += ["-map", _place(film, stream, first=1)]
    for number, _ in enumerate((stream for stream in mapped if stream.kind == "cover"), start=1):
        line += [f"-c:v:{number}", "copy"]
    for number, cover in enumerate(attached, start=sum(stream.kind == "attachment" for stream in mapped)):
        name = cover_file(cover)
        kind = "jpeg" if name.endswith(".jpg") else cover.codec
        line += ["-attach", f"file:{covers / name}", f"-metadata:s:t:{number}", f"mimetype=image/{kind}"]
        line += [f"-metadata:s:t:{number}", f"filename={cover.tags.get('filename', name)}"]
    return line


def _colour_args(colour: Colour) -> list[str]:
    """Colour tags as options, for input and output alike: if both are equal, FFmpeg converts nothing."""
    options = {
        "-color_range": colour.range,
        "-color_primaries": colour.primaries,
        "-color_trc": colour.transfer,
        "-colorspace": colour.matrix,
        "-chroma_sample_location": colour.chroma_location,
    }
    return [text for name, value in options.items() if value is not None for text in (name, str(value))]


def _hdr_args(hdr: Hdr) -> list[str]:
    """HDR metadata as options of an input; FFmpeg passes it on to encoder and container."""
    options = {"-mastering_display:v:0": hdr.master_display, "-content_light:v:0": hdr.max_cll}
    return [text for name, value in options.items() if value is not None for text in (name, value)]


def _seconds(time: Fraction) -> str:
    """A time in FFmpeg's notation, rounded down to a microsecond, so that nothing at that time is cut off."""
    return f"{math.floor(time * 1_000_000) / 1_000_000:.6f}"
