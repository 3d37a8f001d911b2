"""FMA-Net++ for VapourSynth: joint super-resolution and deblurring of video, aware of motion and per-frame exposure."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfmanet.filter import blur_map, exposure, restore
    from vsfmanet.manifest import list_models as models

__all__ = ["__version__", "blur_map", "exposure", "models", "restore"]

__version__ = "0.1.0"

_FUNCTIONS = {
    "blur_map": ("vsfmanet.filter", "blur_map"),
    "exposure": ("vsfmanet.filter", "exposure"),
    "models": ("vsfmanet.manifest", "list_models"),
    "restore": ("vsfmanet.filter", "restore"),
}
"""Module and name of each public function."""


if not TYPE_CHECKING:  # or checkers would take any name for a public one

    def __getattr__(name: str) -> Any:
        """Import a public function when it is first used, and with it torch and VapourSynth."""
        if name not in _FUNCTIONS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, function = _FUNCTIONS[name]
        return getattr(import_module(module), function)


def __dir__() -> list[str]:
    """The public names, for completion in editors and shells."""
    return __all__
