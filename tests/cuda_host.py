"""The CUDA kernels on the host: the same text, compiled by g++, block after block and thread after thread."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

SANITIZED = os.environ.get("VSFMANET_TEST_SANITIZED") == "1"
"""Whether the kernels are compiled with AddressSanitizer and UndefinedBehaviorSanitizer."""

_FLAGS = ["-std=c++17", "-O1", "-mf16c", "-ffp-contract=off", "-fPIC", "-shared", "-w"]
_SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

_BEFORE = """
#include <cmath>
#include <cstdlib>
#include <immintrin.h>

#define __global__
#define __launch_bounds__(threads)
#define __restrict__
#define THREADS(t) for (int order = 0, t = backwards ? 255 : 0; order < 256; ++order, t += backwards ? -1 : 1)
#define KEPT(T, name, count) static T name[256][count]
#define OF(name, t) name[t]
#define SHARED(name) float* const name = shared_memory

struct Place { unsigned x, y, z; };
static Place blockIdx, gridDim;
static float* shared_memory;
static bool backwards;

struct Half { unsigned short bits; };
static float widen(Half value) { return _cvtsh_ss(value.bits); }
static void store(Half* to, float value) { to->bits = _cvtss_sh(value, 0); }
"""

_AFTER = """
// Blocks `first` ... `stop` of a grid. Shared memory is as large as was asked for, and holds NaN at first.
template <class Kernel>
void blocks(const long long* grid, const long long* first, const long long* stop, long long shared, Kernel kernel) {
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    for (long long z = first[2]; z < stop[2]; ++z)
        for (long long y = first[1]; y < stop[1]; ++y)
            for (long long x = first[0]; x < stop[0]; ++x) {
                blockIdx = {(unsigned)x, (unsigned)y, (unsigned)z};
                shared_memory = static_cast<float*>(std::malloc(shared * sizeof(float)));
                for (long long i = 0; i < shared; ++i) shared_memory[i] = NAN;
                kernel();
                std::free(shared_memory);
            }
}
extern "C" void turn(int backwards_) { backwards = backwards_; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """A kernel as its source declares it."""

    name: str
    types: tuple[str, ...]
    """C++ types of its arguments, without qualifiers: "float*", "float", "Size" ..."""


def signatures(text: str) -> list[Signature]:
    """The kernels of a source, macros expanded."""
    command = ["g++", "-E", "-P", "-x", "c++", "-"]
    expanded = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    found = re.findall(r'extern "C" __global__ void __launch_bounds__\(\w+\) (\w+)\(([^)]*)\)', expanded)
    return [
        Signature(
            name=name,
            types=tuple(
                re.sub(r"\bconst\b|__restrict__|\w+$|\s", "", argument.strip()) for argument in arguments.split(",")
            ),
        )
        for name, arguments in found
    ]


_NUMBERS = {"Size": np.int64, "float": np.float32}
_TYPES = {
    "float*": torch.float32,
    "BFloat16*": torch.bfloat16,
    "Half*": torch.float16,
    "uint8_t*": torch.uint8,
    "uint16_t*": torch.uint16,
}


class Host:
    """Runs kernels on the CPU, and checks how their arguments are packed; `launch` takes the place of `gpu.launch`."""

    def __init__(self, text: str) -> None:
        known = signatures(text)
        self._signatures = {each.name: each.types for each in known}
        self._library = ctypes.CDLL(str(_built(text, known)))
        self.launched: set[str] = set()
        self.first: Sequence[int] | None = None
        """First block that is run; None for all blocks."""

    def launch(
        self, name: str, x: Tensor, grid: tuple[int, ...], shared: int, *arguments: Tensor | int | float
    ) -> None:
        from vsfmanet.kernels import gpu

        types, packed = self._signatures[name], gpu.packed(arguments)
        assert len(types) == len(packed)
        for wanted, given, passed in zip(types, arguments, packed, strict=True):
            if isinstance(given, Tensor):
                assert given.dtype is _TYPES[wanted]
                assert passed.dtype == np.uint64
                assert int(passed) == given.data_ptr()
            else:
                assert passed.dtype == _NUMBERS[wanted]
        whole = [*grid, 1, 1][:3]
        assert 0 < whole[0] < 2**31
        assert max(whole[1:]) < 2**16
        assert 4 * shared <= 48 * 1024
        first = [0, 0, 0] if self.first is None else [*self.first]
        stop = whole if self.first is None else [place + 1 for place in first]
        kept = [np.array(each) for each in packed]
        places = (ctypes.c_void_p * len(kept))(*(each.ctypes.data for each in kept))
        numbers = [(ctypes.c_longlong * 3)(*three) for three in (whole, first, stop)]
        self._library[f"run_{name}"](places, *numbers, ctypes.c_longlong(shared))
        self.launched.add(name)

    @contextmanager
    def backwards(self) -> Iterator[None]:
        """The threads of a block in the opposite order: what they compute must not depend on it."""
        self._library.turn(1)
        yield
        self._library.turn(0)


def _built(text: str, known: list[Signature]) -> Path:
    """The library of a source; kept in the folder for temporary files."""
    runs = [
        f'extern "C" void run_{each.name}(void** a, const long long* grid, const long long* first, '
        f"const long long* stop, long long shared) {{ blocks(grid, first, stop, shared, [&] {{ {each.name}("
        + ", ".join(f"*reinterpret_cast<{kind}*>(a[{place}])" for place, kind in enumerate(each.types))
        + "); }); }"
        for each in known
    ]
    flags = _FLAGS + (_SANITIZERS if SANITIZED else [])
    whole = "\n".join([_BEFORE, text, _AFTER, *runs])
    key = hashlib.sha256("\0".join([whole, *flags]).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"vsfmanet-cuda-{os.getuid()}-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "kernels.so"
            command = ["g++", *flags, "-x", "c++", "-", "-o", str(made)]
            done = subprocess.run(command, input=whole, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:3000]
            beside = path.with_suffix(f".{os.getpid()}")
            shutil.copy(made, beside)
            beside.replace(path)
    return path


@functools.cache
def host() -> Host:
    """The kernels of all types; skips where they cannot be compiled."""
    pytest.importorskip("cupy", reason="the kernels' Python side imports it")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    from vsfmanet.kernels import gpu

    first, *others = (gpu.source(dtype) for dtype in gpu.NAMES)
    return Host("\n".join([first, *(text.splitlines()[-1] for text in others)]))
