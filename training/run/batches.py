"""Batches of a run, made ahead of time, and pictures of them."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.pool import Batch, Pool
from training.run.options import ClipOptions, FMANetPPOptions

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


def draw_clips(
    pool: Pool, options: ClipOptions, generator: np.random.Generator, *, among: Sequence[int] | None = None
) -> Batch:
    """Draw a batch on the host, or on the device that holds the pool; arguments as of `guided_batch`."""
    return pool.sample(
        generator,
        clips=options.clips,
        frames=options.frames,
        crop=options.crop,
        exposure_mode=options.exposure_mode,
        degrade=options.degrade,
        bars=options.bars,
        among=among,
    )


def guided_batch(
    pool: Pool,
    options: FMANetPPOptions,
    generator: np.random.Generator,
    device: str,
    *,
    among: Sequence[int] | None = None,
) -> tuple[Batch, Tensor, Tensor]:
    """Draw a batch, the exposures that the network is given, and the frames that are rebuilt.

    Args:
        pool: Where clips are drawn from.
        options: Size of the batch, and the parts that are degraded or known.
        generator: Source of all randomness.
        device: Where the network is trained.
        among: As in `Pool.sample`.

    Returns:
        The batch on `device`; exposures (B, T) in (0, 1] on the CPU, NaN where the extractor estimates them; and clip
        and frame of those that are rebuilt, (K, 2).
    """
    clips = draw_clips(pool, options, generator, among=among)
    shape = (options.clips, options.frames)
    if options.degradation_frames:
        rebuilt = generator.integers(shape, size=(options.degradation_frames, 2))
    else:
        rebuilt = np.indices(shape).reshape(2, -1).T
    told = torch.from_numpy(generator.random(options.clips) < options.known_exposure)
    exposure = torch.where(told[:, None], clips.exposure.cpu(), torch.nan)
    return clips.to(device), exposure, torch.from_numpy(np.ascontiguousarray(rebuilt)).to(device)


def panels(batch: Batch, output: Tensor | None = None) -> dict[str, Tensor]:
    """Pictures of the middle frame of a batch's first clip: input (enlarged), output if there is one, and truth."""
    t = batch.lr.shape[1] // 2
    size = batch.hr.shape[-2:]
    shown = {"1 input": F.interpolate(batch.lr[:1, t], size=size)[0], "3 truth": batch.hr[0, t]}
    return shown if output is None else {**shown, "2 output": output[0, t]}
