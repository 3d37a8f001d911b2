"""Warping and dynamic filtering against known answers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.dynamic_filter import flow_guided_dynamic_filter
from vsfmanet.errors import ShapeError
from vsfmanet.ops.warp import flow_warp, multi_flow_warp


def uniform_flow(dx: float, dy: float, n: int, h: int, w: int) -> Tensor:
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(n, 2, h, w)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 2), (-3, 1)])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_flow_warp_by_whole_pixels_moves_the_image(dx: int, dy: int, padding: str) -> None:
    x = torch.rand(1, 3, 8, 9)
    inside = (..., slice(3, -3), slice(3, -3))  # away from the wrapped edge
    moved = flow_warp(x, uniform_flow(dx, dy, 1, 8, 9), padding=padding)  # type: ignore[arg-type]
    torch.testing.assert_close(moved[inside], x.roll((-dy, -dx), (-2, -1))[inside])


def test_flow_warp_by_half_a_pixel_averages_two() -> None:
    x = torch.rand(1, 1, 4, 6)
    moved = flow_warp(x, uniform_flow(0.5, 0, 1, 4, 6))
    torch.testing.assert_close(moved[..., :-1], (x[..., :-1] + x[..., 1:]) / 2)


def test_outside_the_image_lie_zeros_or_its_border() -> None:
    x = torch.rand(1, 2, 5, 7) + 1
    flow = uniform_flow(100, 0, 1, 5, 7)
    assert not flow_warp(x, flow).any()
    torch.testing.assert_close(flow_warp(x, flow, padding="border"), x[..., -1:].expand_as(x))


@pytest.mark.parametrize(("h", "w"), [(1, 9), (9, 1), (1, 1)])
def test_a_side_of_one_pixel_is_no_division_by_zero(h: int, w: int) -> None:
    x = torch.rand(1, 2, h, w)
    torch.testing.assert_close(flow_warp(x, torch.zeros(1, 2, h, w)), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_floats_are_sampled_in_fp32_on_large_images(dtype: torch.dtype) -> None:
    x = torch.rand(1, 1, 180, 320).to(dtype)  # more than 32,767 pixels: grid_sample of the CPU fails there in half
    torch.testing.assert_close(flow_warp(x, torch.zeros(1, 2, 180, 320)), x)


def test_a_flow_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"flow must be \(1, 2, 8, 9\), got \(1, 2, 4, 9\)"):
        flow_warp(torch.rand(1, 3, 8, 9), torch.zeros(1, 2, 4, 9))
    with pytest.raises(ShapeError, match="pairs must be"):
        multi_flow_warp(torch.rand(1, 2, 8, 9), torch.zeros(1, 3, 3, 8, 9))


@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (7, 3), (5, 5), (4, 1)])
def test_each_group_of_channels_follows_its_own_flow_and_mask(channels: int, groups: int) -> None:
    x, pairs = torch.rand(2, channels, 6, 7), torch.randn(2, groups, 3, 6, 7)
    sizes = [channels // groups + (g < channels % groups) for g in range(groups)]
    expected = [
        flow_warp(part, pairs[:, g, :2], padding="border") * pairs[:, g, 2:].sigmoid()
        for g, part in enumerate(x.split(sizes, dim=1))
    ]
    torch.testing.assert_close(multi_flow_warp(x, pairs), torch.cat(expected, dim=1))


SCALES = [(4, 20), (2, 12), (1, 9)]


def open_flow(n: int, h: int, w: int) -> Tensor:
    flow = torch.zeros(n, 2, 3, h, w)
    flow[:, :, 2] = 100  # masks open
    return flow


@pytest.mark.parametrize(("scale", "size"), SCALES)
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_delta_kernel_picks_one_pixel_of_one_frame(scale: int, size: int, frame: int) -> None:
    h, w, pad = 3, 4, (size - scale) // 2
    sharp = torch.rand(1, 3, 3, scale * h, scale * w)
    logits = torch.full((1, 3, size, size), -1e4)
    logits[0, frame, pad, pad] = 0
    rebuilt, _ = flow_guided_dynamic_filter(
        sharp, open_flow(1, h, w), logits.view(1, -1, 1, 1).expand(1, -1, h, w), scale=scale, kernel_size=size
    )
    torch.testing.assert_close(rebuilt, sharp[:, frame, :, ::scale, ::scale])


def test_the_dynamic_filter_equals_its_definition() -> None:
    torch.manual_seed(0)
    h, w, scale, size = 3, 4, 2, 12
    sharp, flow, logits = torch.rand(1, 3, 3, 6, 8), torch.randn(1, 2, 3, h, w), torch.randn(1, 3 * size**2, h, w)
    rebuilt, warped = flow_guided_dynamic_filter(sharp, flow, logits, scale=scale, kernel_size=size)

    weight = logits.softmax(dim=1).view(3, size, size, h, w)
    large = F.interpolate(flow[0], scale_factor=scale, mode="bilinear", align_corners=False)
    frames, valid = [], []
    for image, pair in ((sharp[:, 0], large[1:]), (sharp[:, 1], None), (sharp[:, 2], large[:1])):
        seen = torch.ones(1, 1, 6, 8)
        if pair is not None:
            mask = pair[:, 2:].sigmoid()
            image = flow_warp(image, pair[:, :2] * scale) * mask
            seen = flow_warp(seen, pair[:, :2] * scale) * mask
        frames.append(F.pad(image, (5,) * 4, mode="replicate"))
        valid.append(F.pad(seen, (5,) * 4, mode="replicate"))
    torch.testing.assert_close(warped[0, 0], frames[0][0, :, 5:-5, 5:-5])
    for y in range(h):
        for x in range(w):
            area = (..., slice(scale * y, scale * y + size), slice(scale * x, scale * x + size))
            taps = torch.cat([frames[t][area] * weight[t, :, :, y, x] for t in range(3)]).sum((0, 2, 3))
            total = torch.cat([valid[t][area] * weight[t, :, :, y, x] for t in range(3)]).sum()
            torch.testing.assert_close(rebuilt[0, :, y, x], taps / total)


def test_masked_taps_do_not_darken_the_rebuilt_frame() -> None:
    sharp = torch.full((1, 3, 3, 16, 16), 0.6)
    flow = open_flow(1, 4, 4)
    flow[:, 0, 2] = -3  # the next frame is mostly hidden
    rebuilt, _ = flow_guided_dynamic_filter(sharp, flow, torch.zeros(1, 1200, 4, 4), scale=4, kernel_size=20)
    torch.testing.assert_close(rebuilt, torch.full((1, 3, 4, 4), 0.6))


def test_the_dynamic_filter_is_differentiable() -> None:
    torch.manual_seed(0)
    flow = torch.randn(1, 2, 3, 2, 2, dtype=torch.float32, requires_grad=True)
    logits = torch.randn(1, 243, 2, 2, requires_grad=True)
    rebuilt, warped = flow_guided_dynamic_filter(torch.rand(1, 3, 3, 2, 2), flow, logits, scale=1, kernel_size=9)
    (rebuilt.square().sum() + warped.square().sum()).backward()
    assert flow.grad is not None
    assert logits.grad is not None
    assert flow.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ShapeError, match="sharp must be"):
        flow_guided_dynamic_filter(
            torch.rand(1, 3, 3, 8, 8), open_flow(1, 4, 4), torch.zeros(1, 1200, 4, 4), scale=4, kernel_size=20
        )
    with pytest.raises(ShapeError, match="channels"):
        flow_guided_dynamic_filter(
            torch.rand(1, 3, 3, 16, 16), open_flow(1, 4, 4), torch.zeros(1, 1000, 4, 4), scale=4, kernel_size=20
        )
