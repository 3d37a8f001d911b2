"""How far a restored clip is from truth: PSNR, SSIM, tOF and OPW, on 8-bit RGB frames.

Source: FMA-Net's public evaluation, by which FMA-Net++ (arXiv 2512.04390) is likeliest to have been measured; for OPW
its own docstring.
"""

from itertools import pairwise

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from training.losses.frames import SSIM_SIZE, consistency, ssim_map, warp_frames
from vsfmanet.errors import ShapeError

BORDER = 4
"""Pixels left out along each edge of the frame for PSNR and SSIM."""

PEAK = 255.0

TOF_BLOCK, TOF_MARGIN = 32, 16
"""tOF keeps a centred part whose sides are multiples of the block, and smaller than the frame by the margin or more."""


def psnr(output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all channels of a frame.

    Args:
        output: (3, H, W).
        truth: (3, H, W).

    Returns:
        Decibels; infinite for equal frames.

    Raises:
        ShapeError: The shapes differ.
    """
    a, b = _without_border("psnr", output, truth)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(PEAK**2 / error))


def ssim(output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Structural similarity, averaged over the area where the window fits, then over channels.

    Args:
        output: (3, H, W), H and W at least 19.
        truth: (3, H, W).

    Returns:
        At most 1.

    Raises:
        ShapeError: The shapes differ, or the frame is too small.
    """
    a, b = _without_border("ssim", output, truth)
    if min(a.shape[1:]) < SSIM_SIZE:
        least = SSIM_SIZE + 2 * BORDER
        raise ShapeError(f"ssim: frames must be at least {least} x {least}, got {output.shape}; give larger ones")
    similarity = ssim_map(*(torch.from_numpy(frame)[None] / PEAK for frame in (a, b)))
    half = SSIM_SIZE // 2
    return float(similarity[..., half:-half, half:-half].mean())


def tof_by_pair(
    output: NDArray[np.uint8], truth: NDArray[np.uint8], truth_flow: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Temporal consistency: how far the motion estimated in a clip is from that estimated in truth.

    Args:
        output: (T, 3, H, W), T at least 2, H and W at least 48.
        truth: (T, 3, H, W).
        truth_flow: (T - 1, H, W, 2), what `estimate_flow` gives for `truth`.

    Returns:
        (T - 1,) mean length of the difference of the flows of each pair of consecutive frames, in pixels.

    Raises:
        ShapeError: The shapes differ, or the clip is too short or too small.

    Source: Chu et al., TecoGAN (arXiv 1811.09393), tOF.
    """
    _check_clips(output, truth)
    height, width = truth.shape[2:]
    kept_height, kept_width = ((size - TOF_MARGIN) // TOF_BLOCK * TOF_BLOCK for size in (height, width))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    differences = estimate_flow(output) - truth_flow
    kept = differences[:, top : top + kept_height, left : left + kept_width]
    return np.linalg.norm(kept, axis=-1).mean(axis=(1, 2)).astype(np.float64)


def estimate_flow(clip: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Estimate Farneback flow between consecutive frames of (T, 3, H, W); returns (T - 1, H, W, 2), x before y."""
    grey = [
        np.asarray(cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        for frame in clip
    ]
    return np.stack([_farneback(before, after) for before, after in pairwise(grey)])


def opw_by_pair(
    output: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    flow: NDArray[np.float32],
    visible: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Optical-flow warping error: how far each frame is from the one before it, moved by the motion of truth.

    Only where truth itself can be explained by that motion, weighted by `consistency`. It is not zero for truth, whose
    value is the floor: interpolation, light and what the mask does not catch remain.

    Args:
        output: (T, 3, H, W), T at least 2.
        truth: (T, 3, H, W).
        flow: (T - 1, 2, H, W) pixels from frames 1 ... T - 1 to the frame before; channels right, down.
        visible: (T - 1, H, W) 1 where the pixel can be found in the frame before, else 0.

    Returns:
        (T - 1,) mean absolute difference over the mask and the channels, in percent of full scale.

    Raises:
        ShapeError: The shapes do not fit each other.

    Source: OPW = 100 sum M |O_t - W O_(t-1)| / (3 sum M) with M = exp(-50 |Y_t - W Y_(t-1)|^2), the form of Lai et al.,
    "Learning Blind Video Temporal Consistency" (ECCV 2018), and of NVDS (ICCV 2023).
    """
    count, _, height, width = truth.shape
    if output.shape != truth.shape or flow.shape != (count - 1, 2, height, width):
        raise ShapeError(
            f"opw: output must be {truth.shape} as truth is, and flow {(count - 1, 2, height, width)}, "
            f"got {output.shape} and {flow.shape}; check the scale"
        )
    restored, sharp = (torch.from_numpy(clip).float() / 255 for clip in (output, truth))
    motion = torch.from_numpy(flow)
    mask = consistency(sharp[1:], sharp[:-1], motion) * torch.from_numpy(visible)[:, None]
    error = (restored[1:] - warp_frames(restored[:-1], motion)).abs() * mask
    return 100 * (error.sum(dim=(1, 2, 3)) / (3 * mask.sum(dim=(1, 2, 3))).clamp_min(1e-6)).double().numpy()


def _check_clips(output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
    """Check that two clips (T, 3, H, W) go together and are large enough for tOF."""
    if output.shape != truth.shape or len(truth) < 2 or min(truth.shape[2:]) < TOF_BLOCK + TOF_MARGIN:
        least = TOF_BLOCK + TOF_MARGIN
        raise ShapeError(
            f"tof: two clips of one shape, at least 2 frames of {least} x {least}, are needed, "
            f"got {output.shape} and {truth.shape}; give longer or larger ones"
        )


def _without_border(
    caller: str, output: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check that two frames (3, H, W) go together, and remove their borders."""
    if output.shape != truth.shape:
        raise ShapeError(f"{caller}: output must be {truth.shape} as truth is, got {output.shape}; check the scale")
    inside = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return output[inside].astype(np.float64), truth[inside].astype(np.float64)


def _farneback(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Estimate flow between grey frames (H, W), with the settings of tOF; returns (H, W, 2)."""
    flow = np.zeros((*before.shape, 2), dtype=np.float32)
    cv2.calcOpticalFlowFarneback(
        before, after, flow, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    return flow
