"""MMP-RNN: deblurring at the input's size by a recurrent network that knows how much each pixel moves.

    python -m training.train_mmprnn --pool runs/pool_x1 --preset a3b4c16 --out runs/mmprnn
    python -m training.train_mmprnn --without-prior ...           # the paper's ablations, besides --motion-weight 0:
    python -m training.train_mmprnn --variant without_gate ...

The prior is a blur analyser that is trained already, and frozen. Losses are the paper's: Charbonnier over colours, 0.5
times the squared difference of gradient lengths, and the motion magnitude that the prior still sees in the result.

Source: Wang et al., Efficient Video Deblurring Guided by Motion Magnitude (arXiv 2207.13374), Sec. 3.5. Departures: the
recipe, for short budgets; and the motion magnitude is that of one frame of each clip, another one in each step, since
the prior costs as much as a third of the network. Its weight is smaller than the paper's, 1, because blur extent on a
scale of logarithms is larger than a speed. `--prior`, of `train_blur --target speed`, with `--motion-weight 1` is the
paper's.
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
from training.run.trained import trained_prior
from training.run.variants import MMPRNN_VARIANTS, MMPRNNVariant
from vsfmanet.errors import ConfigError
from vsfmanet.networks.mmpnet import BlurAnalyser, MMPNet
from vsfmanet.networks.mmprnn import MMPRNN, PRESETS, MMPRNNConfig


@dataclass(frozen=True, kw_only=True)
class Options(DeblurringOptions):
    """A training of MMP-RNN."""

    preset: Literal["a3b4c16", "a8b9c18", "a9b10c18"] = "a3b4c16"
    """Sizes of the network."""
    prior: Path | None = None
    """Checkpoint of training.train_blur, of an analyser or with --target speed; without it, the analyser that ships."""
    without_prior: bool = False
    """Leave out the prior, its gate and its loss."""
    variant: MMPRNNVariant | None = None
    """Variant that the paper compares with: the prior gates no features; nor are features passed on that are not
    deblurred yet. It cannot be exported."""
    motion_weight: float = 0.05
    """Weight of the motion magnitude loss."""
    learning_rate: float = 5e-4
    max_norm: float = 20.0
    crop: int = 128

    def __post_init__(self) -> None:
        if self.without_prior and self.prior is not None:
            raise ConfigError("--prior names a checkpoint that --without-prior leaves out; choose one of them")
        if self.without_prior and self.variant:
            raise ConfigError("--variant is of a network with a prior, got --without-prior too; choose one of them")


def build(config: MMPRNNConfig, prior: MMPNet | BlurAnalyser | None, make: type[MMPRNN] = MMPRNN) -> MMPRNN:
    """Build a fresh network around a trained prior, an analyser in folded form; without one if `prior` is None."""
    if isinstance(prior, MMPNet):
        config = replace(config, prior="speed", prior_width=prior.to_prior.in_channels)
    elif prior is not None:
        config = replace(config, prior="extent", prior_width=prior.config.width)
    else:
        config = replace(config, prior="none")
    network = make(config)
    if prior is not None:
        assert network.prior is not None
        network.prior.load_state_dict(prior.state_dict())
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
    prior = None if options.without_prior else trained_prior(options.prior)
    make = MMPRNN if options.variant is None else MMPRNN_VARIANTS[options.variant]
    train(
        options,
        preset=options.preset,
        build=partial(build, PRESETS[options.preset], prior, make),
        variant=options.variant,
        losses=partial(losses, motion_weight=options.motion_weight, decibels=options.decibels),
    )


main = command(run, __doc__)

if __name__ == "__main__":
    main()
