"""The loss of stage 1."""

import torch
from torch import Tensor

CONTRAST_TEMPERATURE = 0.5
"""alpha of Eq. S1."""


def supervised_contrastive(embed: Tensor, label: Tensor) -> Tensor:
    """Pull embeddings of one label together, push the others away.

    Args:
        embed: (N, U), unit length.
        label: (N,), integers.

    Returns:
        Scalar: mean over the anchors that share their label with another sample.

    Source: FMA-Net++ (arXiv 2512.04390), Eq. S1; Khosla et al. (arXiv 2004.11362).
    """
    same = label[:, None] == label[None, :]
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    logits = (embed @ embed.T / CONTRAST_TEMPERATURE).masked_fill(itself, -torch.inf)
    log_probability = logits.log_softmax(dim=1).masked_fill(itself, 0)
    positives = (same & ~itself).float()
    count = positives.sum(dim=1)
    per_anchor = -(log_probability * positives).sum(dim=1) / count.clamp(min=1)
    return per_anchor[count > 0].mean()
