"""Every kernel against its twin in plain torch; and what happens without a compiler."""

from __future__ import annotations

import ctypes
import subprocess
from itertools import islice
from pathlib import Path

import av
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fakes import ListSource
from tests.tiny import TINY, awake, clip
from vsfmanet import kernels
from vsfmanet.caches import private_folder
from vsfmanet.errors import ShapeError
from vsfmanet.kernels import build
from vsfmanet.networks.blocks import Conv3x3, Layers, leaky_relu
from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.path import PathPlaces, path_cells_reference
from vsfmanet.ops.projection import (
    add_product_reference,
    feed_forward_reference,
    squared_projection_reference,
)
from vsfmanet.ops.warp import warp_neighbours_reference
from vsfmanet.restorer import Restorer

EXAMPLE = Path(__file__).parent.parent / "scripts" / "examples" / "dragonfly.mkv"
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
@pytest.mark.parametrize(("heads", "own"), [(4, 16), (6, 18), (2, 5), (1, 33), (3, 1)])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_products_of_channels_equal_their_twin(
    dtype: torch.dtype, heads: int, own: int, size: tuple[int, int, int]
) -> None:
    n, h, w = size
    channels = heads * own
    lying = torch.randn(n, 3 * channels + 1, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    views = lying[:, 1 : channels + 1], lying[:, 2 * channels + 1 :]  # as a projection leaves query and key
    apart = torch.randn(n, channels, h, w).to(dtype), torch.randn(n, channels, h, w).to(dtype)
    for query, key in (views, apart):
        found = kernels.head_grams(query, key, heads)
        assert found.dtype is torch.float32
        expected = head_grams_reference(query.double(), key.double(), heads)
        torch.testing.assert_close(found, expected, atol=1e-5 * (h * w) ** 0.5, rtol=1e-5)


@torch.inference_mode()
def test_products_of_channels_in_half_floats_do_not_overflow() -> None:
    query, key = torch.rand(2, 1, 6, 300, 400).half() + 1  # sums beyond 100,000, where half floats end at 65504
    found = head_grams_reference(query, key, 2)
    expected = head_grams_reference(query.float(), key.float(), 2)
    assert expected.min() > 1e5
    torch.testing.assert_close(found, expected, atol=0, rtol=2e-3)


def projection(inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random weights of a pointwise and of a depthwise convolution."""
    return (torch.randn(outputs, inputs, 1, 1) / inputs**0.5).to(dtype), (torch.randn(outputs, 1, 3, 3) / 3).to(dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 2), (7, 26), (64, 192), (108, 216), (30, 130)])
@pytest.mark.parametrize("size", [(2, 17, 13), (1, 1, 9), (1, 9, 1), (3, 1, 1), (1, 70, 101)])
@torch.inference_mode()
def test_the_projections_equal_their_twins(
    dtype: torch.dtype, inputs: int, outputs: int, size: tuple[int, int, int]
) -> None:
    n, h, w = size
    wide, weights = torch.randn(n, 2 * inputs, h, w).to(dtype), projection(inputs, outputs, dtype)
    x = wide.contiguous(memory_format=torch.channels_last)[:, inputs:] if outputs % 4 else wide[:, inputs:]
    shortcut, reduce = torch.randn(n, inputs, h, w).to(dtype), projection(outputs // 2, inputs, dtype)[0]
    exact = x.float(), weights[0].float(), weights[1].float()
    restored = kernels.feed_forward(shortcut, x, *weights, reduce)
    close(restored, feed_forward_reference(shortcut.float(), *exact, reduce.float()).to(dtype), TOLERANCE)
    out, squares = kernels.squared_projection(x, *weights, outputs // 2)
    close(out, squared_projection_reference(*exact, 1)[0].to(dtype), TOLERANCE)
    # What was written is what was squared, bf16 or not.
    torch.testing.assert_close(squares, out[:, : outputs // 2].double().square().sum((2, 3)).float())
    assert restored.is_contiguous(memory_format=torch.channels_last)
    assert out.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 2), (7, 26), (96, 64), (108, 108), (30, 130)])
@pytest.mark.parametrize("size", [(2, 17, 13), (1, 1, 1), (1, 1, 9), (1, 40, 101)])
@torch.inference_mode()
def test_sums_with_a_shortcut_equal_their_twins(
    dtype: torch.dtype, inputs: int, outputs: int, size: tuple[int, int, int]
) -> None:
    n, h, w = size
    shortcut, wide = torch.randn(n, outputs, h, w).to(dtype), torch.randn(n, 3 * inputs, h, w).to(dtype)
    matrix = (torch.randn(n, inputs, outputs) / inputs**0.5).to(dtype)
    for x in (wide[:, inputs : 2 * inputs], wide.contiguous(memory_format=torch.channels_last)[:, 2 * inputs :]):
        exact = shortcut.float(), x.float()
        expected = add_product_reference(*exact, matrix.float()).to(dtype)
        close(kernels.add_product(shortcut, x, matrix), expected, TOLERANCE)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 12, 64, 108])
@torch.inference_mode()
def test_the_pixel_norm_equals_its_twin(dtype: torch.dtype, channels: int) -> None:
    x = (torch.randn(2, channels, 7, 9) * 3 + 1).to(dtype)
    weight, bias = torch.randn(2, channels).to(dtype)
    expected = pixel_norm_reference(x.float(), weight.float(), bias.float(), 1e-5).to(dtype)
    close(kernels.pixel_norm(x, weight, bias, 1e-5), expected, TOLERANCE)


def places_of(grid: int, size: int) -> PathPlaces:
    return PathPlaces(
        own_reach=3.0, own_count=13, neighbour_reach=2.0, neighbour_count=5, unit=4.0, grid=grid, size=size
    )


def three(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """A frame, the next and the previous one."""
    return torch.rand(shape), torch.rand(shape), torch.rand(shape)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("grid", "side"), [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 1), (1, 1, 9), (3, 9, 1), (1, 40, 75)])
@torch.inference_mode()
def test_samples_along_the_blur_equal_their_twin(
    dtype: torch.dtype, grid: int, side: int, size: tuple[int, int, int]
) -> None:
    n, rows, columns = size
    motion, places = torch.randn(n, 6, rows, columns) * 3, places_of(grid, side)
    for more, origin in ((0, (0, 0)), (5, (2, 4))):  # the whole frame, and a tile of it
        images = three(n, 3, rows * grid + more, columns * grid + more)
        found = kernels.path_cells(images, motion, places, origin, dtype)
        close(found, path_cells_reference(images, motion, places, origin, dtype), WARP_TOLERANCE)
        assert found.shape == (n, 75 * side**2, rows * grid // side, columns * grid // side)
        assert found.is_contiguous(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("far", [1.0, 100.0])
@torch.inference_mode()
def test_samples_along_the_blur_of_a_tile_are_those_of_the_frame(far: float) -> None:
    images, motion, places = three(2, 3, 37, 50), torch.randn(2, 6, 37, 50) * far, places_of(1, 1)
    part = (..., slice(9, 21), slice(17, 40))
    whole = kernels.path_cells(images, motion, places, (0, 0), torch.float32)
    assert torch.equal(kernels.path_cells(images, motion[part], places, (9, 17), torch.float32), whole[part])


@needs_kernels
@pytest.mark.parametrize("value", [1e9, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("channel", range(6))
@torch.inference_mode()
def test_samples_far_outside_repeat_the_border_and_no_number_reads_the_first_pixel(value: float, channel: int) -> None:
    images, motion, places = three(1, 3, 30, 26), torch.randn(1, 6, 12, 10), places_of(2, 2)
    motion[:, channel, 3:6, 2:5] = value
    motion[:, channel, 8:, 2:5] = -value
    for origin in ((0, 0), (5, 4)):
        found = kernels.path_cells(images, motion, places, origin, torch.float32)
        expected = path_cells_reference(images, motion, places, origin, torch.float32)
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5, equal_nan=True)


@needs_kernels
@torch.inference_mode()
def test_samples_along_the_blur_depend_on_neither_layout_nor_threads() -> None:
    images, motion, places = three(2, 3, 24, 40), torch.randn(2, 6, 6, 10) * 5, places_of(4, 2)
    expected = kernels.path_cells(images, motion, places, (0, 0), torch.bfloat16)
    lying = [image.contiguous(memory_format=torch.channels_last) for image in images]
    turned = motion.contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = kernels.path_cells((lying[0], lying[1], lying[2]), turned, places, (0, 0), torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "origin"),
    [((1, 6, 4, 6), (0, 0)), ((1, 6, 4, 5), (1, 0)), ((1, 6, 3, 5), (0, -1)), ((1, 5, 4, 5), (0, 0)),
     ((2, 6, 4, 5), (0, 0))],
)  # fmt: skip
@torch.inference_mode()
def test_motion_that_does_not_fit_the_images_is_refused(shape: tuple[int, ...], origin: tuple[int, int]) -> None:
    images = three(1, 3, 8, 10)
    with pytest.raises(ShapeError, match=r"images must be \(N, 3, H, W\) each"):
        kernels.path_cells(images, torch.zeros(shape), places_of(2, 1), origin, torch.float32)
    with pytest.raises(ShapeError, match="and motion"):
        kernels.path_cells((images[0], images[1], images[2][..., 1:]), torch.zeros(1, 6, 4, 5), places_of(2, 1), (0, 0),
                           torch.float32)  # fmt: skip


CONV_SIZES = [(2, 17, 13), (1, 1, 1), (1, 1, 9), (1, 9, 1), (3, 4, 4), (1, 61, 130)]


def conv_error(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 1) -> float:
    """How far the kernel is off, as a part of what is right: the root of the mean of squares."""
    out = kernels.conv3x3([x], weight, bias, padding)
    assert out.dtype is x.dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    return float((out - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@needs_kernels
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(16, 16), (67, 24), (108, 108), (64, 3), (33, 65), (192, 130), (40, 1)]
)
@pytest.mark.parametrize("size", CONV_SIZES)
@torch.inference_mode()
def test_the_convolution_equals_torch(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    most: float,
    inputs: int,
    outputs: int,
    size: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(kernels.cpu, "convolves", lambda x, weight: True)  # where AMX multiplies too
    n, h, w = size
    x, weight = torch.randn(n, inputs, h, w).to(dtype), (torch.randn(outputs, inputs, 3, 3) / inputs**0.5).to(dtype)
    assert conv_error(x, weight, torch.randn(outputs).to(dtype)) < most
    assert conv_error(x.contiguous(memory_format=torch.channels_last)[..., :1], weight, None) < most
    if min(h, w) > 2:
        assert conv_error(x, weight, None, padding=0) < most


@needs_kernels
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 8), (8, 3), (15, 40), (12, 1)])
@pytest.mark.parametrize("size", [(2, 17, 14), (1, 1, 2), (1, 9, 2), (1, 61, 130)])
@torch.inference_mode()
def test_a_convolution_of_few_channels_runs_on_pairs_of_pixels(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, size: tuple[int, int, int]
) -> None:
    n, h, w = size
    x, bias = torch.randn(n, inputs, h, w), torch.randn(outputs)
    weight = torch.randn(outputs, inputs, 3, 3) / inputs**0.5
    expected = F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.0)
    monkeypatch.setattr(kernels.cpu, "conv3x3_reference", None)
    torch.testing.assert_close(kernels.conv3x3([x], weight, bias, slope=0.0), expected, atol=2e-5, rtol=1e-5)
    assert conv_error(x, weight, bias) < 2e-6
    assert conv_error(x.contiguous(memory_format=torch.channels_last), weight, None) < 2e-6


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("widths", [(64, 24), (32, 16, 48, 3), (12, 30), (108, 54)])
@torch.inference_mode()
def test_parts_are_convolved_as_if_they_were_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, widths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(kernels.cpu, "convolves", lambda x, weight: True)
    parts = [torch.randn(2, width, 9, 61).to(dtype) for width in widths]
    weight, whole = torch.randn(20, sum(widths), 3, 3).to(dtype), torch.cat(parts, dim=1)
    for padding in (0, 1):
        assert torch.equal(
            kernels.conv3x3(parts, weight, None, padding), kernels.conv3x3([whole], weight, None, padding)
        )


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("inputs", "outputs", "shuffle"), [(16, 20, 1), (24, 64, 2), (64, 256, 2), (32, 48, 4), (8, 64, 2)]
)
@torch.inference_mode()
def test_what_follows_a_convolution_is_done_with_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, inputs: int, outputs: int, shuffle: int
) -> None:
    monkeypatch.setattr(kernels.cpu, "convolves", lambda x, weight: True)
    x, weight = torch.randn(2, inputs, 9, 61).to(dtype), torch.randn(outputs, inputs, 3, 3).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    for padding in (0, 1):
        plain = kernels.conv3x3([x], weight, bias, padding)
        assert torch.equal(
            kernels.conv3x3([x], weight, bias, padding, shuffle=shuffle), F.pixel_shuffle(plain, shuffle)
        )
        found = kernels.conv3x3([x], weight, bias, padding, slope=0.1, shuffle=shuffle)
        close(found, F.leaky_relu(F.pixel_shuffle(plain, shuffle), 0.1), TOLERANCE)
        with monkeypatch.context() as patch:
            patch.setenv("VSFMANET_NO_KERNELS", "1")
            twin = kernels.conv3x3([x.float()], weight.float(), bias.float(), padding, slope=0.1, shuffle=shuffle)
        exact = F.conv2d(x.float(), weight.float(), bias.float(), padding=padding)
        assert torch.equal(twin, F.leaky_relu(F.pixel_shuffle(exact, shuffle), 0.1))


@torch.inference_mode()
def test_layers_give_what_they_give_in_turn() -> None:
    layers: list[nn.Module] = [
        Conv3x3(24, 64), nn.PixelShuffle(2), leaky_relu(), nn.Conv2d(16, 32, 1), leaky_relu(), Conv3x3(32, 12),
        nn.PixelShuffle(2),
    ]  # fmt: skip
    x = torch.randn(1, 24, 11, 13)
    torch.testing.assert_close(Layers(*layers)(x[:, :8], x[:, 8:]), nn.Sequential(*layers)(x), atol=1e-5, rtol=1e-5)


@needs_kernels
@torch.inference_mode()
def test_parts_of_other_types_are_left_to_torch() -> None:
    weight, own, other = (
        torch.randn(8, 32, 3, 3).bfloat16(),
        torch.randn(1, 16, 9, 9).bfloat16(),
        torch.randn(1, 16, 9, 9),
    )
    for parts in ([own, other], [other, own], [other, other]):
        with pytest.raises(RuntimeError, match="type"):
            kernels.conv3x3(parts, weight, None)


@needs_kernels
@torch.inference_mode()
def test_the_convolution_does_not_read_beyond_its_image() -> None:
    for h, w in ((5, 7), (8, 8), (1, 50)):
        whole = torch.full((3, 17, h, w), torch.nan).contiguous(memory_format=torch.channels_last)
        whole[1] = torch.randn(17, h, w)
        weight = torch.randn(5, 17, 3, 3)
        for padding in (0, 1) if h > 2 else (1,):
            found = kernels.conv3x3([whole[1:2]], weight, None, padding)
            expected = F.conv2d(whole[1:2], weight, padding=padding)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_kernels
@torch.inference_mode()
def test_the_convolution_runs_by_winograd_only_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(x: Tensor, weight: Tensor) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(kernels.cpu, "_winograd", lambda *_: used_it.append(True))
            used_it: list[bool] = []
            kernels.conv3x3([x], weight, None)
        return bool(used_it)

    x, weight = torch.randn(1, 32, 8, 8), torch.randn(8, 32, 3, 3)
    assert used(x, weight)
    assert not used(x[:, :3], weight[:, :3])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert used(x, weight)
    assert not used(x.bfloat16(), weight.bfloat16())
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert used(x.bfloat16(), weight.bfloat16())
    with torch.inference_mode(mode=False):
        assert not used(x.clone(), weight.clone())  # gradients may be wanted


@needs_kernels
def test_the_convolution_follows_its_weights_when_they_change() -> None:
    layer, x = nn.Conv2d(16, 8, 3, padding=1), torch.randn(1, 16, 6, 6)

    def check() -> None:
        with torch.no_grad():
            found = kernels.conv3x3([x], layer.weight, layer.bias)
            torch.testing.assert_close(found, layer(x), atol=1e-4, rtol=1e-4)

    check()
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    check()
    layer.weight.data = torch.randn_like(layer.weight)
    check()
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    check()


@needs_kernels
@torch.inference_mode()
def test_the_convolution_does_not_depend_on_the_number_of_threads_or_on_other_frames() -> None:
    x, weight = torch.randn(3, 20, 33, 21), torch.randn(12, 20, 3, 3)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(kernels.conv3x3([x], weight, None))
    finally:
        torch.set_num_threads(threads)
    found.append(torch.cat([kernels.conv3x3([frame[None]], weight, None) for frame in x]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_kernels
def test_shipped_weights_lose_nothing_by_bf16() -> None:
    with av.open(str(EXAMPLE)) as film:
        pictures = [frame.to_ndarray(format="rgb24") for frame in islice(film.decode(video=0), 3)]
    source = ListSource(frames=[torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in pictures])
    found = []
    for precision in ("fp32", "bf16"):
        with Restorer("fmanetpp_x4_fast", device="cpu", precision=precision) as restorer:
            found.append(torch.stack([one.frame for one in restorer.restore(source, 0, 3)]))
    decibels = -10 * (found[0] - found[1]).square().mean().log10()
    assert decibels > 60  # rounding to codes of 8 bits alone is 59


@needs_kernels
@torch.inference_mode()
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weights = torch.randn(2, 12, 70, 60), projection(12, 40, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = kernels.squared_projection(x, *weights, 12)
        torch.set_num_threads(3)
        three = kernels.squared_projection(x, *weights, 12)
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
        with FakeTensorMode():
            assert kernels.kernels_for(torch.rand(1, 2, 8, 8)) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.kernels_for(x) is None


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    build.library.cache_clear()
    try:
        with torch.inference_mode():
            x = torch.randn(1, 4, 8, 8)
            assert kernels.kernels_for(x) is None
            assert kernels.squared_projection(x, *projection(4, 2, torch.float32), 1)[0].shape == (1, 2, 8, 8)
    finally:
        build.library.cache_clear()


@needs_kernels
def test_a_library_is_compiled_once_and_source_that_fails_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    private_folder(tmp_path / "cache")
    path = build._build([source], tmp_path / "cache")
    written = path.stat().st_mtime_ns
    assert build._build([source], tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == written
    assert list((tmp_path / "cache").iterdir()) == [path]  # nothing half-made is left
    source.write_text("this is no C++")
    with pytest.raises(subprocess.SubprocessError, match="failed"):
        build._build([source], tmp_path / "cache")
    header = tmp_path / "small.h"
    names = []
    for value in ("1", "2"):
        header.write_text(f"#define VALUE {value}")
        source.write_text('#include "small.h"\nextern "C" int one() { return VALUE; }')
        names.append(build._build([source], tmp_path / "cache", headers=[header]))
    assert names[0] != names[1]  # another header, another library


@needs_kernels
@pytest.mark.parametrize("harm", ["cut", "emptied", "flipped", "planted", "writable"])
def test_a_library_that_is_not_whole_and_ours_is_compiled_anew(tmp_path: Path, harm: str) -> None:
    source, folder = tmp_path / "small.cpp", private_folder(tmp_path / "cache")
    source.write_text('extern "C" int one() { return 1; }')
    path = build._build([source], folder)
    content = path.read_bytes()
    if harm == "writable":
        path.chmod(0o666)
    else:
        path.write_bytes(
            {
                "cut": content[: len(content) // 2],
                "emptied": b"",
                "flipped": content[:-1] + bytes([content[-1] ^ 4]),
                "planted": b"evil",
            }[harm]
        )
    again = build._build([source], folder)
    assert ctypes.CDLL(str(again)).one() == 1
    assert again.stat().st_mode & 0o777 == 0o600
    assert build._build([source], folder) == again


@needs_kernels
def test_in_a_cache_that_others_may_write_to_nothing_is_loaded_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "vsfmanet" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (tmp_path / "small.cpp").write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, "_SOURCES", [tmp_path / "small.cpp"])
    build.library.cache_clear()
    try:
        loaded = build.library()
    finally:
        build.library.cache_clear()
    assert loaded is not None
    assert loaded.one() == 1
    assert not list(folder.iterdir())
    assert "compiled anew at every start: the cache needs a folder that you alone may write to" in caplog.text
