"""Scenes: a photograph as background, and cut-outs of others, each on a path of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data.motion import Deformation, Path, random_deformation, random_path
from training.data.photos import detail, detailed_corner, load_photo, reduced

MARGIN = 4
"""Texture pixels kept beyond everything that a layer shows, for the bicubic kernel."""

MAX_REDUCTION = 2.5
"""Largest reduction of a photograph before use; reducing hides the softness of its lens and compression."""

PHOTO_TRIES = 12
"""Photographs, each with a new path, that are tried for the background; the last is mirrored if it is too small."""

MIN_DETAIL = 0.03
"""Mean gradient, in code values per pixel, below which a background is refused: bokeh and sky teach little."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A flat picture that moves."""

    texture: Tensor
    """(3, H, W) light in [0, 1], or (4, H, W) with opacity in [0, 1] last; without opacity it fills the frame."""
    path: Path
    """Its motion, seen from the frame."""
    centre: tuple[float, float]
    """x, y of the frame's pixel that shows the anchor at the path's origin."""
    anchor: tuple[float, float]
    """x, y in the texture."""
    deformation: Deformation | None = None
    """How the texture bends by itself, if it does."""

    def homographies(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Maps from frame pixels to texture pixels at `times` (n,) in frames; returns (n, 3, 3)."""
        to_texture = np.array([[1, 0, self.anchor[0]], [0, 1, self.anchor[1]], [0, 0, 1]])
        return to_texture @ self.path.homographies(times, self.centre)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Layers from back to front, and the frames through which they are seen."""

    layers: tuple[Layer, ...]
    """The background first; it has no opacity."""
    height: int
    """HR rows."""
    width: int
    """HR columns."""
    frames: int
    """Length; frame i's truth instant is time i."""


def project(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply `homography` (..., 3, 3) to `points` (n, 2) as x, y; returns (..., n, 2)."""
    columns = homography @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T
    return np.asarray(np.swapaxes(columns[..., :2, :] / columns[..., 2:, :], -1, -2))


def frame_corners(height: int, width: int) -> NDArray[np.float64]:
    """Return the four corner pixels of a frame as (4, 2) x, y."""
    return np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.float64)


def random_speed(generator: np.random.Generator) -> float:
    """Draw a mean speed in HR pixels per frame: near rest in one scene of ten, else log-uniform over 0.7..40 or 60."""
    if generator.random() < 0.1:
        return float(generator.uniform(0.02, 0.5))
    fastest = 60 if generator.random() < 0.1 else 40
    return float(np.exp(generator.uniform(np.log(0.7), np.log(fastest))))


def random_scene(
    generator: np.random.Generator,
    photos: Sequence[FilePath],
    *,
    height: int,
    width: int,
    frames: int,
    speed: float | None = None,
    layers: int | None = None,
    nonrigid: float = 0.0,
) -> Scene:
    """Draw a scene; it depends on the generator's state and the arguments alone.

    Args:
        generator: Source of all randomness.
        photos: Files to choose from.
        height: HR rows.
        width: HR columns.
        frames: Length, at least 1.
        speed: Mean speed of the camera in HR pixels per frame; None draws it.
        layers: Number of moving cut-outs; None draws 0, 1 or 2.
        nonrigid: Chance of each layer to bend, in [0, 1]; at 0 nothing is drawn for it.

    Returns:
        The scene.

    Raises:
        SourceError: A photograph cannot be read.
    """
    speed = random_speed(generator) if speed is None else speed
    count = int(generator.choice(3, p=(0.4, 0.35, 0.25))) if layers is None else layers
    background = random_background(
        generator, photos, height=height, width=width, frames=frames, speed=speed, nonrigid=nonrigid
    )
    cutouts = [
        random_cutout(generator, photos, height=height, width=width, frames=frames, nonrigid=nonrigid)
        for _ in range(count)
    ]
    return Scene(layers=(background, *cutouts), height=height, width=width, frames=frames)


def random_background(
    generator: np.random.Generator,
    photos: Sequence[FilePath],
    *,
    height: int,
    width: int,
    frames: int,
    speed: float,
    nonrigid: float = 0.0,
) -> Layer:
    """Draw a photograph and a camera path that stays inside it; arguments as in `random_scene`."""
    bend = random_deformation(generator, max(height, width)) if nonrigid and generator.random() < nonrigid else None
    margin = MARGIN + (0.0 if bend is None else np.ceil(bend.largest))
    centre = ((width - 1) / 2, (height - 1) / 2)
    times = np.linspace(-0.5, frames - 0.5, 8 * frames + 1)
    for attempt in range(PHOTO_TRIES):
        path = random_path(generator, speed=speed, frames=frames, radius=max(height, width) / 2)
        codes = load_photo(photos[int(generator.integers(len(photos)))])
        seen = project(path.homographies(times, centre), frame_corners(height, width)).reshape(-1, 2)
        low, high = np.floor(seen.min(axis=0)) - margin, np.ceil(seen.max(axis=0)) + margin
        box_width, box_height = (int(size) for size in high - low + 1)
        largest = min(codes.shape[-2] / (box_height + 1), codes.shape[-1] / (box_width + 1), MAX_REDUCTION)
        last = attempt == PHOTO_TRIES - 1
        if largest < 1 and not last:
            continue
        light = mirrored(reduced(codes, generator.uniform(1, max(largest, 1))), box_height, box_width)
        top, left = detailed_corner(generator, light, box_height, box_width)
        texture = light[:, top : top + box_height, left : left + box_width].contiguous()
        if last or detail(texture).mean() > MIN_DETAIL:
            break
    anchor = (float(-low[0]), float(-low[1]))
    return Layer(texture=texture, path=path, centre=centre, anchor=anchor, deformation=bend)


def mirrored(light: Tensor, height: int, width: int) -> Tensor:
    """Extend `light` (3, H, W) by reflection to at least `height` x `width`."""
    while light.shape[-2] < height or light.shape[-1] < width:
        below = min(max(height - light.shape[-2], 0), light.shape[-2] - 1)
        right = min(max(width - light.shape[-1], 0), light.shape[-1] - 1)
        light = functional.pad(light[None], (0, right, 0, below), mode="reflect")[0]
    return light


def random_cutout(
    generator: np.random.Generator,
    photos: Sequence[FilePath],
    *,
    height: int,
    width: int,
    frames: int,
    nonrigid: float = 0.0,
) -> Layer:
    """Draw a soft-edged blob of a photograph that crosses the frame; arguments as in `random_scene`."""
    bends = bool(nonrigid) and generator.random() < nonrigid
    radius = generator.uniform(0.1, 0.3) * min(height, width)
    opacity = random_blob(generator, radius)
    codes = load_photo(photos[int(generator.integers(len(photos)))])
    largest = min(min(codes.shape[-2:]) / (opacity.shape[-1] + 1), MAX_REDUCTION)
    light = mirrored(reduced(codes, generator.uniform(1, max(largest, 1))), *opacity.shape)
    top, left = detailed_corner(generator, light, *opacity.shape)
    colour = light[:, top : top + opacity.shape[0], left : left + opacity.shape[1]]
    half = (opacity.shape[-1] - 1) / 2
    return Layer(
        texture=torch.cat([colour, opacity[None]]),
        path=random_path(generator, speed=random_speed(generator), frames=frames, radius=radius),
        centre=(float(generator.uniform(0.1, 0.9) * width), float(generator.uniform(0.1, 0.9) * height)),
        anchor=(half, half),
        deformation=random_deformation(generator, 2 * radius) if bends else None,
    )


def random_blob(generator: np.random.Generator, radius: float) -> Tensor:
    """Draw the opacity of a smooth closed shape.

    Args:
        generator: Source of all randomness.
        radius: Mean radius in pixels.

    Returns:
        (S, S) in [0, 1], zero at the borders, with edges of one to four pixels.
    """
    orders = np.arange(1, 6)
    cosine, sine = generator.normal(size=(2, 5)) * 0.22 / orders
    stretch = np.exp(generator.uniform(-0.5, 0.5))
    softness = generator.uniform(1, 4)
    size = 2 * int(2 * radius + MARGIN) + 1
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis * stretch, axis / stretch)
    angle = np.arctan2(y, x)[..., None] * orders
    edge = radius * np.clip(1 + (cosine * np.cos(angle) + sine * np.sin(angle)).sum(axis=-1), 0.35, 1.6)
    ramp = np.clip((edge - np.hypot(x, y)) / softness + 0.5, 0, 1)
    opacity = ramp * ramp * (3 - 2 * ramp)
    opacity[:2] = opacity[-2:] = 0  # a long shape ends here rather than smearing over the frame
    opacity[:, :2] = opacity[:, -2:] = 0
    return torch.from_numpy(opacity).float()
