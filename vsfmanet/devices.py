"""Which device and which precision run: one rule each, for the filter, the command line and the evaluation alike."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from vsfmanet.errors import ConfigError, DeviceError

BACKENDS = ("torch", "onnx", "tensorrt")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIGNS = ("CUDA", "CUDNN", "cuDNN")
"""Of errors from CUDA, cuBLAS ("CUDA error: CUBLAS_STATUS..."), Triton ("Triton Error [CUDA]") and cuDNN."""


def pick_backend(name: str) -> str:
    """What runs the network: "torch", "onnx" or "tensorrt".

    Args:
        name: One of these, or "auto" for torch.

    Raises:
        ConfigError: The name is none of these.
    """
    if name not in ("auto", *BACKENDS):
        raise ConfigError(f"backend: needs 'auto', {', '.join(map(repr, BACKENDS))}, got {name!r}")
    return BACKENDS[0] if name == "auto" else name


def pick_device(name: str, index: int = 0, *, backend: str = "torch") -> torch.device:
    """Device by the user's name for it.

    Args:
        name: "auto" (a CUDA device if there is one and the backend can use it, else the CPU), "cpu" or "cuda".
        index: Which CUDA device, from 0.
        backend: What runs the network; onnx is for the CPU here, and tensorrt for CUDA.

    Raises:
        ConfigError: The name is none of these, or the backend cannot use it.
        DeviceError: There is no such device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device: needs 'auto', 'cpu' or 'cuda', got {name!r}")
    if {"onnx": "cuda", "tensorrt": "cpu"}.get(backend) == name:
        raise ConfigError(
            f"device: backend {backend!r} does not run there, got {name!r}; use 'auto' or another backend"
        )
    if backend != "torch":
        name = {"onnx": "cpu", "tensorrt": "cuda"}[backend]
    count = torch.cuda.device_count() if name != "cpu" else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not 0 <= index < count:
        raise DeviceError(
            f"device: device_index must name one of {count} CUDA devices, got {index}; "
            "see `vsfmanet doctor`, or use device='cpu'"
        )
    return torch.device("cuda", index)


class Worker:
    """A device, and the thread in which all work on it is done.

    On a CPU it is the same thread for all workers of the process, with all of torch's own threads: OpenMP gives a team
    to each thread that asks for one, and once there are more threads in teams than cores, every team waits asleep, so
    that each small operation takes three times as long. VapourSynth calls from as many threads as there are cores; so
    nothing that torch would spread over cores may be done in its callbacks. On CUDA each worker has a thread of its
    own: what is launched by name of no device goes to the one that the thread has chosen.

    Args:
        device: What to work on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own = device.type == "cuda"
        self._thread, self._number = _started() if self._own else _cpu_thread()
        if self._own:
            self.run(partial(torch.cuda.set_device, device))

    def run[Result](self, work: Callable[[], Result]) -> Result:
        """Do `work` in the thread, when what was given to it before is done; at once where that is the caller's own.

        Raises:
            DeviceError: CUDA fails in it.
        """
        with cuda_errors(self.device):
            return work() if threading.get_ident() == self._number else self._thread.submit(work).result()

    def close(self) -> None:
        """End the thread, if it is the worker's own."""
        if self._own:
            self._thread.shutdown(wait=False)


@contextlib.contextmanager
def cuda_errors(device: torch.device) -> Iterator[None]:
    """Whatever CUDA and its libraries raise inside, on a CUDA device, as `DeviceError`."""
    try:
        yield
    except RuntimeError as error:  # torch.AcceleratorError and torch.OutOfMemoryError are such
        if device.type != "cuda" or not any(sign in str(error) for sign in _SIGNS):
            raise
        raise DeviceError(
            f"device: {device} must work, got {str(error).partition('\n')[0]!r}; see `vsfmanet doctor`, free its "
            "memory, or use device='cpu'"
        ) from error


def _started() -> tuple[ThreadPoolExecutor, int]:
    """A new thread and its number."""
    thread = ThreadPoolExecutor(1, "vsfmanet")
    return thread, thread.submit(threading.get_ident).result()


@functools.cache
def _cpu_thread() -> tuple[ThreadPoolExecutor, int]:
    return _started()


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AMX or AVX-512 BF16)."""
    capability = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capability and "AMX" not in capability:
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_precision(name: str, device: torch.device, *, backend: str = "torch") -> torch.dtype:
    """Type of the network's weights and features; images and flows are fp32 always.

    Args:
        name: "fp32", "bf16", "fp16" or "auto": bf16 where the device has it in hardware, else fp16 on CUDA and fp32
            on the CPU.
        device: Where the network runs.
        backend: What runs it; onnx knows fp32 alone on the CPU.

    Raises:
        ConfigError: The name is none of these, or one that the backend or a CPU does not compute.
    """
    if backend == "onnx" and name in ("auto", "bf16", "fp16"):
        if name != "auto":
            raise ConfigError(f"precision: backend 'onnx' computes in 'fp32', got {name!r}; use backend='torch'")
        name = "fp32"
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if _has_bf16(device) else torch.float16
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    if name not in PRECISIONS:
        raise ConfigError(f"precision: needs 'auto', {', '.join(map(repr, PRECISIONS))}, got {name!r}")
    if name == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise ConfigError(f"precision: bf16 needs CUDA capability 8.0, {device} has less; use 'fp16', 'fp32' or 'auto'")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 is for CUDA devices, got the CPU; use 'bf16' or 'fp32'")
    return PRECISIONS[name]


def _has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device multiplies bf16; below, cuDNN has no convolutions of it."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device can still give, or the host for the CPU; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None
