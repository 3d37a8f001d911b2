"""Variants of MMP-RNN and JFFRA that their papers compare them with. The product runs none of them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import Conv3x3, Layers, leaky_relu, zero_init
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.networks.jffra import JFFR, JFFRA, JFFRAConfig
from vsfmanet.networks.mmprnn import MMPRNN, MMPRNNConfig

type MMPRNNVariant = Literal["without_gate", "without_features"]
type JFFRAVariant = Literal["mutual_attention", "learned_offsets"]


class Compared(SequenceNetwork):
    """A variant that is only trained and evaluated."""

    def deployed_form(self) -> NoReturn:
        """Refuse.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"a model to export needs {self.kind} itself, not a variant; evaluate the checkpoint itself")


class WithoutGate(Compared, MMPRNN):
    """The prior gates no features, and is left to the loss. Source: Wang et al. (arXiv 2207.13374), ablations."""

    def __init__(self, config: MMPRNNConfig) -> None:
        super().__init__(config)
        self.cell.gate = None


class WithoutFeatures(WithoutGate):
    """Nor does a frame see the features of the frame before, as they were before deblurring. Source: as above."""

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """See `SequenceNetwork`."""
        feat, after = super().encode(frame, state)
        assert after is not None
        left, hidden = after
        return feat, (torch.zeros_like(left), hidden)


class MutualAttention(Compared, JFFRA):
    """Attention over frames where they are: neighbours are not warped. Source: JFFRA (arXiv 2505.16434), ablations."""

    def __init__(self, config: JFFRAConfig) -> None:
        super().__init__(config)
        for level in self.levels:
            assert isinstance(level, JFFR)
            level.flow_head = level.flow_feat = None

    def first_flow(self, frames: Tensor) -> Tensor:
        """Return no motion."""
        return torch.zeros_like(super().first_flow(frames))


class LearnedOffsets(MutualAttention):
    """Neighbours are read at offsets that every level learns from the features alone, without flow or cost volume.

    Source: as above. The paper does not describe the layers; chosen are those of the head that corrects the flow.
    """

    def __init__(self, config: JFFRAConfig) -> None:
        super().__init__(config)
        for level in self.levels:
            assert isinstance(level, JFFR)
            level.flow_head = _OffsetHead(level.last.out_channels, config.flow_width)


class _OffsetHead(nn.Module):
    """Adds to the offsets of both neighbours, by the features of the middle frame and of the neighbour."""

    def __init__(self, width: int, flow_width: int) -> None:
        super().__init__()
        half = flow_width // 2
        self.layers = Layers(
            Conv3x3(2 * width + 2, flow_width), leaky_relu(),
            Conv3x3(flow_width, flow_width), leaky_relu(),
            Conv3x3(flow_width, half), leaky_relu(), last := Conv3x3(half, 2),
        )  # fmt: skip
        zero_init(last)

    def forward(self, feat: Tensor, flow: Tensor) -> Tensor:
        """Add to `flow` (N, 2, 2, H, W), fp32, for features (N, 3, C, H, W)."""
        own = feat[:, 1:2].expand(-1, 2, -1, -1, -1)
        read = torch.cat([own, feat[:, ::2], flow.to(feat.dtype)], dim=2).flatten(0, 1)
        return flow + self.layers(read).float().view_as(flow)


MMPRNN_VARIANTS: Mapping[str, type[MMPRNN]] = {
    "without_gate": WithoutGate,
    "without_features": WithoutFeatures,
}
JFFRA_VARIANTS: Mapping[str, type[JFFRA]] = {
    "mutual_attention": MutualAttention,
    "learned_offsets": LearnedOffsets,
}
VARIANTS: Mapping[str, Callable[[Any], SequenceNetwork]] = {**MMPRNN_VARIANTS, **JFFRA_VARIANTS}
"""Builders by name; they take the configuration of the network."""
