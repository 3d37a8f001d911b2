"""The acceptance of a GPU, in full at toy size with the CPU in its place; and what it does when a section fails."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vsfmanet.kernels import Kernels

SCRIPTS = Path(__file__).parents[1] / "scripts"
SETUP = {"device": "cpu", "sizes": ((32, 24),), "frames": 1}


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_acceptance")


@pytest.mark.timeout(1300)
def test_every_section_runs_on_the_cpu_and_is_in_both_reports(tmp_path: Path, acceptance: ModuleType) -> None:
    command = [sys.executable, str(SCRIPTS / "gpu_acceptance.py"), "--device", "cpu", "--out", str(tmp_path / "report")]
    toy = ["--sizes", "32x24", "--frames", "2", "--minutes", "20"]
    run = subprocess.run([*command, *toy], capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    sections = {each["name"]: each for each in report["sections"]}
    assert list(sections) == list(acceptance.SECTIONS)
    assert {each["verdict"] for each in sections.values()} == {"passed"}
    assert all(each["found"]["rows"] for each in sections.values())
    names = {name for name in vars(Kernels) if not name.startswith("_")}
    assert {row["kernel"] for row in sections["kernels"]["found"]["rows"]} == names
    text = (tmp_path / "report.md").read_text()
    assert all(f"\n## {name.capitalize()}\n" in text for name in sections)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def falls_over(_: Any) -> Any:
    os._exit(7)


def raises(_: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def hangs(_: Any) -> Any:
    time.sleep(600)


def is_left_out(_: Any) -> Any:
    raise importlib.import_module("gpu_acceptance").LeftOut("no zimg")


def is_wrong(_: Any) -> Any:
    return importlib.import_module("gpu_acceptance").Found(rows=[{"a": 1}], wrong=["a is off"])


def passes(_: Any) -> Any:
    return importlib.import_module("gpu_acceptance").Found(rows=[{"a": "x|y"}], notes=["a note"])


@pytest.mark.timeout(1200)
def test_a_section_that_fails_takes_no_other_along(tmp_path: Path, acceptance: ModuleType) -> None:
    setup = acceptance.Setup(**SETUP)
    sections = {each.__name__: each for each in (falls_over, raises, hangs, is_left_out, is_wrong, passes)}
    found = {
        name: acceptance.run_section(name, each, setup, 2 if each is hangs else 900) for name, each in sections.items()
    }
    assert {name: (each.verdict, each.reason) for name, each in found.items()} == {
        "falls_over": ("crashed", "the process ended with 7"),
        "raises": ("crashed", "RuntimeError: CUDA error: an illegal memory access was encountered"),
        "hangs": ("late", "no result within 2 s"),
        "is_left_out": ("left out", "no zimg"),
        "is_wrong": ("wrong", "a is off"),
        "passes": ("passed", ""),
    }
    assert "in raises" in found["raises"].found.notes[0]
    codes = {"passes": 0, "is_left_out": 0, "hangs": 5, "is_wrong": 1, "raises": 3}
    ended = []
    for name, code in codes.items():
        ended.append(found[name])
        assert acceptance.exit_code(ended) == code


def test_without_a_device_nothing_is_run(
    tmp_path: Path, acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert acceptance.main(["--out", str(tmp_path / "report")]) == 4
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_section_for_which_no_time_is_left_is_late(
    tmp_path: Path, acceptance: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--device", "cpu", "--minutes", "0", "--only", "film", "--out", str(tmp_path / "report")]
    assert acceptance.main(command) == 5
    assert "| film | late | 0 | no time was left for it |" in (tmp_path / "report.md").read_text()


def test_kernels_that_differ_from_their_twins_are_wrong(
    acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsfmanet.kernels import reference

    real = reference.pixel_norm
    monkeypatch.setattr(reference, "pixel_norm", lambda *args: 1.01 * real(*args))
    found = acceptance.kernels(acceptance.Setup(**SETUP))
    assert found.wrong
    assert all(text.startswith("pixel_norm in ") and " is off by " in text for text in found.wrong)


@pytest.mark.parametrize(
    ("copies", "wrong"), [(set(), set()), ({"to"}, {"a tensor as an array"}), ({"from"}, {"an array as a tensor"})]
)
def test_memory_that_is_copied_is_not_shared(
    acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch, copies: set[str], wrong: set[str]
) -> None:
    """NumPy takes the place of CuPy, whose arrays need a device."""
    if "to" in copies:
        arrays = SimpleNamespace(from_dlpack=lambda tensor: np.from_dlpack(tensor).copy(), zeros=np.zeros)
        monkeypatch.setattr(acceptance, "_arrays", lambda _: arrays)
    if "from" in copies:
        real = torch.utils.dlpack.from_dlpack
        monkeypatch.setattr(torch.utils.dlpack, "from_dlpack", lambda array: real(array).clone())
    found = acceptance.sharing(acceptance.Setup(**SETUP))
    assert {text.partition(",")[0] for text in found.wrong} == wrong
    assert {row["result"] for row in found.rows} == ({"shared", "a copy"} if wrong else {"shared"})
    assert len(found.rows) == 8


def test_without_cupy_there_is_nothing_to_share(acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsfmanet.devices.find_cupy", lambda: None)
    with pytest.raises(acceptance.LeftOut, match="CuPy is not installed: pip install cupy-cuda13x"):
        acceptance.sharing(acceptance.Setup(**{**SETUP, "device": "cuda"}))
