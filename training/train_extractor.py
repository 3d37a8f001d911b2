"""Stage 1: the exposure extractor (ETE), by supervised contrast between exposure levels.

    python -m training.train_extractor --pool runs/pool --preset fast --out runs/extractor.pt

Source: FMA-Net++ (arXiv 2512.04390), Sec. 3.3, S1, S4.1. Each batch holds the same crops at all five levels, so that
content says nothing about the label; crops without motion are left out, because exposure cannot be seen there.
Departure: a cosine classifier is trained along and then dropped. Contrast alone takes long to leave the content, in
which the five versions of a crop agree, for the blur, in which they differ; `--class-weight 0` leaves it out.

A frame shows how long its blur is, not how fast things moved. So the report ends with the accuracy of a vote by the
true lengths of blur: where scenes move at all speeds, no reading of single frames comes far beyond it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.exposure_crops import draw, true_blur, visible_motion
from training.data.pool import Pool
from training.losses.contrast import supervised_contrastive
from training.metrics.exposure import (
    fit_temperature,
    nearest_neighbour_confusion,
    print_bound,
    print_confusion,
    random_folds,
)
from training.options import FLAT, command
from training.run.batches import ahead
from training.run.checkpoint import save_checkpoint
from training.run.loop import Progress
from training.run.options import PresetName
from training.run.schedule import learning_rate_factor
from training.run.workers import autocast
from vsfmanet.networks.exposure_extractor import LEVELS, ExposureExtractor
from vsfmanet.networks.fmanetpp import preset

CLASS_TEMPERATURE = 0.1
"""Of the cosine classifier."""

HELD_OUT = 10
"""One sequence in so many is kept for the accuracy."""


@torch.no_grad()
def anchors(extractor: ExposureExtractor, crops: Tensor) -> Tensor:
    """Mean embedding of each level, (5, U), unit length, over crops (K, 5, 3, h, w)."""
    return F.normalize(extractor(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]).mean(dim=0), dim=1)


@FLAT
@dataclass(frozen=True, kw_only=True)
class Options:
    """A training of the extractor."""

    pool: Path
    """Folder that training.render_pool wrote."""
    out: Path
    """Checkpoint to write."""
    preset: PresetName = "fast"
    """Sizes of the network."""
    steps: int = 20000
    """Length of the run."""
    crops: int = 24
    """Crops per batch, each at 5 exposures."""
    crop: int = 64
    """Side of a crop in LR pixels."""
    learning_rate: float = 0.003
    """Learning rate of Adam."""
    seed: int = 0
    """Seed of weights and batches."""
    device: str = "cpu"
    """cpu or cuda."""
    contrast_weight: float = 1.0
    """Weight of the supervised contrast (Eq. S1)."""
    class_weight: float = 1.0
    """Weight of the cosine classifier; 0 in the paper's own extractor, and alone its ablation by classification."""
    ordinal_weight: float = 0.0
    """Weight of the ordinal classifier: alone, the paper's ablation by ordinal regression."""


def train(options: Options) -> None:
    """Train, report the accuracy on sequences never trained on, and save extractor and anchors."""
    torch.manual_seed(options.seed)
    config = preset(options.preset)
    extractor = ExposureExtractor(config.extractor_width, config.extractor_blocks)
    extractor.to(options.device).to(memory_format=torch.channels_last).train()
    prototypes = torch.nn.Parameter(torch.randn(LEVELS, extractor.embed_width, device=options.device))
    thresholds = torch.nn.Linear(extractor.embed_width, LEVELS - 1, device=options.device)
    trained = [*extractor.parameters(), prototypes, *thresholds.parameters()]
    optimizer = torch.optim.Adam(trained, options.learning_rate, fused=True)

    pool = Pool(options.pool)
    moving = [(position, int(t)) for position in range(len(pool)) for t in visible_motion(pool, position)]
    training = [item for item in moving if item[0] % HELD_OUT]
    held_out = [item for item in moving if not item[0] % HELD_OUT]
    print(f"{len(training)} frames to train on, {len(held_out)} held out")
    steps_up = torch.arange(LEVELS - 1, device=options.device)
    label = torch.arange(LEVELS, device=options.device).repeat(options.crops)

    def batch(step: int) -> Tensor:
        crops = draw(pool, training, np.random.default_rng((options.seed, step)), options.crops, options.crop)[0]
        return crops.to(options.device)

    progress = Progress(options.steps, 0, 25)
    for step, crops in ahead(batch, 0, options.steps, options.device):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * learning_rate_factor(step, steps=options.steps, warmup=100, decay=0.7)
        with autocast(options.device):
            embed = extractor(crops.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        contrast = supervised_contrastive(embed, label)
        classes = F.cross_entropy(embed @ F.normalize(prototypes, dim=1).T / CLASS_TEMPERATURE, label)
        ordered = F.binary_cross_entropy_with_logits(thresholds(embed), (label[:, None] > steps_up).float())
        values = {"contrast": contrast, "classes": classes, "ordinal": ordered}
        weights = (options.contrast_weight, options.class_weight, options.ordinal_weight)
        torch.stack([weight * value for weight, value in zip(weights, values.values(), strict=True)]).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.update(step, {name: value.detach() for name, value in values.items()})

    extractor.eval()
    generator = np.random.default_rng((options.seed, 1, 0))
    crops, sequences = draw(pool, held_out, generator, 100, options.crop)
    with torch.no_grad():
        embed = extractor(crops.flatten(0, 1).to(options.device)).cpu()
    levels = torch.arange(LEVELS).repeat(len(crops))
    # The published figure is of random folds, in which scenes, here even the other levels of a crop, are shared.
    confusion = nearest_neighbour_confusion(embed, levels, random_folds(len(embed)))
    print_confusion("k-NN accuracy on sequences never trained on, random folds", confusion)
    apart = nearest_neighbour_confusion(embed, levels, sequences.repeat_interleave(LEVELS))
    print_confusion("the same, leaving out the scene in question", apart)
    print_bound(*true_blur(pool, held_out))
    mean = anchors(extractor, draw(pool, training, generator, 200, options.crop)[0].to(options.device))
    temperature = fit_temperature(mean.cpu(), embed, levels)
    probability = (embed @ mean.cpu().T / temperature).softmax(dim=1).view(-1, LEVELS, LEVELS)
    accuracy = (probability.argmax(dim=2) == torch.arange(LEVELS)).float().mean()
    print(f"nearest anchor right in {100 * accuracy:.1f} %, reading temperature {temperature:.3g}")
    save_checkpoint(
        options.out,
        {
            "preset": options.preset,
            "extractor": extractor.state_dict(),
            "anchors": mean,
            "reading_temperature": temperature,
            "confusion": confusion,
            "confusion_by_scene": apart,
        },
    )


main = command(train, __doc__)

if __name__ == "__main__":
    main()
