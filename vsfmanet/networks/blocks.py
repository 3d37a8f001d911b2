"""Modules of which the networks are built. Feature maps are (N, C, H, W) with N = B*T, best channels-last."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet import kernels
from vsfmanet.errors import ShapeError
from vsfmanet.tiling import Box


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size."""

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__(in_width, out_width, 3, padding=1, bias=bias)

    def forward(self, *parts: Tensor, slope: float = 1.0, shuffle: int = 1) -> Tensor:
        """Convolve, then apply a leaky ReLU and a pixel shuffle; see `kernels.conv3x3`.

        Args:
            parts: (N, C, H, W) each; their channels are read one part after the other.
            slope: Slope of the leaky ReLU; 1 for none.
            shuffle: Factor of the pixel shuffle; 1 for none.

        Returns:
            (N, outputs / shuffle^2, shuffle * H, shuffle * W).
        """
        return kernels.conv3x3(parts, self.weight, self.bias, slope=slope, shuffle=shuffle)


class Layers(nn.Sequential):
    """Layers in sequence; a 3x3 convolution and the pixel shuffle and (leaky) ReLU that follow it run in one pass."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Run the layers, the first one on all `parts` (N, C, H, W); returns the last one's result (N, D, H', W')."""
        return self._run([*self], parts)

    def before_shuffle(self, *parts: Tensor) -> tuple[Tensor, int]:
        """Do as `forward`, but leave a pixel shuffle at the end to the caller; returns its factor too, 1 for none."""
        layers, last = [*self], self[-1]
        if not isinstance(last, nn.PixelShuffle):
            return self._run(layers, parts), 1
        return self._run(layers[:-1], parts), last.upscale_factor

    def _run(self, layers: list[Any], parts: tuple[Tensor, ...]) -> Tensor:
        while layers:
            layer, factor, slope = layers.pop(0), 1, 1.0
            if isinstance(layer, Conv3x3):
                if layers and isinstance(layers[0], nn.PixelShuffle):
                    factor = layers.pop(0).upscale_factor
                if layers and isinstance(layers[0], nn.LeakyReLU | nn.ReLU):
                    slope = getattr(layers.pop(0), "negative_slope", 0.0)
                parts = (layer(*parts, slope=slope, shuffle=factor),)
            else:
                parts = (layer(*parts),)
        return parts[0]


def leaky_relu() -> nn.LeakyReLU:
    """Build a leaky ReLU of slope 0.1. It works in place, so nothing else may read its input."""
    return nn.LeakyReLU(0.1, inplace=True)


def zero_init(layer: nn.Conv2d | nn.Linear) -> None:
    """Set a layer's weight and bias to zero, so that the branch that it ends starts as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def keep_scale(network: nn.Module) -> None:
    """Initialise all convolutions so that they preserve the variance of their input.

    torch's default reduces it to a third at each convolution: the little detail that distinguishes blurred from sharp
    would be lost, and layers without normalisation would learn later.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
            shared = layer.stride[0] ** 2 if isinstance(layer, nn.ConvTranspose2d) else 1
            taps = layer.weight[0, 0].numel() / shared
            nn.init.normal_(layer.weight, std=(layer.in_channels * taps) ** -0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


def at_multiples(frames: Tensor, multiple: int) -> Tensor:
    """Pad frames at the right and bottom by repeating the border.

    Args:
        frames: (N, C, H, W), any range.
        multiple: Number that is to divide both sides.

    Returns:
        (N, C, H', W'), H and W rounded up to multiples; `frames` itself if they are multiples.
    """
    height, width = frames.shape[-2:]
    padding = (0, -width % multiple, 0, -height % multiple)
    return F.pad(frames, padding, mode="replicate") if any(padding) else frames


def cells(image: Tensor, grid: int) -> Tensor:
    """Turn the pixels of each cell into channels.

    Args:
        image: (N, C, H, W); padded by its border to multiples of g.
        grid: g.

    Returns:
        (N, C*g^2, H/g, W/g), rounded up, in the order of `torch.nn.PixelUnshuffle`, channels-last; `image` itself if
        g is 1.
    """
    if grid == 1:
        return image
    parts = rearrange(at_multiples(image, grid), "n c (h p) (w q) -> n h w (c p q)", p=grid, q=grid)
    return parts.permute(0, 3, 1, 2)


def channels_last(network: nn.Module) -> None:
    """Convert the weights of 2D convolutions to the channels-last format; 3D convolutions have no such format."""
    for value in network.parameters():
        if value.dim() == 4:
            value.data = value.data.contiguous(memory_format=torch.channels_last)


class PixelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel, with weight and bias."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the channels of each pixel of `x` (N, C, H, W); returns (N, C, H, W)."""
        return kernels.pixel_norm(x, self.weight, self.bias, self.eps)


class ResidualDenseBlock(nn.Module):
    """Dense convolutions, each reading all before it. Source: ESRGAN (arXiv 1809.00219), Fig. 4; one per stem."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv3x3(width + i * growth, growth) for i in range(layers))
        self.last = Conv3x3(width + layers * growth, width)

    def forward(self, x: Tensor) -> Tensor:
        """Refine `x` (N, C, H, W); returns (N, C, H, W)."""
        feats = [x]
        for conv in self.convs:
            feats.append(conv(*feats, slope=0.2))
        return torch.add(x, self.last(*feats), alpha=0.2)


class ChannelAttention(nn.Module):
    """Attention across channels: MDTA, or degradation-aware (DA) attention when guided.

    Statistics span the whole frame, so the cost is linear in pixels. The output projection and the attention matrix
    are multiplied first (one C x C matrix per frame), which leaves a single product per pixel.

    Source: Restormer (arXiv 2111.09881), Eq. 1-2; FMA-Net++ (arXiv 2512.04390), Sec. 3.4 and Fig. 4b: in DA
    attention the query comes from the degradation kernel, key and value from the features.
    """

    def __init__(self, width: int, heads: int, *, guided: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_query = _projection(width, width) if guided else None
        self.to_rest = _projection(width, (2 if guided else 3) * width)  # key and value, or query, key and value
        self.temperature = nn.Parameter(torch.ones(heads))
        self.to_out = nn.Conv2d(width, width, 1, bias=False)

    margin = 1
    """Pixels around a tile that its result depends on, once the sums are known."""

    def forward(self, shortcut: Tensor, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """Mix the channels of an image and add a shortcut.

        Args:
            shortcut: (N, C, H, W).
            x: (N, C, H, W).
            guide: (N, C, H, W); without effect unless the attention is guided.

        Returns:
            (N, C, H, W).

        Raises:
            ShapeError: The attention is guided, and there is no guide.
        """
        query, key, value, squares = self.project(x, guide)
        grams = kernels.head_grams(query, key, self.heads)
        return kernels.add_product(shortcut, value, self.matrix(grams, squares).to(value.dtype))

    def sums(self, x: Tensor, guide: Tensor | None, inner: Box) -> tuple[Tensor, ...]:
        """Compute the sums over the part `inner` of a tile; those of all tiles are added before `mix`.

        Args:
            x: (N, C, H, W), the tile and `margin` pixels around it.
            guide: (N, C, H, W), alike.
            inner: The tile in it.

        Returns:
            Arguments of `matrix`.
        """
        query, key, _, _ = self.project(x, guide)
        query, key = inner.of(query), inner.of(key)
        squares = torch.cat([query, key], dim=1).float().square().sum(dim=(2, 3))
        return kernels.head_grams(query, key, self.heads), squares

    def mix(self, shortcut: Tensor, x: Tensor, guide: Tensor | None, sums: tuple[Tensor, ...]) -> Tensor:
        """Do as `forward`, on a tile, with the sums over the whole frame.

        Args:
            shortcut: (N, C, H, W), a tile.
            x: (N, C, H, W), alike.
            guide: (N, C, H, W), alike.
            sums: Sums of the results of `sums`.

        Returns:
            (N, C, H, W).
        """
        _, _, value, _ = self.project(x, guide)
        return kernels.add_product(shortcut, value, self.matrix(*sums).to(value.dtype))

    def project(self, x: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute query, key and value; arguments are those of `forward`.

        Returns:
            Query, key and value, (N, C, H, W) each, and the sums of squares (N, 2C), fp32, of query and key.
        """
        channels = x.shape[1]
        if self.to_query is None:
            projected = [_project(self.to_rest, x, 2 * channels)]
        else:
            if guide is None:
                raise ShapeError("a guided block needs the kernel guide, got none; pass that of its level")
            projected = [_project(self.to_query, guide, channels), _project(self.to_rest, x, channels)]
        query, key, value = (part for feat, _ in projected for part in feat.split(channels, dim=1))
        return query, key, value, torch.cat([squares for _, squares in projected], dim=1)

    def matrix(self, grams: Tensor, squares: Tensor) -> Tensor:
        """Compute the matrix by which the channels of the values are multiplied.

        Args:
            grams: (N, heads, C/heads, C/heads), fp32: products of query and key, summed over the frame.
            squares: (N, 2C), fp32: squares of query and key, summed over the frame.

        Returns:
            (N, C in, C out), fp32.
        """
        with torch.autocast(grams.device.type, enabled=False):
            # Clamped before the root, whose gradient at 0 is infinite.
            norms = rearrange(squares.clamp_min(1e-24).sqrt(), "n (two h c) -> two n h c", two=2, h=self.heads)
            cosine = grams / (norms[0, ..., None] * norms[1, :, :, None, :])
            attention = (cosine * self.temperature.float()[:, None, None]).softmax(dim=3)
            out_weight = rearrange(self.to_out.weight.float(), "o (h c) 1 1 -> o h c", h=self.heads)
            return torch.einsum("ohc,nhcd->nhdo", out_weight, attention).flatten(1, 2)


def _project(projection: nn.Sequential, x: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """Run `projection` on `x` (N, C, H, W); returns (N, D, H, W), and the sums of squares of the first channels."""
    pointwise, depthwise = projection.parameters()
    return kernels.squared_projection(x, pointwise, depthwise, squared)


def _projection(in_width: int, out_width: int) -> nn.Sequential:
    """Build a pointwise, then a depthwise 3x3 convolution, both without bias."""
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, 1, bias=False),
        nn.Conv2d(out_width, out_width, 3, padding=1, groups=out_width, bias=False),
    )


class GatedFeedForward(nn.Module):
    """GDFN: a gated pointwise network with a depthwise 3x3 inside. Source: Restormer (arXiv 2111.09881), Eq. 3."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = _projection(width, 2 * hidden)
        self.reduce = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """Transform `x` (N, C, H, W) and add `shortcut` (N, C, H, W); returns (N, C, H, W)."""
        pointwise, depthwise = self.expand.parameters()
        return kernels.feed_forward(shortcut, x, pointwise, depthwise, self.reduce.weight)


class FeatureModulation(nn.Module):
    """Scale and shift features by the kernel guide: the paper's ablation of DA attention.

    Source: FMA-Net++ (arXiv 2512.04390), Table 8, "SFT instead of DA"; layer sizes fit its 13.2 M parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_affine = Layers(Conv3x3(width, width // 2), leaky_relu(), Conv3x3(width // 2, 2 * width))

    margin = 2
    """Pixels around a tile that its result depends on."""

    def forward(self, shortcut: Tensor, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """Modulate `x`; the interface is that of `ChannelAttention`.

        Args:
            shortcut: Without effect: the paper's SFT has none.
            x: (N, C, H, W).
            guide: (N, C, H, W).

        Returns:
            (N, C, H, W).

        Raises:
            ShapeError: There is no guide.
        """
        if guide is None:
            raise ShapeError("a guided block needs the kernel guide, got none; pass that of its level")
        scale, shift = self.to_affine(guide).chunk(2, dim=1)
        return x * (1 + scale) + shift

    def sums(self, x: Tensor, guide: Tensor | None, inner: Box) -> tuple[Tensor, ...]:
        """See `ChannelAttention`; there are none."""
        return ()

    def mix(self, shortcut: Tensor, x: Tensor, guide: Tensor | None, sums: tuple[Tensor, ...]) -> Tensor:
        """See `ChannelAttention`."""
        return self(shortcut, x, guide)


class ExposureModulation(nn.Module):
    """Scale and shift features by their frame's exposure.

    Source: FMA-Net++ (arXiv 2512.04390), exposure-time modulation (ETM), Sec. 3.3. The embedding has no spatial
    extent, so neither have scale and shift; the last layer starts at zero, so the module starts as the identity.
    """

    def __init__(self, width: int, embed_width: int, hidden: int) -> None:
        super().__init__()
        self.embed_width = embed_width
        self.to_affine = nn.Sequential(
            nn.Linear(embed_width, hidden), leaky_relu(), last := nn.Linear(hidden, 2 * width)
        )
        zero_init(last)

    def forward(self, feat: Tensor, embed: Tensor | None) -> Tensor:
        """Modulate features by their frames' exposure.

        Args:
            feat: (N, C, H, W).
            embed: (N, U), or more channels, of which the first U are read.

        Returns:
            (N, C, H, W).

        Raises:
            ShapeError: There is no embedding.
        """
        if embed is None:
            raise ShapeError("an exposure-aware block needs the exposure embedding, got none; pass that of the frames")
        scale, shift = rearrange(self.to_affine(embed[:, : self.embed_width]), "n (two c) -> two n c 1 1", two=2)
        return torch.addcmul(shift, feat, 1 + scale)


class NoModulation(nn.Module):
    """Takes the place of `ExposureModulation` in a network that is not exposure-aware."""

    def forward(self, feat: Tensor, embed: Tensor | None) -> Tensor:
        """Return `feat` (N, C, H, W) unchanged; returns (N, C, H, W)."""
        return feat
