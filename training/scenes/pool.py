"""A folder of rendered sequences, and random training batches from it."""

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.scenes.exposure import random_exposure
from training.scenes.render import Sequence
from vsfmanet.errors import ConfigError, SourceError
from vsfmanet.networks.exposure_extractor import LEVELS

CROP_TRIES = 3
"""Crops that are compared by their detail; the best is taken."""

ARRAYS = ("lr", "hr", "flow", "visible")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B training clips of T frames; HR is s times LR. Flow and visibility have directions next, previous."""

    lr: Tensor
    """(B, T, 3, h, w) blurred LR frames in [0, 1]."""
    hr: Tensor
    """(B, T, 3, s*h, s*w) sharp frames in [0, 1]."""
    exposure: Tensor
    """(B, T) open-shutter time / frame interval: 0.2, 0.4 ... 1."""
    flow: Tensor
    """(B, T, 2, 2, h, w) LR pixels to the neighbour's truth instant, channels right, down; 0 at the clip's ends."""
    visible: Tensor
    """(B, T, 2, h, w) 1 where the pixel can be found in the neighbour, else 0; 1 at the clip's ends."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One item of a batch, before it is stacked; the shapes are those of `Batch` without B, bytes not yet scaled."""

    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    exposure: NDArray[np.int64]
    """(T,) levels in 1..5."""
    flow: NDArray[np.float16]
    visible: NDArray[np.uint8]


def sequence_folder(pool: Path, index: int) -> Path:
    """Return where sequence `index` of a pool lies."""
    return pool / f"{index:06d}"


def save_sequence(sequence: Sequence, folder: Path) -> None:
    """Write a sequence as one .npy file per array; `folder` appears only when it is complete."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    for name, array in asdict(sequence).items():
        np.save(beside / f"{name}.npy", array)
    beside.rename(folder)


class Pool:
    """The sequences in a folder, mapped into memory when first used. The folder may still be growing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: list[Path] = []
        self._open: dict[Path, Sequence] = {}
        self.rescan()
        if not self._paths:
            raise SourceError(f"Pool: a folder of rendered sequences is needed, got {folder}; run training.render_pool")

    def __len__(self) -> int:
        """Return the number of sequences found by the last scan."""
        return len(self._paths)

    def rescan(self) -> int:
        """Look for sequences rendered since; returns how many there are now."""
        found = self.folder.glob("[0-9]*") if self.folder.is_dir() else ()
        self._paths = sorted(path for path in found if path.is_dir())
        return len(self._paths)

    def sequence(self, position: int) -> Sequence:
        """Return the sequence at `position` in 0..len - 1; its arrays are maps of files, not to be written."""
        path = self._paths[position]
        if path not in self._open:
            self._open[path] = Sequence(**{name: np.load(path / f"{name}.npy", mmap_mode="r") for name in ARRAYS})
        return self._open[path]

    def sample(
        self, generator: np.random.Generator, *, clips: int, frames: int, crop: int, exposure_mode: str
    ) -> Batch:
        """Draw a batch: random sequences, crops, stretches of time, exposures, flips, transposition and reversal.

        Args:
            generator: Source of all randomness.
            clips: B.
            frames: T, at most that of the sequences.
            crop: h and w in LR pixels, at most those of the sequences.
            exposure_mode: "constant", "walk" or "mixed", see `random_exposure`.

        Returns:
            The batch, in float32 on the host.

        Raises:
            ConfigError: The sequences are shorter or smaller than asked for, or the mode is unknown.
        """
        items = []
        for _ in range(clips):
            sequence = self.sequence(int(generator.integers(len(self))))
            clip = random_clip(generator, sequence, frames=frames, crop=crop, exposure_mode=exposure_mode)
            items.append(augmented(generator, clip))

        return Batch(
            lr=torch.from_numpy(np.stack([item.lr for item in items])) / 255,
            hr=torch.from_numpy(np.stack([item.hr for item in items])) / 255,
            exposure=torch.from_numpy(np.stack([item.exposure for item in items])).float() / LEVELS,
            flow=torch.from_numpy(np.stack([item.flow for item in items])).float(),
            visible=torch.from_numpy(np.stack([item.visible for item in items])).float(),
        )


def random_clip(
    generator: np.random.Generator, sequence: Sequence, *, frames: int, crop: int, exposure_mode: str
) -> Clip:
    """Draw a stretch of time, a crop and exposures; arguments as in `Pool.sample`."""
    _, length, _, height, width = sequence.lr.shape
    if frames > length or crop > min(height, width):
        raise ConfigError(
            f"Pool.sample: at most {length} frames and a crop of {min(height, width)} are in the pool, "
            f"got {frames} and {crop}; ask for less or render larger sequences"
        )
    levels = random_exposure(generator, frames, exposure_mode)
    first = int(generator.integers(length - frames + 1))
    top, left = detailed_corner(generator, sequence.lr[0, first + frames // 2], crop)
    scale = sequence.hr.shape[-1] // width
    stretch, rows, columns = slice(first, first + frames), slice(top, top + crop), slice(left, left + crop)
    flow, visible = (
        sequence.flow[stretch, ..., rows, columns].copy(),
        sequence.visible[stretch, ..., rows, columns].copy(),
    )
    flow[-1, 0] = flow[0, 1] = 0  # what was the neighbour is not in this clip
    visible[-1, 0] = visible[0, 1] = 1
    return Clip(
        lr=sequence.lr[levels - 1, np.arange(first, first + frames), :, rows, columns],
        hr=sequence.hr[stretch, :, top * scale : (top + crop) * scale, left * scale : (left + crop) * scale],
        exposure=levels,
        flow=flow,
        visible=visible,
    )


def detailed_corner(generator: np.random.Generator, frame: NDArray[np.uint8], crop: int) -> tuple[int, int]:
    """Choose the crop with most detail out of a few random ones.

    Args:
        generator: Source of all randomness.
        frame: (3, h, w).
        crop: Size in pixels.

    Returns:
        Top and left.
    """
    tops = generator.integers(frame.shape[-2] - crop + 1, size=CROP_TRIES)
    lefts = generator.integers(frame.shape[-1] - crop + 1, size=CROP_TRIES)
    green = frame[1].astype(np.int16)

    def detail(corner: tuple[int, int]) -> float:
        patch = green[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]
        return float(np.abs(np.diff(patch, axis=0)).mean() + np.abs(np.diff(patch, axis=1)).mean())

    return max(((int(top), int(left)) for top, left in zip(tops, lefts, strict=True)), key=detail)


def augmented(generator: np.random.Generator, clip: Clip) -> Clip:
    """Apply each of the four symmetries with a chance of one half."""
    for symmetry in (flipped_horizontally, flipped_vertically, transposed, reversed_in_time):
        if generator.random() < 0.5:
            clip = symmetry(clip)
    return clip


def flipped_horizontally(clip: Clip) -> Clip:
    """Mirror left and right."""
    sign = np.array([-1, 1], dtype=np.float16)[:, None, None]
    return Clip(
        lr=clip.lr[..., ::-1],
        hr=clip.hr[..., ::-1],
        exposure=clip.exposure,
        flow=clip.flow[..., ::-1] * sign,
        visible=clip.visible[..., ::-1],
    )


def flipped_vertically(clip: Clip) -> Clip:
    """Mirror top and bottom."""
    sign = np.array([1, -1], dtype=np.float16)[:, None, None]
    return Clip(
        lr=clip.lr[..., ::-1, :],
        hr=clip.hr[..., ::-1, :],
        exposure=clip.exposure,
        flow=clip.flow[..., ::-1, :] * sign,
        visible=clip.visible[..., ::-1, :],
    )


def transposed(clip: Clip) -> Clip:
    """Swap rows and columns."""
    return Clip(
        lr=clip.lr.swapaxes(-1, -2),
        hr=clip.hr.swapaxes(-1, -2),
        exposure=clip.exposure,
        flow=clip.flow[:, :, ::-1].swapaxes(-1, -2),
        visible=clip.visible.swapaxes(-1, -2),
    )


def reversed_in_time(clip: Clip) -> Clip:
    """Let the clip run backwards; exact because exposure windows are centred on the truth instants."""
    return Clip(
        lr=clip.lr[::-1],
        hr=clip.hr[::-1],
        exposure=clip.exposure[::-1],
        flow=clip.flow[::-1, ::-1],
        visible=clip.visible[::-1, ::-1],
    )
