"""The doctor: each thing found or not, and what to do."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import vapoursynth as vs

from vsfmanet import doctor, manifest
from vsfmanet.cli import main
from vsfmanet.errors import WeightsError
from vsfmanet.kernels import build


@pytest.fixture
def install_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Make a model the only one in the manifest, with a checksum of the bytes b"weights"."""

    def install(content: bytes) -> Path:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        entry = manifest.ModelEntry(
            name="fmanetpp_x4_fast",
            scale=4,
            preset="fast",
            path=path,
            size=7,
            sha256=hashlib.sha256(b"weights").hexdigest(),
            licence="MIT",
            description="For tests.",
            scores={},
        )
        monkeypatch.setattr(manifest, "list_models", lambda: [entry])
        return path

    return install


def by_name(name: str) -> doctor.Check:
    [check] = [check for check in doctor.examine() if check.name == name]
    return check


def test_a_good_installation_has_all_essentials(
    install_model: Callable[[bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install_model(b"weights")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in (
        "Python",
        "PyTorch",
        "CPU",
        "VapourSynth",
        "BestSource",
        "L-SMASH Works",
        "vspipe",
        "FFmpeg",
        "encoders",
    ):
        assert f" {name} " in said
    assert torch.__version__ in said
    assert "libx264 libx265" in said
    assert "fmanetpp_x4_fast, checksum as in the manifest" in said
    assert "all essentials are there" in said


def test_every_check_is_printed_as_json(
    install_model: Callable[[bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    install_model(b"weights")
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["PyTorch"] == {
        "name": "PyTorch", "found": True, "detail": torch.__version__, "remedy": "", "exit_code": 0,
    }  # fmt: skip
    assert {"compiler", "CPU kernels"} <= set(checks)


def test_without_a_compiler_the_kernels_are_missing_and_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build.library.cache_clear()
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    try:
        found = {check.name: check for check in doctor.examine()}
    finally:
        build.library.cache_clear()
    compiler, kernels = found["compiler"], found["CPU kernels"]
    assert (compiler.found, compiler.exit_code, kernels.found, kernels.exit_code) == (False, 0, False, 0)
    assert "apt install g++" in str(compiler) or sys.platform != "linux"
    assert "no C++ compiler found" in kernels.detail


def test_no_compiler_is_needed_where_the_package_brings_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = build.library()
    if kernels is None:
        pytest.skip("no compiler that could make them")
    level = "x86-64-v3"
    (tmp_path / f"{level}.so").write_bytes(Path(kernels._name).read_bytes())
    monkeypatch.setattr(build, "_PREBUILT", tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    build.library.cache_clear()
    try:
        found = {check.name: check for check in doctor.examine()}
    finally:
        build.library.cache_clear()
    assert found["compiler"].found
    assert "none is needed" in found["compiler"].detail
    assert found["CPU kernels"].detail == f"C++, of the package, for {level}"


def test_kernels_that_are_switched_off_are_not_missing_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")
    assert by_name("CPU kernels").remedy == "unset VSFMANET_NO_KERNELS"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("built_for", "remedy"),
    [(None, "pytorch.org"), ("12.8", "update NVIDIA's driver")],
    ids=["cpu build", "old driver"],
)
def test_a_card_that_is_not_used_is_named_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built_for: str | None, remedy: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA Test 9000\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    check = by_name("CUDA")
    assert not check.found
    assert check.detail.startswith("NVIDIA Test 9000, but ")
    assert remedy in check.remedy


def test_a_damaged_model_is_found(install_model: Callable[[bytes], Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = install_model(b"wights")
    assert main(["doctor"]) == 8
    assert "damaged; reinstall" in capsys.readouterr().out
    path.unlink()
    assert by_name("model").detail.endswith("no file")


def test_a_missing_manifest_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[manifest.ModelEntry]:
        raise WeightsError("no manifest")

    monkeypatch.setattr(manifest, "list_models", refuse)
    assert not by_name("models").found


def test_a_missing_source_filter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(core_version=SimpleNamespace(release_major=70), plugins=list)
    monkeypatch.setattr(vs, "core", core)
    assert "vapoursynth-bestsource" in str(by_name("BestSource"))
    assert str(by_name("VapourSynth")).startswith("MISSING")
    assert str(by_name("L-SMASH Works")).startswith("optional")


def test_a_missing_ffmpeg_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    check = by_name("FFmpeg")
    assert (check.found, check.exit_code) == (False, 5)


@pytest.mark.parametrize(("code", "found"), [(0, True), (1, False)])
def test_vspipe_is_told_to_be_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, found: bool
) -> None:
    program = tmp_path / "vspipe"
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    check = by_name("vspipe")
    assert (check.found, check.exit_code) == (found, 0)
    assert found or "vapoursynth config" in str(check)
