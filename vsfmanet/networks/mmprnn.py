"""MMP-RNN: recurrent deblurring at the input's size, guided by the motion of each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet.networks.blocks import Conv3x3, at_multiples, keep_scale, zero_init
from vsfmanet.networks.checks import check_fields
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig, DenseBlock, MMPNet
from vsfmanet.segments import Reach

MULTIPLE_OF = 4
"""Sides are padded to multiples of this by repeating the border, and cropped back."""

REDUCTION = 16
"""Channels per hidden channel of the attention in the fusion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MMPRNNConfig:
    """Size of the network, and the source of its motion prior. AnBmCk in the paper is n, m and k here."""

    cell_blocks: int = 3
    """Dense blocks of the recurrent cell."""
    decoder_blocks: int = 4
    """Dense blocks after the fusion of five frames."""
    width: int = 16
    """Feature channels C at full size."""
    fusion_attention: bool = False
    """Channel attention before the fusion: in the authors' code, but not in the paper's parameter counts."""
    prior: Literal["extent", "speed", "none"] = "extent"
    """"extent": the blur extent by our `BlurAnalyser`; "speed": the paper's `MMPNet`; "none": no prior."""
    prior_width: int = 16
    """Channels of the prior's network at full size."""

    def __post_init__(self) -> None:
        check_fields(self, least={"width": 2, "prior_width": 2})


PRESETS: Mapping[str, MMPRNNConfig] = {
    "a3b4c16": MMPRNNConfig(),
    "a8b9c18": MMPRNNConfig(cell_blocks=8, decoder_blocks=9, width=18),
    "a9b10c18": MMPRNNConfig(cell_blocks=9, decoder_blocks=10, width=18),
}
"""Sizes of the paper with confirmed parameter counts."""


class MMPRNN(SequenceNetwork):
    """A recurrent cell reads each frame once; five frames of its features are fused into the restored middle one.

    A motion prior gates the features of the frame. The network that estimates it is frozen: its parameters have no
    gradient, and it stays in eval mode. Departure with `prior="extent"`: the prior is the blur extent, which unlike
    the paper's speed depends on the exposure.

    The convolution of the blurred frame is the difference from the identity; it and the last convolution of the
    features start at zero, so that a fresh network returns its input. All others start such that features keep their
    variance, of which torch's default leaves a third at each of a dozen convolutions in a row. The paper is silent on
    it; it makes short trainings possible.

    Source: Wang et al., Efficient Video Deblurring Guided by Motion Magnitude (arXiv 2207.13374); the layers follow the
    behaviour of the authors' public code.
    """

    kind = "mmprnn"
    window = (2, 2)
    reach = Reach(before=8, after=2, period=32)
    halo = 64

    def __init__(self, config: MMPRNNConfig) -> None:
        super().__init__()
        self.config: MMPRNNConfig = config
        self.prior: MMPNet | BlurAnalyser | None = None
        if config.prior == "speed":
            self.prior = MMPNet(config.prior_width)
        elif config.prior == "extent":
            self.prior = BlurAnalyser(BlurConfig(width=config.prior_width), folded=True)
        if self.prior is not None:
            self.prior.eval().requires_grad_(False)
        self.cell = _Cell(config)
        self.decoder = _Decoder(config)
        _keep_variance(self.cell)
        _keep_variance(self.decoder)
        zero_init(self.decoder.last)
        self.skip = nn.Conv2d(3, 3, 9, padding=4)
        zero_init(self.skip)

    def train(self, mode: bool = True) -> MMPRNN:
        """Switch modes, except for the prior, whose normalisations keep their statistics."""
        super().train(mode)
        if self.prior is not None:
            self.prior.eval()
        return self

    def motion_magnitude(self, frames: Tensor) -> Tensor:
        """Estimate the prior of `frames` (N, 3, H, W) RGB in [0, 1]; returns (N, 1, H, W) in (0, 1)."""
        assert self.prior is not None
        answer = self.prior(frames)
        return answer[0] if isinstance(answer, tuple) else answer

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """See `SequenceNetwork`; the features are f_t (N, 5C, H/4, W/4) and the frame, the state is l_t and h_t."""
        padded = at_multiples(frame, MULTIPLE_OF)
        magnitude: Tensor | None = None
        if self.prior is not None:
            with torch.no_grad():
                magnitude = self.motion_magnitude(padded.to(self.skip.weight.dtype))
        feat, left, hidden = self.cell((padded - 0.5).to(self.skip.weight.dtype), magnitude, state)
        return (feat, frame), (left, hidden)

    def decode(self, window: Sequence[Features]) -> Tensor:
        """See `SequenceNetwork`; restores the third of five frames; returns (N, 3, H, W)."""
        change = self.decoder(torch.cat([feat for feat, _ in window], dim=1))
        frame = window[len(window) // 2][1]
        height, width = frame.shape[-2:]
        assert self.skip.bias is not None
        with torch.autocast(frame.device.type, enabled=False):  # 8 bits of mantissa would be visible in the picture
            padded = at_multiples(frame, MULTIPLE_OF) - 0.5
            weight, bias = self.skip.weight.float(), self.skip.bias.float()
            blurred = F.conv2d(padded, weight, bias, padding=self.skip.padding)
            return frame.float() + (change.float() + blurred)[..., :height, :width]


class _Cell(nn.Module):
    """Computes features from a frame and all frames before it."""

    def __init__(self, config: MMPRNNConfig) -> None:
        super().__init__()
        width = config.width
        self.first = nn.Conv2d(3, width, 5, padding=2)
        self.gate = _MotionGate(width) if config.prior != "none" else None
        self.down = nn.ModuleList(
            nn.Sequential(DenseBlock(before, growth), nn.Conv2d(before, 2 * width, 5, stride=2, padding=2))
            for before, growth in ((width, width), (2 * width, 3 * width // 2))
        )
        self.blocks = _DenseChain(5 * width, 2 * width, config.cell_blocks)
        self.to_hidden = nn.Sequential(Conv3x3(5 * width, width), DenseBlock(width, width), Conv3x3(width, width))

    def forward(self, frame: Tensor, magnitude: Tensor | None, state: State | None) -> tuple[Tensor, Tensor, Tensor]:
        """Read a frame.

        Args:
            frame: (N, 3, H, W) in [-0.5, 0.5].
            magnitude: (N, 1, H, W) in (0, 1), where there is a prior.
            state: Of the frame before: `left` and `hidden` as below.

        Returns:
            Features (N, 5C, H/4, W/4), those not yet deblurred, `left` (N, 2C, H/4, W/4), and
            `hidden` (N, C, H/4, W/4).
        """
        feat = self.first(frame)
        if self.gate is not None:
            feat = self.gate(feat, magnitude)
        for stage in self.down:
            feat = stage(feat)
        before, hidden = (torch.zeros_like(feat), torch.zeros_like(feat[:, ::2])) if state is None else state
        merged = self.blocks(torch.cat([feat, before, hidden], dim=1))
        return merged, feat, self.to_hidden(merged)


class _MotionGate(nn.Module):
    """Motion magnitude attentive module: scales each channel by a function of the motion.

    Source: Wang et al., Eq. 6; the gate is g + 1 as in the authors' code, not g, and so the identity at g = 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width // 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(width // 2, width, 1))

    def forward(self, feat: Tensor, magnitude: Tensor) -> Tensor:
        """Gate `feat` (N, C, H, W) by `magnitude` (N, 1, H, W); returns (N, C, H, W)."""
        return feat * (self.layers(magnitude.to(feat.dtype)) + 1)


class _DenseChain(nn.Module):
    """Dense blocks in a row, whose results are all merged."""

    def __init__(self, width: int, growth: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DenseBlock(width, growth) for _ in range(count))
        self.merge = nn.Sequential(nn.Conv2d(count * width, width, 1), Conv3x3(width, width))

    def forward(self, feat: Tensor) -> Tensor:
        """Refine `feat` (N, C, H, W); returns (N, C, H, W)."""
        feats = []
        for block in self.blocks:
            feat = block(feat)
            feats.append(feat)
        return self.merge(torch.cat(feats, dim=1))


class _Attention(nn.Module):
    """Scales each channel by a factor in (0, 1), computed from the means of all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width // REDUCTION
        self.layers = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1), nn.Sigmoid())

    def forward(self, feat: Tensor) -> Tensor:
        """Scale the channels of `feat` (N, C, H, W); returns (N, C, H, W)."""
        return feat * self.layers(feat.mean(dim=(2, 3), keepdim=True))


class _Decoder(nn.Module):
    """Computes the change of the middle frame from the features of five frames."""

    def __init__(self, config: MMPRNNConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = _Attention(25 * width) if config.fusion_attention else nn.Identity()
        self.fuse = nn.Conv2d(25 * width, 5 * width, 1)
        self.blocks = _DenseChain(5 * width, 2 * width, config.decoder_blocks)
        self.up = nn.Sequential(_doubled(5 * width, 2 * width), _doubled(2 * width, width))
        self.last = nn.Conv2d(width, 3, 5, padding=2)

    def forward(self, feats: Tensor) -> Tensor:
        """Fuse and enlarge `feats` (N, 25C, H/4, W/4); returns (N, 3, H, W)."""
        return self.last(self.up(self.blocks(self.fuse(self.attention(feats)))))


def _keep_variance(part: nn.Module) -> None:
    """Initialise all convolutions so that features keep their variance, nearly so in dense blocks."""
    keep_scale(part)
    for module in part.modules():
        if isinstance(module, DenseBlock):
            with torch.no_grad():
                module.last.weight *= 0.3


def _doubled(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)
