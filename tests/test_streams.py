"""Networks run through `vsfmanet.streams.windows`: the same frames as whole scenes at once, whatever the order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import vapoursynth as vs
from torch import Tensor, nn

from tests.fakes import ListSource, calls_of, noise_clip, same_pixels
from vsfmanet import restore
from vsfmanet.engines.transfers import Transfers
from vsfmanet.errors import ConfigError
from vsfmanet.networks.description import Features, SequenceNetwork, State
from vsfmanet.restorer import Restorer
from vsfmanet.segments import Reach
from vsfmanet.streams.windows import WindowStreams
from vsfmanet.tiling import MemoryPlan
from vsfmanet.weights import MODELS, save_model

FRAMES = 23
CUTS = (9, 10, 17)


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    behind: int = 1
    ahead: int = 1
    warm_up: int = 0
    period: int = 1


class Toy(SequenceNetwork):
    """Mixes a frame with its neighbours, all with different weights, and with a state that fades."""

    kind = "toy"
    halo = 1

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config: ToyConfig = config
        self.window = (config.behind, config.ahead)
        before = config.behind if config.period == 1 else config.warm_up
        self.reach = Reach(before=before, after=config.ahead, period=config.period)
        self.weight = nn.Parameter(torch.tensor([0.5, 0.3]))

    def encode(self, frame: Tensor, state: State | None) -> tuple[Features, State | None]:
        if self.config.period == 1:
            assert state is None
            return (frame,), None
        mixed = frame if state is None else self.weight[0] * state[0] + (1 - self.weight[0]) * frame
        return (mixed,), (mixed,)

    def decode(self, window: Sequence[Features]) -> Tensor:
        assert len(window) == 1 + sum(self.window)
        weights = self.weight[1] * torch.arange(1, len(window) + 1)
        return torch.stack([weight * feat for weight, (feat,) in zip(weights, window, strict=True)]).sum(dim=0)


KINDS = {
    "alone": ToyConfig(behind=0, ahead=0),
    "neighbours": ToyConfig(),
    "history": ToyConfig(behind=4, ahead=0),
    "state": ToyConfig(behind=2, ahead=2, warm_up=3, period=6),
}


@pytest.fixture(params=KINDS)
def network(request: pytest.FixtureRequest) -> Toy:
    return Toy(KINDS[request.param]).eval()


@pytest.fixture
def source() -> ListSource:
    generator = torch.Generator().manual_seed(1)
    return ListSource(frames=list(torch.rand(FRAMES, 3, 9, 10, generator=generator)), cuts=CUTS)


def scenes(cuts: Sequence[int] = CUTS) -> Iterator[tuple[int, int]]:
    ends = (0, *cuts, FRAMES)
    yield from pairwise(ends)


@torch.no_grad()
def expected(network: Toy, source: ListSource) -> list[Tensor]:
    """By `forward`, scene by scene; of a scene with a state, from the grid on, as `reach` says."""
    out: list[Tensor] = []
    for first, stop in scenes():
        for n in range(first, stop):
            start = max(first, network.reach.of(n)[0]) if network.reach.period > 1 else first
            if start > first:  # begins inside the scene: no frames are made up before it
                state, features = None, []
                for t in range(start, stop + network.window[1]):
                    at = t if t < stop else first + network.beyond(t - first, stop - first)
                    encoded, state = network.encode(source.frames[at][None], state)
                    features.append(encoded)
                centre = n - start
                out.append(network.decode(features[centre - network.window[0] : centre + network.window[1] + 1])[0])
            else:
                out.append(network(torch.stack(list(source.frames[first:stop]))[None])[0, n - first])
    return out


@torch.no_grad()
def streamed(streams: WindowStreams, source: ListSource, starts: Sequence[int], length: int) -> dict[int, Tensor]:
    out = {}
    for first in starts:
        n, stop = first, min(first + length, FRAMES)
        while n < stop:
            for restored in streams.open(source, n):
                assert restored.index == n
                out[n] = restored.frame
                n += 1
                if n == stop:
                    break
    return out


@pytest.mark.parametrize("length", [1, 3, 8, FRAMES])
def test_a_stream_from_any_frame_equals_whole_scenes(network: Toy, source: ListSource, length: int) -> None:
    starts = list(range(0, FRAMES, length))
    random.Random(length).shuffle(starts)
    streams = WindowStreams(network, Transfers(torch.device("cpu")), plan=MemoryPlan())
    out = streamed(streams, source, starts, length)
    for n, frame in enumerate(expected(network, source)):
        torch.testing.assert_close(out[n], frame, atol=1e-6, rtol=0)


def test_without_a_state_every_frame_is_encoded_once(source: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Toy(ToyConfig())
    encoded = calls_of(network, "encode", monkeypatch)
    streams = WindowStreams(network, Transfers(torch.device("cpu")), plan=MemoryPlan())
    source.cuts = ()
    streamed(streams, source, [0], FRAMES)
    assert len(encoded) == FRAMES + 2  # and one made-up frame beyond each end


def test_a_state_is_built_up_anew_once_per_period(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Toy(ToyConfig(behind=2, ahead=2, warm_up=3, period=6))
    encoded = calls_of(network, "encode", monkeypatch)
    source = ListSource(frames=list(torch.rand(24, 3, 8, 8)))
    streams = WindowStreams(network, Transfers(torch.device("cpu")), plan=MemoryPlan())
    n = 0
    while n < 24:
        for restored in streams.open(source, n):
            n = restored.index + 1
    assert len(encoded) == 4 * (6 + 2) + 2 + 3 * 3  # look-ahead, the made-up first frames, three warm-ups


def test_only_frames_within_reach_are_read(network: Toy, source: ListSource) -> None:
    @dataclass(kw_only=True)
    class Watched(ListSource):
        read: set[int] = field(default_factory=set)
        asked: set[int] = field(default_factory=set)

        def frame(self, n: int) -> Tensor:
            self.read.add(n)
            return super().frame(n)

        def starts_scene(self, n: int) -> bool:
            self.asked.add(n)
            return super().starts_scene(n)

    for n in range(FRAMES):
        watched = Watched(frames=source.frames, cuts=CUTS)
        streams = WindowStreams(network, Transfers(torch.device("cpu")), plan=MemoryPlan())
        next(streams.open(watched, n))
        first, stop = next(scene for scene in scenes() if scene[0] <= n < scene[1])
        earliest, latest = network.reach.of(n)
        assert watched.read <= set(range(max(first, earliest), min(stop, latest + 1)))
        assert watched.asked <= set(range(max(0, earliest), min(FRAMES, latest + 1)))


def test_frames_in_parts_that_see_far_enough_are_the_same(network: Toy, source: ListSource) -> None:
    cpu = torch.device("cpu")
    whole = streamed(WindowStreams(network, Transfers(cpu), plan=MemoryPlan()), source, [0], FRAMES)
    parts = streamed(WindowStreams(network, Transfers(cpu), plan=MemoryPlan(tile=(4, 5))), source, [0], FRAMES)
    for n in range(FRAMES):
        torch.testing.assert_close(parts[n], whole[n])


def test_the_ends_of_a_scene_are_mirrored_or_repeated() -> None:
    mirrored, repeated = Toy(ToyConfig()), Toy(ToyConfig(behind=4, ahead=0))
    assert [mirrored.beyond(t, 4) for t in (-2, -1, 4, 5)] == [2, 1, 2, 1]
    assert [mirrored.beyond(t, 1) for t in (-1, 1)] == [0, 0]
    assert [repeated.beyond(t, 4) for t in (-4, -1, 4)] == [0, 0, 3]


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: Toy) -> Path:
    def build(config: dict[str, int]) -> Toy:
        return Toy(ToyConfig(**config))

    monkeypatch.setitem(MODELS, "toy", build)
    path = tmp_path / "toy.safetensors"
    save_model(network, path)
    return path


@pytest.mark.parametrize("segment", [1, 4, 9])
def test_the_filter_gives_the_same_pixels_for_any_order_and_segment(weights: Path, network: Toy, segment: int) -> None:
    clip = noise_clip(FRAMES, cuts=CUTS)
    whole = restore(clip, model=str(weights), device="cpu", precision="fp32")
    assert (whole.width, whole.height) == (clip.width, clip.height)
    in_order = list(whole.frames())
    again = restore(clip, model=str(weights), device="cpu", precision="fp32", segment=segment)
    for n in random.Random(segment).sample(range(FRAMES), FRAMES):
        frame = again.get_frame(n)
        assert same_pixels(frame, in_order[n])
        first, stop = next(scene for scene in scenes() if scene[0] <= n < scene[1])
        earliest, latest = network.reach.of(n)
        assert frame.props["FMANetWindowStart"] == max(first, earliest)
        assert frame.props["FMANetWindowEnd"] == min(stop - 1, latest)


def test_a_network_that_reads_no_exposure_passes_on_what_was_known(weights: Path) -> None:
    silent = restore(noise_clip(3), model=str(weights), device="cpu").get_frame(1)
    assert "FMANetExposure" not in silent.props
    told = restore(noise_clip(3), model=str(weights), device="cpu", exposure=0.4).get_frame(1)
    assert told.props["FMANetExposure"] == pytest.approx(0.4)
    assert told.props["FMANetExposureSource"] == "argument"


def test_other_backends_are_for_fmanetpp(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"'onnx' is for FMA-Net\+\+"):
        Restorer(str(weights), backend="onnx")
    with pytest.raises(vs.Error, match="leave it out"):
        restore(noise_clip(3), model=str(weights), backend="onnx")
