"""Golden frames: what each shipped model makes of a small clip, kept, so that moved code is seen to change no pixel.

The frames are kept as samples, not as a hash: the order of a sum in fp32 depends on the vector width of the CPU, so the
last bits differ from one machine to the next. One 8-bit code value is 0.0039; the tolerance is a fortieth of it.

Weights that are replaced need new golden frames. They are written by

    python -m tests.test_golden

The floors below are not: they are the quality that a weight has to keep, and are changed by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import vapoursynth as vs
from numpy.typing import NDArray

import vsfmanet
from tests.fakes import drawn_clip
from vsfmanet.manifest import list_models

EXAMPLES = Path(__file__).parents[1] / "scripts" / "examples"
FOLDER = Path(__file__).parent / "golden"
FRAMES, PROPERTIES = FOLDER / "frames.npz", FOLDER / "properties.json"

FLOORS = {
    "fmanetpp_x4_fast": 35.0,
    "fmanetpp_x4_base": 35.1,
    "fmanetpp_x2_fast": 36.6,
    "fmanetpp_x1_fast": 37.9,
    "fmanetpp_x1_path": 37.9,
    "mmprnn_x1": 37.9,
    "m2aenet_x1": 37.8,
    "jffra_x1": 37.8,
}
"""PSNR in dB against the sharp original; rounded down from what was measured."""

TOLERANCE = 1e-4
"""Of samples in [0, 1]. Between SSE4, AVX2 and AVX-512 the difference was one step of the kept samples, 3e-5."""
PROPERTY_TOLERANCE = 2e-3
"""Of exposures and confidences."""
STEPS = {1: 3, 2: 5, 4: 11}
"""Distance of the kept samples, in rows and columns, by scale; odd, so that every phase of a pixel is covered."""

FIRST, STOP = 8, 14
TOP, LEFT, HEIGHT, WIDTH = 48, 96, 48, 64
"""The part of the example clip: a wing and leaves, moving by some pixels a frame."""
CUT = 4

MODELS = tuple(entry.name for entry in list_models())
DEFAULT = "fmanetpp_x4_fast"
CASES: dict[str, dict[str, Any]] = {
    **{name: {"model": name} for name in MODELS},
    "a function of the frame": {"exposure": lambda n, props: (1.0, 0.8, None, 0.6, 0.4, None)[n]},
    "estimated": {"exposure": "estimate"},
    "with a cut": {},
}
SAME: dict[str, dict[str, Any]] = {"in tiles": {"tile": (32, 32)}, "in short segments": {"segment": 2}}
"""Arguments that must not change the golden frames of the default model."""


@cache
def decoded(name: str, scale: int) -> NDArray[np.float64]:
    """The part of an example clip, its coordinates multiplied by `scale`, as (T, H, W, 3) in [0, 255]."""
    with av.open(str(EXAMPLES / name)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][FIRST:STOP]
    rows = slice(scale * TOP, scale * (TOP + HEIGHT))
    return np.stack(frames)[:, rows, scale * LEFT : scale * (LEFT + WIDTH)].astype(np.float64)


def clip(*, cut: int | None = None) -> vs.VideoNode:
    """The blurred part as a clip in RGB24, with a scene that starts at frame `cut`."""
    frames = decoded("dragonfly.mkv", 1)

    def props(n: int) -> dict[str, object]:
        return {"_SceneChangePrev": int(n == cut), "_SceneChangeNext": int(n + 1 == cut)}

    return drawn_clip(
        lambda n, plane: frames[n, :, :, plane],
        len(frames),
        width=WIDTH,
        height=HEIGHT,
        format=vs.RGB24,
        props=props,
    )


@cache
def restored(case: str) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Frames (T, H, W, 3) about [0, 1], and the properties that the filter wrote to each."""
    node = vsfmanet.restore(
        clip(cut=CUT if case == "with a cut" else None),
        device="cpu",
        precision="fp32",
        backend="torch",
        output_format=vs.RGBS,
        **(CASES | SAME)[case],
    )
    pixels, properties = [], []
    for frame in node.frames():
        pixels.append(np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1))
        written = {name: value for name, value in frame.props.items() if name.startswith("FMANet")}
        properties.append({name: written[name] for name in sorted(written)})
    return np.stack(pixels), properties


def samples(frames: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The samples that are kept of frames (T, H, W, 3): [-0.5, 1.5] in 16 bits."""
    step = STEPS[frames.shape[1] // HEIGHT]
    return np.round((frames[:, ::step, ::step].clip(-0.5, 1.5) + 0.5) / 2 * 65535).astype(np.uint16)


def psnr(frames: NDArray[Any], scale: int) -> float:
    """PSNR in dB of frames (T, H, W, 3) in [0, 1] against the sharp original of their size, without a border."""
    sharp = decoded("dragonfly_sharp.mkv", 4) / 255
    time, height, width, _ = sharp.shape
    part = 4 // scale
    sharp = sharp.reshape(time, height // part, part, width // part, part, 3).mean(axis=(2, 4))
    inside = slice(4 * scale, -4 * scale)
    return float(-10 * math.log10(np.square((frames.clip(0, 1) - sharp)[:, inside, inside]).mean()))


def bicubic(scale: int) -> NDArray[np.float32]:
    """The blurred frames, enlarged."""
    node = clip().resize.Bicubic(WIDTH * scale, HEIGHT * scale, format=vs.RGBS, filter_param_a=0, filter_param_b=0.5)
    return np.stack([np.stack([np.asarray(frame[plane]) for plane in range(3)], -1) for frame in node.frames()])


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernels of our own, and one thread."""
    monkeypatch.setenv("VSFMANET_NO_KERNELS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [*CASES, *SAME])
def test_restored_frames_and_their_properties_are_the_golden_ones(case: str) -> None:
    golden = json.loads(PROPERTIES.read_text())
    kept_as = DEFAULT if case in SAME else case
    model = CASES[kept_as].get("model", DEFAULT)
    weights = next(entry.sha256 for entry in list_models() if entry.name == model)
    assert golden["weights"][model] == weights, "new weights need new golden frames: python -m tests.test_golden"

    frames, properties = restored(case)
    with np.load(FRAMES) as kept:
        expected = kept[kept_as].astype(np.float64) / 65535 * 2 - 0.5
    assert np.abs(samples(frames) / 65535 * 2 - 0.5 - expected).max() <= TOLERANCE

    assert len(properties) == len(golden["cases"][kept_as])
    for n, (found, wanted) in enumerate(zip(properties, golden["cases"][kept_as], strict=True)):
        assert found.keys() == wanted.keys(), n
        for name, value in wanted.items():
            close = pytest.approx(value, abs=PROPERTY_TOLERANCE) if isinstance(value, float) else value
            assert found[name] == close, (n, name)


@pytest.mark.parametrize("model", MODELS)
def test_restored_frames_are_as_near_to_the_original_as_they_were(model: str) -> None:
    frames, _ = restored(model)
    scale = frames.shape[1] // HEIGHT
    found = psnr(frames, scale)
    assert found >= FLOORS[model]
    if scale > 1:
        assert found > psnr(bicubic(scale), scale) + 0.5


def write_golden() -> None:
    """Write the golden frames and properties of the shipped weights."""
    made = {case: restored(case) for case in CASES}
    FOLDER.mkdir(exist_ok=True)
    kept: dict[str, Any] = {case: samples(frames) for case, (frames, _) in made.items()}
    np.savez_compressed(FRAMES, **kept)
    golden = {
        "weights": {entry.name: entry.sha256 for entry in list_models()},
        "cases": {case: properties for case, (_, properties) in made.items()},
    }
    PROPERTIES.write_text(json.dumps(golden, indent=1) + "\n")
    for name in MODELS:
        frames, _ = made[name]
        scale = frames.shape[1] // HEIGHT
        print(f"{name}: {psnr(frames, scale):.2f} dB, bicubic {psnr(bicubic(scale), scale):.2f} dB")  # noqa: T201


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VSFMANET_NO_KERNELS", "1")
        torch.set_num_threads(1)
        write_golden()
