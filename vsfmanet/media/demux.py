"""Opening a video file with FFmpeg's demuxers: that file alone, read-only."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

PLAYLISTS = {"concat", "dash", "hls", "image2", "imf", "rtsp", "sdp", "tty", "vapoursynth", "webm_dash_manifest"}
"""Demuxers that open other files, run code, or draw text: never used for a source. `image2` reads `a%03d.png` as a
series of files, and nothing else."""

HOLDING_ASPECT = {"asf", "matroska", "mov", "mxf", "nut"}
"""Demuxers whose containers store the aspect of a sample; it wins over that of the codec."""


def open_container(path: Path) -> InputContainer:
    """Open a file for reading; playlists and network addresses are refused.

    Raises:
        FFmpegError: No demuxer takes it.
        OSError: It cannot be read.
    """
    allowed = ",".join(sorted(av.formats_available - PLAYLISTS))
    return av.open(f"file:{path}", options={"protocol_whitelist": "file", "format_whitelist": allowed})


def main_track(container: InputContainer) -> VideoStream | None:
    """The video track that players show, which is no cover picture; None without one that can be decoded."""
    track = container.streams.best("video")
    if not isinstance(track, VideoStream) or Disposition.attached_pic in track.disposition:
        return None
    return track if _decodes(track) else None


def _decodes(track: VideoStream) -> bool:
    """Whether FFmpeg knows the codec of a track; PyAV has no codec context for others."""
    return bool(track.codec_context)


def demuxer(container: InputContainer) -> str:
    """The first of FFmpeg's names of a container's format."""
    return container.format.name.split(",")[0]
