"""The kernels for CUDA against their twins: in Triton's interpreter here, and with `-m gpu` on a CUDA device."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.projection import feed_forward_reference, squared_projection_reference
from vsfmanet.ops.warp import warp_neighbours_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (4e-3, 4e-3)}  # (atol, rtol)
TYPES = [torch.float32, torch.bfloat16] if INTERPRETED else list(TOLERANCE)
WARP_TOLERANCE = {**TOLERANCE, torch.float32: (5e-5, 0.0)}
"""`grid_sample` rounds positions in units of half the image."""
SIZES = [(2, 5, 4), (1, 1, 6)] if INTERPRETED else [(2, 17, 13), (1, 1, 9), (1, 9, 1), (1, 360, 640)]

on_gpu = pytest.mark.gpu
runnable = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no CUDA device; run in Triton's interpreter by its own test",
)


@pytest.fixture(autouse=True)
def _whole_mantissas(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 means fp32 in the twins' convolutions too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def close(actual: Tensor, expected: Tensor, tolerance: dict[torch.dtype, tuple[float, float]] = TOLERANCE) -> None:
    atol, rtol = tolerance[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def test_the_kernels_run_in_tritons_interpreter() -> None:
    pytest.importorskip("triton", reason="comes with torch's wheels for CUDA")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d\d passed", done.stdout)
    assert "skipped" not in done.stdout


@pytest.mark.skipif(INTERPRETED, reason="of compiled kernels")
def test_kernels_that_do_not_run_are_left_to_torch_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("triton", reason="comes with torch's wheels for CUDA")
    from vsfmanet.kernels import cuda_kernels

    cuda_kernels.cache_clear()
    with caplog.at_level(logging.WARNING, "vsfmanet.kernels"):
        # Compiled kernels refuse the memory of a CPU.
        assert [cuda_kernels(torch.device("cpu"), torch.float32) for _ in range(2)] == [None, None]
    assert len(caplog.records) == 1
    assert "kernels are not usable on cpu, torch computes in their place" in caplog.text
    cuda_kernels.cache_clear()


@pytest.mark.skipif(INTERPRETED, reason="of compiled kernels")
def test_the_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="comes with torch's wheels for CUDA")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vsfmanet.kernels import gpu

    sizes = {"pixels": "i32", "height": "i32", "width": "i32"}
    images = dict.fromkeys(("feat", "next_feat", "previous_feat", "image", "out"), "*bf16")
    types = {**images, **dict.fromkeys(("flow", "weight", "bias", "squares"), "*fp32"), **sizes, "epsilon": "fp32"}
    constants = {"CHANNELS": 12, "HALF": 6, "GROUPS": 5, "PIXELS": 16, "WIDE": 16}
    for kernel in (gpu._warp, gpu._gated, gpu._squares, gpu._norm):
        # Triton makes constants of arguments that are 1, which is another kernel: here the part of an image.
        given = {name: constants.get(name, 1) for name in kernel.arg_names if name not in types}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=given)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32))
        assert made.asm["cubin"]


@on_gpu
@runnable
@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_that_agree_with_their_twins_are_taken(dtype: torch.dtype) -> None:
    from vsfmanet.kernels import cuda_kernels, gpu

    assert cuda_kernels(torch.device(DEVICE), dtype) is gpu


@on_gpu
@runnable
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (7, 3), (1, 1)])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_warp_equals_its_twin(dtype: torch.dtype, channels: int, groups: int, size: tuple[int, int, int]) -> None:
    from vsfmanet.kernels import gpu

    torch.manual_seed(0)
    n, h, w = size
    feat, *neighbours = torch.rand(3, n, channels, h, w, device=DEVICE).to(dtype)
    pair = (neighbours[0], neighbours[1])
    flow = torch.randn(n, 6 * groups, h, w, device=DEVICE) * 2
    found = gpu.warp_neighbours(feat, pair, flow, groups, (0, 0))
    close(found, warp_neighbours_reference(feat, pair, flow, groups), WARP_TOLERANCE)
    assert found.is_contiguous(memory_format=torch.channels_last)


@on_gpu
@runnable
@torch.inference_mode()
def test_the_warp_of_a_part_is_that_part_of_the_warp() -> None:
    from vsfmanet.kernels import gpu

    torch.manual_seed(0)
    feat, *neighbours = torch.rand(3, 1, 6, 11, 12, device=DEVICE)
    pair, flow = (neighbours[0], neighbours[1]), torch.randn(1, 12, 11, 12, device=DEVICE) * 4
    part = (..., slice(3, 8), slice(2, 12))
    close(
        gpu.warp_neighbours(feat[part], pair, flow[part], 2, (3, 2)),
        warp_neighbours_reference(feat, pair, flow, 2)[part],
        WARP_TOLERANCE,
    )


@on_gpu
@runnable
@pytest.mark.parametrize("reach", [1e9, float("inf"), float("nan")])
@torch.inference_mode()
def test_flow_far_outside_repeats_the_border_and_no_number_is_read_at_the_first_pixel(reach: float) -> None:
    from vsfmanet.kernels import gpu

    feat, *neighbours = torch.rand(3, 1, 4, 6, 5, device=DEVICE)
    flow = torch.zeros(1, 12, 6, 5, device=DEVICE)
    flow[:, 0::3], flow[:, 1::3], flow[:, 2::3] = reach, -reach, 100.0  # far right, far up, seen
    out = gpu.warp_neighbours(feat, (neighbours[0], neighbours[1]), flow, 2, (0, 0))
    column = 0 if reach != reach else -1
    for image, part in zip(neighbours, out[:, 4:].split(4, dim=1), strict=True):
        torch.testing.assert_close(part, image[..., :1, column, None].expand_as(image))


@on_gpu
@runnable
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [2, 26])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_projections_equal_their_twins(dtype: torch.dtype, channels: int, size: tuple[int, int, int]) -> None:
    from vsfmanet.kernels import gpu

    torch.manual_seed(0)
    n, h, w = size
    x = torch.randn(n, channels, h, w, device=DEVICE).to(dtype)
    pointwise = torch.eye(channels, device=DEVICE)[:, :, None, None].to(dtype)  # nothing is rounded between the two
    weight = (torch.randn(channels, 1, 3, 3, device=DEVICE) / 3).to(dtype)
    exact = x.float(), pointwise.float(), weight.float()
    reduce = torch.eye(channels // 2, device=DEVICE)[:, :, None, None].to(dtype)
    shortcut = torch.randn(n, channels // 2, h, w, device=DEVICE).to(dtype)
    expected = feed_forward_reference(shortcut.float(), *exact, reduce.float()).to(dtype)
    close(gpu.feed_forward(shortcut, x, pointwise, weight, reduce), expected)
    out, squares = gpu.squared_projection(x, pointwise, weight, channels // 2)
    close(out, squared_projection_reference(*exact, 1)[0].to(dtype))
    # What was written is what was squared, whatever the type.
    torch.testing.assert_close(squares, out[:, : channels // 2].double().square().sum((2, 3)).float())


@on_gpu
@runnable
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_products_of_channels_equal_their_twin(dtype: torch.dtype, size: tuple[int, int, int]) -> None:
    from vsfmanet.kernels import gpu

    torch.manual_seed(0)
    n, h, w = size
    query, key = (torch.rand(2, n, 12, h, w, device=DEVICE) + 1).to(dtype)
    found = gpu.head_grams(query, key, 3)
    assert found.dtype is torch.float32
    rtol = 2e-2 if INTERPRETED and dtype is not torch.float32 else 1e-4  # the CPU gives sums in the type
    torch.testing.assert_close(found, head_grams_reference(query.double(), key.double(), 3), atol=0, rtol=rtol)


@on_gpu
@runnable
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 12, 27])
@torch.inference_mode()
def test_the_pixel_norm_equals_its_twin(dtype: torch.dtype, channels: int) -> None:
    from vsfmanet.kernels import gpu

    torch.manual_seed(0)
    x = (torch.randn(2, channels, 7, 9, device=DEVICE) * 3 + 1).to(dtype)
    weight, bias = torch.randn(2, channels, device=DEVICE).to(dtype)
    expected = pixel_norm_reference(x.float(), weight.float(), bias.float(), 1e-5).to(dtype)
    close(gpu.pixel_norm(x, weight, bias, 1e-5), expected)
