"""Losses of the three stages. Every l1 is a mean over elements and frames."""

from __future__ import annotations

import torch
from torch import Tensor

from training.scenes.pool import Batch
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPOutput
from vsfmanet.ops.dynamic_filter import flow_guided_dynamic_filter


def supervised_contrastive(embed: Tensor, label: Tensor, temperature: float = 0.5) -> Tensor:
    """Pull embeddings of one label together, push the others away.

    Args:
        embed: (N, U), unit length.
        label: (N,), integers.
        temperature: alpha of Eq. S1.

    Returns:
        Scalar: mean over the anchors that share their label with another sample.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. S1; Khosla et al. (arXiv 2004.11362).
    """
    same = label[:, None] == label[None, :]
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    logits = (embed @ embed.T / temperature).masked_fill(itself, -torch.inf)
    log_probability = logits.log_softmax(dim=1).masked_fill(itself, 0)
    positives = (same & ~itself).float()
    count = positives.sum(dim=1)
    per_anchor = -(log_probability * positives).sum(dim=1) / count.clamp(min=1)
    return per_anchor[count > 0].mean()


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
    network: FMANetPP, out: FMANetPPOutput, batch: Batch, frames: Tensor, warp_weight: float = 1e-4
) -> Tensor:
    """First two terms of Eq. 9, for some frames: the blurred frame rebuilt from sharp ones, and the warped sharp ones.

    Args:
        network: Training form.
        out: What it gave for `batch`.
        batch: Clips of T frames.
        frames: (K, 2), integer: clip and frame of those that are rebuilt; the dynamic filter is costly on the CPU.
        warp_weight: lambda1 of Eq. 9.

    Returns:
        Scalar.
    """
    assert out.image_flow is not None
    clip, t = frames.unbind(dim=1)
    last = batch.hr.shape[1] - 1
    sharp = torch.stack([batch.hr[clip, (t + step).clamp(0, last)] for step in (-1, 0, 1)], dim=1)
    rebuilt, warped = flow_guided_dynamic_filter(
        sharp,
        out.image_flow[clip, t],
        network.degradation.kernels(out.kernel_feat[clip, t]),
        scale=network.config.scale,
        kernel_size=network.config.kernel_size,
    )
    return (rebuilt - batch.lr[clip, t]).abs().mean() + warp_weight * (warped - sharp[:, 1:2]).abs().mean()
