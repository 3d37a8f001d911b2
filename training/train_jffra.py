"""JFFRA: deblurring at the input's size from three frames, whose flow and features refine each other.

    python -m training.train_jffra --pool runs/pool_x1 --preset s --out runs/jffra
    python -m training.train_jffra --no-refinement ...     # the paper's ablations: the initial flow stays,
    python -m training.train_jffra --temporal-weight 0 ... # and nothing holds frames to their neighbours

A clip of T frames gives T - 2 restored ones, each from its own three frames; the temporal loss looks at two that follow
each other, so it needs clips of four frames. A short run may begin with clips of three frames, twice as many for the
same cost, and go on with those of four:

    python -m training.train_jffra ... --clips 4 --frames 3 --temporal-weight 0 --max-minutes 19
    python -m training.train_jffra ... --clips 2 --frames 4 --max-minutes 11

Source: JFFRA (arXiv 2505.16434): l1 and 0.2 times the occlusion-aware temporal loss. Departures: the recipe, for short
budgets; and the motion in the temporal loss is the exact one of the synthetic scenes.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from functools import partial

from torch import Tensor

from training.deblurring import add_deblurring_arguments, train
from training.loop import add_loop_arguments
from training.losses import decibel_loss, temporal_loss
from training.scenes.pool import Batch
from vsfmanet.errors import ConfigError
from vsfmanet.networks.jffra import FRAMES, JFFRA, PRESETS


def parse_arguments() -> argparse.Namespace:
    """Read the command line.

    Raises:
        ConfigError: The clips are too short for the losses.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="s", choices=tuple(PRESETS), help="default: %(default)s")
    parser.add_argument("--no-refinement", action="store_true", help="keep the initial flow at every level")
    add_loop_arguments(parser)
    add_deblurring_arguments(parser)
    parser.add_argument(
        "--temporal-weight", type=float, default=0.2, help="of the temporal loss (default: %(default)s)"
    )
    parser.set_defaults(learning_rate=5e-4, frames=4, crop=64)
    args = parser.parse_args()
    least = FRAMES + bool(args.temporal_weight)
    if args.frames < least:
        raise ConfigError(
            f"train_jffra: --frames must be at least {least}, got {args.frames}; "
            "with --temporal-weight 0, three are enough"
        )
    return args


def losses(
    network: JFFRA, batch: Batch, step: int, *, temporal_weight: float, decibels: float | None
) -> dict[str, Tensor]:
    """The two terms, weighted; over the frames of each clip that have both neighbours."""
    windows = batch.lr.unfold(1, FRAMES, 1).movedim(-1, 2)  # (B, T-2, 3, 3, H, W)
    output = network.restore(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
    restored = Batch(**{field.name: getattr(batch, field.name)[:, 1:-1] for field in fields(batch)})
    l1 = (output - restored.hr).abs().mean()
    values = {"restoration": l1 if decibels is None else decibel_loss(output, restored.hr, most=decibels)}
    if temporal_weight:
        values["temporal"] = temporal_weight * temporal_loss(output, restored)
    return values


def main() -> None:
    """Train."""
    args = parse_arguments()
    config = replace(PRESETS[args.preset], refine_flow=not args.no_refinement)
    train(
        args,
        preset=args.preset,
        build=partial(JFFRA, config),
        losses=partial(losses, temporal_weight=args.temporal_weight, decibels=args.decibels),
    )


if __name__ == "__main__":
    main()
