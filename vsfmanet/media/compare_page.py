"""A comparison as an HTML page that needs no other files, and as one PNG."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from html import escape
from pathlib import Path

import numpy as np
import vapoursynth as vs

from vsfmanet import __version__
from vsfmanet.media.compare import BEFORE, Choice, Comparison, Forecast, Shot
from vsfmanet.media.meter import clock
from vsfmanet.media.pictures import Picture, jpeg, liveliest
from vsfmanet.media.slides import Slide, figure, page, settings_list, table
from vsfmanet.media.timeline import time_code
from vsfmanet.settings import RestoreSettings

CELL = (480, 270)
"""Largest width and height of a picture in the sheet: the part with most detail, pixel for pixel."""

GAP, HEAD = 8, 24
"""Pixels between the pictures of the sheet, and the height of the line above each."""

STYLE = """
td:nth-child(-n + 2) { overflow-wrap: normal }
"""
"""Names and sizes are broken at blanks only."""

GROUND, LETTERS = 24, (16, 20)
"""Grey of the sheet, and the height of the letters' box."""


def html(found: Comparison, *, beside: Path, now: datetime) -> str:
    """The page.

    Args:
        found: The comparison.
        beside: Folder of the page; the film's path is relative to it.
        now: Date and time of the comparison.
    """
    film = found.film
    name = film.path.name
    count = "1 moment" if len(found.shots) == 1 else f"{len(found.shots)} moments"
    meta = (
        f"{count} of <code>{escape(_relative(film.path, beside))}</code> ({film.frames} frames, "
        f"{clock(float(film.length))}), restored on {now:%Y-%m-%d %H:%M %Z} by vsfmanet {__version__}."
    )
    rows = [
        _row(choice, forecast, name, found.encoder_options)
        for choice, forecast in zip(found.choices, found.forecasts, strict=True)
    ]
    heads = ("choice", "picture", "each frame", "whole film", "video", "command")
    caption = (
        "Time and size of the whole film are estimates: by a few frames that were restored on this machine, and by "
        "their size with the encoder options " + shlex.join(found.encoder_args)
    )
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{meta}</p>',
        table(heads, rows, numbers=(2, 3, 4), caption=caption),
        settings_list([*_settings(found.choices[0].settings, "strength"), *found.encoder_options]),
        *(_section(found, shot) for shot in found.shots),
    ]
    return page(title=f"{name}, compared", body="\n".join(parts), generator=f"vsfmanet {__version__}", style=STYLE)


def _row(choice: Choice, forecast: Forecast, name: str, encoder_options: Sequence[tuple[str, str]]) -> list[str]:
    """A row of the table of choices."""
    size = "unknown" if forecast.video_bytes is None else _size(forecast.video_bytes)
    given = [*_settings(choice.settings), *encoder_options]
    options = [f"--{option.replace('_', '-')}={value}" for option, value in given]
    restore = shlex.join(["vsfmanet", "restore", name, "restored.mkv", f"--model={choice.settings.model}", *options])
    return [
        escape(choice.name),
        f"{forecast.size[0]}x{forecast.size[1]}",
        f"{forecast.frame_seconds:.3g} s",
        f"about {clock(forecast.seconds)}",
        size if forecast.video_bytes is None else f"about {size}",
        f"<code>{escape(restore)}</code>",
    ]


def _section(found: Comparison, shot: Shot) -> str:
    """A moment with its pictures."""
    moment = time_code(round(shot.time, 3))
    height, width = shot.pictures[0].shape[:2]
    names = [BEFORE, *(choice.name for choice in found.choices)]
    texts = [f"{moment}, the source enlarged by bicubic interpolation"]
    texts += [f"{moment}, restored by {choice.name}" for choice in found.choices]
    slides = [
        Slide(name=name, alt=text, jpeg=jpeg(picture), size=(round(width * found.film.aspect), height))
        for name, text, picture in zip(names, texts, shot.pictures, strict=True)
    ]
    part = "The part of the frame with most detail, pixel for pixel. " if shot.part else ""
    caption = f"{part}Before: the source, enlarged by bicubic interpolation. Move the line to compare."
    return f"<section><h2>{moment}</h2>\n{figure(slides, caption)}</section>"


def _settings(settings: RestoreSettings, *shown: str) -> list[tuple[str, str]]:
    """Names and values of the settings that are not the defaults, without the model and others that are shown."""
    shown = ("model", *shown)
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return [(name, str(value)) for name, (value, default) in values.items() if value != default and name not in shown]


def _relative(path: Path, folder: Path) -> str:
    """A path relative to a folder; as it is, if they have no common root (other drives of Windows)."""
    try:
        return os.path.relpath(path, folder)
    except ValueError:
        return str(path)


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def sheet(found: Comparison) -> Picture:
    """All moments, one below the other, each before and by every choice: (H, W, 3) RGB."""
    rows = []
    for shot in found.shots:
        place = liveliest(shot.pictures[-1], CELL)
        names = [BEFORE, *(choice.name for choice in found.choices)]
        heads = [f"{time_code(round(shot.time, 3))}  {names[0]}", *names[1:]]
        cells = [_cell(head, picture[place]) for head, picture in zip(heads, shot.pictures, strict=True)]
        rows.append(np.concatenate(cells, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=GROUND) for row in rows]
    whole = np.concatenate(padded, axis=0)
    return np.pad(whole, ((0, GAP), (GAP, 0), (0, 0)), constant_values=GROUND)


def _cell(head: str, picture: Picture) -> Picture:
    """A picture with a line of text above it."""
    framed = np.pad(picture, ((HEAD, GAP), (0, GAP), (0, 0)), constant_values=GROUND)
    height, width = framed.shape[:2]
    framed[:HEAD, :] = _text(head, width)
    return framed[:height, :width]


def _text(text: str, width: int) -> Picture:
    """A line of text, drawn by VapourSynth: (`HEAD`, `width`, 3)."""
    blank = vs.core.std.BlankClip(
        format=vs.RGB24, width=max(width, 64), height=HEAD + 2 * LETTERS[0], color=[GROUND] * 3, length=1, keep=True
    )
    frame = blank.text.Text(text, alignment=7).get_frame(0)
    drawn = np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)
    return drawn[8 : 8 + HEAD, :width]
