"""Checks of an installation: what it has, what it lacks, and the command that mends it."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsfmanet.cards import find_cards, provider_for
from vsfmanet.errors import DeviceError, OutputError, WeightsError

if TYPE_CHECKING:
    import torch
    import vapoursynth as vs

ENCODERS = ("libx264", "libx265", "libsvtav1", "ffv1", "prores_ks", "h264_nvenc", "hevc_nvenc", "av1_nvenc")
"""Encoders to look for; the first two are the defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    """Name of the part that was checked."""
    found: bool
    """Whether the part is installed and works."""
    detail: str
    """Version or place of the part, or what is wrong with it."""
    remedy: str = ""
    """What to do if it is missing."""
    exit_code: int = 0
    """Exit code of a job without this part; 0 if jobs can do without it."""

    def __str__(self) -> str:
        mark = "ok" if self.found else "MISSING" if self.exit_code else "optional"
        return f"{mark:9}{self.name:14}{self.detail}" + ("" if self.found else f"; {self.remedy}")


def examine() -> list[Check]:
    """Check everything that a job needs or can use."""
    return [_python(), *_torch(), *_cards(), *_vapoursynth(), _vspipe(), *_ffmpeg(), *_models()]


def _python() -> Check:
    found = sys.version_info >= (3, 12)
    return Check(
        name="Python", found=found, detail=platform.python_version(), remedy="install 3.12 or newer", exit_code=2
    )


def _torch() -> list[Check]:
    """Check PyTorch, every device that it can use, and the kernels for each."""
    try:
        import torch

        from vsfmanet.devices import has_fast_bf16, pick_precision
    except (ImportError, OSError) as error:
        detail = f"cannot be loaded ({error})"
        return [
            Check(
                name="PyTorch", found=False, detail=detail, remedy="pip install torch", exit_code=DeviceError.exit_code
            )
        ]

    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
    amx = " (AMX)" if torch.cpu._is_amx_tile_supported() else ""
    cpu += f"bf16 in hardware{amx}" if has_fast_bf16() else "no bf16 in hardware: fp32 is used"
    checks = [
        Check(name="PyTorch", found=True, detail=torch.__version__),
        Check(name="CPU", found=True, detail=cpu),
        _compiler(),
        _kernels("CPU kernels", torch.device("cpu")),
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        precision = str(pick_precision("auto", device)).removeprefix("torch.")
        detail = f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        detail += f"{properties.total_memory / 2**30:.0f} GiB, {precision}"
        checks += [Check(name=f"CUDA {index}", found=True, detail=detail), _kernels(f"kernels {index}", device)]
    return checks if torch.cuda.device_count() else [*checks, _no_cuda()]


def _cards() -> list[Check]:
    """Check the graphics cards that torch does not compute on, each with the command that makes it used."""
    try:
        from vsfmanet.engines.onnx import PROVIDERS, finds_gpu
    except (ImportError, OSError):  # without torch
        return []
    checks = []
    for card in find_cards():
        provider = provider_for(card)
        if provider is None or (card.maker == "AMD" and _torch_uses_amd()):
            continue
        use = f"--backend onnx --provider {provider}"
        checks.append(
            Check(
                name="GPU",
                found=finds_gpu(provider),
                detail=f"{card.name}, used with {use} (FMA-Net++ only)",
                remedy=f'not yet: pip install "vsfmanet[onnx]"; {PROVIDERS[provider].remedy}',
            )
        )
    return checks


def _torch_uses_amd() -> bool:
    """Return whether torch is built for ROCm and sees a card, which it then treats as a CUDA device."""
    import torch

    return torch.version.hip is not None and torch.cuda.device_count() > 0


def _no_cuda() -> Check:
    """Check why PyTorch sees no CUDA device."""
    import torch

    card = _nvidia_card()
    idle = [card.name for card in find_cards() if card.maker == "NVIDIA"]
    if card is None and idle:
        detail, remedy = f"{idle[0]}, but no driver of NVIDIA's", "install it from nvidia.com/drivers, and restart"
    elif card is None:
        detail, remedy = "no NVIDIA card", "jobs run on the CPU; see GPU for other cards"
    elif torch.version.cuda is None:
        detail = f"{card}, but this PyTorch is built without CUDA"
        remedy = "pip uninstall torch, then install it with the command that pytorch.org shows for your CUDA"
    else:
        detail = f"{card}, but PyTorch for CUDA {torch.version.cuda} cannot use it"
        remedy = "update NVIDIA's driver, and see what `nvidia-smi` prints"
    return Check(name="CUDA", found=False, detail=detail, remedy=remedy)


def _nvidia_card() -> str | None:
    """Name of the first NVIDIA card, as its driver's own program prints it; None without card or driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    line = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        run = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip().partition("\n")[0] or None if run.returncode == 0 else None


def _compiler() -> Check:
    """Check the C++ compiler, which the CPU kernels are built with on first use."""
    from vsfmanet.kernels.build import prebuilt

    named = os.environ.get("CXX") or "c++"
    program = shutil.which(named)
    if program is None and prebuilt() is not None:
        return Check(name="compiler", found=True, detail=f"no {named}, and none is needed: the package brings kernels")
    install = {"linux": "apt install g++, or dnf install gcc-c++", "darwin": "xcode-select --install"}
    remedy = install.get(sys.platform, "none is needed here") + "; without one, torch computes in place of the kernels"
    return Check(name="compiler", found=program is not None, detail=program or f"no {named}", remedy=remedy)


def _kernels(name: str, device: torch.device) -> Check:
    """Check that the kernels of a device can be built and used, which builds them."""
    from vsfmanet.devices import pick_precision
    from vsfmanet.kernels import kind_for
    from vsfmanet.kernels.build import prebuilt

    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("vsfmanet.kernels"), Handler(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        kind = kind_for(device, pick_precision("auto", device))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if os.environ.get("VSFMANET_NO_KERNELS") == "1":
        remedy = "unset VSFMANET_NO_KERNELS"
        return Check(name=name, found=False, detail="switched off", remedy=remedy)
    needed = "a C++ compiler (see above)" if device.type == "cpu" else 'pip install "vsfmanet[cuda]"'
    ready = prebuilt()
    detail = {
        "cpp": "C++, " + (f"of the package, for {ready.stem}" if ready else "built for this processor"),
        "cuda": "CUDA C++, compiled by CuPy",
    }.get(kind or "", said[-1] if said else "none could be built, torch computes in their place")
    return Check(name=name, found=kind is not None, detail=detail, remedy=f"slower without; needed: {needed}")


def _vapoursynth() -> list[Check]:
    """Check VapourSynth and the source plug-ins."""
    try:
        import vapoursynth as vs
    except ImportError as error:
        detail = f"cannot be loaded ({error})"
        return [Check(name="VapourSynth", found=False, detail=detail, remedy="pip install vapoursynth", exit_code=2)]

    release = vs.core.core_version.release_major
    plugins = {plugin.namespace: plugin for plugin in vs.core.plugins()}
    source, other = plugins.get("bs"), plugins.get("lsmas")
    return [
        Check(
            name="VapourSynth",
            found=release >= 80,
            detail=f"R{release}",
            remedy="R80 is needed: update it",
            exit_code=2,
        ),
        Check(
            name="BestSource",
            found=source is not None,
            detail=_version(source),
            remedy="pip install vapoursynth-bestsource",
            exit_code=2,
        ),
        Check(
            name="L-SMASH Works",
            found=other is not None,
            detail=_version(other),
            remedy="only for scripts that call lsmas",
        ),
    ]


def _version(plugin: vs.Plugin | None) -> str:
    return f"{plugin.version.major}.{plugin.version.minor}" if plugin else "no plug-in"


def _vspipe() -> Check:
    """Check `vspipe`, which scripts and players need and jobs do not."""
    program = shutil.which("vspipe", path=Path(sys.executable).parent) or shutil.which("vspipe")
    remedy = "for vspipe, mpv and FFmpeg scripts run `vapoursynth config` once"
    if program is None:
        return Check(name="vspipe", found=False, detail="no program", remedy=remedy)
    run = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    works = run.returncode == 0
    return Check(name="vspipe", found=works, detail=program if works else "not configured", remedy=remedy)


def _ffmpeg() -> list[Check]:
    """Check the FFmpeg that a job would run, and its encoders."""
    from vsfmanet.media.ffmpeg import find_ffmpeg

    code = OutputError.exit_code
    try:
        ffmpeg = find_ffmpeg()
    except OutputError as error:
        return [
            Check(name="FFmpeg", found=False, detail="none that is recent and runs", remedy=str(error), exit_code=code)
        ]
    said = subprocess.run([ffmpeg.path, "-hide_banner", "-encoders"], stdin=subprocess.DEVNULL, capture_output=True)
    offered = set(said.stdout.decode(errors="replace").split())
    return [
        Check(name="FFmpeg", found=True, detail=f"{ffmpeg.release[0]}.{ffmpeg.release[1]}, {ffmpeg.path}"),
        Check(
            name="encoders",
            found=offered.issuperset(ENCODERS[:2]),
            detail=" ".join(name for name in ENCODERS if name in offered) or "none that are looked for",
            remedy=f"the defaults need {' and '.join(ENCODERS[:2])}: install such an ffmpeg, or pass --encoder-args",
            exit_code=code,
        ),
    ]


def _models() -> list[Check]:
    """Check every model of the manifest against its checksum."""
    from vsfmanet.manifest import file_sha256, list_models

    code = WeightsError.exit_code
    try:
        entries = list_models()
    except WeightsError as error:
        return [
            Check(name="models", found=False, detail="no manifest that can be read", remedy=str(error), exit_code=code)
        ]
    checks = []
    for entry in entries:
        present = entry.path.is_file()
        whole = present and file_sha256(entry.path) == entry.sha256
        detail = f"{entry.name}, " + ("checksum as in the manifest" if whole else "damaged" if present else "no file")
        checks.append(Check(name="model", found=whole, detail=detail, remedy="reinstall vsfmanet", exit_code=code))
    return checks or [Check(name="models", found=False, detail="none", remedy="reinstall vsfmanet", exit_code=code)]
