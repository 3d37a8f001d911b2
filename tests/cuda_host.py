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

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Capabilities for which the kernels are compiled, without the point."""

_FLAGS = ["-std=c++17", "-mf16c", "-ffp-contract=off", "-w"]
_LIBRARY = ["-O1", "-fPIC", "-shared"]
_SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

_BEFORE = """
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>
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

_MAIN = """
#include <cstdio>
static void get(void* to, size_t bytes) { if (bytes && fread(to, bytes, 1, stdin) != 1) std::exit(3); }
int main() {
    long long head[6];  // kernel, grid, shared, arguments
    while (fread(head, sizeof head, 1, stdin) == 1) {
        std::vector<void*> values, buffers;
        for (long long i = 0; i < head[5]; ++i) {
            long long size[2];  // bytes of the value, or of what it points to
            get(size, sizeof size);
            void* const place = std::malloc(size[0] ? size[0] : size[1]);
            get(place, size[0] ? size[0] : size[1]);
            buffers.push_back(place);
            if (!size[0]) std::memcpy(buffers.emplace_back(std::malloc(sizeof place)), &place, sizeof place);
            values.push_back(buffers.back());
        }
        const long long first[3] = {};
        kernels[head[0]](values.data(), head + 1, first, head + 1, head[4]);
        for (void* each : buffers) std::free(each);
    }
    std::puts("done");
}
"""
"""Runs launches from the standard input, each with buffers of the very sizes that its tensors have."""


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
        self._text, self._known = text, signatures(text)
        self._signatures = {each.name: each.types for each in self._known}
        self._library = ctypes.CDLL(str(_built(text, self._known)))
        self.launched: set[str] = set()
        self.journal: list[bytes] | None = None
        """Launches for `sanitized`, if they are to be noted."""
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
        if self.journal is not None:
            self.journal.append(self.noted(name, whole, shared, arguments, packed))
        first = [0, 0, 0] if self.first is None else [*self.first]
        stop = whole if self.first is None else [place + 1 for place in first]
        kept = [np.array(each) for each in packed]
        places = (ctypes.c_void_p * len(kept))(*(each.ctypes.data for each in kept))
        numbers = [(ctypes.c_longlong * 3)(*three) for three in (whole, first, stop)]
        self._library[f"run_{name}"](places, *numbers, ctypes.c_longlong(shared))
        self.launched.add(name)

    def noted(
        self, name: str, grid: list[int], shared: int, arguments: Sequence[object], packed: Sequence[np.generic]
    ) -> bytes:
        """A launch, with its arguments and all that they point to, for `sanitized`."""
        parts = [np.array([[*self._signatures].index(name), *grid, shared, len(packed)], np.int64).tobytes()]
        for given, passed in zip(arguments, packed, strict=True):
            held = passed.tobytes()
            if isinstance(given, Tensor):
                storage = torch.empty(0, dtype=torch.uint8).set_(given.untyped_storage())
                held = storage[given.storage_offset() * given.element_size() :].numpy().tobytes()
            size = (0, len(held)) if isinstance(given, Tensor) else (len(held), 0)
            parts += [np.array(size, np.int64).tobytes(), held]
        return b"".join(parts)

    def sanitized(self, launches: Sequence[bytes], folder: Path) -> subprocess.CompletedProcess[str]:
        """Do launches of the journal again under AddressSanitizer and UndefinedBehaviorSanitizer."""
        table = "".join(f"run_{each.name}, " for each in self._known)
        kind = "void (*const kernels[])(void**, const long long*, const long long*, const long long*, long long)"
        main = f"{kind} = {{{table}}};\n{_MAIN}"
        program, journal = folder / "kernels", folder / "journal"
        _compile(_whole(self._text, self._known) + main, [*_FLAGS, *_SANITIZED], program)
        journal.write_bytes(b"".join(launches))
        with journal.open() as file:
            return subprocess.run([str(program)], stdin=file, capture_output=True, text=True, check=False)

    @contextmanager
    def backwards(self) -> Iterator[None]:
        """The threads of a block in the opposite order: what they compute must not depend on it."""
        self._library.turn(1)
        yield
        self._library.turn(0)


def _whole(text: str, known: list[Signature]) -> str:
    """The text with what compiles it for the host, and a function to run each kernel."""
    runs = [
        f'extern "C" void run_{each.name}(void** a, const long long* grid, const long long* first, '
        f"const long long* stop, long long shared) {{ blocks(grid, first, stop, shared, [&] {{ {each.name}("
        + ", ".join(f"*reinterpret_cast<{kind}*>(a[{place}])" for place, kind in enumerate(each.types))
        + "); }); }\n"
        for each in known
    ]
    return "\n".join([_BEFORE, text, _AFTER, *runs])


def _compile(text: str, flags: list[str], target: Path) -> None:
    command = ["g++", *flags, "-x", "c++", "-", "-o", str(target)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]


def _built(text: str, known: list[Signature]) -> Path:
    """The library of a source; kept in the folder for temporary files."""
    whole, flags = _whole(text, known), [*_FLAGS, *_LIBRARY]
    key = hashlib.sha256("\0".join([whole, *flags]).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"vsfmanet-cuda-{os.getuid()}-{key}.so"
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}")
        _compile(whole, flags, beside)
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


def compiled(text: str, architecture: int) -> bytes:
    """The machine code of a source for a capability."""
    from cupy.cuda import nvrtc

    from vsfmanet.kernels import gpu

    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*gpu.OPTIONS, f"-arch=sm_{architecture}"))
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        raise AssertionError(nvrtc.getProgramLog(program)) from error
    finally:
        nvrtc.destroyProgram(program)
