"""Work on several processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}
"""Environment of a worker: the workers are the parallelism."""


def finished[T](work: Callable[[T], None], tasks: Iterable[T], workers: int) -> Iterator[None]:
    """Do `work` for all tasks, in this process if one worker is asked for, and yield whenever one is done."""
    if workers == 1:
        yield from map(work, tasks)
        return
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    try:
        # Spawned, since a forked process cannot use CUDA and inherits torch's thread pools in an unknown state.
        processes = multiprocessing.get_context("spawn").Pool(workers)
    finally:
        os.environ.clear()
        os.environ.update(before)
    with processes:
        yield from processes.imap_unordered(work, tasks)
