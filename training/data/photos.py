"""Photographs as scene-linear textures, and where in them there is something to see."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vsfmanet.errors import SourceError

GAMMA = 2.2
"""Exponent between code values and light; the `linear` averaging of the data specification, 4.1."""

SUFFIXES = (".webp", ".png", ".jpg", ".jpeg")
LIGHT_OF_CODE = torch.from_numpy((np.arange(256) / 255) ** GAMMA).float()
"""(256,) light of each 8-bit code value."""


def list_photos(folder: Path) -> list[Path]:
    """Return the photographs in `folder`, sorted by name.

    Raises:
        SourceError: There is none.
    """
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not photos:
        raise SourceError(f"list_photos: a folder of WebP, PNG or JPEG files is needed, got {folder}; name another one")
    return photos


def load_photo(path: Path) -> Tensor:
    """Decode a photograph to code values: (3, H, W) uint8, RGB.

    Raises:
        SourceError: The file is not a picture.
    """
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise SourceError(f"load_photo: a picture is needed, got {path}; remove it from the folder")
    return torch.from_numpy(np.ascontiguousarray(bgr[..., ::-1].transpose(2, 0, 1)))


def to_light(codes: Tensor) -> Tensor:
    """Decode 8-bit code values (any shape, uint8) to light in [0, 1], float32."""
    return LIGHT_OF_CODE[codes.long()]


def to_code(light: Tensor) -> Tensor:
    """Encode light (any shape; clamped to [0, 1]) to code values in [0, 1]."""
    return light.clamp(0, 1) ** (1 / GAMMA)


def downscale(image: Tensor, height: int, width: int) -> Tensor:
    """Reduce (N, C, H, W) by antialiased bicubic (a = -0.5) to `height` x `width`.

    Source: the kernel of MATLAB's `imresize`, by which REDS made its LR sets; at the borders torch renormalises the
    kernel where MATLAB mirrors the image.
    """
    if image.shape[-2:] == (height, width):
        return image
    return functional.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)


def reduced(codes: Tensor, factor: float) -> Tensor:
    """Turn a photograph (3, H, W), uint8 code values, into light (3, H / factor, W / factor) in [0, 1]."""
    height, width = (round(size / factor) for size in codes.shape[-2:])
    return downscale(to_light(codes)[None], height, width)[0].clamp(0, 1)


def detail(light: Tensor) -> Tensor:
    """Measure what there is to see: the gradient's length, in code values, of `light` (3, H, W); (H - 1, W - 1)."""
    grey = to_code(light.mean(dim=0))
    return torch.hypot(grey[1:, 1:] - grey[1:, :-1], grey[1:, 1:] - grey[:-1, 1:])


def detailed_corner(generator: np.random.Generator, light: Tensor, height: int, width: int) -> tuple[int, int]:
    """Choose a `height` x `width` crop of `light` (3, H, W), likelier where there is detail.

    Returns:
        Top and left of the crop.
    """
    rows, columns = light.shape[-2] - height, light.shape[-1] - width
    corners = [(int(generator.integers(rows + 1)), int(generator.integers(columns + 1))) for _ in range(8)]
    lengths = detail(light)
    weights = np.array([float(lengths[top : top + height, left : left + width].mean()) for top, left in corners])
    weights = weights**2 + 1e-9  # a plain picture has none, and is as good anywhere
    return corners[int(generator.choice(len(corners), p=weights / weights.sum()))]
