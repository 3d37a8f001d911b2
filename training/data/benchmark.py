"""Benchmarks: the scenes of the rendered one, and how any is recorded and stored; see `training.build_benchmark`."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.degrade import degrade_clip
from training.data.photos import load_photo
from training.data.render import Sequence
from training.data.scene import Scene, random_background, random_cutout
from vsfmanet.errors import OutputError, SourceError

MAX_SUBFRAMES = 160
"""Two per pixel up to 80 pixels a frame: the fastest scene's peaks."""

SEED = 2512
"""Scene k is drawn from this and k, its trajectory from this plus k, unless another seed is asked for."""

START_LEVELS = (3, 4, 2, 5)
INTERVALS = (2, 3)
"""Of Algorithm S1, in turn over the scenes. The paper's 5 and 7 would leave clips of ten frames almost constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSpec:
    """One scene of the benchmark."""

    photo: int
    """Which photograph is the background, counted round."""
    speed: float
    """Mean speed of the camera in HR pixels per frame."""
    cutouts: int
    """Number of things that move by themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkScene:
    """Record of a scene."""

    name: str
    """Its folder."""
    speed: float | None
    """Mean speed of the camera in HR pixels per frame; None of footage."""
    cutouts: int | None
    """Number of things that move by themselves; None of footage."""
    exposure: dict[str, list[float]]
    """Folder of each condition to the exposure of its frames, in (0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Record of a benchmark."""

    scale: int
    """HR size / LR size."""
    width: int
    """HR columns."""
    height: int
    """HR rows."""
    frames: int
    """Length of every scene."""
    seed: int
    """What chance drew from; see `SEED`."""
    scenes: list[BenchmarkScene]
    """In order."""
    photos: dict[str, str]
    """Name of each photograph to its sha256."""
    degraded: bool = False
    """Whether LR clips went through a random camera and file; one and the same for every condition of a scene."""


SCENES = (
    SceneSpec(photo=0, speed=1.5, cutouts=0),
    SceneSpec(photo=1, speed=3, cutouts=0),
    SceneSpec(photo=2, speed=6, cutouts=1),
    SceneSpec(photo=3, speed=10, cutouts=0),
    SceneSpec(photo=4, speed=16, cutouts=2),
    SceneSpec(photo=1, speed=24, cutouts=0),
    SceneSpec(photo=2, speed=40, cutouts=0),
)


def load_benchmark(folder: Path) -> Benchmark:
    """Read the record of a benchmark.

    Raises:
        SourceError: `folder` does not hold one, or one of another version.
    """
    path = folder / "benchmark.json"
    if not path.is_file():
        raise SourceError(f"load_benchmark: a folder with benchmark.json is needed, got {folder}; build one first")
    try:
        record = json.loads(path.read_text())
        return Benchmark(**(record | {"scenes": [BenchmarkScene(**scene) for scene in record["scenes"]]}))
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"load_benchmark: the record of this version is needed, got another in {path} ({error}); build it again"
        ) from error


def draw_scene(
    spec: SceneSpec, number: int, photos: list[Path], *, height: int, width: int, frames: int, seed: int
) -> Scene:
    """Draw scene `number`; it depends on the arguments alone."""
    generator = np.random.default_rng([seed, number])
    photo = photos[spec.photo % len(photos)]
    background = random_background(generator, [photo], height=height, width=width, frames=frames, speed=spec.speed)
    others = [other for other in photos if other != photo] or photos  # a thing is not seen in front of itself
    cutouts = [random_cutout(generator, others, height=height, width=width, frames=frames) for _ in range(spec.cutouts)]
    return Scene(layers=(background, *cutouts), height=height, width=width, frames=frames)


def save_scene(
    folder: Path, sequence: Sequence, conditions: dict[str, NDArray[np.int64]], degrade_seed: list[int] | None
) -> None:
    """Write the sharp clip, its motion, and the LR clip of every condition.

    Args:
        folder: Of the scene.
        sequence: Rendered at all exposures.
        conditions: Folder of each condition to its levels (T,) in 1..5.
        degrade_seed: Seed of noise and compression; None for neither.
    """
    save_clip(folder / "sharp", sequence.hr)
    np.savez_compressed(folder / "motion.npz", flow=sequence.flow, visible=sequence.visible)
    for condition, levels in conditions.items():
        clip = sequence.lr[levels - 1, np.arange(len(levels))]
        if degrade_seed is not None:
            clip = degrade_clip(np.random.default_rng(degrade_seed), clip)
        save_clip(folder / condition, clip)


def save_clip(folder: Path, clip: NDArray[np.uint8]) -> None:
    """Write (T, 3, H, W) RGB as numbered PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(clip):
        path = folder / f"{index:03d}.png"
        if not cv2.imwrite(str(path), np.ascontiguousarray(frame[::-1].transpose(1, 2, 0))):
            raise OutputError(f"build_benchmark: {path} cannot be written; check the disk")


def load_clip(folder: Path) -> NDArray[np.uint8]:
    """Read numbered PNG files as (T, 3, H, W) RGB."""
    return np.stack([load_photo(path).numpy() for path in sorted(folder.glob("*.png"))])
