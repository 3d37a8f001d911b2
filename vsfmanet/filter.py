"""The VapourSynth filter, in packed segments: a frame's pixels depend on the clip, the arguments and its number alone.

Frame k of one node, the host, is segment k. VapourSynth gathers the segment's window through strided clips, one for
each place in the window, and the restored frames travel as properties of the host's frame. No callback asks for a
frame. Building the filter asks for none either: mpv and FFmpeg have none to give while a script is being loaded.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet import exposures, frames, scene
from vsfmanet.errors import ConfigError, FormatError, IncompleteError, VsfmanetError
from vsfmanet.exposures import Exposures, KnownExposure
from vsfmanet.exposures.props import SIGHT, SIGHT_CONFIDENCE
from vsfmanet.segments import SegmentGrid, default_length
from vsfmanet.settings import (
    DEFAULT_MODEL,
    Backend,
    Device,
    ExposureArgument,
    Precision,
    RestoreSettings,
    device_indices,
)

if TYPE_CHECKING:
    from vsfmanet.engines.cuda import Transfers
    from vsfmanet.restorer import Encode, FrameRestorer
    from vsfmanet.streams import Restored

SCENE_START = "FMANetSceneStart"
_RESTORED = "FMANetRestored"
_WINDOW_PROPS = (SCENE_START, SIGHT, SIGHT_CONFIDENCE)
"""What is written to the frames of windows, and is not for the restored ones."""
_READ_AHEAD = 16
"""Source frames kept beyond a window, so that none is decoded twice while later windows are being read."""
_READ_AHEAD_TO_SKIP = 96
"""The same where sharp frames are passed through: that is decided when a frame is asked for, long before its window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestoringDevice:
    """A restorer, and what belongs to its device."""

    restorer: FrameRestorer
    """What does the work; closed when the restored clip is released."""
    exact: Callable[[], FrameRestorer] | None = None
    """Makes one of the same reach in fp32, for frames that are not finite without; None if it is that already."""
    transfers: Transfers | None = None
    """Those of the restorer, for colours to be converted on its device where they can; None for the host."""


def restore(
    clip: vs.VideoNode,
    *,
    model: str = DEFAULT_MODEL,
    exposure: ExposureArgument = "auto",
    source_path: str | os.PathLike[str] | None = None,
    device: Device = "auto",
    device_index: int | Sequence[int] = 0,
    precision: Precision = "auto",
    backend: Backend = "auto",
    tile: tuple[int, int] | None = None,
    segment: int | None = None,
    sc_threshold: float | None = None,
    output_format: int | vs.VideoFormat | None = None,
    skip: bool = False,
) -> vs.VideoNode:
    """Enlarge and deblur a clip with FMA-Net++.

    Args:
        clip: progressive YUV, RGB or Gray of constant format and size, 8 to 16 bit integer or half or single float, at
            least 8x8 pixels. The result has its format, length and properties.
        model: name of the network and its weights; the number after `x` is the scale.
        exposure: open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter. A number is that of
            all frames. A path ending in .csv or .json is a sidecar file: a table with the columns `frame` and
            `exposure`, or an object `{"exposure": [0.5, 0.48, null]}`, with every frame of the clip. A function takes a
            frame's number and properties, on which alone its answer must depend. "auto", and frames for which file or
            function say nothing (an empty cell, null, None), take the frame's property `FMANetExposure`, else
            `ExposureTime` (in seconds) over its duration, else the camera's telemetry, else what the network sees.
            "estimate" is the same with one source more before the network: the smear along the motion between frames,
            where it can be seen clearly, or could within 8 frames of the same scene.
        source_path: file that the clip shows, all of it and in order: the shutter times that GoPro, Sony, DJI and
            Insta360 cameras record in it, or in an .SRT file beside it, are used. Where frames are to be cut away, use
            `exposure` before the cut.
        device: "auto", "cpu" or "cuda".
        device_index: which of several devices. Several, such as (0, 1), take segments in turn, with the same pixels;
            frames have to be asked for that far ahead (`vspipe --requests 64`). Exposures are estimated on the first.
        precision: "auto", "fp32", "bf16" or "fp16".
        backend: "auto" (torch), "torch", "onnx" (onnxruntime on the CPU, fp32) or "tensorrt" (unverified). The last two
            build the network for the clip's size when the first frame is asked for, and keep it on disk.
        tile: width and height in input pixels, at least 16, of the parts in which frames are computed, to spare memory.
            The result is the same up to rounding: parts overlap as far as they depend on each other, and there is
            nothing to blend. None means whole frames, and parts from where memory runs out, with a warning.
        segment: frames that one run of the network returns, 1 to 64; None for 8 (16 on several devices), fewer where
            they are large. No effect on pixels.
        sc_threshold: where scenes start. None trusts `_SceneChangePrev` and `_SceneChangeNext`, and detects where
            neither is set. A number in (0, 1] detects with this mean absolute difference of luma. 0 means nowhere.
        output_format: format of the result, such as `vs.YUV420P10`.
        skip: for models of scale 1: pass frames through that are sharp already, because in a row of 8 or more hardly
            anything moved while the shutter was open (half a pixel, by exposure and motion). They cost little, and the
            others are as without. All frames carry `FMANetSkipped`, 0 or 1; those that are passed carry no other
            property of the network.

    Returns:
        The restored clip. Beside their own properties its frames carry `FMANetModel`, `FMANetExposure`,
        `FMANetExposureSource` ("argument", "prop", "telemetry", "estimate" or "network"), `FMANetExposureConfidence` (0
        to 1; below 0.5 the estimate is that of a frame near), and,
        as the first and last frame that the pixels depend on, `FMANetWindowStart` and `FMANetWindowEnd`.

    Raises:
        vs.Error: an argument or the clip cannot be taken.
    """
    try:
        if not isinstance(clip, vs.VideoNode):
            raise FormatError(f"clip must be a video clip, got {type(clip).__name__}; pass what a source returns")
        settings = RestoreSettings(
            model=model,
            exposure=exposure,
            source_path=source_path,
            device=device,
            device_index=device_indices(device_index),
            precision=precision,
            backend=backend,
            tile=tile,
            segment=segment,
            sc_threshold=sc_threshold,
            output_format=None if output_format is None else frames.named_format(output_format).id,
            skip=skip,
        )
        source = frames.check_clip(clip)

        from vsfmanet.restorer import Restorer  # with the networks and their weights

        def in_precision(index: int, precision: Precision, backend: Backend) -> Restorer:
            return Restorer(model, device=device, device_index=index, precision=precision, backend=backend, tile=tile)

        with ExitStack() as opened:
            devices = []
            for index in settings.device_indices:
                restorer = in_precision(index, precision, backend)
                opened.callback(restorer.close)
                exact = None if restorer.dtype == torch.float32 else partial(in_precision, index, "fp32", "torch")
                transfers = restorer.transfers if restorer.device.type == "cuda" else None
                devices.append(RestoringDevice(restorer=restorer, exact=exact, transfers=transfers))
            # Its name of the model, because the argument may be the path of a file.
            restored = _restore_with(source, devices, replace(settings, model=restorer.name))
            opened.pop_all()
            return restored
    except VsfmanetError as error:
        raise vs.Error(f"restore: {str(error).removeprefix('restore: ')}") from error


def exposure(
    clip: vs.VideoNode,
    *,
    exposure: ExposureArgument = "auto",
    source_path: str | os.PathLike[str] | None = None,
    device: Device = "auto",
    device_index: int = 0,
) -> vs.VideoNode:
    """Write each frame's exposure into its properties, as far as anything but the network knows it.

    The properties stay with their frames where a clip is cut, spliced or put into another order, and `restore` reads
    them. So this is for the clip as its source returns it, before any of that.

    Args:
        clip: any clip; for "estimate" one that `restore` takes.
        exposure: as for `restore`.
        source_path: as for `restore`.
        device: where to estimate, "auto", "cpu" or "cuda".
        device_index: which of several devices.

    Returns:
        The clip. Frames whose exposure is known carry `FMANetExposure` in (0, 1], `FMANetExposureSource` ("argument",
        "prop", "telemetry" or "estimate") and `FMANetExposureConfidence`, 1 or that of the estimate; the others are as
        they were.

    Raises:
        vs.Error: an argument cannot be taken.
    """
    try:
        if not isinstance(clip, vs.VideoNode):
            raise FormatError(f"clip must be a video clip, got {type(clip).__name__}; pass what a source returns")
        known_exposures = _exposures(clip, exposure, source_path)
        looked_at = clip
        if known_exposures.estimates:
            marked = _mark_scenes(frames.tag_colour(frames.check_clip(clip)), None)
            looked_at = _with_estimates(marked, known_exposures, device, device_index)
    except VsfmanetError as error:
        raise vs.Error(f"exposure: {str(error).removeprefix('restore: ')}") from error

    def tag(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        known = known_exposures.resolve(n, f[1].props)
        if known is None:
            return f[0]
        frame = f[0].copy()
        frame.props.update(_exposure_props(known.value, known.source, confidence=known.confidence))
        return frame

    return clip.std.ModifyFrame([clip, looked_at], tag)


def _with_estimates(marked: vs.VideoNode, known: Exposures, device: Device, device_index: int) -> vs.VideoNode:
    """The clip of `_mark_scenes`, where nothing else knows the exposure with what blur and motion show of it.

    Raises:
        WeightsError: the weights of the blur analyser are missing.
        DeviceError: there is no such device.
    """
    from vsfmanet.blur import with_exposures_by_sight  # with the blur analyser

    seen = with_exposures_by_sight(marked, device=device, device_index=device_index)

    def ask(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return seen if known.resolve(n, f.props) is None else marked

    return marked.std.FrameEval(ask, prop_src=[marked])


def _exposures(clip: vs.VideoNode, argument: ExposureArgument, source_path: str | os.PathLike[str] | None) -> Exposures:
    """What can know the exposures of a clip; telemetry that is left out is told.

    Raises:
        ExposureError: the argument, its file or the path cannot be used.
    """
    gathered = exposures.gather(
        argument,
        num_frames=clip.num_frames,
        nominal_interval=1 / clip.fps if clip.fps else None,
        source_path=source_path,
    )
    if gathered.notice is not None:
        vs.core.log_message(vs.MESSAGE_TYPE_WARNING, gathered.notice)
    return gathered


def _exposure_props(value: float, source: str, *, confidence: float) -> dict[str, str | float]:
    """The properties that tell a frame's exposure in (0, 1], who gave it, and the confidence in it, in [0, 1]."""
    return {
        "FMANetExposure": float(value),
        "FMANetExposureSource": source,
        "FMANetExposureConfidence": float(confidence),
    }


def _restore_with(clip: vs.VideoNode, devices: Sequence[RestoringDevice], settings: RestoreSettings) -> vs.VideoNode:
    """`restore` with any restorers of one model, which are closed when the returned clip is released.

    Args:
        clip: a clip that `frames.check_clip` has passed.
        devices: what does the work, in turn.
        settings: what the caller asked for.

    Raises:
        FormatError: the output format cannot be made.
        ExposureError: the file of exposures or the source cannot be used.
        WeightsError: exposures are to be estimated without the weights of the blur analyser.
        ConfigError: frames are to be passed through beside frames of another size.
    """
    scale, reach = devices[0].restorer.scale, devices[0].restorer.reach
    if settings.skip and scale != 1:
        raise ConfigError(f"skip is for models of scale 1, got {settings.model} of scale {scale}; leave it out")
    width, height = clip.width * scale, clip.height * scale
    target = clip.format if settings.output_format is None else frames.named_format(settings.output_format)
    frames.check_subsampling(target, width, height)
    grid = SegmentGrid(
        num_frames=clip.num_frames,
        length=settings.segment or default_length(width, height, devices=len(devices)),
        reach=reach,
    )
    tagged = frames.tag_colour(clip)
    at_once = grid.slots + (len(devices) - 1) * grid.length
    read_ahead = _READ_AHEAD_TO_SKIP if settings.skip else _READ_AHEAD
    tagged.std.SetVideoCache(mode=1, fixedsize=1, maxsize=at_once + read_ahead)
    source = _mark_scenes(tagged, settings.sc_threshold)
    known = _exposures(clip, settings.exposure, settings.source_path)
    if known.estimates:
        source = _with_estimates(source, known, settings.device, settings.device_indices[0])
    hosts = []
    for place, device in enumerate(devices):
        colour = frames.colour_path(clip.format, target, width, height, device.transfers)
        run = _SegmentRun(device, grid, settings.model, known, colour)
        if place < grid.count:  # else the clip is too short for this device, and its run closes the restorer at once
            hosts.append(_host(colour.readable(source), grid, run, place, len(devices)))
    host = vs.core.std.Interleave(hosts, modify_duration=False) if len(hosts) > 1 else hosts[0]
    like = clip.std.BlankClip(format=colour.written.id, width=width, height=height, keep=True)
    restored = colour.finished(_unpacked(host, grid, like))
    if not settings.skip:
        return restored

    from vsfmanet.skipping import pass_sharp_frames  # with the estimate of motion

    same = target.id == tagged.format.id
    passed = tagged if same else frames.from_rgb(frames.to_rgb(tagged), tagged.format, target)
    return pass_sharp_frames(
        restored, passed, source, known, device=settings.device, device_index=settings.device_indices[0]
    )


def _mark_scenes(clip: vs.VideoNode, threshold: float | None) -> vs.VideoNode:
    """A clip from `frames.tag_colour` whose frames say in `FMANetSceneStart` whether they start a scene.

    For a threshold of 0 nothing is said.

    Every frame is marked before windows are formed, because the detector looks further than a window may.
    """
    if threshold == 0:
        return clip
    thumbnail = clip.resize.Bilinear(scene.THUMBNAIL_WIDTH, scene.THUMBNAIL_HEIGHT, format=vs.GRAYS, matrix=1)
    offsets = range(-scene.REACH_BACK, scene.REACH_AHEAD + 1)

    def starts_scene(n: int, thumbnails: Sequence[vs.VideoFrame]) -> bool:
        if n == 0:
            return False
        if threshold is None:
            own, previous = thumbnails[offsets.index(0)], thumbnails[offsets.index(-1)]
            tagged = scene.tagged_start(own.props, previous.props)
            if tagged is not None:
                return tagged
        inside = [0 <= n + offset < clip.num_frames for offset in offsets]
        around = [np.asarray(frame[0]) if here else None for frame, here in zip(thumbnails, inside, strict=True)]
        return scene.detected_start(around, scene.DEFAULT_THRESHOLD if threshold is None else threshold)

    def mark(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[0].copy()
        frame.props[SCENE_START] = int(starts_scene(n, f[1:]))
        return frame

    return clip.std.ModifyFrame([clip, *(shifted(thumbnail, offset) for offset in offsets)], mark)


def shifted(clip: vs.VideoNode, offset: int) -> vs.VideoNode:
    """A clip of the same length whose frame n is frame n + `offset`, or the nearest that exists."""
    if offset == 0:
        return clip
    if offset < 0:
        return clip.std.DuplicateFrames([0] * -offset)[: clip.num_frames]
    return clip.std.DuplicateFrames([clip.num_frames - 1] * offset)[offset:]


def _host(source: vs.VideoNode, grid: SegmentGrid, run: _SegmentRun, place: int, stride: int) -> vs.VideoNode:
    """The clip whose frame k holds the restored frames of segment `place` + k * `stride`."""
    count = len(range(place, grid.count, stride))
    before, after = grid.padding
    edges = [0] * before + [grid.num_frames - 1] * after
    padded = source.std.DuplicateFrames(edges) if edges else source

    def slot(i: int) -> vs.VideoNode:
        frames_from_i = padded[place * grid.length + i :]
        if grid.length * stride > 1:  # not a slice: it would multiply the durations that exposure is set against
            frames_from_i = frames_from_i.std.SelectEvery(grid.length * stride, 0, modify_duration=False)
        return frames_from_i[:count]

    def packed(n: int, f: vs.VideoFrame | list[vs.VideoFrame]) -> vs.VideoFrame:
        return run.packed(place + n * stride, f if isinstance(f, list) else [f])

    blank = vs.core.std.BlankClip(width=1, height=1, format=vs.GRAY8, length=count, keep=True)
    host = blank.std.ModifyFrame([slot(i) for i in range(grid.slots)], packed)
    host.std.SetVideoCache(mode=1, fixedsize=1, maxsize=3)
    return host


def _unpacked(host: vs.VideoNode, grid: SegmentGrid, like: vs.VideoNode) -> vs.VideoNode:
    """The restored frames of all segments in a row, as a clip of the length, rate, format and size of `like`.

    `PropToClip` would do the same, but asks for a frame, and so for a whole window, while the script is being loaded.
    """

    def unpack(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        return f.props[f"{_RESTORED}{n % grid.length}"]

    spread = vs.core.std.Interleave([host] * grid.length, modify_duration=False)[: grid.num_frames]
    restored = like.std.ModifyFrame(spread, unpack)
    restored.std.SetVideoCache(mode=0)  # the host's cache holds the same frames
    return restored


class _Window:
    """The frames of one window, as a restorer reads them (a `FrameSource`)."""

    def __init__(self, run: _SegmentRun, segment: int, slots: Sequence[vs.VideoFrame]) -> None:
        self.num_frames = run.grid.num_frames
        self._run = run
        self._segment = segment
        self._slots = slots

    def frame(self, n: int) -> Tensor:
        """See `FrameSource`."""
        return self._run.colour.read(self.slot(n), n)

    def exposure(self, n: int) -> float | None:
        """Exposure of frame `n` in (0, 1]; None if unknown."""
        known = self.known_exposure(n)
        return None if known is None else known.value

    def known_exposure(self, n: int) -> KnownExposure | None:
        """Exposure of frame `n`, and who gave it; None if unknown."""
        return self._run.exposures.resolve(n, self.slot(n).props)

    def starts_scene(self, n: int) -> bool:
        """Whether a cut lies between frames n-1 and n."""
        return bool(self.slot(n).props.get(SCENE_START, 0))

    def reach(self, n: int) -> tuple[int, int]:
        """First and last frame that the pixels of frame `n` depend on, all of its scene."""
        earliest, latest = self._run.grid.reach.of(n)
        first = last = n
        while first > max(0, earliest) and not self.starts_scene(first):
            first -= 1
        while last < min(self.num_frames - 1, latest) and not self.starts_scene(last + 1):
            last += 1
        return first, last

    def slot(self, n: int) -> vs.VideoFrame:
        """Frame `n` of the clip."""
        return self._slots[self._run.grid.slot(self._segment, n)]


class _SegmentRun:
    """Makes the host's frames: small ones, with the restored frames of a segment as properties."""

    _MEMO = 2
    """Host frames kept beside VapourSynth's cache, which lets go of frames when memory is short."""

    def __init__(
        self, device: RestoringDevice, grid: SegmentGrid, model: str, exposures: Exposures, colour: frames.ColourPath
    ) -> None:
        self.grid = grid
        self.exposures = exposures
        self.colour = colour
        self._model = model
        self._restorer = device.restorer
        self._make_exact = device.exact
        self._exact: FrameRestorer | None = None
        self._memo: dict[int, vs.VideoFrame] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, device.restorer.close)

    def packed(self, segment: int, slots: list[vs.VideoFrame]) -> vs.VideoFrame:
        """The host's frame of a segment, whose window is `slots`."""
        with self._lock:
            if segment not in self._memo:
                packed = self._packed(segment, slots)
                if len(self._memo) == self._MEMO:
                    # The earliest, not the oldest: now and then VapourSynth takes a later segment first, and asks for
                    # its frames when more have come since than its cache holds.
                    del self._memo[min(self._memo)]
                self._memo[segment] = packed
            return self._memo[segment]

    def _packed(self, segment: int, slots: list[vs.VideoFrame]) -> vs.VideoFrame:
        window = _Window(self, segment, slots)
        first, stop = self.grid.bounds(segment)
        restored = self._restorer.restore(window, first, stop, self._encode(window))
        assert [result.index for result in restored] == list(range(first, stop))
        packed = vs.core.create_video_frame(vs.core.get_video_format(vs.GRAY8), 1, 1)
        for result in restored:
            packed.props[f"{_RESTORED}{result.index - first}"] = self._frame(window, result)
        return packed

    def _frame(self, window: _Window, restored: Restored) -> vs.VideoFrame:
        n = restored.index
        finite = self.colour.is_finite(restored.frame)
        if not finite and self._make_exact is not None:
            restored = self._again(window, n)
            finite = self.colour.is_finite(restored.frame)
        if not finite:
            raise IncompleteError(
                f"restore: finite results are needed, got NaN or infinity in frame {n}, in fp32 too; look at that "
                "frame of the source, and report it"
            )
        known = window.known_exposure(n)
        start, end = window.reach(n)
        frame = self.colour.write(restored.frame, window.slot(n), n)
        for name in _WINDOW_PROPS:
            frame.props.pop(name, None)
        if restored.exposure is not None:
            source = "network" if known is None else known.source
            confidence = restored.confidence if known is None else known.confidence
            frame.props.update(_exposure_props(restored.exposure, source, confidence=confidence))
        frame.props.update(FMANetModel=self._model, FMANetWindowStart=start, FMANetWindowEnd=end)
        return frame

    def _again(self, window: _Window, n: int) -> Restored:
        """Frame `n` alone in fp32, so that its pixels do not depend on the segment that it came in."""
        if self._exact is None:
            assert self._make_exact is not None
            vs.core.log_message(
                vs.MESSAGE_TYPE_WARNING,
                f"restore: NaN or infinity in frame {n}; it and later frames like it are computed again in fp32",
            )
            self._exact = self._make_exact()
            weakref.finalize(self, self._exact.close)
        [restored] = self._exact.restore(window, n, n + 1, self._encode(window))
        return restored

    def _encode(self, window: _Window) -> Encode:
        return lambda n, rgb: self.colour.encode(rgb, window.slot(n), n)
