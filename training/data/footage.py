"""Footage of published sets to pools and benchmarks: high frame rates to blurred frames at five exposures, for REDS and
GoPro, and clips that exist blurred and sharp, for GoPro and BSD.

The sharp clip is brought to 80 sub-frames per output frame by an interpolator; a frame of exposure level N is the mean
of 16 N of them around its truth instant, reduced bicubically.

Source: FMA-Net++ (arXiv 2512.04390), Sec. S3, Eq. S2 and S3. Departures: windows are centred on the truth instant (the
paper starts all of them at the same sub-frame, so that truth would jump where the level changes), and the truth
instant is a frame that was filmed, not one between two.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray

from training.data.benchmark import Benchmark, BenchmarkScene, save_clip
from training.data.exposure import exposure_walk
from training.data.parallel import finished
from training.data.photos import GAMMA, downscale, load_photo
from training.data.pool import save_sequence, sequence_folder
from training.data.render import Sequence as Rendered
from training.data.render import to_bytes
from training.options import FLAT
from vsfmanet.errors import ConfigError, OutputError, SourceError
from vsfmanet.networks.exposure_extractor import LEVELS

type Interpolate = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], NDArray[np.float32]]
"""Frames before and after, (H, W, 3) RGB, and a count n; returns (n, H, W, 3), evenly between them, code values."""

SUBFRAMES = 80
"""Sub-frames of an output frame's interval."""

CONDITION = "blur"
"""Condition of the clips of a benchmark that are blurred as they were found."""

CONSISTENT = 1.0
"""LR pixels that flow forward and back may be apart where it is trusted."""


def interpolate_blend(before: NDArray[np.uint8], after: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """Cross-fade. Cheap; where things move by more than a pixel between filmed frames, blur becomes double images."""
    share = ((np.arange(count) + 1) / (count + 1)).astype(np.float32)[:, None, None, None]
    return (1 - share) * before.astype(np.float32) + share * after.astype(np.float32)


def interpolate_farneback(before: NDArray[np.uint8], after: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """Move both frames along Farneback flow and cross-fade; fit for the small motions of 120 and 240 frames a second.

    This stands in for EMA-VFI, which the paper uses; name that or another by `--interpolator MODULE:FUNCTION`.
    """
    forward, back = farneback(before, after), farneback(after, before)
    height, width = before.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

    def moved(frame: NDArray[np.uint8], flow: NDArray[np.float32]) -> NDArray[np.float32]:
        place = (x - flow[..., 0], y - flow[..., 1])
        return cv2.remap(frame, *place, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)

    shares = (np.arange(count) + 1) / (count + 1)
    frames = [
        (1 - s) * moved(before, np.float32(s) * forward) + s * moved(after, np.float32(1 - s) * back) for s in shares
    ]
    return np.stack(frames).astype(np.float32)


INTERPOLATORS: dict[str, Interpolate] = {"farneback": interpolate_farneback, "blend": interpolate_blend}


def load_interpolator(name: str) -> Interpolate:
    """Find an interpolator: a key of `INTERPOLATORS`, or MODULE:FUNCTION.

    Raises:
        ConfigError: There is none of this name.
    """
    if name in INTERPOLATORS:
        return INTERPOLATORS[name]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--interpolator: {', '.join(INTERPOLATORS)} or MODULE:FUNCTION is needed, got {name!r} ({error})"
        ) from error


def farneback(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Flow between two frames (H, W, 3) RGB; returns (H, W, 2) pixels, x before y."""
    own, other = (cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (before, after))
    flow = np.zeros((*before.shape[:2], 2), dtype=np.float32)
    cv2.calcOpticalFlowFarneback(
        own, other, flow, pyr_scale=0.5, levels=5, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    return flow


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How footage is exposed."""

    per_frame: int
    """Filmed frames per output frame; divides 80."""
    scale: int
    """HR size / LR size."""
    interpolator: str
    """See `load_interpolator`."""
    linear: bool
    """Average light, not code values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Clips that exist blurred and sharp. Their files come in turn: a blurred frame, then its sharp one."""

    per_frame: ClassVar[int] = 2
    """Files per output frame."""
    scale: int
    """HR size / LR size."""
    exposure: float
    """Open-shutter time of the blurred frames over the frame interval, in (0, 1]."""


@FLAT
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """A pool and a benchmark of a published set."""

    pool: Path | None = None
    """Folder for training sequences; an interrupted pool is completed."""
    benchmark: Path | None = None
    """Folder to make for the test clips, see training.evaluate."""
    scale: Literal[4, 2, 1] = 4
    """HR size over LR size."""
    frames: int = 10
    """Length of a training sequence."""
    workers: int = 2
    """Processes for the pool."""

    def check(self) -> None:
        """Refuse what would write nothing, or over a benchmark.

        Raises:
            ConfigError: Neither pool nor benchmark is named.
            OutputError: The benchmark exists.
        """
        if not (self.pool or self.benchmark):
            raise ConfigError("--pool or --benchmark is needed, got neither; name a folder to write")
        if self.benchmark and self.benchmark.exists():
            raise OutputError(f"a new folder is needed, {self.benchmark} exists; remove it or name another")


@FLAT
@dataclass(frozen=True, kw_only=True)
class FootageOptions(OutputOptions):
    """A pool and a benchmark of footage."""

    interpolator: Annotated[str, Parameter(metavar="NAME")] = "farneback"
    """farneback, blend, or MODULE:FUNCTION of your own."""
    linear: bool = False
    """Average light (gamma 2.2) instead of code values."""

    def recipe(self, per_frame: int) -> Recipe:
        """Return how footage is exposed that has this many filmed frames per output frame."""
        return Recipe(per_frame=per_frame, scale=self.scale, interpolator=self.interpolator, linear=self.linear)


NOTHING = FootageOptions()
"""Default of the commands; `check` refuses it."""


def exposed_frames(paths: Sequence[Path], recipe: Recipe) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Expose a sharp clip, given as its frames in order, at every level, frame by frame.

    Yields:
        The blurred LR frame at all levels (5, 3, h, w), and the sharp frame (3, H, W).
    """
    per_frame, scale = recipe.per_frame, recipe.scale
    interpolate = load_interpolator(recipe.interpolator)
    step = SUBFRAMES // per_frame  # sub-frames per filmed frame
    held: dict[int, NDArray[np.uint8]] = {}
    gaps: dict[int, NDArray[np.float32]] = {}
    last = step * (len(paths) - 1)

    def filmed(number: int) -> NDArray[np.uint8]:
        if number not in held:
            held[number] = np.ascontiguousarray(load_photo(paths[number]).permute(1, 2, 0).numpy())
        return held[number]

    def subframe(index: int) -> NDArray[np.float32]:
        number, between = divmod(min(max(index, 0), last), step)  # at the clip's ends the last one is repeated
        if between == 0:
            return filmed(number).astype(np.float32)
        if number not in gaps:
            gaps[number] = interpolate(filmed(number), filmed(number + 1), step - 1)
        return gaps[number][between - 1]

    for frame in range(len(paths) // per_frame):
        centre = step * (per_frame * frame + per_frame // 2)
        truth = filmed(centre // step)
        if truth.shape[0] % scale or truth.shape[1] % scale:
            raise SourceError(
                f"sides must be multiples of {scale}, those of {paths[0]} are "
                f"{truth.shape[1]} x {truth.shape[0]}; crop the frames first"
            )
        total, levels = np.zeros(truth.shape), []
        inner = 0
        for level in range(1, LEVELS + 1):
            reach = 8 * level  # sub-frames to each side: 16 N in all
            for index in (*range(centre - reach, centre - inner), *range(centre + inner, centre + reach)):
                codes = subframe(index)
                total += (codes.clip(0, 255) / 255) ** GAMMA if recipe.linear else codes
            inner = reach
            mean = total / (2 * reach)
            levels.append(mean ** (1 / GAMMA) if recipe.linear else mean / 255)
        blurred = torch.from_numpy(np.stack(levels)).float().permute(0, 3, 1, 2).clamp(0, 1)
        small = downscale(blurred, truth.shape[0] // scale, truth.shape[1] // scale)
        yield to_bytes(small), truth.transpose(2, 0, 1)
        oldest = (centre + SUBFRAMES // 2) // step  # where the next frame's longest window begins
        held = {number: picture for number, picture in held.items() if number >= oldest}
        gaps = {number: pictures for number, pictures in gaps.items() if number >= oldest}


def load_pair(blurred: Path, sharp: Path, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a blurred frame, made smaller by `scale` to (3, h, w), and its sharp frame (3, H, W)."""
    truth, given = load_photo(sharp).numpy(), load_photo(blurred)
    height, width = truth.shape[1] // scale, truth.shape[2] // scale
    return to_bytes(downscale(given[None].float() / 255, height, width))[0], truth


def paired_frames(paths: Sequence[Path], pairs: Pairs) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield what `exposed_frames` does of a clip of pairs: its one exposure stands at every level."""
    for blurred, sharp in batched(paths, Pairs.per_frame):
        lr, truth = load_pair(blurred, sharp, pairs.scale)
        yield np.repeat(lr[None], LEVELS, axis=0), truth


def estimate_motion(sharp: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Estimate flow and visibility between sharp frames at LR size, in place of RAFT's.

    Args:
        sharp: (T, 3, H, W).
        scale: HR size / LR size.

    Returns:
        As in `training.data.render.Sequence`; a pixel counts as visible where flow forward and back agree within
        `CONSISTENT` pixels.
    """
    frames, _, height, width = sharp.shape
    small = to_bytes(downscale(torch.from_numpy(sharp).float() / 255, height // scale, width // scale))
    pictures = small.transpose(0, 2, 3, 1)
    h, w = small.shape[2:]
    flow, visible = np.zeros((frames, 2, 2, h, w), np.float16), np.ones((frames, 2, h, w), np.uint8)
    x, y = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    for t in range(frames - 1):
        ahead, back = farneback(pictures[t], pictures[t + 1]), farneback(pictures[t + 1], pictures[t])
        for frame, direction, own, other in ((t, 0, ahead, back), (t + 1, 1, back, ahead)):
            place = (x + own[..., 0], y + own[..., 1])
            returned = own + cv2.remap(other, *place, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            inside = (place[0] >= 0) & (place[0] <= w - 1) & (place[1] >= 0) & (place[1] <= h - 1)
            flow[frame, direction] = own.transpose(2, 0, 1)
            visible[frame, direction] = inside & (np.linalg.norm(returned, axis=-1) <= CONSISTENT)
    return flow, visible


def fill_pool(
    pool: Path, clips: Mapping[str, list[Path]], recipe: Recipe | Pairs, *, length: int, workers: int
) -> None:
    """Write all sequences of some clips that a pool does not have yet.

    Args:
        pool: Its folder.
        clips: The files of each clip, by its name.
        recipe: How they are exposed, or that they are already.
        length: Frames of a sequence; what is left at a clip's end is dropped.
        workers: Processes; each works on a clip of its own.

    Raises:
        ConfigError: The pool was begun otherwise.
    """
    pool.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(recipe), "frames": length, "clips": list(clips)}
    record = pool / "pool.json"
    if record.exists() and json.loads(record.read_text()) != settings:
        raise ConfigError(f"{record} holds other settings than asked for; name another --pool")
    record.write_text(json.dumps(settings, indent=2) + "\n")
    tasks, first = [], 0
    for paths in clips.values():
        count = len(paths) // recipe.per_frame // length
        if any(not sequence_folder(pool, first + number).exists() for number in range(count)):
            tasks.append((paths, first))
        first += count
    write = partial(write_sequences, pool=pool, recipe=recipe, length=length)
    for done, _ in enumerate(finished(write, tasks, workers), start=1):
        print(f"{done}/{len(tasks)} clips", flush=True)


def write_sequences(task: tuple[list[Path], int], *, pool: Path, recipe: Recipe | Pairs, length: int) -> None:
    """Expose a clip, estimate its motion, and write its sequences, from a number on, that the pool lacks."""
    paths, number = task
    held: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
    for item in paired_frames(paths, recipe) if isinstance(recipe, Pairs) else exposed_frames(paths, recipe):
        held.append(item)
        if len(held) < length:
            continue
        if not sequence_folder(pool, number).exists():
            lr, hr = np.stack([levels for levels, _ in held], axis=1), np.stack([sharp for _, sharp in held])
            flow, visible = estimate_motion(hr, recipe.scale)
            save_sequence(Rendered(lr=lr, hr=hr, flow=flow, visible=visible), sequence_folder(pool, number))
        number += 1
        held.clear()


def write_scene(
    frames: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    folder: Path,
    *,
    start: int,
    interval: int,
    seed: int,
) -> BenchmarkScene:
    """Write a test clip at every level and at changing exposure (Algorithm S1, from level `start`)."""
    levels, sharp = (np.stack(part) for part in zip(*frames, strict=True))
    walk = exposure_walk(np.random.default_rng(seed), len(sharp), start, interval)
    conditions = {f"5_{level}": np.full(len(sharp), level) for level in range(1, LEVELS + 1)} | {"re": walk}
    save_clip(folder / "sharp", sharp)
    for condition, own in conditions.items():
        save_clip(folder / condition, levels[np.arange(len(own)), own - 1])
    exposure = {condition: (own / LEVELS).tolist() for condition, own in conditions.items()}
    return BenchmarkScene(name=folder.name, speed=None, cutouts=None, exposure=exposure)


def write_pairs(folder: Path, paths: Sequence[Path], pairs: Pairs) -> BenchmarkScene:
    """Write a test clip that exists blurred and sharp, with one condition, `CONDITION`."""
    print(folder.name, flush=True)
    frames = [load_pair(blurred, sharp, pairs.scale) for blurred, sharp in batched(paths, Pairs.per_frame)]
    given, truth = (np.stack(part) for part in zip(*frames, strict=True))
    save_clip(folder / "sharp", truth)
    save_clip(folder / CONDITION, given)
    exposure = {CONDITION: [pairs.exposure] * len(frames)}
    return BenchmarkScene(name=folder.name, speed=None, cutouts=None, exposure=exposure)


def write_benchmark_of_pairs(folder: Path, clips: Mapping[str, list[Path]], pairs: Pairs) -> None:
    """Write a benchmark of clips that exist blurred and sharp."""
    scenes = [write_pairs(folder / name, paths, pairs) for name, paths in clips.items()]
    write_benchmark(folder, scenes, scale=pairs.scale, seed=0)


def write_benchmark(folder: Path, scenes: list[BenchmarkScene], *, scale: int, seed: int) -> None:
    """Write the record of a benchmark whose clips lie in `folder`; all are as large as the first."""
    first = sorted((folder / scenes[0].name / "sharp").glob("*.png"))
    _, height, width = load_photo(first[0]).shape
    record = Benchmark(scale=scale, width=width, height=height, frames=len(first), seed=seed, scenes=scenes, photos={})
    walks = [" ".join([s.name, *(f"{value:g}" for value in s.exposure["re"])]) for s in scenes if "re" in s.exposure]
    if walks:
        (folder / "re.txt").write_text("\n".join(walks) + "\n")
    (folder / "benchmark.json").write_text(json.dumps(asdict(record), indent=1) + "\n")


def find_pairs(folder: Path, *, blurred: str, sharp: str) -> dict[str, list[Path]]:
    """Find every clip in `folder`, by its name, that has folders `blurred` and `sharp` of PNG frames.

    Returns:
        For each clip, its blurred and its sharp files, in the order that `Pairs` expects.

    Raises:
        SourceError: There is none, or one has not as many frames of each.
    """
    clips = {}
    for clip in sorted(folder.glob("*")):
        if not all((clip / part).is_dir() for part in (blurred, sharp)):
            continue
        given, truth = (sorted((clip / part).glob("*.png")) for part in (blurred, sharp))
        if not truth or len(truth) != len(given):
            raise SourceError(
                f"{clip}: as many sharp frames as blurred ones are needed, got {len(truth)} and {len(given)}"
            )
        clips[clip.name] = [path for pair in zip(given, truth, strict=True) for path in pair]
    if not clips:
        raise SourceError(
            f"folders with {blurred} and {sharp} are needed, {folder} has none; "
            "name a part of the data set, such as its folder test"
        )
    return clips


def find_clips(folder: Path, *, least: int) -> dict[str, list[Path]]:
    """Find every folder of `least` or more PNG or JPEG frames below `folder`, by its name.

    Raises:
        SourceError: There is none, or two have one name.
    """
    clips: dict[str, list[Path]] = {}
    for parent in sorted({path.parent for pattern in ("*.png", "*.jpg") for path in folder.rglob(pattern)}):
        frames = sorted(path for path in parent.iterdir() if path.suffix in (".png", ".jpg"))
        if len(frames) < least:
            continue
        if parent.name in clips:
            raise SourceError(f"names must differ, {parent} and {clips[parent.name][0].parent} do not; rename one")
        clips[parent.name] = frames
    if not clips:
        raise SourceError(f"folders of {least} or more frames are needed, {folder} has none; see --help")
    return clips
