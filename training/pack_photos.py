"""Make a small folder of a large one of photographs, to take to a machine that has a GPU for a short time.

    python -m training.pack_photos --photos PHOTOS --out packed --megabytes 40
    python -m training.render_pool --photos packed --out pool --device cuda --workers 8       # there
    python -m training.train_restoration --pool pool --pool-on-device --device cuda ...

Photographs are reduced, which also hides the softness of their lenses, and coded as WebP at the best quality that fits.
A pool of the packed photographs is not the pool of the originals: fast scenes repeat more of their picture.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.photos import downscale, list_photos, load_photo
from training.options import command
from vsfmanet.errors import ConfigError, OutputError

QUALITIES = (92, 88, 82, 75, 65, 50)
"""WebP qualities that are tried, best first."""


def pack(*, photos: Path, out: Path, side: int = 768, megabytes: float = 40) -> None:
    """Reduce and code all photographs, at the first quality at which they fit.

    Args:
        photos: Folder of sharp photographs.
        out: Folder to make.
        side: Largest longer side of a packed photograph, pixels.
        megabytes: Largest size of all together.
    """
    if out.exists():
        raise OutputError(f"a new folder is needed, {out} exists; remove it or name another")
    pictures = {path.stem: reduced_photo(path, side) for path in list_photos(photos)}
    for quality in QUALITIES:
        coded = {name: code(picture, quality) for name, picture in pictures.items()}
        total = sum(map(len, coded.values())) / 1e6
        print(f"quality {quality}: {total:.1f} MB", flush=True)
        if total <= megabytes:
            break
    else:
        raise ConfigError(
            f"{total:.1f} MB are needed for {len(pictures)} photographs of {side} pixels, got "
            f"{megabytes:g}; take a smaller --side or more --megabytes"
        )
    out.mkdir(parents=True)
    for name, data in coded.items():
        (out / f"{name}.webp").write_bytes(data)
    print(f"{out}: {len(coded)} photographs")


def reduced_photo(path: Path, side: int) -> NDArray[np.uint8]:
    """Read a photograph, its longer side at most `side`: (H, W, 3), BGR."""
    codes = load_photo(path)
    factor = max(1.0, max(codes.shape[-2:]) / side)
    height, width = (round(size / factor) for size in codes.shape[-2:])
    small = downscale(codes[None].float(), height, width)[0].round().clamp(0, 255).byte()
    return np.ascontiguousarray(small.flip(0).permute(1, 2, 0).numpy())


def code(picture: NDArray[np.uint8], quality: int) -> bytes:
    """WebP of (H, W, 3), BGR."""
    _, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return data.tobytes()


main = command(pack, __doc__)

if __name__ == "__main__":
    main()
