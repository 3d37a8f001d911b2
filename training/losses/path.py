"""The losses of the path branch: its estimates of the motion blur and of the exposure."""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def exact_motion(flow: Tensor, exposure: Tensor, size: tuple[int, int]) -> Tensor:
    """Motion of each cell as `FMANetPPOutput.motion` holds it, exact.

    Args:
        flow: As for `half_blur`.
        exposure: As for `half_blur`.
        size: Rows and columns of cells.

    Returns:
        (B, T, 6, *size), LR pixels.
    """
    exact = torch.cat([half_blur(flow, exposure), flow.flatten(2, 3)], dim=2)
    return F.adaptive_avg_pool2d(exact.flatten(0, 1), size).unflatten(0, exact.shape[:2])


def blur_loss(motion: Tensor, flow: Tensor, exposure: Tensor) -> Tensor:
    """Relative l1 between estimated and exact motion: of the blur, and of the flow to both neighbours.

    Args:
        motion: (B, T, 6, H/g, W/g), `FMANetPPOutput.motion`, LR pixels.
        flow: As for `half_blur`.
        exposure: As for `half_blur`.

    Returns:
        Scalar: a difference of one pixel counts as 1 where nothing moves, and less where much does.
    """
    exact = exact_motion(flow, exposure, (motion.shape[-2], motion.shape[-1])).flatten(0, 1).unflatten(1, (3, 2))
    error = (motion.flatten(0, 1).unflatten(1, (3, 2)) - exact).square().sum(dim=2).add(1e-4).sqrt()
    return (error / (1 + exact.norm(dim=2))).mean()


def exposure_loss(estimate: Tensor, exposure: Tensor, flow: Tensor) -> Tensor:
    """Absolute error of estimated exposures, weighted by how much moves: in a still frame, none can be seen.

    Args:
        estimate: (B, T) in (0, 1).
        exposure: (B, T) in (0, 1], exact.
        flow: (B, T, 2, 2, H, W), exact, in LR pixels.

    Returns:
        Scalar.
    """
    speed = flow.norm(dim=3).amax(dim=2).mean(dim=(-2, -1))
    weight = speed / (speed + 2)
    return (weight * (estimate - exposure).abs()).sum() / weight.sum().clamp_min(1e-6)
