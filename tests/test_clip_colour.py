"""Formats, colour tags, and the conversions of planes to tensors and back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray

from tests.fakes import EnlargingRestorer, drawn_clip, noise_clip, planes, restore_with
from vsfmanet.clips import colour
from vsfmanet.clips.planes import is_finite, read_rgb, write_rgb
from vsfmanet.engines.transfers import Transfers
from vsfmanet.errors import FormatError
from vsfmanet.segments import Reach

core = vs.core

SUBSAMPLINGS = [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 2)]
DEPTHS = [*((vs.INTEGER, bits) for bits in (8, 9, 10, 12, 14, 16)), (vs.FLOAT, 16), (vs.FLOAT, 32)]
FORMATS = [
    *(core.query_video_format(family, *depth) for family, depth in product((vs.GRAY, vs.RGB), DEPTHS)),
    *(core.query_video_format(vs.YUV, *depth, *chroma) for chroma, depth in product(SUBSAMPLINGS, DEPTHS)),
]


def patterned_clip(video_format: vs.VideoFormat, props: dict[str, object], *, width: int, height: int) -> vs.VideoNode:
    """Noise in every plane that has the full size, and an even tint in subsampled ones."""
    is_float = video_format.sample_type == vs.FLOAT
    peak = 1.0 if is_float else 2.0**video_format.bits_per_sample - 1
    is_subsampled = video_format.subsampling_w or video_format.subsampling_h

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        middle = 0.5 if is_float and video_format.color_family == vs.YUV and plane else 0.0
        if plane and is_subsampled:
            return np.array(round(0.4 * peak) if not is_float else 0.4 - middle)
        noise = np.random.default_rng((n, plane)).random((height, width)) - middle
        return noise * peak if is_float else np.round(noise * peak)

    return drawn_clip(draw, 2, width=width, height=height, format=video_format.id, props=lambda n: props)


def tolerance(video_format: vs.VideoFormat) -> float:
    """One code value, or a few units in the last place of a float near 1."""
    if video_format.sample_type == vs.INTEGER:
        return 1.0
    return 4 * 2.0**-11 if video_format.bits_per_sample == 16 else 1e-5


@pytest.mark.parametrize("video_format", FORMATS, ids=lambda video_format: str(video_format.name))
def test_every_format_comes_back_as_it_went_in(video_format: vs.VideoFormat) -> None:
    clip = patterned_clip(
        video_format, {"_Matrix": 0 if video_format.color_family == vs.RGB else 1}, width=16, height=8
    )
    restored = restore_with(clip, EnlargingRestorer(scale=4))
    assert restored.format.id == clip.format.id
    assert (restored.width, restored.height) == (64, 32)
    for before, after in zip(planes(clip.get_frame(1)), planes(restored.get_frame(1)), strict=True):
        enlarged = before.repeat(4, axis=0).repeat(4, axis=1)
        assert np.abs(after - enlarged).max() <= tolerance(video_format)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 13), (17, 8), (31, 11)])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("format", [vs.RGB24, vs.GRAY16, vs.YUV444P10])
def test_odd_sizes_come_back_scaled(width: int, height: int, scale: int, format: int) -> None:
    video_format = core.get_video_format(format)
    clip = patterned_clip(
        video_format, {"_Matrix": 0 if video_format.color_family == vs.RGB else 1}, width=width, height=height
    )
    restored = restore_with(clip, EnlargingRestorer(scale=scale))
    assert (restored.width, restored.height) == (scale * width, scale * height)
    for before, after in zip(planes(clip.get_frame(0)), planes(restored.get_frame(0)), strict=True):
        assert np.abs(after - before.repeat(scale, axis=0).repeat(scale, axis=1)).max() <= 1


@pytest.mark.parametrize("location", range(6))
@pytest.mark.parametrize("matrix", [1, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("full", [0, 1])
def test_chroma_matrix_and_range_go_both_ways_by_the_tags(location: int, matrix: int, full: int) -> None:
    def draw(n: int, plane: int) -> NDArray[np.float64]:
        if plane == 0:
            return np.full((16, 24), 110.0)
        ramp = np.add.outer(3.0 * np.arange(8), 2.0 * np.arange(12))
        return np.asarray(90 + ramp if plane == 1 else 150 - ramp)

    tags: dict[str, object] = {"_Matrix": matrix, "_Range": full, "_ChromaLocation": location}
    clip = drawn_clip(draw, 1, width=24, height=16, format=vs.YUV420P8, props=lambda n: tags)
    after = restore_with(clip, EnlargingRestorer(scale=1)).get_frame(0)
    assert {name: after.props[name] for name in tags} == tags
    inside = (slice(2, -2), slice(2, -2))  # at the borders a ramp does not go on
    for expected, plane in zip(planes(clip.get_frame(0)), planes(after), strict=True):
        assert np.abs(plane - expected)[inside].max() <= 1


INTEGERS = [video_format for video_format in FORMATS if video_format.sample_type == vs.INTEGER]
ON_DEVICE = Transfers(torch.device("cpu"))
"""As if the CPU were a device: colours are converted in torch."""


def noise_of(video_format: vs.VideoFormat, props: dict[str, object], length: int = 2) -> vs.VideoNode:
    """Noise in all planes, 24x20 pixels."""
    rows, columns = 20 >> video_format.subsampling_h, 24 >> video_format.subsampling_w

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        noise = np.random.default_rng((n, plane)).random((rows, columns) if plane else (20, 24))
        return np.round(noise * (2**video_format.bits_per_sample - 1))

    return drawn_clip(draw, length, width=24, height=20, format=video_format.id, props=lambda n: props)


def assert_same_clips(one: vs.VideoNode, other: vs.VideoNode, part: float) -> None:
    """All properties alike; code values at most 1 apart, and at most a part of them."""
    assert one.format.id == other.format.id
    assert one.fps == other.fps
    for a, b in zip(one.frames(), other.frames(), strict=True):
        assert dict(a.props) == dict(b.props)
        for x, y in zip(planes(a), planes(b), strict=True):
            assert np.abs(x - y).max() <= 1
            assert (x != y).mean() <= part


@pytest.mark.parametrize("video_format", INTEGERS, ids=lambda video_format: str(video_format.name))
def test_colours_are_the_same_on_the_device_as_on_the_host(video_format: vs.VideoFormat) -> None:
    matrix = 0 if video_format.color_family == vs.RGB else 6
    tags: dict[str, object] = {"_Matrix": matrix, "_Range": 1, "_ChromaLocation": 2, "_Primaries": 6, "_Transfer": 6}
    clip = noise_of(video_format, {**tags, "Name": "x"})
    host, device = (restore_with(clip, EnlargingRestorer(scale=2), transfers=where) for where in (None, ON_DEVICE))
    assert_same_clips(device, host, 0.03 if video_format.bits_per_sample > 10 else 0.002)


@pytest.mark.parametrize("output_format", [vs.RGB24, vs.GRAY10, vs.YUV420P8, vs.YUV422P16])
@pytest.mark.parametrize("format", [vs.RGB48, vs.GRAY8, vs.YUV444P8, vs.YUV420P10])
def test_other_formats_too_are_the_same_from_the_device(format: int, output_format: int) -> None:
    tags: dict[str, object] = {"_Range": 1} if format == vs.RGB48 else {"_Matrix": 9, "_Range": 1, "_ChromaLocation": 1}
    clip = noise_of(core.get_video_format(format), tags)
    host, device = (
        restore_with(clip, EnlargingRestorer(scale=1), output_format=output_format, transfers=where)
        for where in (None, ON_DEVICE)
    )
    assert_same_clips(device, host, 0.03)


def test_tags_that_change_in_mid_clip_count_on_the_device_too() -> None:
    clip = core.std.Splice(
        [
            noise_of(core.get_video_format(vs.YUV420P8), {"_Matrix": m, "_Range": r, "_ChromaLocation": c}, 1)
            for m, r, c in ((1, 0, 0), (9, 1, 2), (8, 0, 1), (7, 1, 5))
        ]
    )
    host, device = (restore_with(clip, EnlargingRestorer(), segment=3, transfers=t) for t in (None, ON_DEVICE))
    assert_same_clips(device, host, 0.002)


@pytest.mark.parametrize(
    ("format", "output_format", "converts"),
    [
        (vs.YUV420P8, vs.YUV420P8, True),
        (vs.RGB24, vs.YUV422P16, True),
        (vs.YUV420P8, vs.RGBS, False),
        (vs.YUV444PS, vs.YUV444P8, False),
    ],
)
def test_the_device_converts_where_both_formats_are_of_integers(
    format: int, output_format: int, converts: bool
) -> None:
    source, target = core.get_video_format(format), core.get_video_format(output_format)
    assert isinstance(colour.colour_path(source, target, 16, 8, None), colour.HostColour)
    assert isinstance(colour.colour_path(source, target, 16, 8, ON_DEVICE), colour.DeviceColour) is converts


def test_tags_may_change_in_mid_clip() -> None:
    tags = [
        {"_Matrix": 1, "_Range": 0},
        {"_Matrix": 9, "_Range": 1},
        {"_Matrix": 1, "_Range": 1},
        {"_Matrix": 1, "_Range": 0},
    ]
    clip = drawn_clip(
        lambda n, plane: np.array([60.0, 100.0, 170.0][plane]),
        4,
        format=vs.YUV444P8,
        props=lambda n: dict(tags[n]),
    )
    for n, frame in enumerate(restore_with(clip, EnlargingRestorer(), segment=3).frames()):
        assert {name: frame.props[name] for name in tags[n]} == tags[n]
        assert [plane[0, 0] for plane in planes(frame)] == pytest.approx([60, 100, 170], abs=1)


def test_what_lies_outside_the_nominal_range_survives_in_floats() -> None:
    clip = drawn_clip(lambda n, plane: np.array([-0.25, 0.5, 1.75][plane]), 1, format=vs.RGBS)
    frame = restore_with(clip, EnlargingRestorer()).get_frame(0)
    assert [plane[0, 0] for plane in planes(frame)] == [-0.25, 0.5, 1.75]


def test_what_lies_outside_the_nominal_range_is_clamped_in_integers() -> None:
    clip = drawn_clip(lambda n, plane: np.array([-0.25, 0.5, 1.75][plane]), 1, format=vs.RGBS)
    frame = restore_with(clip, EnlargingRestorer(), output_format=vs.RGB48).get_frame(0)
    assert [plane[0, 0] for plane in planes(frame)] == pytest.approx([0, 32768, 65535], abs=1)


@pytest.mark.parametrize(
    ("format", "output_format", "tags"),
    [
        (vs.YUV420P8, vs.RGB48, {"_Matrix": 0, "_Range": 1}),
        (vs.YUV420P8, vs.RGBS, {"_Matrix": 0, "_Range": 1}),
        (vs.YUV420P8, vs.YUV444P16, {"_Matrix": 1, "_Range": 0}),
        (vs.YUV444P10, vs.GRAY8, {"_Matrix": 1, "_Range": 0}),
        (vs.GRAY8, vs.RGB24, {"_Matrix": 0, "_Range": 1}),
        (vs.GRAY8, vs.YUV420P10, {"_Matrix": 1, "_Range": 0}),
    ],
)
def test_the_output_format_can_be_another(format: int, output_format: int, tags: dict[str, int]) -> None:
    clip = core.std.BlankClip(width=16, height=8, format=format, length=2).std.SetFrameProps(_Matrix=1)
    restored = restore_with(clip, EnlargingRestorer(), output_format=output_format)
    assert restored.format.id == output_format
    frame = restored.get_frame(1)
    assert frame.format.id == output_format
    assert {name: frame.props[name] for name in tags} == tags
    assert ("_ChromaLocation" in frame.props) == bool(frame.format.subsampling_w)


def test_rgb_becomes_yuv_with_a_matrix_for_the_restored_size() -> None:
    clip = core.std.BlankClip(width=320, height=180, format=vs.RGB24, color=[200, 60, 20], length=1)
    frame = restore_with(clip, EnlargingRestorer(), output_format=vs.YUV420P8).get_frame(0)
    assert (frame.props["_Matrix"], frame.props["_Range"]) == (1, 0)
    expected = clip.resize.Point(1280, 720, format=vs.YUV420P8, matrix=1).get_frame(0)
    for plane, reference in zip(planes(frame), planes(expected), strict=True):
        assert np.abs(plane - reference).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "primaries", "matrix"),
    [
        (720, 480, 2, vs.MATRIX_ST170_M),
        (720, 576, 2, vs.MATRIX_BT470_BG),
        (352, 288, 2, vs.MATRIX_BT470_BG),
        (1280, 536, 2, vs.MATRIX_BT709),
        (1920, 1080, 1, vs.MATRIX_BT709),
        (3840, 2160, 9, vs.MATRIX_BT2020_NCL),
    ],
)
def test_a_matrix_is_guessed_as_players_do(width: int, height: int, primaries: int, matrix: int) -> None:
    assert colour.guess_matrix(width, height, primaries) == matrix


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("vsfmanet")]


@pytest.mark.parametrize("props", [{}, {"_Matrix": 2}])
def test_a_guessed_matrix_is_warned_of_once_and_tagged(props: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    clip = core.std.BlankClip(width=16, height=8, format=vs.YUV420P8, length=5).std.SetFrameProps(**props)
    for frame in restore_with(clip, EnlargingRestorer()).frames():
        assert frame.props["_Matrix"] == vs.MATRIX_ST170_M
    assert [warning.split(";")[0] for warning in warnings_of(caplog)] == ["the clip has no matrix tag"]


@pytest.mark.parametrize("format", [vs.GRAY8, vs.RGB24])
@pytest.mark.parametrize("props", [{}, {"_Matrix": 0}])
def test_grey_and_rgb_need_no_guess(format: int, props: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    clip = core.std.BlankClip(
        width=16, height=8, format=format, length=1, color=[77] * (1 if format == vs.GRAY8 else 3)
    )
    frame = restore_with(clip.std.SetFrameProps(**props), EnlargingRestorer()).get_frame(0)
    assert {plane[0, 0] for plane in planes(frame)} == {77}
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_passes_with_its_tags_and_a_warning(transfer: int, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tags = {"_Matrix": 9, "_Transfer": transfer, "_Primaries": 9, "_Range": 0}
    clip = core.std.BlankClip(width=16, height=8, format=vs.YUV420P10, length=3, color=[500, 400, 600])
    for frame in restore_with(clip.std.SetFrameProps(**tags), EnlargingRestorer()).frames():
        assert {key: frame.props[key] for key in tags} == tags
        assert [plane[0, 0] for plane in planes(frame)] == pytest.approx([500, 400, 600], abs=1)
    [warning] = warnings_of(caplog)
    assert warning.startswith(f"the clip's transfer is {name}; ")


@pytest.mark.parametrize("name", ["_Transfer", "_Primaries"])
@pytest.mark.parametrize("value", [0, 3, 255])
def test_reserved_tags_do_not_stop_a_clip(name: str, value: int) -> None:
    clip = core.std.BlankClip(width=16, height=8, format=vs.YUV420P8, length=1).std.SetFrameProps(_Matrix=1)
    frame = restore_with(clip.std.SetFrameProps(**{name: value}), EnlargingRestorer()).get_frame(0)
    assert frame.props.get(name, 2) == 2


@pytest.mark.parametrize(
    ("props", "message"),
    [
        ({"_Matrix": 10}, "_Matrix must be one of 1, 4, 5, 6, 7, 8, 9, got 10 at frame 1"),
        ({"_Matrix": 0}, "_Matrix must be one of 1, 4, 5, 6, 7, 8, 9, got 0 at frame 1"),
        ({"_Matrix": "709"}, "_Matrix must be one whole number, got '709' at frame 1"),
        ({"_Matrix": 1, "_Range": 2}, "_Range must be one of 0, 1, got 2 at frame 1"),
        ({"_Matrix": 1, "_ChromaLocation": 6}, "_ChromaLocation must be one of 0, 1, 2, 3, 4, 5, got 6 at frame 1"),
        (
            {"_Matrix": 1, "_FieldBased": 2},
            "progressive frames are needed, got an interlaced one .frame 1, _FieldBased=2.; deint",
        ),
    ],
)
def test_a_frame_that_cannot_be_taken_is_named(props: dict[str, object], message: str) -> None:
    good = core.std.BlankClip(width=16, height=8, format=vs.YUV420P8, length=1).std.SetFrameProps(_Matrix=1)
    bad = core.std.BlankClip(width=16, height=8, format=vs.YUV420P8, length=1).std.SetFrameProps(**props)
    restored = restore_with(
        good + bad + good, EnlargingRestorer(reach=Reach(before=0, after=0)), segment=1, sc_threshold=0
    )
    restored.get_frame(0)
    with pytest.raises(vs.Error, match=f"FormatError: {message}"):
        restored.get_frame(1)
    restored.get_frame(2)


def test_planes_with_padded_rows_are_copied_whole() -> None:
    rgb = torch.rand(3, 5, 70)
    frame = write_rgb(rgb)
    assert frame.get_stride(0) > 70 * 4
    assert torch.equal(read_rgb(frame, 0), rgb)


def test_a_tensor_in_any_memory_layout_is_written_whole() -> None:
    rgb = torch.rand(3, 8, 10).flip(0).transpose(1, 2)
    assert torch.equal(read_rgb(write_rgb(rgb), 0), rgb)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_sample_is_noticed(bad: float) -> None:
    rgb = torch.rand(3, 20, 30)
    assert is_finite(rgb)
    rgb[1, 7, 9] = bad
    assert not is_finite(rgb)


def test_eight_bit_results_are_dithered_and_still_in_time() -> None:
    clip = core.std.BlankClip(width=32, height=32, format=vs.RGBS, color=[100.25 / 255] * 3, length=4)
    restored = restore_with(clip, EnlargingRestorer(scale=1), output_format=vs.RGB24)
    first, *rest = [planes(frame) for frame in restored.frames()]
    assert first[0].mean() == pytest.approx(100.25, abs=0.05)
    assert set(np.unique(first[0])) == {100, 101}
    assert all(np.array_equal(first, frame) for frame in rest)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (
            core.std.Splice([noise_clip(1), noise_clip(1, width=32)], mismatch=True),
            "a clip of constant format and size is needed, got a variable one; convert all frames to one",
        ),
        (
            core.std.Splice([noise_clip(1), noise_clip(1, format=vs.GRAYS)], mismatch=True),
            "a clip of constant format and size is needed, got a variable one; convert all frames to one",
        ),
        (
            core.std.BlankClip(width=8, height=7, format=vs.RGB24),
            "a clip of at least 8x8 pixels is needed, got 8x7; add",
        ),
        (
            core.std.BlankClip(width=7, height=8, format=vs.RGB24),
            "a clip of at least 8x8 pixels is needed, got 7x8; add",
        ),
        (
            core.std.BlankClip(width=8, height=8, format=vs.GRAY32),
            "YUV, RGB or Gray of 8 to 16 bit .* needed, got Gray32; convert",
        ),
        (
            core.std.BlankClip(width=8, height=8, format=vs.RGB24, length=2**31 - 1),
            "a clip of at most 2147479552 frames is needed, got 2147483647; trim it",
        ),
    ],
)
def test_a_clip_that_cannot_be_taken_is_refused_at_once(clip: vs.VideoNode, message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}"):
        colour.check_clip(clip)


def test_a_clip_in_gpu_memory_is_downloaded_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Download:
        @staticmethod
        def GPUDownload() -> str:
            return "in host memory"

    class GpuClip:
        width, height, num_frames = 16, 8, 3
        format = core.get_video_format(vs.RGBS)
        gpu_resident = True
        std = Download

    assert colour.check_clip(GpuClip()) == "in host memory"
    assert caplog.messages == [
        "the clip is in GPU memory; vsfmanet downloads each frame, and its result is in host memory"
    ]


@pytest.mark.parametrize(
    ("output_format", "message"),
    [
        ("YUV420P8", "output_format must be a VapourSynth format such as vs.YUV444P16, got 'YUV420P8'; pass a preset"),
        (5, "output_format must be a VapourSynth format such as vs.YUV444P16, got 5; pass a preset"),
        (0, "output_format must be a VapourSynth format such as vs.YUV444P16, got 0; pass a preset"),
        (-1, "output_format must be a VapourSynth format such as vs.YUV444P16, got -1; pass a preset"),
        (vs.GRAY32, "YUV, RGB or Gray of 8 to 16 bit .* needed, got Gray32; convert"),
        (vs.YUV420P8, "output_format YUV420P8 needs a size that its chroma subsampling divides, got 9x11; choose"),
    ],
)
def test_an_output_format_that_cannot_be_made_is_refused(output_format: int, message: str) -> None:
    with pytest.raises(FormatError, match=f"^{message}"):
        restore_with(noise_clip(1, width=9, height=11), EnlargingRestorer(scale=1), output_format=output_format)
