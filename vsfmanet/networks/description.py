"""What a network that restores frames states about itself, so that no caller needs to know which class it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor, nn, stack

from vsfmanet.networks.blocks import channels_last
from vsfmanet.segments import Reach
from vsfmanet.tiling import MemoryPlan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

type Features = tuple[Tensor, ...]
"""What `SequenceNetwork.encode` computes from one frame; N is 1 in the filter, the batch in training."""

type State = tuple[Tensor, ...]
"""What `SequenceNetwork.encode` carries from one frame to the next."""


class RestorationNetwork(nn.Module, ABC):
    """A network that restores frames. It is either a `LevelNetwork` or a `SequenceNetwork`, see `streamed`."""

    kind: str
    """Name of the architecture in weights files."""
    config: DataclassInstance
    """Its sizes, which weights files hold too."""
    scale: int
    """Output size over input size."""
    reach: Reach
    """Frames that a restored frame's pixels depend on."""
    exact_tiles: bool
    """Whether frames computed in tiles equal whole frames, up to rounding."""
    takes_exposure: bool
    """Whether an exposure changes the result."""
    has_parts: bool
    """Whether its parts can be recorded as CUDA graphs and run by onnx and tensorrt."""
    deployed: bool = True
    """Whether this is the form that is run and shipped."""

    @abstractmethod
    def restored(self, frames: Tensor, exposure: Tensor | None = None, *, scene_starts: Sequence[int] = ()) -> Tensor:
        """Restore whole clips at once.

        Args:
            frames: (B, T, 3, H, W) RGB in [0, 1].
            exposure: (B, T) open-shutter time over frame interval, in (0, 1]; NaN or None where it is unknown. Without
                effect unless `takes_exposure`.
            scene_starts: Numbers t > 0 of the frames before which a cut lies.

        Returns:
            (B, T, 3, s*H, s*W), fp32, nominal range [0, 1], not clamped.
        """

    @abstractmethod
    def streamed[T](self, *, levels: Callable[[LevelNetwork], T], windows: Callable[[SequenceNetwork], T]) -> T:
        """Return the result of `levels` for a `LevelNetwork`, and of `windows` for a `SequenceNetwork`."""

    def deployed_form(self) -> Self:
        """Return the form that is run and shipped, in eval mode; the network itself if it has one form only."""
        return self

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network to its device, data type and memory format."""
        channels_last(self.to(device, dtype))

    def memory_needed(self, height: int, width: int, dtype: torch.dtype, plan: MemoryPlan) -> int | None:
        """Estimate the device memory for a stream of frames, without that of the weights.

        Args:
            height: Height of an input frame, pixels.
            width: Width of an input frame, pixels.
            dtype: Data type of the features.
            plan: How the frames are computed.

        Returns:
            Bytes; None if unknown.
        """
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelInput:
    """What a level reads of a frame; see `Parts` for N, h and w."""

    feat: Tensor
    """(N, C, h, w), features of the frame itself, from the level below."""
    neighbours: tuple[Tensor, Tensor]
    """Features of the next and of the previous frame, (N, C, h, w) each; where one is missing, `feat`."""
    flow: Tensor
    """(N, F, h, w), fp32."""
    embed: Tensor | None = None
    """(N, U) exposure embeddings; None for a network without them."""
    guide: Tensor | None = None
    """(N, C, h, w), this level's guide from `Parts.bridge`; None for levels before the bridge."""


class Parts(Protocol):
    """The parts of a `LevelNetwork` that a frame passes; N is 1. Images and flow are fp32.

    Features are (N, C, h, w) and flow is (N, F, h, w), where h and w are the sides of the frame in cells. A cell is a
    pixel of the input, or a square of pixels for a network that computes on a coarser grid.
    """

    def stem(self, lr: Tensor) -> Tensor:
        """Compute the features that the first level reads.

        Args:
            lr: (N, 3, H, W) RGB in [0, 1].

        Returns:
            (N, C, h, w), channels-last.
        """
        ...

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """Estimate the flow that the first level reads.

        Args:
            lr: (N, 3, H, W) RGB in [0, 1].
            neighbours: Next and previous frame, (N, 3, H, W) each; where one is missing, `lr`.

        Returns:
            (N, F, h, w), fp32.
        """
        ...

    def level(self, index: int, given: LevelInput) -> tuple[Tensor, Tensor]:
        """Run one level.

        Args:
            index: Number of the level, from 0.
            given: Its inputs.

        Returns:
            Features (N, C, h, w) and flow (N, F, h, w) that the next level reads.
        """
        ...

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute what the levels after the bridge read.

        Args:
            lr: (N, 3, H, W) RGB in [0, 1].
            feat: (N, C, h, w), from the last level before the bridge.

        Returns:
            Features (N, C, h, w), and the guide (N, C, h, w) of each level after the bridge.
        """
        ...

    def finish(
        self, lr: Tensor, neighbours: tuple[Tensor, Tensor], feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> Tensor:
        """Compute restored frames.

        Args:
            lr: (N, 3, H, W) RGB in [0, 1].
            neighbours: As for `initial_flow`.
            feat: (N, C, h, w), from the last level.
            flow: (N, F, h, w), fp32, from the last level.
            embed: As in `LevelInput`.

        Returns:
            (N, 3, s*H, s*W), fp32, nominal range [0, 1], not clamped.
        """
        ...


class NamedParts(ABC):
    """`Parts` by way of one function of a part's name and its inputs; `run_part` is the way back."""

    @abstractmethod
    def run(self, name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run a part.

        Args:
            name: "stem", "initial flow", "level 0" ..., "bridge" or "finish".
            inputs: Inputs by name, in the order of the arguments in `Parts`; the neighbours are "next" and "previous".

        Returns:
            Its results in the order of `Parts`; a level may leave the flow out if it did not change.
        """

    def stem(self, lr: Tensor) -> Tensor:
        """See `Parts`."""
        [feat] = self.run("stem", {"lr": lr})
        return feat

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Parts`."""
        [flow] = self.run("initial flow", {"lr": lr, "next": neighbours[0], "previous": neighbours[1]})
        return flow

    def level(self, index: int, given: LevelInput) -> tuple[Tensor, Tensor]:
        """See `Parts`."""
        following, previous = given.neighbours
        inputs = {"feat": given.feat, "next": following, "previous": previous, "flow": given.flow}
        optional = {"embed": given.embed, "guide": given.guide}
        inputs |= {name: each for name, each in optional.items() if each is not None}
        out, *updated = self.run(f"level {index}", inputs)
        return out, updated[0] if updated else given.flow

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Parts`."""
        out, *guides = self.run("bridge", {"lr": lr, "feat": feat})
        return out, tuple(guides)

    def finish(
        self, lr: Tensor, neighbours: tuple[Tensor, Tensor], feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> Tensor:
        """See `Parts`."""
        inputs = {"lr": lr, "next": neighbours[0], "previous": neighbours[1], "feat": feat, "flow": flow}
        [frame] = self.run("finish", inputs if embed is None else {**inputs, "embed": embed})
        return frame


def run_part(parts: Parts, name: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run the part of `parts` that `NamedParts.run` would run, with the same arguments and results."""
    if name == "stem":
        return (parts.stem(inputs["lr"]),)
    if name == "bridge":
        out, guides = parts.bridge(inputs["lr"], inputs["feat"])
        return out, *guides
    neighbours = inputs["next"], inputs["previous"]
    if name == "initial flow":
        return (parts.initial_flow(inputs["lr"], neighbours),)
    feat, flow, embed = inputs["feat"], inputs["flow"], inputs.get("embed")
    if name == "finish":
        return (parts.finish(inputs["lr"], neighbours, feat, flow, embed),)
    given = LevelInput(feat=feat, neighbours=neighbours, flow=flow, embed=embed, guide=inputs.get("guide"))
    return parts.level(int(name.removeprefix("level ")), given)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPart:
    """A part of a network as a function of tensors alone."""

    name: str
    """"stem", "level 0" ..., "bridge" or "finish"."""
    module: nn.Module
    """Computes it; inputs and outputs in the order of the fields below."""
    inputs: dict[str, Tensor]
    """An example of each input, with the shape and type that it will have."""
    outputs: tuple[str, ...]
    """Names of the outputs."""


class LevelNetwork(RestorationNetwork):
    """A network of stacked levels; each reads a frame and its two neighbours from the level below, and nothing else.

    `vsfmanet.streams.levels` runs it over clips of any length.
    """

    num_levels: int
    """Levels, before and after the bridge."""
    bridge_level: int
    """Number of the first level after the bridge."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Data type of the features."""

    @abstractmethod
    def embed(self, lr: Tensor, exposure: Tensor | None = None) -> Tensor | None:
        """Compute exposure embeddings.

        Args:
            lr: (N, 3, H, W) in [0, 1].
            exposure: (N,) open-shutter time over frame interval, in (0, 1]; where it is NaN or None, the network
                estimates it.

        Returns:
            (N, U) of length 1, fp32; None if the network is not exposure-aware.
        """

    @abstractmethod
    def read_exposure(self, embed: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate exposures from embeddings.

        Args:
            embed: (N, U), from `embed`.

        Returns:
            Exposure (N,) in (0, 1], and confidence (N,) in [0, 1].
        """

    @abstractmethod
    def parts(self, tile: tuple[int, int] | None = None) -> Parts:
        """Return the parts in torch, of whole frames or of tiles of at most this height and width in input pixels."""

    @abstractmethod
    def export_parts(self, height: int, width: int) -> Iterator[ExportPart]:
        """Yield all parts but `initial_flow` for frames of one size in pixels, with examples of plausible values."""


class SequenceNetwork(RestorationNetwork):
    """A network that reads frames in order.

    It turns each frame into features (`encode`), in order and perhaps with a state carried from frame to frame, and a
    window of features into a restored frame (`decode`). `vsfmanet.streams.windows` runs it over clips of any length.

    Beyond the ends of a scene, at cuts and at the ends of the clip, other frames stand in (`beyond`); the state is
    empty before the first of them.
    """

    scale = 1
    exact_tiles = False
    takes_exposure = False
    has_parts = False
    window: tuple[int, int]
    """Frames before and after a frame whose features `decode` reads."""
    reach: Reach
    """Frames that a frame's pixels depend on. With a state, `period` is above 1: the state is forgotten at frames 0,
    period, 2 period ... of the clip, and built up again by the `before` frames before them, so that a frame depends on
    its number alone. Without one, `before` and `after` are those of `window`."""
    halo: int
    """Input pixels around a tile that have to be computed with it."""

    def beyond(self, t: int, length: int) -> int:
        """Return the frame that stands in for frame `t` of a scene of `length` frames, outside 0 ... `length` - 1.

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
            frame: (N, 3, H, W) RGB in [0, 1], fp32, of any size from 8x8; the network pads it as it needs.
            state: State that the call for the previous frame returned; None at the start, and always for a network
                without one.

        Returns:
            Features of the frame, and the state for the next.
        """

    @abstractmethod
    def decode(self, window: Sequence[Features]) -> Tensor:
        """Restore the frame of which `window` holds the features, with those of the frames around it.

        Returns:
            (N, 3, s*H, s*W), fp32, nominal range [0, 1], not clamped.
        """

    def streamed[T](self, *, levels: Callable[[LevelNetwork], T], windows: Callable[[SequenceNetwork], T]) -> T:
        """See `RestorationNetwork`."""
        return windows(self)

    def restored(self, frames: Tensor, exposure: Tensor | None = None, *, scene_starts: Sequence[int] = ()) -> Tensor:
        """See `RestorationNetwork`."""
        bounds = [0, *scene_starts, frames.shape[1]]
        scenes = [self(frames[:, first:stop]) for first, stop in pairwise(bounds)]
        return torch.cat(scenes, dim=1)

    def forward(self, frames: Tensor) -> Tensor:
        """Restore whole scenes, whose state is never forgotten.

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
