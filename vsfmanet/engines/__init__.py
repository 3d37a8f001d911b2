"""What runs the network's parts: one interface, so that the streaming restorer does not know which.

`eager` is torch, whole frames or in parts of them; `cuda` has it recorded as graphs; `onnx` runs exported graphs in
onnxruntime, `tensorrt` in TensorRT.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    """The parts that one frame passes on its way; N is 1. Features are of the engine's type, images and flow fp32."""

    def stem(self, lr: Tensor) -> Tensor:
        """Features (N, C, H, W) that the first level reads, of frames `lr` (N, 3, H, W) in [0, 1]."""
        ...

    def initial_flow(self, lr: Tensor, neighbours: tuple[Tensor, Tensor]) -> Tensor:
        """Flow (N, 6n, H, W) that the first level reads; arguments as those of `DegradationNetwork.initial_flow`."""
        ...

    def level(
        self,
        index: int,
        feat: Tensor,
        neighbours: tuple[Tensor, Tensor],
        flow: Tensor,
        embed: Tensor | None,
        guide: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Features and flow after level `index`, 0 ... 2M - 1; arguments as those of `HRBABlock`."""
        ...

    def bridge(self, lr: Tensor, feat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """From NetD to NetR: features (N, C, H, W), and the guide of each block of NetR, M times (N, C, H, W)."""
        ...

    def finish(self, lr: Tensor, feat: Tensor) -> Tensor:
        """Restored frames (N, 3, s*H, s*W), fp32."""
        ...
