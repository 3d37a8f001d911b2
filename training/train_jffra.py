"""JFFRA: deblurring at the input's size from three frames, whose flow and features refine each other.

    python -m training.train_jffra --pool runs/pool_x1 --preset s --out runs/jffra
    python -m training.train_jffra --no-refinement ...     # the paper's ablations: the initial flow stays,
    python -m training.train_jffra --temporal-weight 0 ... # nothing holds frames to their neighbours,
    python -m training.train_jffra --variant mutual_attention ...  # and attention takes the place of the flow
    python -m training.train_jffra --task denoise --sigma 10 50 ...

A clip of T frames gives T - 2 restored ones, each from its own three frames; the temporal loss looks at two that follow
each other, so it needs clips of four frames. A short run may begin with clips of three frames, twice as many for the
same cost, and go on with those of four:

    python -m training.train_jffra ... --clips 4 --frames 3 --temporal-weight 0 --max-minutes 19
    python -m training.train_jffra ... --clips 2 --frames 4 --max-minutes 11

Source: JFFRA (arXiv 2505.16434): l1 and 0.2 times the occlusion-aware temporal loss. Departures: the recipe, for short
budgets; and the motion in the temporal loss is the exact one of the synthetic scenes.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

from torch import Tensor

from training.data.pool import Batch
from training.data.tasks import Task, deblur, denoise, super_resolve
from training.losses.frames import decibel_loss, temporal_loss
from training.options import command
from training.run.deblurring import train
from training.run.options import DeblurringOptions
from training.run.variants import JFFRA_VARIANTS, JFFRAVariant
from vsfmanet.errors import ConfigError
from vsfmanet.networks.jffra import FRAMES, JFFRA, PRESETS


@dataclass(frozen=True, kw_only=True)
class Options(DeblurringOptions):
    """A training of JFFRA.

    Raises:
        ConfigError: The clips are too short for the losses.
    """

    preset: Literal["xs", "s", "m", "l"] = "s"
    """Sizes of the network."""
    no_refinement: bool = False
    """Keep the initial flow at every level."""
    variant: JFFRAVariant | None = None
    """Variant that the paper compares with, instead of flow: attention over frames that are not warped, or offsets that
    are learned. It cannot be exported."""
    task: Literal["deblur", "denoise", "super_resolve"] = "deblur"
    """Learn to deblur, to take noise away, or to sharpen what was made smaller by four and enlarged again."""
    sigma: tuple[float, float] = (10, 50)
    """With --task denoise: smallest and largest deviation of the noise, code values of 8 bits."""
    temporal_weight: float = 0.2
    """Weight of the temporal loss."""
    learning_rate: float = 5e-4
    frames: int = 4

    def __post_init__(self) -> None:
        if self.variant and self.no_refinement:
            raise ConfigError("--variant has no flow to refine, got --no-refinement too; choose one of them")
        least = FRAMES + bool(self.temporal_weight)
        if self.frames < least:
            raise ConfigError(
                f"--frames must be at least {least}, got {self.frames}; with --temporal-weight 0, three are enough"
            )


def losses(
    network: JFFRA, batch: Batch, step: int, *, temporal_weight: float, decibels: float | None
) -> dict[str, Tensor]:
    """Compute the two terms, weighted, over the frames of each clip that have both neighbours; scalars by name."""
    windows = batch.lr.unfold(1, FRAMES, 1).movedim(-1, 2)  # (B, T-2, 3, 3, H, W)
    output = network.restore(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
    restored = Batch(**{field.name: getattr(batch, field.name)[:, 1:-1] for field in fields(batch)})
    l1 = (output - restored.hr).abs().mean()
    values = {"restoration": l1 if decibels is None else decibel_loss(output, restored.hr, most=decibels)}
    if temporal_weight:
        values["temporal"] = temporal_weight * temporal_loss(output, restored)
    return values


def run(options: Options) -> None:
    """Train a network of the chosen sizes."""
    config = replace(PRESETS[options.preset], refine_flow=not options.no_refinement)
    tasks: dict[str, Task] = {
        "deblur": deblur,
        "denoise": partial(denoise, sigma=options.sigma),
        "super_resolve": super_resolve,
    }
    train(
        options,
        preset=options.preset,
        build=partial(JFFRA if options.variant is None else JFFRA_VARIANTS[options.variant], config),
        variant=options.variant,
        task=tasks[options.task],
        losses=partial(losses, temporal_weight=options.temporal_weight, decibels=options.decibels),
    )


main = command(run, __doc__)

if __name__ == "__main__":
    main()
