"""The Dockerfile, as far as it can be checked without an engine, and the kernels that a wheel brings."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from vsfmanet.kernels import build
from vsfmanet.kernels.flags import LEVELS

ROOT = Path(__file__).parents[1]
STEP = re.compile(r"([A-Z]+) (.*)", re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, in order."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    found = [STEP.fullmatch(line.strip()) for line in lines if line.strip()]
    assert all(found)
    return [(match[1], match[2]) for match in found if match]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """The stages by name, each with what it begins from and its instructions."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, arguments in steps():
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            found[stage] = (base, [])
        elif found:
            found[stage][1].append((name, arguments))
    return found


def test_every_instruction_is_one_of_docker() -> None:
    known = {"ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "ENTRYPOINT", "CMD", "USER"}
    assert {name for name, _ in steps()} <= known


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = [
        word
        for name, arguments in steps()
        for word in arguments.split()[:-1]
        if name == "COPY" and not arguments.startswith("--from=")
    ]
    assert {"pyproject.toml", "hatch_build.py", "models", "vsfmanet"} <= set(copied)
    for word in copied:
        assert (ROOT / word).exists(), word
        state = "*"
        for rule in rules:
            state = rule if fnmatch(word, rule.removeprefix("!")) else state
        assert state == f"!{word}"


def test_what_a_stage_takes_from_another_is_made_before() -> None:
    seen: set[str] = set()
    for name, (base, own) in stages().items():
        assert base in seen or base == "python:${PYTHON}-slim"
        for step, arguments in own:
            if step == "COPY" and (match := re.match(r"--from=(\S+) (\S+)", arguments)):
                assert match[1] in seen
                assert match[2] == "/opt/vsfmanet"
        seen.add(name)
    assert {"cpu", "cuda"} <= seen


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_every_command_is_shell_that_parses() -> None:
    commands = [arguments for name, arguments in steps() if name == "RUN"]
    assert len(commands) >= 5
    for command in commands:
        subprocess.run(["sh", "-n", "-c", command], check=True)


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_the_image_runs_as_a_user_without_rights_and_calls_vsfmanet(stage: str) -> None:
    base, own = stages()[stage]
    assert own[-1] == ("USER", "vsfmanet")
    plain = stages()[base][1]
    assert ("ENTRYPOINT", '["vsfmanet"]') in plain
    assert ("WORKDIR", "/data") in plain
    assert not any(name == "COPY" and "--chown" in arguments for name, arguments in plain + own)


def test_the_image_names_no_host_and_no_machine() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"https?:|\.(org|com|io)/|@sha256", text)


def test_the_commands_in_the_head_and_in_the_documentation_name_stages() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8") + (ROOT / "docs/archive.md").read_text(encoding="utf-8")
    named = re.findall(r"docker build --target (\w+)", text)
    assert set(named) == {"cpu", "cuda"}


@pytest.mark.parametrize(
    ("capability", "bf16", "level"),
    [
        ("AVX512", True, "x86-64-v4-bf16"),
        ("AVX512", False, "x86-64-v4"),
        ("AVX2", True, "x86-64-v3"),
        ("DEFAULT", False, None),
    ],
)
def test_of_the_kernels_in_a_wheel_those_are_taken_that_the_processor_runs(
    capability: str, bf16: bool, level: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_PREBUILT", tmp_path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert build.prebuilt() is None  # a pure wheel has none
    for name in LEVELS:
        (tmp_path / f"{name}.so").touch()
    assert build.prebuilt() == (None if level is None else tmp_path / f"{level}.so")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert build.prebuilt() is None
