"""What a job will take, roughly: bytes of its output, and time on this device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import av
import vapoursynth as vs

from vsfmanet.media import clip as clips
from vsfmanet.settings import RestoreSettings

LOSSY_BITS = 0.15
"""Bits for a pixel that the default encoders need: 0.14 for the example clip, 0.3 for very small pictures."""

SHARES = {
    **dict.fromkeys(("rawvideo", "v210", "r210"), 1.0),
    **dict.fromkeys(("ffv1", "ffvhuff", "huffyuv", "magicyuv", "utvideo"), 0.4),
    **dict.fromkeys(("prores", "prores_aw", "prores_ks", "dnxhd", "cfhd", "mjpeg"), 0.2),
}
"""Encoders that need more, with their part of what the frames take in memory."""

BUDGET = 60.0
"""Seconds that a measurement may take, beside loading the network."""

SMALLEST = 64
"""Pixels of the shorter side that a measurement begins with."""

WARM, MEASURED = 4, 8
"""Frames that are restored first, and those that count: whole segments."""


def output_bytes(*, frames: int, pixels: int, pixel_format: str, encoder_args: Sequence[str]) -> int:
    """How large an output will be.

    Args:
        frames: In it.
        pixels: Of a frame.
        pixel_format: FFmpeg's name.
        encoder_args: As `choose_encoder` gives them.
    """
    names = [encoder_args[n + 1] for n, word in enumerate(encoder_args[:-1]) if word in ("-c:v", "-codec:v", "-vcodec")]
    share = SHARES.get(names[-1]) if names else None
    bits = LOSSY_BITS
    if share is not None:
        described = av.VideoFormat(pixel_format, 64, 64)  # some pixels, to count those of subsampled planes
        samples = sum(part.width * part.height for part in described.components)
        bits = share * described.components[0].bits * samples / (64 * 64)
    return round(frames * pixels * bits / 8)


def measure_speed(settings: RestoreSettings, size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Restore a few frames of nothing on this device: how long that takes does not depend on what they show.

    Args:
        settings: For the filter.
        size: Width and height of the frames that are to come; measured are as large ones as there is time for.

    Returns:
        Input pixels per second, and the width and height with which they were measured.

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
        frames = WARM + MEASURED + 8  # and some context
        if part == 1 or seconds * (larger / part) ** 2 * frames > BUDGET:
            return width * height / seconds, (width, height)
        part = larger


def _measure(settings: RestoreSettings, width: int, height: int) -> float:
    """Seconds for a frame of a size."""
    blank = vs.core.std.BlankClip(
        width=width, height=height, format=vs.YUV420P8, length=WARM + MEASURED, color=[128] * 3, keep=True
    )
    restored = clips.restore_clip(blank.std.SetFrameProps(_Matrix=1, _Range=1), settings)
    restored.get_frame(0).close()
    started = time.monotonic()
    for frame in restored[WARM:].frames(prefetch=1, close=True):
        frame.props  # noqa: B018 - it is here
    return (time.monotonic() - started) / MEASURED
