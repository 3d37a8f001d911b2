"""What the path branch reads: a frame and its neighbours, sampled along the blur of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vsfmanet.errors import ShapeError
from vsfmanet.ops.warp import sample_path


@dataclass(frozen=True, kw_only=True, slots=True)
class PathPlaces:
    """Places along the blur at which images are sampled, and the cells that the samples are put into."""

    own_reach: float
    """The farthest place at which the frame itself is sampled, in units of half the blur."""
    own_count: int
    """Number of these places, at least 2."""
    neighbour_reach: float
    """The same for each neighbour, around the pixel that the flow leads to."""
    neighbour_count: int
    """Number of these places, at least 2."""
    unit: float
    """Blur in pixels at which its softsign is one half."""
    grid: int
    """Side in pixels of the cells of which each has a motion; 1, 2 or 4."""
    size: int
    """Side in pixels of the cells of the result; 1, 2 or 4, and at most `grid`."""

    @property
    def channels(self) -> int:
        """Channels of a pixel: samples, the pixel itself, and the blur as a vector and a length."""
        return 3 * (self.own_count + 2 * self.neighbour_count) + 6


def path_cells_reference(
    images: tuple[Tensor, Tensor, Tensor],
    motion: Tensor,
    places: PathPlaces,
    origin: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Sample a frame and its neighbours along the blur of each pixel, and subtract the pixel.

    Motion is enlarged to one of each pixel, bilinear. Samples are bilinear too; images repeat their border.

    Args:
        images: (N, 3, H, W) each, in [0, 1], fp32: the frames, the next and the previous ones.
        motion: (N, 6, h/g, w/g), fp32, input pixels, right and down each: half of the motion blur, flow to the next
            frame, flow to the previous frame. g is `places.grid`.
        places: Where the images are sampled.
        origin: Row and column of the images where the tile of h x w pixels begins that the motion covers.
        dtype: Type of the result.

    Returns:
        (N, `places.channels` * d^2, h/d, w/d), channels-last where d > 1, d = `places.size`; pixels of a cell in the
        order of `torch.nn.PixelUnshuffle`. Channels of a pixel: itself minus 0.5 (3), softsign of the blur (2),
        logarithm of its length (1), then the samples minus the pixel of the frame, the next and the previous one,
        (3, count) each.

    Raises:
        ShapeError: See `check_path`.
    """
    check_path(images, motion, places, origin)
    if places.grid > 1:
        motion = F.interpolate(motion, scale_factor=places.grid, mode="bilinear", align_corners=False)
    blur, ahead, back = motion.split(2, dim=1)
    (top, left), (height, width) = origin, motion.shape[-2:]
    own = images[0][..., top : top + height, left : left + width]
    length = blur.square().sum(dim=1, keepdim=True).add(1e-2).log() / 2
    read = [own - 0.5, F.softsign(blur / places.unit), length]
    for image, shift, reach, count in (
        (images[0], None, places.own_reach, places.own_count),
        (images[1], ahead, places.neighbour_reach, places.neighbour_count),
        (images[2], back, places.neighbour_reach, places.neighbour_count),
    ):
        samples = sample_path(image, blur, reach, count, shift, origin)
        read.append(samples.sub_(own[:, :, None]).flatten(1, 2))
    together = torch.cat([part.to(dtype) for part in read], dim=1)
    if places.size == 1:
        return together
    parts = rearrange(together, "n c (h p) (w q) -> n h w (c p q)", p=places.size, q=places.size)
    return parts.permute(0, 3, 1, 2)


def check_path(
    images: tuple[Tensor, Tensor, Tensor], motion: Tensor, places: PathPlaces, origin: tuple[int, int]
) -> None:
    """Check that the arguments of `path_cells_reference`, with the shapes listed there, fit each other.

    Raises:
        ShapeError: They do not.
    """
    n, channels, height, width = images[0].shape
    rows, columns = (places.grid * side for side in motion.shape[-2:])
    alike = channels == 3 and all(image.shape == images[0].shape for image in images)
    inside = min(origin) >= 0 and origin[0] + rows <= height and origin[1] + columns <= width
    if not (alike and inside and motion.shape[:-2] == (n, 6)):
        raise ShapeError(
            f"images must be (N, 3, H, W) each, and motion (N, 6, h, w) of a tile of {places.grid} h x {places.grid} w "
            f"pixels in them, got {' and '.join(str(tuple(image.shape)) for image in images)}, {tuple(motion.shape)} "
            f"and a tile at {origin}"
        )
