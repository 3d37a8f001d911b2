"""Flow-guided dynamic filtering: the degradation of sharp frames to a blurred, smaller one. Training only."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vsfmanet.errors import ShapeError
from vsfmanet.ops.warp import flow_warp


def flow_guided_dynamic_filter(
    sharp: Tensor, image_flow: Tensor, logits: Tensor, *, scale: int, kernel_size: int
) -> tuple[Tensor, Tensor]:
    """Rebuild a blurred low-resolution frame from three sharp ones.

    X^_i(y, x) = sum over t, r, c of w[t, r, c] Y_{t->i}(s y - q + r, s x - q + c), divided by the sum of w over the
    taps that are valid, with w the softmax over all 3 kd^2 taps together and q = (kd - s) / 2.

    Args:
        sharp: (N, 3, 3, s*H, s*W) in [0, 1]: frames (previous, own, next), RGB. A neighbour that is missing is the
            frame itself.
        image_flow: (N, 2, 3, H, W): direction (next, previous), flow dx, dy in LR pixels and mask logit z.
        logits: (N, 3*kd^2, H, W): taps in the order (previous, own, next; row; column).
        scale: s, output pixels of one input pixel.
        kernel_size: kd, side of the kernel in HR pixels; kd - s is even.

    Returns:
        The rebuilt frame (N, 3, H, W) and the two warped neighbours, masked, (N, 2, 3, s*H, s*W) in the order
        (previous, next), which Eq. 9 compares with the frame itself.

    Raises:
        ShapeError: The tensors do not fit each other.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. 5-7. The division by the valid weight follows FMA-Net (CVPR 2024): Eq. 6
    alone would darken the rebuilt frame wherever taps are masked.
    """
    n, _, h, w = logits.shape
    if sharp.shape != (n, 3, 3, scale * h, scale * w) or image_flow.shape != (n, 2, 3, h, w):
        raise ShapeError(
            f"flow_guided_dynamic_filter: sharp must be {(n, 3, 3, scale * h, scale * w)} and image_flow "
            f"{(n, 2, 3, h, w)} for logits {tuple(logits.shape)}, got {tuple(sharp.shape)}, {tuple(image_flow.shape)}"
        )
    if logits.shape[1] != 3 * kernel_size**2 or (kernel_size - scale) % 2:
        raise ShapeError(
            f"flow_guided_dynamic_filter: logits need 3 * {kernel_size}^2 channels and kernel_size - scale must be "
            f"even, got {logits.shape[1]} channels and {kernel_size} - {scale}"
        )
    with torch.autocast(sharp.device.type, enabled=False):
        weight = logits.float().softmax(dim=1)
        pairs = F.interpolate(
            rearrange(image_flow.float(), "n d c h w -> (n d) c h w"),
            scale_factor=scale,
            mode="bilinear",
            align_corners=False,
        )
        flow, mask = pairs[:, :2] * scale, pairs[:, 2:].sigmoid()
        neighbours = rearrange(sharp[:, [2, 0]].float(), "n d c h w -> (n d) c h w")  # (next, previous), as image_flow
        with_ones = torch.cat([neighbours, torch.ones_like(neighbours[:, :1])], dim=1)
        warped = rearrange(flow_warp(with_ones, flow) * mask, "(n d) c h w -> n d c h w", d=2)
        own = torch.cat([sharp[:, 1].float(), torch.ones_like(sharp[:, 1, :1], dtype=torch.float32)], dim=1)
        stack = torch.stack([warped[:, 1], own, warped[:, 0]], dim=1)  # (N, 3 frames, RGB and validity, s*H, s*W)
        pad = (kernel_size - scale) // 2
        padded = F.pad(rearrange(stack, "n t c h w -> (n t) c h w"), (pad,) * 4, mode="replicate")
        taps = F.unfold(padded, kernel_size, stride=scale)  # (N*3, 4*kd^2, H*W)
        taps = rearrange(taps, "(n t) (c k) p -> n c (t k) p", t=3, c=4)
        total = (taps * rearrange(weight, "n k h w -> n 1 k (h w)")).sum(dim=2)
        rebuilt = total[:, :3] / (total[:, 3:] + 1e-8)
    return rearrange(rebuilt, "n c (h w) -> n c h w", h=h), warped[:, [1, 0], :3]
