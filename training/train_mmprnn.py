"""MMP-RNN: deblurring at the input's size by a recurrent network that is told how much each pixel moves.

    python -m training.train_mmprnn --pool runs/pool_x1 --preset a3b4c16 --out runs/mmprnn
    python -m training.train_mmprnn --without-prior ...

The prior is a blur analyser that is trained already, and frozen. Losses are the paper's: Charbonnier over colours, 0.5
times the squared difference of gradient lengths, and the motion magnitude that the prior still sees in the result.

Source: Wang et al., Efficient Video Deblurring Guided by Motion Magnitude (arXiv 2207.13374), Sec. 3.5. Departures: the
recipe, for short budgets; and the motion magnitude is that of one frame of each clip, another one in each step, since
the prior costs as much as a third of the network. Its weight is smaller than the paper's, 1, because blur extent on a
scale of logarithms is larger than a speed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from training.deblurring import add_deblurring_arguments, train
from training.evaluate_blur import load
from training.loop import add_loop_arguments
from training.losses import decibel_loss
from training.scenes.pool import Batch
from training.train_blur import gradient_length
from vsfmanet.networks.mmpnet import BlurAnalyser
from vsfmanet.networks.mmprnn import MMPRNN, PRESETS, MMPRNNConfig


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="a3b4c16", choices=tuple(PRESETS), help="default: %(default)s")
    prior = parser.add_mutually_exclusive_group()
    prior.add_argument("--prior", type=Path, help="checkpoint of training.train_blur (the analyser that ships)")
    prior.add_argument("--without-prior", action="store_true", help="leave out the prior, its gate and its loss")
    add_loop_arguments(parser)
    add_deblurring_arguments(parser)
    add = parser.add_argument
    add("--motion-weight", type=float, default=0.05, help="of the motion magnitude loss (default: %(default)s)")
    parser.set_defaults(learning_rate=5e-4, max_norm=20.0, crop=128)
    return parser.parse_args()


def build(config: MMPRNNConfig, analyser: BlurAnalyser | None) -> MMPRNN:
    """A fresh network with a prior that is trained, in folded form."""
    if analyser is None:
        return MMPRNN(replace(config, prior="none"))
    network = MMPRNN(replace(config, prior="extent", prior_width=analyser.config.width))
    assert network.prior is not None
    network.prior.load_state_dict(analyser.state_dict())
    return network


def charbonnier(output: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of colours, rounded off near 0, of frames (B, T, 3, H, W)."""
    return ((output - truth).square().sum(dim=2) + 1e-6).sqrt().mean()


def gradient_loss(output: Tensor, truth: Tensor) -> Tensor:
    """Mean squared difference of the lengths of gradients, of frames (B, T, 3, H, W)."""
    return (gradient_length(output) - gradient_length(truth)).square().mean()


def losses(
    network: MMPRNN, batch: Batch, step: int, *, motion_weight: float, decibels: float | None
) -> dict[str, Tensor]:
    """The three terms, weighted."""
    output = network(batch.lr)
    colours = charbonnier(output, batch.hr) if decibels is None else decibel_loss(output, batch.hr, most=decibels)
    values = {"colours": colours, "gradient": 0.5 * gradient_loss(output, batch.hr)}
    if network.prior is not None and motion_weight:
        frame = output[:, step % output.shape[1]]
        values["motion"] = motion_weight * network.motion_magnitude(frame).mean()
    return values


def main() -> None:
    """Train."""
    args = parse_arguments()
    analyser = None if args.without_prior else load(args.prior)
    train(
        args,
        preset=args.preset,
        build=partial(build, PRESETS[args.preset], analyser),
        losses=partial(losses, motion_weight=args.motion_weight, decibels=args.decibels),
    )


if __name__ == "__main__":
    main()
