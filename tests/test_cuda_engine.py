"""The engine of CUDA graphs and its copies, with stand-ins for what needs a GPU; and on one with `-m gpu`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.copies import LateCopies
from tests.fakes import noise_clip, planes
from tests.tiny import TINY, NoiseSource, awake
from vsfmanet.engines.cuda import Capture, CudaGraphEngine, Recorded, Run
from vsfmanet.engines.transfers import Transfers
from vsfmanet.filter import restore_with
from vsfmanet.networks.description import Parts
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.restorer import Encode, Restorer
from vsfmanet.settings import Device, RestoreSettings
from vsfmanet.weights import save_model


class Recorder:
    """Records as CUDA does: what is replayed reads and writes the addresses of the recording."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Run) -> Recorded:
        self.recorded += 1
        results = tuple(torch.full_like(result, torch.nan) for result in run())

        def replay() -> None:
            self.replayed += 1
            for result, found in zip(results, run(), strict=True):
                result.copy_(found)

        return replay, results


def network() -> FMANetPP:
    return awake(TINY).deployed_form()


def outcomes(engine: Parts, net: FMANetPP, height: int, width: int, seed: int) -> list[Tensor]:
    """What every part gives for one frame."""
    generator = torch.Generator().manual_seed(seed)
    device = next(net.parameters()).device
    lr, following, previous = torch.rand(3, 1, 3, height, width, generator=generator).to(device)
    embed = net.embed(lr)
    flow = engine.initial_flow(lr, (following, previous))
    feat, *neighbours = (engine.stem(image) for image in (lr, following, previous))
    pair = (neighbours[0], neighbours[1])
    found = [feat, *pair, flow]
    for index in range(net.config.num_blocks):
        feat, flow = engine.level(index, feat, pair, flow, embed, None)
        found += [feat, flow]
    feat, guides = engine.bridge(lr, feat)
    for index, guide in enumerate(guides, net.config.num_blocks):
        feat, flow = engine.level(index, feat, pair, flow, embed, guide)
        found += [feat, flow]
    return [*found, engine.finish(lr, (following, previous), feat, flow, embed)]


def agree(actual: list[Tensor], expected: list[Tensor]) -> None:
    for own, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_every_part_is_recorded_once_and_gives_what_it_gives_otherwise() -> None:
    net, record = network(), Recorder()
    engine, eager = CudaGraphEngine(net.parts(), record), net.parts()
    first = outcomes(engine, net, 9, 11, seed=1)
    parts = 2 * net.config.num_blocks + 4
    assert record.recorded == parts
    agree(outcomes(engine, net, 9, 11, seed=2), outcomes(eager, net, 9, 11, seed=2))
    agree(first, outcomes(eager, net, 9, 11, seed=1))  # what was given first is not what was given last
    assert (record.recorded, record.replayed) == (parts, 2 * (parts + 2))  # three stems for each frame


@torch.inference_mode()
def test_frames_of_another_size_are_recorded_anew_and_the_old_graphs_released() -> None:
    net, record = network(), Recorder()
    engine, eager = CudaGraphEngine(net.parts(), record), net.parts()
    parts = 2 * net.config.num_blocks + 4
    outcomes(engine, net, 9, 11, seed=1)
    agree(outcomes(engine, net, 8, 12, seed=1), outcomes(eager, net, 8, 12, seed=1))
    assert record.recorded == 2 * parts
    assert len(engine._graphs) == parts
    assert all(buffer.shape[2:] in ((), (8, 12)) for buffer in engine._buffers.values())


class NothingToWaitFor(TorchDispatchMode):
    """Refuses what a recording cannot hold: numbers brought from the host, or asked for by it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select"), f"{name} waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["fast", "paper"])
@torch.inference_mode()
def test_no_part_waits_for_numbers_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")  # those of CUDA are launches and nothing else
    net = FMANetPP(preset(name)).deployed_form()
    strict: Callable[[], TorchDispatchMode] = NothingToWaitFor
    with pytest.raises(AssertionError, match="waits"), strict():
        torch.tensor([1.0, 2.0])
    engine = net.parts()
    lr, following, previous = torch.rand(3, 1, 3, 24, 32)
    flow = engine.initial_flow(lr, (following, previous))
    embed, feat = net.embed(lr), engine.stem(lr)
    with strict():
        engine.initial_flow(lr, (following, previous))
        feat, flow = engine.level(0, engine.stem(lr), (feat, feat), flow, embed, None)
        feat, guides = engine.bridge(lr, feat)
        feat, flow = engine.level(net.config.num_blocks, feat, (feat, feat), flow, embed, guides[0])
        engine.finish(lr, (following, previous), feat, flow, embed)


def _failing(message: str) -> Callable[[Run], Recorded]:
    def record(run: Run) -> Recorded:
        raise RuntimeError(message)

    return record


@torch.inference_mode()
def test_where_recording_fails_parts_run_as_they_are_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    engine = CudaGraphEngine(net.parts(), _failing("operation not permitted when stream is capturing\nmore"))
    with caplog.at_level(logging.WARNING, "vsfmanet.engines"):
        found = outcomes(engine, net, 9, 11, seed=1)
    agree(found, outcomes(net.parts(), net, 9, 11, seed=1))
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs, operations are launched one by one: operation not permitted when stream is capturing"
    ]


@torch.inference_mode()
def test_a_lack_of_memory_while_recording_is_for_the_restorer_to_mend() -> None:
    engine = CudaGraphEngine(network().parts(), _failing("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.stem(torch.rand(1, 3, 9, 11))


class LateTransfers(Transfers):
    """Copies that are done when they are waited for, and not before."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, LateCopies())


@pytest.mark.parametrize("encode", [None, lambda n, rgb: (100 * rgb).to(torch.uint8)], ids=["rgb", "encoded"])
def test_what_is_given_out_has_been_waited_for(
    encode: Encode | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, found = tmp_path / "tiny.safetensors", []
    save_model(network(), weights)
    for transfers in (Transfers, LateTransfers):
        monkeypatch.setattr("vsfmanet.restorer.Transfers", transfers)
        with Restorer(str(weights), device="cpu", precision="fp32") as restorer:
            found.append(
                [*restorer.restore(NoiseSource(), 0, 3, encode), *restorer.restore(NoiseSource(), 3, 9, encode)]
            )
    for at_once, late in zip(*found, strict=True):
        assert torch.equal(at_once.frame, late.frame)
        assert (at_once.exposure, at_once.confidence) == (late.exposure, late.confidence)


def restored_planes(weights: Path, device: Device, *, on_device: bool) -> list[list[NDArray[np.float64]]]:
    """What the filter makes of a clip of 4:2:0, by a network on a device, with colours converted there or not."""
    clip = noise_clip(5, width=22, height=18, cuts={3}).resize.Bicubic(format=vs.YUV420P8, matrix=1)

    class Placed(Restorer):
        @property
        def colour_transfers(self) -> Transfers | None:
            return self.transfers if on_device else None

    restorer = Placed(str(weights), device=device, precision="fp32")
    restored = restore_with(clip, [restorer], RestoreSettings(segment=2))
    return [planes(frame) for frame in restored.frames()]


def at_most_one_apart(one: list[list[NDArray[np.float64]]], other: list[list[NDArray[np.float64]]]) -> bool:
    pairs = [pair for frames in zip(one, other, strict=True) for pair in zip(*frames, strict=True)]
    return all(np.abs(a - b).max() <= 1 for a, b in pairs)


def test_planes_are_written_when_they_have_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(network(), tmp_path / "tiny.safetensors")
    expected = restored_planes(tmp_path / "tiny.safetensors", "cpu", on_device=False)
    monkeypatch.setattr("vsfmanet.restorer.Transfers", LateTransfers)
    assert at_most_one_apart(restored_planes(tmp_path / "tiny.safetensors", "cpu", on_device=True), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_planes_cross_to_a_gpu_and_back(tmp_path: Path) -> None:
    save_model(network(), tmp_path / "tiny.safetensors")
    on_host, on_device = (
        restored_planes(tmp_path / "tiny.safetensors", "cuda", on_device=where) for where in (False, True)
    )
    assert at_most_one_apart(on_device, on_host)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_graphs_and_copies_give_what_eager_torch_gives() -> None:
    net = network().cuda()
    agree(
        outcomes(CudaGraphEngine(net.parts(), Capture(torch.device("cuda"))), net, 18, 22, seed=1),
        outcomes(net.parts(), net, 18, 22, seed=1),
    )
    transfers, frames = Transfers(torch.device("cuda")), [torch.rand(3, 90, 160) for _ in range(8)]
    buffer = transfers.buffer(frames[0].numel(), torch.float32).view(3, 90, 160)
    assert buffer.is_pinned()
    frames.append(buffer.copy_(frames[0]))
    there = transfers.upload(frames[0])
    assert transfers.upload(there) is there
    assert transfers.download(frames[0]) is frames[0]
    back = [transfers.download(2 * transfers.upload(frame)) for frame in frames]
    transfers.wait()
    for frame, result in zip(frames, back, strict=True):
        assert torch.equal(2 * frame, result)
