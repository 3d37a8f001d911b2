"""What an output must be, however it is made."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from vsfmanet.media.clip import Colour
from vsfmanet.media.coding import likeness
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.source import Source, Stream
from vsfmanet.media.thumbnails import Likeness


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """What an output must be, however it is made."""

    source: Source
    """File that the other streams are copied from."""
    size: tuple[int, int]
    """Width and height of the restored frames."""
    pixel_format: str
    """Pixel format of the frames, FFmpeg's name."""
    colour: Colour
    """Colour tags."""
    hdr: Hdr
    """HDR metadata of the whole film."""
    aspect: Fraction
    """Sample aspect ratio."""
    rate: Fraction
    """Nominal frames per second, a hint for encoder and player; the timestamps decide."""
    timestamps: tuple[int, ...]
    """Time of each frame, on the source's clock, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""
    start: Fraction | None
    """Time on the source's clock that becomes 0, seconds; nothing before it is copied. None to copy all as it is."""
    duration: Fraction | None
    """Length of what is copied, seconds; None for all."""
    copied: tuple[Stream, ...]
    """Streams to copy: sound, subtitles, attachments, covers."""
    encoder_args: tuple[str, ...]
    """FFmpeg's output options for the video."""
    suffix: str
    """Suffix of the output, in lower case, which names its container."""

    @property
    def likeness(self) -> Likeness:
        """How closely the output's frames must match the encoded ones."""
        return likeness(self.encoder_args, self.pixel_format)


def cover_file(cover: Stream) -> str:
    """Name of the file that holds a cover picture while a job runs."""
    return f"cover{cover.index}.{'jpg' if cover.codec == 'mjpeg' else cover.codec}"


def attached_covers(film: Film) -> list[Stream]:
    """Covers that become attachments, in Matroska; FFmpeg attaches files only."""
    return [stream for stream in film.copied if stream.kind == "cover" and film.suffix == ".mkv"]


def mapped_streams(film: Film) -> list[Stream]:
    """Streams that FFmpeg copies from the source, in the order in which they follow the video."""
    attached = attached_covers(film)
    return [stream for stream in film.copied if stream not in attached]
