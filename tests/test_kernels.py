"""Every kernel against its twin in plain torch; and what happens without a compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_networks import TINY, awake, clip
from vsfmanet import kernels
from vsfmanet.errors import ShapeError
from vsfmanet.kernels import build
from vsfmanet.ops.depthwise import depthwise_squares_reference, gated_depthwise_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.warp import warp_neighbours_reference

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}  # (atol, rtol); bf16 rounds to 1 part in 256
WARP_TOLERANCE = {torch.float32: (5e-5, 0.0), torch.bfloat16: (2e-2, 2e-2)}
"""`grid_sample` rounds positions in units of half the image: by 2e-5 pixels where a side is 320."""
SIZES = [(2, 17, 13), (1, 1, 9), (1, 9, 1), (3, 1, 1), (1, 180, 320)]  # N, H, W

needs_kernels = pytest.mark.skipif(build.library() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def _as_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers every time; and the caller's environment decides nothing."""
    monkeypatch.delenv("VSFMANET_NO_KERNELS", raising=False)
    torch.manual_seed(0)


def close(actual: Tensor, expected: Tensor, tolerance: dict[torch.dtype, tuple[float, float]]) -> None:
    atol, rtol = tolerance[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def flow_of(n: int, groups: int, h: int, w: int, reach: float = 2.0) -> Tensor:
    return torch.randn(n, 6 * groups, h, w) * reach


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (7, 3), (5, 5), (108, 9), (1, 1)])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_warp_equals_its_twin(dtype: torch.dtype, channels: int, groups: int, size: tuple[int, int, int]) -> None:
    n, h, w = size
    feat, *neighbours = torch.rand(3, n, channels, h, w).to(dtype)
    flow = flow_of(n, groups, h, w)
    out = kernels.warp_neighbours(feat, (neighbours[0], neighbours[1]), flow, groups)
    expected = warp_neighbours_reference(feat, (neighbours[0], neighbours[1]), flow, groups)
    close(out, expected, WARP_TOLERANCE)
    assert out.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@torch.inference_mode()
def test_the_warp_reads_flow_and_features_however_they_lie() -> None:
    feat, *neighbours = torch.rand(3, 2, 6, 9, 11)
    flow = flow_of(2, 3, 9, 11)
    pair = (neighbours[0], neighbours[1])
    expected = kernels.warp_neighbours(feat, pair, flow, 3)
    assert torch.equal(
        kernels.warp_neighbours(feat, pair, flow.contiguous(memory_format=torch.channels_last), 3), expected
    )
    turned = flow.mT.contiguous().mT
    assert torch.equal(
        kernels.warp_neighbours(feat.contiguous(memory_format=torch.channels_last), pair, turned, 3), expected
    )
    still = torch.tensor([0.5, -1.0, 2.0]).repeat(6).view(1, -1, 1, 1).expand(2, -1, 9, 11)  # strides of zero
    expected = kernels.warp_neighbours(feat, pair, still.contiguous(), 3)
    assert torch.equal(kernels.warp_neighbours(feat, pair, still, 3), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (7, 3)])
@torch.inference_mode()
def test_the_warp_of_a_part_is_that_part_of_the_warp(dtype: torch.dtype, channels: int, groups: int) -> None:
    feat, *neighbours = torch.rand(3, 2, channels, 19, 23).to(dtype)
    pair, flow = (neighbours[0], neighbours[1]), flow_of(2, groups, 19, 23, reach=9.0)
    part = (..., slice(4, 13), slice(6, 23))
    for warp in (kernels.warp_neighbours, warp_neighbours_reference):
        found = warp(feat[part], pair, flow[part], groups, (4, 6))
        close(found, warp(feat, pair, flow, groups)[part], WARP_TOLERANCE)
    with pytest.raises(ShapeError, match=r"for a part at \(11, 6\)"):
        kernels.warp_neighbours(feat[part], pair, flow[part], groups, (11, 6))


@torch.inference_mode()
def test_neighbours_of_another_size_are_refused() -> None:
    feat, small = torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 7)
    with pytest.raises(ShapeError, match=r"neighbours must be \(1, 4, 8, 8\) each"):
        kernels.warp_neighbours(feat, (feat, small), torch.zeros(1, 12, 8, 8), 2)
    with pytest.raises(ShapeError, match="flow must be"):
        kernels.warp_neighbours(feat, (feat, feat), torch.zeros(1, 6, 8, 8), 2)


@needs_kernels
@pytest.mark.parametrize("reach", [1e3, 1e9, 1e30, float("inf")])
@torch.inference_mode()
def test_flow_far_outside_repeats_the_border(reach: float) -> None:
    feat, *neighbours = torch.rand(3, 1, 4, 6, 5)
    flow = torch.zeros(1, 12, 6, 5)
    flow[:, 0::3], flow[:, 1::3], flow[:, 2::3] = reach, -reach, 100.0  # far right, far up, seen
    out = kernels.warp_neighbours(feat, (neighbours[0], neighbours[1]), flow, 2)
    for image, part in zip([feat, *neighbours], out.split(4, dim=1), strict=True):
        corner = image if image is feat else image[..., :1, -1:].expand_as(image)
        torch.testing.assert_close(part, corner)


@needs_kernels
@torch.inference_mode()
def test_flow_that_is_no_number_reads_no_address_outside() -> None:
    feat = torch.rand(3, 1, 4, 6, 5)
    kernels.warp_neighbours(feat[0], (feat[1], feat[2]), torch.full((1, 12, 6, 5), torch.nan), 2)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [2, 26, 192])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_depthwise_kernels_equal_their_twins(dtype: torch.dtype, channels: int, size: tuple[int, int, int]) -> None:
    n, h, w = size
    x, weight = torch.randn(n, channels, h, w).to(dtype), (torch.randn(channels, 1, 3, 3) / 3).to(dtype)
    close(kernels.gated_depthwise(x, weight), gated_depthwise_reference(x.float(), weight.float()).to(dtype), TOLERANCE)
    out, squares = kernels.depthwise_squares(x, weight, channels // 2)
    expected, _ = depthwise_squares_reference(x, weight, channels // 2)
    close(out, expected, TOLERANCE)
    # What was written is what was squared, bf16 or not.
    torch.testing.assert_close(squares, out[:, : channels // 2].double().square().sum((2, 3)).float())


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 12, 64, 108])
@torch.inference_mode()
def test_the_pixel_norm_equals_its_twin(dtype: torch.dtype, channels: int) -> None:
    x = (torch.randn(2, channels, 7, 9) * 3 + 1).to(dtype)
    weight, bias = torch.randn(2, channels).to(dtype)
    expected = pixel_norm_reference(x.float(), weight.float(), bias.float(), 1e-5).to(dtype)
    close(kernels.pixel_norm(x, weight, bias, 1e-5), expected, TOLERANCE)


@needs_kernels
@torch.inference_mode()
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight = torch.randn(2, 12, 33, 20), torch.randn(12, 1, 3, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kernels.depthwise_squares(x, weight, 12)
        torch.set_num_threads(3)
        three = kernels.depthwise_squares(x, weight, 12)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@needs_kernels
def test_a_network_gives_the_same_with_and_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    network, lr = awake(TINY), clip(3)
    with torch.inference_mode():
        fast = network(lr).frames
        monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")
        assert kernels.kernels_for(lr) is None
        torch.testing.assert_close(fast, network(lr).frames, atol=1e-5, rtol=0)


def test_training_and_exports_run_the_twins() -> None:
    x = torch.rand(1, 2, 8, 8)
    assert kernels.kernels_for(x) is None  # gradients may be wanted
    with torch.inference_mode():
        assert kernels.kernels_for(x.half()) is None
        assert kernels.kernels_for(x.to("meta")) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.kernels_for(x) is None


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.library.cache_clear()
    try:
        with torch.inference_mode():
            x = torch.randn(1, 4, 8, 8)
            assert kernels.kernels_for(x) is None
            assert kernels.gated_depthwise(x, torch.randn(4, 1, 3, 3)).shape == (1, 2, 8, 8)
    finally:
        build.library.cache_clear()


@needs_kernels
def test_a_library_is_compiled_once_and_source_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    path = build._build(source, tmp_path / "cache")
    written = path.stat().st_mtime_ns
    assert build._build(source, tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == written
    assert list((tmp_path / "cache").iterdir()) == [path]  # nothing half-made is left
    source.write_text("this is no C++")
    with pytest.raises(subprocess.SubprocessError, match="failed"):
        build._build(source, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder("kernels") == tmp_path / "vsfmanet" / "kernels"
