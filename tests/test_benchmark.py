"""The benchmark: what it counts, and that every section has something to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import benchmark

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("name", "published"), [("fast", 66.5), ("base", 150.0), ("paper", 551.0)])
def test_multiply_adds_are_those_of_the_specification(name: str, published: float) -> None:
    assert benchmark.gigamacs(name, 180, 320) == pytest.approx(published, rel=0.025)  # without attention's matrices


def test_multiply_adds_are_linear_in_pixels() -> None:
    small, large = (benchmark.gigamacs("fast", 90 * scale, 160 * scale) for scale in (1, 2))
    assert large == pytest.approx(4 * small, rel=0.02)


def test_contenders_run_in_turns_and_medians_count() -> None:
    order: list[str] = []
    contenders = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = benchmark.in_turns(contenders, 3, torch.device("cpu"), repeat=2)
    assert order == ["a", "a", "b", "b"] * 4  # one round does not count
    assert set(timings) == {"a", "b"}
    middle = benchmark.middle([benchmark.Timing(wall=wall, cpu=-wall) for wall in (3.0, 1.0, 9.0)])
    assert (middle.wall, middle.cpu) == (3.0, -3.0)


def test_one_command_prints_one_table() -> None:
    where = ["--size", "16x24", "--device", "cpu", "--precision", "fp32", "--threads", "1"]
    how = ["--presets", "fast", "--rounds", "1", "--frames", "1"]
    what = ["--sections", "presets", "kernels", "streaming", "doubling", "deblurring"]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *where, *how, *what]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    assert told.startswith("24x16 to 96x64; ")
    for row in ("matrix product fp32", "fast fp32 plain torch", "fast fp32 8x12 window of 16 for 8"):
        assert any(line.startswith(row) for line in told.splitlines()), row
    assert "vsbasicvsrpp: not measured: it needs 64x64 pixels" in told
    assert "x the window" in told
    assert re.search(r"^x2 fmanetpp path fp32 .* \d+\.\dx fmanetpp fast", told, re.MULTILINE)
    assert re.search(r"^m2aenet deep, 0% restored .* \d+\.\d\dx all of it", told, re.MULTILINE)
    assert "machine load" in told
