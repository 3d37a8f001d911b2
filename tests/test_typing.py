"""What type checkers find in a user's script, and which names editors offer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vsfmanet

SCRIPT = Path(__file__).with_name("user_script.py")
PROJECT = Path(__file__).parents[1]


def test_mypy_accepts_right_calls_and_refuses_wrong_ones() -> None:
    pytest.importorskip("mypy")
    run = subprocess.run([sys.executable, "-m", "mypy", SCRIPT], cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_pyright_accepts_right_calls_and_refuses_wrong_ones(tmp_path: Path) -> None:
    pytest.importorskip("basedpyright")
    shutil.copy(SCRIPT, tmp_path / "script.py")  # outside the project: the package must say that it is typed
    settings = {
        "typeCheckingMode": "standard",
        "reportMissingTypeStubs": "error",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    line = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", "."]
    run = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    found = [each for each in json.loads(run.stdout)["generalDiagnostics"] if '"vapoursynth"' not in each["message"]]
    assert found == []


def test_editors_are_offered_the_public_names() -> None:
    public = ["__version__", "blur_map", "exposure", "models", "restore"]
    assert vsfmanet.__all__ == public
    assert dir(vsfmanet) == public
    assert all(callable(getattr(vsfmanet, name)) for name in public[1:])
    with pytest.raises(AttributeError):
        _ = vsfmanet.nothing  # type: ignore[attr-defined]


def test_the_package_is_imported_without_torch_and_vapoursynth() -> None:
    script = "import sys, vsfmanet; dir(vsfmanet); print({'torch', 'vapoursynth', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"


def test_models_lists_what_ships() -> None:
    assert "fmanetpp_x4_fast" in [entry.name for entry in vsfmanet.models()]
