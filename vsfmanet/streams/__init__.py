"""Networks over clips: each module runs one kind of network frame by frame, in order, within a scene.

`levels` is for FMA-Net++, whose levels are stacked; `windows` is for every network with the interface of
`vsfmanet.networks.sequence`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class FrameSource(Protocol):
    """What a restorer reads. It asks only for frames within its reach of those that it is to restore."""

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        ...

    def frame(self, n: int) -> Tensor:
        """Frame `n`: (3, H, W) RGB, fp32, nominal range [0, 1], on the CPU or on the device that computes."""
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
    """(3, scale*H, scale*W) RGB, fp32, nominal range [0, 1], where it was computed; or what the restorer was asked to
    make of it, on the CPU."""
    exposure: float | None
    """Exposure the network worked with: the one given, or what it read itself, in (0, 1]. None if the network does not
    know exposures and none was given."""
    confidence: float
    """1 for a given exposure; for a reading, how clearly it stands out, in [0, 1]."""


class Streams(Protocol):
    """Starts streams of restored frames. The pixels of a frame do not depend on where its stream was started."""

    steps: int
    """Steps of the network so far (levels, or frames encoded), over all frames."""
    can_offload: bool
    """Whether a plan may keep what waits in the host's memory."""

    def open(self, source: FrameSource, n: int) -> Iterator[Restored]:
        """Frames `n`, n + 1 ... in order, to the end of the clip, of the scene, or where else a stream has to end."""
        ...

    def memory_needed(self, height: int, width: int) -> int | None:
        """About how many bytes of device memory frames of this size take, beside the weights; None where unknown."""
        ...
