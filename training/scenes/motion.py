"""Smooth random motion: a path of homographies that is defined at every instant, not at frames only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
