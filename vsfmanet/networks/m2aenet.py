"""M2AENet: deblurs single frames where they are blurred, along the motion paths within the exposure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import Conv3x3, keep_scale, zero_init
from vsfmanet.networks.checks import check_fields
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig
from vsfmanet.networks.pruning import (
    Area,
    Pair,
    Pruning,
    masked_conv,
    residual_blocks,
    sample_rows,
)
from vsfmanet.ops.warp import flow_warp
from vsfmanet.segments import Reach

MULTIPLE_OF = 8
"""Sides are padded to multiples of this by repeating the border, and cropped back."""

MIN_SIDE = 24
"""Smallest side after padding: the reflected borders at an eighth of the size take three pixels."""

DILATION = 3
"""Pixels around a blurred pixel that are restored with it."""

POINTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Times at which features are sampled along a path, from shutter opening (-1) to shutter closing (1)."""

MEMORY = 8
"""Frames before a frame whose blur extent influences its mask."""

HELD = 3
"""Consecutive frames in which a pixel must be sharp before it is no longer restored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class M2AENetConfig:
    """Sizes of M2AENet."""

    width: int = 32
    """Channels c at full size; 2c and 4c at a half and a quarter."""
    depth: int = 8
    """Residual blocks n per stage; 2n in the middle one."""
    motion_width: int = 16
    """Channels of the motion analyser at half size; with 16, 1.18 million parameters."""
    trajectories: bool = True
    """Analyse motion and gather features along it; False is an ablation."""
    masked: bool = True
    """Restore blurred pixels only; False is an ablation."""
    on_above: float = 1.25
    """Blur extent in pixels above which a pixel is restored."""
    off_below: float = 0.75
    """Blur extent in pixels below which, for `HELD` frames, it is no longer restored."""
    blur_width: int = 16
    """`BlurConfig.width` of the blur analyser."""
    blur_max_extent: float = 64.0
    """`BlurConfig.max_extent` of the blur analyser."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("width", "blur_width"):
            if getattr(self, name) % 2:
                raise ConfigError(f"{name} must be even, got {getattr(self, name)}")
        if not 0 <= self.off_below <= self.on_above:
            raise ConfigError(f"0 <= off_below <= on_above is needed, got {self.off_below} and {self.on_above} pixels")
        if not self.blur_max_extent > 0:
            raise ConfigError(f"blur_max_extent must be above 0 pixels, got {self.blur_max_extent}")


PRESETS: Mapping[str, M2AENetConfig] = {
    "fast": M2AENetConfig(width=16, depth=4, motion_width=8),
    "deep": M2AENetConfig(width=16, motion_width=8),
    "small": M2AENetConfig(depth=4),
    "base": M2AENetConfig(),
    "large": M2AENetConfig(width=48),
}
"""Sizes by name. "fast" can be trained in half an hour on a CPU; "deep" can start from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class M2AENetOutput:
    """The results of one pass."""

    frames: Tensor
    """(N, 3, H, W) RGB, fp32, nominal range [0, 1], not clamped; where the mask is 0, exactly the input."""
    offsets: Tensor | None
    """(N, 4, H, W), fp32, input pixels: offsets (right, down) of a point at shutter opening, and at shutter closing,
    from its position in the middle of the exposure. One frame does not show which is which. None if not computed."""


class M2AENet(SequenceNetwork):
    """Deblurs the blurred pixels of each frame.

    A frozen blur analyser estimates the blur extent, and with it the mask of pixels to restore; a motion analyser
    estimates paths; the restorer, a U-Net of three sizes, samples features along the paths and refines them inside the
    mask. Sharp pixels are returned bit by bit. Both parts read the extent as a fourth channel of the frame, because it
    is known and determines how long the paths are.

    To avoid flicker, a pixel is restored from an extent above `on_above` until it was below `off_below` for `HELD`
    frames. Only the extents of the `MEMORY` frames before count, so that a frame depends on no others.

    Source: M2AENet (arXiv 2507.07708); a re-design from its abstract: mask predictor, pruning of sharp pixels,
    intra-frame motion analyser with trajectories, reblurring. Layers and sizes are ours. A masked convolution reads
    outside the mask too (sharp neighbours are informative) and writes inside.

    Args:
        config: Sizes.
    """

    kind = "m2aenet"
    config: M2AENetConfig
    window = (MEMORY, 0)
    reach = Reach(before=MEMORY, after=0)
    halo = 64

    def __init__(self, config: M2AENetConfig) -> None:
        super().__init__()
        self.config = config
        self.pruning: Pruning = "tile"
        """How the mask is applied; the result is the same up to rounding."""
        blur = BlurConfig(width=config.blur_width, max_extent=config.blur_max_extent)
        self.blur = BlurAnalyser(blur, folded=True).requires_grad_(False)
        self.motion = MotionAnalyser(config.motion_width) if config.trajectories else None
        self.restorer = Restorer(config.width, config.depth, trajectories=config.trajectories)

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        """See `SequenceNetwork`; the features are `frame` (N, 3, H, W) and its blur extent (N, 1, H, W) in pixels."""
        return (frame, self.blur.extent(frame.to(self.dtype))), None

    def decode(self, window: Sequence[Features]) -> Tensor:
        """See `SequenceNetwork`; restores the last frame of `window`."""
        frame, extent = window[-1]
        return self.restore(frame, extent, self.mask([extent for _, extent in window])).frames

    @property
    def dtype(self) -> torch.dtype:
        """Data type in which the network computes."""
        return self.restorer.enter.weight.dtype

    def mask(self, extents: Sequence[Tensor]) -> Tensor:
        """Compute the mask of the pixels to restore in the last of some frames.

        Args:
            extents: Blur extents of frames in order, (N, 1, H, W) pixels each.

        Returns:
            (N, 1, H, W), fp32, 1 or 0.
        """
        if not self.config.masked:
            return torch.ones_like(extents[-1])
        on = torch.zeros_like(extents[0], dtype=torch.bool)
        sharp_for = torch.zeros_like(extents[0], dtype=torch.int32)
        for extent in extents:
            sharp_for = torch.where(extent < self.config.off_below, sharp_for + 1, 0)
            on = (extent > self.config.on_above) | (on & (sharp_for < HELD))
        return dilated(on.float())

    def restore(self, frame: Tensor, extent: Tensor, mask: Tensor) -> M2AENetOutput:
        """Restore frames inside a mask: densely in training, with gradients or autocast, otherwise by `pruning`.

        Args:
            frame: (N, 3, H, W) RGB in [0, 1].
            extent: (N, 1, H, W), blur extent in pixels.
            mask: (N, 1, H, W), 1 or 0, or see `Area`.

        Returns:
            Restored frames, and the paths if they were computed.
        """
        inference = not torch.is_grad_enabled() and not torch.is_autocast_enabled(frame.device.type)
        # On CUDA the host would wait for each frame's mask to learn how many pixels it holds.
        pruning = self.pruning if inference and self._prunes(frame.device) else "none"
        if pruning != "none" and not mask.any():
            return M2AENetOutput(frames=frame, offsets=None)
        padded, padding = self._inputs(frame, extent)
        offsets = None if self.motion is None else self.motion(padded)
        change = self.restorer(padded, F.pad(mask, padding), offsets, pruning)
        height, width = frame.shape[-2:]
        return M2AENetOutput(
            frames=frame + change[..., :height, :width].float(),
            offsets=None if offsets is None else _enlarged(offsets)[..., :height, :width],
        )

    @staticmethod
    def _prunes(device: torch.device) -> bool:
        """Return whether pixels outside the mask are left out of the computation on a device."""
        return device.type == "cpu"

    def paths(self, frame: Tensor, extent: Tensor) -> Tensor:
        """Estimate the paths only.

        Args:
            frame: (N, 3, H, W) RGB in [0, 1].
            extent: (N, 1, H, W), blur extent in pixels.

        Returns:
            Offsets (N, 4, H, W) as in `M2AENetOutput`.
        """
        assert self.motion is not None
        height, width = frame.shape[-2:]
        return _enlarged(self.motion(self._inputs(frame, extent)[0]))[..., :height, :width]

    def _inputs(self, frame: Tensor, extent: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Build the input of both parts from `frame` (N, 3, H, W) and `extent` (N, 1, H, W).

        Returns:
            (N, 4, H', W'), centred on 0, and the padding (left, right, top, bottom).
        """
        height, width = (max(MIN_SIDE, -(-side // MULTIPLE_OF) * MULTIPLE_OF) - side for side in frame.shape[-2:])
        padding = (0, width, 0, height)
        both = torch.cat([frame, self.blur.scaled(extent)], dim=1) - 0.5
        padded = F.pad(both, padding, mode="replicate")
        return padded.to(self.dtype, memory_format=torch.channels_last), padding


def dilated(mask: Tensor) -> Tensor:
    """Replace each value of `mask` (N, 1, H, W) by the largest within `DILATION` pixels; returns (N, 1, H, W)."""
    return F.max_pool2d(mask, 2 * DILATION + 1, stride=1, padding=DILATION)


def _unit_gain(network: nn.Module) -> None:
    """Initialise layers to preserve variance; the ends of residual branches start smaller, as sums of many grow."""
    keep_scale(network)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and ("second" in name or name.endswith("fuse")):
            with torch.no_grad():
                layer.weight *= 0.3


def _enlarged(offsets: Tensor) -> Tensor:
    """Enlarge offsets (N, 4, h, w) to (N, 4, 2h, 2w); their values are in pixels of that size already."""
    return F.interpolate(offsets, scale_factor=2, mode="bilinear", align_corners=False)


def path(offsets: Tensor, time: float) -> Tensor:
    """Return the position of points on their paths.

    Args:
        offsets: (N, 4, H, W), see `M2AENetOutput`.
        time: From -1 at shutter opening over 0 in the middle to 1 at shutter closing.

    Returns:
        (N, 2, H, W), pixels right and down from the position in the middle of the exposure.

    Source: Motion-ETR's quadratic trajectory: the parabola through start, 0 and end.
    """
    start, end = offsets.split(2, dim=1)
    return 0.5 * ((time * time + time) * end + (time * time - time) * start)


class MotionAnalyser(nn.Module):
    """Estimates the motion paths within the exposure from one frame.

    Source: M2AENet (arXiv 2507.07708), of which only the abstract is known; the layers are in the manner of Motion-ETR
    and VIDUE (arXiv 2303.15043), with about their 1.13 million parameters.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        before = [4 * 4, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(_reflected(inputs, outputs, 5, stride=1 if level == 0 else 2), *_residuals(outputs))
            for level, (inputs, outputs) in enumerate(zip(before, widths, strict=True))
        )
        self.middle = _bottlenecks(widths[2], widths[2])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
            for inputs, outputs in ((4 * width, 2 * width), (2 * width, width))
        )
        self.join = nn.ModuleList([_bottlenecks(4 * width, 2 * width), _bottlenecks(2 * width, width)])
        self.refine = nn.Sequential(*_residuals(width))
        self.last = _reflected(width, 4, 5)
        _unit_gain(self)
        zero_init(self.last)

    def forward(self, frames: Tensor) -> Tensor:
        """Estimate offsets at half size, see `M2AENetOutput`.

        Args:
            frames: (N, 4, H, W), RGB and scaled extent, centred on 0; sides are multiples of `MULTIPLE_OF` and
                at least `MIN_SIDE`.

        Returns:
            (N, 4, H/2, W/2), fp32, in pixels of the frames. Motion is smooth; half the size is a quarter of the work.
        """
        feat = F.pixel_unshuffle(frames, 2)
        skips: list[Tensor] = []
        for stage in self.down:
            feat = stage(feat)
            skips.append(feat)
        feat = self.middle(skips.pop())
        for up, join in zip(self.up, self.join, strict=True):
            feat = join(torch.cat([up(feat), skips.pop()], dim=1))
        return self.last(self.refine(feat)).float()


def _reflected(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, padding_mode="reflect")


class _Residual(nn.Module):
    """Two 5x5 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _reflected(width, width, 5), _reflected(width, width, 5)

    def forward(self, feat: Tensor) -> Tensor:
        """Refine `feat` (N, C, H, W); returns (N, C, H, W)."""
        return feat + self.second(F.relu(self.first(feat)))


def _residuals(width: int) -> list[nn.Module]:
    return [_Residual(width) for _ in range(3)]


def _bottlenecks(inputs: int, width: int) -> nn.Sequential:
    """Build two pairs of a 1x1 convolution to 2 width and a 3x3 one to width: (N, inputs, H, W) to (N, width, H, W)."""
    layers: list[nn.Module] = []
    for before in (inputs, width):
        layers += [nn.Conv2d(before, 2 * width, 1), nn.LeakyReLU(0.2)]
        layers += [_reflected(2 * width, width, 3), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


class Restorer(nn.Module):
    """A U-Net at full, half and quarter size that refines features inside a mask.

    Convolutions that change the size, join the skips or read the frame are dense; the others are pruned.
    """

    def __init__(self, width: int, depth: int, *, trajectories: bool) -> None:
        super().__init__()
        c, n = width, depth
        self.enter = Conv3x3(4, c)
        self.stages = nn.ModuleList(
            Stage(w, k, trajectories=trajectories) for w, k in ((c, n), (2 * c, n), (4 * c, 2 * n), (2 * c, n), (c, n))
        )
        self.down = nn.ModuleList([nn.Conv2d(c, 2 * c, 3, 2, 1), nn.Conv2d(2 * c, 4 * c, 3, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1), nn.ConvTranspose2d(2 * c, c, 4, 2, 1)])
        self.join = nn.ModuleList([nn.Conv2d(4 * c, 2 * c, 1), nn.Conv2d(2 * c, c, 1)])
        self.leave = Conv3x3(c, 3)
        _unit_gain(self)
        zero_init(self.leave)

    def forward(self, frames: Tensor, mask: Tensor, offsets: Tensor | None, pruning: Pruning) -> Tensor:
        """Compute the change of frames.

        Args:
            frames: (N, 4, H, W), as for `MotionAnalyser`.
            mask: (N, 1, H, W), 1 or 0, or see `Area`.
            offsets: (N, 4, H/2, W/2), fp32, pixels of the frames.
            pruning: How the mask is applied.

        Returns:
            (N, 3, H, W), zero outside the mask.
        """
        feat = self.enter(frames)
        mask = mask.to(feat.dtype)
        half = Area(F.max_pool2d(mask, 2))
        areas = [Area(mask), half, Area(F.max_pool2d(half.mask, 2))]
        paths = (
            [None, None, None] if offsets is None else [_enlarged(offsets), offsets / 2, F.avg_pool2d(offsets, 2) / 4]
        )

        def refine(number: int, feat: Tensor) -> Tensor:
            level = min(number, len(self.stages) - 1 - number)
            return self.stages[number](feat, areas[level], paths[level], pruning)

        skips: list[Tensor] = []
        for number, down in enumerate(self.down):
            feat = refine(number, feat)
            skips.append(feat)
            feat = down(feat)
        feat = refine(2, feat)
        for number, (up, join) in enumerate(zip(self.up, self.join, strict=True), start=3):
            feat = refine(number, join(torch.cat([up(feat), skips.pop()], dim=1)))
        return masked_conv(feat, self.leave, areas[0], pruning)


class Stage(nn.Module):
    """Gathers features along paths, then runs residual blocks, inside a mask."""

    def __init__(self, width: int, depth: int, *, trajectories: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 2, 1) if trajectories else None
        self.fuse = nn.Conv2d(len(POINTS) * (width // 2), width, 1) if trajectories else None
        self.first = nn.ModuleList(Conv3x3(width, width) for _ in range(depth))
        self.second = nn.ModuleList(Conv3x3(width, width) for _ in range(depth))

    def blocks(self) -> list[Pair]:
        """Return the convolutions of the residual blocks."""
        pairs: list[Pair] = []
        for first, second in zip(self.first, self.second, strict=True):
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            pairs.append((first, second))
        return pairs

    def forward(self, feat: Tensor, area: Area, offsets: Tensor | None, pruning: Pruning) -> Tensor:
        """Refine features.

        Args:
            feat: (N, C, H, W).
            area: Active part of maps of this size.
            offsets: (N, 4, H, W), in pixels of `feat`; None without paths.
            pruning: How the mask is applied.

        Returns:
            (N, C, H, W).
        """
        if offsets is not None:
            feat = (self._along if pruning == "none" else self._along_pixels)(feat, area, offsets)
        return residual_blocks(feat, self.blocks(), area, pruning)

    def _along(self, feat: Tensor, area: Area, offsets: Tensor) -> Tensor:
        """Add features sampled along the paths."""
        assert self.reduce is not None
        assert self.fuse is not None
        small = area.mask * self.reduce(feat)
        samples = [flow_warp(small, path(offsets, time)) if time else small for time in POINTS]
        return feat + area.mask * self.fuse(torch.cat(samples, dim=1))

    def _along_pixels(self, feat: Tensor, area: Area, offsets: Tensor) -> Tensor:
        """Do as `_along`, by pixels: 1x1 convolutions need no tiles."""
        assert self.reduce is not None
        assert self.fuse is not None
        count, width, height, columns = feat.shape
        rows = feat.permute(0, 2, 3, 1).reshape(-1, width)
        index = area.pixels
        here = F.linear(rows[index], self.reduce.weight.flatten(1), self.reduce.bias)
        small = rows.new_zeros(len(rows), here.shape[1])
        small[index] = here
        places = torch.stack([index % columns, index // columns % height], dim=1).float()
        frame = index // (columns * height)
        samples = [
            sample_rows(
                small, places + path(offsets, time).permute(0, 2, 3, 1).reshape(-1, 2)[index], frame, (height, columns)
            )
            if time
            else here
            for time in POINTS
        ]
        change = F.linear(torch.cat(samples, dim=1), self.fuse.weight.flatten(1), self.fuse.bias)
        return rows.index_add(0, index, change).view(count, height, columns, width).permute(0, 3, 1, 2)
