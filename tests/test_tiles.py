"""Frames in parts: the same frames; and what happens when memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor

from tests.fakes import ListSource, noise_clip, planes
from tests.tiny import CELLS, TINY, awake
from vsfmanet import restore
from vsfmanet.errors import DeviceError
from vsfmanet.kernels import pixel_norm
from vsfmanet.networks.description import LevelInput
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, HRBABlock, preset
from vsfmanet.restorer import Restorer
from vsfmanet.settings import Precision
from vsfmanet.tiling import MemoryPlan, is_out_of_memory, tiles
from vsfmanet.weights import save_model

HEIGHT, WIDTH = 41, 37
MATCHED = replace(TINY, initial_flow="matching", flow_features=True)
CODE_VALUE = 1 / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(awake(MATCHED).deployed_form(), path)
    return path


@pytest.fixture(scope="module")
def source() -> ListSource:
    return ListSource(
        frames=list(torch.rand(7, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(5))), cuts=(5,)
    )


def whole(weights: Path, source: ListSource, precision: Precision = "fp32") -> Tensor:
    with Restorer(str(weights), device="cpu", precision=precision) as restorer:
        return torch.stack([item.frame for item in restorer.restore(source, 0, source.num_frames)])


def out_of_memory_above(pixels: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the network run out of memory where it normalises more than so many pixels at once; returns how often."""
    refused: list[int] = []

    def norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        if x.shape[2] * x.shape[3] > pixels:
            refused.append(x.shape[2])
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nMore text")
        return pixel_norm(x, weight, bias, epsilon)

    monkeypatch.setattr("vsfmanet.kernels.pixel_norm", norm)
    return refused


@pytest.mark.parametrize("tile", [(1, 1), (16, 16), (10, 37), (41, 9), (64, 64)])
def test_tiles_cover_a_frame_once(tile: tuple[int, int]) -> None:
    seen = torch.zeros(1, 1, HEIGHT, WIDTH)
    for box in tiles((HEIGHT, WIDTH), tile):
        assert box.bottom - box.top <= tile[0]
        assert box.right - box.left <= tile[1]
        box.of(seen).add_(1)
    assert (seen == 1).all()


@pytest.mark.parametrize(
    "config",
    [
        MATCHED,
        replace(TINY, guidance="sft"),
        replace(TINY, exposure_aware=False, fuse_convs=2, kernel_head_size=3, dense_layers=4, upsampler="two_stage"),
        replace(TINY, scale=1),
        CELLS,
        replace(CELLS, scale=1, grid=2),
        replace(CELLS, scale=2, path_grid=2, upsampler="path"),
        replace(CELLS, scale=1, path_width=0),
    ],
)
@pytest.mark.parametrize("tile", [(16, 64), (17, 16)])
@torch.inference_mode()
def test_every_part_of_the_network_is_the_same_in_tiles(config: FMANetPPConfig, tile: tuple[int, int]) -> None:
    network = awake(config).deployed_form()
    eager, tiled = network.parts(), network.parts(tile)
    generator = torch.Generator().manual_seed(2)
    lr = torch.rand(1, 3, HEIGHT, WIDTH, generator=generator)
    size = -(-HEIGHT // config.grid), -(-WIDTH // config.grid)
    others = torch.rand(2, 1, 3, HEIGHT, WIDTH, generator=generator)
    feat, *neighbours = torch.randn(3, 1, config.width, *size, generator=generator)
    flow = 6 * torch.randn(1, 6 * config.num_flows, *size, generator=generator)  # far beyond a tile's border
    embed = network.embed(lr)
    eager_feat, guides = eager.bridge(lr, feat)
    tiled_feat, tiled_guides = tiled.bridge(lr, feat)
    pairs = [
        (eager.stem(lr), tiled.stem(lr)),
        (eager_feat, tiled_feat),
        *zip(guides, tiled_guides, strict=True),
        tuple(parts.finish(lr, (others[0], others[1]), feat, flow, embed) for parts in (eager, tiled)),
    ]
    for level in range(2 * config.num_blocks):
        guide = guides[level - config.num_blocks] if level >= config.num_blocks else None
        given = LevelInput(feat=feat, neighbours=(neighbours[0], neighbours[1]), flow=flow, embed=embed, guide=guide)
        pairs += zip(eager.level(level, given), tiled.level(level, given), strict=True)
    for expected, found in pairs:
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_a_restored_clip_is_the_same_in_tiles(weights: Path, source: ListSource) -> None:
    with Restorer(str(weights), device="cpu", precision="fp32", tile=(20, 16)) as restorer:
        found = torch.stack([item.frame for item in restorer.restore(source, 0, source.num_frames)])
    torch.testing.assert_close(found, whole(weights, source), atol=5e-5, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("at_start", [True, False])
def test_a_lack_of_memory_is_met_by_smaller_parts_with_the_same_result(
    weights: Path,
    source: ListSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_start: bool,
    precision: Precision,
) -> None:
    expected = whole(weights, source, precision)
    with Restorer(str(weights), device="cpu", precision=precision) as restorer:
        before = [] if at_start else [item.frame for item in restorer.restore(source, 0, 3)]
        refused = out_of_memory_above(WIDTH * 30, monkeypatch)
        after = restorer.restore(source, len(before), source.num_frames)
    assert [item.index for item in after] == list(range(len(before), source.num_frames))
    found = torch.stack([*before, *(item.frame for item in after)])
    assert (found - expected).abs().max() <= CODE_VALUE
    assert len(refused) == 1  # the plan is kept
    [notice] = caplog.messages
    assert notice.startswith(f"out of memory at frame {len(before)}: from here on parts of {WIDTH}x21 pixels")
    assert "Tried to allocate" in notice


def test_where_no_part_is_small_enough_the_error_says_what_fits(
    weights: Path, source: ListSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vsfmanet.restorer.free_memory", lambda _: 3 << 20)
    out_of_memory_above(0, monkeypatch)
    with (
        Restorer(str(weights), device="cpu", precision="fp32") as restorer,
        pytest.raises(
            DeviceError, match=rf"about \d+ MiB of memory are needed for {WIDTH}x{HEIGHT} in parts"
        ) as caught,
    ):
        restorer.restore(source, 0, 2)
    assert "got 3 MiB free on cpu" in str(caught.value)
    assert "fits: scale or crop it" in str(caught.value)
    assert caught.value.exit_code == 4
    assert len(caplog.messages) == 1  # halves; quarters would be too small to pay


def test_the_ladder_halves_the_parts_and_then_leaves_the_device() -> None:
    plan, steps = MemoryPlan(), []
    while (smaller := plan.smaller(180, 320, has_graphs=False, can_offload=True)) is not None:
        plan = smaller
        steps.append((plan.tile, plan.offload))
    assert steps == [((90, 320), False), ((45, 320), False), ((23, 320), False), ((23, 320), True)]
    first = MemoryPlan().smaller(180, 320, has_graphs=True, can_offload=True)
    assert first == MemoryPlan(graphs=False)
    assert str(first) == "whole frames without CUDA graphs"
    assert first.smaller(180, 320, has_graphs=True, can_offload=True) == MemoryPlan(graphs=False, tile=(90, 320))
    with torch.device("meta"):
        network = FMANetPP(preset("paper"), deployed=True)
    needed = [
        network.memory_needed(540, 960, torch.bfloat16, plan)
        for plan in (MemoryPlan(), MemoryPlan(tile=(270, 960)), MemoryPlan(tile=(68, 960), offload=True))
    ]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 3 * needed[-1]


def test_features_kept_in_the_hosts_memory_give_the_same_frames(weights: Path, source: ListSource) -> None:
    with Restorer(str(weights), device="cpu", precision="fp32") as restorer:
        restorer._plan = MemoryPlan(offload=True)
        found = torch.stack([item.frame for item in restorer.restore(source, 0, source.num_frames)])
    assert torch.equal(found, whole(weights, source))


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    weights: Path, source: ListSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(HRBABlock, "aligned", fail)
    with (
        Restorer(str(weights), device="cpu", precision="fp32") as restorer,
        pytest.raises(RuntimeError, match="illegal memory access"),
    ):
        restorer.restore(source, 0, 1)


def test_the_filter_takes_tiles_and_warns_when_it_steps_down(
    weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip = noise_clip(3, width=WIDTH, height=HEIGHT)

    def restored(tile: tuple[int, int] | None = None) -> list[list[NDArray[np.float64]]]:
        clip_x4 = restore(clip, model=str(weights), device="cpu", precision="fp32", tile=tile)
        return [planes(frame) for frame in clip_x4.frames()]

    expected, in_tiles = restored(), restored((20, 16))
    out_of_memory_above(WIDTH * 30, monkeypatch)
    stepped_down = restored()
    for found in (in_tiles, stepped_down):
        assert all(
            abs(ours - theirs).max() <= CODE_VALUE
            for frame, other in zip(found, expected, strict=True)
            for ours, theirs in zip(frame, other, strict=True)
        )
    assert any("out of memory at frame 0" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("tile", [(8, 64), (64, 15), 64, (64,), (64.0, 64), (True, 64), "64x64"])
def test_a_tile_that_makes_no_sense_is_refused(tile: object) -> None:
    clip = vs.core.std.BlankClip(format=vs.RGBS, width=64, height=64, length=1)
    checked: Callable[..., vs.VideoNode] = restore
    with pytest.raises(vs.Error, match=r"restore: tile must be \(width, height\)"):
        checked(clip, tile=tile)
