"""The filter, with a stand-in for the network: the same pixels whatever is asked, and nothing lost."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import tomllib
from collections.abc import Collection
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor

import vsfmanet
import vsfmanet.restorer
from tests.fakes import (
    EnlargingRestorer,
    ListSource,
    MixingRestorer,
    counted,
    drawn_clip,
    encoded,
    noise_clip,
    planes,
    restore_with,
    same_pixels,
)
from vsfmanet.engines.transfers import Transfers
from vsfmanet.errors import ConfigError, DeviceError, VsfmanetError
from vsfmanet.restorer import Encode
from vsfmanet.segments import Reach
from vsfmanet.streams import FrameSource, Restored

core = vs.core

ON_DEVICE = Transfers(torch.device("cpu"))
"""As if the CPU were a device: colours are converted in torch."""

PROJECT = Path(__file__).parents[1]
LENGTH = 23
CUTS = frozenset({3, 4, 8, 9, 10, 16, 22})
EXPOSURES = tuple((n % 5 + 1) / 5 for n in range(LENGTH))


@cache
def whole_clip_restored(num_frames: int, context: int, cuts: frozenset[int] = CUTS) -> list[NDArray[np.float64]]:
    """What the fake makes of the whole clip at once, without any filter."""
    clip = noise_clip(num_frames)
    frames = [torch.from_numpy(np.stack(planes(frame))).float() for frame in clip.frames()]
    source = ListSource(frames=frames, cuts=cuts, exposures=EXPOSURES[:num_frames])
    restored = MixingRestorer(context=context).restore(source, 0, num_frames)
    return [result.frame.double().numpy() for result in restored]


def filtered(
    restorer: MixingRestorer | None = None,
    *,
    num_frames: int = LENGTH,
    segment: int | None = 4,
    cuts: Collection[int] = CUTS,
) -> vs.VideoNode:
    """The same clip through the filter."""
    clip = noise_clip(num_frames, cuts=cuts, exposures=EXPOSURES)
    return restore_with(clip, restorer or MixingRestorer(), segment=segment)


def is_exact(frame: vs.VideoFrame, n: int, *, num_frames: int = LENGTH, context: int = 2) -> bool:
    """Whether a frame of `filtered` is what it must be, to the last bit."""
    return np.array_equal(np.stack(planes(frame)), whole_clip_restored(num_frames, context)[n])


@pytest.mark.parametrize("segment", range(1, 13))
@pytest.mark.parametrize("num_frames", [1, 2, 3, LENGTH])
def test_any_segment_length_equals_restoring_the_whole_clip_at_once(num_frames: int, segment: int) -> None:
    restored = filtered(num_frames=num_frames, segment=segment)
    assert restored.num_frames == num_frames
    assert all(is_exact(frame, n, num_frames=num_frames) for n, frame in enumerate(restored.frames()))


@pytest.mark.parametrize("context", [0, 1, 3, 8, 30])
@pytest.mark.parametrize("segment", [1, 5, None])
def test_any_context_equals_restoring_the_whole_clip_at_once(context: int, segment: int | None) -> None:
    restored = filtered(MixingRestorer(context=context), segment=segment)
    assert all(is_exact(frame, n, context=context) for n, frame in enumerate(restored.frames()))


@pytest.mark.parametrize(
    "cuts",
    [set(), {1}, {22}, {1, 2}, {3, 4, 5}, {7, 8}, {8}, {9}, {11, 12, 13}, set(range(1, LENGTH))],
    ids=lambda cuts: "-".join(map(str, sorted(cuts))) or "none",
)
@pytest.mark.parametrize("segment", [1, 4, 8])
def test_cuts_may_lie_anywhere(cuts: set[int], segment: int) -> None:
    expected = whole_clip_restored(LENGTH, 2, frozenset(cuts))
    for n, frame in enumerate(filtered(cuts=cuts, segment=segment).frames()):
        assert np.array_equal(np.stack(planes(frame)), expected[n])


@pytest.mark.parametrize("segment", [1, 3, 8])
def test_nothing_leaks_across_a_cut(segment: int) -> None:
    clip = noise_clip(11, cuts={5})
    together = restore_with(clip, MixingRestorer(), segment=segment)
    apart = [
        frame
        for part in (clip[:5], clip[5:])
        for frame in restore_with(part, MixingRestorer(), segment=segment).frames()
    ]
    assert all(same_pixels(a, b) for a, b in zip(together.frames(), apart, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_requests_change_nothing(seed: int) -> None:
    restored = filtered()
    order = random.Random(seed).sample(range(LENGTH), LENGTH)
    assert all(is_exact(restored.get_frame(n), n) for n in order)


def test_requests_backwards_and_repeated_change_nothing() -> None:
    restored = filtered()
    order = [*reversed(range(LENGTH)), *range(LENGTH), 5, 5, 20, 5, 0, 22, 6]
    assert all(is_exact(restored.get_frame(n), n) for n in order)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_requests_all_at_once_change_nothing(threads: int) -> None:
    core.num_threads = threads
    restored = filtered()
    order = random.Random(0).sample(range(LENGTH), LENGTH)
    futures = [(n, restored.get_frame_async(n)) for n in order]
    assert all(is_exact(future.result(), n) for n, future in futures)


@pytest.mark.parametrize("prefetch", [1, 2, 3, 5, 8, 16, 32])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_prefetch_and_threads_change_nothing(prefetch: int, threads: int) -> None:
    core.num_threads = threads
    assert all(is_exact(frame, n) for n, frame in enumerate(filtered().frames(prefetch=prefetch)))


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 4), (5, 6), (3, 17), (8, 23), (22, 23)])
def test_a_range_has_the_pixels_of_the_whole(start: int, stop: int) -> None:
    part = filtered()[start:stop]
    assert all(is_exact(frame, start + n) for n, frame in enumerate(part.frames()))


def test_two_ranges_read_in_turn_have_the_pixels_of_the_whole() -> None:
    restored = filtered()
    for n in range(11):
        assert is_exact(restored.get_frame(n), n)
        assert is_exact(restored.get_frame(n + 11), n + 11)


@pytest.mark.parametrize("transfers", [None, ON_DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("format", [vs.YUV420P8, vs.YUV444P16, vs.GRAYH])
def test_converted_formats_do_not_depend_on_the_order_either(format: int, transfers: Transfers | None) -> None:
    clip = noise_clip(9, cuts={4}).resize.Bicubic(format=format, matrix=1)
    forward = list(restore_with(clip, MixingRestorer(), segment=3, transfers=transfers).frames())
    other = restore_with(clip, MixingRestorer(), segment=2, transfers=transfers)
    assert all(same_pixels(other.get_frame(n), forward[n]) for n in random.Random(1).sample(range(9), 9))


def test_cuts_that_the_detector_finds_do_not_depend_on_the_order_either() -> None:
    clip = noise_clip(12).std.RemoveFrameProps(["_SceneChangePrev", "_SceneChangeNext"])
    forward = list(restore_with(clip, MixingRestorer(), segment=5, sc_threshold=0.01).frames())
    other = restore_with(clip, MixingRestorer(), segment=2, sc_threshold=0.01)
    assert all(same_pixels(other.get_frame(n), forward[n]) for n in random.Random(1).sample(range(12), 12))


def test_building_the_filter_runs_no_network_and_asks_for_no_frame() -> None:
    clip, asked = counted(noise_clip(LENGTH).resize.Bicubic(format=vs.YUV420P8, matrix=1))
    restorer = MixingRestorer()
    restored = restore_with(clip, restorer)
    assert (restored.width, restored.height, restored.num_frames) == (64, 48, LENGTH)
    assert (restored.format.id, restored.fps) == (vs.YUV420P8, clip.fps)
    assert asked == []
    assert restorer.calls == []


@pytest.mark.parametrize("transfers", [None, ON_DEVICE], ids=["host", "device"])
@pytest.mark.parametrize("prefetch", [1, 8, 32])
def test_reading_forward_runs_each_segment_and_reads_each_frame_once(
    prefetch: int, transfers: Transfers | None
) -> None:
    core.num_threads = 2  # few, so that a window is read long after its frames were asked for
    clip, asked = counted(noise_clip(203).resize.Bicubic(format=vs.YUV420P8, matrix=1))
    restorer = MixingRestorer()
    for _ in restore_with(clip, restorer, segment=5, transfers=transfers).frames(prefetch=prefetch):
        pass
    assert sorted(restorer.calls) == [(first, min(first + 5, 203)) for first in range(0, 203, 5)]
    assert len(asked) <= 203 * 1.05


def test_reading_backward_repeats_hardly_any_segment() -> None:
    restorer = MixingRestorer()
    restored = restore_with(noise_clip(203), restorer, segment=5)
    for n in reversed(range(203)):
        restored.get_frame(n).close()
    assert len(restorer.calls) <= 44


def test_short_memory_repeats_no_segment() -> None:
    core.max_cache_size = 1  # MiB; a restored segment takes 3
    restorer = EnlargingRestorer()
    calls: list[int] = []

    class Counting(EnlargingRestorer):
        def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
            calls.append(first)
            return restorer.restore(source, first, stop, encode)

    clip = core.std.BlankClip(width=64, height=64, format=vs.RGBS, length=100)
    for _ in restore_with(clip, Counting(), segment=4).frames(prefetch=2):
        pass
    assert sorted(calls) == list(range(0, 100, 4))


@pytest.mark.parametrize("num_frames", [1, 4, 5, LENGTH])
@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_take_segments_in_turn_with_the_same_pixels(devices: int, num_frames: int) -> None:
    restorers = [MixingRestorer() for _ in range(devices)]
    clip = noise_clip(num_frames, cuts=CUTS, exposures=EXPOSURES)
    restored = restore_with(clip, *restorers, segment=4)
    assert restored.num_frames == num_frames
    assert all(is_exact(frame, n, num_frames=num_frames) for n, frame in enumerate(restored.frames()))
    for place, restorer in enumerate(restorers):
        assert sorted(set(restorer.calls)) == [
            (first, min(first + 4, num_frames)) for first in range(4 * place, num_frames, 4 * devices)
        ]
    order = random.Random(devices).sample(range(num_frames), num_frames)
    assert all(is_exact(restored.get_frame(n), n, num_frames=num_frames) for n in order)
    del restored
    gc.collect()
    assert all(restorer.closed for restorer in restorers)


def test_several_devices_are_busy_at_once() -> None:
    core.num_threads = max(2, core.num_threads)  # each waits in a thread of VapourSynth
    together = threading.Barrier(2, timeout=30)

    class Waiting(MixingRestorer):
        def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
            together.wait()
            return super().restore(source, first, stop, encode)

    restored = restore_with(noise_clip(16), Waiting(), Waiting(), segment=4)
    assert len(list(restored.frames(prefetch=8))) == 16


def test_every_property_of_the_source_is_kept_on_its_frame() -> None:
    def props(n: int) -> dict[str, object]:
        return {
            "Number": n,
            "Numbers": [n, n + 1],
            "Float": n / 3,
            "Text": f"frame {n}",
            "Bytes": bytes([n, 255]),
            "_Matrix": 6,
            "_Range": 1,
            "_Primaries": 5,
            "_Transfer": 6,
            "_ChromaLocation": 1,
            "_FieldBased": 0,
            "_SARNum": 12,
            "_SARDen": 11,
            "_PictType": "IPB"[n % 3],
            "_AbsoluteTime": n / 24,
            "_SceneChangePrev": int(n == 2),
            "ContentLightLevelMax": 1000,
        }

    clip = drawn_clip(lambda n, plane: np.array(100), 7, format=vs.YUV420P8, props=props)
    for n, frame in enumerate(restore_with(clip, EnlargingRestorer(), segment=3).frames()):
        assert {**dict(frame.props), **props(n)} == dict(frame.props)
        assert frame.props["_DurationNum"] / frame.props["_DurationDen"] == pytest.approx(1 / 24)


def test_results_are_described_by_our_properties_and_no_others() -> None:
    clip = noise_clip(5).std.SetFrameProps(_Matrix=0, _Range=1)
    before = dict(clip.get_frame(3).props)
    frame = restore_with(clip, MixingRestorer(), segment=3).get_frame(3)
    added = {name: value for name, value in frame.props.items() if name not in before}
    assert added == {
        "FMANetExposure": 0.7,
        "FMANetExposureSource": "network",
        "FMANetExposureConfidence": 0.5,
        "FMANetModel": "fake",
        "FMANetWindowStart": 1,
        "FMANetWindowEnd": 4,
    }


@pytest.mark.parametrize("segment", [1, 4, 12])
def test_the_window_of_a_frame_is_its_context_within_its_scene(segment: int) -> None:
    restored = filtered(cuts={3, 10}, segment=segment)
    windows = [(f.props["FMANetWindowStart"], f.props["FMANetWindowEnd"]) for f in restored.frames()]
    assert windows[:5] == [(0, 2), (0, 2), (0, 2), (3, 5), (3, 6)]
    assert windows[8:12] == [(6, 9), (7, 9), (10, 12), (10, 13)]
    assert windows[-1] == (20, 22)


@pytest.mark.parametrize("segment", [1, 3, 8])
def test_the_exposure_time_is_set_against_the_duration_whatever_the_segment(segment: int) -> None:
    clip = noise_clip(9).std.SetFrameProps(ExposureTime=1 / 48)
    for frame in restore_with(clip, MixingRestorer(), segment=segment).frames():
        assert frame.props["FMANetExposure"] == pytest.approx(0.5)
        assert frame.props["FMANetExposureSource"] == "prop"


def test_a_variable_rate_gives_each_frame_its_own_exposure() -> None:
    slow, fast = noise_clip(6).std.AssumeFPS(fpsnum=25), noise_clip(6).std.AssumeFPS(fpsnum=50)
    clip = (slow + fast).std.SetFrameProps(ExposureTime=1 / 100)
    exposures = [frame.props["FMANetExposure"] for frame in restore_with(clip, MixingRestorer(), segment=4).frames()]
    assert exposures == pytest.approx([0.25] * 6 + [0.5] * 6)


def test_an_exposure_given_by_argument_wins_and_reaches_the_network() -> None:
    clip = noise_clip(3, exposures=[0.2, 0.4, 0.6])
    argument = restore_with(clip, MixingRestorer(), exposure=0.25).get_frame(1)
    assert (argument.props["FMANetExposure"], argument.props["FMANetExposureSource"]) == (0.25, "argument")
    prop = restore_with(clip, MixingRestorer()).get_frame(1)
    assert (prop.props["FMANetExposure"], prop.props["FMANetExposureSource"]) == (0.4, "prop")
    assert not same_pixels(argument, prop)


def test_a_bad_exposure_property_is_named_with_its_frame() -> None:
    restored = restore_with(noise_clip(3, exposures=[0.2, 1.4, 0.6]), MixingRestorer())
    with pytest.raises(vs.Error, match=r"ExposureError: FMANetExposure must be in \(0, 1\], got 1.4 at frame 1; "):
        restored.get_frame(0)


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(50), Fraction(15, 2)])
def test_a_constant_rate_is_kept(fps: Fraction) -> None:
    clip = noise_clip(5).std.AssumeFPS(fpsnum=fps.numerator, fpsden=fps.denominator)
    restored = restore_with(clip, MixingRestorer(), segment=3)
    assert restored.fps == fps
    assert [Fraction(f.props["_DurationNum"], f.props["_DurationDen"]) for f in restored.frames()] == [1 / fps] * 5


def test_a_variable_rate_is_kept() -> None:
    clip = noise_clip(4).std.AssumeFPS(fpsnum=15) + noise_clip(5).std.AssumeFPS(fpsnum=60)
    assert clip.fps == 0
    restored = restore_with(clip, MixingRestorer(), segment=3)
    assert restored.fps == 0
    durations = [Fraction(f.props["_DurationNum"], f.props["_DurationDen"]) for f in restored.frames()]
    assert durations == [Fraction(1, 15)] * 4 + [Fraction(1, 60)] * 5


class BrokenRestorer(MixingRestorer):
    """Spoils one sample of frame 6."""

    def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
        """Restore frames `first` ... `stop - 1`, with one NaN."""
        restored = super().restore(source, first, stop)
        for result in restored:
            if result.index == 6:
                result.frame[1, 2, 3] = float("nan")
        return [encoded(result, encode) for result in restored]


@pytest.mark.parametrize(("format", "transfers"), [(vs.RGBS, None), (vs.RGB24, ON_DEVICE)], ids=["host", "device"])
def test_a_result_that_is_not_finite_is_an_error_and_never_black(format: int, transfers: Transfers | None) -> None:
    restored = restore_with(noise_clip(LENGTH, format=format), BrokenRestorer(), segment=4, transfers=transfers)
    assert restored.get_frame(3)
    with pytest.raises(
        vs.Error,
        match=r"IncompleteError: finite results are needed, got NaN or infinity in frame 6, in fp32 too; look at",
    ):
        restored.get_frame(5)
    assert restored.get_frame(8)


def test_a_source_that_is_not_finite_is_an_error_and_never_black() -> None:
    def draw(n: int, plane: int) -> NDArray[np.float64]:
        return np.array(np.nan if (n, plane) == (6, 2) else 0.5)

    restored = restore_with(drawn_clip(draw, LENGTH), MixingRestorer(), segment=1)
    assert restored.get_frame(3)
    with pytest.raises(
        vs.Error,
        match=r"FormatError: finite samples are needed, got NaN or infinity in frame 6 of the clip; repair",
    ):
        restored.get_frame(4)


def test_a_failure_ends_one_request_and_not_the_filter() -> None:
    class Failing(MixingRestorer):
        def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
            if not self.calls:
                self.calls.append((first, stop))
                raise VsfmanetError("more memory is needed, got less; try again")
            return super().restore(source, first, stop, encode)

    restored = filtered(Failing())
    with pytest.raises(vs.Error, match=r"VsfmanetError: more memory is needed, got less; try again"):
        restored.get_frame(7)
    assert is_exact(restored.get_frame(7), 7)


def test_a_released_clip_closes_the_restorer() -> None:
    restorer = MixingRestorer()
    restored = filtered(restorer)
    frame = restored.get_frame(0)
    assert not restorer.closed
    del restored
    gc.collect()
    assert restorer.closed
    assert is_exact(frame, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "restore: model must be a name, got 3; leave it out"),
        ({"exposure": 0}, r'restore: exposure must be "auto" or a number in \(0, 1\], got 0; it is'),
        ({"exposure": "1/50"}, r"restore: exposure must be .* got '1/50'; it is"),
        ({"segment": 0}, "restore: segment must be a whole number of frames from 1 to 64, got 0; leave it out"),
        ({"segment": 65}, "restore: segment must be a whole number of frames from 1 to 64, got 65; leave it out"),
        ({"segment": 4.0}, "restore: segment must be a whole number of frames from 1 to 64, got 4.0; leave it out"),
        ({"segment": True}, "restore: segment must be a whole number of frames from 1 to 64, got True; leave it out"),
        ({"sc_threshold": -0.1}, "restore: sc_threshold must be a number from 0 to 1, got -0.1; leave it out"),
        ({"sc_threshold": 1.1}, "restore: sc_threshold must be a number from 0 to 1, got 1.1; leave it out"),
        ({"sc_threshold": float("nan")}, "restore: sc_threshold must be a number from 0 to 1, got nan; leave it out"),
        ({"sc_threshold": "0.1"}, "restore: sc_threshold must be a number from 0 to 1, got '0.1'; leave it out"),
        ({"output_format": "YUV420P8"}, "restore: output_format must be a VapourSynth format .* got 'YUV420P8'; pass"),
        ({"clip": "clip.mkv"}, "restore: clip must be a video clip, got str; pass what a source filter returns"),
        (
            {"clip": core.std.BlankClip(width=4, height=4)},
            "restore: a clip of at least 8x8 pixels is needed, got 4x4; add",
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_any_network_is_loaded(
    arguments: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsfmanet.restorer, "Restorer", None, raising=False)
    with pytest.raises(vs.Error, match=message):
        vsfmanet.restore(**{"clip": noise_clip(1), **arguments})


class RecordingRestorer(MixingRestorer):
    """Takes the arguments of the real one."""

    made: list[RecordingRestorer] = []  # noqa: RUF012

    def __init__(
        self,
        model: str,
        *,
        device: str,
        device_index: int,
        precision: str,
        backend: str,
        provider: str,
        tile: tuple[int, int] | None,
    ) -> None:
        assert provider == "auto"
        super().__init__(scale=1 if model == "deblur" else 4)
        self.name = Path(model).stem
        self.arguments = (model, device, device_index, precision, backend, tile)
        self.made.append(self)
        if model == "nothing":
            raise ConfigError("model must be one of a, b, got 'nothing'; choose one")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[RecordingRestorer]:
    monkeypatch.setattr(RecordingRestorer, "made", [])
    monkeypatch.setattr(vsfmanet.restorer, "Restorer", RecordingRestorer, raising=False)
    return RecordingRestorer.made


def test_restore_hands_model_and_device_to_the_restorer(recording: list[RecordingRestorer]) -> None:
    clip = vsfmanet.restore(
        noise_clip(2), model="deblur", device="cpu", device_index=1, precision="fp32", backend="onnx", tile=(64, 32)
    )
    assert (clip.width, clip.height) == (16, 12)
    assert clip.get_frame(0).props["FMANetModel"] == "deblur"
    vsfmanet.restore(noise_clip(2))
    assert [restorer.arguments for restorer in recording] == [
        ("deblur", "cpu", 1, "fp32", "onnx", (64, 32)),
        ("fmanetpp_x4_fast", "auto", 0, "auto", "auto", None),
    ]


def test_every_device_that_is_named_gets_a_restorer(recording: list[RecordingRestorer]) -> None:
    restored = vsfmanet.restore(noise_clip(9), device_index=(2, 0), segment=4)
    assert [(restorer.arguments[2], restorer.closed) for restorer in recording] == [(2, False), (0, False)]
    assert len(list(restored.frames())) == 9
    assert [sorted(restorer.calls) for restorer in recording] == [[(0, 4), (8, 9)], [(4, 8)]]


def test_when_one_device_is_not_there_the_others_are_let_go(
    recording: list[RecordingRestorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(RecordingRestorer):
        def __init__(self, *args: Any, device_index: int, **kwargs: Any) -> None:
            super().__init__(*args, device_index=device_index, **kwargs)
            if device_index == 1:
                raise DeviceError("no such device")

    monkeypatch.setattr(vsfmanet.restorer, "Restorer", Second)
    with pytest.raises(vs.Error, match="no such device"):
        vsfmanet.restore(noise_clip(2), device_index=(0, 1))
    assert recording[0].closed


@pytest.mark.parametrize("index", [(), (0, 0), "0", None, 1.0, (0, True), [0, "1"]])
def test_what_names_no_device_is_refused(recording: list[RecordingRestorer], index: Any) -> None:
    with pytest.raises(vs.Error, match=r"device_index must be .* such as \(0, 1\), got "):
        vsfmanet.restore(noise_clip(2), device_index=index)
    assert not recording


def test_restore_hands_the_other_arguments_to_the_filter(recording: list[RecordingRestorer]) -> None:
    clip = vsfmanet.restore(noise_clip(9), exposure=0.3, segment=2, sc_threshold=0, output_format=vs.RGB24)
    assert clip.format.id == vs.RGB24
    assert clip.get_frame(5).props["FMANetExposure"] == 0.3
    assert recording[0].calls == [(4, 6)]


def test_on_a_gpu_clips_of_integers_travel_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Transfers):
        def __init__(self) -> None:
            super().__init__(torch.device("cpu"))
            self.uploaded: list[tuple[torch.dtype, int]] = []

        def upload(self, given: Tensor) -> Tensor:
            self.uploaded.append((given.dtype, len(given)))
            return super().upload(given)

    class OnGpu(RecordingRestorer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.colour_transfers = self.transfers = Counting()

    monkeypatch.setattr(vsfmanet.restorer, "Restorer", OnGpu)
    clip = noise_clip(3).resize.Bicubic(format=vs.YUV420P10, matrix=1)
    restored = list(vsfmanet.restore(clip).frames())
    [restorer] = OnGpu.made[-1:]
    assert isinstance(restorer, OnGpu)
    assert restorer.transfers.uploaded == [(torch.uint16, 16 * 12 * 3 // 2)] * 3
    on_host = restore_with(clip, MixingRestorer())
    for found, expected in zip(restored, on_host.frames(), strict=True):
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(planes(found), planes(expected), strict=True))


def test_a_model_given_as_a_file_is_named_without_its_folder(recording: list[RecordingRestorer]) -> None:
    clip = vsfmanet.restore(noise_clip(2), model="/home/someone/weights.safetensors")
    assert clip.get_frame(0).props["FMANetModel"] == "weights"


def test_an_error_of_the_restorer_is_an_error_of_vapoursynth(recording: list[RecordingRestorer]) -> None:
    with pytest.raises(vs.Error, match=r"^restore: model must be one of a, b, got 'nothing'; choose one$"):
        vsfmanet.restore(noise_clip(1), model="nothing")


def test_a_restorer_that_cannot_be_used_is_closed(recording: list[RecordingRestorer]) -> None:
    odd = noise_clip(1, width=9, height=9)
    with pytest.raises(vs.Error, match="restore: output_format YUV420P8 needs a size that"):
        vsfmanet.restore(odd, model="deblur", output_format=vs.YUV420P8)
    assert recording[0].closed


def test_positional_arguments_beside_the_clip_are_refused() -> None:
    with pytest.raises(TypeError):
        vsfmanet.restore(noise_clip(1), "fmanetpp_x4_fast")  # type: ignore[call-arg]


def test_very_long_clips_are_built_at_once() -> None:
    clip = core.std.BlankClip(width=16, height=12, format=vs.RGBS, length=2_000_000_000)
    restored = restore_with(clip, EnlargingRestorer(reach=Reach(before=8, after=8)))
    assert restored.num_frames == 2_000_000_000
    assert restored.get_frame(1_999_999_999).props["FMANetWindowStart"] == 1_999_999_991


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program in the project's folder."""
    return subprocess.run(
        command, capture_output=True, cwd=PROJECT, env={**os.environ, **environment}, timeout=120, check=False
    )


def test_importing_does_nothing() -> None:
    heavy = "('torch', 'vapoursynth', 'numpy')"
    done = run(sys.executable, "-c", f"import sys, vsfmanet; print([name for name in {heavy} if name in sys.modules])")
    assert (done.stdout.split(), done.stderr, done.returncode) == ([b"[]"], b"", 0)


def test_nothing_is_written_to_stdout() -> None:
    done = run(
        sys.executable,
        "-c",
        "import vapoursynth as vs; from tests.fakes import MixingRestorer, restore_with;"
        "clip = vs.core.std.BlankClip(width=16, height=8, format=vs.YUV420P8, length=20);"
        "list(restore_with(clip, MixingRestorer()).frames())",
    )
    assert (done.stdout, done.returncode) == (b"", 0)
    assert done.stderr.count(b"the clip has no matrix tag") == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux tells them")
def test_a_single_thread_has_torch_spread_its_work() -> None:
    threads = 7  # of torch; three of VapourSynth
    done = run(
        sys.executable,
        "-c",
        f"import os, torch; torch.set_num_threads({threads})\n"
        "import vapoursynth as vs; vs.core.num_threads = 3\n"
        "from vsfmanet import blur_map, restore\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "clip = vs.core.std.BlankClip(width=80, height=64, format=vs.YUV420P8, length=6, keep=True)\n"
        "clip = restore(clip, model='fmanetpp_x1_fast', exposure='estimate', skip=True, segment=2)\n"
        "list(vs.core.std.Splice([blur_map(clip), clip], mismatch=True).frames(prefetch=3))\n"
        "print(len(os.listdir('/proc/self/task')) - before)",
    )
    assert done.returncode == 0, done.stderr
    others = threads - 1
    assert others < int(done.stdout) < 2 * others


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere VSScript cannot be set up for one test")
def test_a_range_read_by_vspipe_has_the_pixels_of_the_whole(tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from tests.fakes import MixingRestorer, noise_clip, restore_with\n"
        f"clip = noise_clip(11, format={int(vs.YUV444P8)}, cuts={{4}})\n"
        "restore_with(clip, MixingRestorer(), segment=4).set_output()\n"
    )
    programs = Path(sys.executable).parent
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    run(str(programs / "vapoursynth"), "config", **home)
    done = run(str(programs / "vspipe"), "-c", "y4m", "-s", "3", "-e", "7", str(script), "-", **home)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"Warning: the clip has no matrix tag") == 1  # in VapourSynth's message log
    _, *frames = done.stdout.split(b"FRAME\n")

    clip = noise_clip(11, format=vs.YUV444P8, cuts={4})
    whole = [planes(frame) for frame in restore_with(clip, MixingRestorer(), segment=8).frames()]
    assert frames == [np.stack(whole[n]).astype(np.uint8).tobytes() for n in range(3, 8)]


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    assert vsfmanet.__version__ == project["project"]["version"]
