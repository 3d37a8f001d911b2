"""A folder of rendered sequences, and random training batches from it."""

import json
from collections.abc import Sequence as Positions
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.bars import add_bars
from training.data.degrade import degrade_clips
from training.data.exposure import random_exposure
from training.data.folders import whole_folder
from training.data.render import Sequence
from training.data.symmetry import Symmetry, random_symmetry
from vsfmanet.errors import ConfigError, SourceError
from vsfmanet.networks.exposure_extractor import LEVELS

CROP_TRIES = 3
"""Crops that are compared by their detail; the best is taken."""

ARRAYS = tuple(field.name for field in fields(Sequence))
"""Names of the arrays of a sequence, and of their files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B training clips of T frames; HR is s times LR. Flow and visibility have directions next, previous."""

    lr: Tensor
    """(B, T, 3, h, w) blurred LR frames in [0, 1], what a network is given: with noise and compression, if any."""
    clean: Tensor
    """(B, T, 3, h, w) the blurred LR frames before noise and compression."""
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

    lr: Tensor
    """uint8."""
    hr: Tensor
    """uint8."""
    exposure: Tensor
    """(T,) levels in 1..5, int64."""
    flow: Tensor
    """float16."""
    visible: Tensor
    """uint8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A sequence as clips are cut from it: the fields of `training.data.render.Sequence` on some device."""

    lr: Tensor
    hr: Tensor
    flow: Tensor
    visible: Tensor
    green: NDArray[np.uint8]
    """(T, h, w) of the first level, all that choosing a crop needs: it stays on the host, so that nothing waits."""


def held(sequence: Sequence, device: str) -> Held:
    """Bring a sequence to `device`; on the CPU its memory is shared."""
    arrays = {name: torch.from_numpy(getattr(sequence, name)).to(device) for name in ARRAYS}
    green = sequence.lr[0, :, 1]
    on_host = torch.device(device).type == "cpu"
    return Held(**arrays, green=green if on_host else np.ascontiguousarray(green))


def sequence_folder(pool: Path, index: int) -> Path:
    """Return where sequence `index` of a pool lies."""
    return pool / f"{index:06d}"


def save_sequence(sequence: Sequence, folder: Path) -> None:
    """Write a sequence as one .npy file per array; `folder` appears only when it is complete."""
    with whole_folder(folder) as beside:
        for name, array in asdict(sequence).items():
            np.save(beside / f"{name}.npy", array)


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
            # Copied on write, though nobody writes: torch warns about memory that cannot be written.
            self._open[path] = Sequence(**{name: np.load(path / f"{name}.npy", mmap_mode="c") for name in ARRAYS})
        return self._open[path]

    def held(self, position: int) -> Held:
        """Return the sequence at `position` as clips are cut from it."""
        sequence = self.sequence(position)
        return held(sequence, "cpu")

    def sample(
        self,
        generator: np.random.Generator,
        *,
        clips: int,
        frames: int,
        crop: int,
        exposure_mode: str,
        degrade: float = 0.0,
        bars: float = 0.0,
        among: Positions[int] | None = None,
    ) -> Batch:
        """Draw a batch: random sequences, crops, stretches of time, exposures, flips, transposition and reversal.

        Args:
            generator: Source of all randomness.
            clips: B.
            frames: T, at most that of the sequences.
            crop: h and w in LR pixels, at most those of the sequences.
            exposure_mode: "constant", "walk" or "mixed", see `random_exposure`.
            degrade: Part of the clips whose `lr` gets noise, halos and compression, see `degrade_clip`.
            bars: Part of the clips with a bar of one colour, see `add_bars`.
            among: Positions of the sequences to draw from; None for all.

        Returns:
            The batch, in float32 on the host.

        Raises:
            ConfigError: The sequences are shorter or smaller than asked for, or the mode is unknown.
        """
        positions = range(len(self)) if among is None else among
        items = []
        for _ in range(clips):
            position = positions[int(generator.integers(len(positions)))]
            items.append(self.draw(generator, position, frames=frames, crop=crop, exposure_mode=exposure_mode))
        clean, hr, levels, flow, visible = (
            torch.stack([getattr(item, name) for item in items]) for name in ("lr", "hr", "exposure", "flow", "visible")
        )
        clean, hr, visible = add_bars(generator, bars, clean, hr, visible)
        return Batch(
            lr=degrade_clips(generator, clean, degrade) / 255,
            clean=clean / 255,
            hr=hr / 255,
            exposure=levels.float() / LEVELS,
            flow=flow.float(),
            visible=visible.float(),
        )

    def draw(
        self, generator: np.random.Generator, position: int, *, frames: int, crop: int, exposure_mode: str
    ) -> Clip:
        """Draw an item of a batch from the sequence at `position`; arguments as in `sample`."""
        clip = random_clip(generator, self.held(position), frames=frames, crop=crop, exposure_mode=exposure_mode)
        return augmented(generator, clip)


class DevicePool(Pool):
    """A pool held in a device's memory, with the same batches for the same generator; nothing is left to the host.

    A thousand sequences of 8 frames of 256 x 256 take 2.3 GB.
    """

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__(folder)
        self._held = [held(super(DevicePool, self).sequence(position), device) for position in range(len(self))]

    def held(self, position: int) -> Held:
        """Return the sequence at `position`, on the device."""
        return self._held[position]


def open_pool(folder: Path, device: str | None) -> Pool:
    """Open a pool on disk, or hold it in the memory of `device` if there is one.

    Raises:
        SourceError: There is no sequence in `folder`.
    """
    return Pool(folder) if device is None else DevicePool(folder, device)


def moving(pool: Pool, positions: Positions[int], least: float, most: float) -> list[int]:
    """Return those of `positions` whose median motion lies between two speeds in LR pixels per frame.

    Raises:
        ConfigError: There are none.
    """
    found = []
    for position in positions:
        flow = np.asarray(pool.sequence(position).flow[:, 0, :, ::4, ::4], dtype=np.float32)
        if least <= np.median(np.hypot(flow[:, 0], flow[:, 1])) <= most:
            found.append(position)
    if not found:
        raise ConfigError(f"--speed {least:g} {most:g} leaves none of {len(positions)} sequences; widen it")
    return found


def random_clip(generator: np.random.Generator, sequence: Held, *, frames: int, crop: int, exposure_mode: str) -> Clip:
    """Draw a stretch of time, a crop and exposures; arguments as in `Pool.sample`.

    Raises:
        ConfigError: The sequence is shorter or smaller than asked for, or the mode is unknown.
    """
    length, height, width = sequence.green.shape
    if frames > length or crop > min(height, width):
        raise ConfigError(
            f"at most {length} frames and a crop of {min(height, width)} are in the pool, "
            f"got {frames} and {crop}; ask for less or render larger sequences"
        )
    levels = random_exposure(generator, frames, exposure_mode)
    first = int(generator.integers(length - frames + 1))
    top, left = detailed_corner(generator, sequence.green[first + frames // 2], crop)
    scale = sequence.hr.shape[-1] // sequence.lr.shape[-1]
    stretch = slice(first, first + frames)
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    hr_rows, hr_columns = (slice(scale * part.start, scale * part.stop) for part in (rows, columns))
    chosen = [sequence.lr[level - 1, first + t, :, rows, columns] for t, level in enumerate(levels.tolist())]
    flow = sequence.flow[stretch, ..., rows, columns].clone()
    visible = sequence.visible[stretch, ..., rows, columns].clone()
    flow[-1, 0] = flow[0, 1] = 0  # what was the neighbour is not in this clip
    visible[-1, 0] = visible[0, 1] = 1
    return Clip(
        lr=torch.stack(chosen),
        hr=sequence.hr[stretch, :, hr_rows, hr_columns],
        exposure=torch.from_numpy(levels).to(flow.device),
        flow=flow,
        visible=visible,
    )


def detailed_corner(generator: np.random.Generator, frame: NDArray[np.uint8], crop: int) -> tuple[int, int]:
    """Choose the crop with most detail out of a few random ones.

    Args:
        generator: Source of all randomness.
        frame: (h, w).
        crop: Size in pixels.

    Returns:
        Top and left.
    """
    tops = generator.integers(frame.shape[-2] - crop + 1, size=CROP_TRIES)
    lefts = generator.integers(frame.shape[-1] - crop + 1, size=CROP_TRIES)
    values = frame.astype(np.int16)

    def detail(corner: tuple[int, int]) -> float:
        patch = values[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]
        return float(np.abs(np.diff(patch, axis=0)).mean() + np.abs(np.diff(patch, axis=1)).mean())

    return max(((int(top), int(left)) for top, left in zip(tops, lefts, strict=True)), key=detail)


def augmented(generator: np.random.Generator, clip: Clip) -> Clip:
    """Turn a clip by a random symmetry, and let it run backwards with a chance of one half."""
    clip = turned(clip, random_symmetry(generator))
    return reversed_in_time(clip) if generator.random() < 0.5 else clip


def turned(clip: Clip, symmetry: Symmetry) -> Clip:
    """Apply a symmetry to all frames of a clip and to its flow."""
    lr, hr, visible = (symmetry.planes(planes) for planes in (clip.lr, clip.hr, clip.visible))
    return Clip(lr=lr, hr=hr, exposure=clip.exposure, flow=symmetry.vectors(clip.flow), visible=visible)


def reversed_in_time(clip: Clip) -> Clip:
    """Let the clip run backwards; exact because exposure windows are centred on the truth instants."""
    return Clip(
        lr=clip.lr.flip(0),
        hr=clip.hr.flip(0),
        exposure=clip.exposure.flip(0),
        flow=clip.flow.flip(0, 1),
        visible=clip.visible.flip(0, 1),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSettings:
    """The settings that decide the pixels of a pool."""

    seed: int
    """Sequence k is drawn from (seed, k)."""
    scale: int
    """HR size / LR size."""
    size: int
    """HR rows and columns; a multiple of `scale`."""
    frames: int
    """Length of a sequence."""
    photos: str
    """Hash of the photographs' names, in order."""
    nonrigid: float = 0.0
    """Chance of each layer to bend; pools from before this setting have none."""

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if self.size % self.scale:
            raise ConfigError(f"render_pool: size ({self.size}) must be a multiple of scale ({self.scale})")
        if not 0 <= self.nonrigid <= 1:
            raise ConfigError(f"render_pool: nonrigid must be in 0 ... 1, got {self.nonrigid}")


def write_settings(settings: PoolSettings, path: Path) -> None:
    """Record `settings`, or check them against those that the pool was begun with.

    Raises:
        ConfigError: The pool was begun with others.
    """
    if not path.exists():
        path.write_text(json.dumps(asdict(settings), indent=2) + "\n")
    elif PoolSettings(**json.loads(path.read_text())) != settings:
        raise ConfigError(f"render_pool: {path} holds other settings than asked for; name another --out")
