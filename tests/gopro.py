"""Small MP4 files with a GPMF track, as a GoPro writes them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

FRAMES = 60
RATE = 30


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One packet of the GPMF track."""

    shutter: Sequence[float]
    """Seconds."""
    start: float = 0.0
    """Seconds."""
    duration: float = 1.0
    """Seconds."""
    clock: float | None = None
    """The camera's, seconds; None for the packet's start."""
    scale: int | None = None
    """By which the values are to be divided."""


def evenly(shutter: Sequence[float], *, per_second: int = RATE) -> list[Recorded]:
    """Packets of one second each, the last of which also claims one."""
    chunks = [shutter[i : i + per_second] for i in range(0, len(shutter), per_second)]
    return [Recorded(shutter=chunk, start=float(k)) for k, chunk in enumerate(chunks)]


def write_gopro(path: Path, packets: Sequence[Recorded], *, times: Sequence[float] | None = None) -> Path:
    """A file of 64x48 pixels with a packet of telemetry for each entry of `packets`.

    Args:
        path: an .mp4 to make.
        packets: in order; none for a file without telemetry.
        times: of the frames in seconds, and where the last one ends; `FRAMES` at `RATE` by default.
    """
    packed = [(payload(recorded), recorded.start, recorded.duration) for recorded in packets]
    return write_film(path, packed, times=times)


def write_film(
    path: Path,
    packets: Sequence[tuple[bytes, float, float]],
    *,
    times: Sequence[float] | None = None,
    name: str = "",
    codec: str = "bin_data",
) -> Path:
    """A file of 64x48 pixels with a second track.

    Args:
        path: an .mp4 to make.
        packets: of the track: data, start and duration in seconds; none for a file without one.
        times: of the frames in seconds, and where the last one ends; `FRAMES` at `RATE` by default.
        name: of the track.
        codec: "bin_data", or "mov_text" for subtitles.
    """
    unit = Fraction(1, 90_000)
    stamps = [round(time / unit) for time in times or [n / RATE for n in range(FRAMES + 1)]]
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "bf": "2"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = unit
        track = None
        if packets:
            track = file.add_data_stream(codec) if codec == "bin_data" else file.add_mux_stream(codec)
            track.metadata["handler_name"] = name
        for n, (stamp, end) in enumerate(pairwise(stamps)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * n % 256, dtype=np.uint8), format="rgb24")
            frame.pts, frame.duration, frame.time_base = stamp, end - stamp, unit
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for data, start, duration in packets:
            assert track is not None
            packet = av.Packet(data)
            packet.stream, packet.time_base = track, Fraction(1, 90_000)
            packet.pts = packet.dts = round(start / packet.time_base)
            packet.duration = round(duration / packet.time_base)
            file.mux(packet)
    return path


def payload(recorded: Recorded) -> bytes:
    """A GPMF packet: a device with a stream of temperatures and one of shutter times."""
    shutter = struct.pack(f">{len(recorded.shutter)}f", *recorded.shutter)
    clock = recorded.start if recorded.clock is None else recorded.clock
    stream = _item(b"TICK", b"L", 4, struct.pack(">I", round(1000 * clock)))
    stream += _item(b"STNM", b"c", 1, b"Exposure time (shutter speed)")
    if recorded.scale is not None:
        stream += _item(b"SCAL", b"s", 2, struct.pack(">h", recorded.scale))
    stream += _item(b"SHUT", b"f", 4, shutter)
    other = _item(b"TMPC", b"f", 4, struct.pack(">f", 54.0))
    return _item(b"DEVC", b"\0", 1, _item(b"STRM", b"\0", 1, other) + _item(b"STRM", b"\0", 1, stream))


def _item(key: bytes, kind: bytes, size: int, value: bytes) -> bytes:
    return struct.pack(">4scBH", key, kind, size, len(value) // size) + value + b"\0" * (-len(value) % 4)
