"""`vsfmanet models`."""

import sys
from dataclasses import fields
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.terminal import print_json

app = App(name="models")

EXPOSURES = {"5_1": "5:1", "5_5": "5:5", "re": "RE"}
"""Conditions of the scores, and how the table heads them."""


@app.default
def models(*, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the models.

    Args:
        as_json: Print the list as JSON, with all scores.
    """
    from vsfmanet.manifest import list_models

    entries = list_models()
    if as_json:
        listed = [
            {field.name: getattr(entry, field.name) for field in fields(entry)}
            | {"path": str(entry.path), "scores": dict(entry.scores)}
            for entry in entries
        ]
        print_json(listed)
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "scale", *(f"dB {shown}" for shown in EXPOSURES.values()), "MB", "licence", "description"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        gains = (entry.gain(condition) for condition in EXPOSURES)
        table.add_row(
            entry.name,
            str(entry.scale),
            *("" if gain is None else f"{gain:+.2f}" for gain in gains),
            f"{entry.size / 1e6:.1f}",
            entry.licence,
            entry.description,
        )
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(
        "dB: mean PSNR above bicubic, at scale 1 above the input, where the shutter is open for a fifth of the frame "
        "interval (5:1), all of it (5:5) or changing (RE). All scores: --json. How they were measured: models/NAME.md.",
        highlight=False,
    )
    return 0
