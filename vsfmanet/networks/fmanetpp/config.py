"""Sizes of FMA-Net++, and its presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsfmanet.errors import ConfigError
from vsfmanet.networks.checks import check_fields

_KERNEL_SIZES = {4: 20, 2: 12, 1: 9}


@dataclass(frozen=True, kw_only=True, slots=True)
class FMANetPPConfig:
    """Sizes of FMA-Net++. The defaults are the `paper` preset. g stands for `grid` in all shapes.

    Raises:
        ConfigError: A size is too small, or two fields contradict each other.
    """

    scale: int = 4
    """Output size over input size: 4, 2, or 1 (deblurring only)."""
    width: int = 108
    """Feature channels C; a multiple of `heads`."""
    num_blocks: int = 4
    """Blocks M of each of the two networks; a frame reads 2M frames to each side."""
    num_flows: int = 9
    """Flow-mask pairs n per direction."""
    heads: int = 6
    """Heads of the channel attentions."""
    feed_forward_width: int = 288
    """Hidden channels of the gated feed-forward networks."""
    fuse_convs: int = 2
    """Convolutions that fuse a frame with its warped neighbours, 1 or 2."""
    dense_growth: int = 56
    """Growth of the dense block in each stem."""
    dense_layers: int = 4
    """Layers of the dense block in each stem."""
    extractor_width: int = 32
    """First width of the exposure extractor; embeddings have 8 times as many channels."""
    extractor_blocks: int = 2
    """Residual blocks per stage of the exposure extractor."""
    modulation_width: int = 52
    """Hidden channels of the exposure modulation."""
    kernel_head_size: int = 3
    """Side of the last convolution of the kernel head, 3 or 1."""
    upsampler: Literal["two_stage", "lr", "path"] = "two_stage"
    """`two_stage`: two pixel shuffles and convolutions at output size (scale 4); `lr`: all work on the levels' grid;
    `path`: the path branch alone, since what a coarse grid adds to single pixels is mostly noise."""
    last_flow_update: bool = True
    """Build the flow update of the last restoration block. Nothing reads it; it only matches published counts."""
    initial_flow: Literal["zero", "matching"] = "zero"
    """Flow by which the first level warps: zero, as in the paper, or an estimate without parameters."""
    flow_features: bool = False
    """Add the flow itself to NetD's features; see `HRBABlock`."""
    learned_exposures: bool = False
    """Learn the embeddings of known exposures; otherwise they are the extractor's mean embeddings."""
    exposure_aware: bool = True
    """Build the extractor and the modulations; without them the network is the paper's ablation "without ETE"."""
    guidance: Literal["attention", "sft"] = "attention"
    """How kernels guide restoration: DA attention, or the paper's ablation by feature modulation."""
    grid: int = 1
    """Side g of a cell in input pixels: 1, 2 or 4. Flow, levels and guide are computed once a cell, for a cost that
    falls by g^2; see `DegradationNetwork` and `RestorationNetwork`."""
    path_width: int = 0
    """Channels of the path branch, which reads each frame along the path of its blur (`PathBranch`); 0 for none."""
    path_grid: int = 1
    """Side of a cell of the path branch in input pixels; 1, 2 or 4, and at most `grid`."""
    path_blocks: int = 4
    """Residual blocks of the path branch."""

    def __post_init__(self) -> None:
        check_fields(self, least={"path_width": 0})
        if self.scale not in _KERNEL_SIZES:
            raise ConfigError(f"scale must be 4, 2 or 1, got {self.scale}")
        if self.width % self.heads:
            raise ConfigError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if not 1 <= self.num_flows <= self.width:
            raise ConfigError(f"num_flows must be in 1 ... width ({self.width}), got {self.num_flows}")
        if self.upsampler == "two_stage" and self.scale != 4:
            raise ConfigError(f"upsampler two_stage makes scale 4, got scale {self.scale}; use 'lr'")
        if self.fuse_convs not in (1, 2) or self.kernel_head_size not in (1, 3):
            raise ConfigError(
                "fuse_convs must be 1 or 2 and kernel_head_size 1 or 3, "
                f"got {self.fuse_convs} and {self.kernel_head_size}"
            )
        if self.grid not in (1, 2, 4):
            raise ConfigError(f"grid must be 1, 2 or 4, got {self.grid}")
        if self.upsampler == "path" and not self.path_width:
            raise ConfigError("upsampler path needs a path branch, got path_width 0; set path_width or use 'lr'")
        if self.path_width and (self.path_grid not in (1, 2, 4) or self.path_grid > self.grid):
            raise ConfigError(f"path_grid must be 1, 2 or 4, and at most grid ({self.grid}), got {self.path_grid}")
        if self.upsampler == "two_stage" and self.grid != 1:
            raise ConfigError(f"upsampler two_stage is for grid 1, got grid {self.grid}; use 'lr'")

    @property
    def kernel_size(self) -> int:
        """Side kd of the degradation kernels in output pixels; about five input pixels."""
        return _KERNEL_SIZES[self.scale]

    @property
    def context(self) -> int:
        """Frames that a frame reads to each side: 2M."""
        return 2 * self.num_blocks


def preset(name: str, scale: int = 4) -> FMANetPPConfig:
    """Return the configuration `paper` (12.8 M parameters), `base` (3.2 M), `fast` (1.6 M) or `path` for a scale.

    `path` has few levels on a coarse grid, and leaves the detail to the path branch.

    Args:
        name: Name of the preset.
        scale: 4, 2 or 1.

    Raises:
        ConfigError: There is no preset of this name, or no such scale.
    """
    if name == "paper":
        return FMANetPPConfig(scale=scale, upsampler="two_stage" if scale == 4 else "lr")
    if name == "base":
        return FMANetPPConfig(
            scale=scale, width=64, num_flows=8, heads=4, feed_forward_width=128, fuse_convs=1, dense_growth=32,
            extractor_width=8, modulation_width=32, kernel_head_size=1, upsampler="lr", last_flow_update=False,
            initial_flow="matching", flow_features=True, learned_exposures=True,
        )  # fmt: skip
    if name == "fast":
        return FMANetPPConfig(
            scale=scale, width=64, num_blocks=2, num_flows=4, heads=4, feed_forward_width=96, fuse_convs=1,
            dense_growth=32, dense_layers=2, extractor_width=8, modulation_width=32, kernel_head_size=1,
            upsampler="lr", last_flow_update=False, initial_flow="matching", flow_features=True,
            learned_exposures=True,
        )  # fmt: skip
    if name == "path":
        grid, path_grid = {1: (4, 2), 2: (4, 1)}.get(scale, (1, 1))  # of scales 1 and 2 the levels are the same
        return FMANetPPConfig(
            scale=scale, width=48, num_blocks=1, num_flows=2, heads=4, feed_forward_width=96, fuse_convs=1,
            dense_growth=32, dense_layers=2, extractor_width=8, modulation_width=32, kernel_head_size=1,
            upsampler="path" if grid > 1 else "lr", last_flow_update=False, initial_flow="matching",
            flow_features=True, learned_exposures=True, grid=grid, path_width=64, path_grid=path_grid,
        )  # fmt: skip
    raise ConfigError(f"name must be paper, base, fast or path, got {name!r}")
