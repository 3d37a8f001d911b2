"""How the CPU kernels are compiled. Imports nothing: the build of a wheel reads it too."""

FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
"""Options of GCC and Clang. The library finds the libgomp of torch already loaded, and shares its pool of threads."""

NATIVE = ("-march=native",)
"""The same for this processor alone."""

LEVELS = {
    "x86-64-v4-bf16": ("-march=x86-64-v4", "-mavx512bf16"),
    "x86-64-v4": ("-march=x86-64-v4",),
    "x86-64-v3": ("-march=x86-64-v3",),
}
"""Sets of instructions for which wheels bring compiled kernels, the best first, with the options that name them."""
