"""Estimates of the blur of each pixel from one picture: MMP-Net, and the blur analyser based on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import Conv3x3, at_multiples
from vsfmanet.networks.checks import check_fields

MULTIPLE_OF = 16
"""Sides are padded to multiples of this by repeating the border, and cropped back."""

SHARP_BELOW = 1.0
"""Blur extent in pixels below which a pixel counts as sharp for the analyser's second head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlurConfig:
    """Size and scale of a blur analyser."""

    width: int = 16
    """Channels at full size; the paper has 16."""
    max_extent: float = 64.0
    """Blur extent in pixels that corresponds to an output of 1."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % 2:
            raise ConfigError(f"width must be even, got {self.width}")
        if not self.max_extent > 0:
            raise ConfigError(f"max_extent must be above 0 pixels, got {self.max_extent}")


class MMPNet(nn.Module):
    """The motion magnitude prior (MMP) of one blurred frame.

    The prior is a speed: the mean motion between the averaged sharp frames of 240 fps, divided by 15 pixels. It does
    not depend on the exposure time, unlike the blur extent of `BlurAnalyser`.

    Source: Wang et al., Efficient Video Deblurring Guided by Motion Magnitude (arXiv 2207.13374), Sec. 3.2; the layers,
    which the paper does not list, follow the behaviour of the authors' public code (851,417 parameters).
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.trunk = _Trunk(width, align_corners=True, folded=False)
        self.to_prior = nn.Conv2d(width, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Estimate the prior of `frames` (N, 3, H, W), RGB in [0, 1]; returns (N, 1, H, W) in (0, 1)."""
        return torch.sigmoid(_of_any_size(self.trunk, self.to_prior, frames))


class BlurAnalyser(nn.Module):
    """Estimates the blur extent of each pixel, and whether it is sharp: MMP-Net, version 2.

    Layers and width are those of `MMPNet`. Differences:

    - The target is the blur extent, the length of the path that a point travels while the shutter is open, in pixels,
      as log1p(extent) / log1p(max_extent). The paper's prior does not depend on the exposure, and errs by 3 pixels.
    - A second head with 17 parameters estimates whether the extent is below 1 pixel (851,434 parameters in all).
    - It is trained on any exposure from none (sharp) to the whole frame interval, small and large frames.
    - Upsampling has `align_corners=False`: with True the result depends on the size of the frame, and tiles
      would differ from whole frames.

    Source: `MMPNet`; all departures are ours.
    """

    def __init__(self, config: BlurConfig, *, folded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.folded = folded
        """Whether normalisations are folded into the convolutions, the form that is run and shipped."""
        self.trunk = _Trunk(config.width, align_corners=False, folded=folded)
        self.heads = nn.Conv2d(config.width, 2, 1)  # log extent, sharpness

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Analyse frames.

        Args:
            frames: (N, 3, H, W), RGB in [0, 1].

        Returns:
            Scaled log extent in (0, 1) and logit of being sharp, each (N, 1, H, W), fp32.
        """
        scaled, sharp = _of_any_size(self.trunk, self.heads, frames).float().split(1, dim=1)
        return torch.sigmoid(scaled), sharp

    def extent(self, frames: Tensor) -> Tensor:
        """Estimate the blur extent of `frames` (N, 3, H, W), RGB in [0, 1]; returns (N, 1, H, W), fp32, pixels."""
        return self.in_pixels(self(frames)[0])

    def in_pixels(self, scaled: Tensor) -> Tensor:
        """Convert the first output of `forward`, in (0, 1), any shape, to pixels; returns the same shape."""
        return torch.expm1(scaled * math.log1p(self.config.max_extent))

    def scaled(self, extent: Tensor) -> Tensor:
        """Convert an extent in pixels, any shape, to the output for it in [0, 1]; returns the same shape."""
        return torch.log1p(extent.clamp(0, self.config.max_extent)) / math.log1p(self.config.max_extent)


def fold(analyser: BlurAnalyser) -> BlurAnalyser:
    """Return a copy in eval mode with each normalisation folded into the convolution before it."""
    folded = BlurAnalyser(analyser.config, folded=True).eval()
    folded.heads.load_state_dict(analyser.heads.state_dict())
    folded.trunk.first.load_state_dict(analyser.trunk.first.state_dict())
    folded.trunk.refine.load_state_dict(analyser.trunk.refine.state_dict())
    for theirs, ours in zip(analyser.eval().trunk.stages(), folded.trunk.stages(), strict=True):
        pairs = zip(theirs.layers[0::3], theirs.layers[1::3], strict=True)
        for (conv, norm), target in zip(pairs, ours.layers[0::2], strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            target.load_state_dict(fuse_conv_bn_eval(conv, norm).state_dict())
    return folded


class _Trunk(nn.Module):
    """A U-Net of four levels with a dense block at its end."""

    def __init__(self, width: int, *, align_corners: bool, folded: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.first = nn.Conv2d(3, width, 9, padding=4)
        self.down = nn.ModuleList(
            _TwoConvolutions(before, after, folded=folded)
            for before, after in zip([width, *widths[:-1]], widths, strict=True)
        )
        ups = [(16 * width, 4 * width), (8 * width, 2 * width), (4 * width, width), (2 * width, width)]
        self.up = nn.ModuleList(_TwoConvolutions(before, after, folded=folded) for before, after in ups)
        self.refine = DenseBlock(width, width // 2)

    def stages(self) -> Iterable[_TwoConvolutions]:
        """Yield all pairs of convolutions, in order."""
        for stage in (*self.down, *self.up):
            assert isinstance(stage, _TwoConvolutions)
            yield stage

    def forward(self, frames: Tensor) -> Tensor:
        """Turn `frames` (N, 3, H, W), sides multiples of `MULTIPLE_OF`, into features; returns (N, C, H, W)."""
        feat = self.first(frames - 0.5)
        skips: list[Tensor] = []
        for stage in self.down:
            feat = stage(F.max_pool2d(feat, 2) if skips else feat)
            skips.append(feat)
        skips.pop()
        for stage in self.up:
            larger = F.interpolate(feat, scale_factor=2, mode="bilinear", align_corners=self.align_corners)
            feat = stage(torch.cat([skips.pop(), larger], dim=1))
        return self.refine(feat)


class _TwoConvolutions(nn.Module):
    """Convolution, normalisation and ReLU, twice."""

    def __init__(self, before: int, after: int, *, folded: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, out_width in ((before, after), (after, after)):
            layers += [Conv3x3(width, out_width), *([] if folded else [nn.BatchNorm2d(out_width)]), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, feat: Tensor) -> Tensor:
        """Transform `feat` (N, before, H, W); returns (N, after, H, W)."""
        return self.layers(feat)


class DenseBlock(nn.Module):
    """Three dense convolutions with GELU, then one of 1x1, around a shortcut."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv3x3(width + i * growth, growth) for i in range(3))
        self.last = nn.Conv2d(width + 3 * growth, width, 1)

    def forward(self, feat: Tensor) -> Tensor:
        """Refine `feat` (N, C, H, W); returns (N, C, H, W)."""
        feats = [feat]
        for conv in self.convs:
            feats.append(F.gelu(conv(torch.cat(feats, dim=1))))
        return feat + self.last(torch.cat(feats, dim=1))


def _of_any_size(trunk: _Trunk, head: nn.Conv2d, frames: Tensor) -> Tensor:
    """Run trunk and head on `frames` (N, 3, H, W) of any size; returns (N, D, H, W)."""
    height, width = frames.shape[-2:]
    return head(trunk(at_multiples(frames, MULTIPLE_OF)))[..., :height, :width]
