"""Compare a finished file with its source in all but the picture: packets of every stream, chapters and names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vsfmanet.media.source import DIGEST, Chapter, Source, Stream

SOUND_TOLERANCE = Fraction(1, 10)
"""Most seconds that a track may move against the picture: FFmpeg releases count a codec's priming differently."""

CHAPTER_TOLERANCE = Fraction(3, 1000)
"""Most seconds that a chapter may move: it and the first frame are each rounded to a millisecond."""

REWRITTEN = {"wavpack"}
"""Codecs whose packets get new headers in a new container, so that only their number can be compared."""

DIVIDED_ANEW = ("pcm_", "eac3", "pgssub")
"""Beginnings of the names of codecs whose packets containers join or divide; only whole tracks can be compared."""

LANGUAGE = re.compile("[a-z]{3}")
"""Language codes that every container can hold (ISO 639-2); MOV has a list of its own."""


class Mismatch(Exception):
    """A difference: what is needed and what was found."""


def check_streams(made: Source, copied: Sequence[Stream], *, extent: str) -> None:
    """Compare the streams beside the video with those that were copied.

    Args:
        made: The file.
        copied: Streams of its source.
        extent: "whole" if every packet was copied; "part" if those of some time were; "damaged" if it is unknown which
            packets of the source can be read.

    Raises:
        Mismatch: A stream is missing, or its content differs.
    """
    for before, after in list(_pairs(copied, made.others)):
        if extent == "whole" and not _is_whole(before, after):
            raise Mismatch(f"{before} must hold what it held, {_difference(before, after)}")
        if extent == "part" and not _is_part(before, after):
            raise Mismatch(f"{before} must hold a part of what it held, without gaps, got other packets")
    needed = Counter(stream.joined for stream in _attached(copied))
    present = Counter(stream.joined for stream in _attached(made.others))
    for stream in _attached(copied):
        if present[stream.joined] < needed[stream.joined]:
            raise Mismatch(f"{stream} must hold what it held, but nothing that is attached does")


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """Times of one frame in the source and in the file."""

    before: Fraction
    """When the source shows it by its own timestamp, seconds."""
    after: Fraction
    """When the file shows it, seconds."""


def check_sound(begin: Anchor, end: Anchor, made: Source, source: Source, copied: Sequence[Stream]) -> None:
    """Compare where each sound track starts and ends against the picture, and where each subtitle track starts.

    Args:
        begin: A frame near the beginning, to compare starts with.
        end: A frame near the end, to compare ends with.
        made: The file.
        source: What it was made from.
        copied: Streams of it, whole.

    Raises:
        Mismatch: A track has moved.
    """
    for before, after in _pairs(copied, made.others):
        if before.kind == "subtitle" and before.needed != before.content:
            continue  # some end before picture and sound, and may be gone
        first = before.first
        if first is not None and before.kind == "subtitle":
            first = max(first, source.start)  # what is shown already when the film begins is cut to its beginning
        places = [("start", begin, first, after.first), ("end", end, before.end, after.end)]
        for place, anchor, old, new in places if before.kind == "audio" else places[:1]:
            if old is None or new is None:
                continue
            moved = (new - anchor.after) - (old - anchor.before)
            if abs(moved) > SOUND_TOLERANCE:
                raise Mismatch(f"the {place} of {before} must keep its place, but moved by {float(moved):+.3f} s")


def check_chapters(made: Source, chapters: Sequence[Chapter], times: Sequence[Fraction]) -> None:
    """Compare the chapters during the frames; what lies before and after may be cut off.

    MP4 and MOV store neither ends of chapters nor chapters without a name.

    Args:
        made: The file.
        chapters: Of its source.
        times: When each frame of the file is shown in the source, seconds.

    Raises:
        Mismatch: A chapter is missing, misplaced or has another name.
    """
    length = times[-1] - times[0]
    needed = _during(chapters, times[0], length)
    present = _during(made.chapters, made.video.first or Fraction(0), length)
    exact = made.path.suffix.lower() == ".mkv"
    for sought, others, verdict in ((needed, present, "is needed, got none like it"), (present, needed, "is too much")):
        for chapter in sought:
            if _is_long(chapter) and not any(_are_alike(chapter, other, exact=exact) for other in others):
                raise Mismatch(f"chapter {chapter.title!r} {_span(chapter)} from the first frame {verdict}")


def check_names(made: Source, source: Source, copied: Sequence[Stream]) -> None:
    """Compare titles, languages and names of attachments, as far as the container can hold them.

    Args:
        made: The file.
        source: What it was made from.
        copied: Streams of the source that it has too.

    Raises:
        Mismatch: A name or a language is missing, or differs.
    """
    if source.title and made.title != source.title:
        raise Mismatch(f"the title {source.title!r} is needed, got {made.title!r}")
    suffix = made.path.suffix.lower()
    for before, after in [(source.video, made.video), *_pairs(copied, made.others)]:
        title, language = before.tags.get("title", ""), before.tags.get("language", "")
        if title and after.tags.get("title") != title:
            raise Mismatch(f"the title {title!r} of {before} is needed, got {after.tags.get('title', '')!r}")
        got = after.tags.get("language", "und")
        if LANGUAGE.fullmatch(language) and got != language and (suffix, got) != (".mov", "und"):
            raise Mismatch(f"the language {language} of {before} is needed, got {got}")
    if suffix == ".mkv":
        needed, present = _files(copied), _files(made.others)
        if lost := needed - present:
            raise Mismatch(f"attachments called {', '.join(sorted(lost))} are needed, got {', '.join(sorted(present))}")


def _pairs(copied: Sequence[Stream], present: Sequence[Stream]) -> Iterator[tuple[Stream, Stream]]:
    """Pair each track of sound and subtitles with its copy. Tracks without packets may be missing.

    Raises:
        Mismatch: The numbers of tracks or attachments differ.
    """
    if (needed := _kinds(copied)) != (got := _kinds(present)):
        needed, got = _kinds(filter(_holds_something, copied)), _kinds(filter(_holds_something, present))
        if needed != got:
            raise Mismatch(f"the streams {needed} are needed beside the video, got {got}")
        copied, present = list(filter(_holds_something, copied)), list(filter(_holds_something, present))
    for kind in ("audio", "subtitle"):
        yield from zip(
            (stream for stream in copied if stream.kind == kind),
            (stream for stream in present if stream.kind == kind),
            strict=True,
        )


def _kinds(streams: Iterable[Stream]) -> str:
    """The numbers of sound, subtitle and attachment streams as text. Matroska stores covers as attachments."""
    kinds = ["attachment" if stream.kind == "cover" else stream.kind for stream in streams]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("audio", "subtitle", "attachment"))


def _holds_something(stream: Stream) -> bool:
    return bool(stream.content)


def _attached(streams: Sequence[Stream]) -> list[Stream]:
    return [stream for stream in streams if stream.kind in ("attachment", "cover")]


def _files(streams: Sequence[Stream]) -> set[str]:
    """File names of the attachments."""
    return {stream.tags["filename"] for stream in _attached(streams) if "filename" in stream.tags}


def _is_whole(before: Stream, after: Stream) -> bool:
    """Whether a copy has the content of a track, apart from packets that may be missing."""
    if before.codec in REWRITTEN:
        return len(before.needed) <= len(after.content) <= len(before.content)
    if before.joined == after.joined:
        return True
    skipped = _skipped(before)
    return _holds(after.content, before.needed[skipped:]) and _holds(before.content, after.content[skipped:])


def _is_part(before: Stream, after: Stream) -> bool:
    """Whether the packets of a copy follow each other in the track, where packets can be compared."""
    if before.codec in REWRITTEN or before.codec.startswith(DIVIDED_ANEW):
        return True
    return _holds(before.content, after.content[_skipped(before) :])


def _skipped(before: Stream) -> int:
    """Bytes of the hashes that may differ: the first packet of broadcast AAC loses its channel layout to the header of
    the new container (program_config_element, ISO/IEC 14496-3, 4.4.1.1).
    """
    return DIGEST if before.codec == "aac" else 0


def _holds(hashes: bytes, wanted: bytes) -> bool:
    """Whether a track contains a run of packets."""
    place = hashes.find(wanted)
    while place % DIGEST and place != -1:  # found across the bounds of hashes
        place = hashes.find(wanted, place + 1)
    return place != -1


def _difference(before: Stream, after: Stream) -> str:
    """Describe how the packets of a copy differ from those of the track."""
    hashes = before.needed if before.cut else before.content
    needed, got = len(hashes) // DIGEST, len(after.content) // DIGEST
    if needed != got:
        return f"{needed} packets, got {got}"
    places = range(0, len(hashes), DIGEST)
    other = [place for place in places if hashes[place : place + DIGEST] != after.content[place : place + DIGEST]]
    return f"{needed} packets, got as many, but from number {other[0] // DIGEST} on {len(other)} of them are others"


def _during(chapters: Sequence[Chapter], first: Fraction, length: Fraction) -> list[Chapter]:
    """Chapters cut to the time of the frames, counted from the first."""
    return [
        Chapter(
            start=min(max(chapter.start - first, Fraction(0)), length),
            end=min(max(chapter.end - first, Fraction(0)), length),
            title=chapter.title,
        )
        for chapter in chapters
    ]


def _is_long(chapter: Chapter) -> bool:
    """Whether a chapter that was cut to the time of the frames is longer than rounding errors."""
    return chapter.end - chapter.start > 2 * CHAPTER_TOLERANCE


def _are_alike(one: Chapter, other: Chapter, *, exact: bool) -> bool:
    """Whether two chapters agree; unless `exact` (Matroska), apart from ends and missing names."""
    return (
        abs(one.start - other.start) <= CHAPTER_TOLERANCE
        and (not exact or abs(one.end - other.end) <= CHAPTER_TOLERANCE)
        and (one.title == other.title or (not exact and not (one.title and other.title)))
    )


def _span(chapter: Chapter) -> str:
    return f"at {float(chapter.start):.3f} to {float(chapter.end):.3f} s"
