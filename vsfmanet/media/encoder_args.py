"""The user's options for the encoder, read so that none of their words can name another output.

FFmpeg takes every word that is neither an option nor the value of one for a file to write, and `-y` replaces it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from vsfmanet.errors import ConfigError

OPTION = re.compile(r"-([a-zA-Z]\w*(?:-\w+)*)(:\S+)?")
"""An option with the stream that it is for; the first group is its name."""

WITHOUT_VALUE = {
    *("L", "license", "version", "buildconf", "formats", "muxers", "demuxers", "devices", "codecs", "decoders"),
    *("encoders", "bsfs", "protocols", "filters", "pix_fmts", "layouts", "sample_fmts", "dispositions", "colors"),
    *("hwaccels", "hide_banner", "h", "help", "sources", "sinks", "y", "n", "print_graphs", "stats", "report"),
    *("ignore_unknown", "copy_unknown", "recast_media", "benchmark", "benchmark_all", "stdin", "dump", "hex", "re"),
    *("copyts", "start_at_zero", "auto_conversion_filters", "debug_ts", "vstats", "bitexact", "accurate_seek"),
    *("find_stream_info", "shortest", "copyinkf", "vn", "an", "sn", "dn", "display_hflip", "display_vflip"),
    *("autorotate", "autoscale", "fix_sub_duration", "fix_sub_duration_heartbeat", "xerror", "force_fps"),
    *("deinterlace", "intra", "psnr", "qphist", "same_quant", "sameq"),
}
"""FFmpeg's options that take no value: the word after them would be an output. With "no" before it, too."""

OF_FILES = {
    *("i", "f", "attach", "dump_attachment", "progress", "vstats_file", "sdp_file", "print_graphs_file", "pass"),
    *("passlogfile", "stats_enc_pre", "stats_enc_post", "stats_mux_pre", "filter_script", "filter_complex_script"),
    *("target",),
}
"""FFmpeg's options that open, write or choose files beside the one output."""


def parse_encoder_args(text: str) -> tuple[str, ...]:
    """Split options for the encoder into words: options in turn with their values.

    Args:
        text: FFmpeg's options, as in a shell.

    Returns:
        An even number of words.

    Raises:
        ConfigError: Quotes do not match, a word is neither an option nor its value, or an option would do more than
            code the video.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"--encoder-args must be options as in a shell, got {text!r} ({error}); close the quotes"
        ) from error
    given = iter(words)
    for word in given:
        option = OPTION.fullmatch(word)
        if option is None:
            raise ConfigError(
                f"--encoder-args must be options with a value each, got the stray word {word!r}, which FFmpeg would "
                "take for another file to write; leave it out, or put quotes around a value with blanks"
            )
        name = option[1]
        if name in WITHOUT_VALUE or name.removeprefix("no") in WITHOUT_VALUE:
            raise ConfigError(
                f"--encoder-args must be options with a value each, got {word}, which takes none; leave it out"
            )
        if name in OF_FILES:
            raise ConfigError(f"--encoder-args must be about the coding of one output, got {word}; leave it out")
        if next(given, None) is None:
            raise ConfigError(f"--encoder-args must be options with a value each, got {word} without one; add it")
    return tuple(words)


def names_encoder(words: Sequence[str]) -> bool:
    """Whether options name the encoder of the video."""
    return any(word in ("-c:v", "-codec:v", "-vcodec") for word in words)
