"""A `LevelNetwork` as a stream: every level sees every frame once, and keeps two frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vsfmanet.engines.transfers import Transfers
from vsfmanet.networks.description import LevelInput, LevelNetwork, Parts
from vsfmanet.segments import scene_around
from vsfmanet.streams import FrameSource, Restored
from vsfmanet.tiling import MemoryPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A frame on its way through the levels."""

    index: int
    lr: Tensor
    """(1, 3, H, W), fp32."""
    embed: Tensor | None
    """(1, U)."""
    given: float | None
    """Known exposure in (0, 1]; None if unknown."""
    read: Tensor | None
    """Else (2,): the network's estimate and its confidence, on the CPU, valid once the transfers were waited for."""
    feat: Tensor
    """(1, C, h, w), channels-last, for the next level."""
    flow: Tensor | None = None
    """(1, F, h, w), fp32; None before the first level."""
    neighbours: tuple[Tensor, Tensor] | None = None
    """(1, 3, H, W) each: the next and the previous frame, or the frame itself; None before the first level."""
    guides: tuple[Tensor, ...] = ()
    """(1, C, h, w) for each level after the bridge."""


class LevelStreams:
    """Chains of levels.

    Each level is a generator that holds back one frame until it has seen the next; the chain of L levels pulls as many
    frames as it needs. A chain starts L frames early, and computes only the triangle of levels that its first frame
    depends on. Frames pass through the levels one at a time, so the arithmetic is the same wherever a chain starts.

    Args:
        network: Deployed form, on the device of `transfers`.
        parts: Runs its parts.
        transfers: Copies to and from the device.
        plan: How frames are computed.

    Source: FMA-Net++ (arXiv 2512.04390); the streaming form is ours, and exact because no level is recurrent.
    """

    can_offload = True

    def __init__(self, network: LevelNetwork, parts: Parts, transfers: Transfers, *, plan: MemoryPlan) -> None:
        self._network, self._parts, self._transfers, self._plan = network, parts, transfers, plan
        self._device, self._dtype = transfers.device, network.dtype

    def open(self, source: FrameSource, n: int) -> Iterator[Restored]:
        """See `Streams`."""
        first = scene_around(n, max(0, n - self._network.num_levels), n, source.starts_scene).start
        at_start = first == 0 or source.starts_scene(first)
        for record in self._chain(source, first, whole=at_start):
            if record.index >= n:
                yield self._finish(record)

    def _finish(self, record: _Record) -> Restored:
        # For the frame before, while the levels of this one are computed, so that never more than one is ahead.
        self._transfers.wait()
        exposure, confidence = record.given, float(record.given is not None)
        if record.read is not None:
            exposure, confidence = record.read.tolist()
        assert record.flow is not None
        assert record.neighbours is not None
        feat, flow = record.feat.to(self._device), record.flow.to(self._device)
        frame = self._parts.finish(record.lr, record.neighbours, feat, flow, record.embed)[0]
        return Restored(index=record.index, frame=frame, exposure=exposure, confidence=confidence)

    def _chain(self, source: FrameSource, first: int, *, whole: bool) -> Iterator[_Record]:
        """Run frames `first` ... end of the scene through all levels; without `whole`, L frames are only context."""
        records = self._read(source, first)
        for level in range(self._network.num_levels):
            if level == self._network.bridge_level:
                records = map(self._bridge, records)
            records = self._level(level, records, whole=whole)
        return records

    def _read(self, source: FrameSource, first: int) -> Iterator[_Record]:
        """Read the frames of one scene for the first level."""
        for n in range(first, source.num_frames):
            if n > first and source.starts_scene(n):
                return
            lr = self._transfers.upload(source.frame(n).float()).clamp(0, 1)[None]
            given = source.exposure(n)
            known = None if given is None else torch.tensor([given])
            embed = self._network.embed(lr, known)
            read = None
            if given is None and embed is not None:
                read = self._transfers.download(torch.cat(self._network.read_exposure(embed)))
            feat = self._resting(self._parts.stem(lr))
            embed = None if embed is None else embed.to(self._dtype)
            yield _Record(index=n, lr=lr, embed=embed, given=given, read=read, feat=feat)

    def _level(self, level: int, records: Iterator[_Record], *, whole: bool) -> Iterator[_Record]:
        """Run one level for all frames of a stream, each with the one before and the one after it."""
        before: _Record | None = None
        own: _Record | None = None
        for after in records:
            if own is not None and (whole or before is not None):
                yield self._run(level, before or own, own, after)
            before, own = own, after
        if own is not None and (whole or before is not None):
            yield self._run(level, before or own, own, own)

    def _run(self, level: int, before: _Record, own: _Record, after: _Record) -> _Record:
        """Run one level for one frame."""
        bridge, device = self._network.bridge_level, self._device
        flow = self._parts.initial_flow(own.lr, (after.lr, before.lr)) if own.flow is None else own.flow.to(device)
        guide = own.guides[level - bridge].to(device) if level >= bridge else None
        neighbours = after.feat.to(device), before.feat.to(device)
        feat = own.feat.to(device)
        given = LevelInput(feat=feat, neighbours=neighbours, flow=flow, embed=own.embed, guide=guide)
        feat, flow = self._parts.level(level, given)
        return replace(own, feat=self._resting(feat), flow=self._resting(flow), neighbours=(after.lr, before.lr))

    def _bridge(self, record: _Record) -> _Record:
        """Pass a frame over the bridge."""
        feat, guides = self._parts.bridge(record.lr, record.feat.to(self._device))
        return replace(record, feat=self._resting(feat), guides=tuple(map(self._resting, guides)))

    def _resting(self, waiting: Tensor) -> Tensor:
        """Return a tensor in the memory where it waits for its frame's neighbours."""
        return waiting.cpu() if self._plan.offload else waiting
