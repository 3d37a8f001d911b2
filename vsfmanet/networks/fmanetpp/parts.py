"""The parts of FMA-Net++ in torch: of whole frames or, to save memory, tile by tile. See `Parts`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vsfmanet.networks.blocks import at_multiples
from vsfmanet.networks.description import LevelInput
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.degradation import NetD
from vsfmanet.networks.fmanetpp.level import HRBABlock, Stage
from vsfmanet.networks.fmanetpp.path import Frames
from vsfmanet.networks.fmanetpp.restoration import NetR
from vsfmanet.tiling import Box, assemble, tiles

_FINISH_REACH = 4
"""Cells around a cell on which its part of the result depends, for all upsamplers."""

_PATH_REACH = 2
"""Cells more with a path branch, beside its convolutions: those of its context, and the enlargement of the motion."""


class EagerParts:
    """The modules of the network as they are.

    Args:
        degradation: NetD in the type and on the device that compute.
        restoration: NetR, alike.
    """

    def __init__(self, degradation: NetD, restoration: NetR) -> None:
        self._netd, self._netr = self.degradation, self.restoration = degradation, restoration
        self._dtype = next(degradation.parameters()).dtype
        self.blocks: list[HRBABlock] = [*degradation.blocks, *restoration.blocks]

    def stem(self, lr: Tensor) -> Tensor:
        """See `Parts`."""
        return self._netd.enter(self._typed(lr))

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Parts`."""
        return self._netd.initial_flow(lr, neighbours)

    def level(self, index: int, given: LevelInput) -> tuple[Tensor, Tensor]:
        """See `Parts`."""
        inputs = given.feat, given.neighbours, given.flow, given.embed, given.guide
        return self.blocks[index](*inputs, update_flow=self.updates_flow(index))

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Parts`."""
        guides = self._netr.guides(self._netd.kernel_feat(feat), self._netd.to_kernels)
        return self._netr.enter(self._typed(lr), feat), guides

    def finish(
        self, lr: Tensor, neighbours: tuple[Tensor, Tensor], feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> Tensor:
        """See `Parts`."""
        frames = Frames.of(lr, neighbours, self._netr.grid)
        motion, _ = self._netr.motion(frames, feat, flow, embed)
        frame = self._netr.finish(frames, feat, motion)
        return frame[..., : self._netr.scale * lr.shape[-2], : self._netr.scale * lr.shape[-1]]

    def updates_flow(self, index: int) -> bool:
        """Return whether level `index` refines the flow; nothing reads that of the last one."""
        return index < len(self.blocks) - 1

    def _typed(self, lr: Tensor) -> Tensor:
        return lr.to(self._dtype).contiguous(memory_format=torch.channels_last)


class TiledParts:
    """The same parts tile by tile, with the same result up to rounding.

    It is known for every step what a tile depends on: convolutions reach a few pixels; a warp reads wherever the flow
    points, so neighbours are passed whole; and the sums over the frame in the attentions are added up tile by tile
    before any of them is used. So there is nothing to blend and no seam. Buffers of working size, which are most of
    what a frame needs besides the features that wait in the stream, shrink with the tile. Projections are computed
    twice.

    Args:
        whole: The parts of whole frames.
        config: Sizes of the network.
        tile: Height and width of a tile, input pixels.
    """

    def __init__(self, whole: EagerParts, config: FMANetPPConfig, tile: tuple[int, int]) -> None:
        self._whole = whole
        self._scale, self._grid = config.scale, config.grid
        self._tile = max(1, tile[0] // config.grid), max(1, tile[1] // config.grid)
        self._stem_reach = config.dense_layers + 2
        self._finish_reach = _FINISH_REACH
        if config.path_width:
            self._finish_reach += _PATH_REACH - (-2 * (config.path_blocks + 1) * config.path_grid // config.grid)
        self._aligned_reach = config.fuse_convs + 2  # fusion, and the two convolutions of the flow update

    def stem(self, lr: Tensor) -> Tensor:
        """See `Parts`."""
        image = at_multiples(lr, self._grid)
        size = image.shape[2] // self._grid, image.shape[3] // self._grid

        def part(box: Box) -> tuple[Tensor]:
            return (self._whole.stem(box.of(image, self._grid)),)

        [feat] = assemble(size, self._tile, self._stem_reach, part)
        return feat

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Parts`; of whole frames, for it needs little memory."""
        return self._whole.initial_flow(lr, neighbours)

    def level(self, index: int, given: LevelInput) -> tuple[Tensor, Tensor]:
        """See `Parts`."""
        block, update_flow = self._whole.blocks[index], self._whole.updates_flow(index)

        def aligned(box: Box) -> tuple[Tensor, Tensor]:
            origin = box.top, box.left
            feat, flow = box.of(given.feat), box.of(given.flow)
            return block.aligned(feat, given.neighbours, flow, update_flow=update_flow, origin=origin)

        x, flow = self._assemble(given.feat, self._aligned_reach, aligned)
        for stage in block.stages:
            x = self._refined(stage, x, given.guide)
        return block.modulation(x, given.embed), flow

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Parts`."""
        image = at_multiples(lr, self._grid)

        def part(box: Box) -> tuple[Tensor, ...]:
            out, guides = self._whole.bridge(box.of(image, self._grid), box.of(feat))
            return out, *guides

        out, *guides = self._assemble(feat, self._stem_reach, part)
        return out, tuple(guides)

    def finish(
        self, lr: Tensor, neighbours: tuple[Tensor, Tensor], feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> Tensor:
        """See `Parts`; the result is on the CPU."""
        frames = Frames.of(lr, neighbours, self._grid)
        motion, _ = self._whole.restoration.motion(frames, feat, flow, embed)

        def part(box: Box) -> tuple[Tensor]:
            own_motion = None if motion is None else box.of(motion)
            return (self._whole.restoration.finish(frames, box.of(feat), own_motion, box).cpu(),)

        [frame] = self._assemble(feat, self._finish_reach, part, scale=self._scale * self._grid)
        return frame[..., : self._scale * lr.shape[2], : self._scale * lr.shape[3]]

    def _refined(self, stage: Stage, x: Tensor, guide: Tensor | None) -> Tensor:
        """Run a stage on `x` (N, C, h, w) in two passes: sums over the frame first; returns (N, C, h, w)."""
        size, mixer = (x.shape[2], x.shape[3]), stage.mixer

        def read(box: Box) -> tuple[Tensor, Tensor, Tensor | None]:
            part = box.of(x)
            return part, stage.norm(part), None if guide is None else box.of(guide)

        found: list[tuple[Tensor, ...]] = []
        for inner in tiles(size, self._tile):
            outer = inner.grown(mixer.margin, *size)
            _, normed, own_guide = read(outer)
            found.append(mixer.sums(normed, own_guide, inner.within(outer)))
        sums = tuple(torch.stack(parts).sum(dim=0) for parts in zip(*found, strict=True))

        def part(box: Box) -> tuple[Tensor]:
            mixed = mixer.mix(*read(box), sums)
            return (stage.feed_forward(mixed, stage.feed_forward_norm(mixed)),)

        [out] = self._assemble(x, mixer.margin + 1, part)
        return out

    def _assemble(
        self, like: Tensor, reach: int, run: Callable[[Box], tuple[Tensor, ...]], *, scale: int = 1
    ) -> tuple[Tensor, ...]:
        height, width = like.shape[2:]
        return assemble((height, width), self._tile, reach, run, scale=scale)
