"""The streaming restorer: the same frames as the whole sequence at once, whatever the order."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fakes import calls_of
from tests.tiny import CELLS, CUTS, FRAMES, TINY, NoiseSource, awake, awake_jffra, awake_m2aenet, awake_mmprnn
from vsfmanet.devices import Worker, has_fast_bf16, pick_device, pick_precision
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.kernels.build import library
from vsfmanet.manifest import file_sha256
from vsfmanet.networks.description import SequenceNetwork
from vsfmanet.networks.fmanetpp.parts import EagerParts
from vsfmanet.restorer import Restorer
from vsfmanet.settings import Precision
from vsfmanet.weights import load_model, save_model

CONTEXT = TINY.context


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(awake(TINY).deployed_form(), path)
    return path


@pytest.fixture
def restorer(weights: Path) -> Iterator[Restorer]:
    with Restorer(str(weights), device="cpu", precision="fp32") as restorer:
        yield restorer


def frames(restorer: Restorer, clip: NoiseSource, first: int, stop: int) -> Tensor:
    return torch.stack([restored.frame for restored in restorer.restore(clip, first, stop)])


def test_a_stream_equals_the_whole_sequence_at_once(restorer: Restorer, weights: Path) -> None:
    clip = NoiseSource()
    exposure = torch.tensor([[clip.given.get(n, torch.nan) for n in range(FRAMES)]])
    with torch.inference_mode():
        whole = load_model(str(weights)).network(clip.frames[None], exposure, scene_starts=CUTS).frames[0]
    torch.testing.assert_close(frames(restorer, clip, 0, FRAMES), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{}, {"grid": 2, "scale": 2}, {"path_grid": 2, "scale": 1}, {"path_width": 0}])
def test_a_stream_of_a_network_on_cells_equals_the_whole_sequence(change: dict[str, int], tmp_path: Path) -> None:
    path, clip = tmp_path / "cells.safetensors", NoiseSource()
    save_model(awake(replace(CELLS, **change)).deployed_form(), path)  # type: ignore[arg-type]
    with torch.inference_mode():
        whole = load_model(str(path)).network(clip.frames[None], scene_starts=CUTS).frames[0]
    clip.given.clear()
    for tile in (None, (16, 16)):
        with Restorer(str(path), device="cpu", precision="fp32", tile=tile) as restorer:
            torch.testing.assert_close(frames(restorer, clip, 0, FRAMES), whole, atol=2e-5, rtol=0)


def test_in_order_every_frame_passes_every_level_once(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, levels = NoiseSource(), calls_of(EagerParts, "level", monkeypatch)
    for first in range(0, FRAMES, 4):
        restorer.restore(clip, first, min(first + 4, FRAMES))
    assert len(levels) == FRAMES * 2 * TINY.num_blocks
    assert clip.read == list(range(FRAMES))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 12])
def test_pixels_do_not_depend_on_the_segment_length_or_the_order(restorer: Restorer, length: int) -> None:
    clip = NoiseSource()
    whole = frames(restorer, clip, 0, FRAMES)
    starts = list(range(0, FRAMES, length))
    random.Random(length).shuffle(starts)
    for first in starts:
        stop = min(first + length, FRAMES)
        assert torch.equal(frames(restorer, clip, first, stop), whole[first:stop])


def test_only_frames_within_the_context_are_read(restorer: Restorer) -> None:
    for n in range(FRAMES):
        clip = NoiseSource()
        restorer.restore(clip, FRAMES - 1, FRAMES)  # elsewhere, so that n starts afresh
        clip.read.clear()
        restorer.restore(clip, n, n + 1)
        if n == FRAMES - 1:
            continue
        scene_first = max([0, *[cut for cut in CUTS if cut <= n]])
        scene_stop = min([FRAMES, *[cut for cut in CUTS if cut > n]])
        expected = range(max(scene_first, n - CONTEXT), min(scene_stop, n + CONTEXT + 1))
        assert clip.read == list(expected)


def test_a_jump_costs_no_more_than_the_levels_that_the_frame_depends_on(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = calls_of(EagerParts, "level", monkeypatch)

    class Long(NoiseSource):
        def starts_scene(self, n: int) -> bool:
            return False

    restorer.restore(Long(), 9, 10)
    assert len(levels) == (2 * TINY.num_blocks) ** 2  # 1 + 3 + 5 + 7, from the top level down


def test_a_frame_tells_its_exposure_and_how_sure_it_is(restorer: Restorer) -> None:
    restored = restorer.restore(NoiseSource(), 0, 4)
    assert [item.index for item in restored] == [0, 1, 2, 3]
    assert restored[2].exposure == pytest.approx(0.3)
    assert restored[2].confidence == 1
    assert restored[1].exposure is not None
    assert 0.2 <= restored[1].exposure <= 1
    assert 0.2 <= restored[1].confidence < 1


def test_after_a_failed_read_the_next_request_is_right(restorer: Restorer) -> None:
    clip = NoiseSource()
    expected = frames(restorer, clip, 4, 8)

    class Broken(NoiseSource):
        def frame(self, n: int) -> Tensor:
            if n == 6:
                raise OSError("unreadable")
            return super().frame(n)

    with pytest.raises(OSError, match="unreadable"):
        restorer.restore(Broken(), 2, 8)
    assert torch.equal(frames(restorer, clip, 4, 8), expected)


def test_bf16_stays_close_to_fp32(weights: Path) -> None:
    clip = NoiseSource()
    with Restorer(str(weights), device="cpu", precision="fp32") as restorer:
        exact = frames(restorer, clip, 0, FRAMES)
    with Restorer(str(weights), device="cpu", precision="bf16") as restorer:
        rounded = frames(restorer, clip, 0, FRAMES)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).square().mean().sqrt() < 0.01
    assert not torch.equal(rounded, rounded.bfloat16().float())  # the image itself is never rounded to bf16


@pytest.mark.parametrize("build", [awake_mmprnn, awake_jffra, awake_m2aenet])
def test_every_kind_of_network_runs_in_both_precisions(build: Callable[[], SequenceNetwork], tmp_path: Path) -> None:
    save_model(build(), tmp_path / "tiny.safetensors")
    clip = NoiseSource()
    with torch.inference_mode():
        scene = load_model(str(tmp_path / "tiny.safetensors")).network(clip.frames[None, : CUTS[0]])[0]
    found = []
    for precision in ("fp32", "bf16"):
        with Restorer(str(tmp_path / "tiny.safetensors"), device="cpu", precision=precision) as restorer:
            found.append(frames(restorer, clip, 0, CUTS[0]))
    torch.testing.assert_close(found[0], scene, atol=1e-5, rtol=1e-5)
    assert (found[1] - scene).square().mean().sqrt() < 0.03


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_was_resolved_is_a_value(weights: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    with Restorer(str(weights), device="cpu", precision=precision) as restorer:
        found = restorer.resolved
        assert (found.model, found.weights_sha256) == ("tiny", file_sha256(weights))
        assert (found.backend, found.device, found.precision) == ("torch", "cpu", precision)
        assert found.device_name == torch.backends.cpu.get_cpu_capability()
        assert found.kernels == ("cpp" if library() is not None else None)
        monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")
        assert restorer.resolved == replace(found, kernels=None)
    automatic = "bf16" if has_fast_bf16() else "fp32"
    with Restorer(str(weights), device="cpu") as restorer:
        assert restorer.resolved.precision == automatic
    with Restorer(str(weights), backend="onnx") as restorer:
        assert (restorer.resolved.backend, restorer.resolved.precision) == ("onnx", "fp32")
        assert restorer.resolved.kernels is None


def test_values_out_of_range_are_clamped_before_the_network(restorer: Restorer) -> None:
    wild, tame = NoiseSource(), NoiseSource()
    wild.frames = wild.frames * 3 - 1
    tame.frames = wild.frames.clamp(0, 1)
    assert torch.equal(frames(restorer, wild, 0, 3), frames(restorer, tame, 0, 3))


def test_precision_and_device_follow_one_rule() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_precision("auto", cpu) == (torch.bfloat16 if has_fast_bf16() else torch.float32)
    assert pick_precision("fp32", cpu) == torch.float32
    with pytest.raises(ConfigError, match="device must be one of 'auto', 'cpu', 'cuda', got 'tpu'"):
        pick_device("tpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 'int8'"):
        pick_precision("int8", cpu)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be 'bf16' or 'fp32' on the CPU, got 'fp16'"):
        pick_precision("fp16", cpu)
    with pytest.raises(DeviceError, match="got 99"):
        pick_device("cuda", 99)


def test_work_for_a_device_is_done_where_that_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, object]] = []

    def choose(what: object) -> None:
        chosen.append((threading.current_thread().name, what))

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("a new stream", device))
    monkeypatch.setattr(torch.cuda, "set_stream", choose)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        worker = Worker(device)
        name = worker.run(lambda: threading.current_thread().name)
        worker.close()
    device = torch.device("cuda", 1)
    assert chosen == [(name, device), (name, ("a new stream", device))]  # the default stream is every filter's


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered\nmore",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid",
        "cudaErrorIllegalAddress: an illegal memory access was encountered",
    ],
)
def test_what_fails_on_a_gpu_is_told_as_an_error_of_the_device(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(message)

    device, first = torch.device("cuda", 1), message.partition("\n")[0]
    with monkeypatch.context() as patched:
        for name in ("set_device", "Stream", "set_stream"):
            patched.setattr(torch.cuda, name, lambda _: None)
        worker = Worker(device)
    with pytest.raises(DeviceError, match=r"cuda:1 must work, got .*; see `vsfmanet doctor`") as caught:
        worker.run(fail)
    assert first in str(caught.value)
    assert "more" not in str(caught.value)
    worker.close()
    with pytest.raises(RuntimeError, match=re.escape(first)):  # it is not the CPU's doing
        Worker(torch.device("cpu")).run(fail)
    monkeypatch.setattr(torch.cuda, "set_device", fail)
    with pytest.raises(DeviceError, match="cuda:1 must work"):
        Worker(device)


def test_bf16_is_for_cards_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert pick_precision("auto", device) == torch.float16
    with pytest.raises(ConfigError, match=r"bf16 needs CUDA capability 8\.0, cuda:0 has less; use 'fp16'"):
        pick_precision("bf16", device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert pick_precision("bf16", device) == pick_precision("auto", device) == torch.bfloat16


def test_all_work_on_the_cpu_is_done_in_one_thread() -> None:
    first, second = Worker(torch.device("cpu")), Worker(torch.device("cpu"))
    thread = first.run(threading.current_thread)
    first.close()
    assert second.run(threading.current_thread) is thread is not threading.current_thread()
    inside = second.run(lambda: Worker(torch.device("cpu")).run(threading.current_thread))
    assert inside is thread  # which does not wait for itself


def test_a_frame_is_delivered_as_it_is_encoded(restorer: Restorer) -> None:
    def encode(n: int, rgb: Tensor) -> Tensor:
        return torch.cat([rgb.flatten()[:5], torch.tensor([float(n)])])

    expected = frames(restorer, NoiseSource(), 2, 9)
    encoded = restorer.restore(NoiseSource(), 2, 9, encode)
    assert [result.frame[5].item() for result in encoded] == list(range(2, 9))
    assert all(torch.equal(each.frame[:5], rgb.flatten()[:5]) for each, rgb in zip(encoded, expected, strict=True))
    assert [result.index for result in encoded] == list(range(2, 9))
