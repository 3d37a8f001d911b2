"""What all tests of the filter share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs
from hypothesis import HealthCheck, settings

from vsfmanet.cli import restore
from vsfmanet.cli.terminal import STOPPING

os.environ.pop("PYTHONUNBUFFERED", None)  # few users set it, and it hides what a full buffer does
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # each process of the tests would compile torch anew, for seconds
    sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is loaded; for processes of tests, too

os.environ.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # compiled kernels, also where HOME is another

settings.register_profile("quick", derandomize=True, max_examples=50, deadline=None, database=None)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile(
    "fuzz", max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the clusters to `-m cluster`: each starts some twenty processes. Begin with what takes longest.

    Those tests have a time limit of their own. One that came last would keep a single worker busy.
    """
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)
    if not config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("cluster"):
                item.add_marker(pytest.mark.skip(reason="run with -m cluster"))


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> None:
    """Do not pass on that signals are ignored, as under `nohup` or in the background: jobs would ignore them too."""
    for name in STOPPING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection() -> None:
    """Keep what is imported, and what earlier modules leave, out of the collections that `clip.frames` ends with.

    After torch's compiler was imported, each would take a third of a second, and outlast the reading.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """An empty folder for the sources of a batch."""
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder for the outputs of a batch; it does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the job of `vsfmanet restore` in this process, unsupervised, so that stand-ins for the network reach it."""
    monkeypatch.setattr(restore, "_guarded", lambda job, reporting, *, stall_limit: restore._here(job, reporting))


@pytest.fixture(autouse=True)
def _core_as_found() -> Iterator[None]:
    """Give the next test the number of threads and the cache size that this one found."""
    threads, cache = vs.core.num_threads, vs.core.max_cache_size
    yield
    vs.core.num_threads, vs.core.max_cache_size = threads, cache


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of smooth noise, from which training data are rendered."""
    import cv2

    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (360, 480, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "noise.png"), cv2.GaussianBlur(noise, (0, 0), 1.5))
    return folder


@pytest.fixture(scope="session")
def deblurring_pool(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of three sequences of scale 1; toy networks train on it."""
    from tests.tiny import run
    from training import render_pool

    pool = tmp_path_factory.mktemp("deblurring") / "pool"
    size = ["--count", 3, "--size", 64, "--scale", 1, "--frames", 4, "--workers", 1]
    run(render_pool.main, "--photos", photos, "--out", pool, *size)
    return pool
