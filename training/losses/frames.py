"""Losses of restored frames. Every l1 is a mean over elements and frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pool import Batch
from vsfmanet.ops.warp import flow_warp

CONSISTENCY_SHARPNESS = 50.0
"""How fast the weight of a pixel falls with the squared difference of its colour from where it came from."""

SSIM_SIZE, SSIM_SIGMA = 11, 1.5
"""Gaussian window of SSIM, pixels."""

USUAL_ERROR = 0.02
"""Difference of frames in [0, 1] that a network for deblurring leaves on average."""


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


def harm_loss(output: Tensor, before: Tensor, truth: Tensor, *, most: float) -> Tensor:
    """What frames lose by restoration, and nothing for what they gain.

    Args:
        output: (..., 3, H, W) in [0, 1].
        before: Same shape, the frames that are not restored, for example enlarged bilinearly.
        truth: Same shape.
        most: PSNR in dB beyond which hardly anything is lost.

    Returns:
        Scalar, with the scale of `decibel_loss`.
    """
    after, given = (
        (frames - truth).square().mean(dim=(-3, -2, -1)) + 10 ** (-most / 10) for frames in (output, before)
    )
    return USUAL_ERROR * (after / given).log().clamp_min(0).mean()


def warp_frames(frames: Tensor, flow: Tensor) -> Tensor:
    """Sample frames (N, 3, H, W) at p + flow(p), flow (N, 2, H, W) in pixels; the border is repeated."""
    return flow_warp(frames, flow, padding="border")


@torch.no_grad()
def consistency(frames: Tensor, neighbours: Tensor, flow: Tensor) -> Tensor:
    """Measure how well a moved neighbour explains sharp frames.

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


def charbonnier(output: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of colours, rounded off near 0, of frames (B, T, 3, H, W)."""
    return ((output - truth).square().sum(dim=2) + 1e-6).sqrt().mean()


def gradient_loss(output: Tensor, truth: Tensor) -> Tensor:
    """Mean squared difference of the lengths of gradients, of frames (B, T, 3, H, W)."""
    return (gradient_length(output) - gradient_length(truth)).square().mean()


def gradient_length(x: Tensor) -> Tensor:
    """Length of the gradient by central differences: (N, 1, H, W) to (N, 1, H-2, W-2)."""
    across = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    return (across.square() + down.square() + 1e-6).sqrt()


def ssim_map(output: Tensor, truth: Tensor) -> Tensor:
    """Compute the structural similarity at each pixel; within 5 pixels of the border, frames are mirrored.

    Args:
        output: (N, 3, H, W) in [0, 1], fp32 or fp64.
        truth: Same shape and type.

    Returns:
        (N, 3, H, W), at most 1.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), Eq. 13.
    """
    position = torch.arange(SSIM_SIZE, device=output.device, dtype=output.dtype) - SSIM_SIZE // 2
    window = (-(position**2) / (2 * SSIM_SIGMA**2)).exp()
    window = window / window.sum()
    planes = torch.cat([output, truth, output * output, truth * truth, output * truth]).flatten(0, 1)[:, None]
    for shape in ((1, 1, 11, 1), (1, 1, 1, 11)):
        side = [shape[3] // 2, shape[3] // 2, shape[2] // 2, shape[2] // 2]
        planes = F.conv2d(F.pad(planes, side, mode="reflect"), window.view(shape))
    mean_a, mean_b, square_a, square_b, product = planes.view(5, *output.shape)
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (product - mean_a * mean_b) + c2) / (square_a - mean_a**2 + square_b - mean_b**2 + c2)
    return luminance * structure
