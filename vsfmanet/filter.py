"""The functions for VapourSynth scripts: `restore`, `exposure` and `blur_map`.

The pixels of a restored frame depend on the clip, the arguments and the frame's number alone. No callback asks for a
frame. Building a filter asks for none either: mpv and FFmpeg cannot deliver frames while a script is being loaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import vapoursynth as vs

from vsfmanet.clips import colour
from vsfmanet.clips.exposure import EXPOSURE_PROPS, gather_exposures, write_exposures
from vsfmanet.clips.nodes import keep_frames
from vsfmanet.clips.scenes import mark_scenes
from vsfmanet.errors import ConfigError, FormatError, VsfmanetError
from vsfmanet.segments import SegmentGrid, default_length
from vsfmanet.settings import (
    AUTO,
    Backend,
    Device,
    ExposureArgument,
    Precision,
    Provider,
    RestoreSettings,
    StrengthArgument,
    device_indices,
)
from vsfmanet.sizes import enlargement, result_size, with_model

if TYPE_CHECKING:
    from vsfmanet.clips.motion import Motion
    from vsfmanet.restorer import FrameRestorer

_log = logging.getLogger(__name__)

_READ_AHEAD = 16
"""Source frames kept beyond a window, so that none is decoded twice while later windows are being read."""
_READ_AHEAD_TO_SKIP = 96
"""The same with `skip`, which decides when a frame is asked for, long before its window."""


def restore(
    clip: vs.VideoNode,
    *,
    model: str = AUTO,
    height: int | None = None,
    width: int | None = None,
    scale: float | None = None,
    exposure: ExposureArgument = "auto",
    source_path: str | os.PathLike[str] | None = None,
    device: Device = "auto",
    device_index: int | Sequence[int] = 0,
    precision: Precision = "auto",
    backend: Backend = "auto",
    provider: Provider = "auto",
    tile: tuple[int, int] | None = None,
    segment: int | None = None,
    sc_threshold: float | None = None,
    output_format: int | vs.VideoFormat | None = None,
    strength: StrengthArgument = 1.0,
    grain: float = 0.0,
    shutter: float | None = None,
    self_check: bool = False,
    skip: bool = False,
) -> vs.VideoNode:
    """Enlarge and deblur a clip with FMA-Net++.

    Args:
        clip: Progressive YUV, RGB or Gray of constant format and size, 8 to 16 bit integer or half or single float, at
            least 8x8 pixels. Samples outside the nominal range are clamped to it for the network.
        model: A name from `vsfmanet models`, or the path of a .safetensors file. The number after `x` in a name is the
            scale. "auto" is `fmanetpp_x4_fast`; with `height`, `width` or `scale` it is the first model of the smallest
            scale that reaches the size.
        height: Height of the result in pixels. The model's enlargement is resized to it with Spline36, and the width
            keeps the picture's shape. None for the model's own scale.
        width: Width of the result in pixels. Together with a `height` that does not keep the picture's shape, the
            sample aspect ratio changes instead, so that players show the same shape.
        scale: Size of the result over that of the clip, in (0, 16], in place of `height` and `width`.
        exposure: Open-shutter time over frame interval, in (0, 1]; 0.5 is a 180 degree shutter. A number applies to all
            frames. A path ending in .csv or .json is a sidecar file: a table with the columns `frame` and `exposure`,
            or an object `{"exposure": [0.5, 0.48, null]}`, with every frame of the clip. A function takes a frame's
            number and properties and returns its exposure, or None; it is called once for each frame, in any order,
            so its result must depend on these two alone. "auto" uses the frame's property
            `FMANetExposure`, else `ExposureTime` (in seconds) over its duration, else the camera's telemetry, else the
            network's own estimate; so do frames for which a file or function has no exposure (an empty cell, null,
            None). "estimate" does the same, but before the network it measures the smear along the motion between
            frames, and uses that where it shows clearly in the frame or within 8 frames of the same scene.
        source_path: File that the clip shows, all of it and in order. The shutter times that GoPro, Sony, DJI and
            Insta360 cameras record in it, or in an .SRT file beside it, are used. If frames are to be cut away, call
            `exposure` before the cut.
        device: "auto" (a CUDA device if there is one), "cpu" or "cuda".
        device_index: Which CUDA device, from 0. Several, such as (0, 1), restore segments in turn, with the same
            pixels; frames must be requested far enough ahead (`vspipe --requests 64`). Exposures are estimated on the
            first.
        precision: "auto", "fp32", "bf16" or "fp16".
        backend: "auto" (torch), "torch", "onnx" (onnxruntime, fp32) or "tensorrt" (unverified). The last two build the
            network for the clip's size when the first frame is requested, and cache it on disk.
        provider: For "onnx", what onnxruntime computes with: "auto" (the first that works), "cpu", "cuda", "migraphx",
            "directml", "coreml", "openvino" or "webgpu". The CPU, with a warning, takes the place of one that is
            missing.
        tile: Width and height in input pixels, at least 16, of the tiles in which frames are computed, to save memory.
            The result is the same up to rounding: tiles overlap as far as they depend on each other, so there is
            nothing to blend. None for whole frames, and tiles, with a warning, once memory runs out.
        segment: Frames per run of the network, 1 to 64; None for 8 (16 on several devices), fewer if they are large.
            No effect on pixels.
        sc_threshold: Where scenes start. None uses `_SceneChangePrev` and `_SceneChangeNext`, and a detector on frames
            with neither. A number in (0, 1] uses the detector with this mean absolute difference of luma. 0 finds no
            scenes.
        output_format: Format of the result, such as `vs.YUV420P10`; None for the clip's own.
        strength: How much of the restoration the result shows, from 0 to 1. 1 is the restored frame and 0 the clip
            resized by Spline36, both bit by bit; between them, code values are blended. A number applies to all frames.
            A text is the name of a frame property that holds the number; every frame must have it. A function takes a
            frame's number and properties and returns the number, or None for 1; its result must depend on these two
            alone, and it is called in any order. The network does not run for segments of strength 0.
        grain: Standard deviation of the noise that is added to luma, over that of the noise that restoration removed:
            0 adds none, 1 as much as there was. It is measured in flat parts of each frame, for each brightness, and
            drawn from the frame's number.
        shutter: Blur the restored frames along their motion, as a shutter does that is open for this part of the frame
            interval, in (0, 1]. The motion is measured between frames of the clip and taken as straight. None for none.
        self_check: Blur each restored frame again, by its exposure, and compare it with the clip.
        skip: For models of scale 1: pass frames through that are sharp already, because in a run of 8 or more hardly
            anything moves while the shutter is open (half a pixel, by exposure and motion). They cost little, and the
            others are restored as without `skip`. All frames carry `FMANetSkipped`, 0 or 1; those passed through carry
            no other property of the filter.

    Returns:
        The restored clip, enlarged by the model's scale or of the size asked for, with the length, rate and properties
        of the clip. Its frames also carry `FMANetModel` (name of the model); `FMANetExposure` in (0, 1],
        `FMANetExposureSource` ("argument", "prop", "telemetry", "estimate" or "network") and
        `FMANetExposureConfidence` in [0, 1] (1 if the exposure is known; below 0.5 an estimate is that of a frame
        nearby), unless the exposure is unknown and the model does not estimate it; and `FMANetWindowStart` and
        `FMANetWindowEnd`, the first and last frame that the pixels depend on. With a `strength`, all frames carry
        `FMANetStrength`, and those of strength 0 none of the others; with `grain`, `FMANetGrain`, the mean standard
        deviation of the noise over the range of luma; with `shutter`, `FMANetShutter`; with `self_check`,
        `FMANetReblurError`, the distance of the restored frame, blurred again, from the clip's: the mean of the worst
        5 % of the picture, over the range of luma.

    Raises:
        vs.Error: An argument or the clip cannot be used, the model or the device is missing, or the settings do not go
            together. Requesting a frame raises it if the frame is interlaced, holds NaN or infinity, or has colour tags
            or exposure properties out of range; if memory is too small for the frame's size; or if its result is not
            finite even in fp32.
    """
    with _border("restore"):
        _check_is_clip(clip)
        settings = RestoreSettings(
            model=model,
            height=height,
            width=width,
            scale=scale,
            exposure=exposure,
            source_path=source_path,
            device=device,
            device_index=device_indices(device_index),
            precision=precision,
            backend=backend,
            provider=provider,
            tile=tile,
            segment=segment,
            sc_threshold=sc_threshold,
            output_format=None if output_format is None else colour.named_format(output_format).id,
            strength=strength,
            grain=grain,
            shutter=shutter,
            self_check=self_check,
            skip=skip,
        )
        source = colour.check_clip(clip)

        from vsfmanet.restorer import Restorer  # with the networks

        settings = with_model(settings, source.width, source.height)
        with ExitStack() as opened:
            restorers: list[FrameRestorer] = []
            for index in settings.device_indices:
                restorer = Restorer(
                    settings.model,
                    device=device,
                    device_index=index,
                    precision=precision,
                    backend=backend,
                    provider=provider,
                    tile=tile,
                )
                opened.callback(restorer.close)
                restorers.append(restorer)
            restored = restore_with(source, restorers, settings)
            opened.pop_all()
            return restored


def exposure(
    clip: vs.VideoNode,
    *,
    exposure: ExposureArgument = "auto",
    source_path: str | os.PathLike[str] | None = None,
    device: Device = "auto",
    device_index: int = 0,
) -> vs.VideoNode:
    """Write each frame's exposure into its properties, where another source than the network knows it.

    The properties stay with their frames where a clip is cut, spliced or reordered, and `restore` reads them. So call
    this on the clip that the source filter returns, before any of that.

    Args:
        clip: Any clip; for "estimate" one that `restore` accepts.
        exposure: As for `restore`.
        source_path: As for `restore`.
        device: Where to estimate: "auto", "cpu" or "cuda".
        device_index: Which CUDA device, from 0.

    Returns:
        The clip. Frames whose exposure is known carry `FMANetExposure` in (0, 1], `FMANetExposureSource` ("argument",
        "prop", "telemetry" or "estimate") and `FMANetExposureConfidence` in [0, 1], 1 except for an estimate; the
        others are unchanged.

    Raises:
        vs.Error: An argument or, for "estimate", the clip cannot be used. Requesting a frame raises it if one of its
            properties, or the function's result, is no exposure.
    """
    with _border("exposure"):
        _check_is_clip(clip)
        sources = gather_exposures(clip, exposure, source_path)
        if not sources.estimates:
            return write_exposures(clip, sources)

        from vsfmanet.clips.estimate import KEPT, write_estimates

        marked = mark_scenes(colour.tag_colour(colour.check_clip(clip)), None)
        known = write_exposures(marked, sources)
        estimated = write_estimates(known, _motion(known, device, device_index, kept=KEPT))
        return clip.std.CopyFrameProps(estimated, props=list(EXPOSURE_PROPS))


def blur_map(clip: vs.VideoNode, *, device: Device = "auto", device_index: int = 0) -> vs.VideoNode:
    """Measure how far things move within each frame while the shutter is open, pixel by pixel.

    The network sees single frames, so it cannot always distinguish motion blur from defocus, and it can only guess on
    flat areas. It needs about 1 GB of memory for a frame of 1920x1080.

    Args:
        clip: As for `restore`.
        device: "auto" (a CUDA device if there is one), "cpu" or "cuda".
        device_index: Which CUDA device, from 0.

    Returns:
        A GRAYS clip of the same size, length and rate: blur extent in pixels, 0 to 64. Its frames carry the clip's
        properties, except those of colour, and `FMANetBlurMean` and `FMANetBlurP95`, mean and 95th percentile of the
        extent in pixels, and `FMANetBlurRatio`, the part of the picture with an extent above 1 pixel, in [0, 1].

    Raises:
        vs.Error: An argument or the clip cannot be used, or the weights of the blur analyser are missing. Requesting a
            frame raises it if the frame is interlaced, holds NaN or infinity, or has colour tags out of range.
    """
    with _border("blur_map"):
        _check_is_clip(clip)
        from vsfmanet.clips.blur_map import measure_blur  # with the blur analyser

        return measure_blur(colour.check_clip(clip), device=device, device_index=device_index)


def restore_with(clip: vs.VideoNode, restorers: Sequence[FrameRestorer], settings: RestoreSettings) -> vs.VideoNode:
    """Restore a clip with restorers of one model, which are closed when the result is released.

    Args:
        clip: A clip that `check_clip` returned.
        restorers: They restore segments in turn.
        settings: The arguments of `restore`; those of the network are not used.

    Raises:
        FormatError: The output format's subsampling does not divide the size.
        ExposureError: The exposure file or the source cannot be used.
        WeightsError: Exposures are to be estimated, and the weights of the estimator are missing.
        ConfigError: `skip` with a model whose scale is not 1, or the size asked for cannot be.
    """
    from vsfmanet.clips.windows import restore_windows  # with torch

    scale = restorers[0].scale
    if settings.skip and scale != 1:
        raise ConfigError(f"skip is for models of scale 1, got {restorers[0].name} of scale {scale}; leave it out")
    width, height = clip.width * scale, clip.height * scale
    target = clip.format if settings.output_format is None else colour.named_format(settings.output_format)
    size = result_size(
        settings, clip.width, clip.height, multiples=(1 << target.subsampling_w, 1 << target.subsampling_h)
    )
    ratio = enlargement(settings, clip.width, clip.height)
    if size is not None and ratio is not None and ratio > scale:
        _log.warning(
            "%s enlarges %dx%d to %dx%d; the rest, to %dx%d, is interpolated",
            *(restorers[0].name, clip.width, clip.height, width, height, *size),
        )
    made = target if size in (None, (width, height)) else colour.finer(target)
    colour.check_subsampling(made, width, height)
    grid = SegmentGrid(
        num_frames=clip.num_frames,
        length=settings.segment or default_length(width, height, devices=len(restorers)),
        reach=restorers[0].reach,
    )
    kept = grid.slots + (len(restorers) - 1) * grid.length
    kept += _READ_AHEAD_TO_SKIP if settings.skip else _READ_AHEAD
    sources = gather_exposures(clip, settings.exposure, settings.source_path)
    tagged = keep_frames(colour.tag_colour(clip), kept)
    source = keep_frames(write_exposures(mark_scenes(tagged, settings.sc_threshold), sources), kept)
    reblurs = settings.shutter is not None or settings.self_check
    if sources.estimates or settings.skip or reblurs:
        from vsfmanet.clips.estimate import KEPT, write_estimates

        held = KEPT if sources.estimates else _READ_AHEAD if reblurs else 4
        motion = _motion(source, settings.device, settings.device_indices[0], kept=held)
    if sources.estimates:
        source = keep_frames(write_estimates(source, motion), kept)
    restored = restore_windows(source, restorers, grid, made)
    if settings.skip:
        from vsfmanet.clips.skipping import pass_sharp_frames

        restored = pass_sharp_frames(restored, colour.plain(tagged, made, width, height), source, motion)
    if reblurs:
        from vsfmanet.clips import reblur

        if settings.self_check:
            restored = reblur.with_errors(restored, tagged, motion)
        if settings.shutter is not None:
            restored = reblur.with_shutter(restored, motion, float(settings.shutter))
    size = size or (width, height)
    if size != (width, height):
        restored = colour.resized(restored, target, *size)
    return _finished(restored, tagged, settings, scale)


def _finished(restored: vs.VideoNode, tagged: vs.VideoNode, settings: RestoreSettings, scale: int) -> vs.VideoNode:
    """Apply `strength` and `grain` to a restored clip; `tagged` is its source, `scale` that of the network."""
    if settings.strength != 1:
        from vsfmanet.clips.strength import blended

        plain = colour.plain(tagged, restored.format, restored.width, restored.height, scale=scale)
        restored = blended(restored, plain, tagged, settings.strength)
    if settings.grain:
        from vsfmanet.clips.grain import with_grain

        restored = with_grain(restored, tagged, float(settings.grain))
    return restored


def _motion(marked: vs.VideoNode, device: Device, device_index: int, *, kept: int) -> Motion:
    """Build the nodes that measure motion, with a worker of their own.

    Raises:
        DeviceError: There is no such device.
    """
    from vsfmanet.clips.motion import Motion
    from vsfmanet.devices import Worker, pick_device

    return Motion(marked, Worker(pick_device(device, device_index)), kept=kept)


def _check_is_clip(clip: object) -> None:
    if not isinstance(clip, vs.VideoNode):
        raise FormatError(f"clip must be a video clip, got {type(clip).__name__}; pass what a source filter returns")


@contextmanager
def _border(function: str) -> Iterator[None]:
    """Raise errors of vsfmanet as `vs.Error`, with the function's name.

    Warnings need no border: in a script that a host runs, VapourSynth passes Python's log on to its message log.
    """
    try:
        yield
    except VsfmanetError as error:
        raise vs.Error(f"{function}: {error}") from error
