"""Fast forms of the operations that cost most: in C++ on CPUs, in CUDA C++ by CuPy on GPUs.

Each has a reference in plain torch in `vsfmanet.ops`, which defines shapes and results. `kernels_for` decides which one
runs: training, exports, and machines without a compiler or CuPy run the reference.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from vsfmanet.devices import find_cupy
from vsfmanet.kernels import cpu, reference
from vsfmanet.kernels.build import library
from vsfmanet.ops.colour import Coding
from vsfmanet.ops.path import PathPlaces, check_path
from vsfmanet.ops.warp import check_neighbours

_CUDA_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROBE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}

_log = logging.getLogger(__name__)


class Kernels(Protocol):
    """The operations, as a module for one kind of device implements them."""

    def warp_neighbours(
        self, feat: Tensor, neighbours: tuple[Tensor, Tensor], flow: Tensor, num_flows: int, origin: tuple[int, int]
    ) -> Tensor:
        """Compute the same as `warp_neighbours_reference`; the caller has checked the arguments."""
        ...

    def feed_forward(self, shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
        """See `feed_forward_reference`."""
        ...

    def squared_projection(
        self, x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int
    ) -> tuple[Tensor, Tensor]:
        """See `squared_projection_reference`."""
        ...

    def head_grams(self, query: Tensor, key: Tensor, heads: int) -> Tensor:
        """See `head_grams_reference`."""
        ...

    def pixel_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        """See `pixel_norm_reference`."""
        ...

    def add_product(self, shortcut: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
        """See `add_product_reference`."""
        ...

    def add_skip(self, lr: Tensor, residual: Tensor, scale: int, shuffle: int) -> Tensor:
        """See `add_skip_reference`."""
        ...

    def path_cells(
        self,
        images: tuple[Tensor, Tensor, Tensor],
        motion: Tensor,
        places: PathPlaces,
        origin: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Compute the same as `path_cells_reference`; the caller has checked the arguments."""
        ...

    def conv3x3(
        self,
        parts: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor | None,
        padding: int,
        slope: float,
        shuffle: int,
    ) -> Tensor:
        """See `conv3x3_reference`."""
        ...


class PlaneKernels(Protocol):
    """The conversion of planes, as a module for one kind of device implements it."""

    def decode(self, coding: Coding, packed: Tensor, height: int, width: int) -> Tensor:
        """See `Coding.decode`."""
        ...

    def encode(self, coding: Coding, rgb: Tensor) -> Tensor:
        """See `Coding.encode`."""
        ...


def kernels_for(x: Tensor, dtype: torch.dtype | None = None) -> Kernels | None:
    """Return the kernels that compute on `x`; None where the references do.

    There are kernels for the CPU in fp32 and bf16 if a compiler is found, and for CUDA in fp32, bf16 and fp16 if CuPy
    is installed and their results agree with the references. None are used where gradients are taken, under autocast,
    where a graph is exported, or with `VSFMANET_NO_KERNELS=1` in the environment.

    Args:
        x: Any shape; its device decides, and its type.
        dtype: Type that decides in the place of that of `x`.
    """
    if not _are_allowed(x):
        return None
    dtype = dtype or x.dtype
    if x.device.type == "cpu" and dtype in cpu.SUFFIXES and library() is not None:
        return cast(Kernels, cpu)
    if x.device.type == "cuda" and dtype in _CUDA_TYPES:
        return cuda_kernels(x.device, dtype)
    return None


def _are_allowed(x: Tensor) -> bool:
    """Return whether kernels may compute on `x` here, if there are any for its device and type."""
    return not (
        type(x) is not Tensor  # a fake tensor has nothing to read
        or x.device.type not in ("cpu", "cuda")
        or torch.compiler.is_compiling()
        or torch.onnx.is_in_onnx_export()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(x.device.type)
        or os.environ.get("VSFMANET_NO_KERNELS") == "1"
    )


def kind_for(device: torch.device, dtype: torch.dtype) -> Literal["cpp", "cuda"] | None:
    """Return which kernels compute on a device in a type at inference; None where torch does."""
    with torch.inference_mode():
        kernels = kernels_for(torch.empty(1, dtype=dtype, device=device))
    return None if kernels is None else "cpp" if device.type == "cpu" else "cuda"


@functools.cache
def gpu_modules() -> tuple[Kernels, PlaneKernels] | None:
    """Return the kernels for CUDA, not compiled yet; None without CuPy."""
    if find_cupy() is None:
        return None
    from vsfmanet.kernels import gpu, planes

    return cast(Kernels, gpu), cast(PlaneKernels, planes)


@functools.cache
def cuda_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Compile the kernels for a CUDA device and compare them with the references; None, with a warning, on failure."""
    modules = gpu_modules()
    return modules[0] if modules and _works(device, lambda: _probe(modules[0], device, dtype)) else None


@functools.cache
def cuda_plane_kernels(device: torch.device, dtype: torch.dtype) -> PlaneKernels | None:
    """Do as `cuda_kernels` with the conversion of code values of a type, `torch.uint8` or `torch.uint16`."""
    modules = gpu_modules()
    return modules[1] if modules and _works(device, lambda: _probe_planes(modules[1], device, dtype)) else None


def _works(device: torch.device, probe: Callable[[], None]) -> bool:
    """Return whether a probe raises nothing; if it does, log a warning."""
    try:
        with torch.inference_mode():
            probe()
    except Exception as error:  # whatever CuPy, a driver or a compiler may raise
        reason = str(error).strip() or repr(error)
        _log.warning("kernels are not usable on %s, torch computes in their place: %s", device, reason)
        return False
    return True


def _probe_planes(kernels: PlaneKernels, device: torch.device, dtype: torch.dtype) -> None:
    """Convert a small frame to RGB and back.

    Raises:
        RuntimeError: The result differs from that of the reference.
    """
    coding = Coding(family="yuv", bits=8 * dtype.itemsize, full=False, subsampling=(1, 1))
    codes = torch.randint(0, 2**coding.bits, (coding.size(8, 10),), generator=torch.Generator().manual_seed(0))
    packed = codes.to(dtype).to(device)
    expected = coding.decode(packed, 8, 10)
    off = (kernels.decode(coding, packed, 8, 10) - expected).abs().max()
    apart = (kernels.encode(coding, expected).int() - coding.encode(expected).int()).abs().max()
    if not (off <= _PROBE_TOLERANCE[torch.float32] and apart <= 1):
        raise RuntimeError(f"planes are off by {float(off):.2g}, and code values by {int(apart)}")


def _probe(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Compare each kernel with its reference on a small input.

    Raises:
        RuntimeError: One differs. CuPy raises others, undocumented.
    """
    generator = torch.Generator().manual_seed(0)

    def like(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    feat, following, previous = like(1, 8, 5, 6), like(1, 8, 5, 6), like(1, 8, 5, 6)
    pair, flow, gain = (following, previous), like(1, 12, 5, 6).float(), like(8)
    mix, taps = like(8, 8, 1, 1), like(8, 1, 3, 3)
    image, residual = like(1, 3, 5, 6).float(), like(1, 12, 5, 6)
    along = PathPlaces(own_reach=3.0, own_count=5, neighbour_reach=2.0, neighbour_count=3, unit=4.0, grid=2, size=1)
    read = ((image, image.flip(2), image.flip(3)), like(1, 6, 2, 3).float(), along, (1, 0), dtype)
    found = {
        "warp_neighbours": (
            kernels.warp_neighbours(feat, pair, flow, 2, (0, 0)),
            reference.warp_neighbours(feat, pair, flow, 2),
        ),
        "feed_forward": (
            kernels.feed_forward(feat, feat, mix, taps, mix[:, :4]),
            reference.feed_forward(feat, feat, mix, taps, mix[:, :4]),
        ),
        "squared_projection": (
            kernels.squared_projection(feat, mix, taps, 8)[0],
            reference.squared_projection(feat, mix, taps, 8)[0],
        ),
        "head_grams": (kernels.head_grams(feat, following, 2), reference.head_grams(feat, following, 2)),
        "add_skip": (
            kernels.add_skip(image, residual, 2, 2),
            reference.add_skip(image, residual, 2, 2),
        ),
        "path_cells": (kernels.path_cells(*read), reference.path_cells(*read)),
        "pixel_norm": (kernels.pixel_norm(feat, gain, gain, 1e-5), reference.pixel_norm(feat, gain, gain, 1e-5)),
    }
    for name, (own, twin) in found.items():
        off = (own.float() - twin.float()).abs().max() / twin.float().abs().max()
        if not off <= _PROBE_TOLERANCE[dtype]:  # NaN too
            raise RuntimeError(f"{name} is off by {float(off):.2g} of what torch gives")


def decode(coding: Coding, packed: Tensor, height: int, width: int) -> Tensor:
    """Convert the planes of a frame to RGB: see `Coding.decode`.

    Args:
        coding: Meaning of the code values.
        packed: Vector (K,): the planes one after the other.
        height: Height of the frame, pixels.
        width: Width of the frame, pixels.

    Returns:
        (3, height, width), fp32, nominal range [0, 1], not clamped.
    """
    kernels = _plane_kernels(coding, packed)
    return coding.decode(packed, height, width) if kernels is None else kernels.decode(coding, packed, height, width)


def encode(coding: Coding, rgb: Tensor) -> Tensor:
    """Convert RGB to the planes of a frame, with ordered dither: see `Coding.encode`.

    Args:
        coding: Meaning of the code values.
        rgb: (3, H, W), fp32, nominal range [0, 1].

    Returns:
        Vector: the planes one after the other, then a 1, or a 0 if any value of `rgb` is NaN or infinite.
    """
    kernels = _plane_kernels(coding, rgb)
    return coding.encode(rgb) if kernels is None else kernels.encode(coding, rgb)


def _plane_kernels(coding: Coding, x: Tensor) -> PlaneKernels | None:
    if x.device.type != "cuda" or not _are_allowed(x):
        return None
    return cuda_plane_kernels(x.device, coding.dtype)


def _pick(x: Tensor, dtype: torch.dtype | None = None) -> Kernels:
    """Return the kernels that compute on `x`, or the operations in plain torch; see `kernels_for`."""
    return kernels_for(x, dtype) or cast(Kernels, reference)


def warp_neighbours(
    feat: Tensor,
    neighbours: tuple[Tensor, Tensor],
    flow: Tensor,
    num_flows: int,
    origin: tuple[int, int] = (0, 0),
) -> Tensor:
    """Put frames and their two neighbours, warped and masked, into one tensor: see `warp_neighbours_reference`.

    Raises:
        ShapeError: The arguments do not fit each other.
    """
    check_neighbours(feat, neighbours, flow, num_flows, origin)
    return _pick(feat).warp_neighbours(feat, neighbours, flow, num_flows, origin)


def feed_forward(shortcut: Tensor, x: Tensor, pointwise: Tensor, depthwise: Tensor, reduce: Tensor) -> Tensor:
    """Run a gated feed-forward network and add a shortcut: see `feed_forward_reference`."""
    return _pick(x).feed_forward(shortcut, x, pointwise, depthwise, reduce)


def squared_projection(x: Tensor, pointwise: Tensor, depthwise: Tensor, squared: int) -> tuple[Tensor, Tensor]:
    """Run a pointwise and a depthwise convolution, and sum squares: see `squared_projection_reference`."""
    return _pick(x).squared_projection(x, pointwise, depthwise, squared)


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise the channels of each pixel: see `pixel_norm_reference`."""
    return _pick(x).pixel_norm(x, weight, bias, epsilon)


def add_product(shortcut: Tensor, x: Tensor, matrix: Tensor) -> Tensor:
    """Mix the channels of each image by a matrix and add a shortcut: see `add_product_reference`."""
    return _pick(x).add_product(shortcut, x, matrix)


def head_grams(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Multiply the channels of each head and sum over the image: see `head_grams_reference`."""
    own = _pick(query) if query.dtype is key.dtype else cast(Kernels, reference)
    return own.head_grams(query, key, heads)


def add_skip(lr: Tensor, residual: Tensor, scale: int, shuffle: int) -> Tensor:
    """Add a residual image to enlarged frames: see `add_skip_reference`."""
    return _pick(residual).add_skip(lr, residual, scale, shuffle)


def path_cells(
    images: tuple[Tensor, Tensor, Tensor],
    motion: Tensor,
    places: PathPlaces,
    origin: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Sample a frame and its neighbours along the blur of each pixel: see `path_cells_reference`.

    Raises:
        ShapeError: The arguments do not fit each other.
    """
    check_path(images, motion, places, origin)
    return _pick(motion, dtype).path_cells(images, motion, places, origin, dtype)


def conv3x3(
    parts: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    padding: int = 1,
    *,
    slope: float = 1.0,
    shuffle: int = 1,
) -> Tensor:
    """Convolve by 3x3, with a leaky ReLU and a pixel shuffle: see `conv3x3_reference`.

    On CPUs Winograd's algorithm is used where it pays, and parts are not copied into one where all but the last have a
    multiple of 16 channels. In fp32 it agrees with torch to 1e-5. In bf16, which is rounded after the transforms too, a
    single convolution is off by 1 % (torch's by 0.2 %), and restored frames of `fast` by -66 dB (-68 dB) of fp32 ones.
    """
    return _pick(parts[0]).conv3x3(parts, weight, bias, padding, slope, shuffle)
