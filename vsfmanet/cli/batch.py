"""`vsfmanet batch`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from vsfmanet.cli.options import FILES, NO_OPTION, OUTPUT, RUN, SelectionOptions, WholeFileOptions, job_of, plain
from vsfmanet.cli.terminal import run_until_stopped
from vsfmanet.jobs.job import STALL_LIMIT, BatchOptions
from vsfmanet.jobs.paths import Selection

NOTES = """\
Files in folders below IN_DIR are restored too, one after the other.

The same command again continues where the last one ended, however it ended: what is done stays done, everything else is
done again. One bad file never stops the others; a full disk or a lost device stops the batch. A job with other options,
another version or a changed source is another job: its result takes the name, and the old one is kept as OUT.old1.
Names that cannot work, and files that are in the way, are all listed before anything starts (exit code 2).

The journal and a report (vsfmanet-report.html, with pictures before and after) are in OUT_DIR.

Two machines with a shared folder, without a scheduler:

    vsfmanet batch IN_DIR OUT_DIR --journal LOCAL_FILE --shard 1/2
    vsfmanet batch IN_DIR OUT_DIR --journal LOCAL_FILE --shard 2/2

A file is always in the same share, which its path in IN_DIR decides. Each share has a journal and a report of its own
(vsfmanet-report-1-of-2.html). When both have ended, the command without --shard finds what they have done, does what
they have not, and writes the report on all.

Exit codes: the first that applies of 128+n stopped by signal n, 1 bug, 2 usage, 4 device, 5 output or disk, 8 weights,
7 another batch is running, 6 a job failed, 3 sources refused or damaged, 0 all done and verified
"""

app = App(name="batch", help_epilogue=NOTES)


@dataclass(frozen=True, kw_only=True)
class _Options(BatchOptions):
    """`BatchOptions` as options; both folders are arguments of the command."""

    in_folder: Annotated[Path, NO_OPTION] = Path()
    out_folder: Annotated[Path, NO_OPTION] = Path()
    template: Annotated[WholeFileOptions, Parameter(name="*", group=OUTPUT)] = field(default_factory=WholeFileOptions)
    selection: Annotated[SelectionOptions, Parameter(name="*", group=FILES)] = field(default_factory=SelectionOptions)
    journal: Annotated[Path | None, Parameter(metavar="FILE")] = None
    stall_limit: Annotated[float, Parameter(metavar="SECONDS")] = STALL_LIMIT


_DEFAULT = _Options()


@app.default
def batch(
    in_folder: Annotated[Path, Parameter(name="IN_DIR")],
    out_folder: Annotated[Path, Parameter(name="OUT_DIR")],
    /,
    *,
    options: Annotated[_Options, Parameter(name="*", group=RUN)] = _DEFAULT,
    dry_run: Annotated[bool, Parameter(group=RUN)] = False,
    progress: Annotated[Literal["auto", "json"], Parameter(group=RUN)] = "auto",
) -> int:
    """Restore all video files of a folder.

    Args:
        in_folder: Folder of videos; it is only read.
        out_folder: Folder for the results, with the same folders in it.
        dry_run: Print what would be done, with frames, sizes and time.
        progress: Progress on stderr: for people, or one JSON object a line, each second, for programs.
    """
    from vsfmanet.jobs.batch import Batch
    from vsfmanet.jobs.batch import dry_run as print_plan
    from vsfmanet.jobs.progress import Report

    asked = plain(
        BatchOptions,
        options,
        in_folder=in_folder,
        out_folder=out_folder,
        template=job_of(options.template, in_folder, out_folder / f"any{options.selection.suffix}"),
        selection=plain(Selection, options.selection),
    )
    report = Report(as_json=progress == "json")
    with report.listening():
        if dry_run:
            run_until_stopped(lambda: print_plan(asked, report), report.close)
            return 0
        started = Batch(asked, report)
        return run_until_stopped(started.run, started.stop)
