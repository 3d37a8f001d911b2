"""Architectures that FMA-Net++ is compared with in its paper, of the same sizes. The product runs none of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor

from vsfmanet.errors import ConfigError
from vsfmanet.networks.exposure_extractor import ExposureExtractor
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig
from vsfmanet.networks.fmanetpp.degradation import NetD
from vsfmanet.networks.fmanetpp.model import Degradation, neighbour_index
from vsfmanet.networks.fmanetpp.restoration import NetR

type Architecture = Literal["sliding_window", "recurrent", "frame_difference"]


class Compared(FMANetPP):
    """An architecture that is only trained and evaluated."""

    def deployed_form(self) -> NoReturn:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("a model to export needs FMA-Net++'s own architecture; evaluate the checkpoint itself")


class SlidingWindow(Compared):
    """Every level reads the neighbours as they are before the first level, as FMA-Net does. Source: Table 3."""

    def run_levels(
        self,
        part: NetD | NetR,
        feat: Tensor,
        flow: Tensor,
        neighbours: tuple[Tensor, Tensor],
        embed: Tensor | None,
        guides: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """See `FMANetPP`."""
        following, previous = neighbours
        window = feat[following], feat[previous]
        for block, guide in zip(part.blocks, guides, strict=True):
            feat, flow = block(feat, window, flow, embed, guide, update_flow=block is not self.restoration.blocks[-1])
        return feat, flow


class Recurrent(Compared):
    """Every level passes from frame to frame, forwards and backwards in turns. Source: Table 3.

    A frame reads what the level made of the frame before, in its direction, and what the level below made of the frame
    after. Paper silent on this: chosen because blocks and cost are then those of FMA-Net++.
    """

    def run_levels(
        self,
        part: NetD | NetR,
        feat: Tensor,
        flow: Tensor,
        neighbours: tuple[Tensor, Tensor],
        embed: Tensor | None,
        guides: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """See `FMANetPP`."""
        for number, (block, guide) in enumerate(zip(part.blocks, guides, strict=True)):
            ahead, behind = neighbours if number % 2 == 0 else neighbours[::-1]
            update_flow = block is not self.restoration.blocks[-1]
            order: list[Tensor] = []
            feats: list[Tensor] = []
            flows: list[Tensor] = []
            for now, before in _passing(ahead, behind):
                passed = feats[-1][before] if feats else feat[now]
                sides = (feat[ahead[now]], passed) if number % 2 == 0 else (passed, feat[ahead[now]])
                own, own_guide = (None if x is None else x[now] for x in (embed, guide))
                out, refined = block(feat[now], sides, flow[now], own, own_guide, update_flow=update_flow)
                order.append(now)
                feats.append(out)
                flows.append(refined)
            back = torch.cat(order).argsort()
            feat, flow = torch.cat(feats)[back], torch.cat(flows)[back]
        return feat, flow


def _passing(ahead: Tensor, behind: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the numbers of the frames that are passed at once, and the place of each one's frame before in the last."""
    own = torch.arange(len(ahead), device=ahead.device)
    now, before = own[behind == own], own[:0]
    while len(now):
        yield now, before
        goes_on = ahead[now] != now
        now, before = ahead[now][goes_on], goes_on.nonzero()[:, 0]


class FrameDifference(Compared):
    """Guided by how frames differ from their neighbours, not by an extractor that knows exposures. Source: Table 5.

    Paper silent on the design: chosen are the mean absolute differences to both neighbours, read by a network like the
    extractor, which is trained with the rest. Known exposures are not used.
    """

    def __init__(self, config: FMANetPPConfig) -> None:
        super().__init__(config)
        if not config.exposure_aware or config.path_width:
            raise ConfigError("frame_difference needs exposure_aware=true and no path branch; change --set or --preset")
        self.reader = ExposureExtractor(config.extractor_width, config.extractor_blocks)

    def run_degradation(
        self,
        lr: Tensor,
        exposure: Tensor | None = None,
        *,
        embed: Tensor | None = None,
        scene_starts: Sequence[int] = (),
    ) -> Degradation:
        """See `FMANetPP`."""
        if embed is None:
            flat = lr.flatten(0, 1)
            following, previous = neighbour_index(lr.shape[0], lr.shape[1], scene_starts, lr.device)
            change = ((flat[following] - flat).abs() + (flat - flat[previous]).abs()) / 2
            embed = self.reader(change).unflatten(0, lr.shape[:2])
        return super().run_degradation(lr, embed=embed, scene_starts=scene_starts)


ARCHITECTURES: Mapping[Architecture, type[Compared]] = {
    "sliding_window": SlidingWindow,
    "recurrent": Recurrent,
    "frame_difference": FrameDifference,
}


def build(config: FMANetPPConfig, architecture: Architecture | None) -> FMANetPP:
    """Build a training form with random weights; None is FMA-Net++ itself."""
    return FMANetPP(config) if architecture is None else ARCHITECTURES[architecture](config)
