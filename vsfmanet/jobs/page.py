"""The report of a batch: one HTML page that needs no other files, with a picture of each film before and after."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from html import escape
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vsfmanet.atomic import write_whole
from vsfmanet.jobs.journal import Row
from vsfmanet.media.demux import main_track, open_container
from vsfmanet.media.meter import clock

GROUPS = {
    "done": ("done",),
    "refused": ("refused",),
    "damaged": ("damaged",),
    "failed": ("failed", "quarantined"),
    "left": ("new", "leased"),
}
"""Groups of jobs, and the states that each contains."""

WIDTH, HEIGHT = 320, 180
"""Pixels of each half, at most."""

GAP = 4
"""White pixels between the halves."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>vsfmanet: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd }}
td {{ overflow-wrap: anywhere; white-space: pre-wrap }}
td.number {{ text-align: right; white-space: nowrap }}
h1 {{ overflow-wrap: anywhere }}
img {{ display: block; max-width: 100%; height: auto }}
caption {{ caption-side: bottom; text-align: left; color: #666; padding-top: .5rem }}
.warning {{ color: #8a5a00 }}
.done {{ color: #176b33 }} .left {{ color: #666 }}
.refused, .damaged {{ color: #8a5a00 }} .failed {{ color: #a31515 }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{counts}</p>
<p>{sums}</p>
<table>
<caption>Pictures: where the middle frame has most detail, before (enlarged) and after.</caption>
<thead><tr><th>source</th><th>state</th><th>frames</th><th>MB</th><th>time</th><th>attempts</th>
<th>cause, or before and after</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""


def tally(rows: Sequence[Row]) -> str:
    """Count the jobs of each group, in words."""
    counts = Counter(_group(row) for row in rows)
    return ", ".join(f"{group} {counts[group]}" for group in GROUPS)


def write_page(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Write the page, with failed jobs first.

    Args:
        path: File to create or replace.
        rows: Every job of the batch.
        title: For the page.
    """
    order = ["failed", "damaged", "refused", "left", "done"]
    lines = [_line(row) for row in sorted(rows, key=lambda row: order.index(_group(row)))]
    done = [row for row in rows if row.state == "done"]
    sums = f"{sum(row.frames for row in done)} frames, {sum(row.output_size for row in done) / 1e6:.1f} MB, made in "
    sums += clock(sum(row.seconds for row in done))
    write_whole(path, PAGE.format(title=escape(title), counts=tally(rows), sums=sums, rows="\n".join(lines)))


def _group(row: Row) -> str:
    """The group that a row is counted in."""
    return next(group for group, states in GROUPS.items() if row.state in states)


def _line(row: Row) -> str:
    """A row of the table."""
    group = _group(row)
    numbers = (
        f"{row.frames}" if row.frames else "",
        f"{row.output_size / 1e6:.1f}" if row.output_size else "",
        clock(row.seconds) if row.seconds else "",
        f"{row.attempts}" if row.attempts else "",
    )
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    state = group if row.state in ("new", "leased") else row.state
    last = escape(row.cause)
    if group == "done" and row.picture:
        data = b64encode(row.picture).decode()
        last = f'<img src="data:image/jpeg;base64,{data}" alt="before and after" loading="lazy">'
    last += "".join(f'<div class="warning">warning: {escape(text)}</div>' for text in row.warnings)
    return f'<tr><td>{escape(str(row.job.source))}</td><td class="{group}">{state}</td>{cells}<td>{last}</td></tr>'


def before_and_after(source: Path, made: Path) -> bytes:
    """A JPEG of the source's picture, enlarged, beside that of the output; empty if one of them cannot be shown."""
    try:
        middle = min(_length(source), _length(made)) / 2
        after = _frame_at(made, middle)
        before = _frame_at(source, middle)
        size = after.shape[1], after.shape[0]
        place = _liveliest(after)
        halves = [np.ascontiguousarray(picture[place]) for picture in (_resized(before, size), after)]
        gap = np.full((halves[0].shape[0], GAP, 3), 255, np.uint8)
        return _jpeg(np.concatenate([halves[0], gap, halves[1]], axis=1))
    except (av.FFmpegError, OSError, ValueError, StopIteration):  # a report may do without
        return b""


def _length(path: Path) -> Fraction:
    """Of a film, seconds, as its header has it; some containers count the sound too."""
    with open_container(path) as container:
        return Fraction(container.duration or 0, 1_000_000)


def _frame_at(path: Path, time: Fraction) -> NDArray[np.uint8]:
    """The frame that is shown some seconds after the first one, or the last one: (H, W, 3) RGB, upright."""
    with open_container(path) as container:
        track = main_track(container)
        if track is None:
            raise ValueError("no video track")
        place = (track.start_time or 0) + round(time / Fraction(track.time_base.numerator, track.time_base.denominator))
        container.seek(place, stream=track)
        frame = next(container.decode(track))
        for later in container.decode(track):
            if frame.pts is None or later.pts is None or later.pts > place:
                break
            frame = later
        return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).astype(np.uint8)


def _resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture with a width and height of `size`, by bicubic interpolation."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.reformat(*size, interpolation="BICUBIC").to_ndarray().astype(np.uint8)


def _liveliest(picture: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns of the part where neighbouring pixels differ most, out of parts that overlap by a half."""
    height, width = min(picture.shape[0], HEIGHT), min(picture.shape[1], WIDTH)
    green = picture[..., 1].astype(np.int16)
    detail = np.abs(np.diff(green, axis=0))[:, :-1] + np.abs(np.diff(green, axis=1))[:-1]
    places = [
        (slice(top, top + height), slice(left, left + width))
        for top in range(0, picture.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, picture.shape[1] - width + 1, max(1, width // 2))
    ]
    return max(places, key=lambda place: int(detail[place].sum()))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as a file; JPEG wants even sizes."""
    even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = even.shape[1], even.shape[0], "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "3", "qmax": "3"}
    frame = VideoFrame.from_ndarray(even, format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
