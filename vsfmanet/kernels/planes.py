"""Python side of the kernels for planes on CUDA, which are `planes.cu` beside this module; see `gpu`.

The references are `Coding.decode` and `Coding.encode`. One launch takes the place of some fifty.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vsfmanet.kernels import gpu
from vsfmanet.ops.colour import Coding

# As in planes.cu.
_TILE_WIDTH = 64
_TILE_HEIGHT = 16


def decode(coding: Coding, packed: Tensor, height: int, width: int) -> Tensor:
    """See `Coding.decode`."""
    planes = coding.planes(packed, height, width)
    rgb = torch.empty(3, height, width, device=packed.device)
    across, down = coding.subsampling
    gpu.launch(
        f"decode_{_name(coding)}", packed, (-(-width // gpu.THREADS), height), 0,
        packed, _table(coding, packed.device, True), rgb, height, width, len(planes), coding.family == "yuv",
        across, down,
    )  # fmt: skip
    return rgb


def encode(coding: Coding, rgb: Tensor) -> Tensor:
    """See `Coding.encode`."""
    height, width = rgb.shape[1:]
    packed = torch.empty(coding.size(height, width) + 1, dtype=coding.dtype, device=rgb.device)
    packed[-1:].fill_(1)
    across, down = coding.subsampling
    columns, rows = _reach(_TILE_WIDTH, across), _reach(_TILE_HEIGHT, down)
    shared = 2 * columns * (rows + (_TILE_HEIGHT >> down)) if across or down else 0
    gpu.launch(
        f"encode_{_name(coding)}", packed, (-(-width // _TILE_WIDTH), -(-height // _TILE_HEIGHT)), shared,
        rgb, _table(coding, rgb.device, False), packed, height, width, *rgb.stride(),
        len(coding.shapes(height, width)), coding.family != "rgb", across, down, 2**coding.bits - 1,
    )  # fmt: skip
    return packed


def _name(coding: Coding) -> str:
    return gpu.NAMES[coding.dtype]


def _reach(side: int, subsampling: int) -> int:
    """Return the pixels that a filter of chroma reads for a tile's side."""
    return side + (4 << subsampling if subsampling else 1) - (1 << subsampling)


@functools.lru_cache(maxsize=64)
def _table(coding: Coding, device: torch.device, decoding: bool) -> Tensor:
    numbers = coding.decoding_numbers() if decoding else coding.encoding_numbers()
    return torch.tensor(numbers, dtype=torch.float32).to(device)
