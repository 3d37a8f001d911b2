"""Batches for the blur analyser: crops of known blur extent."""

from collections.abc import Collection
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.extent import extent_of_flow
from training.data.photos import downscale
from training.data.pool import Pool
from training.data.render import Sequence
from training.data.symmetry import random_symmetry
from vsfmanet.networks.exposure_extractor import LEVELS

HELD_OUT = 10
"""One sequence in so many is kept for the report."""

VERSIONS = 3
"""Exposures, none (sharp) among them, at which each crop is in a batch: what they differ in is the blur alone."""

FULL_WEIGHT_TEXTURE = 0.06
"""Slope per pixel, on a range of 1, from which a pixel counts fully in the loss; in a flat one blur cannot be seen."""

FULL_WEIGHT_MOTION = 2.0
"""Mean motion in pixels per frame from which frames are drawn equally often; half the scenes hardly move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """N crops."""

    frames: Tensor
    """(N, 3, crop, crop) in [0, 1]."""
    extent: Tensor
    """(N, 1, crop, crop) pixels of motion while the shutter is open."""
    travel: Tensor
    """(N, 1, crop, crop) pixels of motion in the whole frame interval."""
    weight: Tensor
    """(N, 1, crop, crop) in (0, 1]: how much there is to see."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class Moments:
    """The frames of one pool that have both neighbours, and the chance that each is drawn.

    Args:
        pool: Where they are.
        held_out: Those that are kept for the report, or the others.
        levels: Exposures 5:N to draw, 0 for sharp frames.
    """

    def __init__(self, pool: Pool, *, held_out: bool, levels: Collection[int] = range(LEVELS + 1)) -> None:
        self.pool, self.levels = pool, list(levels)
        chosen = [position for position in range(len(pool)) if (position % HELD_OUT == 0) == held_out]
        self.places: list[tuple[int, int]] = []
        motion: list[float] = []
        for position in chosen:
            flow = np.asarray(pool.sequence(position).flow[1:-1, :, :, ::8, ::8], dtype=np.float32)
            self.places += [(position, 1 + t) for t in range(len(flow))]
            motion += np.hypot(flow[:, :, 0], flow[:, :, 1]).mean(axis=(1, 2, 3)).tolist()
        self.motion = np.array(motion)
        """(n,) mean motion in pixels per frame."""
        weight = np.clip(self.motion / FULL_WEIGHT_MOTION, 0.2, 1)
        self.chance = weight / weight.sum()

    def draw(self, generator: np.random.Generator, crop: int) -> list[Tensor]:
        """Draw a crop at some exposures, turned, with noise and compression.

        Returns:
            For each of the `VERSIONS` the frame (3, crop, crop), extent, travel and weight, as one (6, crop, crop).
        """
        position, t = self.places[int(generator.choice(len(self.places), p=self.chance))]
        sequence = self.pool.sequence(position)
        full_size = sequence.hr.shape[-1] == sequence.lr.shape[-1]
        halved = full_size and 2 * crop <= min(sequence.lr.shape[-2:]) and generator.random() < 0.5
        symmetry = random_symmetry(generator)
        place = int(generator.integers(2**32))

        def version(level: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
            return moment(sequence, t, level, np.random.default_rng(place), crop, reduction=2 if halved else 1)

        weight = texture_weight(version(1)[0])
        out = []
        for level in generator.permutation(self.levels)[:VERSIONS]:
            frame, extent, travel = version(int(level))
            item = np.concatenate([degraded(generator, frame), extent[None], travel[None], weight[None]])
            out.append(symmetry.planes(torch.from_numpy(item)))
        return out


def moment(
    sequence: Sequence, t: int, level: int, generator: np.random.Generator, crop: int, *, reduction: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Cut a random crop out of frame `t`.

    Args:
        sequence: Of a pool.
        t: Frame with both neighbours.
        level: Exposure 5:N, or 0 for the sharp frame.
        generator: Source of the crop's place.
        crop: Side of the result, pixels.
        reduction: Pixels each way that become one.

    Returns:
        Frame (3, crop, crop) in [0, 1], and motion (crop, crop) in pixels of that frame, while the shutter is open and
        in the whole frame interval.
    """
    side = crop * reduction
    top, left = (int(generator.integers(length - side + 1)) for length in sequence.lr.shape[-2:])
    rows, columns = slice(top, top + side), slice(left, left + side)
    if level:
        cut = sequence.lr[level - 1, t, :, rows, columns]
    else:
        scale = sequence.hr.shape[-1] // sequence.lr.shape[-1]
        cut = sequence.hr[t, :, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
    frame = downscale(torch.from_numpy(np.array(cut)).float()[None] / 255, crop, crop)[0].clamp(0, 1)
    flow = sequence.flow[t, ..., rows, columns]
    extent, travel = (
        extent_of_flow(flow, exposure).reshape(crop, reduction, crop, reduction).mean(axis=(1, 3), dtype=np.float32)
        for exposure in (level / LEVELS, 1)
    )
    return frame.numpy(), extent / np.float32(reduction), travel / np.float32(reduction)


def degraded(generator: np.random.Generator, frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soften some of the frames, add noise to some and compress some, as cameras do; the target stays the same.

    Real video is softer than reduced photographs, whatever the shutter did, and that shall not be taken for motion.
    """
    image = np.ascontiguousarray(frame.transpose(1, 2, 0))
    if generator.random() < 1 / 5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), generator.uniform(0.3, 1.0)), dtype=np.float32)
    if generator.random() < 1 / 3:
        image = image + generator.normal(0, generator.uniform(0.003, 0.03), image.shape).astype(np.float32)
    if generator.random() < 1 / 3:
        codes = (image.clip(0, 1) * 255).round().astype(np.uint8)
        packed = cv2.imencode(".jpg", codes, [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 96))])[1]
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), dtype=np.float32)
        image /= 255
    return np.ascontiguousarray(image.clip(0, 1).transpose(2, 0, 1), dtype=np.float32)


def texture_weight(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight (h, w) in [0.1, 1] of each pixel of a frame (3, h, w) that is hardly blurred, by the slopes around it."""
    grey = frame.mean(axis=0)
    down, across = np.gradient(grey)
    slope = cv2.blur(np.abs(down) + np.abs(across), (7, 7), borderType=cv2.BORDER_REFLECT)
    return np.clip(np.asarray(slope, dtype=np.float32) / FULL_WEIGHT_TEXTURE, 0.1, 1)


def draw_batch(sources: list[Moments], generator: np.random.Generator, count: int, crop: int) -> Batch:
    """Draw `count` crops from the pools in turn; batches mix them, because they share the normalisations."""
    drawn = [version for k in range(count) for version in sources[k % len(sources)].draw(generator, crop)]
    frames, extent, travel, weight = torch.stack(drawn).split((3, 1, 1, 1), dim=1)
    return Batch(frames=frames, extent=extent, travel=travel, weight=weight)
