"""One rule each for which device, backend and precision run, and the thread in which a device's work is done."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import psutil
import torch

from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.settings import Backend, Device, Precision, Runtime, check_choice

PRECISIONS: Mapping[Literal["fp32", "bf16", "fp16"], torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Data types by the names of precisions."""
_log = logging.getLogger(__name__)

_SIGNS = ("CUDA", "CUDNN", "cuDNN", "cudaError")
"""Words in errors from CUDA, from cuBLAS ("CUDA error: CUBLAS_STATUS..."), from CuPy ("CUDA_ERROR_...", "cudaError...")
and from cuDNN."""


def pick_backend(name: Backend) -> Runtime:
    """Return what runs the network: torch for "auto", else what the user named.

    Raises:
        ConfigError: There is no such backend.
    """
    check_choice("backend", name, Backend)
    return "torch" if name == "auto" else name


def pick_device(name: Device, index: int = 0, *, backend: Runtime = "torch") -> torch.device:
    """Return the device that the user named.

    Args:
        name: "auto" (a CUDA device if there is one and the backend can use it, else the CPU), "cpu" or "cuda".
        index: Number of the CUDA device, from 0.
        backend: What runs the network. Here onnx runs on the CPU only, and tensorrt on CUDA only.

    Raises:
        ConfigError: There is no such name, or the backend cannot use the device.
        DeviceError: This machine has no such device.
    """
    check_choice("device", name, Device)
    if {"onnx": "cuda", "tensorrt": "cpu"}.get(backend) == name:
        raise ConfigError(f"device must be one on which backend {backend!r} runs, got {name!r}; leave one of them out")
    if backend != "torch":
        name = "cpu" if backend == "onnx" else "cuda"
    count = torch.cuda.device_count() if name != "cpu" else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not 0 <= index < count:
        raise DeviceError(
            f"device_index must name one of {count} CUDA devices, got {index}; see `vsfmanet doctor`, or use "
            "device='cpu'"
        )
    return torch.device("cuda", index)


@functools.cache
def find_cupy() -> Any | None:
    """Return the module `cupy`, whose arrays from now on come from torch's memory; None, with a warning, without it.

    Only for a machine with a CUDA device.
    """
    try:
        import cupy
    except ImportError:
        extra = "cuda12" if str(torch.version.cuda).startswith("12") else "cuda"
        _log.warning(
            "CuPy is not installed: CUDA runs in plain torch, without this package's kernels; pip install "
            '"vsfmanet[%s]"',
            extra,
        )
        return None
    share_memory(cupy)
    return cupy


def share_memory(cupy: Any) -> None:
    """Let CuPy allocate by torch, so that there is one pool of memory and not two that compete."""

    def allocate(size: int, device: int) -> int:
        return torch.cuda.caching_allocator_alloc(size, device, cupy.cuda.get_current_stream(device).ptr)

    def release(address: int, device: int) -> None:
        torch.cuda.caching_allocator_delete(address)

    cupy.cuda.set_allocator(cupy.cuda.memory.PythonFunctionAllocator(allocate, release).malloc)


class Worker:
    """A device, and the thread in which all work on it is done.

    All workers for the CPU share one thread, which has all of torch's threads to itself. OpenMP gives each calling
    thread a team of its own; once there are more threads in teams than cores, idle teams sleep, and waking them makes
    each small operation take three times as long. VapourSynth calls from as many threads as there are cores, so its
    callbacks must not run torch operations that would use several cores. On CUDA each worker has its own thread,
    because CUDA calls that name no device go to the current device of the calling thread; and its own stream, because
    on the default one the work of several filters would wait for each other's.

    Args:
        device: Device to work on.

    Raises:
        DeviceError: CUDA cannot use the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own = device.type == "cuda"
        self._thread, self._number = _started() if self._own else _cpu_thread()
        if self._own:
            self.run(self._prepare)

    def run[Result](self, work: Callable[[], Result]) -> Result:
        """Run `work` in the thread, after earlier work, and return its result; at once if that is the calling thread.

        Raises:
            DeviceError: CUDA fails in it.
        """
        with cuda_errors(self.device):
            return work() if threading.get_ident() == self._number else self._thread.submit(work).result()

    def _prepare(self) -> None:
        """Let the calling thread work on the device, on a stream of its own."""
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(torch.cuda.Stream(self.device))

    def close(self) -> None:
        """End the worker's own thread, if it has one."""
        if self._own:
            self._thread.shutdown(wait=False)


@contextlib.contextmanager
def cuda_errors(device: torch.device) -> Iterator[None]:
    """Convert errors of CUDA and its libraries to `DeviceError`, on a CUDA device.

    Raises:
        DeviceError: CUDA, cuBLAS, cuDNN or CuPy failed inside.
    """
    try:
        yield
    except RuntimeError as error:  # torch.AcceleratorError and torch.OutOfMemoryError are such
        if device.type != "cuda" or not any(sign in str(error) for sign in _SIGNS):
            raise
        raise DeviceError(
            f"{device} must work, got {str(error).partition('\n')[0]!r}; see `vsfmanet doctor`, free its memory, or "
            "use device='cpu'"
        ) from error


def _started() -> tuple[ThreadPoolExecutor, int]:
    """Start a thread; return it and its number."""
    thread = ThreadPoolExecutor(1, "vsfmanet")
    return thread, thread.submit(threading.get_ident).result()


@functools.cache
def _cpu_thread() -> tuple[ThreadPoolExecutor, int]:
    return _started()


def has_fast_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capability and "AMX" not in capability:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_precision(name: Precision, device: torch.device, *, backend: Runtime = "torch") -> torch.dtype:
    """Return the data type of the network's weights and features; images and flows are always fp32.

    Args:
        name: "fp32", "bf16", "fp16" or "auto": bf16 where the device has it in hardware, else fp16 on CUDA and fp32
            on the CPU.
        device: Where the network runs.
        backend: What runs it; onnx computes in fp32 only.

    Raises:
        ConfigError: There is no such name, or the device or the backend does not compute in this precision.
    """
    check_choice("precision", name, Precision)
    if backend == "onnx" and name != "fp32":
        if name != "auto":
            raise ConfigError(f"precision must be 'fp32' with backend 'onnx', got {name!r}; use backend='torch'")
        return torch.float32
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if _has_bf16(device) else torch.float16
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise ConfigError(f"bf16 needs CUDA capability 8.0, {device} has less; use 'fp16', 'fp32' or 'auto'")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision must be 'bf16' or 'fp32' on the CPU, got 'fp16'; use one of these, or CUDA")
    return PRECISIONS[name]


def device_name(device: torch.device) -> str:
    """Return the name of a CUDA device, or the widest instructions that torch uses on this CPU, such as "AVX512"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def _has_bf16(device: torch.device) -> bool:
    """Return whether a CUDA device multiplies bf16; below capability 8.0 cuDNN has no such convolutions."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def free_memory(device: torch.device) -> int:
    """Return the free memory of a CUDA device, or of the host for the CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    return available
