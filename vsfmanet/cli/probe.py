"""`vsfmanet probe`."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.terminal import put, run_until_stopped

NOTES = """\
A file of exposures is a table with the columns frame (from 0) and exposure, separated by commas, or the same as JSON:

    frame,exposure          {"exposure": [0.5, 0.48, null]}
    0,0.5
    1,0.48
    2,

Every frame of the video is there once; other columns and keys are ignored. An exposure is the time that the shutter was
open over the time from frame to frame, in (0, 1]. Where it is left empty, restore takes the camera's telemetry, else
the network's own estimate. --export fills in what is known; the rest is for you.
"""

app = App(name="probe", help_epilogue=NOTES)


@app.default
def probe(
    source: Annotated[Path, Parameter(name="IN")],
    /,
    *,
    estimate: bool = False,
    plot: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    export: Annotated[Path | None, Parameter(metavar="FILE")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show what a video file is, and what is known about its exposure.

    Args:
        source: Video file.
        estimate: Estimate the exposure from blur and motion where the camera did not record it (slow); a plot shows
            both.
        plot: Draw exposure over time: .svg.
        export: Write the exposure of each frame: .csv or .json.
        as_json: Print the findings as JSON, for programs.
    """
    from vsfmanet.jobs.progress import Report
    from vsfmanet.media import probe as probing

    probing.check_outputs(export=export, plot=plot)
    with Report().listening() as report:
        findings = run_until_stopped(lambda: probing.probe(source, estimate=report if estimate else None))
    if export is not None:
        probing.export(findings, export)
    if plot is not None:
        probing.plot(findings, plot)
    lines = [json.dumps(probing.as_table(findings), indent=2)] if as_json else probing.as_lines(findings)
    put("".join(f"{line}\n" for line in lines))
    return 0
