"""Flow without a network, against known motion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.errors import ShapeError
from vsfmanet.ops.matching import _mean, match_frames


def texture(height: int = 120, width: int = 160) -> Tensor:
    """A smooth random picture with detail at several sizes."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 3, height, width)
    for size in (8, 16, 32, 64):
        noise = torch.rand(1, 3, size, size * width // height, generator=generator)
        picture += F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)
    return (picture / 4).clamp(0, 1)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -2), (5, 3), (-8, 6)])
def test_a_moved_picture_is_found_where_it_went(dx: int, dy: int) -> None:
    large = texture()
    own = large[..., 20:100, 20:140]
    other = large[..., 20 - dy : 100 - dy, 20 - dx : 140 - dx]  # what was at p is now at p + (dx, dy)
    flow = match_frames(own, other)
    inside = flow[..., 16:-16, 16:-16]  # away from what left the picture
    error = (inside - torch.tensor([dx, dy]).view(1, 2, 1, 1)).norm(dim=1)
    assert error.median() < 0.1
    assert error.mean() < 0.4


def test_half_a_pixel_is_seen() -> None:
    large = F.interpolate(texture(), scale_factor=2, mode="bicubic", align_corners=False)
    own, other = (F.avg_pool2d(part, 2) for part in (large[..., 2:-2, 2:-2], large[..., 2:-2, 1:-3]))
    flow = match_frames(own, other)[..., 8:-8, 8:-8]
    assert abs(flow[:, 0].mean().item() - 0.5) < 0.05
    assert flow[:, 1].abs().mean() < 0.05


def test_a_frame_does_not_move_against_itself() -> None:
    own = texture(33, 47)
    assert match_frames(own, own).abs().max() < 1e-4


def test_frames_of_a_batch_are_matched_alone() -> None:
    large = texture()
    own = torch.cat([large[..., :64, :64], large[..., 40:104, 60:124]])
    other = torch.cat([large[..., 2:66, :64], large[..., 40:104, 61:125]])
    torch.testing.assert_close(match_frames(own, other)[1:], match_frames(own[1:], other[1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 31), (8, 200)])
def test_small_and_flat_frames_give_finite_flow(h: int, w: int) -> None:
    assert match_frames(torch.rand(1, 3, h, w), torch.rand(1, 3, h, w)).isfinite().all()
    assert not match_frames(torch.full((1, 3, h, w), 0.2), torch.full((1, 3, h, w), 0.2)).any()


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        match_frames(torch.rand(1, 3, 8, 9), torch.rand(1, 3, 9, 8))


@pytest.mark.parametrize("window", [3, 7])
def test_means_count_what_lies_inside(window: int) -> None:
    for h, w in ((12, 12), (13, 40), (3, 9)):
        values = torch.rand(2, 5, h, w, generator=torch.Generator().manual_seed(h))
        expected = F.avg_pool2d(values, window, stride=1, padding=window // 2, count_include_pad=False)
        torch.testing.assert_close(_mean(values, window), expected, atol=1e-6, rtol=0)
