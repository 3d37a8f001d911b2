"""Compiles the CPU kernels into a wheel, for every set of instructions, if VSFMANET_PREBUILT is 1.

Such a wheel is for x86-64 Linux. Without the variable the wheel is pure Python, and the kernels are compiled on first
use.
"""

import os
import runpy
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "VSFMANET_PREBUILT"
"""Variable of the environment."""


class PrebuiltKernels(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that pyproject.toml names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernels, and add them to the wheel.

        Args:
            version: Kind of the build; an editable one gets no kernels.
            build_data: What the wheel is made of.

        Raises:
            subprocess.CalledProcessError: The compiler failed.
        """
        if os.environ.get(SWITCH) != "1" or version == "editable":
            return
        kernels = Path(self.root) / "vsfmanet" / "kernels"
        how = runpy.run_path(str(kernels / "flags.py"))
        self._made = tempfile.TemporaryDirectory()
        for level, options in how["LEVELS"].items():
            made = Path(self._made.name) / f"{level}.so"
            sources = map(str, sorted(kernels.glob("*.cpp")))
            subprocess.run([os.environ.get("CXX") or "c++", *how["FLAGS"], *options, *sources, "-o", made], check=True)
            build_data["force_include"][str(made)] = f"vsfmanet/kernels/prebuilt/{made.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete what is in the wheel now."""
        if hasattr(self, "_made"):
            self._made.cleanup()
