"""The extent of motion blur in each pixel of a clip."""

from __future__ import annotations

import weakref

import numpy as np
import torch
import vapoursynth as vs
from torch import Tensor

from vsfmanet.clips.colour import COLOUR_PROPS, tag_colour, to_rgb
from vsfmanet.clips.planes import read_clamped
from vsfmanet.devices import Worker, pick_device
from vsfmanet.networks.mmpnet import BlurAnalyser
from vsfmanet.settings import Device
from vsfmanet.weights import load_analyser

BLURRED_ABOVE = 1.0
"""Extent in pixels above which a pixel counts in `FMANetBlurRatio`."""

_NOT_COPIED = (*COLOUR_PROPS, "_Transfer", "_Primaries")
"""Colour does not apply to lengths, and with a matrix of RGB resize would refuse the map."""


def measure_blur(clip: vs.VideoNode, *, device: Device, device_index: int) -> vs.VideoNode:
    """Measure the blur of each frame; arguments and result as of `vsfmanet.blur_map`.

    Args:
        clip: A clip that `check_clip` returned.
        device: "auto", "cpu" or "cuda".
        device_index: Which CUDA device.

    Raises:
        DeviceError: There is no such device.
        WeightsError: The weights of the blur analyser are missing.
    """
    worker = Worker(pick_device(device, device_index))
    analyser = worker.run(lambda: load_analyser().to(worker.device).to(memory_format=torch.channels_last))
    rgb = to_rgb(tag_colour(clip))
    blank = clip.std.BlankClip(format=vs.GRAYS, keep=True)

    def measure(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        picture = read_clamped(f[1], n)
        extent = worker.run(lambda: _extent(analyser, picture.to(worker.device)))[0, 0].numpy()
        frame = f[0].copy()
        np.copyto(np.asarray(frame[0]), extent)
        frame.props.update({name: f[2].props[name] for name in f[2].props if name not in _NOT_COPIED})
        frame.props.update(
            FMANetBlurMean=float(extent.mean()),
            FMANetBlurP95=float(np.percentile(extent, 95)),
            FMANetBlurRatio=float((extent > BLURRED_ABOVE).mean()),
        )
        return frame

    measured = blank.std.ModifyFrame([blank, rgb, clip], measure)
    weakref.finalize(measure, worker.close)
    return measured


@torch.inference_mode()
def _extent(analyser: BlurAnalyser, picture: Tensor) -> Tensor:
    """Measure the blur extent in pixels, (1, 1, H, W) on the CPU, of a frame (1, 3, H, W) in [0, 1]."""
    return analyser.extent(picture.contiguous(memory_format=torch.channels_last)).cpu()
