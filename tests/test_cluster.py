"""The fault table, section G, and jobs done by Slurm's, Kubernetes' and Ray's way of calling one command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.batch_stub import content, stub_recipe
from vsfmanet.cli import main
from vsfmanet.cluster import joblist, ray
from vsfmanet.errors import ConfigError
from vsfmanet.jobs import batch, supervise
from vsfmanet.jobs.record import check_against_record

STUB = Path(__file__).with_name("batch_stub.py")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Slurm, Kubernetes and Ray's clusters are of Linux")


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor encoders, here and in the processes that are started."""
    monkeypatch.setattr(supervise, "PROGRAM", (sys.executable, str(STUB)))
    monkeypatch.setattr(batch, "recipe", lambda job: stub_recipe(job.encoder_args))
    monkeypatch.setattr(joblist, "recipe", lambda job: stub_recipe(job.encoder_args))
    monkeypatch.setattr(joblist, "weights_sha256", lambda model: "0")
    monkeypatch.setenv("PYTHONPATH", str(STUB.parents[1]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def put(folder: Path, *words: str) -> list[Path]:
    """Make sources that do what they say."""
    paths = [folder / f"{n} {word}.mkv" for n, word in enumerate(words, start=1)]
    for path, word in zip(paths, words, strict=True):
        path.write_text(f"{word} {path.stem}")
    return paths


def outputs(made: Path) -> list[str]:
    """Everything in the folder of outputs but lists, logs and records."""
    names = (path.relative_to(made) for path in made.rglob("*") if path.is_file())
    kept = (name for name in names if name.parts[0] != batch.FOLDER and name.name != batch.REPORT)
    return sorted(str(name) for name in kept if not name.name.endswith(".vsfmanet.json"))


def slurm(sources: Path, made: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The script."""
    capsys.readouterr()
    assert main(["cluster", "slurm", *options, str(sources), str(made)]) == 0
    return capsys.readouterr().out


def job_list(made: Path) -> Path:
    """The newest list of jobs."""
    return max((made / batch.FOLDER).glob("cluster-*.json"), key=lambda path: path.stat().st_mtime_ns)


def run_one(made: Path, number: int) -> int:
    return main(["cluster", "run", str(job_list(made)), str(number)])


# One job of a list


def test_each_job_of_a_list_is_made_once_and_again_is_nothing_to_do(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = put(sources, "ok", "refused", "flood")
    slurm(sources, made, capsys)
    assert [run_one(made, number) for number in (0, 1, 2)] == [0, 3, 0]
    assert outputs(made) == ["1 ok.mkv", "3 flood.mkv"]
    assert (made / "1 ok.mkv").read_text() == content(paths[0])
    before = (made / "1 ok.mkv").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["cluster", "run", "--json", str(job_list(made)), "0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"source": str(paths[0]), "code": 0, "cause": "", "frames": 1, "attempts": 0}
    assert (made / "1 ok.mkv").stat().st_mtime_ns == before
    assert (
        main(["batch", "--reserve=0", str(sources), str(made)]) == 3
    )  # takes over what is done, and writes the report
    assert "done 2, refused 1" in capsys.readouterr().err


def test_the_same_jobs_have_the_same_list_and_other_settings_another(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok")
    first = slurm(sources, made, capsys)
    assert slurm(sources, made, capsys) == first
    assert run_one(made, 0) == 0
    assert slurm(sources, made, capsys, "--encoder-args=-crf 30") != first
    assert run_one(made, 0) == 0
    assert outputs(made) == ["1 ok.mkv", "1 ok.old1.mkv"]
    assert check_against_record(made / "1 ok.mkv").frames == 1


@pytest.mark.parametrize("word", ["crash", "vanish", "wrong"])
def test_case_81_a_job_that_kills_its_process_is_given_up_after_three_attempts(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    put(sources, word)
    slurm(sources, made, capsys)
    assert main(["cluster", "run", "--json", str(job_list(made)), "0"]) == 6
    assert json.loads(capsys.readouterr().out)["attempts"] == 3
    assert outputs(made) == []


def test_case_82_a_job_that_is_told_to_go_clears_up_and_goes_on_the_next_time(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [source] = put(sources, "hang")
    script = slurm(sources, made, capsys)
    job = start_array_task(script, 0)
    deadline = time.monotonic() + 60
    while not list(made.glob(".1 hang.*.part.mkv")):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.02)
    job.terminate()  # the shell has become the command, so that it gets the signal
    assert job.wait(timeout=30) == 143
    status = source.stat()
    source.write_text("ok now")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert start_array_task(script, 0).wait(timeout=60) == 0
    assert outputs(made) == ["1 hang.mkv"]


def test_an_output_that_is_not_ours_is_refused_before_anything_is_written(sources: Path, made: Path) -> None:
    put(sources, "ok")
    made.mkdir()
    (made / "1 ok.mkv").write_text("precious")
    assert main(["cluster", "slurm", str(sources), str(made)]) == 2
    assert [path.name for path in made.iterdir()] == ["1 ok.mkv"]


# Nodes that do not fit


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "value"), [("versions", {"vsfmanet": "0.0.1"}), ("versions", {"av": "1.0"}), ("weights_sha256", "1" * 64)]
)
def test_case_79_a_node_with_other_programs_or_weights_is_refused(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    put(sources, "ok")
    slurm(sources, made, capsys)
    listed = json.loads(job_list(made).read_text())
    change(job_list(made), **{name: {**listed[name], **value} if isinstance(value, dict) else value})
    assert run_one(made, 0) == 2
    assert "every node must have the same programs and weights: needed" in capsys.readouterr().err
    assert outputs(made) == []


def test_case_80_a_node_without_the_share_is_refused(
    sources: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(sources, "ok")
    slurm(sources, made, capsys)
    assert main(["cluster", "run", str(tmp_path / "elsewhere" / job_list(made).name), "0"]) == 2
    assert "must be readable on" in capsys.readouterr().err
    assert main(["cluster", "run", "--json", str(job_list(made))]) == 0  # a node that fits writes the list's word
    told = json.loads(capsys.readouterr().out)
    assert Path(told["canary"]).read_text() == told["token"] == json.loads(job_list(made).read_text())["token"]
    shutil.rmtree(sources)
    assert run_one(made, 0) == 2
    assert f"the folder {sources} must be there" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["1", "-1"])
def test_a_number_outside_the_list_is_refused(
    sources: Path, made: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    put(sources, "ok")
    slurm(sources, made, capsys)
    assert main(["cluster", "run", str(job_list(made)), "--", number]) == 2


# Slurm


def start_array_task(script: str, task: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Run a script as Slurm runs it for one task of the array."""
    return subprocess.Popen(
        ["bash", "-c", script, "jobs.sbatch", *arguments],
        env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task)},
        stderr=subprocess.DEVNULL,
    )


def test_a_slurm_array_does_every_job_of_the_folder(
    sources: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = sources / "$(touch marker) 'a b'.mkv"
    odd.write_text("ok odd")
    paths = [*put(sources, "ok", "damaged"), odd]
    script = slurm(sources, made, capsys, "--at-once=3", "--gpus=2", "--cpus=5")
    (tmp_path / "jobs.sbatch").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "jobs.sbatch"], check=True)
    for line in (
        "#SBATCH --array=0-2%3",
        "#SBATCH --gres=gpu:2",
        "#SBATCH --cpus-per-task=5",
        "#SBATCH --requeue ",
        "#SBATCH --signal=B:TERM@120 ",
    ):
        assert line in script
    assert script.startswith("#!/bin/bash\n")
    listed = [source for source, _ in json.loads(job_list(made).read_text())["jobs"]]
    assert sorted(listed) == sorted(map(str, paths))
    codes = {listed[task]: start_array_task(script, task).wait(timeout=60) for task in range(3)}
    assert codes == {str(paths[0]): 0, str(paths[1]): 3, str(odd): 0}
    assert (made / odd.name).read_text() == content(odd)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "jobs.sbatch", "out"]


def test_a_line_break_in_a_path_does_not_become_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "in"
    sources.mkdir()
    put(sources, "ok")
    made = tmp_path / f"out\ntouch {tmp_path.name}\n#"
    assert main(["cluster", "slurm", str(sources), str(made)]) == 2
    said = capsys.readouterr()
    assert "must have no line breaks" in said.err
    assert said.out == ""


def test_a_percent_sign_in_a_path_is_no_pattern_of_slurm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = tmp_path / "in"
    sources.mkdir()
    put(sources, "ok")
    assert main(["cluster", "slurm", str(sources), str(tmp_path / "%u out")]) == 0
    assert f"--output='{tmp_path}/%%u out/.vsfmanet/slurm-%A_%a.log'" in capsys.readouterr().out


def test_a_large_archive_becomes_several_arrays(
    sources: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vsfmanet.cluster.slurm.ARRAY", 2)
    paths = put(sources, "ok", "ok", "ok")
    script = slurm(sources, made, capsys, "--at-once=8")
    assert "#SBATCH --array=0-1%8\n" in script
    said = re.findall(r"^#   sbatch --array=0-(\d+)%8 THIS_FILE (\d+)$", script, re.MULTILINE)
    assert said == [("1", "0"), ("0", "2")]
    assert start_array_task(script, 0, "2").wait(timeout=60) == 0
    assert outputs(made) == [paths[2].name]


# Kubernetes


def test_a_kubernetes_job_is_indexed_and_knows_which_codes_are_final(
    sources: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml")
    put(sources, "ok", "ok", "ok")
    options = ["--image=registry/vsfmanet:1", "--claim=films: #1", f"--mount={tmp_path}", "--at-once=2"]
    assert main(["cluster", "kubernetes", *options, str(sources), str(made)]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    spec = manifest["spec"]
    assert {name: spec[name] for name in ("completionMode", "completions", "parallelism", "podReplacementPolicy")} == {
        "completionMode": "Indexed", "completions": 3, "parallelism": 2, "podReplacementPolicy": "Failed",
    }  # fmt: skip
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailIndex", [1, 2, 3, 6, 8])
    assert (ignore["action"], ignore["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 30
    assert spec["template"]["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "films: #1"}
    [container] = spec["template"]["spec"]["containers"]
    assert container["name"] == fail["onExitCodes"]["containerName"]
    assert container["volumeMounts"][0]["mountPath"] == str(tmp_path)
    assert container["resources"]["limits"] == {"cpu": "4", "nvidia.com/gpu": 1}
    assert container["command"] == ["vsfmanet", "cluster", "run", str(job_list(made))]
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert main(container["command"][1:]) == 0  # as the second pod
    assert outputs(made) == ["2 ok.mkv"]


def test_dollars_in_a_path_are_not_variables_of_kubernetes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources, made = tmp_path / "in", tmp_path / "$(HOME) $$ out"
    sources.mkdir()
    put(sources, "ok")
    options = ["--image=a", "--claim=b", f"--mount={tmp_path}"]
    assert main(["cluster", "kubernetes", *options, str(sources), str(made)]) == 0
    manifest = json.loads(capsys.readouterr().out)
    word = manifest["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    assert word.replace("$$", "\0").count("$") == 0  # Kubernetes reads each $$ as $, and replaces $(NAME)
    assert word.replace("$$", "$") == str(job_list(made))


def test_folders_outside_the_volume_are_refused(sources: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(sources, "ok")
    options = ["--image=a", "--claim=b", "--mount=/nowhere"]
    assert main(["cluster", "kubernetes", *options, str(sources), str(made)]) == 2
    assert "--mount must hold IN_DIR and OUT_DIR" in capsys.readouterr().err


# Ray


@pytest.mark.parametrize(
    ("environment", "address", "message"),
    [
        ({}, "10.0.0.1:6379", "Ray must ask for a token"),
        ({"RAY_AUTH_MODE": "token"}, "10.0.0.1:6379", "Ray must ask for a token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, "auto", "Ray must ask for a token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "8.8.8.8:6379", "in a private network"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "10.0.0.1", "host:port"),
    ],
)
def test_case_83_ray_is_not_used_without_a_token_or_in_public(
    sources: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    address: str,
    message: str,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    put(sources, "ok")
    assert main(["cluster", "ray", f"--address={address}", str(sources), str(made)]) == 2
    assert message in capsys.readouterr().err


def test_case_83_without_ray_there_is_a_hint(
    sources: Path, made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "ray", None)
    put(sources, "ok")
    assert main(["cluster", "ray", str(sources), str(made)]) == 2
    assert "install vsfmanet[cluster]" in capsys.readouterr().err


NODES = """
import sys
from ray.cluster_utils import Cluster
def start(tries=3):
    cluster = Cluster()
    try:
        node = dict(num_cpus=1, object_store_memory=80 << 20)
        cluster.add_node(include_dashboard=False, **node)
        return cluster, cluster.add_node(**node)
    except Exception:  # Ray gives a node 30 s to start, which a busy machine may need
        cluster.shutdown()
        if tries == 1:
            raise
        return start(tries - 1)
cluster, other = start()
print(cluster.address, other.all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""
"""Two nodes on this machine, until a line is read."""


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A Ray cluster with a token; gives the process of the second node."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("STUB_PAUSE", "1.5")  # the nodes hand their environment on to the jobs
    nodes = subprocess.Popen(
        [sys.executable, "-c", NODES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert nodes.stdout is not None
    address, raylet = nodes.stdout.readline().decode().split()
    monkeypatch.setenv("RAY_ADDRESS", address)
    yield int(raylet)
    nodes.communicate(b"\n", timeout=60)


def ancestors(pid: int) -> list[int]:
    """The processes above a process, the nearest first."""
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return found
        found.append(pid)
    return found


def running_jobs(made: Path) -> list[int]:
    """The processes that do a job of the list."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"cluster" in words and b"run" in words and os.fsencode(job_list(made)) in words and words[-2].isdigit():
                found.append(int(process.name))
    return found


def wait_for(what: Callable[[], Any], driver: subprocess.Popen[bytes]) -> Any:
    """Until something is there, while the driver runs."""
    deadline = time.monotonic() + 150
    while not (found := what()):
        assert driver.poll() is None, driver.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.cluster
def test_case_77_a_worker_and_a_node_are_killed_and_every_job_is_made_once(
    sources: Path, made: Path, two_nodes: int
) -> None:
    paths = put(sources, *["ok"] * 6, "refused")
    driver = subprocess.Popen(
        [sys.executable, STUB, "cluster", "ray", "--gpus=0", "--cpus=1", sources, made], stderr=subprocess.PIPE
    )
    wait_for(lambda: made.is_dir() and list((made / batch.FOLDER).glob("cluster-*.json")), driver)
    [job, *_] = wait_for(lambda: running_jobs(made), driver)
    os.kill(ancestors(job)[0], signal.SIGKILL)  # Ray's own process; ours must not outlive it
    [other, *_] = wait_for(lambda: [job for job in running_jobs(made) if two_nodes in ancestors(job)], driver)
    os.kill(two_nodes, signal.SIGKILL)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 3, said.decode()
    assert b"done 6, failed 1, left 0" in said
    assert outputs(made) == [path.name for path in paths[:6]]
    for path in paths[:6]:
        assert (made / path.name).read_text() == content(path)
        assert check_against_record(made / path.name).frames == 1
    assert not {job, other} & set(running_jobs(made))


@pytest.mark.cluster
def test_case_79_a_ray_node_that_does_not_fit_is_refused_at_join(sources: Path, made: Path, two_nodes: int) -> None:
    put(sources, "ok")
    environment = os.environ | {"STUB_OTHER_VERSION": "1"}
    driver = subprocess.run(
        [sys.executable, STUB, "cluster", "ray", "--gpus=0", "--cpus=1", sources, made],
        env=environment, stderr=subprocess.PIPE, timeout=120, check=False,
    )  # fmt: skip
    assert two_nodes
    assert driver.returncode == 2, driver.stderr.decode()
    assert b"every node must have the same programs and weights" in driver.stderr
    assert outputs(made) == []


def test_what_a_task_cannot_read_is_worth_another_attempt() -> None:
    with pytest.raises(ray.Transient, match="ended from outside or crashed"):
        ray.run_task([sys.executable, "-c", "import os; os.abort()"], "list", 0)
    assert issubclass(ConfigError, Exception)
