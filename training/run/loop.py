"""A training run in a folder, which goes on where it stopped."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

from training.run.batches import ahead
from training.run.checkpoint import AveragedWeights, load_checkpoint, save_checkpoint
from training.run.muon import MatrixSteps
from training.run.options import RunOptions
from training.run.schedule import learning_rate_factor
from training.run.workers import Workers, autocast, average_gradients
from vsfmanet.errors import ConfigError


class Progress:
    """Plain lines with running means: they read the same on a terminal and in a log."""

    def __init__(self, steps: int, first: int, every: int) -> None:
        self.steps, self.every = steps, every
        self.began, self.first = time.monotonic(), first
        self.sums: dict[str, Tensor | float] = {}
        self.count = 0

    def update(self, step: int, values: dict[str, Tensor | float]) -> dict[str, float] | None:
        """Add a step's values; every so often, print and return their means."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value  # no float() here: it would wait for the device
        self.count += 1
        if (step + 1) % self.every and step + 1 != self.steps:
            return None
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        seconds = (time.monotonic() - self.began) / (step + 1 - self.first)
        text = "  ".join(f"{name} {value:.5g}" for name, value in means.items())
        left = (self.steps - step - 1) * seconds / 60
        print(f"step {step + 1}/{self.steps}  {text}  {seconds:.3f} s/step  {left:.1f} min left", flush=True)
        self.sums.clear()
        self.count = 0
        return means


DIVERGED = 20
"""Steps in a row without a finite gradient after which a run has no future."""


class Run[N: nn.Module]:
    """A training run in a folder: optimizer, averaged weights, checkpoints, curves, clock; goes on where it stopped.

    Under `torchrun` every process draws batches of its own (so a batch is as many times larger), gradients are
    averaged, and the first process alone writes.

    Args:
        options: Length, rates, folder and clock.
        network: On its device; whatever requires a gradient is trained.
        workers: From `join_workers`.
        about: Plain values that a checkpoint holds besides weights, by which the network can be built again.
    """

    def __init__(self, options: RunOptions, network: N, workers: Workers, about: Mapping[str, Any]) -> None:
        self.began = self.saved = time.monotonic()
        self.options, self.network, self.workers, self.about = options, network, workers, about
        self.trained = [value for value in network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, options.learning_rate, fused=True)
        self.matrices = MatrixSteps(self.trained, options.muon) if options.muon else None
        self.averaged = AveragedWeights(network)
        self.latest: Path = options.out / "latest.pt"
        self.first = 0
        if self.latest.exists():
            state = load_checkpoint(self.latest, workers.device)
            for name, value in about.items():
                begun = state.get(name)  # None where another kind of network was trained
                if begun != value:
                    raise ConfigError(f"{options.out} was begun with {name} {begun}, got {value}; name another --out")
            network.load_state_dict(state["network"])
            self.averaged.network.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.matrices is not None and "muon" in state:
                self.matrices.optimizer.load_state_dict(state["muon"])
            self.first = state["step"]
            print(f"going on from step {self.first}")
        self.writer = SummaryWriter(str(options.out)) if workers.rank == 0 else None
        self.progress = Progress(options.steps, self.first, 100)
        self.lost = torch.zeros((), dtype=torch.int64, device=workers.device)
        """Steps in a row, up to the last, whose gradient was not finite."""

    def generator(self, step: int) -> np.random.Generator:
        """Make the random generator of a step's batch, which differs between processes."""
        own = (self.workers.rank,) if self.workers.count > 1 else ()
        return np.random.default_rng((self.options.seed, step, *own))

    def batches[T](self, make: Callable[[int], T]) -> Iterator[tuple[int, T]]:
        """Yield the steps that are left, each with the batch that `make` draws for it; see `ahead`."""
        return ahead(make, self.first, self.options.steps, self.workers.device)

    def autocast(self) -> torch.autocast:
        """Context in which convolutions and matrix products are computed in `training_dtype`."""
        return autocast(self.workers.device)

    def update(self, step: int, loss: Tensor) -> Tensor:
        """Move the weights against the gradient of `loss`; returns the gradient's norm before clipping.

        Gradients that are not finite are replaced by zeros; the norm is then NaN or infinite.
        """
        factor = self.rate_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate * factor
        loss.backward()
        if self.workers.count > 1:
            average_gradients(self.trained)
        norm = clip_grad_norm_(self.trained, self.options.max_norm)
        self.lost = torch.where(norm.isfinite(), 0, self.lost + 1)
        for value in self.trained:
            if value.grad is not None:
                value.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # without waiting for the device
        if self.matrices is not None and self.options.muon is not None:
            self.matrices.step(self.options.muon * factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update(self.network, step)
        return norm

    def rate_factor(self, step: int) -> float:
        """Part of the learning rates that a step takes."""
        options = self.options
        return learning_rate_factor(
            step, steps=options.steps, warmup=options.warmup, decay=options.decay, halvings=options.halve_at
        )

    def record(self, step: int, values: Mapping[str, Tensor], panels: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Count, draw and save a step that is done.

        Args:
            step: From 0.
            values: Losses and the like, scalars.
            panels: Makes pictures (3, H, W) in [0, 1]; called where a checkpoint is written.

        Returns:
            Whether the time is over.

        Raises:
            ConfigError: The gradient of `DIVERGED` steps in a row was not finite.
        """
        options = self.options
        over = self.out_of_time()
        if self.writer is None:
            return over
        means = self.progress.update(step, {name: value.detach() for name, value in values.items()})
        if means is not None:
            for name, value in {**means, "learning_rate": options.learning_rate * self.rate_factor(step)}.items():
                self.writer.add_scalar(name, value, step + 1)
        last = over or step + 1 == options.steps
        due = last or time.monotonic() - self.saved > 60 * options.save_minutes
        lost = int(self.lost) if means is not None or due else 0
        if lost >= DIVERGED:
            raise ConfigError(
                f"finite gradients are needed, got none in {lost} steps up to {step + 1}; {self.latest} is from "
                "before: lower --learning-rate or --max-norm and give the command again"
            )
        if due and (last or not lost):
            self.save(step + 1)
            for name, picture in panels().items():
                self.writer.add_image(name, picture.detach().float().clamp(0, 1).cpu(), step + 1)
        if over:
            print(f"stopped after {options.max_minutes:g} minutes at step {step + 1}; the same command goes on")
        return over

    def out_of_time(self) -> bool:
        """Whether `--max-minutes` are over, for the first process and so for all."""
        over = time.monotonic() - self.began > 60 * self.options.max_minutes
        if self.workers.count > 1 and math.isfinite(self.options.max_minutes):
            flag = torch.tensor(float(over), device=self.workers.device)
            distributed.broadcast(flag, 0)
            over = bool(flag)
        return over

    def save(self, step: int) -> None:
        """Write the checkpoint."""
        state = {
            "network": self.network.state_dict(),
            "averaged": self.averaged.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": step,
            **({} if self.matrices is None else {"muon": self.matrices.optimizer.state_dict()}),
            **self.about,
        }
        save_checkpoint(self.latest, state)
        self.saved = time.monotonic()

    def close(self) -> None:
        """End the curves, and leave the other processes."""
        if self.writer is not None:
            self.writer.close()
        if self.workers.count > 1:
            distributed.destroy_process_group()
