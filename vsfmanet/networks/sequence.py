"""What a network states about itself so that one engine can run it over clips of any length, in any order.

A network of this kind turns each frame into features (`encode`), in order and perhaps with a state that goes from frame
to frame, and then a window of features into a restored frame (`decode`). `vsfmanet.streams.windows` runs every network
through this interface but `FMANetPP`, whose levels are stacked and for `vsfmanet.streams.levels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn, stack

from vsfmanet.segments import Reach

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

type Features = tuple[Tensor, ...]
"""What `encode` knows of one frame; N is 1 in the filter, the batch in training."""

type State = tuple[Tensor, ...]
"""What goes on from one frame to the next."""


class SequenceNetwork(nn.Module, ABC):
    """A network that reads frames in order.

    Beyond the ends of a scene, at cuts and at the ends of the clip, frames are made up (`beyond`); the state is empty
    before the first of them.
    """

    kind: str
    """Name of the architecture in weights files."""
    config: DataclassInstance
    """Its sizes, which weights files hold too."""
    scale: int = 1
    """Output size over input size."""
    window: tuple[int, int]
    """Frames before and after a frame whose features `decode` reads."""
    reach: Reach
    """Frames that a frame's pixels depend on. With a state, `period` is above 1: the state is forgotten at frames 0,
    period, 2 period ... of the clip, and built up again by the `before` frames before them, so that a frame depends on
    its number alone. Without one, `before` and `after` are those of `window`."""
    halo: int
    """Input pixels around a part of a frame that have to be computed with it, when frames are computed in parts."""

    def beyond(self, t: int, length: int) -> int:
        """Frame that stands for frame `t` of a scene of `length` frames, outside 0 ... `length` - 1.

        Mirrored without repeating the last, so that there is motion to see: -1 is 1, and `length` is `length` - 2. A
        network that reads further back than ahead repeats the nearest, because the mirror lies beyond its reach.
        """
        behind, ahead = self.window
        if behind > ahead or length == 1:
            return min(max(t, 0), length - 1)
        t = abs(t) % (2 * length - 2)
        return min(t, 2 * length - 2 - t)

    @abstractmethod
    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """Read the next frame.

        Args:
            frame: (N, 3, H, W) RGB in [0, 1], fp32, of any size from 8x8 on; padding is the network's own affair.
            state: What the frame before returned; None at the start, and always for a network without one.

        Returns:
            Features of the frame, and the state for the next.
        """

    @abstractmethod
    def decode(self, window: Sequence[Features]) -> Tensor:
        """Restored middle frame (N, 3, s*H, s*W), fp32, nominal range [0, 1], of the features of `window`."""

    def forward(self, frames: Tensor) -> Tensor:
        """Restore whole clips, whose state is never forgotten.

        Args:
            frames: (B, T, 3, H, W) RGB in [0, 1].

        Returns:
            (B, T, 3, s*H, s*W), fp32, nominal range [0, 1], not clamped.
        """
        behind, ahead = self.window
        length = frames.shape[1]
        state: State | None = None
        features: list[Features] = []
        for t in range(-behind, length + ahead):
            encoded, state = self.encode(frames[:, t if 0 <= t < length else self.beyond(t, length)], state)
            features.append(encoded)
        width = behind + 1 + ahead
        return stack([self.decode(features[t : t + width]) for t in range(length)], dim=1)
