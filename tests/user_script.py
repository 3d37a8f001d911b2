"""A user's script, which is never run: `test_typing.py` has mypy and pyright check it.

Calls that must be refused are marked; a mark that is not needed is an error too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import vapoursynth as vs

import vsfmanet
from vsfmanet import blur_map, exposure, models, restore
from vsfmanet.manifest import ModelEntry


def by_hand(n: int, props: Mapping[str, object]) -> float | None:
    return 0.5 if props.get("Night") else None


def script(clip: vs.VideoNode, format: vs.VideoFormat) -> None:
    assert_type(restore(clip), vs.VideoNode)
    assert_type(exposure(clip, exposure="estimate", source_path="film.mp4"), vs.VideoNode)
    assert_type(blur_map(clip, device="cpu"), vs.VideoNode)
    assert_type(models(), list[ModelEntry])
    assert_type(vsfmanet.__version__, str)

    every: dict[str, Any] = {}
    restore(
        clip,
        model="fmanetpp_x4_fast",
        exposure=0.5,
        source_path=Path("film.mp4"),
        device="cuda",
        device_index=(0, 1),
        precision="fp16",
        backend="torch",
        tile=(640, 360),
        segment=8,
        sc_threshold=0.1,
        output_format=format,
        skip=False,
    )
    restore(clip, exposure="film.csv", device_index=[0], **every)
    restore(clip, exposure=by_hand)

    restore(clip, device="gpu")  # type: ignore[arg-type]
    restore(clip, precision="half")  # type: ignore[arg-type]
    restore(clip, backend="trt")  # type: ignore[arg-type]
    restore(clip, tile=640)  # type: ignore[arg-type]
    restore(clip, tiles=(640, 360))  # type: ignore[call-arg]
    restore(clip, "fmanetpp_x4_fast")  # type: ignore[call-arg]
    restore(clip, exposure=lambda n: 0.5)  # type: ignore[misc, arg-type]
    _ = vsfmanet.nothing  # type: ignore[attr-defined]
