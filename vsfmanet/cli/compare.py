"""`vsfmanet compare`."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.options import NETWORK, NO_OPTION, OUTPUT, SettingsOptions, plain, read_places, read_whole
from vsfmanet.cli.terminal import print_json, run_until_stopped
from vsfmanet.errors import ConfigError, OutputError
from vsfmanet.jobs.job import RestoreJob
from vsfmanet.media.presets import BitDepth, Preset
from vsfmanet.settings import AUTO, RestoreSettings

NOTES = """\
Only the frames around each moment are decoded and restored, so that this takes seconds. The page shows each moment with
a slider between any two of the source and the choices, with the time and the size that the whole film would take; the
picture holds the same moments side by side. Both need no other files.

Exit codes: 0 done, 1 bug, 2 usage, 3 source, 4 device, 5 output, 8 weights, 128+n stopped by signal n

Examples:

    vsfmanet compare film.mkv --at 0:10:00 --at 0:42:10 --model fmanetpp_x4_fast --model fmanetpp_x4_base
    vsfmanet compare film.mkv --at 1500 --strength 0.5 --strength 1 --preset hevc10 --page film.html
"""

app = App(name="compare", help_epilogue=NOTES)

SUFFIX = ".compare.html"


@dataclass(frozen=True, kw_only=True)
class _Settings(SettingsOptions):
    """`RestoreSettings` as options, without those that may be repeated."""

    model: Annotated[str, NO_OPTION] = AUTO
    strength: Annotated[float, NO_OPTION] = 1.0


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of the comparison."""

    at: Annotated[
        tuple[int | str, ...], Parameter(converter=read_places, metavar="FRAME|TIME", show_default=False)
    ] = ()
    """Moment to compare: a frame number, or a time such as 0:10:00. May be repeated; by default three moments of the
    film."""
    models: Annotated[tuple[str, ...], Parameter(name="--model", metavar="NAME")] = (AUTO,)
    """A name from `vsfmanet models`, or the path of a .safetensors file. May be repeated."""
    strengths: Annotated[tuple[float, ...], Parameter(name="--strength", metavar="X")] = (1.0,)
    """How much of the restoration the result shows, from 0 to 1. May be repeated: each model is shown with each."""
    page: Annotated[Path | None, Parameter(metavar="FILE")] = None
    """HTML page to make; the picture is beside it, with the suffix .png. By default FILM.compare.html, in this
    folder."""
    preset: Preset = "default"
    """Encoder, as for restore; it decides the size of the film."""
    bit_depth: Annotated[BitDepth | None, Parameter(converter=read_whole)] = None
    """Bits per sample of the result, as for restore."""
    encoder_args: Annotated[str, Parameter(metavar="ARGS")] = ""
    """FFmpeg's options for the video, as for restore."""
    ffmpeg: Annotated[Path | None, Parameter(metavar="PROGRAM")] = None
    """FFmpeg program to use."""
    overwrite: bool = False
    """Replace a page and a picture that are there."""
    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print names of the files, times and sizes as JSON on stdout."""


_OPTIONS, _SETTINGS = _Options(), _Settings()


@app.default
def compare(
    source: Annotated[Path, Parameter(name="FILM")],
    /,
    *,
    options: Annotated[_Options, Parameter(name="*", group=OUTPUT)] = _OPTIONS,
    settings: Annotated[_Settings, Parameter(name="*", group=NETWORK)] = _SETTINGS,
) -> int:
    """Show some moments of a film before and after, by one model or several.

    Args:
        source: Video file, or VapourSynth script (.vpy); it is only read.
    """
    from vsfmanet.atomic import replacing, write_whole
    from vsfmanet.jobs.files import exposure_sidecar
    from vsfmanet.jobs.progress import Report
    from vsfmanet.media.compare import Choice, Comparison
    from vsfmanet.media.compare import compare as restore_moments
    from vsfmanet.media.compare_page import html, sheet
    from vsfmanet.media.excerpt import outline
    from vsfmanet.media.ffmpeg import find_ffmpeg
    from vsfmanet.media.pictures import png

    page = options.page or Path(f"{source.stem}{SUFFIX}")
    picture = page.with_suffix(".png")
    _check_outputs(page, picture, overwrite=options.overwrite)
    plainly = plain(RestoreSettings, settings)
    sidecar = exposure_sidecar(source) if plainly.exposure == "auto" else None
    if sidecar is not None:
        plainly = replace(plainly, exposure=str(sidecar))
    asked = [
        replace(plainly, model=model, strength=strength) for model in options.models for strength in options.strengths
    ]
    several = len(options.strengths) > 1
    choices = [
        Choice(
            name=Path(settings.named_model).stem + (f", strength {settings.strength:g}" if several else ""),
            settings=settings,
        )
        for settings in asked
    ]
    if len({choice.name for choice in choices}) < len(choices):
        given = f"{', '.join(options.models)} with {', '.join(f'{strength:g}' for strength in options.strengths)}"
        raise ConfigError(f"different models and strengths are needed, got {given}; mend --model or --strength")
    job = RestoreJob(  # the checks of the encoder's options are those of a job
        source=source, target=Path("any.mkv"), preset=options.preset, bit_depth=options.bit_depth,
        encoder_args=options.encoder_args,
    )  # fmt: skip
    report = Report()

    def work() -> Comparison:
        with report.listening():
            return restore_moments(
                outline(source.absolute()),
                choices,
                at=options.at,
                encoder_args=options.encoder_args,
                preset=options.preset,
                depth=job.depth,
                container=".mkv",
                ffmpeg=find_ffmpeg(options.ffmpeg),
                meters=report,
            )

    found = run_until_stopped(work, report.close)
    try:
        write_whole(page, html(found, beside=page.absolute().parent, now=datetime.now().astimezone()))
        with replacing(picture) as file:
            file.write(png(sheet(found)))
    except OSError as error:
        raise OutputError(
            f"{page}: the page and its picture must be written, but {error}; check folder and disk"
        ) from error
    if options.as_json:
        choices_table = [
            {
                "model": choice.settings.model,
                "strength": choice.settings.strength,
                "size": forecast.size,
                "frame_seconds": round(forecast.frame_seconds, 4),
                "seconds": round(forecast.seconds, 1),
                "video_bytes": forecast.video_bytes,
            }
            for choice, forecast in zip(found.choices, found.forecasts, strict=True)
        ]
        moments = [float(shot.time) for shot in found.shots]
        print_json({"page": str(page), "picture": str(picture), "moments": moments, "choices": choices_table})
    else:
        shown, ways = len(found.shots), len(choices)
        counted = f"{shown} {'moment' if shown == 1 else 'moments'} in {ways} {'way' if ways == 1 else 'ways'}"
        report.note(f"made {page} and {picture}: {counted}")
    return 0


def _check_outputs(page: Path, picture: Path, *, overwrite: bool) -> None:
    """Refuse files that cannot be made, before any work.

    Raises:
        ConfigError: A file is there, or the page has another suffix than .html.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{page}: the page must end in .html, got {page.suffix or 'no suffix'}; mend --page")
    there = [path for path in (page, picture) if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]}: the file exists already; name another with --page, or pass --overwrite")
