"""Stage 2 of the path preset: the path branch alone, or its estimate of exposures alone, along exact motion.

    python -m training.train_path --part branch --pool runs/pool --preset path --scale 1 --out runs/branch
    python -m training.train_path --part exposure --pool runs/pool --preset path --scale 1 --out runs/exposure
    python -m training.train_path --part exposure --take runs/branch/latest.pt --restored 0.3 ...
    python -m training.train_restoration --take runs/branch/latest.pt --take runs/exposure/latest.pt ...

With the exact motion of the scenes and without the levels of the network, a step takes a fifth of the time of one of
stage 3, and nothing is learned from wrong motion: four minutes on a core are worth an hour there. With `--restored`,
the exposure to restore by is learned too, from frames that a trained branch restores by it. Runs until `--steps` or
`--max-minutes`; the same command goes on from the last checkpoint.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pool import Batch, moving, open_pool
from training.losses.frames import decibel_loss
from training.losses.path import exact_motion, exposure_loss
from training.options import SEVERAL, command
from training.run.architectures import build
from training.run.batches import draw_clips, panels
from training.run.fmanetpp import about_network, configuration, take_part
from training.run.loop import Run
from training.run.options import FMANetPPOptions
from training.run.workers import join_workers, training_dtype
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP
from vsfmanet.networks.fmanetpp.path import Frames
from vsfmanet.tiling import Box

MIDDLE = 1
"""Frame of a clip of three that is restored, or whose exposure is estimated."""

SPEED_ERROR, PLACE_ERROR = 0.08, 0.1
"""Standard deviations of what is added to exact velocities: of a frame, relative; of a cell, pixels."""


@dataclass(frozen=True, kw_only=True)
class Options(FMANetPPOptions):
    """A training of one part of the path branch; clips have three frames."""

    part: Literal["branch", "exposure"]
    """The branch, or the estimate of exposures."""
    take: Annotated[tuple[Path, ...], SEVERAL] = ()
    """Checkpoints of this command to take the branch or the estimate of exposures from."""
    restored: float = 0.0
    """Weight, beside the error of the exposures, of frames that the branch restores by them, for example 0.3."""
    frames: int = 3
    """Frames per clip, 3."""
    decibels: float = 42
    """PSNR beyond which errors of restored frames hardly count."""
    speed: tuple[float, float] | None = None
    """Draw only sequences whose median motion lies between these two, LR pixels per frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames != 3:
            raise ConfigError(f"clips of 3 frames are needed, got --frames {self.frames}; leave it out")
        if self.restored and (self.part != "exposure" or not self.take):
            raise ConfigError(
                "--restored needs --part exposure and a branch to --take, got none; train the branch first"
            )


def train(options: Options) -> None:
    """Train until the run or its time is over."""
    workers = join_workers(options.device)
    torch.manual_seed(options.seed)
    network = (
        build(configuration(options), options.architecture).to(workers.device).to(memory_format=torch.channels_last)
    )
    if network.restoration.path is None or network.restoration.blur_path is None:
        raise ConfigError(f"a network with a path branch is needed, got preset {options.preset}; add --path-width")
    for path in options.take:
        take_part(network, path)
    part = network.restoration.path if options.part == "branch" else network.restoration.blur_path.shutter
    network.requires_grad_(False).train()
    part.requires_grad_(True)
    if options.compile:
        part.compile(dynamic=False)
    run = Run(options, network, workers, {**about_network(options, network), "part": options.part})
    pool = open_pool(options.pool, workers.device if options.pool_on_device else None)
    among = None if options.speed is None else moving(pool, range(len(pool)), *options.speed)

    def batch(step: int) -> Batch:
        return draw_clips(pool, options, run.generator(step), among=among).to(workers.device)

    for step, clips in run.batches(batch):
        torch.manual_seed(step)
        feat, motion = inputs(network, clips, training_dtype(workers.device))
        values = {}
        if options.part == "exposure":
            velocity = measured(motion)
            estimate, exposure = estimated(network, clips, feat, velocity, run)
            values["exposure"] = exposure_loss(estimate[:, None], clips.exposure[:, [MIDDLE]], clips.flow[:, [MIDDLE]])
            motion = torch.cat([exposure[:, None, None, None] / 2 * velocity, motion[:, 2:]], dim=1)
        loss = sum(values.values(), start=torch.zeros((), device=workers.device))
        pictures = partial(panels, clips)
        if weight := options.restored if options.part == "exposure" else 1.0:
            output = restored(network, clips, feat, motion, run)
            values["restoration"] = decibel_loss(output, clips.hr[:, MIDDLE], most=options.decibels)
            loss = loss + weight * values["restoration"]
            pictures = partial(panels, clips, output[:, None].expand_as(clips.hr))
        values["norm"] = run.update(step, loss)
        if run.record(step, values, pictures):
            break
    run.close()


def inputs(network: FMANetPP, clips: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features of the middle frames, zeros (B, C, H/g, W/g) of `dtype`, and their exact motion, (B, 6, H/g, W/g)."""
    height, width = (side // network.config.grid for side in clips.lr.shape[-2:])
    feat = clips.lr.new_zeros(len(clips.lr), network.config.width, height, width)
    feat = feat.to(dtype).contiguous(memory_format=torch.channels_last)
    return feat, exact_motion(clips.flow, clips.exposure, (height, width))[:, MIDDLE]


def measured(motion: Tensor) -> Tensor:
    """Velocities (B, 2, h, w) from exact motion (B, 6, h, w), with errors as those of an estimate, pixels a frame."""
    velocity = (motion[:, 2:4] - motion[:, 4:]) / 2
    velocity = velocity * (1 + SPEED_ERROR * torch.randn(len(velocity), 1, 1, 1, device=velocity.device))
    return velocity + PLACE_ERROR * torch.randn_like(velocity)


def estimated(
    network: FMANetPP, clips: Batch, feat: Tensor, velocity: Tensor, run: Run[FMANetPP]
) -> tuple[Tensor, Tensor]:
    """Estimate the exposures of the middle frames of clips, and those to restore by; returns (B,) each."""
    assert network.restoration.blur_path is not None
    with run.autocast():
        estimate, exposure = network.restoration.blur_path.shutter(feat, clips.lr[:, MIDDLE], velocity)
    return estimate, exposure


def restored(network: FMANetPP, clips: Batch, feat: Tensor, motion: Tensor, run: Run[FMANetPP]) -> Tensor:
    """Restore the middle frames of clips by the branch alone; returns (B, 3, s*H, s*W)."""
    branch = network.restoration.path
    assert branch is not None
    config = network.config
    frames = Frames.of(clips.lr[:, MIDDLE], (clips.lr[:, MIDDLE + 1], clips.lr[:, MIDDLE - 1]), config.grid)
    whole = Box(top=0, left=0, bottom=feat.shape[-2], right=feat.shape[-1])
    with run.autocast():
        added = branch(feat, frames, motion, whole)
    return F.interpolate(frames.own, scale_factor=config.scale, mode="bilinear", align_corners=False) + added.float()


main = command(train, __doc__)

if __name__ == "__main__":
    main()
