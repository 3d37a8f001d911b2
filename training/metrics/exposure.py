"""Accuracy of exposure levels from embeddings, and the temperature that makes their probabilities true."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.networks.exposure_extractor import LEVELS

MANY = 50
"""Votes that come near the best decision by the lengths of blur; five are too few for it."""

APART = 100
"""More than lengths of blur can differ, as logarithms."""


@torch.no_grad()
def nearest_neighbour_confusion(embed: Tensor, label: Tensor, fold: Tensor, neighbours: int = 5) -> Tensor:
    """Confusion of a k-nearest-neighbour vote in cross-validation.

    Args:
        embed: (N, U); of unit length, their distance orders them as their cosine does.
        label: (N,), 0 ... 4.
        fold: (N,), the part of the cross-validation that each belongs to; only the others vote for it.
        neighbours: Votes, by distance.

    Returns:
        (5, 5), rows the truth, in percent of the row.

    Source: FMA-Net++ (arXiv 2512.04390), S4.1.
    """
    distance = torch.cdist(embed, embed).masked_fill(fold[:, None] == fold[None, :], torch.inf)
    nearest = distance.topk(min(neighbours, len(label)), dim=1, largest=False)
    votes = (F.one_hot(label[nearest.indices], LEVELS) * nearest.values.isfinite()[..., None]).sum(dim=1)
    table = torch.zeros(LEVELS, LEVELS)
    table.index_put_((label, votes.argmax(dim=1)), torch.ones(len(label)), accumulate=True)
    return 100 * table / table.sum(dim=1, keepdim=True).clamp(min=1)


def random_folds(count: int) -> Tensor:
    """Five parts of equal size, (count,), the same ones every time."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % 5


def print_confusion(title: str, confusion: Tensor) -> None:
    """Print a confusion (5, 5) in percent, and its mean accuracy."""
    print(f"{title}, rows 5:1 ... 5:5, percent")
    print("\n".join("  ".join(f"{value:5.1f}" for value in row) for row in confusion.tolist()))
    print(f"mean {confusion.diagonal().mean():.1f} %")


def print_bound(lengths: Tensor, sequences: Tensor) -> None:
    """Print the accuracies of votes by true lengths of blur, as `true_blur` returns them."""
    told, scenes = lengths.flatten(0, 1), sequences.repeat_interleave(LEVELS)
    level = torch.arange(LEVELS).repeat(len(lengths))
    by_scene = torch.cat([told, APART * F.one_hot(scenes)], dim=1)  # neighbours are of the same scene
    for title, told_of, fold, votes in (
        ("random folds", told, random_folds(len(told)), 5),
        ("random folds, the scene known", by_scene, random_folds(len(told)), 5),
        ("leaving out the scene", told, scenes, 5),
        (f"leaving out the scene, {MANY} votes", told, scenes, MANY),
    ):
        confusion = nearest_neighbour_confusion(told_of, level, fold, votes)
        print(f"by the true lengths of blur, {title}: {confusion.diagonal().mean():.1f} %")


def fit_temperature(anchors: Tensor, embed: Tensor, label: Tensor) -> Tensor:
    """Return the temperature for `read_exposure` that makes known levels most probable.

    Args:
        anchors: (5, U), unit mean embeddings.
        embed: (N, U), unit embeddings of pictures never trained on.
        label: (N,), int64, their levels, 0 ... 4.

    Returns:
        Scalar, from 0.01 to 10.
    """
    cosine = embed.float() @ anchors.float().T
    candidates = torch.logspace(-2, 1, 121, device=embed.device)
    losses = torch.stack([F.cross_entropy(cosine / candidate, label) for candidate in candidates])
    return candidates[losses.argmin()]
