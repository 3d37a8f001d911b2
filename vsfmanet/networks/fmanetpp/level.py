"""One level of FMA-Net++: the block of which NetD and NetR are stacked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet.kernels import warp_neighbours
from vsfmanet.networks.blocks import (
    ChannelAttention,
    Conv3x3,
    ExposureModulation,
    FeatureModulation,
    GatedFeedForward,
    Layers,
    NoModulation,
    PixelNorm,
    leaky_relu,
    zero_init,
)
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig

_FLOW_UNIT = 8.0  # pixels: a usual motion; larger ones approach 1, so that none drowns the features


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """An attention and a feed-forward network, each after a norm and around a shortcut."""

    norm: nn.Module
    """Before the attention."""
    mixer: ChannelAttention | FeatureModulation
    """The attention, or what an ablation puts in its place."""
    feed_forward_norm: nn.Module
    """Before the feed-forward network."""
    feed_forward: GatedFeedForward
    """The feed-forward network."""

    def __call__(self, x: Tensor, guide: Tensor | None) -> Tensor:
        """Refine `x` (N, C, H, W), by `guide` (N, C, H, W) if the mixer is guided; returns (N, C, H, W)."""
        x = self.mixer(x, self.norm(x), guide)
        return self.feed_forward(x, self.feed_forward_norm(x))


class FlowUpdate(nn.Module):
    """Refine flow-mask pairs by the features fused with them. The last layer starts at zero."""

    def __init__(self, width: int, num_flows: int) -> None:
        super().__init__()
        self.body = Layers(
            Conv3x3(width + 6 * num_flows, 6 * num_flows),
            leaky_relu(),
            last := Conv3x3(6 * num_flows, 6 * num_flows),
        )
        zero_init(last)

    def forward(self, fused: Tensor, flow: Tensor) -> Tensor:
        """Refine the flow, in fp32, which keeps small steps.

        Args:
            fused: (N, C, H, W).
            flow: (N, 6n, H, W), fp32.

        Returns:
            (N, 6n, H, W), fp32.
        """
        return flow + self.body(fused, flow.to(fused.dtype)).float()


class HRBABlock(nn.Module):
    """Hierarchical refinement with bidirectional aggregation: one level, the same for all frames.

    Source: FMA-Net++, Sec. 3.2 and Fig. 4a. Paper silent on the fusion (one or two 3x3 convolutions of the frame and
    its warped neighbours), on the flow update (two 3x3 convolutions of 6n channels, which reproduces the published
    dependence of the parameters on n), and on missing neighbours (the frame itself, whose true flow is 0).

    Departure with `flow_features`: a pointwise convolution of the flow, which starts at zero, is added to the fused
    features. Blur is motion times exposure; but well-warped neighbours no longer show the motion, and the exposure
    modulates features only, so that otherwise the two never meet.

    Args:
        config: Sizes.
        embed_width: Channels U of the exposure embeddings; 0 for no exposure modulation.
        build_flow_update: Whether to refine the flow.
        flow_features: Whether to add the flow to the features.
    """

    def __init__(
        self, config: FMANetPPConfig, *, embed_width: int, build_flow_update: bool = True, flow_features: bool = False
    ) -> None:
        super().__init__()
        width = config.width
        self.num_flows = config.num_flows
        self.flow_unit = _FLOW_UNIT / config.grid
        self.flow_feat: nn.Conv2d | None = None
        if flow_features:
            self.flow_feat = nn.Conv2d(6 * config.num_flows, width, 1)
            zero_init(self.flow_feat)
        fuse: list[nn.Module] = [Conv3x3(3 * width, width)]
        if config.fuse_convs == 2:
            fuse += [leaky_relu(), Conv3x3(width, width)]
        self.fuse = Layers(*fuse)
        self.flow_update = FlowUpdate(width, config.num_flows) if build_flow_update else None
        self.attention_norm = PixelNorm(width)
        self.attention = ChannelAttention(width, config.heads, guided=False)
        self.feed_forward_norm = PixelNorm(width)
        self.feed_forward = GatedFeedForward(width, config.feed_forward_width)
        self._build_more(config)  # before the modulation, in whose order optimisers know the parameters
        self.modulation: ExposureModulation | NoModulation = (
            ExposureModulation(width, embed_width, config.modulation_width) if embed_width else NoModulation()
        )

    def _build_more(self, config: FMANetPPConfig) -> None:
        """Build the modules of further stages."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages between alignment and modulation, in order."""
        return (
            Stage(
                norm=self.attention_norm,
                mixer=self.attention,
                feed_forward_norm=self.feed_forward_norm,
                feed_forward=self.feed_forward,
            ),
        )

    def forward(
        self,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        embed: Tensor | None,
        guide: Tensor | None = None,
        *,
        update_flow: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run the level for N frames.

        Args:
            feat: (N, C, H, W), features of the frames themselves.
            neighbours: Features of the next and of the previous frame, (N, C, H, W) each; where one is missing, `feat`.
            flow: (N, 6n, H, W), fp32: [direction (next, previous), pair, (dx, dy, mask logit)] in pixels of `feat`.
            embed: (N, U) exposure embeddings; None without exposure awareness.
            guide: (N, C, H, W), guide of this level; None in NetD.
            update_flow: Refine the flow too; False where nothing reads it.

        Returns:
            Features (N, C, H, W) and flow (N, 6n, H, W) that the next level reads.

        Raises:
            ShapeError: A guided block got no guide, or an exposure-aware one no embedding.
        """
        x, flow = self.aligned(feat, neighbours, flow, update_flow=update_flow)
        for stage in self.stages:
            x = stage(x, guide)
        return self.modulation(x, embed), flow

    def aligned(
        self,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        *,
        update_flow: bool = True,
        origin: tuple[int, int] = (0, 0),
    ) -> tuple[Tensor, Tensor]:
        """Run the first part of a level: fuse frames with their warped neighbours, and refine the flow.

        Args:
            feat: (N, C, h, w), the frames or a tile of them.
            neighbours: (N, C, H, W) each, whole frames.
            flow: (N, 6n, h, w), fp32, of the same tile.
            update_flow: As for `forward`.
            origin: Row and column where the tile begins.

        Returns:
            Fused features (N, C, h, w) and flow (N, 6n, h, w).
        """
        # Concatenated with features, flow must have their memory format, or each level would convert it again.
        flow = flow.contiguous(memory_format=torch.channels_last)
        x = self.fuse(warp_neighbours(feat, neighbours, flow, self.num_flows, origin))
        if self.flow_feat is not None:
            x = x + self.flow_feat(F.softsign(flow / self.flow_unit).to(x.dtype))
        if update_flow and self.flow_update is not None:
            flow = self.flow_update(x, flow)
        return x, flow


class GuidedBlock(HRBABlock):
    """A block of NetR: after its own stage, a second one that is guided by the degradation kernels.

    Source: FMA-Net++, Sec. 3.4 and Fig. 4b; with `guidance="sft"` the ablation of Table 8.
    """

    def _build_more(self, config: FMANetPPConfig) -> None:
        width = config.width
        if config.guidance == "attention":
            self.guided_norm: nn.Module = PixelNorm(width)
            self.guided_mix: ChannelAttention | FeatureModulation = ChannelAttention(width, config.heads, guided=True)
        else:
            self.guided_norm, self.guided_mix = nn.Identity(), FeatureModulation(width)
        self.guided_feed_forward_norm = PixelNorm(width)
        self.guided_feed_forward = GatedFeedForward(width, config.feed_forward_width)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """See `HRBABlock`."""
        return (
            *super().stages,
            Stage(
                norm=self.guided_norm,
                mixer=self.guided_mix,
                feed_forward_norm=self.guided_feed_forward_norm,
                feed_forward=self.guided_feed_forward,
            ),
        )
