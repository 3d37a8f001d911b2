"""The jobs of a list as tasks of a Ray cluster."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import secrets
import socket
import subprocess
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsfmanet.cluster.joblist import JobEnd, read_list
from vsfmanet.errors import ConfigError
from vsfmanet.jobs import supervise
from vsfmanet.jobs.batch import PRECEDENCE
from vsfmanet.jobs.progress import Report

FATAL = {2, 5, 8}
"""Exit codes that every other job would have too: an unsuitable node, a full disk, missing weights."""

TRANSIENT = {4, 7}
"""Exit codes of a job that may succeed elsewhere or later: a lost device, another running attempt."""

OLDEST_RAY = (2, 54)
"""First release without three holes that let others run code; the last was CVE-2026-27482."""


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
