"""The report of a batch: one HTML page that needs no other files, with each film before and after."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import av

from vsfmanet import __version__
from vsfmanet.atomic import write_whole
from vsfmanet.jobs.job import BatchOptions
from vsfmanet.jobs.journal import Row
from vsfmanet.media.meter import clock
from vsfmanet.media.pictures import frame_at, jpeg, length, liveliest, resized, split_jpegs
from vsfmanet.media.slides import Slide, figure, page, settings_list, table

GROUPS = {
    "done": ("done",),
    "refused": ("refused",),
    "damaged": ("damaged",),
    "failed": ("failed", "quarantined"),
    "left": ("new", "leased"),
}
"""Groups of jobs, and the states that each contains."""

PART = (320, 180)
"""Largest width and height of the part of a frame that is shown, pixels of the output."""

STYLE = """
.warning, .refused, .damaged { color: var(--warn) } .done { color: var(--good) } .failed { color: var(--bad) }
.left-over { color: var(--soft) }
td:last-child { white-space: pre-wrap; width: 45% } td:first-child { width: 22% }
@media (max-width: 56rem) { td:first-child, td:last-child { width: auto } }
"""

HEADS = ("source", "state", "frames", "MB", "time", "attempts", "cause, or before and after")


def tally(rows: Sequence[Row]) -> str:
    """Count the jobs of each group, in words."""
    counts = Counter(_group(row) for row in rows)
    return ", ".join(f"{group} {counts[group]}" for group in GROUPS)


def write_page(path: Path, rows: Sequence[Row], options: BatchOptions, *, now: datetime) -> None:
    """Write the page, with failed jobs first.

    Args:
        path: File to create or replace.
        rows: Every job of the batch.
        options: Of the batch.
        now: Date and time of the page.
    """
    order = ["failed", "damaged", "refused", "left", "done"]
    lines = [_line(row, path, options) for row in sorted(rows, key=lambda row: order.index(_group(row)))]
    done = [row for row in rows if row.state == "done"]
    sums = f"{sum(row.frames for row in done)} frames, {sum(row.output_size for row in done) / 1e6:.1f} MB, made in "
    sums += clock(sum(row.seconds for row in done))
    title = f"{options.in_folder.name or options.in_folder} restored"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(str(options.in_folder))} restored to {escape(str(options.out_folder))} by vsfmanet '
        f"{__version__}; report of {now:%Y-%m-%d %H:%M %Z}.</p>",
        f"<p>{tally(rows)}<br>{sums}</p>",
        settings_list(list(_changed(options.template))),
        table(
            HEADS,
            lines,
            numbers=(2, 3, 4, 5),
            caption="Pictures: where the middle frame has most detail, before (enlarged) and after. Move the line to "
            "compare.",
        ),
    ]
    write_whole(path, page(title=title, body="\n".join(body), generator=f"vsfmanet {__version__}", style=STYLE))


def _changed(value: object) -> Iterator[tuple[str, str]]:
    """Names and values of the options that are not the defaults."""
    assert is_dataclass(value)
    for field in fields(value):
        chosen = getattr(value, field.name)
        if is_dataclass(chosen):
            yield from _changed(chosen)
        elif field.name not in ("source", "target", "reserve", "ffmpeg") and chosen != field.default:
            yield f"--{field.name.replace('_', '-')}", str(chosen)


def _group(row: Row) -> str:
    """The group that a row is counted in."""
    return next(group for group, states in GROUPS.items() if row.state in states)


def _line(row: Row, path: Path, options: BatchOptions) -> list[str]:
    """A row of the table."""
    group = _group(row)
    state = group if row.state in ("new", "leased") else row.state
    name = _relative(row.job.source, options.in_folder)
    source = escape(name)
    if group == "done":
        source = (
            f'<a href="{escape(quote(_relative(row.job.target, path.parent), errors="surrogateescape"))}">{source}</a>'
        )
    last = _pictures(row.picture, name) if group == "done" and row.picture else escape(_brief(row.cause, row))
    last += "".join(f'<div class="warning">warning: {escape(_brief(text, row))}</div>' for text in row.warnings)
    return [
        source,
        f'<span class="{"left-over" if group == "left" else group}">{state}</span>',
        f"{row.frames}" if row.frames else "",
        f"{row.output_size / 1e6:.1f}" if row.output_size else "",
        clock(row.seconds) if row.seconds else "",
        f"{row.attempts}" if row.attempts else "",
        last,
    ]


def _brief(text: str, row: Row) -> str:
    """A message without the path of the source, which stands beside it."""
    return text.removeprefix(f"{row.job.source}: ")


def _relative(path: Path, folder: Path) -> str:
    """A path relative to a folder, with slashes, so that the page can move with its folder."""
    try:
        return Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive of Windows
        return str(path)


def _pictures(data: bytes, name: str) -> str:
    """HTML of the pictures of a film, with a slider."""
    found = split_jpegs(data)
    names = ("before", "after") if len(found) == 2 else ("before and after",)  # one picture in old journals
    alts = (f"{name}, the source enlarged", f"{name}, restored") if len(found) == 2 else (f"{name} before and after",)
    slides = [
        Slide(name=each, alt=alt, jpeg=picture, size=_size(picture))
        for each, alt, picture in zip(names, alts, found, strict=False)
    ]
    return figure(slides)


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height of a JPEG, from its frame header (ITU-T T.81, B.2.2)."""
    place = 2
    while place + 9 < len(picture):
        kind = picture[place + 1]
        if 0xC0 <= kind <= 0xC2:
            return int.from_bytes(picture[place + 7 : place + 9]), int.from_bytes(picture[place + 5 : place + 7])
        place += 2 + int.from_bytes(picture[place + 2 : place + 4])
    return PART


def before_and_after(source: Path, made: Path) -> bytes:
    """Two JPEGs, one after the other: a part of the source's picture, enlarged, and of the output; empty if one of them
    cannot be shown.
    """
    try:
        middle = min(length(source), length(made)) / 2
        after = frame_at(made, middle)
        before = resized(frame_at(source, middle), (after.shape[1], after.shape[0]))
        place = liveliest(after, PART)
        return jpeg(before[place]) + jpeg(after[place])
    except (av.FFmpegError, OSError, ValueError, StopIteration):  # a report may do without
        return b""
