"""How steep a frame's edges are along its motion, by which an unknown exposure is estimated."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.networks.fmanetpp.shutter import SHUTTER_COUNT, SHUTTER_REACH, SLOPES, edge_slopes
from vsfmanet.ops.warp import sample_path

SIDE, EACH = 128, SLOPES // 2 - 1


def rectangles() -> Tensor:
    """Rectangles of sharp edges (1, 1, S, S)."""
    generator = torch.Generator().manual_seed(3)
    image = torch.zeros(1, 1, SIDE, SIDE)
    for _ in range(60):
        top, left = torch.randint(0, SIDE - 24, (2,), generator=generator).tolist()
        image[..., top : top + 24, left : left + 24] = torch.rand((), generator=generator)
    return image


def slopes(image: Tensor, speed: float) -> Tensor:
    """`edge_slopes` of an image (1, 1, S, S) that moves to the right, pixels a frame."""
    path = torch.zeros(1, 2, SIDE, SIDE)
    path[:, 0] = speed / 2
    across = torch.stack([-path[:, 1], path[:, 0]], dim=1)
    looks = [sample_path(image, way, SHUTTER_REACH, SHUTTER_COUNT)[:, 0] for way in (path, across)]
    [found] = edge_slopes(looks, path)
    assert found.shape == (SLOPES,)
    return found


def blurred(image: Tensor, length: int) -> Tensor:
    """An image that moved to the right by `length` pixels, odd, while the shutter was open."""
    return F.avg_pool2d(image, (1, length), stride=1, padding=(0, length // 2), count_include_pad=False)


def test_the_longer_the_shutter_is_open_the_less_steep_are_edges_along_the_motion_alone() -> None:
    found = torch.stack([slopes(blurred(rectangles(), length), 16) for length in (1, 5, 9, 13)])
    along, across = found[:, : EACH - 1], found[:, EACH : 2 * EACH - 1]
    assert bool((along.diff(dim=0)[:, :6] < -0.1).all())  # distances of 1 and 2 places
    assert float(across.diff(dim=0).abs().max()) < 0.35


def test_slopes_are_those_of_the_exposure_whatever_the_speed() -> None:
    slow, fast = slopes(blurred(rectangles(), 5), 8), slopes(blurred(rectangles(), 11), 17.6)
    longer = slopes(blurred(rectangles(), 9), 8)
    means = slice(0, EACH - 1, 3)
    torch.testing.assert_close(slow[means], fast[means], rtol=0, atol=0.25)
    assert float((slow[means] - longer[means]).max()) > 1


@pytest.mark.parametrize("image", [torch.zeros(1, 1, SIDE, SIDE), rectangles()])
def test_a_frame_without_edges_or_motion_gives_finite_numbers(image: Tensor) -> None:
    image.requires_grad_()
    still = slopes(image, 0)
    assert bool(still.isfinite().all())
    still.sum().backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
