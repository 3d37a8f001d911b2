"""The recipes of the shipped weights: every command in them is one that the tools of training take."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cyclopts import App

FOLDER = Path(__file__).parent.parent / "training" / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.sh") if path.name != "common.sh")
RECORDER = """#!/bin/sh
# Stands for python: writes down what it is asked to run, and leaves the checkpoint that a recipe looks for.
if [ "$1" = "-c" ]; then
    case "$2" in *sys.exit*) exit 1 ;; *) echo 100; exit 0 ;; esac
fi
(printf '%s\\t' "$@"; echo) >> "$LIST"
while [ $# -gt 0 ]; do
    if [ "$1" = "--out" ]; then
        case "$2" in *.pt) touch "$2" ;; *) mkdir -p "$2"; [ "$2" = "${2%pool*}" ] && touch "$2/latest.pt" ;; esac
    fi
    shift
done
exit 0
"""


class Parsed(Exception):
    """Ends a tool when its options have been read."""


def commands(recipe: Path, folder: Path) -> list[list[str]]:
    """What a recipe runs, in an empty folder, as lists of words."""
    recorder, listed = folder / "python", folder / "list"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    (folder / "runs" / "models").mkdir(parents=True)
    (folder / "runs" / "models" / "fast3.safetensors").touch()  # of another recipe
    environment = {**os.environ, "PYTHON": str(recorder), "LIST": str(listed)}
    command = ["bash", str(recipe), str(folder / "photos"), str(folder / "runs")]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=60)
    return [line.rstrip("\t").split("\t") for line in listed.read_text().splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="recipes are for bash")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_recipe_is_one_that_its_tool_takes(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(app: App, given: list[str]) -> None:
        app.parse_args(given, exit_on_error=False, print_error=False)
        raise Parsed

    monkeypatch.setattr(App, "__call__", parse)
    found = commands(recipe, tmp_path)
    assert found
    for dash, module, *options in found:
        assert dash == "-m"
        monkeypatch.setattr(sys, "argv", [module, *options])
        with pytest.raises(Parsed):
            importlib.import_module(module).main()


def test_every_shipped_weight_has_a_recipe() -> None:
    manifest = tomllib.loads((FOLDER.parent.parent / "models" / "manifest.toml").read_text(encoding="utf-8"))
    text = "".join(path.read_text(encoding="utf-8") for path in RECIPES)
    for entry in (entry for entries in manifest.values() for entry in entries):
        assert f" {entry['name']} " in text
