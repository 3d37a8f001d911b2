"""Rough estimates of a job: size of its output, and time on this device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import av
import vapoursynth as vs

from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings

LOSSY_BITS = 0.15
"""Bits per pixel of the default encoders: 0.14 for the example clip, 0.3 for very small pictures."""

SHARES = {
    **dict.fromkeys(("rawvideo", "v210", "r210"), 1.0),
    **dict.fromkeys(("ffv1", "ffvhuff", "huffyuv", "magicyuv", "utvideo"), 0.4),
    **dict.fromkeys(("prores", "prores_aw", "prores_ks", "dnxhd", "cfhd", "mjpeg"), 0.2),
}
"""Encoders that need more, with the size of their output over that of the frames in memory."""

BUDGET = 60.0
"""Most seconds that a measurement takes, without loading the network."""

SMALLEST = 64
"""Shorter side of the frames of the first measurement, pixels."""

WARM, MEASURED = 4, 8
"""Frames that are restored before the measurement and in it: whole segments."""


def output_bytes(*, frames: int, pixels: int, pixel_format: str, encoder_args: Sequence[str]) -> int:
    """Estimate the size of an output in bytes.

    Args:
        frames: Number of frames.
        pixels: Pixels of a frame.
        pixel_format: FFmpeg's name of the pixel format.
        encoder_args: Options for the encoder, from `choose_encoder`.
    """
    names = [encoder_args[n + 1] for n, word in enumerate(encoder_args[:-1]) if word in ("-c:v", "-codec:v", "-vcodec")]
    share = SHARES.get(names[-1]) if names else None
    bits = LOSSY_BITS
    if share is not None:
        described = av.VideoFormat(pixel_format, 64, 64)  # a small size, to count the pixels of subsampled planes
        samples = sum(part.width * part.height for part in described.components)
        bits = share * described.components[0].bits * samples / (64 * 64)
    return round(frames * pixels * bits / 8)


def measure_speed(settings: RestoreSettings, size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Measure the speed of this device with a few grey frames; the speed does not depend on their content.

    Args:
        settings: Settings of the filter.
        size: Width and height of the film's frames. Those of the measurement are as large as `BUDGET` allows.

    Returns:
        Input pixels per second, and the width and height of the frames that were measured.

    Raises:
        VsfmanetError: The network or the device cannot be used.
    """
    exposure = "auto" if isinstance(settings.exposure, str) else settings.exposure
    settings = replace(settings, exposure=exposure, segment=WARM, skip=False)
    part = min(1.0, SMALLEST / min(size))
    while True:
        width, height = (max(16, round(side * part / 2) * 2) for side in size)
        seconds = _measure(settings, width, height)
        larger = min(1.0, 2 * part)
        frames = WARM + MEASURED + 8  # with context
        if part == 1 or seconds * (larger / part) ** 2 * frames > BUDGET:
            return width * height / seconds, (width, height)
        part = larger


def _measure(settings: RestoreSettings, width: int, height: int) -> float:
    """Seconds that a frame of a size takes."""
    blank = vs.core.std.BlankClip(
        width=width, height=height, format=vs.YUV420P8, length=WARM + MEASURED, color=[128] * 3, keep=True
    )
    restored = clips.restore_clip(blank.std.SetFrameProps(_Matrix=1, _Range=1), settings)
    restored.get_frame(0).close()
    started = time.monotonic()
    for frame in restored[WARM:].frames(prefetch=1, close=True):
        frame.props  # noqa: B018 - it is here
    return (time.monotonic() - started) / MEASURED
