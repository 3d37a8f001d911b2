"""Shutter times that a camera recorded, matched with frames by time, at any frame rate, also a variable one.

`cameras` parses what each camera writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from vsfmanet.errors import ExposureError
from vsfmanet.exposures.cameras import DJI_TRACK, Packet, TrackReader, read_insta360, read_srt, read_text
from vsfmanet.exposures.props import ROUNDING

_CLOCK_TOLERANCE = 0.1
"""Largest difference between the camera's clock and the file's, as a fraction: packets begin up to two frames late."""

_SPARE = 1.0
"""Seconds by which shutter times outside the film's tracks may differ in length from the film, beyond that fraction."""

MIN_EXPOSURE = 1e-6
"""Smaller exposures count as unknown: no shutter is so fast, and half precision rounds them to 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telemetry:
    """The exposures that a camera recorded for the frames of a file."""

    exposures: tuple[float | None, ...] = ()
    """Of every frame, from `MIN_EXPOSURE` to 1; None where unknown; empty without telemetry that can be used."""
    notice: str | None = None
    """Why telemetry is not used, or not for all frames; None if there is nothing to warn of."""


def read_telemetry(source_path: str | os.PathLike[str], *, num_frames: int) -> Telemetry:
    """Read shutter times in a file, or beside it, and compute the exposures of its frames.

    A wrong exposure does more harm than none, so telemetry that contradicts the file or the clip is not used at all,
    and the notice explains why.

    Args:
        source_path: Any file; only MP4, MOV and INSV files have telemetry that can be read.
        num_frames: Length of the clip, which must be that of the file.

    Raises:
        ExposureError: There is no such file.
    """
    path = Path(source_path)
    if not path.is_file():
        raise ExposureError(
            f"source_path must be the file that the clip comes from, but there is no file {path}; check it"
        )
    try:
        with av.open(f"file:{path.absolute()}", format="mov", options={"protocol_whitelist": "file"}) as container:
            beside = _beside(path)
            times, end, packets = _read(container, anyway=beside is not None)
    except av.FFmpegError:  # not an MP4, or cut short
        return Telemetry()
    if not len(times):
        return Telemetry()
    where, contradiction = str(path), None
    if not packets and beside is not None:
        where, found = beside
        packets = [replace(packet, start=packet.start + float(times[0])) for packet in found]
        contradiction = _other_length(times, end, packets)
    if not packets:
        return Telemetry()
    contradiction = _contradiction(times, packets, num_frames) or contradiction
    if contradiction is None:
        intervals = np.diff(times, append=end)
        seconds = _shutter_of_frames(times, intervals, _as_shown(packets, intervals))
        exposures = seconds / np.where(intervals > 0, intervals, np.nan)
        if np.nanmax(exposures, initial=0) <= 1 + ROUNDING:
            return _usable(where, exposures)
        contradiction = "has shutter times longer than a frame, as in a time lapse"
    return Telemetry(
        notice=f"the camera telemetry of {where} {contradiction}; it is not used, and the exposure is taken "
        "from the next source. Pass exposure if you know it"
    )


def _beside(path: Path) -> tuple[str, list[Packet]] | None:
    """Shutter times outside the film's tracks, and the file that holds them; None if there are none."""
    packets = read_insta360(path)
    if packets:
        return str(path), packets
    for suffix in (".SRT", ".srt"):
        subtitles = path.with_suffix(suffix)
        packets = read_srt(subtitles) if subtitles.is_file() else []
        if packets:
            return str(subtitles), packets
    return None


def _usable(where: str, exposures: NDArray[np.float64]) -> Telemetry:
    """Build telemetry from exposures, NaN where unknown; the notice counts the unknown ones."""
    known = exposures >= MIN_EXPOSURE  # False for NaN
    notice = (
        f"the camera telemetry of {where} has a shutter time for {known.sum()} of {len(exposures)} frames; the others "
        "take their exposure from the next source"
    )
    return Telemetry(
        exposures=tuple(
            min(float(value), 1.0) if usable else None for value, usable in zip(exposures, known, strict=True)
        ),
        notice=None if known.all() else notice,
    )


def _contradiction(times: NDArray[np.float64], packets: Sequence[Packet], num_frames: int) -> str | None:
    """Why telemetry cannot belong to the clip; None if it can."""
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


def _other_length(times: NDArray[np.float64], end: float, packets: Sequence[Packet]) -> str | None:
    """Why shutter times from outside the film's tracks cannot belong to it; None if they can."""
    film, recorded = end - float(times[0]), packets[-1].start + packets[-1].duration - packets[0].start
    if abs(recorded - film) > _CLOCK_TOLERANCE * film + _SPARE:
        return f"is {recorded:.1f} s long, but the film is {film:.1f} s, as of another film or a time lapse"
    return None


def _as_shown(packets: Sequence[Packet], intervals: NDArray[np.float64]) -> list[Packet]:
    """Scale shutter times from the rate of capture to the rate at which the film is shown.

    In slow and quick motion the exposure is the shutter time over the interval between captured frames.
    """
    shown = float(np.median(intervals))
    scaled = []
    for packet in packets:
        ratio = 1.0 if packet.capture_rate is None else packet.capture_rate * shown
        if abs(ratio - 1) > ROUNDING:
            packet = replace(packet, shutter=[ratio * float(one) for one in packet.shutter])
        scaled.append(packet)
    return scaled


def _shutter_of_frames(
    times: NDArray[np.float64], intervals: NDArray[np.float64], packets: Sequence[Packet]
) -> NDArray[np.float64]:
    """Compute the mean shutter time around each frame.

    A sample holds for its share of its packet. The mean is taken over the frame's interval, or over the time for which
    a sample holds where that is longer: so samples coarser than the frames become a rolling mean.

    Args:
        times: (N,) starts of the frames, seconds, ascending.
        intervals: (N,) from each frame to the next, seconds.
        packets: The recorded shutter times, at least one.

    Returns:
        (N,) seconds; NaN where less than half of the time averaged over is recorded.
    """
    start, hold, seconds = _samples(packets, end=float(times[-1] + intervals[-1]))
    if not len(start):
        return np.full(len(times), np.nan)
    edges = np.stack([start, start + hold], axis=1).ravel()

    def integral(height: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Integrate, from the first edge to `bounds`, the steps that are `height` high where samples hold, else 0."""
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
    packets: Sequence[Packet], end: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """List the usable samples: when each begins, how long it holds, and its shutter time, all in seconds.

    Args:
        packets: The recorded shutter times, in order, at least one.
        end: Of the pictures, in seconds: the last packet's own duration goes beyond it.
    """
    ends = [*(packet.start for packet in packets[1:]), end]
    counts = [len(packet.shutter) for packet in packets]
    lengths = [min(stop - packet.start, packet.duration or np.inf) for packet, stop in zip(packets, ends, strict=True)]
    hold = np.repeat(np.divide(lengths, counts), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    start = np.repeat([packet.start for packet in packets], counts) + place * hold
    seconds = np.concatenate([packet.shutter for packet in packets], dtype=np.float64)
    usable = np.isfinite(seconds) & (seconds > 0) & (hold > 0)
    return start[usable], hold[usable], seconds[usable]


def _read(container: InputContainer, *, anyway: bool) -> tuple[NDArray[np.float64], float, list[Packet]]:
    """Read the times of the frames and the end of the last, in seconds, and the packets with shutter times.

    Args:
        container: An open file.
        anyway: Read the times also if no track can hold shutter times.
    """
    video = container.streams.best("video")
    tracks = [stream for stream in container.streams if stream.type in ("data", "subtitle")]
    if video is None or not (tracks or anyway):  # then there is no need to read the whole file
        return np.empty(0), 0.0, []
    readers = {
        stream.index: TrackReader(is_dji=DJI_TRACK in stream.metadata.get("handler_name", ""))
        for stream in tracks
        if stream.type == "data"
    }
    times: list[float] = []
    end = 0.0
    packets: dict[int, list[Packet]] = {stream.index: [] for stream in tracks}
    for packet in container.demux([video, *tracks]):
        if packet.pts is None or not packet.size or packet.is_discard:  # discarded: cut away by an edit list
            continue
        start, duration = float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base)
        index = packet.stream_index
        if index == video.index:
            times.append(start)
            end = max(end, start + duration)
            continue
        if index in readers:
            recorded = readers[index].read(bytes(packet), start, duration)
        else:
            recorded = read_text(bytes(packet).decode("utf-8", errors="replace"), start, duration)
        if recorded is not None:
            packets[index].append(recorded)
    found = next((one for one in packets.values() if one), [])  # two tracks would hold the same twice
    return np.array(sorted(times)), end, sorted(found, key=lambda packet: packet.start)
