"""`vsfmanet verify`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.terminal import print_json, run_until_stopped, tell
from vsfmanet.errors import ConfigError
from vsfmanet.media.containers import is_sequence

NOTES = """\
Without --source, checks that the file is unchanged since it was verified. With it, decodes the file and compares it
with its source: every frame with its picture and its time, sample aspect ratio, chapters, attachments, titles and
languages, and every packet of sound and subtitles, which must have been copied. What --encoder-args may have changed
by the file's record, such as the picture by filters, is not compared.

Exit codes: 0 verified, 2 usage, 3 source, 6 not whole, changed, or without a record
"""

app = App(name="verify", help_epilogue=NOTES)


def _encoder_args(file: Path) -> Sequence[str]:
    """FFmpeg's options with which a file was made, by its record; none if the file has changed since.

    Raises:
        ConfigError: It is a part of its source, or no film.
    """
    from vsfmanet.jobs.files import record_path
    from vsfmanet.jobs.record import is_intact, read_record
    from vsfmanet.media.coding import has_filters

    if file.is_dir() or is_sequence(file):
        raise ConfigError(f"{file}: --source is for films; without it, pictures are compared with their record")
    record = read_record(record_path(file))
    try:
        options = shlex.split(record.encoder_args) if record is not None and is_intact(file, record) else []
    except (OSError, ValueError, AttributeError, TypeError):  # the file cannot be read, or the record is no proof
        options = []
    if record is not None and (record.recipe.settings.get("start", 0), record.recipe.settings.get("end")) != (0, None):
        raise ConfigError(
            f"{file}: the whole of its source is needed, but by its record the file is a part (--start, --end); leave "
            "--source out: the frames were compared with those that were restored, and the record proves that they are "
            "unchanged"
        )
    if record is not None and has_filters(options):
        tell(f"{file}: by its record, filters have changed the picture ({record.encoder_args}): it is not compared")
    return options


@app.default
def verify(
    file: Annotated[Path, Parameter(name="FILE")],
    /,
    *,
    source: Annotated[Path | None, Parameter(metavar="SOURCE")] = None,
    audio: Annotated[bool, Parameter(negative="--no-audio")] = True,
    subtitles: Annotated[bool, Parameter(negative="--no-subtitles")] = True,
    attachments: Annotated[bool, Parameter(negative="--no-attachments")] = True,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Check a finished file against its record or its source.

    Args:
        file: Restored video, or folder of restored pictures.
        source: Decode FILE and compare it with this video; by default FILE is compared with its record.
        audio: Sound has been copied.
        subtitles: Subtitles have been copied.
        attachments: Fonts and cover pictures have been copied.
        as_json: Print the verdict as JSON on stdout.
    """

    def check() -> int:
        if source is None:
            from vsfmanet.jobs.record import check_against_record

            return check_against_record(file.parent if is_sequence(file) else file).frames
        from vsfmanet.jobs.progress import Report
        from vsfmanet.media.check import check_against_source
        from vsfmanet.media.source import KEPT

        wanted = {"audio": audio, "subtitles": subtitles, "attachments": attachments}
        kinds = [kind for kind, option in KEPT.items() if wanted[option]]
        with Report().listening() as report:
            return check_against_source(file, source, kinds=kinds, meters=report, encoder_args=_encoder_args(file))

    frames = run_until_stopped(check)
    if as_json:
        print_json({"verdict": "verified", "file": str(file), "frames": frames})
    else:
        tell(f"{file}: verified, {frames} frames")
    return 0
