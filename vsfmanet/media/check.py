"""Compare a finished file with its source, however it was made."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from vsfmanet.errors import ConfigError, IncompleteError, SourceError
from vsfmanet.media import clip as clips
from vsfmanet.media.coding import has_filters, has_option, sets_aspect
from vsfmanet.media.hdr import Hdr
from vsfmanet.media.meter import Meters
from vsfmanet.media.source import inspect, is_kept
from vsfmanet.media.verify import Needed, verify
from vsfmanet.sizes import sample_stretch

REMEDY = "do not use it in place of its source, and make it again"


def check_against_source(
    path: Path, source_path: Path, *, kinds: Collection[str], meters: Meters, encoder_args: Sequence[str] = ()
) -> int:
    """Decode a file, and compare pictures, times, aspect and everything copied with its source.

    Args:
        path: The file.
        source_path: Its source, of which all frames were restored.
        kinds: Kinds of streams that must have been copied: "audio", "subtitle", "attachment", "cover".
        meters: Show progress.
        encoder_args: FFmpeg's options with which the file was made, as far as they are known. What they may have
            changed is not compared.

    Returns:
        Number of frames.

    Raises:
        SourceError: The source cannot be read.
        ConfigError: The two are one file.
        IncompleteError: The file lacks something, or something differs.
    """
    filtered = has_filters(encoder_args)
    source = inspect(source_path)
    clip = clips.open_clip(source, threads=0, interlaced=True)
    width, height = clip.edges.inside(clip.node.width, clip.node.height)
    try:
        size = inspect(path).size
    except SourceError as error:
        raise IncompleteError(f"{path}: a whole video file is needed, got {error}; {REMEDY}") from error
    if os.path.samefile(path, source_path):
        raise ConfigError(f"{path}: the file and its source must be two files, got one; name the source")
    with meters.begin("verifying", clip.node.num_frames) as progress:
        needed = Needed(
            source=source,
            size=size,  # any; but with its aspect, the picture must have the source's shape
            aspect=None if sets_aspect(encoder_args) else clip.aspect * sample_stretch((width, height), size),
            pictures=None if filtered else clips.thumbnails(clip),
            likeness="restored",
            hdr=Hdr(),  # whether the encoder could carry the source's is not known here
            anchors=clip.anchors,
            times=[timestamp * clip.time_base for timestamp in clip.timestamps],
            lively=set() if filtered else clips.lively_frames(clip.node, range(clip.node.num_frames)),
            copied=[stream for stream in source.of_kind(*kinds) if is_kept(stream)],
            extent="damaged" if source.faults or clip.faults else "whole",
            chapters=not has_option(encoder_args, "map_chapters"),
            names=not has_option(encoder_args, "metadata", "map_metadata"),
        )
        verify(path, needed, advance=progress.advance, remedy=REMEDY)
    return clip.node.num_frames
