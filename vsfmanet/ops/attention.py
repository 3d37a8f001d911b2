"""What attention across channels compares.

Source: Restormer (arXiv 2111.09881), Eq. 1.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def head_grams_reference(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Products of the channels of each head, summed over the image.

    Args:
        query: (N, C, H, W), C a multiple of `heads`.
        key: (N, C, H, W).
        heads: Channels of a head lie side by side.

    Returns:
        (N, heads, C/heads, C/heads), fp32: of channels of the query with channels of the key.
    """
    left, right = (feat.permute(0, 2, 3, 1).flatten(1, 2) for feat in (query, key))
    # For one frame `bmm` would copy slices first. CPUs and GPUs add up in fp32.
    gram = (torch.mm(left[0].T, right[0])[None] if len(left) == 1 else torch.bmm(left.mT, right)).float()
    blocks = rearrange(gram, "n (g c) (h d) -> n g h c d", g=heads, h=heads)
    return torch.diagonal(blocks, dim1=1, dim2=2).movedim(-1, 1)  # a head with itself
