"""Products of channels, for attention across them.

Source: Restormer (arXiv 2111.09881), Eq. 1.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

_SHRINK = 2.0**-6
"""Factor for query and key in fp16, whose largest number is 65504: sums over frames of 4K stay far below it."""


def head_grams_reference(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Multiply the channels of query and key in each head, and sum over the image.

    Args:
        query: (N, C, H, W), any range, C a multiple of `heads`.
        key: (N, C, H, W), of the same type.
        heads: Number of heads; the channels of a head lie side by side.

    Returns:
        (N, heads, C/heads, C/heads), fp32: channels of the query by channels of the key.

    Source: Restormer (arXiv 2111.09881), Eq. 1.
    """
    left, right = rows(query), rows(key)
    shrink = _SHRINK if query.dtype == torch.float16 else 1.0
    if shrink != 1:
        left, right = left * shrink, right * shrink
    # For one frame, `bmm` would copy slices first. Sums are added in fp32, but returned in the inputs' type.
    gram = (torch.mm(left[0].T, right[0])[None] if len(left) == 1 else torch.bmm(left.mT, right)).float()
    return heads_alone(gram / shrink**2 if shrink != 1 else gram, heads)


def rows(feat: Tensor) -> Tensor:
    """Return `feat` (N, C, H, W) as (N, H*W, C); a view if it is channels-last."""
    return feat.permute(0, 2, 3, 1).flatten(1, 2)


def heads_alone(gram: Tensor, heads: int) -> Tensor:
    """Return the blocks (N, heads, C/heads, C/heads) of each head with itself of the products `gram` (N, C, C)."""
    blocks = rearrange(gram, "n (g c) (h d) -> n g h c d", g=heads, h=heads)
    return torch.diagonal(blocks, dim1=1, dim2=2).movedim(-1, 1)
