"""A script that runs the jobs of a list as an array of Slurm."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from vsfmanet.cluster.joblist import read_list
from vsfmanet.errors import ConfigError
from vsfmanet.jobs import supervise

ARRAY = 1000
"""Tasks in one Slurm array: `MaxArraySize` is 1001 unless a site has raised it."""


def slurm_script(path: Path, *, at_once: int, gpus: int, cpus: int) -> str:
    """Build a script for `sbatch` that runs the jobs of a list.

    Args:
        path: The list.
        at_once: Most jobs that run at one time.
        gpus: GPUs for each job.
        cpus: Processors for each job.

    Raises:
        ConfigError: A path has a line break; what follows it would be read as options of Slurm or as a command.
    """
    count = len(read_list(path).jobs)
    command = [*supervise.PROGRAM, "cluster", "run", str(path)]
    logs = str(path.parent).replace("%", "%%") + "/slurm-%A_%a.log"
    for word in (*command, logs):
        if re.search(r"[\x00-\x1f\x7f]", word):
            raise ConfigError(f"paths in a script for Slurm must have no line breaks or tabs, got {word!r}; rename it")
    lines = [
        "#!/bin/bash",
        "# Restores the films of a folder with vsfmanet. Written by `vsfmanet cluster slurm`.",
        "# Give it to sbatch again after any interruption: what is done stays done, everything else is done again.",
    ]
    if count > ARRAY:  # a site may allow more, but does so rarely
        lines.append(
            "# More jobs than an array may have: submit it once for each of these, with the first job's number:"
        )
        lines += [
            f"#   sbatch --array=0-{min(ARRAY, count - first) - 1}%{at_once} THIS_FILE {first}"
            for first in range(0, count, ARRAY)
        ]
    lines += [
        "#SBATCH --job-name=vsfmanet",
        f"#SBATCH --array=0-{min(ARRAY, count) - 1}%{at_once}",
        *([f"#SBATCH --gres=gpu:{gpus}"] if gpus else []),
        f"#SBATCH --cpus-per-task={cpus}",
        "#SBATCH --requeue                # after preemption and the loss of a node; not after the time limit",
        "#SBATCH --signal=B:TERM@120      # 2 to 3 minutes before the time limit, to clear up in order",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={shlex.quote(logs)}",
        "",
        "# exec: the signal goes to this shell alone, so the command must take its place.",
        f'exec {shlex.join(command)} "$((SLURM_ARRAY_TASK_ID + ${{1:-0}}))"',
    ]
    return "\n".join([*lines, ""])
