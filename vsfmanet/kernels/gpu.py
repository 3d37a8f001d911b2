"""Python side of the kernels for CUDA, which are `network.cu` beside this module, compiled and launched by CuPy.

Arguments and results are those of the references in `vsfmanet.ops`. Convolutions and products with a matrix are torch's
own. A launch passes the addresses of torch's tensors, on torch's current stream; nothing is copied.

Each kernel is compiled for capability 7.5 to 12.0 and compared with its reference on the CPU in the tests; none has
been run on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import cupy
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsfmanet.ops.convolution import conv3x3_reference as conv3x3
from vsfmanet.ops.path import PathPlaces
from vsfmanet.ops.projection import add_product_reference as add_product

__all__ = [
    "add_product",
    "add_skip",
    "conv3x3",
    "feed_forward",
    "head_grams",
    "path_cells",
    "pixel_norm",
    "squared_projection",
    "warp_neighbours",
]

_SCALARS = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half"}
_CODES = (torch.uint8, torch.uint16)
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*_SCALARS, *_CODES)}
"""Supported types, as the names of kernels contain them."""
OPTIONS = ("-std=c++17", "-diag-suppress=177")
"""Options of the compiler. Warning 177 is of functions that another type needs."""

_FOLDER = Path(__file__).parent
_AT_ONCE = 4
"""Channels that a thread reads at once, where their number and their addresses allow it."""

THREADS = 256
"""Threads of a block, at most."""

# As in network.cu.
_ROWS = 4
_SEGMENT = 256
_STAGE = 32
_PART = 1024
_TILE = 4

_SHARED_FLOATS = 12 * 1024
"""Floats of shared memory that a block has on every GPU without asking for more: 48 KiB."""

type Argument = Tensor | int | float


def source(dtype: torch.dtype) -> str:
    """Return the text that is compiled for images, or for code values, of a type."""
    texts = [(_FOLDER / name).read_text("utf-8") for name in ("scalar.h", "network.cu", "planes.cu")]
    name = NAMES[dtype]
    made = f"OF_CODES({name}_t, {name})\n" if dtype in _CODES else f"OF_TYPE({_SCALARS[dtype]}, {name})\n"
    return "".join([*texts, made])


def packed(arguments: tuple[Argument, ...]) -> tuple[np.generic, ...]:
    """Return the arguments of a kernel as it takes them: addresses and `long long` in 8 bytes, `float` in 4."""
    return tuple(
        np.uint64(each.data_ptr())
        if isinstance(each, Tensor)
        else np.float32(each)
        if isinstance(each, float)
        else np.int64(each)
        for each in arguments
    )


def launch(name: str, x: Tensor, grid: tuple[int, ...], shared: int, *arguments: Argument) -> None:
    """Start a kernel of 256 threads a block on the current stream of the device of `x`.

    Args:
        name: Name of the kernel in the source.
        x: Tensor on the device, of the type of the images.
        grid: Blocks along x, y and z.
        shared: Floats of shared memory of a block.
        arguments: Those of the kernel.
    """
    stream = cupy.cuda.Stream.from_external(_Stream(torch.cuda.current_stream(x.device).cuda_stream))
    with torch.cuda.device(x.device), stream:
        _kernel(name, x.dtype, x.device.index)(grid, (THREADS,), packed(arguments), shared_mem=4 * shared)


class _Stream:
    """A stream of torch's by its address, as CuPy takes it; those of torch 2.8 do not offer it themselves.

    Args:
        address: Of the stream.
    """

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


@functools.cache
def _kernel(name: str, dtype: torch.dtype, device: int) -> Callable[..., None]:
    """Return a kernel for the current device, which is number `device`."""
    return _module(dtype).get_function(name)


@functools.cache
def _module(dtype: torch.dtype) -> cupy.RawModule:
    """Return the kernels for a type. CuPy compiles them for the current device, and keeps the result on disk."""
    return cupy.RawModule(code=source(dtype), options=OPTIONS)


def warp_neighbours(
    feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
) -> Tensor:
    """See `warp_neighbours_reference`; the arguments have been checked."""
    n, channels, height, width = feat.shape
    images = [_packed(image.to(feat.dtype)) for image in (feat, *neighbours)]
    out = _like(feat, 3 * channels)
    aligned = channels % num_flows == 0 and channels // num_flows % _AT_ONCE == 0
    at_once = _at_once(channels, *images) if aligned else 1
    columns = THREADS // min(channels // at_once, THREADS)
    launch(
        f"warp_neighbours_{NAMES[feat.dtype]}_{at_once}", feat, (n * height * _parts(width, columns), 2), 0,
        *images, _packed(flow.float()), out, height, width, *origin, *neighbours[0].shape[2:], channels, num_flows,
    )  # fmt: skip
    return out


def feed_forward(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """See `feed_forward_reference`."""
    x = _packed(F.conv2d(x, pointwise))
    n, channels, height, width = x.shape
    half = channels // 2
    out = _like(x, half)
    at_once = _at_once(half, x)
    busy, chunks = _lanes(half // at_once)
    launch(
        f"gated_{NAMES[x.dtype]}_{at_once}", x,
        (n * _parts(height, _ROWS) * _parts(width, THREADS // busy), chunks), 0,
        x, _taps(depthwise), out, height, width, half, busy,
    )  # fmt: skip
    return shortcut + F.conv2d(out, reduce)


def squared_projection(x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """See `squared_projection_reference`."""
    x = _packed(F.conv2d(x, pointwise))
    n, channels, height, width = x.shape
    out, rows = _like(x, channels), _parts(height, _ROWS) * _parts(width, _SEGMENT)
    squares = torch.empty(n, rows, channels, device=x.device)
    at_once = _at_once(channels, x)
    busy, chunks = _lanes(channels // at_once)
    launch(
        f"squared_{NAMES[x.dtype]}_{at_once}", x, (n * rows, chunks), THREADS * at_once,
        x, _taps(depthwise), out, squares, height, width, channels, busy,
    )  # fmt: skip
    return out, squares[..., :squared].sum(dim=1)


def head_grams(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """See `head_grams_reference`."""
    n, channels, height, width = query.shape
    own, pixels = channels // heads, height * width
    parts, side = _parts(pixels, _PART), _parts(own, _TILE)
    shared = max(2 * _STAGE * heads * side * _TILE, THREADS * _TILE**2)
    if shared > _SHARED_FLOATS:  # no network of this package is so wide
        from vsfmanet.ops.attention import head_grams_reference

        return head_grams_reference(query, key, heads)
    sums = torch.empty(n, parts, heads, own, own, device=query.device)
    launch(
        f"head_grams_{NAMES[query.dtype]}", query, (parts, n, _parts(heads * side**2, THREADS)), shared,
        *_stepped(query), *_stepped(key), sums, pixels, heads, own,
    )  # fmt: skip
    return sums.sum(dim=1)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """See `pixel_norm_reference`."""
    n, channels, height, width = x.shape
    x, out = _packed(x), _like(x, channels)
    stride, pixels = channels | 1, n * height * width
    held = max(1, min(32, (_SHARED_FLOATS - 2 * THREADS) // (stride + 2)))
    shared = held * stride + 2 * (THREADS // held) * held + 2 * held
    launch(
        f"pixel_norm_{NAMES[x.dtype]}_{_at_once(channels, x)}", x, (_parts(pixels, held),), shared,
        x, weight.float(), bias.float(), out, epsilon, pixels, channels, held,
    )  # fmt: skip
    return out


def path_cells(
    images: tuple[Tensor, Tensor, Tensor],
    motion: Tensor,
    places: PathPlaces,
    origin: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """See `path_cells_reference`; the arguments have been checked."""
    n, _, rows, columns = motion.shape
    side, height, width = places.size, rows * places.grid, columns * places.grid
    out = torch.empty(
        (n, places.channels * side**2, height // side, width // side),
        dtype=dtype, device=motion.device, memory_format=torch.channels_last,
    )  # fmt: skip
    launch(
        f"path_cells_{NAMES[dtype]}", out, (n * (height // side) * _parts(width // side, THREADS // side**2),),
        9 * THREADS, *(image.float().contiguous() for image in images), motion.float().contiguous(), out, height, width,
        *origin, *images[0].shape[2:], places.grid, side, places.own_count, places.neighbour_count,
        float(places.own_reach), float(places.neighbour_reach), float(places.unit),
    )  # fmt: skip
    return out


def add_skip(lr: Tensor, residual: Tensor, scale: int, shuffle: int) -> Tensor:
    """See `add_skip_reference`."""
    n, _, height, width = lr.shape
    rows, columns = residual.shape[2:]
    assert residual.shape[1] == 3 * shuffle**2
    assert rows * shuffle >= height * scale
    assert columns * shuffle >= width * scale
    out = torch.empty(n, 3, height * scale, width * scale, device=lr.device)
    launch(
        f"add_skip_{NAMES[residual.dtype]}", residual, (_parts(width * scale, THREADS), height * scale, n), 0,
        lr.float().contiguous(), _packed(residual), out, height, width, rows, columns, scale, shuffle,
    )  # fmt: skip
    return out


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _lanes(count: int) -> tuple[int, int]:
    """Divide groups of channels among blocks: groups of a block, at most 32, and number of blocks."""
    chunks = _parts(count, 32)
    return _parts(count, chunks), chunks


def _at_once(channels: int, *images: Tensor) -> int:
    """Return how many channels of packed images a thread can read at once, 4 or 1."""
    aligned = all(image.data_ptr() % (_AT_ONCE * image.element_size()) == 0 for image in images)
    return _AT_ONCE if aligned and channels % _AT_ONCE == 0 else 1


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _stepped(x: Tensor) -> tuple[Tensor, int]:
    """Return `x` (N, C, H, W) channels-last and its pixels' distance; channels of a wider image are not copied."""
    _, channels, height, width = x.shape
    step = x.stride(3)
    whole = x.stride() == (height * width * step, 1, width * step, step)
    return (x, step) if whole else (_packed(x), channels)


def _like(x: Tensor, channels: int) -> Tensor:
    """Return an uninitialised tensor (N, channels, H, W), channels-last, for `x` (N, C, H, W)."""
    n, _, height, width = x.shape
    return torch.empty(n, channels, height, width, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _taps(weight: Tensor) -> Tensor:
    """Return a depthwise weight (C, 1, 3, 3) as (9, C), fp32."""
    return weight.flatten(1).t().float().contiguous()
