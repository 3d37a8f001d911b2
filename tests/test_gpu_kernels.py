"""The kernels for CUDA against their twins: compiled for the host here, and with `-m gpu` on a CUDA device."""

from __future__ import annotations

import logging
import mmap
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda_host import ARCHITECTURES, Host, compiled, host, signatures
from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.colour import MATRICES, Coding
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.path import PathPlaces, path_cells_reference
from vsfmanet.ops.projection import feed_forward_reference, squared_projection_reference
from vsfmanet.ops.skip import add_skip_reference
from vsfmanet.ops.warp import warp_neighbours_reference

gpu = pytest.importorskip("vsfmanet.kernels.gpu", reason="needs CuPy", exc_type=ImportError)
planes = pytest.importorskip("vsfmanet.kernels.planes", reason="needs CuPy", exc_type=ImportError)

FAMILIES: tuple[Literal["rgb", "gray"], ...] = ("rgb", "gray")

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2), torch.float16: (4e-3, 4e-3)}  # (atol, rtol)
TYPES = list(TOLERANCE)
WARP_TOLERANCE = {**TOLERANCE, torch.float32: (5e-5, 0.0)}
"""`grid_sample` rounds positions in units of half the image."""
SIZES = [(2, 17, 13), (1, 1, 9), (1, 9, 1), (3, 1, 1), (1, 5, 270)]
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the kernels run: on the host if that is the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # fp32 means fp32 in the twins too
    if request.param == "cpu":
        monkeypatch.setattr(gpu, "launch", host().launch)
    with torch.inference_mode():
        yield request.param


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The kernels on the host."""
    monkeypatch.setattr(gpu, "launch", host().launch)
    with torch.inference_mode():
        yield host()


def close(actual: Tensor, expected: Tensor, tolerance: dict[torch.dtype, tuple[float, float]] = TOLERANCE) -> None:
    atol, rtol = tolerance[actual.dtype]
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, equal_nan=True)


def places_of(grid: int, size: int) -> PathPlaces:
    return PathPlaces(
        own_reach=3.0, own_count=13, neighbour_reach=2.0, neighbour_count=5, unit=4.0, grid=grid, size=size
    )


def every_kernel() -> None:
    """Launch every kernel, with odd sizes and channels, and with more than one block."""
    torch.manual_seed(0)
    for bits in (8, 10):
        for subsampling in ((0, 0), (1, 1), (2, 0)):
            coding = Coding(family="yuv", bits=bits, full=False, subsampling=subsampling, location=2)
            planes.decode(coding, planes.encode(coding, torch.randn(3, 18, 68)), 18, 68)
        coding = Coding(family="gray", bits=bits, full=True)
        planes.decode(coding, planes.encode(coding, torch.rand(3, 1, 1)), 1, 1)
    for dtype in TYPES:
        for channels, heads, n, h, w in ((6, 3, 2, 3, 5), (24, 3, 1, 5, 66), (132, 2, 1, 1, 1)):
            feat = torch.randn(n, channels, h, w).to(dtype)
            mix, taps = torch.randn(channels, channels, 1, 1).to(dtype), torch.randn(channels, 1, 3, 3).to(dtype)
            flow = torch.randn(n, 18, h, w) * torch.tensor([3.0, torch.nan, 1e9]).repeat(6)[:, None, None]
            gpu.warp_neighbours(feat, (feat, feat), flow, 3, (0, 0))
            gpu.feed_forward(feat, feat, mix, taps, mix[:, : channels // 2])
            gpu.squared_projection(feat, mix, taps, 2)
            gpu.head_grams(feat, feat, heads)
            gpu.pixel_norm(feat, taps[:, 0, 0, 0], taps[:, 0, 0, 0], 1e-5)
            gpu.add_skip(feat[:, :3].float(), feat[:, :3], 1, 1)
            gpu.add_skip(feat[:, :3].float(), feat[:, :3].repeat(1, 4, 1, 1), 2, 2)
            for grid, side in ((1, 1), (4, 2), (4, 4)):
                image = torch.rand(n, 3, grid * h + 2, grid * w + 1)
                gpu.path_cells((image, image, image), flow[:, 1:7], places_of(grid, side), (2, 1), dtype)


def test_every_kernel_reads_and_writes_what_is_its_own(on_host: Host, tmp_path: Path) -> None:
    """Under sanitizers, with buffers of exact sizes. The last launch reads beyond them, which has to be found."""
    on_host.launched.clear()
    on_host.journal = []
    try:
        every_kernel()
        launches = [*on_host.journal]
    finally:
        on_host.journal = None
    assert on_host.launched == set(on_host._signatures)  # no kernel has been forgotten
    x, short = torch.rand(1, 4, 5, 6), torch.rand(4)
    arguments = (x, short, short, x.clone(), 1e-5, 30, 5, 30)  # of four channels
    wrong = on_host.noted("pixel_norm_float32_1", [1, 1, 1], 2000, arguments, gpu.packed(arguments))
    done = on_host.sanitized(launches, tmp_path)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[:3000]
    done = on_host.sanitized([*launches[:3], wrong], tmp_path)
    assert "heap-buffer-overflow" in done.stderr


def test_kernels_that_do_not_run_are_left_to_torch_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    from vsfmanet.kernels import cuda_kernels

    cuda_kernels.cache_clear()
    with caplog.at_level(logging.WARNING, "vsfmanet.kernels"):
        # There is no such device here, or no kernel for its memory.
        assert [cuda_kernels(torch.device("cpu"), torch.float32) for _ in range(2)] == [None, None]
    assert len(caplog.records) == 1
    assert "kernels are not usable on cpu, torch computes in their place" in caplog.text
    cuda_kernels.cache_clear()


def test_without_cupy_torch_computes_and_one_warning_names_the_command(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vsfmanet import devices, kernels

    cached = (devices.find_cupy, kernels.cuda_kernels, kernels.cuda_plane_kernels, kernels.gpu_modules)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for each in cached:
        each.cache_clear()
    with caplog.at_level(logging.WARNING, "vsfmanet"):
        assert [kernels.cuda_kernels(torch.device("cuda", 0), dtype) for dtype in TYPES] == [None] * 3
        assert kernels.cuda_plane_kernels(torch.device("cuda", 0), torch.uint8) is None
    assert [record.message for record in caplog.records] == [
        "CuPy is not installed: CUDA runs in plain torch, without this package's kernels; "
        'pip install "vsfmanet[cuda12]"'
    ]
    for each in cached:
        each.cache_clear()


def test_cupy_allocates_from_torchs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    from vsfmanet import devices

    done: list[tuple[object, ...]] = []

    def note(*given: object) -> int:
        done.append(given)
        return 4096

    monkeypatch.setattr(torch.cuda, "caching_allocator_alloc", note)
    monkeypatch.setattr(torch.cuda, "caching_allocator_delete", note)
    chosen: list[Any] = []
    monkeypatch.setattr(cupy.cuda, "set_allocator", chosen.append)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda device: SimpleNamespace(ptr=77))
    made: list[Any] = []

    def allocator(*functions: object) -> object:
        made.extend(functions)
        return SimpleNamespace(malloc="malloc")

    monkeypatch.setattr(cupy.cuda.memory, "PythonFunctionAllocator", allocator)
    devices.share_memory(cupy)
    assert chosen == ["malloc"]
    allocate, release = made
    assert allocate(1000, 1) == 4096
    release(4096, 1)
    assert done == [(1000, 1, 77), (4096,)]


@pytest.mark.parametrize("dtype", TYPES)
def test_kernels_that_agree_with_their_twins_are_taken(dtype: torch.dtype, device: str) -> None:
    from vsfmanet.kernels import cuda_kernels, cuda_plane_kernels

    for codes in (torch.uint8, torch.uint16):
        cuda_plane_kernels.cache_clear()
        assert cuda_plane_kernels(torch.device(device), codes) is planes
        cuda_plane_kernels.cache_clear()

    cuda_kernels.cache_clear()
    assert cuda_kernels(torch.device(device), dtype) is gpu
    cuda_kernels.cache_clear()


@pytest.mark.parametrize("dtype", [*TYPES, torch.uint8, torch.uint16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_compile_for_gpus_that_are_not_there(architecture: int, dtype: torch.dtype) -> None:
    cubin = compiled(gpu.source(dtype), architecture)
    for kernel in signatures(gpu.source(dtype)):
        assert kernel.name.encode() in cubin


def test_a_source_with_a_fault_does_not_compile() -> None:
    with pytest.raises(AssertionError, match="undefined"):
        compiled(gpu.source(torch.float16) + "KERNEL wrong(int x) { y = x; }", 80)


def test_a_launch_passes_addresses_and_numbers_on_torchs_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []

    class Module:
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            assert "OF_TYPE(Half, float16)" in code

        def get_function(self, name: str) -> object:
            return lambda grid, block, args, *, shared_mem: done.append((name, grid, block, args, shared_mem))

    def shared(stream: Any) -> object:
        done.append(stream.__cuda_stream__())
        return nullcontext()

    cuda = SimpleNamespace(Stream=SimpleNamespace(from_external=shared))
    monkeypatch.setattr(gpu, "cupy", SimpleNamespace(RawModule=Module, cuda=cuda))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for cached in (gpu._module, gpu._kernel):
        cached.cache_clear()
    x = torch.rand(1, 2, 3, 4).half()
    gpu.launch("some_float16", x, (3, 2), 100, x, 5, 0.5)
    for cached in (gpu._module, gpu._kernel):
        cached.cache_clear()
    stream, (name, grid, block, arguments, floats) = done
    assert stream == (0, 77)
    assert (name, grid, block, floats) == ("some_float16", (3, 2), (256,), 400)
    assert arguments == (x.data_ptr(), 5, 0.5)
    assert [each.dtype for each in arguments] == [np.uint64, np.int64, np.float32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "groups"), [(12, 3), (7, 3), (1, 1), (16, 1), (12, 5), (300, 7)])
@pytest.mark.parametrize("size", SIZES)
def test_the_warp_equals_its_twin(
    device: str, dtype: torch.dtype, channels: int, groups: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, h, w = size
    feat, *neighbours = torch.rand(3, n, channels, h, w, device=device).to(dtype)
    pair = (neighbours[0], neighbours[1])
    flow = torch.randn(n, 6 * groups, h, w, device=device) * 2
    found = gpu.warp_neighbours(feat, pair, flow, groups, (0, 0))
    close(found, warp_neighbours_reference(feat, pair, flow, groups), WARP_TOLERANCE)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_warp_of_a_part_is_equal_to_that_part_of_the_warp(device: str) -> None:
    torch.manual_seed(0)
    feat, *neighbours = torch.rand(3, 1, 6, 11, 12, device=device)
    pair, flow = (neighbours[0], neighbours[1]), torch.randn(1, 12, 11, 12, device=device) * 4
    part = (..., slice(3, 8), slice(2, 12))
    close(
        gpu.warp_neighbours(feat[part], pair, flow[part], 2, (3, 2)),
        warp_neighbours_reference(feat, pair, flow, 2)[part],
        WARP_TOLERANCE,
    )


@pytest.mark.parametrize("reach", [1e9, float("inf"), float("nan")])
@pytest.mark.parametrize("channels", [4, 8])
def test_flow_far_outside_is_equal_to_the_border_and_no_number_to_the_first_pixel(
    device: str, reach: float, channels: int
) -> None:
    feat, *neighbours = torch.rand(3, 1, channels, 6, 5, device=device)
    flow = torch.zeros(1, 12, 6, 5, device=device)
    flow[:, 0::3], flow[:, 1::3], flow[:, 2::3] = reach, -reach, 100.0  # far right, far up, seen
    out = gpu.warp_neighbours(feat, (neighbours[0], neighbours[1]), flow, 2, (0, 0))
    column = 0 if reach != reach else -1
    for image, part in zip(neighbours, out[:, channels:].split(channels, dim=1), strict=True):
        torch.testing.assert_close(part, image[..., :1, column, None].expand_as(image))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [2, 26, 16, 200])
@pytest.mark.parametrize("size", SIZES)
def test_the_projections_equal_their_twins(
    device: str, dtype: torch.dtype, channels: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, h, w = size
    x = torch.randn(n, channels, h, w, device=device).to(dtype)
    pointwise = torch.eye(channels, device=device)[:, :, None, None].to(dtype)  # nothing is rounded between the two
    weight = (torch.randn(channels, 1, 3, 3, device=device) / 3).to(dtype)
    exact = x.float(), pointwise.float(), weight.float()
    reduce = torch.eye(channels // 2, device=device)[:, :, None, None].to(dtype)
    shortcut = torch.randn(n, channels // 2, h, w, device=device).to(dtype)
    expected = feed_forward_reference(shortcut.float(), *exact, reduce.float()).to(dtype)
    close(gpu.feed_forward(shortcut, x, pointwise, weight, reduce), expected)
    out, squares = gpu.squared_projection(x, pointwise, weight, channels // 2)
    close(out, squared_projection_reference(*exact, 1)[0].to(dtype))
    # What was written is what was squared, whatever the type.
    torch.testing.assert_close(squares, out[:, : channels // 2].double().square().sum((2, 3)).float())


@torch.inference_mode()
def test_the_sums_of_squares_of_a_4k_frame_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    monkeypatch.setattr(gpu, "launch", lambda name, x, grid, shared, *arguments: held.extend(arguments))
    with torch.device("meta"):
        x, pointwise, depthwise = torch.empty(1, 64, 2160, 3840), torch.empty(192, 64, 1, 1), torch.empty(192, 1, 3, 3)
        _, sums = gpu.squared_projection(x.half(), pointwise.half(), depthwise.half(), 128)
    assert sums.shape == (1, 128)
    assert held[3].shape[2] == 192
    assert held[3].nbytes < 8 * 2**20  # a row for every few pixels took 759 MiB


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("channels", "heads"), [(12, 3), (64, 4), (108, 6), (7, 1), (160, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_products_of_channels_equal_their_twin(
    device: str, dtype: torch.dtype, channels: int, heads: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, h, w = size
    query, key = (torch.rand(2, n, channels, h, w, device=device) + 1).to(dtype)
    found = gpu.head_grams(query, key, heads)
    assert found.dtype is torch.float32
    expected = head_grams_reference(query.double(), key.double(), heads)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_channels_of_a_wider_image_equal_those_of_a_copy(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 23, 9, 11, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    query, key, _ = wide.split((9, 9, 5), dim=1)
    assert torch.equal(gpu.head_grams(query, key, 3), gpu.head_grams(query.contiguous(), key.contiguous(), 3))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("grid", "side"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 1), (1, 1, 70), (3, 9, 1)])
def test_samples_along_the_blur_equal_their_twin(
    device: str, dtype: torch.dtype, grid: int, side: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, rows, columns = size
    motion, places = torch.randn(n, 6, rows, columns, device=device) * 3, places_of(grid, side)
    for more, origin in ((0, (0, 0)), (5, (2, 4))):  # the whole frame, and a tile of it
        own, *others = torch.rand(3, n, 3, rows * grid + more, columns * grid + more, device=device)
        images = (own, others[0], others[1])
        found = gpu.path_cells(images, motion, places, origin, dtype)
        close(found, path_cells_reference(images, motion, places, origin, dtype), WARP_TOLERANCE)
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [1e9, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("channel", range(6))
def test_samples_far_outside_repeat_the_border_and_no_number_reads_the_first_pixel(
    device: str, value: float, channel: int
) -> None:
    own, *others = torch.rand(3, 1, 3, 30, 26, device=device)
    motion = torch.randn(1, 6, 12, 10, device=device)
    motion[:, channel, 3:6, 2:5] = value
    motion[:, channel, 8:, 2:5] = -value
    arguments = ((own, others[0], others[1]), motion, places_of(2, 2), (5, 4), torch.float32)
    close(gpu.path_cells(*arguments), path_cells_reference(*arguments), WARP_TOLERANCE)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 12, 27, 64, 513])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixel_norm_equals_its_twin(
    device: str, dtype: torch.dtype, channels: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, h, w = size
    x = (torch.randn(n, channels, h, w, device=device) * 3 + 1).to(dtype)
    weight, bias = torch.randn(2, channels, device=device).to(dtype)
    expected = pixel_norm_reference(x.float(), weight.float(), bias.float(), 1e-5).to(dtype)
    close(gpu.pixel_norm(x, weight, bias, 1e-5), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_no_number_stays_none_and_infinity_is_equal_to_itself(device: str, dtype: torch.dtype) -> None:
    feat, *neighbours = torch.rand(3, 1, 4, 5, 6, device=device).to(dtype)
    feat[0, 1, 2, 3], feat[0, 2, 0, 0] = torch.nan, -torch.inf
    neighbours[1][0, 0, 4, 4] = torch.nan
    pair, flow = (neighbours[0], neighbours[1]), torch.zeros(1, 6, 5, 6, device=device)
    warped = gpu.warp_neighbours(feat, pair, flow, 1, (0, 0))
    assert torch.equal(warped[:, :4].isnan(), feat.isnan())
    assert torch.equal(warped[:, :4].isinf(), feat.isinf())
    assert warped[0, 8, 4, 4].isnan()
    assert not warped[:, 4:8].isnan().any()
    normed = gpu.pixel_norm(feat, torch.ones(4, device=device), torch.zeros(4, device=device), 1e-5)
    assert torch.equal(normed.isnan().any(dim=1), ~feat.isfinite().all(dim=1))


@pytest.mark.parametrize("dtype", TYPES)
def test_no_result_depends_on_the_order_of_threads(on_host: Host, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    feat, following, previous = torch.randn(3, 2, 12, 9, 19).to(dtype)
    flow, weight = torch.randn(2, 18, 9, 19), torch.randn(12, 1, 3, 3).to(dtype)
    mix = torch.randn(12, 12, 1, 1).to(dtype)

    def results() -> list[Tensor]:
        return [
            gpu.warp_neighbours(feat, (following, previous), flow, 3, (0, 0)),
            gpu.feed_forward(feat, feat, mix, weight, mix[:, :6]),
            *gpu.squared_projection(feat, mix, weight, 8),
            gpu.head_grams(feat, following, 3),
            gpu.pixel_norm(feat, weight[:, 0, 0, 0], weight[:, 0, 1, 1], 1e-5),
            gpu.path_cells((image, image, image), flow[:, :6], places_of(4, 2), (0, 0), dtype),
        ]

    image = torch.rand(2, 3, 36, 76)
    forwards = results()
    with on_host.backwards():
        assert all(torch.equal(one, other) for one, other in zip(results(), forwards, strict=True))


def sparse(count: int, dtype: torch.dtype) -> Tensor:
    """A vector of zeros that takes memory only where it is written to."""
    with tempfile.TemporaryFile() as file:
        file.truncate(count * dtype.itemsize)
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=dtype)


def test_pixels_beyond_two_to_the_31st_value_are_found(on_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, height, width = 4, 2**14 + 3, 2**16  # 4 * 2^30 values and some more, 12 * 2^30 in the result
    pixels = height * width
    feat = sparse(channels * pixels, torch.bfloat16)
    out, flow = sparse(3 * channels * pixels, torch.bfloat16), sparse(6 * pixels, torch.float32)
    last = torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16()
    feat[-channels:] = last
    monkeypatch.setattr(on_host, "first", (height * width // 256 - 1, 0, 0))
    on_host.launch(
        "warp_neighbours_bfloat16_4", feat, (pixels // 256, 2), 0,
        feat, feat, feat, flow, out, height, width, 0, 0, height, width, channels, 1,
    )  # fmt: skip
    assert torch.equal(out[-12:], torch.cat([last, last / 2, torch.zeros(4)]).bfloat16())  # a mask of 0 is half open

    taps = torch.zeros(9, channels)
    taps[4] = 1.0
    busy, columns = 1, 256
    monkeypatch.setattr(on_host, "first", (-(-height // 4) * (width // columns) - 1, 0, 0))
    squares = sparse(-(-height // 4) * (width // columns) * channels, torch.float32)
    blocks, sizes = (-(-height // 4) * (width // columns), 1), (height, width, channels, busy)
    on_host.launch("squared_bfloat16_4", feat, blocks, 1024, feat, taps, out, squares, *sizes)
    assert torch.equal(out[channels * pixels - channels : channels * pixels], last)
    assert torch.equal(squares[-channels:], last.float().square())
    image, gates = feat, torch.zeros(9, channels)
    gates[4] = 1.0
    half = (height, width, channels // 2, 2)
    monkeypatch.setattr(on_host, "first", (-(-height // 4) * (width // 128) - 1, 0, 0))
    on_host.launch("gated_bfloat16_1", image, (-(-height // 4) * (width // 128), 1), 0, image, gates, out, *half)
    gelu = torch.nn.functional.gelu(last[:2].float()) * last[2:].float()
    assert torch.equal(out[2 * pixels - 2 : 2 * pixels], gelu.bfloat16())

    monkeypatch.setattr(on_host, "first", (pixels // 32 - 1, 0, 0))
    one = torch.ones(4)
    on_host.launch(
        "pixel_norm_bfloat16_4", feat, (pixels // 32,), 32 * 5 + 2 * 256 + 64,
        feat, one, one * 0, out, 1e-5, pixels, channels, 32,
    )  # fmt: skip
    close(
        out[channels * pixels - channels : channels * pixels],
        torch.nn.functional.layer_norm(last.float(), (4,)).bfloat16(),
    )


def test_samples_of_pixels_beyond_two_to_the_31st_value_are_found(
    on_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = 2**14 + 4, 2**16  # 2^30 pixels and some more; 75 * 2^30 values in the result
    rows, pixels = height // 4, height * width
    image, motion = sparse(3 * pixels, torch.float32), sparse(6 * pixels // 16, torch.float32)
    out = sparse(75 * pixels, torch.bfloat16)
    image[-2:] = torch.tensor([0.25, 0.75])  # of the last channel
    motion[rows * width // 4 - 1] = -64.0  # blur of the last cell: to the left at the end of the exposure
    monkeypatch.setattr(on_host, "first", (height // 2 * (width // 128) - 1, 0, 0))
    arguments = (image, image, image, motion, out, height, width, 0, 0, height, width, 4, 2, 13, 5, 3.0, 2.0, 4.0)
    on_host.launch("path_cells_bfloat16", image, (height // 2 * (width // 128),), 9 * 256, *arguments)
    last = out[-300:].view(75, 4)[:, 3]
    expected = torch.zeros(75)
    expected[:6] = torch.tensor([-0.5, -0.5, 0.25, -64 / 68, 0, 4.1589])
    samples = expected[6:45].view(3, 13)[2]
    samples[:] = -0.75
    samples[:7] = 0.0  # beyond the border, and the pixel itself
    neighbours = expected[45:].view(2, 3, 5)[:, 2]
    neighbours[:] = -0.75
    neighbours[:, :3] = 0.0
    torch.testing.assert_close(last.float(), expected, atol=4e-3, rtol=4e-3)


def test_products_of_channels_far_apart_are_found(on_host: Host) -> None:
    step = 2**30
    wide = sparse(4 * step, torch.bfloat16)
    image = wide.as_strided((1, 4, 2, 2), (4 * step, 1, 2 * step, step))
    values = torch.randn(1, 4, 2, 2).bfloat16()
    image.copy_(values)
    found = gpu.head_grams(image, image, 1)
    torch.testing.assert_close(found, head_grams_reference(values.double(), values.double(), 1), atol=0, rtol=1e-5)


CODINGS = [
    *(
        Coding(family="yuv", bits=bits, matrix=9, full=False, subsampling=subsampling, location=location)
        for bits in (8, 16)
        for subsampling in [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 2)]
        for location in range(6)
    ),
    *(
        Coding(family="yuv", bits=bits, matrix=matrix, full=full, subsampling=(1, 1))
        for bits in (8, 10, 12)
        for full in (False, True)
        for matrix in MATRICES
    ),
    *(
        Coding(family=family, bits=bits, full=full)
        for family in FAMILIES
        for bits in (8, 9, 16)
        for full in (False, True)
    ),
]


@pytest.mark.parametrize(
    ("coding", "size"),
    list(zip(CODINGS, cycle([(44, 132), (8, 8), (16, 64), (36, 8), (20, 68)]), strict=False)),
    ids=str,
)
def test_planes_equal_their_twin(device: str, coding: Coding, size: tuple[int, int]) -> None:
    """Code values are as many apart as a last bit of fp32 decides; see `test_colour`."""
    height, width = size
    generator = torch.Generator().manual_seed(height)
    codes = torch.randint(0, 2**coding.bits, (coding.size(*size),), generator=generator)
    packed = codes.to(coding.dtype).to(device)
    rgb = coding.decode(packed, height, width)
    torch.testing.assert_close(planes.decode(coding, packed, height, width), rgb, atol=2e-6, rtol=0)
    wide = (torch.rand(3, height, width, generator=generator) * 1.4 - 0.2).to(device)
    for image in (wide, wide[None].contiguous(memory_format=torch.channels_last)[0]):
        found, expected = planes.encode(coding, image), coding.encode(image)
        assert found.dtype is expected.dtype
        off = (found.int() - expected.int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() <= (0.03 if coding.bits > 10 else 0.002)


@pytest.mark.parametrize("family", ["rgb", "gray"])
def test_planes_of_one_pixel_and_of_odd_sizes_equal_their_twin(device: str, family: Literal["rgb", "gray"]) -> None:
    coding = Coding(family=family, bits=10, full=True)
    for height, width in ((1, 1), (1, 67), (19, 1), (17, 65)):
        rgb = torch.rand(3, height, width, device=device)
        packed = planes.encode(coding, rgb)
        assert (packed.int() - coding.encode(rgb).int()).abs().max() <= 1
        decoded = planes.decode(coding, packed, height, width)
        torch.testing.assert_close(decoded, coding.decode(packed, height, width), atol=2e-6, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 17, 69), (2, 9, 64)])
def test_a_frame_that_is_not_finite_is_marked_equally(device: str, bad: float, place: tuple[int, int, int]) -> None:
    coding = Coding(family="yuv", bits=10, full=False, subsampling=(1, 1))
    rgb = torch.rand(3, 18, 70, device=device)
    assert planes.encode(coding, rgb)[-1].item() == 1
    rgb[place] = bad
    assert planes.encode(coding, rgb)[-1].item() == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("scale", "shuffle", "cells"), [(4, 4, 1), (2, 2, 1), (1, 1, 1), (4, 1, 4), (4, 16, 0), (2, 8, 0)]
)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 7), (1, 3, 70)])
def test_skip_and_shuffle_equal_their_twin(
    device: str, dtype: torch.dtype, scale: int, shuffle: int, cells: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    n, h, w = size
    lr = torch.rand(n, 3, h, w, device=device)
    rows, columns = (cells * h, cells * w) if cells else (-(-scale * h // shuffle), -(-scale * w // shuffle))
    residual = torch.randn(n, 3 * shuffle**2, rows, columns, device=device).to(dtype)
    found = gpu.add_skip(lr, residual, scale, shuffle)
    torch.testing.assert_close(found, add_skip_reference(lr, residual, scale, shuffle), atol=1e-6, rtol=1e-6)
