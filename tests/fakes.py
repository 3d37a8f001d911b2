"""Stand-ins for the network, and clips whose every frame is different."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray
from torch import Tensor

from vsfmanet.clips.colour import check_clip
from vsfmanet.engines.transfers import Transfers
from vsfmanet.filter import restore_with as restored_by
from vsfmanet.restorer import Encode, FrameRestorer
from vsfmanet.segments import Reach
from vsfmanet.settings import ExposureArgument, RestoreSettings
from vsfmanet.streams import FrameSource, Restored


@dataclass(kw_only=True)
class MixingRestorer:
    """Mixes each frame with its context and their exposures, all with different weights, so that any mistake shows.

    At cuts and at the ends of the clip the nearest frame of the scene stands in. Like the real restorer it streams:
    when a call goes on where the last one stopped, it does not ask again for frames that it has.
    """

    name: str = "fake"
    scale: int = 4
    context: int = 2
    colour_transfers: Transfers | None = None
    calls: list[tuple[int, int]] = field(default_factory=list)
    """The (first, stop) of every call."""
    closed: bool = False
    _kept: dict[int, tuple[Tensor, float, bool]] = field(default_factory=dict)
    _next: int | None = None

    @property
    def reach(self) -> Reach:
        """The context, to both sides."""
        return Reach(before=self.context, after=self.context)

    def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
        """Restore frames `first` ... `stop - 1`."""
        assert not self.closed
        window = range(max(0, first - self.context), min(source.num_frames, stop + self.context))
        kept = self._kept if first == self._next else {}
        self._kept = {n: kept[n] if n in kept else self._read(source, n) for n in window}
        self._next = stop
        self.calls.append((first, stop))
        return [encoded(self._restored(n, window), encode) for n in range(first, stop)]

    def exact(self) -> FrameRestorer | None:
        """None: it computes in fp32."""
        return None

    def close(self) -> None:
        """Note that the filter released it."""
        self.closed = True

    def _read(self, source: FrameSource, n: int) -> tuple[Tensor, float, bool]:
        exposure = source.exposure(n)
        return source.frame(n), 0.7 if exposure is None else exposure, n > 0 and source.starts_scene(n)

    def _restored(self, n: int, window: range) -> Restored:
        first = last = n
        while first > max(window.start, n - self.context) and not self._kept[first][2]:
            first -= 1
        while last < min(window.stop - 1, n + self.context) and not self._kept[last + 1][2]:
            last += 1
        weights = range(1, 2 * self.context + 2)
        mixed = torch.zeros_like(self._kept[n][0])
        for offset, weight in zip(range(-self.context, self.context + 1), weights, strict=True):
            frame, exposure, _ = self._kept[min(max(n + offset, first), last)]
            mixed += weight * (0.9 * frame + 0.1 * exposure)
        return Restored(
            index=n, frame=enlarged(mixed / sum(weights), self.scale), exposure=self._kept[n][1], confidence=0.5
        )


@dataclass(kw_only=True)
class EnlargingRestorer:
    """Repeats pixels and does nothing else."""

    name: str = "fake"
    scale: int = 4
    colour_transfers: Transfers | None = None
    reach: Reach = field(default_factory=lambda: Reach(before=1, after=1))

    def restore(self, source: FrameSource, first: int, stop: int, encode: Encode | None = None) -> list[Restored]:
        """Enlarge frames `first` ... `stop - 1`."""
        return [
            encoded(
                Restored(index=n, frame=enlarged(source.frame(n), self.scale), exposure=0.5, confidence=1.0), encode
            )
            for n in range(first, stop)
        ]

    def exact(self) -> FrameRestorer | None:
        """None: it computes in fp32."""
        return None

    def close(self) -> None:
        """Nothing to release."""


@dataclass(kw_only=True)
class ListSource:
    """A whole clip in memory, as a restorer reads it."""

    frames: Sequence[Tensor]
    cuts: Collection[int] = ()
    exposures: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        self.num_frames = len(self.frames)

    def frame(self, n: int) -> Tensor:
        """Frame `n`."""
        return self.frames[n]

    def exposure(self, n: int) -> float | None:
        """Exposure of frame `n`."""
        return None if self.exposures is None else self.exposures[n]

    def starts_scene(self, n: int) -> bool:
        """Whether `n` is a cut."""
        return n in self.cuts


def encoded(restored: Restored, encode: Encode | None) -> Restored:
    """Apply `encode` to a restored frame."""
    return restored if encode is None else replace(restored, frame=encode(restored.index, restored.frame))


def enlarged(frame: Tensor, scale: int) -> Tensor:
    """(3, H, W) with every pixel repeated: (3, scale*H, scale*W)."""
    return frame.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


def restore_with(
    clip: vs.VideoNode,
    *restorers: MixingRestorer | EnlargingRestorer,
    exposure: ExposureArgument = "auto",
    source_path: Path | None = None,
    segment: int | None = None,
    sc_threshold: float | None = None,
    output_format: int | vs.VideoFormat | None = None,
    skip: bool = False,
    transfers: Transfers | None = None,
) -> vs.VideoNode:
    """`vsfmanet.restore` with a stand-in for the network, and with transfers as on a device."""
    settings = RestoreSettings(
        exposure=exposure,
        source_path=source_path,
        segment=segment,
        sc_threshold=sc_threshold,
        output_format=output_format,
        skip=skip,
    )
    for restorer in restorers:
        restorer.colour_transfers = transfers
    return restored_by(check_clip(clip), restorers, settings)


def drawn_clip(
    draw: Callable[[int, int], NDArray[np.float64]],
    length: int,
    *,
    width: int = 16,
    height: int = 12,
    format: int = vs.RGBS,
    props: Callable[[int], dict[str, object]] | None = None,
) -> vs.VideoNode:
    """A clip whose plane p of frame n is `draw(n, p)`, broadcast to the plane's size, in the format's code values."""

    def drawn(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for plane in range(frame.format.num_planes):
            np.copyto(np.asarray(frame[plane]), draw(n, plane), casting="unsafe")
        if props is not None:
            frame.props.update(props(n))
        return frame

    blank = vs.core.std.BlankClip(width=width, height=height, format=format, length=length, keep=True)
    return blank.std.ModifyFrame(blank, drawn)


def noise_clip(
    length: int,
    *,
    width: int = 16,
    height: int = 12,
    format: int = vs.RGBS,
    cuts: Collection[int] = (),
    exposures: Sequence[float] | None = None,
) -> vs.VideoNode:
    """A clip of noise with scene properties and, if given, exposures."""
    depth = vs.core.get_video_format(format).bits_per_sample

    def draw(n: int, plane: int) -> NDArray[np.float64]:
        noise = np.random.default_rng((n, plane)).random((height, width))
        return noise if depth == 32 else np.round(noise * (2**depth - 1))

    def props(n: int) -> dict[str, object]:
        scene: dict[str, object] = {"_SceneChangePrev": int(n in cuts), "_SceneChangeNext": int(n + 1 in cuts)}
        return scene if exposures is None else {**scene, "FMANetExposure": exposures[n]}

    return drawn_clip(draw, length, width=width, height=height, format=format, props=props)


def calls_of(owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows by one with every call of a function."""
    calls: list[None] = []
    real = getattr(owner, name)

    def counting(*args: object, **options: object) -> object:
        calls.append(None)
        return real(*args, **options)

    monkeypatch.setattr(owner, name, counting)
    return calls


def counted(clip: vs.VideoNode) -> tuple[vs.VideoNode, list[int]]:
    """A clip, and a list that grows by every frame requested from it."""
    asked: list[int] = []

    def count(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        asked.append(n)
        return f

    return clip.std.ModifyFrame(clip, count), asked


def planes(frame: vs.VideoFrame) -> list[NDArray[np.float64]]:
    """The planes of a frame as arrays of their own."""
    return [np.array(frame[plane], dtype=np.float64) for plane in range(frame.format.num_planes)]


def same_pixels(a: vs.VideoFrame, b: vs.VideoFrame) -> bool:
    """Whether two frames are equal to the last bit."""
    return all(np.array_equal(x, y) for x, y in zip(planes(a), planes(b), strict=True))
