"""The guide of NetR: the product of kernel head and kernel embeddings, and how to factor it again.

The kernels matter to restoration only through one pointwise convolution per block, and both it and the kernel head are
linear. So their product, a single convolution, replaces them wherever no loss needs the 3*kd^2 channels of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def fold(head: nn.Conv2d, embeds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Multiply the kernel head by the kernel embeddings, in the head's precision.

    Args:
        head: Convolution C to 3*kd^2 with bias.
        embeds: Weights of the M blocks' pointwise convolutions, (C, 3*kd^2, 1, 1) each.

    Returns:
        Weight (M*C, C, k, k) and bias (M*C,) of the guide.
    """
    assert head.bias is not None
    product = torch.cat([weight[:, :, 0, 0] for weight in embeds]).to(head.weight.dtype)
    return torch.einsum("ok,kchw->ochw", product, head.weight), product @ head.bias


def unfold(guide: nn.Conv2d, head: nn.Conv2d, count: int) -> list[Tensor] | None:
    """Find the kernel embeddings whose product with a kernel head (see `fold`) is nearest to a guide.

    Nearest in least squares; exact if the head has at least as many outputs as each output of the guide has weights.

    Args:
        guide: Convolution C to M*C with bias.
        head: Convolution C to 3*kd^2 with bias.
        count: M, the number of blocks.

    Returns:
        M weights (C, 3*kd^2, 1, 1); None if head and guide read different shapes.
    """
    assert head.bias is not None
    assert guide.bias is not None
    product = torch.cat([guide.weight.flatten(1), guide.bias[:, None]], dim=1).double()  # (M*C, C*k*k + 1)
    taps = torch.cat([head.weight.flatten(1), head.bias[:, None]], dim=1).double()  # (3*kd^2, C*k*k + 1)
    if product.shape[1] != taps.shape[1] or len(product) != count * head.in_channels:
        return None
    solved = torch.linalg.lstsq(taps.T, product.T).solution.T.float()
    return [part[:, :, None, None] for part in solved.chunk(count)]
