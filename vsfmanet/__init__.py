"""FMA-Net++ for VapourSynth: joint super-resolution and deblurring of video, aware of motion and per-frame exposure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfmanet.filter import restore

__all__ = ["__version__", "restore"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the filter when it is first asked for: the networks and the training need neither it nor VapourSynth."""
    if name == "restore":
        from vsfmanet.filter import restore

        return restore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
