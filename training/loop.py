"""What every training script needs: schedule, averaged weights, checkpoints, batches ahead of time, progress."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate_factor(step: int, *, steps: int, warmup: int, decay: float) -> float:
    """Part of the full learning rate: a linear rise, a plateau, and a cosine fall to zero at the end.

    A plateau lets a run be ended earlier or later than planned by naming other `steps`.

    Args:
        step: From 0.
        steps: Length of the run.
        warmup: Steps of the rise.
        decay: Part of the run that falls, in [0, 1].
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fall = (steps - step) / max(1.0, steps * decay)
    return rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, max(0.0, fall))))


class AveragedWeights:
    """Exponential moving average of a network's parameters and buffers; this is what is evaluated and shipped."""

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = deepcopy(network).eval().requires_grad_(False)
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


def ahead[T](make: Callable[[int], T], first: int, stop: int, depth: int = 4) -> Iterator[tuple[int, T]]:
    """Yield (step, make(step)) for first <= step < stop, made by a thread up to `depth` steps ahead.

    `make` must depend on its step alone, so that a resumed run sees the batches that an unbroken one sees.
    """
    made: queue.Queue[tuple[int, T] | BaseException] = queue.Queue(depth)
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
        self.sums: dict[str, float] = {}
        self.count = 0

    def update(self, step: int, values: dict[str, Tensor | float]) -> dict[str, float] | None:
        """Add a step's values; every so often, print and return their means."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        if (step + 1) % self.every and step + 1 != self.steps:
            return None
        means = {name: total / self.count for name, total in self.sums.items()}
        seconds = (time.monotonic() - self.began) / (step + 1 - self.first)
        text = "  ".join(f"{name} {value:.5g}" for name, value in means.items())
        left = (self.steps - step - 1) * seconds / 60
        print(f"step {step + 1}/{self.steps}  {text}  {seconds:.3f} s/step  {left:.1f} min left", flush=True)
        self.sums.clear()
        self.count = 0
        return means
