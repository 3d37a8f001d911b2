"""Which CUDA kernel compiles for which GPU, and how far each is from its twin: `python -m tests.kernel_table`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from tests.cuda_host import ARCHITECTURES, compiled, host, signatures
from vsfmanet.kernels import gpu, planes
from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.colour import Coding
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.path import PathPlaces, path_cells_reference
from vsfmanet.ops.projection import feed_forward_reference, squared_projection_reference
from vsfmanet.ops.skip import add_skip_reference
from vsfmanet.ops.warp import warp_neighbours_reference


def differences(dtype: torch.dtype) -> dict[str, float]:
    """Largest difference of each kernel from its twin in fp32, over the largest value of the twin."""
    generator = torch.Generator().manual_seed(0)

    def like(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    feat, other, third = (like(2, 64, 45, 61) for _ in range(3))
    flow, mix = torch.randn(2, 24, 45, 61, generator=generator) * 4, torch.eye(64)[:, :, None, None].to(dtype)
    taps, gain, residual = like(64, 1, 3, 3), like(64), like(2, 48, 45, 61)
    wide = [each.float() for each in (feat, other, third)]
    lr = wide[0][:, :3].contiguous()
    rgb = (lr, wide[1][:, :3], wide[2][:, :3])
    places = PathPlaces(own_reach=3.0, own_count=13, neighbour_reach=2.0, neighbour_count=5, unit=4.0, grid=4, size=2)
    motion = flow[:, :6, :11, :15]
    squared = gpu.squared_projection(feat, mix, taps, 64)
    theirs = squared_projection_reference(wide[0], mix.float(), taps.float(), 64)
    pairs = {
        "warp_neighbours": (
            gpu.warp_neighbours(feat, (other, third), flow, 4, (0, 0)),
            warp_neighbours_reference(wide[0], (wide[1], wide[2]), flow, 4),
        ),
        "pixel_norm": (
            gpu.pixel_norm(feat, gain, gain, 1e-5),
            pixel_norm_reference(wide[0], gain.float(), gain.float(), 1e-5),
        ),
        "gated": (
            gpu.feed_forward(feat[:, :32], feat, mix, taps, mix[:32, :32]),
            feed_forward_reference(wide[0][:, :32], wide[0], mix.float(), taps.float(), mix[:32, :32].float()),
        ),
        "squared": (squared[0], theirs[0]),
        "squared, sums": (squared[1], theirs[1]),
        "head_grams": (gpu.head_grams(feat, other, 4), head_grams_reference(wide[0], wide[1], 4)),
        "path_cells": (
            gpu.path_cells(rgb, motion, places, (1, 1), dtype),
            path_cells_reference(rgb, motion, places, (1, 1), torch.float32),
        ),
        "add_skip": (gpu.add_skip(lr, residual, 4, 4), add_skip_reference(lr, residual, 4, 4)),
    }
    return {name: float((own.float() - twin).abs().max() / twin.abs().max()) for name, (own, twin) in pairs.items()}


def code_differences(dtype: torch.dtype) -> dict[str, float]:
    """The same of the kernels for planes; of code values, the largest difference in steps."""
    coding = Coding(family="yuv", bits=8 * dtype.itemsize, full=False, subsampling=(1, 1))
    rgb = torch.rand(3, 90, 122, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    packed = coding.encode(rgb)
    decoded = planes.decode(coding, packed, 90, 122) - coding.decode(packed, 90, 122)
    encoded = planes.encode(coding, rgb).int() - packed.int()
    return {"decode": float(decoded.abs().max()), "encode, steps": float(encoded.abs().max())}


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    gpu.launch = host().launch
    out = sys.stdout
    columns = "".join(f" {architecture / 10:.1f} |" for architecture in ARCHITECTURES)
    out.write(f"| Kernel | Type | Largest difference |{columns}\n|{' --- |' * (3 + len(ARCHITECTURES))}\n")
    for dtype in gpu.NAMES:
        text = gpu.source(dtype)
        names = [kernel.name for kernel in signatures(text)]
        cubins = [compiled(text, architecture) for architecture in ARCHITECTURES]
        for kernel, off in (differences if dtype.is_floating_point else code_differences)(dtype).items():
            own = [name for name in names if name.startswith(kernel.split(",")[0])]
            marks = "".join(f" {'yes' if all(name.encode() in cubin for name in own) else 'no'} |" for cubin in cubins)
            out.write(f"| {kernel} | {gpu.NAMES[dtype]} | {off:.1e} |{marks}\n")
            out.flush()


if __name__ == "__main__":
    main()
