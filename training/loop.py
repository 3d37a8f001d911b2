"""What every training script needs: schedule, averaged weights, checkpoints, batches ahead of time, progress, runs."""

from __future__ import annotations

import argparse
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard import SummaryWriter

from training.scenes.pool import Batch, Pool
from vsfmanet.errors import ConfigError


def learning_rate_factor(step: int, *, steps: int, warmup: int, decay: float, halvings: Sequence[float] = ()) -> float:
    """Part of the full learning rate: a linear rise, a plateau, and a cosine fall to zero at the end.

    A plateau lets a run be ended earlier or later than planned by naming other `steps`.

    Args:
        step: From 0.
        steps: Length of the run.
        warmup: Steps of the rise.
        decay: Part of the run that falls, in [0, 1].
        halvings: Parts of the run, in [0, 1], after each of which the rate is halved, as in FMA-Net++.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, steps * decay)
    halved = 0.5 ** sum(step >= part * steps for part in halvings)
    return rise * halved * (0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, fall))))


class AveragedWeights[N: nn.Module]:
    """Exponential moving average of a network's parameters and buffers; this is what is evaluated and shipped."""

    def __init__(self, network: N, decay: float = 0.999) -> None:
        self.network: N = deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards `network`; faster in the first steps, when the average is still mostly the random start."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        mine = [value for value in self.network.state_dict().values() if value.is_floating_point()]
        theirs = [value for value in network.state_dict().values() if value.is_floating_point()]
        torch._foreach_lerp_(mine, theirs, weight)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside and rename, so that a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, beside)
    beside.replace(path)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors and plain values only, no code."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


STEPS_AHEAD = 4
"""Batches that wait until they are needed."""


def ahead[T](make: Callable[[int], T], first: int, stop: int, device: torch.device | str) -> Iterator[tuple[int, T]]:
    """Yield (step, make(step)) for first <= step < stop, made by a thread up to `STEPS_AHEAD` earlier.

    Where the CPU trains there is no such thread: the cores are busy, and a second thread that uses torch has a pool of
    its own, beside which OpenMP waits asleep in every small operation; steps took a quarter longer.

    `make` must depend on its step alone, so that a resumed run sees the batches that an unbroken one sees. It brings
    them to the device: what waits for that is the thread.
    """
    if torch.device(device).type == "cpu":
        yield from ((step, make(step)) for step in range(first, stop))
        return
    made: queue.Queue[tuple[int, T] | BaseException] = queue.Queue(STEPS_AHEAD)
    over = threading.Event()

    def offer(item: tuple[int, T] | BaseException) -> None:
        while not over.is_set():
            try:
                made.put(item, timeout=1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for step in range(first, stop):
                if over.is_set():
                    return
                offer((step, make(step)))
        except BaseException as error:
            offer(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(first, stop):
            item = made.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes that train together, one a device; without `torchrun` there is one."""

    rank: int
    """Which one this is, from 0."""
    count: int
    """How many there are."""
    device: str
    """This one's device."""


def join_workers(device: str) -> Workers:
    """Meet the other processes that `torchrun` started.

    Args:
        device: "cpu" or "cuda"; under `torchrun` each process takes the CUDA device of its local rank.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers(rank=0, count=1, device=device)
    on_cuda = device.startswith("cuda")
    if on_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_cuda else "gloo")
    return Workers(rank=distributed.get_rank(), count=count, device=device)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Give every process the mean of all processes' gradients, in one message.

    This is what torch's DistributedDataParallel does, without its demand that all parameters be used in `forward`: the
    kernel head is used by the loss, and the embeddings of known exposures not in every step. The networks are small
    (51 MB at most), so that nothing is won by sending parts of the gradient ahead.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


class MatrixSteps:
    """Muon for weights that can be read as matrices, one row for each output: all but biases and the like.

    A step has the directions of the momentum with equal lengths, so that what is rare in the gradients is learnt too.

    Args:
        weights: Those of fewer than two dimensions are left to another optimizer.
        rate: Learning rate.

    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024); torch has it for matrices.
    """

    def __init__(self, weights: Sequence[Tensor], rate: float) -> None:
        self._weights = [weight for weight in weights if weight.dim() > 1]
        self._views = [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in self._weights]
        assert all(view.data_ptr() == own.data_ptr() for view, own in zip(self._views, self._weights, strict=True))
        self.optimizer = torch.optim.Muon(self._views, rate, weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Move the weights, and take their gradients away so that no other optimizer moves them too."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for weight, view in zip(self._weights, self._views, strict=True):
            view.grad = None if weight.grad is None else _as_matrix(weight.grad, weight)
            weight.grad = None
        self.optimizer.step()


def _as_matrix(value: Tensor, weight: Tensor) -> Tensor:
    """A weight, or its gradient, as (rows, rest); of the weight itself a view."""
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    return value.reshape(len(value), -1)


DIVERGED = 20
"""Steps in a row without a finite gradient after which a run has no future."""


class Run[N: nn.Module]:
    """A training run in a folder: optimizer, averaged weights, checkpoints, curves, clock; goes on where it stopped.

    Under `torchrun` every process draws batches of its own (so a batch is as many times larger), gradients are
    averaged, and the first process alone writes.

    Args:
        args: The options of `add_loop_arguments`.
        network: On its device; whatever requires a gradient is trained.
        workers: From `join_workers`.
        about: What a checkpoint says besides of its network: plain values by which it can be built again.
    """

    def __init__(self, args: argparse.Namespace, network: N, workers: Workers, about: Mapping[str, Any]) -> None:
        self.began = self.saved = time.monotonic()
        self.args, self.network, self.workers, self.about = args, network, workers, about
        self.trained = [value for value in network.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(self.trained, args.learning_rate, fused=True)
        self.matrices = MatrixSteps(self.trained, args.muon) if args.muon else None
        self.averaged = AveragedWeights(network)
        self.latest: Path = args.out / "latest.pt"
        self.first = 0
        if self.latest.exists():
            state = load_checkpoint(self.latest, workers.device)
            for name, value in about.items():
                begun = state.get(name)  # None where another kind of network was trained
                if begun != value:
                    raise ConfigError(f"{args.out} was begun with {name} {begun}, got {value}; name another --out")
            network.load_state_dict(state["network"])
            self.averaged.network.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.matrices is not None and "muon" in state:
                self.matrices.optimizer.load_state_dict(state["muon"])
            self.first = state["step"]
            print(f"going on from step {self.first}")
        self.writer = SummaryWriter(str(args.out)) if workers.rank == 0 else None
        self.progress = Progress(args.steps, self.first, 100)
        self.lost = torch.zeros((), dtype=torch.int64, device=workers.device)
        """Steps in a row, up to the last, whose gradient was not finite."""

    def generator(self, step: int) -> np.random.Generator:
        """Source of randomness for the batch of a step; each process has its own."""
        own = (self.workers.rank,) if self.workers.count > 1 else ()
        return np.random.default_rng((self.args.seed, step, *own))

    def update(self, step: int, loss: Tensor) -> Tensor:
        """Move the weights against the gradient of `loss`; returns the gradient's norm before clipping.

        A step whose gradient is not finite teaches nothing, and shows as a norm that is not a number.
        """
        factor = self.rate_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * factor
        loss.backward()
        if self.workers.count > 1:
            average_gradients(self.trained)
        norm = clip_grad_norm_(self.trained, self.args.max_norm)
        self.lost = torch.where(norm.isfinite(), 0, self.lost + 1)
        for value in self.trained:
            if value.grad is not None:
                value.grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # without waiting for the device
        if self.matrices is not None:
            self.matrices.step(self.args.muon * factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update(self.network, step)
        return norm

    def rate_factor(self, step: int) -> float:
        """Part of the learning rates that a step takes."""
        args = self.args
        return learning_rate_factor(
            step, steps=args.steps, warmup=args.warmup, decay=args.decay, halvings=args.halve_at
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
            ConfigError: Many steps in a row have taught nothing.
        """
        args = self.args
        over = self.out_of_time()
        if self.writer is None:
            return over
        means = self.progress.update(step, {name: value.detach() for name, value in values.items()})
        if means is not None:
            for name, value in {**means, "learning_rate": args.learning_rate * self.rate_factor(step)}.items():
                self.writer.add_scalar(name, value, step + 1)
        last = over or step + 1 == args.steps
        due = last or time.monotonic() - self.saved > 60 * args.save_minutes
        lost = int(self.lost) if means is not None or due else 0
        if lost >= DIVERGED:
            raise ConfigError(
                f"train: finite gradients are needed, got none in {lost} steps up to {step + 1}; {self.latest} is from "
                "before: lower --learning-rate or --max-norm and give the command again"
            )
        if due and (last or not lost):
            self.save(step + 1)
            for name, picture in panels().items():
                self.writer.add_image(name, picture.detach().float().clamp(0, 1).cpu(), step + 1)
        if over:
            print(f"stopped after {args.max_minutes:g} minutes at step {step + 1}; the same command goes on")
        return over

    def out_of_time(self) -> bool:
        """Whether `--max-minutes` are over, for the first process and so for all."""
        over = time.monotonic() - self.began > 60 * self.args.max_minutes
        if self.workers.count > 1 and math.isfinite(self.args.max_minutes):
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


def add_loop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every training of a restoring network has."""
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="folder that training.render_pool or training.prepare_* wrote")
    add("--pool-on-device", action="store_true", help="hold the pool in the device's memory and draw there")
    add("--out", type=Path, required=True, help="folder for checkpoints and curves")
    add("--steps", type=int, default=300000, help="length of the run (default: %(default)s)")
    add("--max-minutes", type=float, default=float("inf"), help="stop and save after so long")
    add("--clips", type=int, default=8, help="clips per batch and process (default: %(default)s)")
    add("--frames", type=int, default=8, help="frames per clip (default: %(default)s)")
    add("--crop", type=int, default=64, help="crop size in pixels of the input (default: %(default)s)")
    add("--exposure-mode", default="mixed", choices=("constant", "walk", "mixed"), help="default: %(default)s")
    add("--degrade", type=float, default=0.0, metavar="P", help="part of the clips with noise, halos and compression")
    add("--bars", type=float, default=0.0, metavar="P", help="part of the clips with a bar of one colour")
    add("--learning-rate", type=float, default=2e-4, help="default: %(default)s")
    add("--muon", type=float, metavar="RATE", help="Muon for all but biases, at this learning rate (Adam for all)")
    add("--warmup", type=int, default=500, help="steps of rising learning rate (default: %(default)s)")
    add("--decay", type=float, default=0.3, help="last part of the run, with falling learning rate (%(default)s)")
    add(
        "--halve-at", type=float, nargs="*", default=[], metavar="PART", help="halve the rates here, e.g. 0.7 0.85 0.95"
    )
    add("--max-norm", type=float, default=1.0, help="gradient norm is clipped here (default: %(default)s)")
    add("--save-minutes", type=float, default=4, help="time between checkpoints (default: %(default)s)")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--compile", action="store_true", help="compile the network: minutes at the start, then faster steps")


def draw_clips(
    pool: Pool, args: argparse.Namespace, generator: np.random.Generator, *, among: Sequence[int] | None = None
) -> Batch:
    """Clips of a pool, by the options that all training of networks has; arguments as of `guided_batch`."""
    return pool.sample(
        generator,
        clips=args.clips,
        frames=args.frames,
        crop=args.crop,
        exposure_mode=args.exposure_mode,
        degrade=args.degrade,
        bars=args.bars,
        among=among,
    )


def guided_batch(
    pool: Pool,
    args: argparse.Namespace,
    generator: np.random.Generator,
    device: str,
    *,
    among: Sequence[int] | None = None,
) -> tuple[Batch, Tensor, Tensor]:
    """A batch on `device`, by the options of `add_run_arguments`, and what is drawn beside it.

    Args:
        pool: Where clips are drawn from.
        args: The options.
        generator: Source of all randomness.
        device: Where the network is trained.
        among: As in `Pool.sample`.

    Returns:
        The batch; the exposures (B, T) that the network is told, on the CPU: the true ones for a part of the clips,
        NaN (ask the extractor) for the rest; and clip and frame of those that are rebuilt, (K, 2).
    """
    clips = draw_clips(pool, args, generator, among=among)
    rebuilt = generator.integers((args.clips, args.frames), size=(args.degradation_frames, 2))
    told = torch.from_numpy(generator.random(args.clips) < args.known_exposure)
    exposure = torch.where(told[:, None], clips.exposure.cpu(), torch.nan)
    return clips.to(device), exposure, torch.from_numpy(rebuilt).to(device)


def panels(batch: Batch, output: Tensor | None = None) -> dict[str, Tensor]:
    """Pictures of the middle frame of a batch's first clip: input (enlarged), output if there is one, and truth."""
    t = batch.lr.shape[1] // 2
    size = batch.hr.shape[-2:]
    shown = {"1 input": F.interpolate(batch.lr[:1, t], size=size)[0], "3 truth": batch.hr[0, t]}
    return shown if output is None else {**shown, "2 output": output[0, t]}
