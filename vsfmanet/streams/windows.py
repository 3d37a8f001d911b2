"""A `SequenceNetwork` as a stream: each frame is encoded once, and windows of features are decoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsfmanet.engines.transfers import Transfers
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.segments import scene_around
from vsfmanet.streams import FrameSource, Restored
from vsfmanet.tiling import Box, MemoryPlan, tiles


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A part of every frame, or all of it."""

    inner: Box
    """Part of the result that is kept."""
    outer: Box
    """Part that is computed."""


class WindowStreams:
    """Streams of one `SequenceNetwork`.

    A stream ends where its scene ends, or where the network's period does (`Reach.period`). The next one first reads
    the frames that build up the network's state, so the pixels of a frame depend only on its number and its scene.

    Large frames are computed in parts. Each part has a state of its own and reads the network's `halo` around it. A
    part does not see pixels farther away, so the result differs slightly from that of whole frames; with `levels` it
    does not.

    Args:
        network: On the device of `transfers`, in the dtype that it computes in.
        transfers: Copies frames to the device.
        plan: Whether frames are computed whole or in parts.
    """

    can_offload = False

    def __init__(self, network: SequenceNetwork, transfers: Transfers, *, plan: MemoryPlan) -> None:
        self._network, self._transfers, self._plan = network, transfers, plan

    def open(self, source: FrameSource, n: int) -> Iterator[Restored]:
        """See `Streams`."""
        behind, ahead = self._network.window
        period = self._network.reach.period
        last = None if period == 1 else n - n % period + period - 1
        first = scene_around(n, max(0, self._network.reach.of(n)[0]), n, source.starts_scene).start
        at_start = first == 0 or source.starts_scene(first)
        parts: list[_Part] = []
        states: list[State | None] = []
        window: deque[list[Features]] = deque(maxlen=behind + 1 + ahead)
        order = self._order(source, first, at_start=at_start)
        for position, index in enumerate(order, first - behind if at_start else first):
            frame = self._transfers.upload(source.frame(index).float()).clamp(0, 1)[None]
            parts = parts or self._parts(frame)
            states = states or [None] * len(parts)
            read = [
                self._network.encode(part.outer.of(frame), state) for part, state in zip(parts, states, strict=True)
            ]
            states = [state for _, state in read]
            window.append([features for features, _ in read])
            centre = position - ahead
            if centre >= n:
                yield self._restored(source, centre, parts, window)
            if centre == last:
                return

    def _order(self, source: FrameSource, first: int, *, at_start: bool) -> Iterator[int]:
        """Yield the numbers of the frames to read: those of the scene, and stand-ins beyond its ends."""
        behind, ahead = self._network.window
        beyond = self._network.beyond
        if at_start:
            most = min(source.num_frames - first, min(behind, ahead) + 1)
            length = next((k for k in range(1, most) if source.starts_scene(first + k)), most)
            yield from (first + beyond(t, length) for t in range(-behind, 0))
        yield first
        stop = first + 1
        while stop < source.num_frames and not source.starts_scene(stop):
            yield stop
            stop += 1
        yield from (first + beyond(t, stop - first) for t in range(stop - first, stop - first + ahead))

    def _parts(self, frame: Tensor) -> list[_Part]:
        height, width = frame.shape[2:]
        tile = self._plan.tile or (height, width)
        inner = tiles((height, width), tile)
        return [_Part(inner=box, outer=box.grown(self._network.halo, height, width)) for box in inner]

    def _restored(
        self, source: FrameSource, n: int, parts: Sequence[_Part], window: Sequence[Sequence[Features]]
    ) -> Restored:
        """Decode frame `n`; `window` holds its features and those around it, each in parts."""
        scale = self._network.scale
        given = source.exposure(n)
        last = parts[-1].inner
        frame = torch.empty(3, scale * last.bottom, scale * last.right, device=self._transfers.device)
        for number, part in enumerate(parts):
            decoded = self._network.decode([features[number] for features in window])[0]
            part.inner.of(frame, scale).copy_(part.inner.within(part.outer).of(decoded, scale))
        return Restored(index=n, frame=frame, exposure=given, confidence=float(given is not None))
