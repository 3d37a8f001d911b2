"""Blur measured in clips: the map of blur extents, and exposures by sight. With VapourSynth, for use in any script."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet import frames
from vsfmanet.devices import Worker, pick_device
from vsfmanet.errors import FormatError, VsfmanetError
from vsfmanet.exposures.props import SIGHT, SIGHT_CONFIDENCE
from vsfmanet.exposures.shutter import REACH, Reading, Step, read_exposure, settle
from vsfmanet.filter import SCENE_START, shifted
from vsfmanet.networks.mmpnet import BlurAnalyser
from vsfmanet.ops.matching import match_frames
from vsfmanet.settings import Device
from vsfmanet.weights import load_analyser, load_reader

BLURRED_ABOVE = 1.0
"""Extent in pixels above which a pixel counts in `FMANetBlurRatio`."""

READ_WIDTH = 960
"""Frames wider than this are reduced to it before their motion is measured."""

_STEP = "FMANetStep"
"""On motions: whether the next frame belongs to the same scene."""

_KEPT = 2 * REACH + 8
"""Readings and motions kept, so that none is computed twice while frames are asked for in order."""


def blur_map(clip: vs.VideoNode, *, device: Device = "auto", device_index: int = 0) -> vs.VideoNode:
    """Measure how far things move within each frame while the shutter is open, pixel by pixel.

    The network sees single frames, and so cannot tell the blur of motion from that of a lens in every case. Where a
    picture is flat it can only guess. About 1 GB of memory is needed for a frame of 1920x1080.

    Args:
        clip: as for `restore`.
        device: "auto", "cpu" or "cuda".
        device_index: which of several devices.

    Returns:
        A GRAYS clip of the same size and length: blur extent in pixels, 0 to 64, not scaled. Beside their own
        properties (without those of colour) its frames carry `FMANetBlurMean` and `FMANetBlurP95`, mean and 95th
        percentile of the extent in pixels, and `FMANetBlurRatio`, the part of the picture with more than 1 pixel.

    Raises:
        vs.Error: an argument or the clip cannot be taken, or the weights of the analyser are missing.
    """
    try:
        if not isinstance(clip, vs.VideoNode):
            raise FormatError(f"clip must be a video clip, got {type(clip).__name__}; pass what a source returns")
        source = frames.check_clip(clip)
        worker = Worker(pick_device(device, device_index))
        analyser = worker.run(lambda: load_analyser().to(worker.device).to(memory_format=torch.channels_last))
    except VsfmanetError as error:
        raise vs.Error(f"blur_map: {str(error).removeprefix('restore: ')}") from error

    tagged = frames.tag_colour(source)
    rgb = frames.to_rgb(tagged)
    blank = source.std.BlankClip(format=vs.GRAYS, keep=True)

    def measure(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        picture = picture_of(f[1], n)
        extent = worker.run(lambda: _extent(analyser, picture.to(worker.device)))[0, 0].numpy()
        frame = f[0].copy()
        np.copyto(np.asarray(frame[0]), extent)
        # Colour says nothing of lengths, and a matrix of RGB would make resize refuse the map.
        left_out = (*frames.COLOUR_PROPS, "_Transfer", "_Primaries")
        frame.props.update({name: f[2].props[name] for name in f[2].props if name not in left_out})
        frame.props.update(
            FMANetBlurMean=float(extent.mean()),
            FMANetBlurP95=float(np.percentile(extent, 95)),
            FMANetBlurRatio=float((extent > BLURRED_ABOVE).mean()),
        )
        return frame

    measured = blank.std.ModifyFrame([blank, rgb, source], measure)
    weakref.finalize(measure, worker.close)
    return measured


def with_exposures_by_sight(marked: vs.VideoNode, *, device: Device, device_index: int) -> vs.VideoNode:
    """The clip whose frames carry, where it can be seen, the exposure that blur and motion show.

    Properties `SIGHT` and `SIGHT_CONFIDENCE` are written, or taken away where nothing can be seen. What frame n gets
    depends on frames n-12 ... n+12 of its scene alone.

    Args:
        marked: clip from `frames.tag_colour` whose frames say by `SCENE_START` where scenes start.
        device: "auto", "cpu" or "cuda".
        device_index: which of several devices.

    Raises:
        WeightsError: the weights of the reader are missing.
        DeviceError: there is no such device.
    """
    worker, reader = Worker(pick_device(device, device_index)), load_reader()
    small = reduced(marked)
    width, height = small.width, small.height
    following = shifted(small, 1)

    flows = small.std.BlankClip(format=vs.GRAYS, height=4 * height, keep=True)

    def move(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """Flow from frame n to the next of its scene, and back from there, as one plane."""
        frame = f[0].copy()
        frame.props[_STEP] = int(n + 1 < marked.num_frames and not starts_scene(f[2]))
        if frame.props[_STEP]:
            own, other = picture_of(f[1], n), picture_of(f[2], n + 1)
            own, other = own.to(worker.device), other.to(worker.device)
            both = worker.run(lambda: motion(own, other))
            np.copyto(np.asarray(frame[0]), both.reshape(4 * height, width).numpy())
        return frame

    motions = flows.std.ModifyFrame([flows, small, following], move)
    motions.std.SetVideoCache(mode=1, fixedsize=1, maxsize=_KEPT)

    def read(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        """What frame n alone shows, as properties."""
        two_before, one_before, own, one_after = f[2:]
        after = _steps([own, one_after])
        before = [Step(there=step.back, back=step.there) for step in _steps([one_before, two_before][:n])]
        reading = Reading(value=1.0, confidence=0.0)
        if after or before:
            picture = picture_of(f[1], n)
            reading = worker.run(lambda: read_exposure(picture, after, before, reader))
        frame = f[0].copy()
        frame.props[SCENE_START] = int(n > 0 and starts_scene(f[1]))
        frame.props.update({SIGHT: reading.value, SIGHT_CONFIDENCE: reading.confidence})
        return frame

    dot = small.std.BlankClip(width=1, height=1, format=vs.GRAY8, keep=True)
    readings = dot.std.ModifyFrame([dot, small, *(shifted(motions, offset) for offset in (-2, -1, 0, 1))], read)
    readings.std.SetVideoCache(mode=1, fixedsize=1, maxsize=_KEPT)

    def tell(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        for name in (SIGHT, SIGHT_CONFIDENCE):
            frame.props.pop(name, None)
        believed = settle(_scene(n, f[1:], marked.num_frames), REACH)
        if believed is not None:
            frame.props.update({SIGHT: believed.value, SIGHT_CONFIDENCE: believed.confidence})
        return frame

    offsets = range(-REACH, REACH + 1)
    told = marked.std.ModifyFrame([marked, *(shifted(readings, offset) for offset in offsets)], tell)
    weakref.finalize(move, worker.close)
    return told


def _scene(n: int, around: list[vs.VideoFrame], num_frames: int) -> list[Reading | None]:
    """Readings of frames n-`REACH` ... n+`REACH`; None outside the scene of frame n."""
    inside = scene_around(n, around, num_frames)
    return [
        Reading(value=float(frame.props[SIGHT]), confidence=float(frame.props[SIGHT_CONFIDENCE]))
        if k in inside
        else None
        for k, frame in enumerate(around, start=n - REACH)
    ]


def scene_around(n: int, around: Sequence[vs.VideoFrame], num_frames: int) -> range:
    """Frames of the scene of frame n, as far as `around` goes: n in its middle, to each side as many."""
    reach = len(around) // 2
    first = last = n
    while first > max(0, n - reach) and not starts_scene(around[first - n + reach]):
        first -= 1
    while last < min(num_frames - 1, n + reach) and not starts_scene(around[last + 1 - n + reach]):
        last += 1
    return range(first, last + 1)


def reduced(marked: vs.VideoNode) -> vs.VideoNode:
    """A clip from `frames.tag_colour` as RGBS and at most `READ_WIDTH` wide, for its motion."""
    reduction = max(1.0, marked.width / READ_WIDTH)
    width, height = (max(frames.MIN_SIDE, round(side / reduction)) for side in (marked.width, marked.height))
    small = marked.resize.Bicubic(width, height, format=vs.RGBS)
    small.std.SetVideoCache(mode=1, fixedsize=1, maxsize=4)
    return small


@torch.inference_mode()
def _extent(analyser: BlurAnalyser, picture: Tensor) -> Tensor:
    """Blur extent in pixels (1, 1, H, W), on the CPU, of a picture (1, 3, H, W)."""
    return analyser.extent(picture.contiguous(memory_format=torch.channels_last)).cpu()


@torch.inference_mode()
def motion(first: Tensor, second: Tensor) -> Tensor:
    """Flow there and back, (2, 2, H, W) on the CPU, between two pictures (1, 3, H, W)."""
    return match_frames(torch.cat([first, second]), torch.cat([second, first])).cpu()


def picture_of(frame: vs.VideoFrame, n: int) -> Tensor:
    """An RGBS frame as (1, 3, H, W) in [0, 1]."""
    rgb = frames.read_frame(frame)
    if not frames.is_finite(rgb):
        raise FormatError(f"finite samples are needed, got NaN or infinity in frame {n} of the clip; mend the source")
    np.clip(rgb, 0, 1, out=rgb.numpy())  # by numpy, see `Worker`
    return rgb[None]


def _steps(motions: list[vs.VideoFrame]) -> list[Step]:
    """Motions in the order in which they lead away from a frame, up to the end of its scene."""
    steps = []
    for frame in motions:
        if not frame.props[_STEP]:
            break
        plane = torch.from_numpy(np.array(frame[0]))
        there, back = plane.view(2, 1, 2, plane.shape[0] // 4, plane.shape[1])
        steps.append(Step(there=there, back=back))
    return steps


def starts_scene(frame: vs.VideoFrame) -> bool:
    """Whether a frame of a marked clip starts a scene."""
    return bool(frame.props.get(SCENE_START, 0))
