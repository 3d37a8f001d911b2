"""Restores all films of a folder on several machines, with Ray, Slurm or Kubernetes.

An engine only decides where and when. Whatever it is, it calls one command, `vsfmanet cluster run LIST INDEX`, which
does what a batch does with one job: a process of its own, a watchdog, three attempts. A job is done by the record
beside its output, never by what an engine believes, and an output never replaces another; so a job that an engine
starts twice is made once, and the same command again does what is left.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import re
import secrets
import shlex
import socket
import subprocess
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vsfmanet import __version__
from vsfmanet.atomic import write_new, write_whole
from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.jobs import batch, supervise
from vsfmanet.jobs.batch import PRECEDENCE, TRIES
from vsfmanet.jobs.files import settle
from vsfmanet.jobs.job import BatchOptions, RestoreJob
from vsfmanet.jobs.journal import FOLDER
from vsfmanet.jobs.progress import Report
from vsfmanet.jobs.record import Fingerprint, Record, find_done, job_key, weights_sha256
from vsfmanet.jobs.runner import TAKING_PART, recipe
from vsfmanet.jobs.supervise import Stop
from vsfmanet.settings import from_json

ARRAY = 1000
"""Tasks in one Slurm array: `MaxArraySize` is 1001 unless a site has raised it."""

FINAL = (1, 2, 3, 6, 8)
"""Exit codes that another attempt, or another machine, would have too."""

FATAL = {2, 5, 8}
"""Exit codes that every other job would have too: an unsuitable node, a full disk, missing weights."""

TRANSIENT = {4, 7}
"""Exit codes of a job that may succeed elsewhere or later: a lost device, another running attempt."""

OLDEST_RAY = (2, 54)
"""First release without three holes that let others run code; the last was CVE-2026-27482."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobList:
    """The jobs of a cluster, and what must be equal on all nodes. It is a file in OUT_DIR, which every node reads."""

    in_folder: str
    """Absolute path of the sources, the same on every node."""
    out_folder: str
    """Absolute path of the outputs, the same on every node."""
    template: RestoreJob
    """Options of every job; its source and target are not used."""
    weights_sha256: str
    """Sha256 of the weights."""
    recipe: str
    """`Recipe.digest` of the settings."""
    versions: Mapping[str, str]
    """Versions of vsfmanet and of the packages that take part in computing pixels."""
    jobs: tuple[tuple[str, str], ...]
    """Source and output of each job."""
    token: str
    """Random word; a node that knows it has read this file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """How one job ended, after all its attempts."""

    source: str
    """Path of the source."""
    code: int
    """Exit code; 0 for done and verified."""
    cause: str
    """Why there is no result."""
    frames: int
    """Frames of the output."""
    attempts: int
    """Number of attempts; 0 if the output was there."""


def write_list(options: BatchOptions, report: Report) -> Path:
    """Check all names and write the list of jobs into OUT_DIR.

    Args:
        options: The folders and the options of every job.
        report: Receives messages.

    Returns:
        Path of the list. The same jobs and settings have the same list.

    Raises:
        ConfigError: Names cannot be used, or files that are not ours have an output's name.
        OutputError: The list cannot be written.
    """
    pairings = batch.find_jobs(options, report)
    template = options.template
    content = {
        "in_folder": os.path.realpath(options.in_folder),
        "out_folder": os.path.realpath(options.out_folder),
        "template": template.to_json(),
        "weights_sha256": weights_sha256(template.settings.named_model),
        "recipe": recipe(template).digest(),
        "versions": _versions(),
        "jobs": [[str(pairing.source), str(pairing.target)] for pairing in pairings],
    }
    text = json.dumps(content, sort_keys=True)
    path = Path(str(content["out_folder"]), FOLDER, f"cluster-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, json.dumps(content | {"token": secrets.token_hex(16)}, indent=1))
    except OSError as error:
        raise OutputError(f"{path}: the list of jobs must be written, but {error}; mend the folder") from error
    return path


def read_list(path: Path) -> JobList:
    """Read a list of jobs, and check that this node has the same programs, weights and folders.

    Raises:
        ConfigError: The list cannot be read, or something on this node differs.
    """
    try:
        listed = from_json(
            JobList,
            json.loads(path.read_text(encoding="utf-8")),
            template=RestoreJob.from_json,
            jobs=lambda jobs: tuple((str(source), str(target)) for source, target in jobs),
        )
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(
            f"{path}: the list of jobs must be readable on {socket.gethostname()} under this path, but {error!r}; "
            "mount the share there as on the machine that wrote it"
        ) from error
    found = _versions() | {"weights": weights_sha256(listed.template.settings.named_model)}
    needed = {**listed.versions, "weights": listed.weights_sha256}
    if other := sorted(name for name in needed if needed[name] != found.get(name)):
        details = ", ".join(f"{name} {needed[name]}, got {found.get(name)}" for name in other)
        raise ConfigError(
            f"{socket.gethostname()}: every node must have the same programs and weights: needed {details}; "
            "install the same there, or run the command again on a node with these"
        )
    for folder in (listed.in_folder, listed.out_folder):
        if not Path(folder).is_dir():
            raise ConfigError(
                f"{socket.gethostname()}: the folder {folder} must be there, got none; mount the share there "
                "under the same path"
            )
    return listed


class OneJob:
    """Runs one job of a list.

    Args:
        path: The list.
        index: Number of the job in it, from 0.
    """

    def __init__(self, path: Path, index: int) -> None:
        self._list = read_list(path)
        if not 0 <= index < len(self._list.jobs):
            raise ConfigError(
                f"{path}: the number of the job must be in 0 ... {len(self._list.jobs) - 1}, got {index}; run the "
                "command again that wrote the list, if sources have been added since"
            )
        source, target = self._list.jobs[index]
        self._job = replace(self._list.template, source=Path(source), target=Path(target))
        self.stop = Stop()
        """Ends the job. May be called from any thread, at any time."""

    def run(self) -> JobEnd:
        """Make the output unless it exists. A job that crashes, hangs or fails verification is tried 3 times."""
        source, target = self._job.source, self._job.target
        end = JobEnd(source=str(source), code=6, cause="", frames=0, attempts=0)
        while True:
            settle(target)
            record = self._find_done()
            if record is not None:
                return replace(end, code=0, cause="", frames=record.frames)
            if end.attempts == TRIES or (end.attempts and end.code != 6):
                return end
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{target}: its folder must be writable, but {error}; mend it") from error
            # A file of this name is ours, or there were no list: of other settings, or damaged. It is kept as `.old1`.
            job = replace(self._job, overwrite=os.path.lexists(target))
            outcome = supervise.supervise(job, attempt=end.attempts + 1, stop=self.stop)
            cause = outcome.cause or "the output is of another job; move it, or choose another OUT_DIR"
            end = replace(end, code=outcome.code or 6, cause=cause, attempts=end.attempts + 1)

    def _find_done(self) -> Record | None:
        """Record of the output, if it is done and intact."""
        try:
            return find_done(self._job.target, lambda: job_key(Fingerprint.of(self._job.source), self._list.recipe))
        except OSError:  # the source or the output cannot be read: the job will report that
            return None


def answer(path: Path) -> Mapping[str, str]:
    """Prove that this node can read the list and write to OUT_DIR, by writing the list's token to a new file.

    Returns:
        Name of the node, the token, and the path of the file.

    Raises:
        ConfigError: The node has other programs, weights or folders.
        OutputError: The file cannot be written.
    """
    listed = read_list(path)
    canary = path.with_suffix(f".{secrets.token_hex(4)}.canary")
    try:
        write_new(canary, listed.token)
    except OSError as error:
        raise OutputError(
            f"{socket.gethostname()}: the folder {path.parent} must be writable, but {error}; mend its rights"
        ) from error
    return {"node": socket.gethostname(), "token": listed.token, "canary": str(canary)}


# Slurm


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


# Kubernetes


def kubernetes_manifest(path: Path, *, image: str, claim: str, mount: Path, at_once: int, gpus: int, cpus: int) -> str:
    """Build an Indexed Job (Kubernetes 1.33 or newer) that runs the jobs of a list, for `kubectl apply -f`.

    Args:
        path: The list.
        image: Container image with vsfmanet.
        claim: Persistent volume claim with sources and outputs, to which many pods can write.
        mount: Where the volume is mounted, here and in the pods.
        at_once: Most pods that run at one time.
        gpus: GPUs for each job.
        cpus: Processors for each job.

    Raises:
        ConfigError: Sources or outputs are not below `mount`.
    """
    listed = read_list(path)
    for folder in (listed.in_folder, listed.out_folder):
        if not Path(folder).is_relative_to(mount):
            raise ConfigError(
                f"--mount must hold IN_DIR and OUT_DIR, under the same paths as in the pods, got {mount} and "
                f"{folder}; run the command where the volume is mounted at this place"
            )
    name = "vsfmanet"
    volume = "films"
    fail = {"containerName": name, "operator": "In", "values": list(FINAL)}  # another attempt would end the same way
    container = {
        "name": name,
        "image": image,
        "command": [name, "cluster", "run", _literal(path)],  # which job: JOB_COMPLETION_INDEX
        "resources": {"limits": {"cpu": str(cpus), **({"nvidia.com/gpu": gpus} if gpus else {})}},
        "volumeMounts": [{"name": volume, "mountPath": str(mount)}],
    }
    spec = {
        "completionMode": "Indexed",
        "completions": len(listed.jobs),
        "parallelism": min(at_once, len(listed.jobs)),
        "backoffLimitPerIndex": 2,
        "maxFailedIndexes": len(listed.jobs),
        "podReplacementPolicy": "Failed",  # otherwise a pod that is ending and the next one overlap
        "podFailurePolicy": {
            "rules": [
                {"action": "FailIndex", "onExitCodes": fail},
                # Preemption, or a drained node.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
                "volumes": [{"name": volume, "persistentVolumeClaim": {"claimName": claim}}],
            }
        },
    }
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": path.stem.replace("cluster", name),
            "annotations": {
                "description": "Restores the films of a folder; written by `vsfmanet cluster kubernetes`. Delete and "
                "apply it again after any interruption: what is done stays done, everything else is done again."
            },
        },
        "spec": spec,
    }
    return json.dumps(manifest, indent=2) + "\n"


def _literal(path: Path) -> str:
    """Escape a path for a container's command, in which Kubernetes replaces `$(NAME)` and `$$`.

    Raises:
        ConfigError: The path is not text.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"paths for Kubernetes must be text in UTF-8, got {str(path)!r}; rename the folder"
        ) from error
    return str(path).replace("$", "$$")


# Ray


class Transient(Exception):
    """The job may succeed elsewhere or later; Ray tries it again."""


def run_task(program: Sequence[str], path: str, index: int | None) -> dict[str, Any]:
    """Run `vsfmanet cluster run` for one job; the function of a Ray task.

    Args:
        program: Command line of vsfmanet.
        path: The list.
        index: Number of the job; None for the node's `answer`.

    Raises:
        Transient: Another attempt may succeed.
    """
    line = [
        *program,
        "cluster",
        "run",
        "--json",
        f"--parent={os.getpid()}",
        path,
        *([] if index is None else [str(index)]),
    ]
    ended = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    try:
        result: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        said = ended.stderr.decode(errors="replace")[-2000:]
        raise Transient(f"the command was ended from outside or crashed ({ended.returncode}): {said}") from None
    if ended.returncode in TRANSIENT:
        raise Transient(str(result.get("cause", result.get("message"))))
    return result | {"code": ended.returncode}


class RayRun:
    """Runs the jobs of a list as Ray tasks.

    Args:
        path: The list.
        report: Receives messages and progress.
        address: Address of a Ray cluster, `host:port` or `auto`; None for this machine alone.
        gpus: GPUs for each job.
        cpus: Processors for each job.
    """

    def __init__(self, path: Path, report: Report, *, address: str | None, gpus: int, cpus: int) -> None:
        self._path = path
        self._list = read_list(path)
        self._report = report
        self._ray = _connect(address)
        self._gpus, self._cpus = gpus, cpus
        self._outcomes: dict[int, JobEnd] = {}

    def run(self) -> int:
        """Run every job; return the exit code, as of a batch.

        Raises:
            ConfigError: A node differs, or the cluster lacks what a job needs.
        """
        ray = self._ray
        self._check_nodes()
        task = ray.remote(run_task).options(
            num_gpus=self._gpus, num_cpus=self._cpus, max_retries=2, retry_exceptions=[Transient]
        )
        waiting, running = deque(range(len(self._list.jobs))), dict[Any, int]()
        fatal = None
        while running or (waiting and fatal is None):
            while waiting and fatal is None and len(running) < 2 * self._slots():
                index = waiting.popleft()
                running[task.remote(supervise.PROGRAM, str(self._path), index)] = index
            ready, _ = ray.wait(list(running), timeout=1.0)
            for reference in ready:
                index = running.pop(reference)
                outcome = self._outcome(index, reference)
                self._outcomes[index] = outcome
                self._tell(outcome)
                if outcome.code in FATAL and fatal is None:
                    fatal = outcome.code
                    self._report.warn("other jobs would fail alike: no more are begun; mend the cause and run it again")
        self.conclude()
        codes = {outcome.code for outcome in self._outcomes.values()} | ({fatal} if fatal else set())
        return next((code for code in PRECEDENCE if code in codes), 0)

    def conclude(self) -> None:
        """Write the last line on the terminal."""
        counts = Counter("done" if outcome.code == 0 else "not done" for outcome in self._outcomes.values())
        left = len(self._list.jobs) - len(self._outcomes)
        self._report.note(f"done {counts['done']}, failed {counts['not done']}, left {left}")

    def _check_nodes(self) -> None:
        """Check that every node has the same programs, weights and paths, and the same OUT_DIR as this machine."""
        ray = self._ray
        look = ray.remote(run_task)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        by_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = [
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=by_node(node["NodeID"], soft=False)).remote(
                supervise.PROGRAM, str(self._path), None
            )
            for node in nodes
        ]
        for node, reference in zip(nodes, asked, strict=True):
            try:
                result = ray.get(reference)
            except (Transient, ray.exceptions.RayError) as error:
                raise ConfigError(
                    f"{node['NodeManagerAddress']}: a node must run vsfmanet from the same path, got {error}; "
                    "install it there, or take the node out"
                ) from error
            if result["code"]:
                raise ConfigError(str(result["message"]))
            canary = Path(result["canary"])
            try:
                word = canary.read_text()
                canary.unlink()
            except OSError:
                word = ""
            if word != self._list.token:
                raise ConfigError(
                    f"{node['NodeManagerAddress']}: {self._list.out_folder} must be the same folder on every "
                    f"node, but what {result['node']} writes there is not seen here; mount the share there"
                )
        if self._slots() < 1:
            raise ConfigError(
                f"a node with {self._gpus} GPUs and {self._cpus} processors for a job is needed, got "
                f"{ray.cluster_resources()}; lower --gpus and --cpus"
            )

    def _slots(self) -> int:
        """Number of jobs that the cluster can run at one time."""
        resources = self._ray.cluster_resources()
        kinds = (("GPU", self._gpus), ("CPU", self._cpus))
        return min(int(resources.get(kind, 0) // count) for kind, count in kinds if count)

    def _outcome(self, index: int, reference: Any) -> JobEnd:
        """How the job of a task ended."""
        source = self._list.jobs[index][0]
        try:
            result = self._ray.get(reference)
        except Transient as error:
            return JobEnd(source=source, code=7, cause=str(error), frames=0, attempts=0)
        except self._ray.exceptions.RayError as error:  # the worker or its node died, three times
            return JobEnd(source=source, code=6, cause=f"the task was lost: {error}", frames=0, attempts=0)
        names = ("cause", "frames", "attempts")
        if "message" in result:
            return JobEnd(source=source, code=result["code"], cause=result["message"], frames=0, attempts=0)
        return JobEnd(source=source, code=result["code"], **{name: result[name] for name in names})

    def _tell(self, outcome: JobEnd) -> None:
        """Write a line about a job that has ended."""
        place = f"[{len(self._outcomes)}/{len(self._list.jobs)}] {outcome.source}"
        if outcome.code == 0:
            self._report.note(f"{place}: done, {outcome.frames} frames" + ("" if outcome.attempts else " (was there)"))
        else:
            self._report.warn(f"{place}: exit code {outcome.code}: {outcome.cause}")


def _connect(address: str | None) -> Any:
    """Return Ray, connected to a cluster, or to one of this machine alone.

    Raises:
        ConfigError: Ray is missing, too old, or open to others.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray sends no data about its use
    # Under `uv run`, Ray would make an environment on every node and wait for it; ours are installed, and checked.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    if address is None:
        # Ray runs whatever is sent to its ports: it asks for a token, and listens on this machine alone.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    else:
        _check_safe(address)
    oldest = ".".join(map(str, OLDEST_RAY))
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ConfigError(
            f"Ray {oldest} or newer is needed, got none ({error}); install vsfmanet[cluster] on every node"
        ) from error
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST_RAY:
        raise ConfigError(f"Ray {oldest} or newer is needed, got {ray.__version__}, which lets others run code; update")
    try:
        if address is None:
            local: dict[str, Any] = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
            ray.init(**local, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Ray must be reachable at {address}, but {error}; start it there first") from error
    if address == "auto":
        _check_private(ray.get_runtime_context().gcs_address)
    return ray


def _check_safe(address: str) -> None:
    """Refuse a cluster without a token, or with a public address.

    Raises:
        ConfigError: The cluster is one of these.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not (given or (Path.home() / ".ray" / "auth_token").is_file()):
        raise ConfigError(
            "Ray must ask for a token, or everybody who reaches its ports can run programs: set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) here and wherever Ray is started"
        )
    if address != "auto":
        _check_private(address)


def _check_private(address: str) -> None:
    """Refuse a public address.

    Raises:
        ConfigError: The address is public, or no address.
    """
    host, _, port = address.rpartition(":")
    try:
        found = ipaddress.ip_address(socket.gethostbyname(host.strip("[]")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--address must be auto or the host:port of a Ray head, got {address!r} ({error}); mend it"
        ) from error
    if not port.isdigit() or not found.is_private:
        raise ConfigError(
            f"--address must be the host:port of a Ray head in a private network, got {address!r} ({found}); "
            "use a private network or a VPN"
        )


def _versions() -> dict[str, str]:
    """Versions of vsfmanet and of the packages that take part in computing pixels."""
    return {"vsfmanet": __version__} | {name: version(name) for name in TAKING_PART}
