"""Scenes to frames: sharp truth, the same frame at all five exposures, exact flow and visibility.

Light is sampled bicubically, composited and integrated linearly, and encoded with gamma 2.2 at the end. A frame's
exposure window is centred on its truth instant. Everything runs on the device that is asked for.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.data.motion import BEND_SLOPE
from training.data.photos import downscale, to_code
from training.data.scene import Layer, Scene, frame_corners, project
from vsfmanet.networks.exposure_extractor import LEVELS

SUBFRAMES_PER_PIXEL = 2
"""Sub-frames per HR pixel of motion over a whole frame interval, until `max_subframes` is reached."""

SUBFRAME_STEP = 2 * LEVELS
"""Sub-frame counts are multiples of this, so that every level has a whole number of them on each side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """A rendered clip of T frames; HR is `scale` times LR. Flow and visibility have directions next, previous."""

    lr: NDArray[np.uint8]
    """(5, T, 3, h, w) code values of the blurred LR frames; index N - 1 holds exposure level N."""
    hr: NDArray[np.uint8]
    """(T, 3, H, W) code values of the sharp frames."""
    flow: NDArray[np.float16]
    """(T, 2, 2, h, w) LR pixels, channels right, down; zero where the clip has no neighbour."""
    visible: NDArray[np.uint8]
    """(T, 2, h, w) 1 where the whole LR pixel can be found in the neighbour, else 0; 1 where there is no neighbour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A rectangle of frame pixels; ends are exclusive."""

    top: int
    bottom: int
    left: int
    right: int


def render_sequence(scene: Scene, *, scale: int, max_subframes: int = 40, device: str = "cpu") -> Sequence:
    """Render every frame of `scene` at all exposure levels.

    Args:
        scene: What to render; height and width are multiples of `scale`.
        scale: HR size / LR size, at least 1.
        max_subframes: Sub-frames per frame interval at most; a multiple of 10.
        device: Where to compute.

    Returns:
        The sequence, on the host.
    """
    textures = [layer.texture.to(device) for layer in scene.layers]
    levels, sharp = [], []
    for index in range(scene.frames):
        count = subframe_count(scene, index, max_subframes)
        blurred = to_code(render_exposures(scene, textures, index, count))
        levels.append(to_bytes(downscale(blurred, scene.height // scale, scene.width // scale)))
        sharp.append(to_bytes(to_code(render_instants(scene, textures, np.array([float(index)]))[0])))
    flow, visible = render_flow(scene, scale)
    return Sequence(lr=np.stack(levels, axis=1), hr=np.stack(sharp), flow=flow, visible=visible)


def to_bytes(codes: Tensor) -> NDArray[np.uint8]:
    """Round code values (any shape, clamped to [0, 1]) to 8 bits."""
    return np.asarray((codes.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def subframe_count(scene: Scene, index: int, max_subframes: int) -> int:
    """Choose how many sub-frames frame `index` needs over a whole interval: a multiple of 10."""
    times = np.linspace(index - 0.5, index + 0.5, 9)
    corners = frame_corners(scene.height, scene.width)
    longest = 0.0
    for layer in scene.layers:
        maps = layer.homographies(times)
        steps = project(np.linalg.inv(maps[1:]) @ maps[:-1], corners) - corners
        length = float(np.linalg.norm(steps, axis=-1).sum(axis=0).max())
        if layer.deformation is not None:
            length = length * (1 + BEND_SLOPE[1]) + layer.deformation.fastest
        longest = max(longest, length)
    wanted = int(np.ceil(longest * SUBFRAMES_PER_PIXEL / SUBFRAME_STEP)) * SUBFRAME_STEP
    return int(np.clip(wanted, SUBFRAME_STEP, max_subframes))


def render_exposures(scene: Scene, textures: list[Tensor], index: int, count: int) -> Tensor:
    """Integrate frame `index` over the windows of all levels in one pass, from the truth instant outwards.

    Args:
        scene: What to render.
        textures: The layers' textures, on the device.
        index: Frame; its truth instant is time `index`.
        count: Sub-frames over a whole interval, a multiple of 10.

    Returns:
        (5, 3, H, W) mean light; index N - 1 holds level N.
    """
    total = torch.zeros((), device=textures[0].device)
    levels = []
    for level in range(1, LEVELS + 1):
        # What level N adds to level N - 1: as many sub-frames before the truth instant as after it.
        per_side = count // SUBFRAME_STEP
        offsets = ((level - 1) * per_side + np.arange(per_side) + 0.5) / count
        times = index + np.concatenate([-offsets, offsets])
        total = total + render_instants(scene, textures, times).sum(dim=0)
        levels.append(total / (2 * per_side * level))
    return torch.stack(levels)


def render_instants(scene: Scene, textures: list[Tensor], times: NDArray[np.float64]) -> Tensor:
    """Render the scene at `times` (n,) in frames, with no exposure; returns light (n, 3, H, W), not clamped."""
    whole = Region(top=0, bottom=scene.height, left=0, right=scene.width)
    frames = sample_layer(scene.layers[0], textures[0], times, whole)
    for layer, texture in zip(scene.layers[1:], textures[1:], strict=True):
        region = covered_region(layer, layer.homographies(times), scene)
        if region is None:
            continue
        sampled = sample_layer(layer, texture, times, region)
        under = frames[..., region.top : region.bottom, region.left : region.right]
        under += sampled[:, 3:].clamp(0, 1) * (sampled[:, :3] - under)
    return frames


def covered_region(layer: Layer, maps: NDArray[np.float64], scene: Scene) -> Region | None:
    """Bound the pixels that `layer` can touch under `maps` (n, 3, 3); None if it is out of the frame."""
    texture_corners = frame_corners(*layer.texture.shape[-2:])
    if layer.deformation is not None:
        texture_corners += np.where(texture_corners > 0, 1, -1) * layer.deformation.largest
    corners = project(np.linalg.inv(maps), texture_corners).reshape(-1, 2)
    left, top = np.floor(corners.min(axis=0)).astype(int)
    right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
    region = Region(top=max(top, 0), bottom=min(bottom, scene.height), left=max(left, 0), right=min(right, scene.width))
    return region if region.top < region.bottom and region.left < region.right else None


def sample_layer(layer: Layer, texture: Tensor, times: NDArray[np.float64], region: Region) -> Tensor:
    """Sample a layer's texture at some instants, bicubically (a = -0.75).

    Args:
        layer: What moves.
        texture: Its texture (C, H, W), on the device.
        times: (n,) in frames.
        region: Frame pixels to compute.

    Returns:
        (n, C, h, w) for the region's h x w.
    """
    height, width = texture.shape[-2:]
    normalise = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    maps = normalise @ layer.homographies(times)
    rows = torch.from_numpy(maps).float().to(texture.device)[..., None, None]  # (n, 3, 3, 1, 1)
    x = torch.arange(region.left, region.right, device=texture.device, dtype=torch.float32)
    y = torch.arange(region.top, region.bottom, device=texture.device, dtype=torch.float32)[:, None]
    along_x, along_y, depth = (rows[:, i, 0] * x + (rows[:, i, 1] * y + rows[:, i, 2]) for i in range(3))
    column, row = along_x / depth, along_y / depth
    if layer.deformation is not None:
        instants = torch.from_numpy(times).float().to(texture.device)[:, None, None]
        pixel_x, pixel_y = ((column + 1) * width - 1) / 2, ((row + 1) * height - 1) / 2
        right, down = layer.deformation.displacement(pixel_x, pixel_y, instants)
        column, row = column + right * (2 / width), row + down * (2 / height)
    grid = torch.stack([column, row], dim=-1)
    stack = texture.expand(len(maps), -1, -1, -1)
    return functional.grid_sample(stack, grid, mode="bicubic", padding_mode="border", align_corners=False)


def texture_points(layer: Layer, points: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    """Where in the texture lies what the frame's `points` (n, 2) show at `time`; same shape."""
    shown = project(layer.homographies(np.array([time]))[0], points)
    return shown if layer.deformation is None else layer.deformation.bent(shown, time)


def moved_points(layer: Layer, points: NDArray[np.float64], start: float, end: float) -> NDArray[np.float64]:
    """Where in the frame is at `end` what is at `points` (n, 2) at `start`; same shape."""
    before, after = layer.homographies(np.array([start, end]))
    if layer.deformation is None:
        return project(np.linalg.inv(after) @ before, points)
    held = layer.deformation.unbent(texture_points(layer, points, start), end)
    return project(np.linalg.inv(after), held)


def render_flow(scene: Scene, scale: int) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Compute the exact motion between truth instants.

    A pixel belongs to the front layer whose opacity exceeds one half there. It is visible in a neighbour if it stays
    in the frame and no layer in front of its own covers it by more than one half.

    Args:
        scene: What moves.
        scale: Pixels averaged each way, and the divisor that turns HR pixels into LR pixels.

    Returns:
        Flow and visibility, as in `Sequence`.

    Source: the definition of the reference flow f^Y_ref; FMA-Net++ (arXiv 2512.04390) estimates it with RAFT.
    """
    height, width = scene.height, scene.width
    h, w = height // scale, width // scale
    flow = np.zeros((scene.frames, 2, 2, h, w), dtype=np.float16)
    visible = np.ones((scene.frames, 2, h, w), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x.ravel(), y.ravel()], axis=-1).astype(np.float64)  # (H * W, 2)
    for index in range(scene.frames):
        owner = np.zeros(len(pixels), dtype=np.int64)
        for number, layer in enumerate(scene.layers[1:], start=1):
            owner[opacity_at(layer, texture_points(layer, pixels, index)) > 0.5] = number
        for direction, neighbour in enumerate((index + 1, index - 1)):
            if not 0 <= neighbour < scene.frames:
                continue
            target = np.empty_like(pixels)
            for number, layer in enumerate(scene.layers):
                own = owner == number
                target[own] = moved_points(layer, pixels[own], index, neighbour)
            seen = ((target >= 0) & (target <= (width - 1, height - 1))).all(axis=-1)
            for number, layer in enumerate(scene.layers[1:], start=1):
                behind = np.flatnonzero(seen & (owner < number))
                hidden = opacity_at(layer, texture_points(layer, target[behind], neighbour)) > 0.5
                seen[behind[hidden]] = False
            blocks = (target - pixels).reshape(h, scale, w, scale, 2).mean(axis=(1, 3)) / scale
            flow[index, direction] = blocks.transpose(2, 0, 1)
            visible[index, direction] = seen.reshape(h, scale, w, scale).all(axis=(1, 3))
    return flow, visible


def opacity_at(layer: Layer, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Sample the opacity of a cut-out at texture `points` (n, 2) as x, y; returns (n,), zero outside the texture."""
    height, width = layer.texture.shape[-2:]
    inside = ((points >= 0) & (points <= (width - 1, height - 1))).all(axis=-1)
    grid = torch.from_numpy((2 * points[inside] + 1) / (width, height) - 1).float()
    opacity = functional.grid_sample(layer.texture[None, 3:], grid[None, None], mode="bicubic", align_corners=False)
    sampled = np.zeros(len(points), dtype=np.float32)
    sampled[inside] = opacity.view(-1).numpy()
    return sampled
