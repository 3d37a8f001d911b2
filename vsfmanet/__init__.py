"""FMA-Net++ for VapourSynth: joint super-resolution and deblurring of video, aware of motion and per-frame exposure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfmanet.filter import blur_map, exposure, restore

__all__ = ["__version__", "blur_map", "exposure", "restore"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the filter when one of its functions is first asked for: networks and training need no VapourSynth."""
    if name in ("blur_map", "exposure", "restore"):
        from vsfmanet import filter

        return getattr(filter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
