"""The network in torch, on whole frames or, to spare memory, in parts of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vsfmanet import kernels
from vsfmanet.networks.blocks import ChannelAttention, at_multiples
from vsfmanet.networks.fmanetpp import FMANetPP, HRBABlock
from vsfmanet.tiling import Box, assemble, tiles

_FINISH_REACH = 4
"""Cells around a cell that its part of the result depends on; of all upsamplers."""


class EagerEngine:
    """The modules of the network as they are.

    Args:
        network: Deployed form; its two networks in the type and on the device that compute.
    """

    def __init__(self, network: FMANetPP) -> None:
        self._network = network
        self._dtype = next(network.degradation.parameters()).dtype
        self._blocks = network.blocks

    def stem(self, lr: Tensor) -> Tensor:
        """See `Engine`."""
        return self._network.degradation.enter(self._typed(lr))

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """See `Engine`."""
        return self._network.degradation.initial_flow(lr, neighbours)

    def level(
        self,
        index: int,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        embed: Tensor | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        return self._blocks[index](feat, neighbours, flow, embed, guide, update_flow=self._updates_flow(index))

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Engine`."""
        out, _, guides = self._network.bridge(self._typed(lr), feat)
        return out, guides

    def finish(self, lr: Tensor, feat: Tensor) -> Tensor:
        """See `Engine`."""
        return self._network.finish(lr, feat)

    def _updates_flow(self, index: int) -> bool:
        return index < len(self._blocks) - 1  # nothing reads the last one

    def _typed(self, lr: Tensor) -> Tensor:
        return lr.to(self._dtype).contiguous(memory_format=torch.channels_last)


class TiledEngine(EagerEngine):
    """The same network tile by tile, with the same result up to rounding.

    What a part of a frame depends on is known for every step: convolutions reach a few pixels, a warp reads wherever
    the flow points, so neighbours are whole, and the attention's sums over the frame are added up tile by tile before
    any of them is used. So there is nothing to blend and no seam. Buffers of working size, the larger part of what a
    frame needs beside the features that wait in the stream, shrink with the tile; projections are computed twice.

    Args:
        network: As for `EagerEngine`.
        tile: Height and width of a tile, input pixels.
    """

    def __init__(self, network: FMANetPP, tile: tuple[int, int]) -> None:
        super().__init__(network)
        config = network.config
        self._grid = config.grid
        self._tile = max(1, tile[0] // config.grid), max(1, tile[1] // config.grid)
        self._stem_reach = config.dense_layers + 2 + (config.detail_width > 0)
        self._aligned_reach = config.fuse_convs + 2  # fusion, and the two convolutions of the flow update

    def stem(self, lr: Tensor) -> Tensor:
        """See `Engine`."""
        image = at_multiples(lr, self._grid)
        height, width = self._cells(lr)

        def part(box: Box) -> tuple[Tensor]:
            return (super(TiledEngine, self).stem(box.of(image, self._grid)),)

        [feat] = assemble((height, width), self._tile, self._stem_reach, part)
        return feat

    def level(
        self,
        index: int,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        embed: Tensor | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Engine`."""
        block = self._blocks[index]
        assert isinstance(block, HRBABlock)
        x, flow = self._assemble(
            feat,
            self._aligned_reach,
            lambda box: block.aligned(
                box.of(feat),
                neighbours,
                box.of(flow),
                update_flow=self._updates_flow(index),
                origin=(box.top, box.left),
            ),
        )
        x = self._attended(x, block.attention_norm, block.attention, block.feed_forward_norm, block.feed_forward, None)
        if block.guided:
            assert guide is not None
            norm, forward = block.guided_feed_forward_norm, block.guided_feed_forward
            if block.guided_by_attention:
                assert isinstance(block.guided_mix, ChannelAttention)
                x = self._attended(x, block.guided_norm, block.guided_mix, norm, forward, guide)
            else:
                source, given = x, guide

                def modulated(box: Box) -> tuple[Tensor]:
                    part = block.guided_mix(box.of(source), box.of(given))
                    return (forward(part, norm(part)),)

                [x] = self._assemble(x, 3, modulated)
        if block.modulation is not None:
            x = block.modulation(x, embed)
        return x, flow

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Engine`."""
        image = at_multiples(lr, self._grid)

        def part(box: Box) -> tuple[Tensor, ...]:
            out, guides = super(TiledEngine, self).bridge(box.of(image, self._grid), box.of(feat))
            return out, *guides

        out, *guides = self._assemble(feat, self._stem_reach, part)
        return out, tuple(guides)

    def finish(self, lr: Tensor, feat: Tensor) -> Tensor:
        """See `Engine`; the result is on the CPU."""
        image = at_multiples(lr, self._grid)

        def part(box: Box) -> tuple[Tensor]:
            return (super(TiledEngine, self).finish(box.of(image, self._grid), box.of(feat)).cpu(),)

        scale = self._network.config.scale
        [frame] = self._assemble(feat, _FINISH_REACH, part, scale=scale * self._grid)
        return frame[..., : scale * lr.shape[2], : scale * lr.shape[3]]

    def _cells(self, lr: Tensor) -> tuple[int, int]:
        """Height and width of a frame in cells."""
        return -(-lr.shape[2] // self._grid), -(-lr.shape[3] // self._grid)

    def _assemble(
        self, like: Tensor, reach: int, run: Callable[[Box], tuple[Tensor, ...]], *, scale: int = 1
    ) -> tuple[Tensor, ...]:
        height, width = like.shape[2:]
        return assemble((height, width), self._tile, reach, run, scale=scale)

    def _attended(
        self,
        x: Tensor,
        norm: torch.nn.Module,
        attention: ChannelAttention,
        forward_norm: torch.nn.Module,
        forward: torch.nn.Module,
        guide: Tensor | None,
    ) -> Tensor:
        """Attention and feed-forward network of `x`, each around its shortcut, in two passes."""

        def project(box: Box) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            return attention.project(norm(box.of(x)), None if guide is None else box.of(guide))

        height, width = x.shape[2:]
        grams: list[Tensor] = []
        sums: list[Tensor] = []
        for inner in tiles((height, width), self._tile):
            outer = inner.grown(1, height, width)
            query, key, _, _ = project(outer)
            query, key = inner.within(outer).of(query), inner.within(outer).of(key)
            grams.append(kernels.head_grams(query, key, attention.heads))
            sums.append(torch.cat([query, key], dim=1).float().square().sum(dim=(2, 3)))
        matrix = attention.matrix(torch.stack(grams).sum(dim=0), torch.stack(sums).sum(dim=0))

        def part(box: Box) -> tuple[Tensor]:
            _, _, value, _ = project(box)
            mixed = kernels.add_product(box.of(x), value, matrix.to(value.dtype))
            return (forward(mixed, forward_norm(mixed)),)

        [out] = self._assemble(x, 2, part)
        return out
