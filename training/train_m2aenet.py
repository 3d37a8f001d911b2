"""M2AENet: single frames deblurred where they are blurred.

    python -m training.train_m2aenet --pool runs/pool_x1 --preset fast --out runs/m2aenet
    python -m training.train_m2aenet --without-mask ...          # everything is restored
    python -m training.train_m2aenet --without-trajectories ...  # no motion analyser

The blur analyser is trained already and stays as it is, unless `--mask-weight` is above 0. First the motion analyser
learns alone; then it learns with the restorer, at first inside the true mask, later inside that of the blur analyser.
What is outside the mask comes back as it was and teaches nothing, so that sharp regions are left out by themselves.

Source: M2AENet (arXiv 2507.07708), whose abstract names the losses (reconstruction, reblurring, mask) and two steps.
Their forms are those of Motion-ETR and LBAG. Departures: scenes of known motion teach the paths directly too;
SSIM and spectrum weigh less, because a short run is judged by PSNR.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from training.losses.m2aenet import Weights, losses
from training.options import command
from training.run.deblurring import train
from training.run.options import DeblurringOptions
from training.run.trained import trained_analyser
from vsfmanet.errors import ConfigError
from vsfmanet.networks.m2aenet import PRESETS, M2AENet, M2AENetConfig
from vsfmanet.networks.mmpnet import BlurAnalyser


@dataclass(frozen=True, kw_only=True)
class Options(Weights, DeblurringOptions):
    """A training of M2AENet.

    Raises:
        ConfigError: The clips are too short.
    """

    preset: Literal["fast", "deep", "paper"] = "fast"
    """Sizes of the network."""
    analyser: Path | None = None
    """Checkpoint of training.train_blur; without it, the analyser that ships."""
    without_mask: bool = False
    """Restore everything."""
    without_trajectories: bool = False
    """Leave out the motion analyser."""
    motion_part: float = 0.1
    """First part of the run, in [0, 1], in which the motion analyser learns alone."""
    true_mask_part: float = 0.3
    """First part of the run, in [0, 1], in which the true mask is given."""
    clips: int = 4
    frames: int = 3
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: float = 0.5
    max_norm: float = 0.5

    def __post_init__(self) -> None:
        if self.frames < 3:
            raise ConfigError(f"--frames must be at least 3, got {self.frames}: motion is that to both neighbours")


def build(config: M2AENetConfig, analyser: BlurAnalyser, *, train_mask: bool) -> M2AENet:
    """Build a fresh network around a trained blur analyser."""
    blur = analyser.config
    network = M2AENet(replace(config, blur_width=blur.width, blur_max_extent=blur.max_extent))
    network.blur.load_state_dict(analyser.state_dict())
    network.blur.requires_grad_(train_mask)
    return network


def run(options: Options) -> None:
    """Train a network of the chosen sizes."""
    config = replace(
        PRESETS[options.preset], masked=not options.without_mask, trajectories=not options.without_trajectories
    )
    train(
        options,
        preset=options.preset,
        build=partial(build, config, trained_analyser(options.analyser), train_mask=options.mask_weight > 0),
        losses=partial(
            losses,
            weights=options,
            motion_steps=round(options.motion_part * options.steps),
            true_mask_steps=round(options.true_mask_part * options.steps),
        ),
    )


main = command(run, __doc__)

if __name__ == "__main__":
    main()
