"""What became of a batch, as one HTML page that needs nothing else."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vsfmanet.atomic import write_whole
from vsfmanet.jobs.journal import Row
from vsfmanet.jobs.progress import clock

GROUPS = {
    "done": ("done",),
    "refused": ("refused",),
    "damaged": ("damaged",),
    "failed": ("failed", "quarantined"),
    "left": ("new", "leased"),
}
"""What is counted, and the states that count as it."""

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
    """How many jobs are in which group, in words."""
    counts = Counter(_group(row) for row in rows)
    return ", ".join(f"{group} {counts[group]}" for group in GROUPS)


def write_report(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Write the page; what needs a look comes first.

    Args:
        path: File to make or replace.
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
    """What a row counts as."""
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
