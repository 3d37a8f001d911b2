"""Stage 3: degradation and restoration network together (Eq. 10), the extractor frozen.

    python -m training.train_restoration --pool runs/pool --extractor runs/extractor.pt --preset fast --out runs/fast
    torchrun --nproc-per-node 4 -m training.train_restoration --device cuda ...

Runs until `--steps` or `--max-minutes`; the same command goes on from the last checkpoint. Departures from the paper's
recipe, for short budgets: the flow of the image head is held to the exact flow of the synthetic scenes with a larger
weight than lambda2 (there is no error of RAFT to distrust), the dynamic filter runs for a few frames of a batch, and
the embeddings of known exposures stand in for the extractor in a part of the clips.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pool import Batch, moving, open_pool
from training.losses.degradation import degradation_loss, image_flow_loss, reblur_loss
from training.losses.frames import decibel_loss, harm_loss, temporal_loss
from training.losses.path import blur_loss, exposure_loss
from training.options import SEVERAL, command
from training.run.batches import guided_batch, panels
from training.run.checkpoint import load_checkpoint
from training.run.fmanetpp import about_network, begin_beside_levels, start_network, take_part
from training.run.loop import Run
from training.run.options import FMANetPPOptions
from training.run.workers import join_workers
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP

TEMPORAL_RAMP = (0.2, 0.4)
"""Parts of the run between which the weight of the temporal loss rises from 0."""


@dataclass(frozen=True, kw_only=True)
class Options(FMANetPPOptions):
    """A training of degradation and restoration network together."""

    degradation: Path | None = None
    """Checkpoint of training.train_degradation to take NetD from."""
    take: Annotated[tuple[Path, ...], SEVERAL] = ()
    """Checkpoints of training.train_path to take the path branch or its estimate of exposures from. With --start-from,
    the branch adds nothing at first to the image that the levels make."""
    only_path: bool = False
    """Train the path branch alone, with its estimates of motion and exposure; all else stays as --start-from has it."""
    decibels: float | None = None
    """Minimise the logarithm of the squared error instead of l1; errors beyond this PSNR hardly count."""
    harm_weight: float = 0.0
    """With --decibels: weight of what frames lose by restoration, for example 2, so that sharp ones are left alone."""
    speed: tuple[float, float] | None = None
    """Draw only sequences whose median motion lies between these two, LR pixels per frame."""
    degradation_weight: float = 0.1
    """lambda3 of Eq. 10."""
    blur_weight: float = 0.02
    """Weight of the path branch's estimates of blur and exposure."""
    temporal_weight: float = 0.0
    """Weight of the temporal loss, for example 0.2."""
    reblur_weight: float = 0.0
    """Weight of the reblur loss, for example 0.1."""


def train(options: Options) -> None:
    """Train until the run or its time is over."""
    workers = join_workers(options.device)
    torch.manual_seed(options.seed)
    network = start_network(options, workers.device)
    if options.degradation:
        take_degradation(network, options.degradation)
    for path in options.take:
        take_part(network, path)
    if options.take and options.start_from is not None:
        begin_beside_levels(network)
    if options.only_path:
        if network.restoration.path is None or network.restoration.blur_path is None:
            raise ConfigError("--only-path needs a network with a path branch, got none; add --path-width")
        network.requires_grad_(False)
        network.restoration.path.requires_grad_(True)
        network.restoration.blur_path.requires_grad_(True)
    if options.compile:
        for block in network.blocks:
            block.compile(dynamic=False)
    run = Run(options, network, workers, about_network(options, network))
    pool = open_pool(options.pool, workers.device if options.pool_on_device else None)
    among = None if options.speed is None else moving(pool, range(len(pool)), *options.speed)

    def batch(step: int) -> tuple[Batch, Tensor, Tensor]:
        return guided_batch(pool, options, run.generator(step), workers.device, among=among)

    for step, (clips, exposure, rebuilt) in run.batches(batch):
        with run.autocast():
            out = network(clips.lr, exposure)
            flow = image_flow_loss(out.image_flow, clips.flow, clips.visible)
        if options.decibels is None:
            restoration = (out.frames - clips.hr).abs().mean()
        else:
            restoration = decibel_loss(out.frames, clips.hr, most=options.decibels)
        values = {"restoration": restoration, "flow": flow, "gain": gain(out.frames, clips)}
        loss = restoration + options.flow_weight * flow
        if options.decibels is not None and options.harm_weight:
            values["harm"] = harm_loss(out.frames, enlarged(out.frames, clips), clips.hr, most=options.decibels)
            loss = loss + options.harm_weight * values["harm"]
        if options.degradation_weight:
            with run.autocast():
                values["degradation"] = degradation_loss(network, out, clips, rebuilt, warp_weight=options.warp_weight)
            loss = loss + options.degradation_weight * values["degradation"]
        if out.motion is not None and options.blur_weight:
            assert out.exposure is not None
            values["blur"] = blur_loss(out.motion, clips.flow, clips.exposure)
            values["exposure"] = exposure_loss(out.exposure, clips.exposure, clips.flow)
            loss = loss + options.blur_weight * (values["blur"] + values["exposure"])
        if options.temporal_weight:
            values["temporal"] = temporal_loss(out.frames, clips)
            loss = loss + options.temporal_weight * ramp(step / options.steps, *TEMPORAL_RAMP) * values["temporal"]
        if options.reblur_weight:
            with run.autocast():
                values["reblur"] = reblur_loss(network, out, clips, rebuilt)
            loss = loss + options.reblur_weight * values["reblur"]
        values["norm"] = run.update(step, loss)
        if run.record(step, values, partial(panels, clips, out.frames)):
            break
    run.close()


def take_degradation(network: FMANetPP, path: Path) -> None:
    """Load NetD and the embeddings of known exposures from a checkpoint of stage 2."""
    averaged = load_checkpoint(path)["averaged"]
    learned = {name: value for name, value in averaged.items() if name.startswith(("degradation.", "exposure_embeds"))}
    network.load_state_dict(learned, strict=False)


@torch.no_grad()
def gain(output: Tensor, batch: Batch) -> Tensor:
    """Mean PSNR of frames (B, T, 3, s*H, s*W) in [0, 1] minus that of the bilinear image, dB."""
    before, after = (
        (frames - batch.hr).square().mean(dim=(2, 3, 4)).clamp_min(1e-6) for frames in (enlarged(output, batch), output)
    )
    return 10 * (before / after).log10().mean()


def enlarged(output: Tensor, batch: Batch) -> Tensor:
    """Enlarge the LR frames bilinearly to the size of `output`; returns (B, T, 3, s*H, s*W)."""
    scale = output.shape[-1] // batch.lr.shape[-1]
    bilinear = F.interpolate(batch.lr.flatten(0, 1), scale_factor=scale, mode="bilinear", align_corners=False)
    return bilinear.unflatten(0, batch.lr.shape[:2])


def ramp(position: float, start: float, end: float) -> float:
    """Rise from 0 at `start` to 1 at `end`."""
    return min(1.0, max(0.0, (position - start) / (end - start)))


main = command(train, __doc__)

if __name__ == "__main__":
    main()
