"""Exposures in a file beside a video, one for each frame (a sidecar file).

As CSV, the first line names the columns. `frame` (from 0) and `exposure` are needed, others are ignored:

    frame,exposure
    0,0.5
    1,0.48
    2,

As JSON, `exposure` lists all frames in order, other keys are ignored:

    {"exposure": [0.5, 0.48, null]}

An exposure is the open-shutter time over the frame interval, in (0, 1]. Every frame of the clip is there once. An
empty cell, or null, leaves the frame to the next source: its properties, the camera's telemetry, the network.
`vsfmanet probe --export` writes both.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from vsfmanet.errors import ExposureError


def read_sidecar(path: Path, *, num_frames: int) -> tuple[float | None, ...]:
    """Read the exposures of all frames, in (0, 1]; None where the file has an empty cell or null.

    Args:
        path: A .csv or .json file.
        num_frames: Length of the clip.

    Raises:
        ExposureError: The file is missing, of another form, or not for a clip of this length.
    """
    read = _csv_entries if path.suffix.lower() == ".csv" else _json_entries
    try:
        entries = list(read(path, path.read_text(encoding="utf-8-sig")))  # spreadsheets put a byte order mark first
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise ExposureError(
            f"the exposure file {path} must be readable CSV or JSON text, got {error}; check path and file"
        ) from error
    exposures: dict[int, float | None] = {}
    for place, frame, exposure in entries:
        if not 0 <= frame < num_frames or frame in exposures:
            got = f"frame {frame} a second time" if frame in exposures else f"frame {frame}"
            raise ExposureError(
                f"{path}, {place}: each of the frames 0 to {num_frames - 1} of the clip is needed once, got "
                f"{got}; correct the file, or use one that was made for this clip"
            )
        exposures[frame] = exposure
    if len(exposures) < num_frames:
        missing = next(frame for frame in range(num_frames) if frame not in exposures)
        raise ExposureError(
            f"{path}: {num_frames} frames are needed, got {len(exposures)}, without frame {missing}; add the "
            "missing ones, with an empty cell or null where the exposure is not known"
        )
    return tuple(exposures[frame] for frame in range(num_frames))


def sidecar_text(
    suffix: str, *, exposures: Sequence[float | None], sources: Sequence[str | None], times: Sequence[float]
) -> str:
    """Build the text of a sidecar file. It also lists times and sources, which `read_sidecar` ignores.

    Args:
        suffix: ".csv" or ".json".
        exposures: Exposure of each frame, in (0, 1]; None where it is unknown.
        sources: Where each exposure comes from, such as "telemetry"; None where it is unknown.
        times: Time of each frame, in seconds.
    """
    seconds = [round(time, 6) for time in times]
    if suffix == ".json":
        table = {"exposure": list(exposures), "source": list(sources), "time": seconds}
        return f"{json.dumps(table)}\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["frame", "time", "exposure", "source"])
    writer.writerows(zip(range(len(exposures)), seconds, exposures, sources, strict=True))  # None is an empty cell
    return text.getvalue()


def _csv_entries(path: Path, text: str) -> Iterator[tuple[str, int, float | None]]:
    """Yield the place (for messages), frame and exposure of every row."""
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = rows.fieldnames or []
    for needed in ("frame", "exposure"):
        if columns.count(needed) != 1:
            raise ExposureError(
                f"{path}: the first line must name the columns frame and exposure once, got "
                f"{','.join(columns) or 'nothing'}; separate them by a comma, and numbers have a point"
            )
    for row in rows:
        place = f"row {rows.line_num}"
        if None in row or None in row.values():
            raise ExposureError(
                f"{path}, {place}: {len(columns)} cells are needed, as in the first line; correct the row"
            )
        try:
            frame = int(row["frame"])
        except ValueError:
            raise ExposureError(
                f"{path}, {place}: the frame must be a whole number, got {row['frame']!r}; correct the row"
            ) from None
        yield place, frame, _exposure(path, f"{place} (frame {frame})", _cell(row["exposure"].strip()))


def _json_entries(path: Path, text: str) -> Iterator[tuple[str, int, float | None]]:
    """Yield the place (for messages), frame and exposure of every entry."""
    table = json.loads(text)
    exposures = table.get("exposure") if isinstance(table, dict) else None
    if not isinstance(exposures, list):
        raise ExposureError(
            f'{path}: an object with a list "exposure" is needed, got another form; write '
            '{"exposure": [0.5, 0.48, null]} with one entry for each frame'
        )
    for frame, value in enumerate(exposures):
        yield f"frame {frame}", frame, _exposure(path, f"frame {frame}", value)


def _cell(text: str) -> float | str | None:
    """Convert a cell to a number, or None if it is empty; other text is returned for `_exposure` to refuse."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _exposure(path: Path, place: str, value: object) -> float | None:
    """Check an exposure from a file; None stays None."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise ExposureError(
        f"{path}, {place}: the exposure must be a number in (0, 1] or left out, got {value!r}; it is the "
        "open-shutter time over the frame interval"
    )
