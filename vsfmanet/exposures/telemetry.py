"""Shutter times that a GoPro recorded beside its pictures: the stream SHUT in the GPMF track of an MP4 file.

Each packet of the track is a tree of items: a key of 4 letters, a type, a size and a count, then the values, big-endian
and padded to 4 bytes. Its samples have no time of their own: they are spread evenly over the packet.

Source: GPMF introduction, github.com/gopro/gpmf-parser, docs/README.md. The package `telemetry-parser` reads more
cameras, but hands out the shutter times without the packets' time, so frames could only be counted off against them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from vsfmanet.errors import ExposureError
from vsfmanet.exposures.props import ROUNDING

_CLOCK_TOLERANCE = 0.1
"""How far the camera's clock may run off the file's, as a fraction: packets begin up to two frames late."""

_CLOCKS = {b"STMP": 1e6, b"TICK": 1e3}
"""Keys of the camera's clock at a packet's first sample, and its ticks per second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """What the camera recorded about the frames of a file."""

    exposures: tuple[float | None, ...] = ()
    """Of every frame, in (0, 1]; None where it cannot be told; empty without telemetry that can be used."""
    notice: str | None = None
    """Why telemetry that is there is not used, or not for all frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Packet:
    """Shutter times in one packet of the GPMF track."""

    start: float
    """Seconds."""
    duration: float
    """Seconds; 0 if the file does not say."""
    shutter: NDArray[np.float32]
    """Seconds, as recorded: nothing is checked yet."""
    clock: float | None
    """The camera's own clock at the first sample, seconds; None without one."""


def read_telemetry(source_path: str | os.PathLike[str], *, num_frames: int) -> Telemetry:
    """Exposures from the shutter times in a file, set against the times of its frames.

    A wrong exposure does more harm than none, so telemetry that contradicts the file or the clip is left out, whole,
    and the notice says why.

    Args:
        source_path: any file; none but an MP4 from a GoPro has telemetry that is read.
        num_frames: of the clip, which must be as many as the file has.

    Raises:
        ExposureError: there is no such file.
    """
    path = Path(source_path)
    if not path.is_file():
        raise ExposureError(
            f"restore: source_path must be the file that the clip comes from, but there is no file {path}; check it"
        )
    try:
        with av.open(f"file:{path.absolute()}", format="mov", options={"protocol_whitelist": "file"}) as container:
            times, end, packets = _read(container)
    except av.FFmpegError:  # not an MP4, or cut short
        return Telemetry()
    if not packets or not len(times):
        return Telemetry()
    contradiction = _contradiction(times, packets, num_frames)
    if contradiction is None:
        intervals = np.diff(times, append=end)
        exposures = _shutter_of_frames(times, intervals, packets) / np.where(intervals > 0, intervals, np.nan)
        if np.nanmax(exposures, initial=0) <= 1 + ROUNDING:
            return _told(path, exposures)
        contradiction = "has shutter times longer than a frame, as in a time lapse"
    return Telemetry(
        notice=f"restore: the camera telemetry of {path} {contradiction}; it is not used, and the exposure is taken "
        "from the next source. Pass exposure if you know it"
    )


def _told(path: Path, exposures: NDArray[np.float64]) -> Telemetry:
    """Telemetry that can be used, and for which of the frames (NaN where not)."""
    known = int(np.isfinite(exposures).sum())
    notice = (
        f"restore: the camera telemetry of {path} gives a shutter time for {known} of {len(exposures)} frames; the "
        "exposure of the others is taken from the next source"
    )
    return Telemetry(
        exposures=tuple(min(float(value), 1.0) if np.isfinite(value) else None for value in exposures),
        notice=None if known == len(exposures) else notice,
    )


def _contradiction(times: NDArray[np.float64], packets: Sequence[_Packet], num_frames: int) -> str | None:
    """Why telemetry cannot be that of the clip, or None."""
    if len(times) != num_frames:
        return (
            f"is for {len(times)} frames, but the clip has {num_frames} (call vsfmanet.exposure on the whole clip, "
            "before frames are taken from it)"
        )
    clocked = [packet for packet in packets if packet.clock is not None]
    if clocked:
        shown = clocked[-1].start - clocked[0].start
        taken = (clocked[-1].clock or 0) - (clocked[0].clock or 0)
        if abs(taken - shown) > _CLOCK_TOLERANCE * shown:
            return f"was taken over {taken:.1f} s that are shown in {shown:.1f} s, as in a time lapse"
    return None


def _shutter_of_frames(
    times: NDArray[np.float64], intervals: NDArray[np.float64], packets: Sequence[_Packet]
) -> NDArray[np.float64]:
    """Mean shutter time around each frame in seconds, NaN where less than half of that time is recorded.

    A sample holds for its share of its packet. The mean is taken over the frame's interval, or over as long as a sample
    holds where that is longer: so samples coarser than the frames become a rolling mean.

    Args:
        times: (N,) starts of the frames, seconds, ascending.
        intervals: (N,) from each frame to the next, seconds.
        packets: the recorded shutter times, at least one.
    """
    start, hold, seconds = _samples(packets, end=float(times[-1] + intervals[-1]))
    if not len(start):
        return np.full(len(times), np.nan)
    edges = np.stack([start, start + hold], axis=1).ravel()

    def integral(height: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """From the first edge to `bounds`, of the steps that are `height` high where samples hold, else 0."""
        until = np.cumsum(height * hold)
        at_edges = np.stack([until - height * hold, until], axis=1).ravel()
        return np.interp(bounds, edges, at_edges)

    middle = times + intervals / 2
    nearest = np.clip(np.searchsorted(start, middle, side="right") - 1, 0, None)
    width = np.maximum(intervals, hold[nearest])
    low, high = middle - width / 2, middle + width / 2
    recorded = integral(np.ones_like(seconds), high) - integral(np.ones_like(seconds), low)
    total = integral(seconds, high) - integral(seconds, low)
    known = (recorded >= width / 2) & (recorded > 0)
    return np.where(known, total / np.where(known, recorded, 1), np.nan)


def _samples(
    packets: Sequence[_Packet], end: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """When each sample that makes sense begins, how long it holds, and its shutter time, all in seconds.

    Args:
        packets: the recorded shutter times, in order, at least one.
        end: of the pictures, seconds: the last packet claims more than that.
    """
    ends = [*(packet.start for packet in packets[1:]), end]
    counts = [len(packet.shutter) for packet in packets]
    lengths = [min(stop - packet.start, packet.duration or np.inf) for packet, stop in zip(packets, ends, strict=True)]
    hold = np.repeat(np.divide(lengths, counts), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    start = np.repeat([packet.start for packet in packets], counts) + place * hold
    seconds = np.concatenate([packet.shutter for packet in packets]).astype(np.float64)
    usable = np.isfinite(seconds) & (seconds > 0) & (hold > 0)
    return start[usable], hold[usable], seconds[usable]


def _read(container: InputContainer) -> tuple[NDArray[np.float64], float, list[_Packet]]:
    """Times of the frames and the end of the last, in seconds, and the packets that hold shutter times."""
    video = container.streams.best("video")
    tracks = [stream for stream in container.streams if stream.type == "data"]
    if video is None or not tracks:  # then there is no need to read the whole file
        return np.empty(0), 0.0, []
    times: list[float] = []
    end = 0.0
    packets: list[_Packet] = []
    for packet in container.demux([video, *tracks]):
        if packet.pts is None or not packet.size or packet.is_discard:  # the last: cut away by an edit list
            continue
        start, duration = float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base)
        if packet.stream_index == video.index:
            times.append(start)
            end = max(end, start + duration)
        else:
            packets += [
                _Packet(start=start, duration=duration, shutter=shutter, clock=clock)
                for shutter, clock in _shutter_streams(bytes(packet))[:1]  # one lens of several
            ]
    return np.array(sorted(times)), end, sorted(packets, key=lambda packet: packet.start)


def _shutter_streams(data: bytes) -> list[tuple[NDArray[np.float32], float | None]]:
    """Shutter times and the camera's clock, both in seconds, of every stream of them in a GPMF packet."""
    devices = [value for key, _, value in _items(data) if key == b"DEVC"]
    streams = [value for device in devices for key, _, value in _items(device) if key == b"STRM"]
    found = []
    for stream in streams:
        items = {key: (kind, value) for key, kind, value in _items(stream)}
        kind, value = items.get(b"SHUT", (b"", b""))
        # Cameras write plain floats. Anything else, or a scale, would have to be guessed at.
        if kind == b"f" and value and b"SCAL" not in items:
            clocks = [int.from_bytes(items[key][1], "big") / rate for key, rate in _CLOCKS.items() if key in items]
            found.append((np.frombuffer(value, dtype=">f4").astype(np.float32), clocks[0] if clocks else None))
    return found


def _items(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Key, type and value of the items in a row; it ends where they make no sense."""
    place = 0
    while place + 8 <= len(data):
        key, kind, size, count = struct.unpack_from(">4scBH", data, place)
        value = data[place + 8 : place + 8 + size * count]
        if len(value) < size * count or (kind == b"f" and size % 4):
            return
        yield key, kind, value
        place += 8 + (size * count + 3) // 4 * 4
