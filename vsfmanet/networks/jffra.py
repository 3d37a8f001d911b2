"""JFFRA: joint flow and feature refinement by attention, for deblurring at the input's size.

The middle one of three frames is restored. On the way down and up a U-Net, flow and features refine each other at every
level: the neighbours are warped by the current flow, a cost volume measures how well they fit, the flow is corrected,
the neighbours are warped again, and attention over the three frames refines the features.

Source: "Joint Flow And Feature Refinement Using Attention For Video Restoration", arXiv 2505.16434. The paper publishes
neither code nor sizes: sizes, heads and order of layers are ours, so its figures do not apply to this network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet.errors import ConfigError, ShapeError
from vsfmanet.networks.blocks import Conv3x3, Layers, at_multiples, keep_scale, leaky_relu, zero_init
from vsfmanet.networks.checks import check_fields
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.ops.matching import match_frames
from vsfmanet.ops.warp import flow_warp
from vsfmanet.segments import Reach

FRAMES = 3
"""Previous, own and next frame, in this order."""

WINDOW = 8
"""Side of the windows of attention, in pixels of the level."""

SEARCH = 4
"""Search range of the cost volume, pixels to each side."""

MULTIPLE_OF = 64
"""Sides are padded to multiples of this, a window of the lowest level, by repeating the border, and cropped back."""

MIN_SIDE = 8
"""Smallest height and width of a frame, in pixels."""

_STEM_WIDTH = 32
_FLOW_UNIT = 8.0  # pixels of the level: a usual motion; larger ones approach 1, so that none drowns the features
_MASKED = -1e4  # added to a logit: zero after the softmax, and within the range of fp16
_VOLUME_BYTES = 64 * 2**20  # products that the cost volume holds at once; whole rows of windows may need more


@dataclass(frozen=True, kw_only=True, slots=True)
class JFFRAConfig:
    """Sizes of JFFRA. The defaults are the `m` preset."""

    width: int = 64
    """Channels c at half size; 3/2 c and 2 c at a quarter and an eighth. Even."""
    depth: int = 4
    """Attention blocks of each of the four upper levels (two on the way down, two up)."""
    bottom_depth: int = 6
    """Attention blocks of the lowest level."""
    flow_width: int = 96
    """Channels of the heads that correct the flow; even."""
    refine_flow: bool = True
    """Correct the flow at every level; False, an ablation, keeps the initial one."""
    flow_features: bool = False
    """Add the flow to the features. Not in the paper: a frame is blurred along its motion, which short trainings do
    not learn from pictures alone."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("width", "flow_width"):
            if getattr(self, name) % 2:
                raise ConfigError(f"{name} must be even, got {getattr(self, name)}")
        for width in self.widths:
            if width < 16 or width % (width // 16):
                raise ConfigError(
                    f"width must give levels that heads of about 16 channels divide, got {self.width} "
                    f"for {self.widths}; take 32, 48, 64 or 96"
                )

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels at half, a quarter and an eighth of the size."""
        return self.width, 3 * self.width // 2, 2 * self.width


PRESETS = {
    "xs": JFFRAConfig(width=32, depth=1, bottom_depth=2, flow_width=48, flow_features=True),
    "s": JFFRAConfig(width=48, depth=2, bottom_depth=4),
    "m": JFFRAConfig(),
    "l": JFFRAConfig(width=96, depth=6, bottom_depth=8),
}
"""Sizes by name: 2.3 M (s), 3.9 M (m) and 8.7 M parameters (l) as designed, and one (xs) for hours on a CPU."""


class WindowAttention(nn.Module):
    """Attention among the 192 pixels of three frames in a window of 8x8.

    Windows are side by side, or shifted by half a window and wrapped around the border, where pixels that are not
    adjacent in the frame do not see each other. Only the windows of the last row and column hold such pixels, so only
    they have a mask: one for all windows would take 850 MB per block at 720p.

    Source: JFFRA (arXiv 2505.16434), its attention over the aligned frames; windows, shift and relative position bias
    as in Swin (arXiv 2103.14030), the bias also by the distance in time, as in Video Swin (arXiv 2106.13230).
    """

    distance: Tensor
    mask: Tensor

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads = width // 16
        self.shift = WINDOW // 2 if shifted else 0
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        reach = 2 * WINDOW - 1
        self.bias = nn.Parameter(torch.empty((2 * FRAMES - 1) * reach**2, self.heads))
        nn.init.normal_(self.bias, std=0.02)
        place = torch.cartesian_prod(torch.arange(FRAMES), torch.arange(WINDOW), torch.arange(WINDOW))
        t, y, x = (place[:, None] - place[None, :]).unbind(dim=-1)
        index = ((t + FRAMES - 1) * reach + y + WINDOW - 1) * reach + x + WINDOW - 1
        self.register_buffer("distance", index, persistent=False)  # (192, 192), rows of `bias`
        self.register_buffer("mask", _shift_mask(place, self.shift), persistent=False)  # (2, 2, 192, 192)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `x` (N, 3, H, W, C), H and W multiples of 8; returns the same shape."""
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (2, 3))
        windows = rearrange(x, "n t (r a) (s b) c -> n r s (t a b) c", a=WINDOW, b=WINDOW)
        qkv = rearrange(self.to_qkv(windows), "n r s l (q g d) -> q n r s g l d", q=3, g=self.heads)
        bias = self.bias[self.distance].permute(2, 0, 1).to(qkv.dtype)  # (heads, 192, 192)
        if self.shift:
            edge = (slice(0, -1), slice(-1, None))  # all rows or columns of windows but the last, and the last
            out = torch.cat(
                [
                    torch.cat([self._attend(qkv[:, :, r, s], bias + self.mask[i, j]) for j, s in enumerate(edge)], 2)
                    for i, r in enumerate(edge)
                ],
                dim=1,
            )
        else:
            out = self._attend(qkv, bias)
        out = self.to_out(rearrange(out, "n r s g l d -> n r s l (g d)"))
        out = rearrange(out, "n r s (t a b) c -> n t (r a) (s b) c", t=FRAMES, a=WINDOW)
        return out.roll((self.shift, self.shift), (2, 3)) if self.shift else out

    @staticmethod
    def _attend(qkv: Tensor, bias: Tensor) -> Tensor:
        """Attend within R by S windows.

        Args:
            qkv: (3, N, R, S, heads, L, D), query, key and value.
            bias: (heads, L, L), added to the logits.

        Returns:
            (N, R, S, heads, L, D).
        """
        shape = qkv.shape[1:]
        if not qkv.numel():
            return qkv.new_empty(shape)
        query, key, value = qkv.flatten(1, 3).unbind()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(qkv.dtype)[None]).view(shape)


def _shift_mask(place: Tensor, shift: int) -> Tensor:
    """Return the mask that is added to the logits of shifted windows.

    Args:
        place: (L, 3), frame, row and column in the window of each pixel.
        shift: Pixels. In windows of the last row, the last `shift` rows were wrapped around; columns alike.

    Returns:
        (2, 2, L, L): by whether the window is in the last row, and whether it is in the last column.
    """
    wrapped = place[:, 1:] >= WINDOW - shift  # (L, 2)
    apart = wrapped[:, None] != wrapped[None, :]  # (L, L, 2)
    down, right = apart.unbind(dim=-1)
    none = torch.zeros_like(down)
    return _MASKED * torch.stack([torch.stack([none, right]), torch.stack([down, down | right])]).float()


class AttentionBlock(nn.Module):
    """Window attention, then two layers per pixel, each after a LayerNorm and around a shortcut."""

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, shifted=shifted)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Refine `x` (N, 3, H, W, C); returns the same shape."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class FlowHead(nn.Module):
    """Corrects the flow by the fit of a neighbour at the flow's target and nearby; starts as no correction.

    Source: JFFRA (arXiv 2505.16434): D_{i+1} = D_i + FlowHead(CV, F_t, D_i).
    """

    def __init__(self, width: int, flow_width: int) -> None:
        super().__init__()
        half = flow_width // 2
        self.context = nn.Conv2d(width, half, 1)
        self.layers = Layers(
            Conv3x3((2 * SEARCH + 1) ** 2 + half + 2, flow_width), leaky_relu(),
            Conv3x3(flow_width, flow_width), leaky_relu(),
            Conv3x3(flow_width, half), leaky_relu(), last := Conv3x3(half, 2),
        )  # fmt: skip
        zero_init(last)

    def forward(self, feat: Tensor, flow: Tensor) -> Tensor:
        """Refine the flow of both neighbours, with the same weights.

        Args:
            feat: (N, 3, C, H, W).
            flow: (N, 2, 2, H, W), fp32, from the middle frame to the previous and to the next, pixels of this level.

        Returns:
            (N, 2, 2, H, W), fp32.
        """
        own = feat[:, 1]
        costs = torch.stack([cost_volume(own, moved) for moved in _moved(feat, flow).unbind(dim=1)], dim=1)
        context = self.context(own)[:, None].expand(-1, 2, -1, -1, -1)
        read = torch.cat([costs.to(context.dtype), context, flow.to(context.dtype)], dim=2).flatten(0, 1)
        return flow + self.layers(read).float().view_as(flow)


class JFFR(nn.Module):
    """Refines flow and features of one level together. Source: JFFRA (arXiv 2505.16434), the module of this name."""

    def __init__(self, width: int, depth: int, config: JFFRAConfig) -> None:
        super().__init__()
        self.flow_head: nn.Module | None = FlowHead(width, config.flow_width) if config.refine_flow else None
        self.flow_feat = nn.Conv2d(4, width, 1) if config.flow_features else None
        self.blocks = nn.Sequential(*(AttentionBlock(width, shifted=i % 2 == 1) for i in range(depth)))
        self.last = Conv3x3(width, width)
        zero_init(self.last)

    def forward(self, feat: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refine flow and features.

        Args:
            feat: (N, 3, C, H, W), frames not aligned; H and W multiples of 8.
            flow: (N, 2, 2, H, W), fp32, from the middle frame to the previous and to the next, pixels of this level.

        Returns:
            The frames aligned with the middle one (N, 3, C, H, W), their residual (same shape), and the refined flow
            (N, 2, 2, H, W).
        """
        if self.flow_head is not None:
            flow = self.flow_head(feat, flow)
        moved = _moved(feat, flow)
        aligned = torch.stack([moved[:, 0], feat[:, 1], moved[:, 1]], dim=1)
        if self.flow_feat is not None:
            aligned = aligned + self.flow_feat(torch.tanh(flow / _FLOW_UNIT).flatten(1, 2).to(feat.dtype))[:, None]
        refined = self.blocks(rearrange(aligned, "n t c h w -> n t h w c"))
        residual = self.last(rearrange(refined, "n t h w c -> (n t) c h w"))
        return aligned, residual.unflatten(0, (-1, FRAMES)), flow


class JFFRA(SequenceNetwork):
    """The network as a whole. It has no state: a frame is restored from itself and its two neighbours.

    The initial flow is that of `match_frames`, which has no weights: there is no second model to ship or train, its
    result is the same on every machine, and the network tolerates poor flow. It runs at half size, where the flow is
    used; the detail that this loses is lost in the blur already.

    The paper's "F + R" leaves open where the frames are. Here the residual of a neighbour is warped back along the
    flow, so that features stay in place from level to level; to first order (the same flow is assumed at the other
    end), which is exact for constant flow. The output layers read the three frames aligned with the middle one.
    Pictures are centred on 0, so that the zero padding of convolutions is mid-grey, and the first convolutions
    preserve the variance of their input (`keep_scale`).

    With tiles, the result differs slightly from that of whole frames: windows lie elsewhere, and attention reaches
    beyond `halo`.
    """

    config: JFFRAConfig
    kind = "jffra"
    window = (1, 1)
    reach = Reach(before=1, after=1)
    halo = 64

    def __init__(self, config: JFFRAConfig) -> None:
        super().__init__()
        self.config = config
        width, middle, low = config.widths
        self.stem = nn.Sequential(
            nn.Conv3d(3, _STEM_WIDTH, 3, padding=1), leaky_relu(),
            nn.Conv3d(_STEM_WIDTH, width, 3, stride=(1, 2, 2), padding=1),
        )  # fmt: skip
        depth, bottom_depth = config.depth, config.bottom_depth
        levels = [(width, depth), (middle, depth), (low, bottom_depth), (middle, depth), (width, depth)]
        self.levels = nn.ModuleList(JFFR(*sizes, config) for sizes in levels)
        self.down = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in ((width, middle), (middle, low)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, stride=2) for pair in ((low, middle), (middle, width)))
        self.fuse = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for channels in (middle, width))
        self.head = Layers(
            Conv3x3(FRAMES * width, width), leaky_relu(),
            Conv3x3(width, width), leaky_relu(),
            last := Conv3x3(width, 12), nn.PixelShuffle(2),
        )  # fmt: skip
        for part in (self.stem, self.down, self.up, self.fuse):
            keep_scale(part)
        zero_init(last)  # a fresh network returns the middle frame

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """See `SequenceNetwork`; the feature is `frame` (N, 3, H, W) itself, for all results depend on the window.

        Raises:
            ShapeError: `frame` is not (N, 3, H >= 8, W >= 8).
        """
        if frame.dim() != 4 or frame.shape[1] != 3 or min(frame.shape[-2:]) < MIN_SIDE:
            raise ShapeError(f"frames must be (N, 3, H >= {MIN_SIDE}, W >= {MIN_SIDE}), got {tuple(frame.shape)}")
        return (frame,), state

    def decode(self, window: Sequence[Features]) -> Tensor:
        """See `SequenceNetwork`; restores the middle one of three frames; returns (N, 3, H, W)."""
        return self.restore(torch.stack([frame for (frame,) in window], dim=1))

    def restore(self, frames: Tensor) -> Tensor:
        """Restore middle frames.

        Args:
            frames: (N, 3, 3, H, W) RGB in [0, 1]: N times previous, own and next frame.

        Returns:
            (N, 3, H, W), fp32, nominal range [0, 1], not clamped.
        """
        height, width = frames.shape[-2:]
        own = frames[:, 1].float()
        residual = self._residual(at_multiples(frames.flatten(0, 1), MULTIPLE_OF).unflatten(0, (-1, FRAMES)))
        return own + residual[..., :height, :width].float()

    def first_flow(self, frames: Tensor) -> Tensor:
        """Estimate the flow that the first level reads, see `initial_flow`."""
        return initial_flow(frames)

    def _residual(self, frames: Tensor) -> Tensor:
        """Compute the change of the middle frame of `frames` (N, 3, 3, H, W), sides multiples of 64; (N, 3, H, W)."""
        flow = self.first_flow(frames)
        volume = (frames - 0.5).transpose(1, 2).to(next(self.parameters()).dtype)
        feat = self.stem(volume.contiguous(memory_format=torch.channels_last_3d)).transpose(1, 2)
        skips: list[Tensor] = []
        for level, down in zip(self.levels[:2], self.down, strict=True):
            feat, flow = _refined(level, feat, flow)
            skips.append(feat)
            feat, flow = _frame_by_frame(down, feat), _rescaled(flow, 0.5)
        feat, flow = _refined(self.levels[2], feat, flow)
        for level, up, fuse in zip(self.levels[3:], self.up, self.fuse, strict=True):
            feat = _frame_by_frame(fuse, torch.cat([_frame_by_frame(up, feat), skips.pop()], dim=2))
            flow = _rescaled(flow, 2)
            if skips:
                feat, flow = _refined(level, feat, flow)
            else:
                aligned, residual, flow = level(feat, flow)
        return self.head((aligned + residual).flatten(1, 2))


@torch.no_grad()
def initial_flow(frames: Tensor) -> Tensor:
    """Estimate the flow to the neighbours at half size.

    Args:
        frames: (N, 3, 3, H, W), N times previous, own and next frame, H and W even.

    Returns:
        (N, 2, 2, H/2, W/2), fp32: to previous and next frame, channels right and down, in pixels of that size.
    """
    half = F.avg_pool2d(frames.float().flatten(0, 1), 2).unflatten(0, (-1, FRAMES))
    own = half[:, 1:2].expand(-1, 2, -1, -1, -1)
    return match_frames(own.flatten(0, 1), half[:, ::2].flatten(0, 1)).unflatten(0, (-1, 2))


def cost_volume(own: Tensor, other: Tensor) -> Tensor:
    """Correlate the features of each pixel with those of the 9x9 pixels around the same place in another image.

    Each window of 8x8 pixels is multiplied with the 16x16 pixels around it in one matrix product, of which 81 of 256
    products are used. On a CPU, with gradients, that is 2 to 5 times as fast as 81 products of shifted images.

    Args:
        own: (N, C, H, W), H and W multiples of 8.
        other: (N, C, H, W).

    Returns:
        (N, 81, H, W), fp32: <own(p), other(p + (u, v))> / C for rows u = -4 ... 4, and for each of these, columns
        v = -4 ... 4; 0 beyond the border.

    Source: JFFRA (arXiv 2505.16434), CV; divided by C, so that its range does not grow with the width.
    """
    count, channels, height, width = own.shape
    assert other.shape == own.shape
    assert height % WINDOW == width % WINDOW == 0
    with torch.autocast(own.device.type, enabled=False):
        padded = F.pad(other.float(), (SEARCH,) * 4)
        own = own.float() / channels
        row_bytes = count * width * 4 * (WINDOW + 2 * SEARCH) ** 2 * WINDOW
        rows = WINDOW * max(1, _VOLUME_BYTES // row_bytes)
        parts = [
            _window_products(own[:, :, top : top + rows], padded[:, :, top : top + rows + 2 * SEARCH])
            for top in range(0, height, rows)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _window_products(own: Tensor, padded: Tensor) -> Tensor:
    """Compute the cost volume (N, 81, H, W) of `own` (N, C, H, W) and `padded` (N, C, H + 8, W + 8)."""
    count, _, height, width = own.shape
    around = WINDOW + 2 * SEARCH
    query = rearrange(own, "n c (r a) (s b) -> (n r s) (a b) c", a=WINDOW, b=WINDOW)
    key = padded.unfold(2, around, WINDOW).unfold(3, around, WINDOW)
    key = rearrange(key, "n c r s i j -> (n r s) c (i j)")
    products = rearrange(torch.bmm(query, key), "m (a b) (i j) -> m a i b j", a=WINDOW, i=around)
    products = rearrange(_diagonals(products), "m a i b v -> m v b a i")
    return rearrange(
        _diagonals(products), "(n r s) v b a u -> n (u v) (r a) (s b)", n=count, r=height // WINDOW, s=width // WINDOW
    )


def _diagonals(products: Tensor) -> Tensor:
    """Return [..., a, a + u] for u = 0 ... 8 of `products` (..., 8, 16): (..., 8, 9), by rows made one longer."""
    rows, columns = products.shape[-2:]
    longer = F.pad(products.flatten(-2), (0, rows)).unflatten(-1, (rows, columns + 1))
    return longer[..., : 2 * SEARCH + 1]


def _moved(feat: Tensor, flow: Tensor) -> Tensor:
    """Warp previous and next frame of `feat` (N, 3, C, H, W) by `flow` (N, 2, 2, H, W); returns (N, 2, C, H, W)."""
    return flow_warp(feat[:, ::2].flatten(0, 1), flow.flatten(0, 1), padding="border").unflatten(0, (-1, 2))


def _refined(level: nn.Module, feat: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Run `level`; returns features (N, 3, C, H, W), not aligned, and flow (N, 2, 2, H, W)."""
    _, residual, flow = level(feat, flow)
    back = _moved(residual, -flow)
    return feat + torch.stack([back[:, 0], residual[:, 1], back[:, 1]], dim=1), flow


def _frame_by_frame(layer: nn.Module, feat: Tensor) -> Tensor:
    """Apply a layer to each frame of `feat` (N, 3, C, H, W); returns (N, 3, D, h, w)."""
    return layer(feat.flatten(0, 1)).unflatten(0, (-1, FRAMES))


def _rescaled(flow: Tensor, factor: float) -> Tensor:
    """Resize `flow` (N, 2, 2, H, W) by a factor, and scale its values by it."""
    scaled = F.interpolate(flow.flatten(0, 1), scale_factor=factor, mode="bilinear", align_corners=False)
    return factor * scaled.unflatten(0, (-1, 2))
