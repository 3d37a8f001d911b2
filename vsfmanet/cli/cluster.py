"""`vsfmanet cluster ray`, `slurm`, `kubernetes` and `run`."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.options import (
    CLUSTER,
    FILES,
    HIDDEN,
    NO_OPTION,
    OUTPUT,
    WHOLE,
    SelectionOptions,
    WholeFileOptions,
    job_of,
    plain,
)
from vsfmanet.cli.terminal import print_json, put, run_until_stopped, tell
from vsfmanet.errors import ConfigError
from vsfmanet.jobs.job import BatchOptions
from vsfmanet.jobs.paths import Selection

NOTES = """\
Both folders must be under the same path on all machines.

Each job is one command, `vsfmanet cluster run LIST NUMBER`, which does nothing if the output is there and intact. So
the same command again, or the same script submitted again, does what is left. When all has ended, `vsfmanet batch`
with the same folders and options checks that every output is there, does what is not, and writes the report.

Exit codes: as of `vsfmanet batch`; of one job those of `vsfmanet restore`, after three attempts
"""

app = App(name="cluster", help_epilogue=NOTES)


@dataclass(frozen=True, kw_only=True)
class _Files(SelectionOptions):
    """`Selection` as options, without shards: the engines distribute the jobs."""

    shard: Annotated[tuple[int, int], NO_OPTION] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of all engines."""

    files: Annotated[_Files, Parameter(name="*", group=FILES)] = field(default_factory=_Files)
    job: Annotated[WholeFileOptions, Parameter(name="*", group=OUTPUT)] = field(default_factory=WholeFileOptions)
    gpus: Annotated[int, WHOLE] = 1
    """GPUs for each job."""
    cpus: Annotated[int, WHOLE] = 4
    """Processors for each job."""

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.cpus < 1:
            raise ConfigError(f"--gpus from 0 and --cpus from 1 are needed, got {self.gpus} and {self.cpus}; mend them")

    def write_list(self, in_folder: Path, out_folder: Path) -> Path:
        """Write the list of jobs, and return its path."""
        from vsfmanet.cluster.joblist import write_list
        from vsfmanet.jobs.progress import Report

        template = job_of(self.job, in_folder, out_folder / f"any{self.files.suffix}")
        selection = plain(Selection, self.files)
        options = BatchOptions(in_folder=in_folder, out_folder=out_folder, template=template, selection=selection)
        with Report().listening() as report:
            return write_list(options, report)


type _InFolder = Annotated[Path, Parameter(name="IN_DIR", help="Folder of videos; it is only read.")]
type _OutFolder = Annotated[Path, Parameter(name="OUT_DIR", help="Folder for the results.")]
type _Common = Annotated[_Options, Parameter(name="*", group=CLUSTER)]
type _AtOnce = Annotated[int, WHOLE, Parameter(group=CLUSTER, help="Jobs at one time.")]


_DEFAULT = _Options()


@app.default
def _no_engine() -> int:
    """Restore all video files of a folder on several machines."""
    raise ConfigError("an engine is needed: ray, slurm, kubernetes or run; see vsfmanet cluster --help")


@app.command
def ray(
    in_folder: _InFolder,
    out_folder: _OutFolder,
    /,
    *,
    options: _Common = _DEFAULT,
    address: Annotated[str | None, Parameter(group=CLUSTER, env_var="RAY_ADDRESS", metavar="HOST:PORT")] = None,
) -> int:
    """Do the jobs as tasks of a Ray cluster, or on all devices of this machine.

    Args:
        address: Address of the Ray head, which must ask for a token; auto for one on this machine. By default this
            machine alone.
    """
    from vsfmanet.cluster.ray import RayRun
    from vsfmanet.jobs.progress import Report

    path = options.write_list(in_folder, out_folder)
    with Report().listening() as report:
        engine = RayRun(path, report, address=address, gpus=options.gpus, cpus=options.cpus)
        return run_until_stopped(engine.run, engine.conclude)


@app.command
def slurm(in_folder: _InFolder, out_folder: _OutFolder, /, *, options: _Common = _DEFAULT, at_once: _AtOnce = 8) -> int:
    """Write a script for sbatch to stdout."""
    from vsfmanet.cluster.slurm import slurm_script

    _check_at_once(at_once)
    path = options.write_list(in_folder, out_folder)
    put(slurm_script(path, at_once=at_once, gpus=options.gpus, cpus=options.cpus))
    return 0


@app.command
def kubernetes(
    in_folder: _InFolder,
    out_folder: _OutFolder,
    /,
    *,
    options: _Common = _DEFAULT,
    at_once: _AtOnce = 8,
    image: Annotated[str, Parameter(group=CLUSTER)],
    claim: Annotated[str, Parameter(group=CLUSTER)],
    mount: Annotated[Path, Parameter(group=CLUSTER, metavar="DIR")],
) -> int:
    """Write an Indexed Job for kubectl to stdout.

    Args:
        image: Container with vsfmanet.
        claim: Persistent volume claim with IN_DIR and OUT_DIR.
        mount: Its place, here and in the pods.
    """
    from vsfmanet.cluster.kubernetes import kubernetes_manifest

    _check_at_once(at_once)
    path = options.write_list(in_folder, out_folder)
    text = kubernetes_manifest(
        path, image=image, claim=claim, mount=mount, at_once=at_once, gpus=options.gpus, cpus=options.cpus
    )
    put(text)
    return 0


@app.command
def run(
    jobs: Annotated[Path, Parameter(name="LIST")],
    number: Annotated[int | None, WHOLE, Parameter(name="NUMBER", env_var="JOB_COMPLETION_INDEX")] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
    parent: Annotated[int | None, HIDDEN] = None,
) -> int:
    """Do one job of a list: what the engines call.

    Args:
        jobs: File in OUT_DIR/.vsfmanet, written by an engine's command.
        number: Number of the job. Without it, only check that this machine can do the jobs.
        as_json: Print the outcome as JSON on stdout.
        parent: Process whose end ends this one.
    """
    if parent is not None:
        from vsfmanet.jobs.supervise import die_with

        die_with(parent)
    from vsfmanet.cluster.joblist import OneJob, answer

    if number is None:
        found = answer(jobs)
        if as_json:
            print_json(dict(found))
        else:
            Path(found["canary"]).unlink()
            tell(f"{found['node']} can do the jobs of {jobs}")
        return 0
    job = OneJob(jobs, number)
    outcome = run_until_stopped(job.run, job.stop)
    if as_json:
        print_json(asdict(outcome))
    result = f"done, {outcome.frames} frames" if outcome.code == 0 else outcome.cause
    tell(f"{outcome.source}: {result}")
    return outcome.code


def _check_at_once(at_once: int) -> None:
    if at_once < 1:
        raise ConfigError(f"--at-once from 1 is needed, got {at_once}; mend it")
