"""Grain: noise like that which restoration removed, as strong at each brightness, in a part that the user chooses.

The noise is made at the size of the source and resized as the source would be, so that its grains have the same size as
those that were removed. It is drawn from the frame's number, so it does not depend on the order of requests.
"""

from __future__ import annotations

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfmanet.clips.colour import luma_of

GRAIN = "FMANetGrain"
"""On every frame with grain: standard deviation of the noise that was added, over the nominal range of luma, before it
was resized."""

LEVELS = 16
"""Brightnesses for which removed noise is measured."""

_SEED = 7391
_FLAT = 0.6
"""Part of the picture, the flattest, in which a difference is noise and no detail."""
_INNER, _MEAN_INNER = 0.9, 0.6573
"""Part of the values that is used, the smallest, and their mean size over the standard deviation of normal noise."""
_HIGH_PASS = np.sqrt(8 / 9)
"""Standard deviation of white noise without its mean over 3x3 pixels."""
_FEWEST = 100
"""Fewest pixels of a brightness that can be measured."""

Image = NDArray[np.float32]


def with_grain(restored: vs.VideoNode, source: vs.VideoNode, amount: float) -> vs.VideoNode:
    """Add noise to the luma of a restored clip.

    Args:
        restored: The restored clip.
        source: The clip from which it was restored, of any size, with colour tags.
        amount: Standard deviation of the noise over that of what was removed, from 0.

    Returns:
        The clip; its frames carry `GRAIN`.
    """
    width, height = source.width, source.height

    def make(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        before, after = (np.asarray(frame[0]) for frame in f[1:3])
        deviation = amount * noise_map(before, after)
        noise = np.random.default_rng((_SEED, n)).standard_normal((height, width), dtype=np.float32)
        frame = f[0].copy()
        np.copyto(np.asarray(frame[0]), noise * deviation * _code_values(f[3]))
        frame.props[GRAIN] = float(deviation.mean())
        return frame

    blank = source.std.BlankClip(width=width, height=height, format=vs.GRAYS, color=0, keep=True)
    clips = [blank, luma_of(source, width, height), luma_of(restored, width, height), restored]
    noise = blank.std.ModifyFrame(clips, make)
    if (width, height) != (restored.width, restored.height):
        noise = noise.resize.Spline36(restored.width, restored.height)
    family = restored.format.color_family
    if family == vs.RGB:
        alike = vs.core.std.ShufflePlanes([noise] * 3, [0, 0, 0], vs.RGB)
        grainy = vs.core.std.Expr([restored, alike], "x y +")
    elif family == vs.GRAY:
        grainy = vs.core.std.Expr([restored, noise], "x y +")
    else:
        luma = vs.core.std.Expr([restored.std.ShufflePlanes(0, vs.GRAY), noise], "x y +")
        grainy = vs.core.std.ShufflePlanes([luma, restored, restored], [0, 1, 2], vs.YUV)
    return grainy.std.CopyFrameProps(restored).std.CopyFrameProps(noise, props=[GRAIN])


def noise_map(before: Image, after: Image) -> Image:
    """Standard deviation of the noise that was removed, by the brightness of each pixel.

    Args:
        before: (H, W) luma of the source, nominal range [0, 1].
        after: (H, W) luma of the restored frame in the same size.

    Returns:
        (H, W), in the unit of `before`.
    """
    removed = before - after
    removed = np.abs(removed - _mean3(removed))[1:-1, 1:-1]
    smooth = _mean3(after)
    slope = np.abs(smooth[2:, 1:-1] - smooth[:-2, 1:-1]) + np.abs(smooth[1:-1, 2:] - smooth[1:-1, :-2])
    flat = slope <= np.quantile(slope, _FLAT)
    level = np.clip(smooth[1:-1, 1:-1] * LEVELS, 0, LEVELS - 1).astype(np.intp)
    centres, found = [], []
    for k in range(LEVELS):
        values = removed[flat & (level == k)]
        if values.size >= _FEWEST:
            inner = np.partition(values, int(_INNER * values.size))[: int(_INNER * values.size)]
            centres.append((k + 0.5) / LEVELS)
            found.append(float(inner.mean()) / (_MEAN_INNER * _HIGH_PASS))
    if not found:
        return np.zeros_like(before)
    return np.interp(smooth, centres, found).astype(np.float32)


def _mean3(image: Image) -> Image:
    """Mean over 3x3 pixels, with edges repeated."""
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    mean: Image = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return mean


def _code_values(frame: vs.VideoFrame) -> float:
    """Code values of the nominal range of a frame's luma."""
    bits = frame.format.bits_per_sample
    if frame.format.sample_type == vs.FLOAT:
        return 1.0
    return float(219 << (bits - 8) if frame.props.get("_Range", 1) == 0 else (1 << bits) - 1)
