"""MMP-RNN: deblurring at the input's size by a recurrent network that knows how much each pixel moves.

    python -m training.train_mmprnn --pool runs/pool_x1 --preset a3b4c16 --out runs/mmprnn
    python -m training.train_mmprnn --without-prior ...

The prior is a blur analyser that is trained already, and frozen. Losses are the paper's: Charbonnier over colours, 0.5
times the squared difference of gradient lengths, and the motion magnitude that the prior still sees in the result.

Source: Wang et al., Efficient Video Deblurring Guided by Motion Magnitude (arXiv 2207.13374), Sec. 3.5. Departures: the
recipe, for short budgets; and the motion magnitude is that of one frame of each clip, another one in each step, since
the prior costs as much as a third of the network. Its weight is smaller than the paper's, 1, because blur extent on a
scale of logarithms is larger than a speed.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor

from training.data.pool import Batch
from training.losses.frames import charbonnier, decibel_loss, gradient_loss
from training.options import command
from training.run.deblurring import train
from training.run.options import DeblurringOptions
from training.run.trained import trained_analyser
from vsfmanet.errors import ConfigError
from vsfmanet.networks.mmpnet import BlurAnalyser
from vsfmanet.networks.mmprnn import MMPRNN, PRESETS, MMPRNNConfig


@dataclass(frozen=True, kw_only=True)
class Options(DeblurringOptions):
    """A training of MMP-RNN."""

    preset: Literal["a3b4c16", "a8b9c18", "a9b10c18"] = "a3b4c16"
    """Sizes of the network."""
    prior: Path | None = None
    """Checkpoint of training.train_blur; without it, the analyser that ships."""
    without_prior: bool = False
    """Leave out the prior, its gate and its loss."""
    motion_weight: float = 0.05
    """Weight of the motion magnitude loss."""
    learning_rate: float = 5e-4
    max_norm: float = 20.0
    crop: int = 128

    def __post_init__(self) -> None:
        if self.without_prior and self.prior is not None:
            raise ConfigError("--prior names a checkpoint that --without-prior leaves out; choose one of them")


def build(config: MMPRNNConfig, analyser: BlurAnalyser | None) -> MMPRNN:
    """Build a fresh network around a trained prior, in folded form; without one if `analyser` is None."""
    if analyser is None:
        return MMPRNN(replace(config, prior="none"))
    network = MMPRNN(replace(config, prior="extent", prior_width=analyser.config.width))
    assert network.prior is not None
    network.prior.load_state_dict(analyser.state_dict())
    return network


def losses(
    network: MMPRNN, batch: Batch, step: int, *, motion_weight: float, decibels: float | None
) -> dict[str, Tensor]:
    """Compute the three terms, weighted; scalars by name."""
    output = network(batch.lr)
    colours = charbonnier(output, batch.hr) if decibels is None else decibel_loss(output, batch.hr, most=decibels)
    values = {"colours": colours, "gradient": 0.5 * gradient_loss(output, batch.hr)}
    if network.prior is not None and motion_weight:
        frame = output[:, step % output.shape[1]]
        values["motion"] = motion_weight * network.motion_magnitude(frame).mean()
    return values


def run(options: Options) -> None:
    """Train a network of the chosen sizes."""
    analyser = None if options.without_prior else trained_analyser(options.prior)
    train(
        options,
        preset=options.preset,
        build=partial(build, PRESETS[options.preset], analyser),
        losses=partial(losses, motion_weight=options.motion_weight, decibels=options.decibels),
    )


main = command(run, __doc__)

if __name__ == "__main__":
    main()
