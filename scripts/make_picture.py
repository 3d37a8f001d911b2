"""Make the picture in the README: one frame, enlarged and restored, beside its original.

python scripts/make_picture.py --no-input --crop 538 36 228 200 --out scripts/examples/comparison.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import vapoursynth as vs
from PIL import Image, ImageDraw, ImageFont

from vsfmanet import restore

EXAMPLES = Path(__file__).parent / "examples"
GAP, HEADING, FONT_SIZE = 8, 36, 26


def picture(clip: vs.VideoNode, n: int, crop: tuple[int, int, int, int], zoom: int) -> Image.Image:
    """Frame `n` of a clip as 8-bit RGB, cropped to (left, top, width, height) and enlarged without filtering."""
    with clip.resize.Bicubic(format=vs.RGB24, matrix_in=vs.MATRIX_BT709).get_frame(n) as frame:
        pixels = np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1)
    left, top, width, height = crop
    whole = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    return whole.resize((width * zoom, height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    """Restore one frame and put the crops side by side: input, bicubic, restored, original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, default=EXAMPLES / "dragonfly.mkv", help="blurred, low resolution")
    parser.add_argument("--sharp", type=Path, default=EXAMPLES / "dragonfly_sharp.mkv", help="its original, if known")
    parser.add_argument("--no-sharp", action="store_true", help="leave out the original, which is not known")
    parser.add_argument("--no-input", action="store_true", help="leave out the input, pixel by pixel")
    parser.add_argument("--model", action="append", help="of one scale; may be repeated (default: fmanetpp_x4_fast)")
    parser.add_argument("--frame", type=int, default=8, help="which frame (default: %(default)s)")
    parser.add_argument("--crop", type=int, nargs=4, required=True, metavar=("LEFT", "TOP", "WIDTH", "HEIGHT"))
    parser.add_argument("--zoom", type=int, default=2, help="screen pixels per output pixel (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()

    clip = vs.core.bs.VideoSource(str(args.clip.absolute()), cachemode=0)
    models = args.model or ["fmanetpp_x4_fast"]
    restored = {Path(model).stem if len(models) > 1 else "vsfmanet": restore(clip, model=model) for model in models}
    first = next(iter(restored.values()))
    size = {"width": first.width, "height": first.height}
    panels = {} if args.no_input else {"input": clip.resize.Point(**size)}
    if size["width"] > clip.width:
        panels["bicubic"] = clip.resize.Bicubic(**size)
    panels |= restored
    if not args.no_sharp:
        panels["original"] = vs.core.bs.VideoSource(str(args.sharp.absolute()), cachemode=0)
    crops = {name: picture(panel, args.frame, tuple(args.crop), args.zoom) for name, panel in panels.items()}

    width, height = next(iter(crops.values())).size
    sheet = Image.new("RGB", (len(crops) * (width + GAP) - GAP, height + HEADING), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for column, (name, crop) in enumerate(crops.items()):
        draw.text((column * (width + GAP) + 4, 2), name, fill="black", font=font)
        sheet.paste(crop, (column * (width + GAP), HEADING))
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
