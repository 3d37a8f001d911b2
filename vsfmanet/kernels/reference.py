"""The operations in plain torch, under the names that `Kernels` has; for training, exports and everything else."""

from __future__ import annotations

from vsfmanet.ops.attention import head_grams_reference as head_grams
from vsfmanet.ops.convolution import conv3x3_reference as conv3x3
from vsfmanet.ops.norm import pixel_norm_reference as pixel_norm
from vsfmanet.ops.path import path_cells_reference as path_cells
from vsfmanet.ops.projection import add_product_reference as add_product
from vsfmanet.ops.projection import feed_forward_reference as feed_forward
from vsfmanet.ops.projection import squared_projection_reference as squared_projection
from vsfmanet.ops.skip import add_skip_reference as add_skip
from vsfmanet.ops.warp import warp_neighbours_reference as warp_neighbours

__all__ = [
    "add_product",
    "add_skip",
    "conv3x3",
    "feed_forward",
    "head_grams",
    "path_cells",
    "pixel_norm",
    "squared_projection",
    "warp_neighbours",
]
