"""NetR of FMA-Net++."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet import kernels
from vsfmanet.networks.blocks import (
    Conv3x3,
    Layers,
    ResidualDenseBlock,
    cells,
    keep_scale,
    leaky_relu,
    zero_init,
)
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.level import GuidedBlock
from vsfmanet.networks.fmanetpp.path import BlurPath, Frames, PathBranch
from vsfmanet.tiling import Box


class NetR(nn.Module):
    """NetR: restores each frame from its features, its motion and its degradation. Source: FMA-Net++, Sec. 3.4.

    Departure with a grid of g > 1: levels are computed once a cell of g x g pixels, and the upsampler ends with a
    pixel-shuffle. A path branch adds to the residual image, see `PathBranch`.

    Args:
        config: Sizes.
        embed_width: Channels U of the exposure embeddings; 0 for no exposure modulation.
        deployed: Build the folded guide, not the embeddings of kernel logits.
    """

    def __init__(self, config: FMANetPPConfig, *, embed_width: int, deployed: bool) -> None:
        super().__init__()
        width = config.width
        self.scale, self.grid, self.num_blocks = config.scale, config.grid, config.num_blocks
        self.stem = Layers(
            Conv3x3(width + 3 * config.grid**2, width),
            leaky_relu(),
            ResidualDenseBlock(width, config.dense_growth, config.dense_layers),
        )
        if config.grid > 1:
            keep_scale(self.stem)
        last = config.num_blocks - 1
        self.blocks = nn.ModuleList(
            GuidedBlock(
                config,
                build_flow_update=i < last or (config.last_flow_update and not deployed),
                embed_width=embed_width,
            )
            for i in range(config.num_blocks)
        )
        self.kernel_embeds: nn.ModuleList | None = None
        self.guide: nn.Conv2d | None = None
        size, guides_width = config.kernel_head_size, config.num_blocks * width
        if deployed:
            self.guide = Conv3x3(width, guides_width) if size == 3 else nn.Conv2d(width, guides_width, 1)
        else:
            self.kernel_embeds = nn.ModuleList(
                nn.Conv2d(3 * config.kernel_size**2, width, 1, bias=False) for _ in range(config.num_blocks)
            )
        self.upsampler = None if config.upsampler == "path" else _upsampler(config)
        self.blur_path = BlurPath(config, embed_width=embed_width) if config.path_width else None
        self.path = PathBranch(config) if config.path_width else None

    def enter(self, lr: Tensor, feat: Tensor) -> Tensor:
        """Compute the features that the first block reads.

        Args:
            lr: (N, 3, H, W) in [0, 1], in the dtype of `feat`.
            feat: (N, C, H/g, W/g), from NetD's last block.

        Returns:
            (N, C, H/g, W/g).
        """
        return self.stem(feat, cells(lr, self.grid))

    def guides(self, kernel_feat: Tensor, head: nn.Conv2d | None) -> tuple[Tensor, ...]:
        """Compute the guide of each block.

        Args:
            kernel_feat: (N, C, H/g, W/g), h_K.
            head: NetD's kernel head in training form; None for the deployed form, which has it folded in.

        Returns:
            M times (N, C, H/g, W/g).
        """
        if self.guide is not None:
            guides = self.guide(kernel_feat)
        else:
            weight, bias = self.folded_guide(head)
            guides = F.conv2d(kernel_feat, weight.to(kernel_feat.dtype), bias.to(kernel_feat.dtype), padding="same")
        return guides.chunk(self.num_blocks, dim=1)

    def folded_guide(self, head: nn.Conv2d | None) -> tuple[Tensor, Tensor]:
        """Multiply the kernel head by the kernel embeddings, in the head's precision.

        The kernels matter to restoration only through one pointwise convolution per block, and both it and the kernel
        head are linear. So their product, a single convolution, replaces them wherever no loss needs the logits.

        Args:
            head: As for `guides`.

        Returns:
            Weight (M*C, C, k, k) and bias (M*C,).
        """
        if self.guide is not None:
            assert self.guide.bias is not None
            return self.guide.weight, self.guide.bias
        assert head is not None
        assert head.bias is not None
        assert self.kernel_embeds is not None
        with torch.autocast(head.weight.device.type, enabled=False):
            product = torch.cat([each[:, :, 0, 0] for each in self.kernel_embeds.parameters()]).to(head.weight.dtype)
            return torch.einsum("ok,kchw->ochw", product, head.weight), product @ head.bias

    def motion(
        self, frames: Frames, feat: Tensor, flow: Tensor, embed: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the motion of each cell and estimate exposures, see `BlurPath.forward`; None without a path branch.

        Of whole frames: the exposure is a property of all of a frame.
        """
        return (None, None) if self.blur_path is None else self.blur_path(frames.own, feat, flow, embed)

    def finish(self, frames: Frames, feat: Tensor, motion: Tensor | None, tile: Box | None = None) -> Tensor:
        """Compute restored frames: the residual plus the bilinear image (Eq. 8).

        Args:
            frames: Whole frames of H x W pixels.
            feat: (N, C, H/g, W/g), from the last block, of the frames or of a tile of them.
            motion: (N, 6, H/g, W/g), result of `motion`, alike.
            tile: The tile, in cells; None for the whole frames.

        Returns:
            (N, 3, s*H, s*W), fp32, nominal range [0, 1], not clamped.
        """
        tile = tile or Box(top=0, left=0, bottom=feat.shape[-2], right=feat.shape[-1])
        lr = tile.of(frames.own, self.grid)
        if self.upsampler is None:
            restored = F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)
        else:
            residual, shuffle = self.upsampler.before_shuffle(feat)
            restored = kernels.add_skip(lr, residual, self.scale, shuffle)
        if self.path is not None:
            assert motion is not None
            restored = restored + self.path(feat, frames, motion, tile).float()
        return restored


def _upsampler(config: FMANetPPConfig) -> Layers:
    """Build the layers from features to residual image; the last starts at zero, so that it is the bilinear image."""
    if config.upsampler == "two_stage":
        layers = [
            Conv3x3(config.width, 256), nn.PixelShuffle(2), leaky_relu(),
            Conv3x3(64, 256), nn.PixelShuffle(2), leaky_relu(),
            Conv3x3(64, 64), leaky_relu(), last := Conv3x3(64, 3),
        ]  # fmt: skip
    else:
        factor = config.scale * config.grid
        last = Conv3x3(config.width, 3 * factor**2)
        layers = [Conv3x3(config.width, config.width), leaky_relu(), last, nn.PixelShuffle(factor)]
    zero_init(last)
    return Layers(*layers)
