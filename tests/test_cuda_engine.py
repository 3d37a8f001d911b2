"""The engine of CUDA graphs and its copies, with stand-ins for what needs a GPU; and on one with `-m gpu`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.copies import LateCopies, Recorder
from tests.fakes import ListSource, noise_clip, planes
from tests.tiny import TINY, NoiseSource, awake, awake_m2aenet
from vsfmanet.engines.cuda import Capture, CudaGraphEngine, Record, Replay, Run
from vsfmanet.engines.transfers import Transfers
from vsfmanet.filter import restore_with
from vsfmanet.networks.description import LevelInput, Parts
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.restorer import Encode, Restorer
from vsfmanet.settings import Device, RestoreSettings
from vsfmanet.streams.levels import LevelStreams
from vsfmanet.tiling import MemoryPlan
from vsfmanet.weights import save_model


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
        feat, flow = engine.level(index, LevelInput(feat=feat, neighbours=pair, flow=flow, embed=embed))
        found += [feat, flow]
    feat, guides = engine.bridge(lr, feat)
    for index, guide in enumerate(guides, net.config.num_blocks):
        given = LevelInput(feat=feat, neighbours=pair, flow=flow, embed=embed, guide=guide)
        feat, flow = engine.level(index, given)
        found += [feat, flow]
    return [each.clone() for each in (*found, engine.finish(lr, (following, previous), feat, flow, embed))]


def agree(actual: list[Tensor], expected: list[Tensor]) -> None:
    for own, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_every_part_is_recorded_once_and_gives_what_it_gives_otherwise() -> None:
    net, record = network(), Recorder()
    engine, eager = CudaGraphEngine(net.parts(), record), net.parts()
    first = outcomes(engine, net, 9, 11, seed=1)
    parts = 2 * net.config.num_blocks + 6  # three stems for each frame
    assert record.recorded == parts
    agree(outcomes(engine, net, 9, 11, seed=2), outcomes(eager, net, 9, 11, seed=2))
    agree(first, outcomes(eager, net, 9, 11, seed=1))
    assert (record.made, record.recorded, record.replayed) == (1, parts, 2 * parts)


@torch.inference_mode()
def test_frames_of_another_size_are_recorded_anew_in_new_memory_and_the_old_graphs_released() -> None:
    net, record = network(), Recorder()
    engine, eager = CudaGraphEngine(net.parts(), record), net.parts()
    parts = 2 * net.config.num_blocks + 6
    outcomes(engine, net, 9, 11, seed=1)
    agree(outcomes(engine, net, 8, 12, seed=1), outcomes(eager, net, 8, 12, seed=1))
    assert record.recorded == 2 * parts
    assert record.made == 2  # torch may have freed the memory of the first
    assert len(engine._graphs) == parts
    held = [*engine._staged.values(), *(slot for slots in engine._results.values() for slot in slots)]
    assert {tuple(each.shape[2:]) for each in held} == {(8, 12), (), (32, 48)}


@pytest.mark.parametrize("blocks", [2, 4])
@torch.inference_mode()
def test_a_film_with_cuts_by_graphs_is_the_film_without(blocks: int) -> None:
    net = awake(replace(TINY, num_blocks=blocks)).deployed_form()
    generator = torch.Generator().manual_seed(0)
    film = ListSource(frames=[*torch.rand(28, 3, 8, 9, generator=generator)], cuts=(2, 3, 17))
    record, transfers = Recorder(), Transfers(torch.device("cpu"))
    engine = CudaGraphEngine(net.parts(), record)
    graphs, eager = (LevelStreams(net, parts, transfers, plan=MemoryPlan()) for parts in (engine, net.parts()))

    def frames(streams: LevelStreams, first: int, stop: int) -> list[Tensor]:
        found: list[Tensor] = []
        while len(found) < stop - first:
            stream = islice(streams.open(film, first + len(found)), stop - first - len(found))
            found.extend(restored.frame for restored in stream)
        return found

    requests = [(0, 28), (5, 7), (22, 23), (18, 25)]
    for first, stop in requests[:1]:
        agree(frames(graphs, first, stop), frames(eager, first, stop))
    recorded = record.recorded
    # A graph for each slot; guides have more slots, and the levels that read them.
    guides = -(-(blocks + 1) // 3) * 3
    assert recorded <= 3 + 1 + 3 * blocks + guides + guides * blocks + 3
    for first, stop in requests[1:]:
        agree(frames(graphs, first, stop), frames(eager, first, stop))
    assert record.recorded <= recorded + guides  # nothing is recorded for what begins in mid film
    assert record.replayed > 20 * (2 * blocks + 4)


@torch.inference_mode()
def test_graphs_read_the_results_of_the_level_below_where_they_lie() -> None:
    net = network()
    engine = CudaGraphEngine(net.parts(), Recorder())
    outcomes(engine, net, 9, 11, seed=1)
    staged = {(name, buffer.shape[1]) for (name, *_), buffer in engine._staged.items()}
    assert staged == {("lr", 3), ("next", 3), ("previous", 3), ("embed", net.anchors.shape[1])}


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
        given = LevelInput(feat=engine.stem(lr), neighbours=(feat, feat), flow=flow, embed=embed)
        feat, flow = engine.level(0, given)
        feat, guides = engine.bridge(lr, feat)
        given = LevelInput(feat=feat, neighbours=(feat, feat), flow=flow, embed=embed, guide=guides[0])
        feat, flow = engine.level(net.config.num_blocks, given)
        engine.finish(lr, (following, previous), feat, flow, embed)


@torch.inference_mode()
def test_the_mask_of_m2aenet_is_not_waited_for_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    net, frame = awake_m2aenet(), torch.rand(1, 3, 40, 48)
    extent = torch.zeros(1, 1, 40, 48)
    extent[..., 10:20, 10:25] = 3.0
    mask = net.mask([extent])
    strict: Callable[[], TorchDispatchMode] = NothingToWaitFor
    with pytest.raises(AssertionError, match="waits"), strict():
        net.restore(frame, extent, mask)
    expected = net.restore(frame, extent, mask).frames
    monkeypatch.setattr(net, "_prunes", lambda device: False)
    with strict():
        found = net.restore(frame, extent, mask).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, frame)
    outside = (mask == 0).expand_as(frame)
    assert torch.equal(found[outside], frame[outside])


def _failing(message: str) -> Record:
    def record(run: Run) -> Replay:
        raise RuntimeError(message)

    return record


@torch.inference_mode()
def test_where_recording_fails_parts_run_as_they_are_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    engine = CudaGraphEngine(net.parts(), partial(_failing, "operation not permitted when stream is capturing\nmore"))
    with caplog.at_level(logging.WARNING, "vsfmanet.engines"):
        found = outcomes(engine, net, 9, 11, seed=1)
    agree(found, outcomes(net.parts(), net, 9, 11, seed=1))
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs, operations are launched one by one: operation not permitted when stream is capturing"
    ]


@torch.inference_mode()
def test_a_lack_of_memory_while_recording_is_for_the_restorer_to_mend() -> None:
    engine = CudaGraphEngine(network().parts(), partial(_failing, "CUDA out of memory. Tried to allocate 2 GiB"))
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
        outcomes(CudaGraphEngine(net.parts(), partial(Capture, torch.device("cuda"))), net, 18, 22, seed=1),
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
