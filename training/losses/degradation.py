"""The losses of stage 2: NetD rebuilds blurred frames from sharp ones. Every l1 is a mean over elements and frames."""

import torch
from torch import Tensor

from training.data.pool import Batch
from training.losses.dynamic_filter import flow_guided_dynamic_filter
from vsfmanet.networks.fmanetpp import Degradation, FMANetPP, FMANetPPOutput

WARP_WEIGHT = 1e-4
"""lambda1 of Eq. 9."""

MIN_BLUR = 1.0
"""Length of the motion blur in LR pixels from which the reblur loss looks at a pixel."""


def image_flow_loss(image_flow: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """l1 between estimated and exact flow, where the pixel can be found in the neighbour (third term of Eq. 9).

    Args:
        image_flow: (B, T, 2, 3, H, W), estimate: direction (next, previous), channels dx, dy, mask logit.
        flow: (B, T, 2, 2, H, W), exact, in LR pixels.
        visible: (B, T, 2, H, W), 1 where the pixel can be found, else 0.

    Returns:
        Scalar, LR pixels.
    """
    error = (image_flow[:, :, :, :2] - flow).abs().mean(dim=3)
    return (error * visible).sum() / visible.sum().clamp(min=1)


def degradation_loss(
    network: FMANetPP,
    out: FMANetPPOutput | Degradation,
    batch: Batch,
    frames: Tensor,
    *,
    warp_weight: float = WARP_WEIGHT,
) -> Tensor:
    """First two terms of Eq. 9, for some frames: the blurred frame rebuilt from sharp ones, and the warped sharp ones.

    Args:
        network: Training form.
        out: What it gave for `batch`.
        batch: Clips of T frames.
        frames: (K, 2), integer: clip and frame of those that are rebuilt; the dynamic filter is costly on the CPU.
        warp_weight: lambda1, of the warped sharp frames.

    Returns:
        Scalar.
    """
    assert out.image_flow is not None
    clip, t = frames.unbind(dim=1)
    logits = network.degradation.kernels(out.kernel_feat[clip, t])
    rebuilt, warped = rebuild(network, batch.hr, out.image_flow[clip, t], logits, frames)
    own = batch.hr[clip, t][:, None]
    return (rebuilt - batch.clean[clip, t]).abs().mean() + warp_weight * (warped - own).abs().mean()


def rebuild(network: FMANetPP, hr: Tensor, image_flow: Tensor, logits: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Blur and reduce some frames of sharp clips by the dynamic filter.

    Args:
        network: Its scale and kernel size count.
        hr: (B, T, 3, s*H, s*W) sharp frames, in [0, 1].
        image_flow: (K, 2, 3, H, W) of the chosen frames.
        logits: (K, 3*kd^2, H, W) of the chosen frames; what is beyond H and W is left out.
        frames: (K, 2), integer: clip and frame.

    Returns:
        LR frames (K, 3, H, W), and the warped neighbours (K, 2, 3, s*H, s*W): previous, next.
    """
    clip, t = frames.unbind(dim=1)
    last = hr.shape[1] - 1
    logits = logits[..., : image_flow.shape[-2], : image_flow.shape[-1]]
    sharp = torch.stack([hr[clip, (t + step).clamp(0, last)] for step in (-1, 0, 1)], dim=1)
    return flow_guided_dynamic_filter(
        sharp, image_flow, logits, scale=network.config.scale, kernel_size=network.config.kernel_size
    )


def reblur_loss(network: FMANetPP, out: FMANetPPOutput, batch: Batch, frames: Tensor) -> Tensor:
    """Hold some restored frames to their blurred input: the cycle through the network's own degradation.

    Kernels and flow are taken as they are (no gradient), so that only the restored frames are moved; only pixels whose
    motion blur is `MIN_BLUR` or longer count, since elsewhere the first term of Eq. 10 says more.

    Args:
        network: Training form.
        out: What it gave for `batch`.
        batch: Clips of T frames, with exact flow and exposure.
        frames: (K, 2), integer: clip and frame of those that are reblurred.

    Returns:
        Scalar; 0 where nothing is blurred.

    Source: M2AENet's reblur consistency, with the dynamic filter of FMA-Net++ (arXiv 2512.04390), Eq. 5-7.
    """
    assert out.image_flow is not None
    clip, t = frames.unbind(dim=1)
    with torch.no_grad():
        logits = network.degradation.kernels(out.kernel_feat[clip, t])
    rebuilt, _ = rebuild(network, out.frames, out.image_flow[clip, t].detach(), logits, frames)
    speed = batch.flow[clip, t].norm(dim=2).amax(dim=1)  # (K, H, W): the faster of the two neighbours
    blurred = (speed * batch.exposure[clip, t][:, None, None] >= MIN_BLUR).float()
    error = (rebuilt - batch.clean[clip, t]).abs().mean(dim=1)
    return (error * blurred).sum() / blurred.sum().clamp_min(1)
