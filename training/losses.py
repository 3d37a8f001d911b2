"""Losses of the three stages. Every l1 is a mean over elements and frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.dynamic_filter import flow_guided_dynamic_filter
from training.scenes.pool import Batch
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPOutput, neighbour_index
from vsfmanet.ops.warp import flow_warp

CONSISTENCY_SHARPNESS = 50.0
"""How fast the weight of a pixel falls with the squared difference of its colour from where it came from."""

USUAL_ERROR = 0.02
"""Difference of frames in [0, 1] that a network for deblurring leaves on average."""

CONTRAST_TEMPERATURE = 0.5
"""alpha of Eq. S1."""

WARP_WEIGHT = 1e-4
"""lambda1 of Eq. 9."""

MIN_BLUR = 1.0
"""Length of the motion blur in LR pixels from which the reblur loss looks at a pixel."""


def supervised_contrastive(embed: Tensor, label: Tensor) -> Tensor:
    """Pull embeddings of one label together, push the others away.

    Args:
        embed: (N, U), unit length.
        label: (N,), integers.

    Returns:
        Scalar: mean over the anchors that share their label with another sample.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. S1; Khosla et al. (arXiv 2004.11362).
    """
    same = label[:, None] == label[None, :]
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    logits = (embed @ embed.T / CONTRAST_TEMPERATURE).masked_fill(itself, -torch.inf)
    log_probability = logits.log_softmax(dim=1).masked_fill(itself, 0)
    positives = (same & ~itself).float()
    count = positives.sum(dim=1)
    per_anchor = -(log_probability * positives).sum(dim=1) / count.clamp(min=1)
    return per_anchor[count > 0].mean()


def decibel_loss(output: Tensor, truth: Tensor, mask: Tensor | None = None, *, most: float) -> Tensor:
    """Mean logarithm of the squared error of frames: every frame counts by its PSNR, up to some value.

    l1 hardly moves a network that restores nothing yet, because the likeliest difference at a pixel is none. A high
    limit teaches to leave alone what is nearly sharp; with a low one, strong blur has a say.

    Args:
        output: (..., 3, H, W) in [0, 1].
        truth: Same shape.
        mask: (..., 1, H, W), 1 where an error counts; None for everywhere.
        most: PSNR in dB beyond which hardly anything is gained.

    Returns:
        Scalar, scaled so that its gradients are like those of l1 at an error of `USUAL_ERROR`.

    Source: the PSNR loss of HINet (arXiv 2105.06086).
    """
    error = (output - truth).square()
    if mask is not None:
        error = mask * error
    return USUAL_ERROR * (error.mean(dim=(-3, -2, -1)) + 10 ** (-most / 10)).log().mean()


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


def half_blur(flow: Tensor, exposure: Tensor) -> Tensor:
    """Half of the exact motion blur, from the middle of the exposure to its end.

    Args:
        flow: (B, T, 2, 2, H, W), exact, in LR pixels; 0 at the clip's ends.
        exposure: (B, T) in (0, 1].

    Returns:
        (B, T, 2, H, W), LR pixels: right, down. 0 for clips of one frame.
    """
    velocity = (flow[:, :, 0] - flow[:, :, 1]) / 2
    velocity[:, [0, -1]] *= 2  # one neighbour alone
    return exposure[:, :, None, None, None] / 2 * velocity


def blur_loss(motion: Tensor, flow: Tensor, exposure: Tensor) -> Tensor:
    """Relative l1 between estimated and exact motion: of the blur, and of the flow to both neighbours.

    Args:
        motion: (B, T, 6, H/g, W/g), `FMANetPPOutput.motion`, LR pixels.
        flow: As for `half_blur`.
        exposure: As for `half_blur`.

    Returns:
        Scalar: a difference of one pixel counts as 1 where nothing moves, and less where much does.
    """
    exact = torch.cat([half_blur(flow, exposure), flow.flatten(2, 3)], dim=2).flatten(0, 1)
    exact = F.adaptive_avg_pool2d(exact, (motion.shape[-2], motion.shape[-1])).unflatten(1, (3, 2))
    error = (motion.flatten(0, 1).unflatten(1, (3, 2)) - exact).square().sum(dim=2).add(1e-4).sqrt()
    return (error / (1 + exact.norm(dim=2))).mean()


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """What NetD alone says of clips; the fields are those of `FMANetPPOutput`."""

    image_flow: Tensor | None
    """(B, T, 2, 3, H, W)."""
    kernel_feat: Tensor
    """(B, T, C, H/g, W/g)."""


def estimate_degradation(
    network: FMANetPP, lr: Tensor, exposure: Tensor | None, embed: Tensor | None = None
) -> Degradation:
    """Run NetD alone on clips.

    Args:
        network: Training form.
        lr: (B, T, 3, H, W) in [0, 1].
        exposure: (B, T) in (0, 1]; NaN or None: ask the extractor.
        embed: (B, T, U), replaces the embeddings altogether.
    """
    clips, frames = lr.shape[:2]
    flat = lr.flatten(0, 1)
    known = exposure.flatten() if exposure is not None else None
    guidance = embed.flatten(0, 1) if embed is not None else network.embed(flat, known)
    following, previous = neighbour_index(clips, frames, (), lr.device)
    netd = network.degradation
    feat, flow = netd(flat, following, previous, guidance)
    image_flow = netd.sharp_flow(flow)[..., : lr.shape[-2], : lr.shape[-1]].unflatten(1, (2, 3))
    return Degradation(
        image_flow=image_flow.unflatten(0, (clips, frames)),
        kernel_feat=netd.kernel_feat(feat).unflatten(0, (clips, frames)),
    )


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


def warp_frames(frames: Tensor, flow: Tensor) -> Tensor:
    """Sample frames (N, 3, H, W) at p + flow(p), flow (N, 2, H, W) in pixels; the border is repeated."""
    return flow_warp(frames, flow, padding="border")


@torch.no_grad()
def consistency(frames: Tensor, neighbours: Tensor, flow: Tensor) -> Tensor:
    """How well sharp frames are explained by a neighbour, moved.

    Args:
        frames: (N, 3, H, W) in [0, 1].
        neighbours: (N, 3, H, W).
        flow: (N, 2, H, W) in pixels, from `frames` to `neighbours`.

    Returns:
        (N, 1, H, W): exp(-50 d^2), d the distance in colour; 0 where the flow leaves the frame.

    Source: Lai et al., "Learning Blind Video Temporal Consistency" (ECCV 2018), Eq. 4.
    """
    difference = (frames - warp_frames(neighbours, flow)).square().sum(dim=1, keepdim=True)
    inside = flow_warp(torch.ones_like(frames[:, :1]), flow) > 0.999
    return (-CONSISTENCY_SHARPNESS * difference).exp() * inside


def temporal_loss(output: Tensor, batch: Batch) -> Tensor:
    """Hold restored frames to their neighbours, moved by the exact motion, where truth agrees and is not occluded.

    Args:
        output: (B, T, 3, s*H, s*W), what the network gave.
        batch: Clips of T frames, with exact flow.

    Returns:
        Scalar: mean absolute difference over both directions; 0 for clips of one frame.

    Source: JFFRA's occlusion-aware temporal loss; the mask is that of Lai et al. (ECCV 2018). With weight alone it
    would be least for a frozen clip, so it is to be kept small.
    """
    frames = output.shape[1]
    scale = output.shape[-1] // batch.lr.shape[-1]
    total, weight = output.new_zeros(()), output.new_zeros(())
    for direction, (own, other) in enumerate(((slice(0, -1), slice(1, None)), (slice(1, None), slice(0, -1)))):
        if frames < 2:
            break
        flow = enlarge_flow(batch.flow[:, own, direction].flatten(0, 1), scale)
        visible = F.interpolate(batch.visible[:, own, direction].flatten(0, 1)[:, None], scale_factor=scale)
        here, there = batch.hr[:, own].flatten(0, 1), batch.hr[:, other].flatten(0, 1)
        mask = consistency(here, there, flow) * visible
        moved = warp_frames(output[:, other].flatten(0, 1), flow)
        total = total + ((output[:, own].flatten(0, 1) - moved).abs() * mask).sum()
        weight = weight + 3 * mask.sum()
    return total / weight.clamp_min(1)


def enlarge_flow(flow: Tensor, scale: int) -> Tensor:
    """Flow (N, 2, H, W) in LR pixels to (N, 2, s*H, s*W) in HR pixels."""
    if scale == 1:
        return flow
    return scale * F.interpolate(flow, scale_factor=scale, mode="bilinear", align_corners=False)
