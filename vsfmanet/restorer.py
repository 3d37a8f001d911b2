"""Frames in, restored frames out, in any order, with the same pixels. Knows no VapourSynth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class FrameSource(Protocol):
    """What a restorer reads. It asks only for frames within `context` of those that it is to restore."""

    num_frames: int
    """Frames of the clip."""

    def frame(self, n: int) -> Tensor:
        """Frame `n`: (3, H, W) RGB, fp32 on the CPU, nominal range [0, 1]."""
        ...

    def exposure(self, n: int) -> float | None:
        """Open-shutter time of frame `n` over the frame interval, in (0, 1]; None if unknown."""
        ...

    def starts_scene(self, n: int) -> bool:
        """Whether a cut lies between frames n-1 and n (n >= 1)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """One restored frame."""

    index: int
    """Number of the frame in the clip."""
    frame: Tensor
    """(3, scale*H, scale*W) RGB, fp32, nominal range [0, 1]."""
    exposure: float
    """Exposure the network worked with: the one given, or the extractor's reading, in (0, 1]."""
    confidence: float
    """1 for a given exposure; for a reading, how clearly it stands out, in [0, 1]."""


class FrameRestorer(Protocol):
    """What the filter needs of a restorer; tests put a fake here."""

    scale: int
    """Output size over input size."""
    context: int
    """Frames read before and after a frame to restore it."""

    def restore(self, source: FrameSource, first: int, stop: int) -> list[Restored]:
        """Restore frames `first` ... `stop - 1` of the source, in order."""
        ...

    def close(self) -> None:
        """Release the state, the network and the worker thread."""
        ...
