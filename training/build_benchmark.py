"""Render the benchmark: clips with known truth, at every exposure level and at one that changes.

python -m training.build_benchmark --photos PHOTOS --out BENCHMARK

BENCHMARK/SCENE/5_N/000.png   LR frames at exposure N / 5
BENCHMARK/SCENE/re/000.png    LR frames of changing exposure (Algorithm S1)
BENCHMARK/SCENE/sharp/000.png HR truth
BENCHMARK/SCENE/motion.npz    exact flow and visibility between truths, LR pixels: `flow` and `visible` of a sequence
BENCHMARK/benchmark.json      settings, exposures, hashes of the photographs
BENCHMARK/re.txt              the exposure trajectories, one scene a line
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scenes.degrade import degrade_clip
from training.scenes.exposure import exposure_walk
from training.scenes.photos import list_photos
from training.scenes.render import Sequence, render_sequence
from training.scenes.scene import Scene, random_background, random_cutout
from vsfmanet.errors import ConfigError, OutputError, SourceError
from vsfmanet.networks.exposure_extractor import LEVELS

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
    """What is recorded of a scene."""

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
    """What is recorded of the whole."""

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


def main() -> None:
    """Render every scene beside the benchmark's place, then put them there at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of sharp photographs, not trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--scale", type=int, choices=(4, 2, 1), default=4)
    parser.add_argument("--width", type=int, default=640, help="HR columns")
    parser.add_argument("--height", type=int, default=480, help="HR rows")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--seed", type=int, default=SEED, help="for other scenes (default: %(default)s)")
    parser.add_argument("--degrade", action="store_true", help="noise, halos and compression, others for each scene")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()

    if args.width % args.scale or args.height % args.scale:
        raise ConfigError(f"build_benchmark: {args.width} x {args.height} must be multiples of --scale {args.scale}")
    if args.out.exists():
        raise OutputError(f"build_benchmark: a new folder is needed, {args.out} exists; remove it or name another")
    photos = list_photos(args.photos)
    beside = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    scenes = []
    for number, spec in enumerate(SCENES):
        photo = photos[spec.photo % len(photos)]
        name = f"{number}_{photo.stem}_{spec.speed:g}px"
        print(f"{name} ({number + 1}/{len(SCENES)})", flush=True)
        size = {"height": args.height, "width": args.width, "frames": args.frames}
        scene = draw_scene(spec, number, photos, **size, seed=args.seed)
        sequence = render_sequence(scene, scale=args.scale, max_subframes=MAX_SUBFRAMES, device=args.device)
        walk = exposure_walk(
            np.random.default_rng(args.seed + number),
            args.frames,
            START_LEVELS[number % len(START_LEVELS)],
            INTERVALS[number % len(INTERVALS)],
        )
        conditions = {f"5_{level}": np.full(args.frames, level) for level in range(1, LEVELS + 1)} | {"re": walk}
        save_scene(beside / name, sequence, conditions, [args.seed, number] if args.degrade else None)
        exposure = {condition: (levels / LEVELS).tolist() for condition, levels in conditions.items()}
        scenes.append(BenchmarkScene(name=name, speed=spec.speed, cutouts=spec.cutouts, exposure=exposure))

    benchmark = Benchmark(
        scale=args.scale,
        width=args.width,
        height=args.height,
        frames=args.frames,
        seed=args.seed,
        scenes=scenes,
        photos={photo.name: sha256(photo.read_bytes()).hexdigest() for photo in photos},
        degraded=args.degrade,
    )
    walks = [" ".join([scene.name, *(f"{exposure:g}" for exposure in scene.exposure["re"])]) for scene in scenes]
    (beside / "re.txt").write_text("\n".join(walks) + "\n")
    (beside / "benchmark.json").write_text(json.dumps(asdict(benchmark), indent=1) + "\n")
    beside.rename(args.out)


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
    """Write truth, its motion, and the LR clip of every condition, given as (T,) levels in 1..5; degraded by a seed."""
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


if __name__ == "__main__":
    main()
