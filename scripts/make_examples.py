"""Make the clips in scripts/examples from one photograph and one real clip.

    uv run python scripts/make_examples.py --photo dragonfly.webp --real walk.mp4

- `dragonfly.mkv`: 192x108, blurred by a moving camera, its exposure changing along Algorithm S1 of FMA-Net++; rendered
  at 768x432 from the photograph, integrated in linear light, reduced by 4.
- `dragonfly_sharp.mkv`: what the network should find, 768x432.
- `dragonfly_exposure.txt`: the exposure of each frame, as a part of the frame interval.
- `walk.mp4`: the first frames of the real clip, its video stream copied bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.exposure import exposure_walk
from training.data.render import render_sequence
from training.data.scene import Scene, random_background
from vsfmanet.media.ffmpeg import find_ffmpeg
from vsfmanet.networks.exposure_extractor import LEVELS

WIDTH, HEIGHT, FRAMES, RATE = 768, 432, 48, 24
SPEED = 7.0
"""Mean speed of the camera in HR pixels per frame."""
SEED = 2512


def encode(ffmpeg: str, frames: NDArray[np.uint8], path: Path, quality: int) -> None:
    """Write (T, 3, H, W) RGB as H.264 4:2:0, BT.709."""
    height, width = frames.shape[-2:]
    command = [
        ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(RATE),
        "-i", "-", "-vf", "scale=out_color_matrix=bt709:flags=accurate_rnd+full_chroma_int", "-pix_fmt", "yuv420p",
        "-c:v", "libx264", "-preset", "veryslow", "-crf", str(quality), "-colorspace", "bt709",
        "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv", str(path),
    ]  # fmt: skip
    subprocess.run(command, input=np.ascontiguousarray(frames.transpose(0, 2, 3, 1)).tobytes(), check=True)


def main() -> None:
    """Render and cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, required=True, help="sharp photograph, at least 1100 pixels wide")
    parser.add_argument("--real", type=Path, required=True, help="real clip in MP4")
    parser.add_argument("--real-frames", type=int, default=30, help="frames to keep of it (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("scripts/examples"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    ffmpeg = str(find_ffmpeg().path)

    generator = np.random.default_rng(SEED)
    background = random_background(generator, [args.photo], height=HEIGHT, width=WIDTH, frames=FRAMES, speed=SPEED)
    scene = Scene(layers=(background,), height=HEIGHT, width=WIDTH, frames=FRAMES)
    sequence = render_sequence(scene, scale=4, max_subframes=80, device="cpu")
    levels = exposure_walk(generator, FRAMES, start=4, interval=5)
    encode(ffmpeg, sequence.lr[levels - 1, np.arange(FRAMES)], args.out / "dragonfly.mkv", quality=8)
    encode(ffmpeg, sequence.hr, args.out / "dragonfly_sharp.mkv", quality=18)
    exposures = "".join(f"{level / LEVELS:g}\n" for level in levels)
    (args.out / "dragonfly_exposure.txt").write_text(exposures)

    cut = [ffmpeg, "-v", "error", "-y", "-i", str(args.real), "-map", "0:v:0", "-c", "copy", "-map_metadata", "-1"]
    subprocess.run([*cut, "-frames:v", str(args.real_frames), str(args.out / "walk.mp4")], check=True)


if __name__ == "__main__":
    main()
