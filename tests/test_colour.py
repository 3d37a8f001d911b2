"""Colours in torch against zimg, which is the measure: the same code values, by every tag."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor

from tests.fakes import drawn_clip, planes
from vsfmanet.errors import ShapeError
from vsfmanet.ops.colour import MATRICES, YCGCO, Coding

core = vs.core

SUBSAMPLINGS = [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 2)]
DIFFERENT = {8: 0.001, 10: 0.002, 16: 0.03}
"""Largest part of code values, by bits, that may differ, and by one: where a last bit of fp32 decides the rounding."""


def picture(shape: tuple[int, ...], low: float, high: float, seed: int) -> NDArray[np.float32]:
    """Noise over a ramp: flat parts and sharp edges, to the ends of the range and beyond."""
    noise = np.random.default_rng(seed).random(shape, dtype=np.float32)
    ramp = np.linspace(0, 1, shape[-1], dtype=np.float32)
    mixed = np.where(np.arange(shape[-2])[:, None] % 8 < 4, noise, ramp)
    return np.asarray(low + (high - low) * mixed, dtype=np.float32)


def clip_of(frame: list[NDArray[np.float64]], format: int, props: dict[str, object]) -> vs.VideoNode:
    height, width = frame[0].shape
    return drawn_clip(lambda n, p: frame[p], 1, width=width, height=height, format=format, props=lambda n: props)


def format_of(coding: Coding) -> vs.VideoFormat:
    family = {"rgb": vs.RGB, "yuv": vs.YUV, "gray": vs.GRAY}[coding.family]
    return core.query_video_format(family, vs.INTEGER, coding.bits, *coding.subsampling)


def tags(coding: Coding) -> dict[str, object]:
    matrix = 0 if coding.family == "rgb" else coding.matrix
    return {"_Matrix": matrix, "_Range": int(coding.full), "_ChromaLocation": coding.location}


def decoded_by_zimg(coding: Coding, packed: Tensor, height: int, width: int) -> Tensor:
    codes = [plane.numpy().astype(np.float64) for plane in coding.planes(packed, height, width)]
    clip = clip_of(codes, format_of(coding).id, tags(coding)).resize.Bicubic(format=vs.RGBS)
    return torch.from_numpy(np.stack(planes(clip.get_frame(0))))


def encoded_by_zimg(coding: Coding, rgb: Tensor) -> list[NDArray[np.float64]]:
    clip = clip_of(list(rgb.double().numpy()), vs.RGBS, {"_Matrix": 0})
    matrix, full, location = tags(coding).values()
    return planes(
        clip.resize.Bicubic(
            format=format_of(coding).id, matrix=matrix, range=full, chromaloc=location, dither_type="ordered"
        ).get_frame(0)
    )


def agrees_with_zimg(coding: Coding, height: int, width: int) -> None:
    size = coding.size(height, width)
    codes = picture((1, size), 0, 2**coding.bits - 1, seed=size)[0].round()
    packed = torch.from_numpy(codes.astype(np.uint8 if coding.bits == 8 else np.uint16))
    rgb = coding.decode(packed, height, width)
    torch.testing.assert_close(rgb.double(), decoded_by_zimg(coding, packed, height, width), atol=2e-6, rtol=0)

    rgb = torch.from_numpy(picture((3, height, width), -0.2, 1.2, seed=1))
    found = coding.planes(coding.encode(rgb), height, width)
    for plane, expected in zip(found, encoded_by_zimg(coding, rgb), strict=True):
        off = np.abs(plane.numpy().astype(np.float64) - expected)
        assert off.max() <= 1
        assert (off > 0).mean() <= DIFFERENT[coding.bits]


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_yuv_of_every_matrix_and_range_is_as_zimg_has_it(matrix: int, full: bool, bits: int) -> None:
    coding = Coding(family="yuv", bits=bits, matrix=matrix, full=full, subsampling=(1, 1))
    agrees_with_zimg(coding, 46, 58)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("location", range(6))
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_chroma_of_every_subsampling_and_location_is_as_zimg_has_it_up_to_the_edges(
    subsampling: tuple[int, int], location: int, bits: int
) -> None:
    coding = Coding(family="yuv", bits=bits, matrix=9, full=False, subsampling=subsampling, location=location)
    across, down = (1 << each for each in subsampling)
    agrees_with_zimg(coding, 13 * down, 21 * across)


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("family", ["rgb", "gray"])
def test_rgb_and_grey_are_as_zimg_has_them(family: Literal["rgb", "gray"], full: bool, bits: int) -> None:
    agrees_with_zimg(Coding(family=family, bits=bits, matrix=6, full=full), 37, 53)


def test_a_frame_of_the_smallest_size_is_as_zimg_has_it() -> None:
    agrees_with_zimg(Coding(family="yuv", bits=8, full=False, subsampling=(1, 1), location=4), 8, 8)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("matrix", [1, 9, YCGCO])
def test_code_values_come_back_as_they_were(matrix: int, bits: int) -> None:
    coding = Coding(family="yuv", bits=bits, matrix=matrix, full=False)
    codes = torch.from_numpy(picture((1, coding.size(16, 24)), 0, 2**bits - 1, seed=2)[0].round())
    packed = codes.to(coding.dtype)
    back = coding.encode(coding.decode(packed, 16, 24))[:-1]
    assert (back.float() - codes).abs().max() <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_frame_that_is_not_finite_is_marked_beside_its_code_values(bad: float) -> None:
    coding = Coding(family="yuv", bits=10, full=False, subsampling=(1, 1))
    rgb = torch.rand(3, 18, 22)
    assert coding.encode(rgb)[-1].item() == 1
    rgb[1, 7, 9] = bad
    assert coding.encode(rgb)[-1].item() == 0


def test_a_frame_may_lie_in_memory_as_networks_leave_it() -> None:
    coding = Coding(family="yuv", bits=8, full=False, subsampling=(1, 1))
    rgb = torch.rand(1, 3, 18, 22)
    channels_last = rgb.contiguous(memory_format=torch.channels_last)[0]
    assert torch.equal(coding.encode(channels_last), coding.encode(rgb[0]))


def test_planes_of_another_size_or_type_are_refused() -> None:
    coding = Coding(family="yuv", bits=8, full=False, subsampling=(1, 1))
    with pytest.raises(ShapeError, match=r"a vector of at least 96 torch.uint8 is needed, got \(95,\) torch.uint8"):
        coding.decode(torch.zeros(95, dtype=torch.uint8), 8, 8)
    with pytest.raises(ShapeError, match=r"got \(96,\) torch.uint16"):
        coding.decode(torch.zeros(96, dtype=torch.uint16), 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_a_gpu_gives_the_same_code_values_and_waits_for_nothing(bits: int) -> None:
    coding = Coding(family="yuv", bits=bits, full=False, subsampling=(1, 1))
    rgb = torch.from_numpy(picture((3, 90, 160), -0.2, 1.2, seed=3))
    expected = coding.encode(rgb)
    on_device, packed = rgb.cuda(), expected[:-1].cuda()
    coding.encode(on_device)  # the dither's table is brought there once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, back = coding.encode(on_device), coding.decode(packed, 90, 160)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = (found.cpu().float() - expected.float()).abs()
    assert off.max() <= 1
    assert (off > 0).float().mean() <= DIFFERENT[bits]
    torch.testing.assert_close(back.cpu(), coding.decode(expected[:-1], 90, 160), atol=2e-6, rtol=0)
