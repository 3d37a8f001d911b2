"""Memory that is counted beforehand against the tensors that live, with the kernels for CUDA, compiled for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.copies import Recorder
from tests.cuda_host import host
from tests.fakes import ListSource
from vsfmanet import kernels
from vsfmanet.engines.cuda import CudaGraphEngine
from vsfmanet.engines.transfers import Transfers
from vsfmanet.networks.description import Parts
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.streams.levels import LevelStreams
from vsfmanet.tiling import MemoryPlan

gpu = pytest.importorskip("vsfmanet.kernels.gpu", reason="needs CuPy", exc_type=ImportError)

HEIGHT, WIDTH = 54, 64


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that live, but those that were there before."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._before = {tensor.untyped_storage().data_ptr() for tensor in before}
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._before:
                reference = StorageWeakRef(tensor.untyped_storage())
                self._held[reference.cdata] = reference, tensor.untyped_storage().nbytes()
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return made


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks run the kernels for CUDA on the host."""
    monkeypatch.setattr(gpu, "launch", host().launch)
    monkeypatch.setattr(kernels, "_pick", lambda x, dtype=None: gpu)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize(
    ("name", "plan", "most"),
    [
        ("fast", MemoryPlan(graphs=False), 1.1),
        ("fast", MemoryPlan(graphs=False, tile=(18, WIDTH)), 1.1),
        ("fast", MemoryPlan(), 1.6),
        ("base", MemoryPlan(graphs=False), 1.1),
        ("path", MemoryPlan(graphs=False), 1.6),
        ("path", MemoryPlan(graphs=False, tile=(18, WIDTH)), 1.1),
    ],
    ids=["fast", "fast in tiles", "fast by graphs", "base", "path", "path in tiles"],
)
@torch.inference_mode()
def test_the_memory_that_is_counted_is_the_memory_that_is_needed(name: str, plan: MemoryPlan, most: float) -> None:
    """Without what only a GPU has: the convolutions' workspaces, and a second pool that graphs work in."""
    network = FMANetPP(preset(name)).eval().deployed_form()
    network.place(torch.device("cpu"), torch.bfloat16)
    film = ListSource(frames=[torch.rand(3, HEIGHT, WIDTH) for _ in range(11)])
    parts: Parts = network.parts(plan.tile)
    if plan.graphs:
        parts = CudaGraphEngine(parts, Recorder())
    streams = LevelStreams(network, parts, Transfers(torch.device("cpu")), plan=plan)
    with Living([*film.frames, *network.parameters(), *network.buffers()]) as living:
        for restored in streams.open(film, 0):
            del restored  # it would be downloaded
    needed = network.memory_needed(HEIGHT, WIDTH, torch.bfloat16, plan)
    assert living.most <= needed <= most * living.most
