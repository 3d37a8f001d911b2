"""Backward warping by optical flow: alone, by groups of channels, and of both neighbours of a frame."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vsfmanet.errors import ShapeError


def flow_warp(
    x: Tensor,
    flow: Tensor,
    *,
    padding: Literal["zeros", "border"] = "zeros",
    origin: tuple[int, int] | None = None,
) -> Tensor:
    """Sample `x` at `p + flow(p)`: backward warping, bilinear.

    Sampling runs in fp32 whatever the dtype of `x`: half floats cannot hold half pixels beyond column 1024, and the
    half-precision `grid_sample` of the CPU returns garbage above 32,767 pixels.

    Args:
        x: (N, C, H, W), any range.
        flow: (N, 2, H, W) in pixels; channel 0 points right, channel 1 down.
        padding: Value of samples outside the image: zero, or that of the nearest pixel of its border.
        origin: For a flow (N, 2, h, w) that covers only part of `x`: row and column of `x` at its top left pixel.

    Returns:
        (N, C, H, W), or (N, C, h, w) with `origin`, in the dtype of `x`.

    Raises:
        ShapeError: `flow` has another shape than `x` needs, and `origin` is None.
    """
    n, _, h, w = x.shape
    if origin is None and flow.shape != (n, 2, h, w):
        raise ShapeError(f"flow_warp: flow must be {(n, 2, h, w)}, got {tuple(flow.shape)}; resize it to the image")
    with torch.autocast(x.device.type, enabled=False):
        flow = flow.float()
        top, left = origin or (0, 0)
        column = torch.arange(left, left + flow.shape[3], device=x.device, dtype=torch.float32) + flow[:, 0]
        row = torch.arange(top, top + flow.shape[2], device=x.device, dtype=torch.float32)[:, None] + flow[:, 1]
        # Half-pixel convention of align_corners=False, which also holds for a side of one pixel.
        grid = torch.stack([(2 * column + 1) / w - 1, (2 * row + 1) / h - 1], dim=-1)
        out = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return out.to(x.dtype)


def sample_path(
    image: Tensor,
    path: Tensor,
    reach: float,
    count: int,
    shift: Tensor | None = None,
    origin: tuple[int, int] = (0, 0),
    stride: int = 1,
) -> Tensor:
    """Sample frames at evenly spaced places along a path through each pixel, bilinear; the border is repeated.

    Args:
        image: (N, C, H, W), any range.
        path: (N, 2, h, w) in pixels: channel 0 right, 1 down.
        reach: The places go from `-reach * path` to `reach * path`.
        count: P, number of places.
        shift: (N, 2, h, w) in pixels, from each pixel to the middle of its path; None for none.
        origin: Row and column of `image` where `path` begins.
        stride: Pixels of `image` from one path to the next.

    Returns:
        (N, C, P, h, w), fp32.
    """
    h, w = path.shape[-2:]
    height, width = image.shape[-2:]
    with torch.autocast(image.device.type, enabled=False):
        column = origin[1] + stride * torch.arange(w, device=image.device, dtype=torch.float32)
        row = origin[0] + stride * torch.arange(h, device=image.device, dtype=torch.float32)[:, None]
        right, down = path.float().unbind(dim=1)
        if shift is not None:
            column, row = column + shift[:, 0].float(), row + shift[:, 1].float()
        middle = torch.stack(torch.broadcast_tensors((2 * column + 1) / width - 1, (2 * row + 1) / height - 1), dim=-1)
        step = torch.stack([right * (2 / width), down * (2 / height)], dim=-1)
        places = torch.linspace(-reach, reach, count, device=image.device)[:, None, None, None]
        grid = torch.addcmul(middle if middle.dim() == 3 else middle[:, None], places, step[:, None])
        samples = F.grid_sample(
            image.float(), grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=False
        )
    return samples.unflatten(2, (count, h))


def multi_flow_warp(x: Tensor, pairs: Tensor, origin: tuple[int, int] | None = None) -> Tensor:
    """Warp groups of channels by their own flow and weight them by their own mask.

    The channels are split into n contiguous, nearly equal groups (the first C mod n groups get one more); group g is
    warped by flow g and multiplied by the visibility o = sigmoid(z). Samples outside the image repeat its border:
    zeros would darken the edges under panning, and the mask can still reject.

    Args:
        x: (N, C, H, W) features of the neighbouring frame.
        pairs: (N, n, 3, H, W), fp32: flow dx, dy in pixels and mask logit z per group.
        origin: As for `flow_warp`.

    Returns:
        (N, C, H, W), in the dtype of `x`.

    Raises:
        ShapeError: N, H or W differ, or there are fewer channels than groups.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. 4 and Sec. 3.2; the paper does not say how pairs share the channels.
    """
    count, channels, h, w = x.shape
    groups = pairs.shape[1]
    size = (h, w) if origin is None else tuple(pairs.shape[3:])
    if pairs.shape != (count, groups, 3, *size) or groups > channels:
        raise ShapeError(
            f"multi_flow_warp: pairs must be ({count}, n <= {channels}, 3, {h}, {w}), got {tuple(pairs.shape)}"
        )
    mask = pairs[:, :, 2:].float().sigmoid().to(x.dtype)  # (N, n, 1, H, W)
    if channels % groups:
        parts = torch.tensor_split(x, groups, dim=1)  # the first C mod n parts are one larger
        warped = [
            flow_warp(part, pairs[:, g, :2], padding="border", origin=origin) * mask[:, g]
            for g, part in enumerate(parts)
        ]
        return torch.cat(warped, dim=1)
    by_group = rearrange(x, "n (g c) h w -> (n g) c h w", g=groups)
    flow = rearrange(pairs[:, :, :2], "n g two h w -> (n g) two h w")
    return rearrange(
        flow_warp(by_group, flow, padding="border", origin=origin) * rearrange(mask, "n g 1 h w -> (n g) 1 h w"),
        "(n g) c h w -> n (g c) h w",
        g=groups,
    )


def warp_neighbours_reference(
    feat: Tensor,
    neighbours: tuple[Tensor, Tensor],
    flow: Tensor,
    num_flows: int,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Put frames and their two neighbours, warped and masked by `multi_flow_warp`, into one tensor.

    Args:
        feat: (N, C, H, W), features of the frames themselves.
        neighbours: Next and previous frame's features, each (N, C, H, W), or larger if `feat` is part of the image.
        flow: (N, 6n, H, W), fp32: [direction (next, previous), pair, (dx, dy, mask logit)] in pixels.
        num_flows: n, groups of channels, each with a flow and a mask of its own.
        origin: Row and column where `feat` and `flow` begin, if they are part of the image that the neighbours show.

    Returns:
        (N, 3C, H, W): own, next, previous; in the dtype of `feat`.

    Raises:
        ShapeError: A neighbour does not hold `feat` at `origin`, `flow` is not (N, 6n, H, W), or n > C.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. 4.
    """
    check_neighbours(feat, neighbours, flow, num_flows, origin)
    pairs = rearrange(flow, "n (d g c) h w -> d n g c h w", d=2, g=num_flows)
    warped = [multi_flow_warp(other, pair, origin) for other, pair in zip(neighbours, pairs, strict=True)]
    return torch.cat([feat, *warped], dim=1)


def check_neighbours(
    feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
) -> None:
    """Check that the arguments of `warp_neighbours_reference`, with the shapes listed there, fit each other.

    Raises:
        ShapeError: They do not.
    """
    n, channels, h, w = feat.shape
    top, left = origin
    height, width = neighbours[0].shape[2:]
    whole = (n, channels, height, width)
    if any(other.shape != whole for other in neighbours) or top + h > height or left + w > width or min(origin) < 0:
        raise ShapeError(
            f"warp_neighbours: neighbours must be {tuple(feat.shape)} each, "
            f"got {' and '.join(str(tuple(other.shape)) for other in neighbours)}"
            + ("" if origin == (0, 0) else f" for a part at {origin}")
        )
    if flow.shape != (n, 6 * num_flows, h, w) or num_flows > channels:
        raise ShapeError(
            f"warp_neighbours: flow must be ({n}, 6n, {h}, {w}) with n = {num_flows} <= {channels}, "
            f"got {tuple(flow.shape)}"
        )
