"""MMP-RNN: recurrent deblurring at the input's size, guided by how much each pixel moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet.networks.blocks import Conv3x3, at_multiples, keep_scale, zero_init
from vsfmanet.networks.checks import check_fields
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig, DenseBlock, MMPNet
from vsfmanet.networks.sequence import Features, SequenceNetwork, State
from vsfmanet.segments import Reach

MULTIPLE_OF = 4
"""Sides are filled up to multiples of this by repeating the border, and cropped back."""

REDUCTION = 16
"""Channels per hidden channel of the attention in the fusion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MMPRNNConfig:
    """Size of the network, and what tells it how much each pixel moves. AnBmCk in the paper is n, m and k here."""

    cell_blocks: int = 3
    """Dense blocks of the recurrent cell."""
    decoder_blocks: int = 4
    """Dense blocks behind the fusion of five frames."""
    width: int = 16
    """Feature channels C at full size."""
    fusion_attention: bool = False
    """Channel attention before the fusion: the authors' code has it, the parameter counts of the paper do not."""
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
"""The sizes of the paper whose parameter counts can be confirmed."""


class MMPRNN(SequenceNetwork):
    """A recurrent cell reads each frame once; five frames of its features are fused into the restored middle one.

    How much each pixel moves, the prior, gates the features of the frame; the network that tells it is frozen: its
    parameters ask for no gradient, and it stays in eval mode whatever `train` says. It differs from the paper's where
    `MMPRNNConfig.prior` is "extent": blur extent, which unlike a speed knows the exposure.

    The convolution of the blurred frame stands for the difference from the identity; it and the last one of the
    features start as zero, so that a fresh network returns its input. All others start such that features keep their
    variance, of which torch's default leaves a third at each of a dozen convolutions in a row. The paper says nothing
    of it; it makes short trainings possible.

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
        """Set training mode, for all but the prior: its normalisations keep their statistics."""
        super().train(mode)
        if self.prior is not None:
            self.prior.eval()
        return self

    def motion_magnitude(self, frames: Tensor) -> Tensor:
        """The prior in (0, 1), (N, 1, H, W), of `frames` (N, 3, H, W) in [0, 1]; there has to be one."""
        assert self.prior is not None
        answer = self.prior(frames)
        return answer[0] if isinstance(answer, tuple) else answer

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """Read the next frame: its features are (f_t, the frame), the state is (l_t, h_t); see `SequenceNetwork`."""
        padded = at_multiples(frame, MULTIPLE_OF)
        magnitude: Tensor | None = None
        if self.prior is not None:
            with torch.no_grad():
                magnitude = self.motion_magnitude(padded.to(self.skip.weight.dtype))
        feat, left, hidden = self.cell((padded - 0.5).to(self.skip.weight.dtype), magnitude, state)
        return (feat, frame), (left, hidden)

    def decode(self, window: Sequence[Features]) -> Tensor:
        """Restore the third of five frames; see `SequenceNetwork`."""
        change = self.decoder(torch.cat([feat for feat, _ in window], dim=1))
        frame = window[len(window) // 2][1]
        height, width = frame.shape[-2:]
        assert self.skip.bias is not None
        with torch.autocast(frame.device.type, enabled=False):  # 8 bits of mantissa would show in the picture
            padded = at_multiples(frame, MULTIPLE_OF) - 0.5
            weight, bias = self.skip.weight.float(), self.skip.bias.float()
            blurred = F.conv2d(padded, weight, bias, padding=self.skip.padding)
            return frame.float() + (change.float() + blurred)[..., :height, :width]


class _Cell(nn.Module):
    """Features of a frame, of it and of all before it."""

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
    """Motion magnitude attentive module: the more motion, the more (or less) each channel is to count.

    Source: Wang et al., Eq. 6; the gate is g + 1 as in the authors' code, not g, and so the identity at g = 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width // 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(width // 2, width, 1))

    def forward(self, feat: Tensor, magnitude: Tensor) -> Tensor:
        """Gate `feat` (N, C, H, W) by `magnitude` (N, 1, H, W)."""
        return feat * (self.layers(magnitude.to(feat.dtype)) + 1)


class _DenseChain(nn.Module):
    """Dense blocks in a row; all that they return is merged. (N, C, H, W) stays so."""

    def __init__(self, width: int, growth: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DenseBlock(width, growth) for _ in range(count))
        self.merge = nn.Sequential(nn.Conv2d(count * width, width, 1), Conv3x3(width, width))

    def forward(self, feat: Tensor) -> Tensor:
        """Refine `feat`."""
        feats = []
        for block in self.blocks:
            feat = block(feat)
            feats.append(feat)
        return self.merge(torch.cat(feats, dim=1))


class _Attention(nn.Module):
    """A factor in (0, 1) for each channel, by the means of all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width // REDUCTION
        self.layers = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1), nn.Sigmoid())

    def forward(self, feat: Tensor) -> Tensor:
        """Weigh the channels of `feat` (N, C, H, W)."""
        return feat * self.layers(feat.mean(dim=(2, 3), keepdim=True))


class _Decoder(nn.Module):
    """What five frames of features change in the middle one: (N, 25C, H/4, W/4) -> (N, 3, H, W)."""

    def __init__(self, config: MMPRNNConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = _Attention(25 * width) if config.fusion_attention else nn.Identity()
        self.fuse = nn.Conv2d(25 * width, 5 * width, 1)
        self.blocks = _DenseChain(5 * width, 2 * width, config.decoder_blocks)
        self.up = nn.Sequential(_doubled(5 * width, 2 * width), _doubled(2 * width, width))
        self.last = nn.Conv2d(width, 3, 5, padding=2)

    def forward(self, feats: Tensor) -> Tensor:
        """Fuse and enlarge `feats`."""
        return self.last(self.up(self.blocks(self.fuse(self.attention(feats)))))


def _keep_variance(part: nn.Module) -> None:
    """Draw the weights of all convolutions so that features keep their variance, or nearly so in dense blocks."""
    keep_scale(part)
    for module in part.modules():
        if isinstance(module, DenseBlock):
            with torch.no_grad():
                module.last.weight *= 0.3


def _doubled(before: int, after: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=1)
