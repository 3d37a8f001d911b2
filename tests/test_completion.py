"""Completion in the shell, with the shells that are there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vsfmanet.cli import COMMANDS, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        (["vsfmanet", ""], {"restore", "batch", "doctor"}, {"--job"}),
        (["vsfmanet", "restore", "--st"], {"--start", "--strength", "--stall-limit"}, {"--json", "--job"}),
        (["vsfmanet", "restore", "--preset", ""], {"archive", "hevc10", "vaapi"}, {"--preset"}),
        (["vsfmanet", "batch", "--on-damage", "s"], {"stop", "salvage"}, {"as-is"}),
        (["vsfmanet", "cluster", ""], {"ray", "slurm", "kubernetes"}, {"restore"}),
    ],
)
def test_bash_completes_commands_options_and_values(
    words: list[str], offered: set[str], not_offered: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _vsfmanet; printf "%s\\n" "${{COMPREPLY[@]}}"'
    code = f"{script('bash', capsys)}\n{ask}\n"
    run = subprocess.run(["bash", "--norc", "-s"], input=code, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    answers = {line.strip() for line in run.stdout.splitlines()}
    assert offered <= answers
    assert not not_offered & answers


def test_zsh_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = script("zsh", capsys)
    assert text.startswith("#compdef vsfmanet\n")
    assert all(f"'{name}:{told}'" in text for name, told in COMMANDS.items())
    assert "--stall-limit" in text
    assert "(default archive hevc10 av1 prores nvenc qsv vaapi)" in text
    assert "--job" not in text
    if zsh := shutil.which("zsh"):
        subprocess.run([zsh, "-n"], input=text, text=True, check=True)


def test_completion_is_installed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        assert main(["completion", "bash", "--install"]) == 0
    path = tmp_path / ".local/share/bash-completion/completions/vsfmanet"
    assert f"{path} is there; open a new bash" in capsys.readouterr().err
    assert path.read_text() == script("bash", capsys)
    assert (tmp_path / ".bashrc").read_text().count(str(path)) == 2  # one line: if it is there, read it


def test_an_unknown_shell_and_a_folder_that_takes_no_script_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "csh"]) == 2
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".local").write_text("a file where a folder is needed")
    assert main(["completion", "bash", "--install"]) == 5
    assert "print it without --install" in capsys.readouterr().err
