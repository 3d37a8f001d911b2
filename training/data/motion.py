"""Smooth random motion that is defined at every instant, not at frames only: paths of homographies, and bending."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHAKE_SLOWEST, SHAKE_FASTEST = 0.03, 0.4
"""Band of hand shake in cycles per frame: 0.7 to 10 Hz at 24 frames per second, the range of sway and tremor."""

SHAKE_TERMS = 10
"""Sinusoids per parameter; enough that the path does not repeat visibly within a clip."""

MAX_ROTATION = 0.03
"""Mean rotation in radians per frame, at most; 40 degrees per second at 24 frames per second."""

MAX_ZOOM = 0.015
"""Mean change of log zoom per frame, at most; more would magnify the photograph until truth is soft."""

MAX_PERSPECTIVE = 4e-5
"""Mean change of each perspective term per frame in 1 / pixel, at most."""

BEND_WAVES = 4
"""Plane waves of a deformation."""

BEND_SLOPE = (0.05, 0.3)
"""Range of the largest strain of a deformation; below 1 it can be undone, and up to 0.3 a picture looks elastic."""

BEND_SLOWEST, BEND_FASTEST = 0.02, 0.2
"""Band of its waves in cycles per frame: from drifting smoke to a flag in the wind."""

BEND_STEPS = 30
"""Fixed-point steps that undo a deformation: 0.3^30 of what there is to undo is left, which is nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Path:
    """A motion in time: six parameters, each a drift plus a sum of sinusoids.

    The parameters are x, y (pixels), rotation (radians), log zoom, and the two perspective terms (1 / pixel).
    """

    drift: NDArray[np.float64]
    """(6,) constant velocity per frame."""
    frequency: NDArray[np.float64]
    """(K,) cycles per frame."""
    amplitude: NDArray[np.float64]
    """(6, K) in the units of the parameters."""
    phase: NDArray[np.float64]
    """(6, K) in radians."""
    origin_time: float
    """Instant, in frames, at which all six parameters are zero."""

    def parameters(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate the six parameters at `times` (n,) in frames; returns (n, 6)."""

        def waves(instants: NDArray[np.float64]) -> NDArray[np.float64]:
            angle = 2 * np.pi * instants[:, None, None] * self.frequency + self.phase
            return np.asarray((self.amplitude * np.sin(angle)).sum(axis=-1))

        drift = (times - self.origin_time)[:, None] * self.drift
        return drift + waves(times) - waves(np.array([self.origin_time]))

    def homographies(self, times: NDArray[np.float64], centre: tuple[float, float]) -> NDArray[np.float64]:
        """Maps from frame pixels (x, y) to texture pixels relative to the path's origin.

        Args:
            times: (n,) instants in frames.
            centre: x, y of the pixel about which the frame turns and zooms; it maps to (0, 0) at `origin_time`.

        Returns:
            (n, 3, 3), acting on columns (x, y, 1).
        """
        x, y, rotation, log_zoom, tilt_x, tilt_y = self.parameters(times).T
        to_centre = np.array([[1, 0, -centre[0]], [0, 1, -centre[1]], [0, 0, 1]], dtype=np.float64)
        zoom = np.exp(log_zoom)
        motion = np.zeros((len(times), 3, 3))
        motion[:, 0, 0] = motion[:, 1, 1] = zoom * np.cos(rotation)
        motion[:, 0, 1] = -zoom * np.sin(rotation)
        motion[:, 1, 0] = zoom * np.sin(rotation)
        motion[:, 0, 2], motion[:, 1, 2] = x, y
        motion[:, 2, 0], motion[:, 2, 1], motion[:, 2, 2] = tilt_x, tilt_y, 1
        return motion @ to_centre


def random_path(generator: np.random.Generator, *, speed: float, frames: int, radius: float) -> Path:
    """Draw a path between a steady pan and pure hand shake.

    Args:
        generator: Source of all randomness.
        speed: Mean speed of the frame's centre over the clip, in pixels per frame.
        frames: Length of the clip.
        radius: Half of the frame's size in pixels; turns the speed of rotation and zoom into pixels.

    Returns:
        A path that is at its origin in the middle of the clip.
    """
    frequency = np.exp(generator.uniform(np.log(SHAKE_SLOWEST), np.log(SHAKE_FASTEST), SHAKE_TERMS))
    slope = generator.uniform(1.0, 2.2)  # of position over frequency: 1 trembles, 2.2 sways
    shake = generator.normal(size=(6, SHAKE_TERMS)) * frequency**-slope
    phase = generator.uniform(0, 2 * np.pi, (6, SHAKE_TERMS))
    pan_angle = generator.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(pan_angle), np.sin(pan_angle), *generator.normal(size=4)])
    pan_share = generator.uniform(0, 1)
    rotation, zoom, tilt_x, tilt_y = generator.uniform(0, (0.5, 0.3, 0.15, 0.15)) * speed / radius
    groups = (
        (slice(0, 2), speed),
        (slice(2, 3), min(rotation, MAX_ROTATION)),
        (slice(3, 4), min(zoom, MAX_ZOOM)),
        (slice(4, 5), min(tilt_x / radius, MAX_PERSPECTIVE)),
        (slice(5, 6), min(tilt_y / radius, MAX_PERSPECTIVE)),
    )
    times = np.linspace(-0.5, frames - 0.5, 16 * frames + 1)
    angle = 2 * np.pi * times[:, None, None] * frequency + phase
    shake_velocity = (2 * np.pi * frequency * shake * np.cos(angle)).sum(axis=-1)  # (n, 6)
    drift, amplitude = np.zeros(6), np.zeros((6, SHAKE_TERMS))
    for rows, mean_speed in groups:
        shake_scale = (1 - pan_share) / np.linalg.norm(shake_velocity[:, rows], axis=1).mean()
        pan_scale = pan_share / np.linalg.norm(pan[rows])
        velocity = pan_scale * pan[rows] + shake_scale * shake_velocity[:, rows]
        scale = mean_speed / np.linalg.norm(velocity, axis=1).mean()
        drift[rows] = scale * pan_scale * pan[rows]
        amplitude[rows] = scale * shake_scale * shake[rows]
    return Path(drift=drift, frequency=frequency, amplitude=amplitude, phase=phase, origin_time=(frames - 1) / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Deformation:
    """Non-rigid motion: a texture that bends by running plane waves. Point p of it shows what lies at p + d(p, t)."""

    wave: NDArray[np.float64]
    """(K, 2) radians per texture pixel, right and down."""
    amplitude: NDArray[np.float64]
    """(K, 2) texture pixels."""
    frequency: NDArray[np.float64]
    """(K,) radians per frame."""
    phase: NDArray[np.float64]
    """(K,) radians."""

    @property
    def largest(self) -> float:
        """Bound of the displacement, texture pixels."""
        return float(np.linalg.norm(self.amplitude, axis=1).sum())

    @property
    def fastest(self) -> float:
        """Bound of its change, texture pixels per frame."""
        return float((np.linalg.norm(self.amplitude, axis=1) * np.abs(self.frequency)).sum())

    def displacement(self, x: Tensor, y: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate d at texture points x, y and `times` (frames), which broadcast; returns its two parts."""
        right, down = torch.zeros_like(x), torch.zeros_like(y)
        for (wave_x, wave_y), (right_most, down_most), frequency, phase in zip(
            self.wave.tolist(), self.amplitude.tolist(), self.frequency.tolist(), self.phase.tolist(), strict=True
        ):
            swing = (wave_x * x + wave_y * y + (frequency * times + phase)).sin()
            right, down = right + right_most * swing, down + down_most * swing
        return right, down

    def bent(self, points: NDArray[np.float64], time: float) -> NDArray[np.float64]:
        """Where in the texture lies what `points` (n, 2) show at `time`; same shape."""
        x, y = torch.from_numpy(points).unbind(dim=1)
        shift = self.displacement(x, y, torch.tensor(time, dtype=torch.float64))
        return points + torch.stack(shift, dim=1).numpy()

    def unbent(self, points: NDArray[np.float64], time: float) -> NDArray[np.float64]:
        """Which points show at `time` what lies at `points` (n, 2): the inverse of `bent`, by fixed-point steps."""
        found = points
        for _ in range(BEND_STEPS):
            found = points - (self.bent(found, time) - found)
        return found


def random_deformation(generator: np.random.Generator, size: float) -> Deformation:
    """Draw a deformation of things of `size` pixels: waves of a third to three times their size."""
    angle = generator.uniform(0, 2 * np.pi, BEND_WAVES)
    length = size * np.exp(generator.uniform(-np.log(3), np.log(3), BEND_WAVES))
    wave = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    direction = generator.uniform(0, 2 * np.pi, BEND_WAVES)
    share = generator.dirichlet(np.ones(BEND_WAVES)) * generator.uniform(*BEND_SLOPE)
    amplitude = (share * length / (2 * np.pi))[:, None] * np.stack([np.cos(direction), np.sin(direction)], axis=1)
    cycles = np.exp(generator.uniform(np.log(BEND_SLOWEST), np.log(BEND_FASTEST), BEND_WAVES))
    return Deformation(
        wave=wave,
        amplitude=amplitude,
        frequency=2 * np.pi * cycles,
        phase=generator.uniform(0, 2 * np.pi, BEND_WAVES),
    )
