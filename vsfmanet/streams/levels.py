"""FMA-Net++ as a stream: every level sees every frame once, and keeps two frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vsfmanet.engines import Engine
from vsfmanet.engines.cuda import Transfers
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.segments import scene_around
from vsfmanet.streams import FrameSource, Restored
from vsfmanet.tiling import MemoryPlan, memory_needed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """A frame on its way through the levels."""

    index: int
    lr: Tensor
    """(1, 3, H, W), fp32."""
    embed: Tensor | None
    """(1, U)."""
    given: float | None
    """Exposure that is known."""
    read: Tensor | None
    """Else (2,) on the CPU, once the transfers were waited for: what the network reads, and how clearly."""
    feat: Tensor
    """(1, C, H, W), channels-last: what the next level reads."""
    flow: Tensor | None = None
    """(1, 6n, H, W), fp32; None before the first level."""
    guides: tuple[Tensor, ...] = ()
    """Of each restoration block, (1, C, H, W)."""


class LevelStreams:
    """Chains of levels.

    Each level is a generator that holds back one frame until it has seen the next; the chain of 2M levels pulls as many
    frames as it needs. A chain starts 2M frames early, and computes just the triangle of levels that its first frame
    depends on. Frames go through the levels one at a time, so the arithmetic is the same wherever a chain starts.

    Args:
        network: Deployed form, on the device of `transfers`; its two networks in `dtype`.
        engine: Runs its parts.
        transfers: Bring frames to the device, and back what is read of them.
        dtype: Type of the features.
        plan: How sparing to be.

    Source: FMA-Net++ (arXiv 2512.04390); the streaming form is ours, and exact because no level is recurrent.
    """

    can_offload = True

    def __init__(
        self, network: FMANetPP, engine: Engine, transfers: Transfers, *, dtype: torch.dtype, plan: MemoryPlan
    ) -> None:
        self._network, self._engine, self._transfers, self._plan = network, engine, transfers, plan
        self._device, self._dtype = transfers.device, dtype
        self.steps = 0
        """Levels computed so far, over all frames; 2M per frame when they come in order."""

    def open(self, source: FrameSource, n: int) -> Iterator[Restored]:
        """See `Streams`."""
        first = scene_around(n, max(0, n - self._network.config.context), n, source.starts_scene).start
        at_start = first == 0 or source.starts_scene(first)
        for record in self._chain(source, first, whole=at_start):
            if record.index >= n:
                yield self._finish(record)

    def memory_needed(self, height: int, width: int) -> int:
        """See `Streams`."""
        return memory_needed(self._network.config, height, width, self._dtype, self._plan)

    def _finish(self, record: _Record) -> Restored:
        # Of the frame before, while the levels of this one are being computed: so never more than one is ahead.
        self._transfers.wait()
        exposure, confidence = record.given, float(record.given is not None)
        if record.read is not None:
            exposure, confidence = record.read.tolist()
        frame = self._engine.finish(record.lr, record.feat.to(self._device))[0]
        return Restored(index=record.index, frame=frame, exposure=exposure, confidence=confidence)

    def _chain(self, source: FrameSource, first: int, *, whole: bool) -> Iterator[_Record]:
        """Frames `first` ... end of its scene through all levels; without `whole`, 2M frames are only context."""
        blocks = self._network.config.num_blocks
        records = self._read(source, first)
        for level in range(2 * blocks):
            if level == blocks:
                records = map(self._bridge, records)
            records = self._level(level, records, whole=whole)
        return records

    def _read(self, source: FrameSource, first: int) -> Iterator[_Record]:
        """Frames of one scene, ready for the first level."""
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
            feat = self._resting(self._engine.stem(lr))
            embed = None if embed is None else embed.to(self._dtype)
            yield _Record(index=n, lr=lr, embed=embed, given=given, read=read, feat=feat)

    def _level(self, level: int, records: Iterator[_Record], *, whole: bool) -> Iterator[_Record]:
        """One level for all frames of a stream: each with the one before and the one after it."""
        before: _Record | None = None
        own: _Record | None = None
        for after in records:
            if own is not None and (whole or before is not None):
                yield self._run(level, before or own, own, after)
            before, own = own, after
        if own is not None and (whole or before is not None):
            yield self._run(level, before or own, own, own)

    def _run(self, level: int, before: _Record, own: _Record, after: _Record) -> _Record:
        """One level for one frame."""
        blocks, device = self._network.config.num_blocks, self._device
        self.steps += 1
        flow = self._engine.initial_flow(own.lr, (after.lr, before.lr)) if own.flow is None else own.flow.to(device)
        guide = own.guides[level - blocks].to(device) if level >= blocks else None
        neighbours = after.feat.to(device), before.feat.to(device)
        feat, flow = self._engine.level(level, own.feat.to(device), neighbours, flow, own.embed, guide)
        return replace(own, feat=self._resting(feat), flow=self._resting(flow))

    def _bridge(self, record: _Record) -> _Record:
        """From the last level of NetD to the first of NetR."""
        feat, guides = self._engine.bridge(record.lr, record.feat.to(self._device))
        return replace(record, feat=self._resting(feat), guides=tuple(map(self._resting, guides)))

    def _resting(self, waiting: Tensor) -> Tensor:
        """A tensor where it is to wait for the neighbours of its frame."""
        return waiting.cpu() if self._plan.offload else waiting
