"""Render the benchmark: clips with known truth, at every exposure level and at one that changes.

python -m training.build_benchmark --photos PHOTOS --out BENCHMARK

BENCHMARK/SCENE/5_N/000.png   LR frames at exposure N / 5
BENCHMARK/SCENE/re/000.png    LR frames of changing exposure (Algorithm S1)
BENCHMARK/SCENE/sharp/000.png HR truth
BENCHMARK/SCENE/motion.npz    exact flow and visibility between truths, LR pixels: `flow` and `visible` of a sequence
BENCHMARK/benchmark.json      settings, exposures, hashes of the photographs
BENCHMARK/re.txt              the exposure trajectories, one scene a line
"""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter

from training.data.benchmark import (
    INTERVALS,
    MAX_SUBFRAMES,
    SCENES,
    SEED,
    START_LEVELS,
    Benchmark,
    BenchmarkScene,
    draw_scene,
    save_scene,
)
from training.data.exposure import exposure_walk
from training.data.folders import whole_folder
from training.data.photos import list_photos
from training.data.render import render_sequence
from training.options import command
from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.networks.exposure_extractor import LEVELS


def build(
    *,
    photos: Path,
    out: Path,
    scale: Literal[4, 2, 1] = 4,
    width: int = 640,
    height: int = 480,
    frames: int = 10,
    seed: int = SEED,
    degraded: Annotated[bool, Parameter(name="--degrade")] = False,
    device: str = "cpu",
) -> None:
    """Render every scene beside the benchmark's place, then put them there at once.

    Args:
        photos: Folder of sharp photographs, not trained on.
        out: Folder to make.
        scale: HR size over LR size.
        width: HR columns.
        height: HR rows.
        frames: Length of a scene.
        seed: Seed of scenes and trajectories.
        degraded: Noise, halos and compression, others for each scene.
        device: cpu or cuda.
    """
    if width % scale or height % scale:
        raise ConfigError(f"{width} x {height} must be multiples of --scale {scale}")
    if out.exists():
        raise OutputError(f"a new folder is needed, {out} exists; remove it or name another")
    pictures = list_photos(photos)
    with whole_folder(out) as beside:
        scenes = []
        for number, spec in enumerate(SCENES):
            photo = pictures[spec.photo % len(pictures)]
            name = f"{number}_{photo.stem}_{spec.speed:g}px"
            print(f"{name} ({number + 1}/{len(SCENES)})", flush=True)
            size = {"height": height, "width": width, "frames": frames}
            scene = draw_scene(spec, number, pictures, **size, seed=seed)
            sequence = render_sequence(scene, scale=scale, max_subframes=MAX_SUBFRAMES, device=device)
            walk = exposure_walk(
                np.random.default_rng(seed + number),
                frames,
                START_LEVELS[number % len(START_LEVELS)],
                INTERVALS[number % len(INTERVALS)],
            )
            conditions = {f"5_{level}": np.full(frames, level) for level in range(1, LEVELS + 1)} | {"re": walk}
            save_scene(beside / name, sequence, conditions, [seed, number] if degraded else None)
            exposure = {condition: (levels / LEVELS).tolist() for condition, levels in conditions.items()}
            scenes.append(BenchmarkScene(name=name, speed=spec.speed, cutouts=spec.cutouts, exposure=exposure))

        benchmark = Benchmark(
            scale=scale,
            width=width,
            height=height,
            frames=frames,
            seed=seed,
            scenes=scenes,
            photos={photo.name: sha256(photo.read_bytes()).hexdigest() for photo in pictures},
            degraded=degraded,
        )
        walks = [" ".join([scene.name, *(f"{exposure:g}" for exposure in scene.exposure["re"])]) for scene in scenes]
        (beside / "re.txt").write_text("\n".join(walks) + "\n")
        (beside / "benchmark.json").write_text(json.dumps(asdict(benchmark), indent=1) + "\n")


main = command(build, __doc__)

if __name__ == "__main__":
    main()
