"""Networks over clips: each module runs one kind of network frame by frame, in order, within a scene.

`levels` is for a `LevelNetwork`, `windows` for a `SequenceNetwork`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class FrameSource(Protocol):
    """A clip as a restorer reads it: only frames within its reach of the requested ones."""

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        ...

    def frame(self, n: int) -> Tensor:
        """Return frame `n`: (3, H, W) RGB, fp32, nominal range [0, 1], on the CPU or on the computing device."""
        ...

    def exposure(self, n: int) -> float | None:
        """Return open-shutter time over frame interval of frame `n`, in (0, 1]; None if unknown."""
        ...

    def starts_scene(self, n: int) -> bool:
        """Return whether a cut lies between frames n-1 and n (n >= 1)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """One restored frame."""

    index: int
    """Number of the frame in the clip."""
    frame: Tensor
    """(3, s*H, s*W) RGB, fp32, nominal range [0, 1]; or the result of the restorer's `encode`."""
    exposure: float | None
    """Exposure in (0, 1]: the known one, or the network's estimate. None if neither exists."""
    confidence: float
    """Confidence in the exposure, in [0, 1]; 1 if it is known."""


class Streams(Protocol):
    """Opens streams of restored frames. The pixels of a frame do not depend on where its stream began."""

    can_offload: bool
    """Whether a plan may keep waiting features in the host's memory."""

    def open(self, source: FrameSource, n: int) -> Iterator[Restored]:
        """Yield frames `n`, n + 1 ... in order, to the end of the clip or scene, or an earlier end."""
        ...
