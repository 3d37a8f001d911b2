"""What an installation has, what it lacks, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vsfmanet.errors import DeviceError, OutputError, WeightsError

if TYPE_CHECKING:
    import vapoursynth as vs

ENCODERS = ("libx264", "libx265", "libsvtav1", "ffv1", "prores_ks", "h264_nvenc", "hevc_nvenc", "av1_nvenc")
"""Encoders to look for; the first two are the defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked for."""

    name: str
    """What."""
    found: bool
    """Whether it is there and works."""
    detail: str
    """What was found, or what is wrong."""
    remedy: str = ""
    """What to do if it was not found."""
    exit_code: int = 0
    """Exit code of a job that lacks it; 0 for what a job can do without."""

    def __str__(self) -> str:
        mark = "ok" if self.found else "MISSING" if self.exit_code else "optional"
        return f"{mark:9}{self.name:14}{self.detail}" + ("" if self.found else f"; {self.remedy}")


def examine() -> list[Check]:
    """Look for everything that a job needs or can use."""
    return [_python(), *_torch(), *_vapoursynth(), _vspipe(), *_ffmpeg(), *_models()]


def _python() -> Check:
    found = sys.version_info >= (3, 12)
    return Check(
        name="Python", found=found, detail=platform.python_version(), remedy="install 3.12 or newer", exit_code=2
    )


def _torch() -> list[Check]:
    """PyTorch and every device that it can use."""
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
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        precision = str(pick_precision("auto", torch.device("cuda", index))).removeprefix("torch.")
        detail = f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        detail += f"{properties.total_memory / 2**30:.0f} GiB, {precision}"
        checks.append(Check(name=f"CUDA {index}", found=True, detail=detail))
    if not torch.cuda.device_count():
        remedy = "jobs run on the CPU; for an NVIDIA card install its driver and a CUDA build of torch"
        checks.append(Check(name="CUDA", found=False, detail="no device", remedy=remedy))
    return checks


def _vapoursynth() -> list[Check]:
    """VapourSynth and the source plug-ins."""
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
    """`vspipe`, which jobs do without, but scripts and players do not."""
    beside = Path(sys.executable).with_name("vspipe")
    program = str(beside) if beside.exists() else shutil.which("vspipe")
    remedy = "for vspipe, mpv and FFmpeg scripts run `vapoursynth config` once"
    if program is None:
        return Check(name="vspipe", found=False, detail="no program", remedy=remedy)
    run = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    works = run.returncode == 0
    return Check(name="vspipe", found=works, detail=program if works else "not configured", remedy=remedy)


def _ffmpeg() -> list[Check]:
    """The FFmpeg that a job would run, and its encoders."""
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
    """Every model of the manifest, with its checksum."""
    from vsfmanet.weights import file_sha256, list_models

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
