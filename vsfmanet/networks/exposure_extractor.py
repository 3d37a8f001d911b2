"""The exposure-time-aware feature extractor (ETE), and the estimate of an exposure from its embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vsfmanet.networks.blocks import Conv3x3, Layers

LEVELS = 5
"""Exposure levels 5:1 ... 5:5 of REDS-ME; level N is an open-shutter time of N/5 of the frame interval."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. Source: ResNet (arXiv 1512.03385), Fig. 5 left."""

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv3x3(in_width, out_width, bias=False)
            if stride == 1
            else nn.Conv2d(in_width, out_width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_width),
            nn.ReLU(),
            Conv3x3(out_width, out_width, bias=False),
            nn.BatchNorm2d(out_width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != out_width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, out_width, 1, stride, bias=False), nn.BatchNorm2d(out_width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` (N, in, H, W); returns (N, out, ceil(H/stride), ceil(W/stride))."""
        return self.body(x).add_(self.shortcut(x)).relu_()

    def fold(self) -> None:
        """See `ExposureExtractor.fold`."""
        self.body = _folded(self.body)
        if isinstance(self.shortcut, nn.Sequential):
            self.shortcut = _folded(self.shortcut)


class ExposureExtractor(nn.Module):
    """Embed the exposure of a blurred frame as a unit vector.

    Source: FMA-Net++ (arXiv 2512.04390), ETE, Sec. 3.3 and S1: a ResNet-18 trained by supervised contrast and then
    frozen. Departures: width 8 to 32 instead of an unnamed one (the published counts allow no ResNet-18 of width 64),
    a 3x3 stem of stride 1 without pooling (levels differ by a few pixels of blur, which an early reduction would
    destroy), no projection head, and a BatchNorm without parameters before the vector is normalised: means of ReLU
    features all point in one direction (cosine 0.99), from which the contrastive loss collapses.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv3x3(3, width, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        in_width = width
        for stage in range(4):
            out_width = width << stage
            for block in range(blocks):
                stages.append(BasicBlock(in_width, out_width, 2 if stage and not block else 1))
                in_width = out_width
        self.stages = nn.Sequential(*stages)
        self.centre = nn.BatchNorm1d(in_width, affine=False)
        self.embed_width = in_width

    def forward(self, lr: Tensor) -> Tensor:
        """Embed frames `lr` (N, 3, H, W) in [0, 1]; returns (N, U) of length 1, fp32."""
        if not torch.is_grad_enabled():  # torch 2.15 writes out of bounds in its backward pass on CPUs
            lr = lr.contiguous(memory_format=torch.channels_last)
        return F.normalize(self.centre(self.stages(self.stem(lr)).float().mean(dim=(2, 3))), dim=1)

    def fold(self) -> None:
        """Fold the normalisations of images into the convolutions before them; the result is the same up to rounding.

        For inference only: it takes two thirds of the time then, but cannot be trained or saved any more.
        """
        self.stem = _folded(self.stem)
        for block in self.stages:
            assert isinstance(block, BasicBlock)
            block.fold()


def _folded(layers: nn.Sequential) -> Layers:
    """Return layers in which each normalisation is part of the convolution before it."""
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = kept[-1]
            assert isinstance(convolution, nn.Conv2d)
            layer.eval()
            kept[-1] = fuse_conv_bn_eval(convolution.eval(), layer)
        else:
            kept.append(layer)
    return Layers(*kept)


def anchor_embedding(anchors: Tensor, exposure: Tensor) -> Tensor:
    """Return the embedding of a known exposure: interpolated between the mean embeddings of the two nearest levels.

    Args:
        anchors: (5, U), unit mean embeddings of levels 5:1 ... 5:5.
        exposure: Any shape; open-shutter time over frame interval, in (0, 1]. Below 0.2 it is taken as 0.2.

    Returns:
        (*shape of `exposure`, U), of length 1.
    """
    position = (exposure.float() * LEVELS - 1).clamp(0, LEVELS - 1)
    low = position.floor().clamp(max=LEVELS - 2).long()
    part = (position - low).unsqueeze(-1)
    return F.normalize(torch.lerp(anchors[low], anchors[low + 1], part), dim=-1)


def read_exposure(anchors: Tensor, embed: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate the exposure from an embedding.

    Args:
        anchors: (5, U), unit mean embeddings of levels 5:1 ... 5:5.
        embed: (N, U), unit embeddings from the extractor.
        temperature: Scalar above 0: temperature of the softmax that turns cosine similarities into probabilities of
            the levels. Fitted to pictures that the extractor was not trained on.

    Returns:
        Exposure (N,) in [0.2, 1], the mean of the levels weighted by probability, and confidence (N,) in [0, 1], the
        excess of the most probable level over chance.
    """
    probability = (embed.float() @ anchors.float().T / temperature.float()).softmax(dim=1)
    level = torch.arange(1, LEVELS + 1, device=embed.device)
    confidence = (probability.amax(dim=1) * LEVELS - 1) / (LEVELS - 1)
    return probability @ (level / LEVELS), confidence
