"""NIQE: how far the statistics of a picture are from those of good photographs. It needs no truth; lower is better.

Source: Mittal et al., "Making a 'Completely Blind' Image Quality Analyzer" (2013). Departures: the photographs that
count as good are the user's own, not those behind the authors' parameters, so that scores can be compared with each
other but not with published ones; frames are reduced to half by area, not bicubically.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from vsfmanet.errors import ShapeError, SourceError

BLOCK = 96
"""Side of the blocks whose statistics are taken, pixels; half of it at half size."""

SHARP_PART = 0.75
"""Blocks of a good photograph count whose contrast is at least this part of its largest."""

WINDOW, SIGMA = 7, 7 / 6
"""Gaussian window of the local mean and deviation, pixels."""

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Steps (down, right) to the neighbours with which a pixel is multiplied."""

gamma = np.vectorize(math.gamma, otypes=[np.float64])

SHAPES = np.arange(0.2, 10, 0.001)
RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
"""E[|x|]^2 / E[x^2] of the generalised Gaussian of each of `SHAPES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """A normal distribution of the 36 features of a block."""

    mean: NDArray[np.float64]
    """(36,)."""
    covariance: NDArray[np.float64]
    """(36, 36)."""


def statistics_of(photos: Iterable[NDArray[np.uint8]]) -> Statistics:
    """Take the statistics of good photographs (3, H, W).

    Raises:
        SourceError: They have fewer than 37 sharp blocks.
        ShapeError: One is smaller than a block.
    """
    found = []
    for photo in photos:
        features, contrast = block_features(photo)
        found.append(features[contrast >= SHARP_PART * contrast.max()])
    blocks = np.concatenate(found) if found else np.empty((0, 36))
    if len(blocks) <= blocks.shape[1]:
        raise SourceError(f"37 sharp blocks of good photographs are needed, got {len(blocks)}; name more of them")
    return Statistics(mean=blocks.mean(axis=0), covariance=np.cov(blocks, rowvar=False))


def niqe(frame: NDArray[np.uint8], good: Statistics) -> float:
    """Distance of the statistics of a frame (3, H, W) from those of good photographs.

    Raises:
        ShapeError: The frame has fewer than two blocks.
    """
    features, _ = block_features(frame)
    if len(features) < 2:
        raise ShapeError(f"frames must have two blocks of {BLOCK} x {BLOCK}, got {frame.shape}; give larger ones")
    difference = features.mean(axis=0) - good.mean
    covariance = (good.covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def block_features(frame: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take the features of all whole blocks of a frame (3, H, W): (n, 36), and their contrast (n,).

    Raises:
        ShapeError: The frame is smaller than a block.
    """
    down, across = (size // BLOCK for size in frame.shape[1:])
    if not down or not across:
        raise ShapeError(f"frames must be at least {BLOCK} x {BLOCK}, got {frame.shape}; give larger ones")
    grey = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY).astype(np.float64)
    grey = grey[: down * BLOCK, : across * BLOCK]
    of_scales, contrast = [], np.empty(0)
    for side in (BLOCK, BLOCK // 2):
        normalised, deviation = normalised_luminance(grey)
        blocks = [(row * side, column * side) for row, column in product(range(down), range(across))]
        of_scales.append([features_of(normalised[top : top + side, left : left + side]) for top, left in blocks])
        if side == BLOCK:
            contrast = np.array([deviation[top : top + side, left : left + side].mean() for top, left in blocks])
        grey = np.asarray(cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.float64)
    return np.concatenate(of_scales, axis=1), contrast


def normalised_luminance(grey: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Subtract the local mean of code values (H, W), and divide by the local deviation plus 1; returns it as well."""

    def local(values: NDArray[np.float64]) -> NDArray[np.float64]:
        mean = cv2.GaussianBlur(values, (WINDOW, WINDOW), SIGMA, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(mean, dtype=np.float64)

    mean = local(grey)
    deviation = np.sqrt(np.abs(local(grey**2) - mean**2))
    return (grey - mean) / (deviation + 1), deviation


def features_of(block: NDArray[np.float64]) -> list[float]:
    """Take the 18 features of a block (h, w): of its values, and of their products with each of four neighbours."""
    shape, left, right = fit_gaussian(block)
    features = [shape, (left + right) / 2]
    for step in NEIGHBOURS:
        shape, left, right = fit_gaussian(block * np.roll(block, step, axis=(0, 1)))
        mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)
        features += [shape, mean, left, right]
    return features


def fit_gaussian(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments; returns its shape and its scales left and right of 0."""
    left, right = (np.sqrt(np.mean(side**2)) if side.size else 0.0 for side in (values[values < 0], values[values > 0]))
    square = np.mean(values**2)
    if not square or not left or not right:
        return float(SHAPES[-1]), float(left), float(right)
    lean = left / right
    ratio = np.abs(values).mean() ** 2 / square * (lean**3 + 1) * (lean + 1) / (lean**2 + 1) ** 2
    shape = float(SHAPES[np.abs(RATIOS - ratio).argmin()])
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, float(left * width), float(right * width)
