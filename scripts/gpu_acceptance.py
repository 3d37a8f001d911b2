"""Accept a GPU that this code has never seen: one command, at most nine minutes, one report in Markdown and in JSON.

    python scripts/gpu_acceptance.py [--out gpu_acceptance] [--device cuda|cpu] [--minutes 9] [--only SECTION ...]

Needed are torch, numpy and this package with what it depends on; CuPy and VapourSynth for what they do, where the
report states what was left out. Nothing is downloaded. Sections, in this order:

    machine     devices, driver, versions
    kernels     every kernel against its twin in torch, in each type: largest difference, and time against time
    sharing     torch's and CuPy's memory, seen by the other without a copy
    graphs      CUDA graphs against operations launched one by one
    film        a film against the CPU's result in fp32: PSNR in each precision
    throughput  seconds a frame at three sizes in each half type, against what the device could do (roofline)
    filters     two filters at once, each against itself alone
    memory      the steps that are taken when memory is short: every frame is still restored
    colour      conversion on the device against zimg
    parts       where the time of a frame goes
    training    a step of training: time and memory

Each section runs in a process of its own, so that one that crashes, hangs or breaks the device takes no other along.
The report is written after each. With `--device cpu` frames are tiny and the CPU stands in for the GPU.

Exit codes: 0 all passed; 1 a result is wrong; 2 usage; 3 a section raised or crashed; 4 there is no such device; 5 a
section took too long. The first of 4, 3, 1 and 5 that applies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vsfmanet.restorer import Restorer
    from vsfmanet.settings import Precision

MODEL = "fmanetpp_x4_fast"

Verdict = Literal["passed", "wrong", "crashed", "late", "left out"]
EXIT_CODES: Mapping[Verdict, int] = {"crashed": 3, "wrong": 1, "late": 5, "passed": 0, "left out": 0}
NO_DEVICE = 4

KERNEL_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 6e-3}
"""Largest difference between a kernel and its twin, over the twin's largest value."""
LEAST_PSNR: dict[Precision, float] = {"fp32": 60.0, "fp16": 55.0, "bf16": 45.0}
"""Least PSNR of a film against the CPU's in fp32, in dB; in fp32, cuDNN may multiply in TF32."""
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class LeftOut(Exception):
    """A section cannot run here; the text states why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What a section needs to know."""

    device: Literal["cuda", "cpu"]
    """Where to compute."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of input frames, from small to large."""
    frames: int
    """Frames of a film."""

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions that the device computes in."""
        if self.device == "cpu":
            return ("bf16",)
        return ("fp16", "bf16") if torch.cuda.get_device_capability()[0] >= 8 else ("fp16",)


@dataclass(kw_only=True, slots=True)
class Found:
    """What a section measured."""

    rows: list[dict[str, object]] = field(default_factory=list)
    """A table."""
    wrong: list[str] = field(default_factory=list)
    """What does not agree."""
    notes: list[str] = field(default_factory=list)
    """Remarks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a section ended."""

    name: str
    """Name of the section."""
    verdict: Verdict
    """How it ended."""
    seconds: float
    """Time that it took."""
    reason: str = ""
    """Why it did not pass."""
    found: Found = field(default_factory=Found)
    """What it measured."""


# Sections


def machine(setup: Setup) -> Found:
    """List devices, driver and versions."""
    facts: dict[str, object] = {
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda or "none",
        "CPU threads": torch.get_num_threads(),
    }
    for module in ("cupy", "vapoursynth", "numpy"):
        facts[module] = _version(module)
    if setup.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "cuDNN": torch.backends.cudnn.version(),
            "devices": torch.cuda.device_count(),
        }
    return Found(rows=[{"what": name, "value": value} for name, value in facts.items()])


@torch.inference_mode()
def kernels(setup: Setup) -> Found:
    """Compare every kernel with its twin, on small, odd and one-pixel images, and time both on a large one."""
    from vsfmanet.kernels import Kernels, kernels_for, reference

    torch.backends.cudnn.allow_tf32 = False  # the twins in whole fp32
    names = [name for name in vars(Kernels) if not name.startswith("_")]
    found = Found()
    large = setup.sizes[min(1, len(setup.sizes) - 1)]
    sizes = [(5, 4), (1, 1), (17, 1), (1, 9), (33, 31), large]
    for precision in ("fp32", *setup.precisions):
        dtype = {"fp32": torch.float32, **HALF}[precision]
        fast = kernels_for(torch.empty(1, dtype=dtype, device=setup.torch_device))
        if fast is None:
            found.wrong.append(f"no kernels are used on {setup.device} in {precision}")
            continue
        for name in names:
            own, twin = getattr(fast, name), getattr(reference, name)
            made = (_kernel_case(name, width, height, dtype, setup.torch_device) for width, height in sizes)
            cases = [case for case in made if case is not None]
            if not cases:
                found.wrong.append(f"no case for kernel {name}")
                continue
            pairs = [pair for case in cases for pair in _pairs(own(*case), twin(*case))]
            worst, allowed = max(_difference(*pair) for pair in pairs), KERNEL_TOLERANCE[dtype]
            times = [_seconds(partial(function, *cases[-1]), setup) for function in (own, twin)]
            row: dict[str, object] = {
                "kernel": name,
                "type": precision,
                "difference": f"{worst:.1e}",
                "allowed": f"{allowed:.0e}",
            }
            row |= {"us": f"{1e6 * times[0]:.0f}", "us of torch": f"{1e6 * times[1]:.0f}"}
            found.rows.append(row)
            if not worst <= allowed:
                found.wrong.append(f"{name} in {precision} is off by {worst:.1e}")
    found.notes.append(f"times at {large[0]}x{large[1]}, 64 channels")
    return found


def sharing(setup: Setup) -> Found:
    """Let torch and CuPy see each other's memory by DLPack, without a copy; on the CPU, NumPy stands in for CuPy."""
    arrays, found = _arrays(setup), Found()

    def note(what: str, good: bool, bad: str) -> None:
        found.rows.append({"what": what, "result": "shared" if good else bad})
        if not good:
            found.wrong.append(f"{what}: {bad}")

    for dtype in (torch.uint8, torch.uint16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        tensor = torch.zeros(5, 7, dtype=dtype, device=setup.torch_device)
        array = arrays.from_dlpack(tensor)
        tensor.fill_(3)
        note(f"a tensor as an array, {name}", bool((array == 3).all()), "a copy")
        array = arrays.zeros((5, 7), name)
        tensor = torch.utils.dlpack.from_dlpack(array)
        array.fill(3)
        note(f"an array as a tensor, {name}", bool((tensor.float() == 3).all()), "a copy")
    if setup.device == "cuda":
        from vsfmanet.engines.transfers import CudaCopies

        before = torch.cuda.memory_allocated()
        block = arrays.empty(2**24, "uint8")
        note("CuPy's memory is of torch's pool", torch.cuda.memory_allocated() - before >= block.nbytes, "another pool")
        memory = torch.from_numpy(CudaCopies(torch.device("cuda", 0)).page_locked(4096))
        note("CuPy's memory on the host is page-locked for torch", memory.is_pinned(), "pageable")
    return found


def graphs(setup: Setup) -> Found:
    """Compare CUDA graphs with operations launched one by one, and a second run with the first."""
    found = Found()
    for precision in setup.precisions:
        times, films = {}, {}
        for name, recorded in (("graphs", True), ("one by one", False)):
            with _restorer(setup, precision) as restorer:
                _set_plan(restorer, graphs=recorded)
                first = _film(restorer, Scene(setup.sizes[0], setup.frames))
                start = time.perf_counter()
                films[name] = _film(restorer, Scene(setup.sizes[0], setup.frames))
                times[name] = time.perf_counter() - start
                if not torch.equal(first, films[name]):
                    found.wrong.append(f"{name} in {precision}: the same frames differ the second time")
        off = _difference(*films.values())
        row: dict[str, object] = {"precision": precision, "difference": f"{off:.1e}"}
        row |= {f"ms a frame, {name}": f"{1e3 * spent / setup.frames:.1f}" for name, spent in times.items()}
        found.rows.append(row)
        if off > KERNEL_TOLERANCE[HALF[precision]]:
            found.wrong.append(f"graphs in {precision} are off by {off:.1e}")
    if setup.device == "cpu":
        found.notes.append("no graphs on the CPU: the same way twice")
    return found


def film(setup: Setup) -> Found:
    """Compare a film with the CPU's result in fp32, after clamping to [0, 1]."""
    found = Found()
    scene = Scene(setup.sizes[0], setup.frames)
    with _restorer(replace(setup, device="cpu"), "fp32") as restorer:
        expected = _film(restorer, scene).clamp(0, 1)
    for precision in ("fp32", *setup.precisions):
        with _restorer(setup, precision) as restorer:
            mse = (_film(restorer, scene).clamp(0, 1) - expected).double().square().mean().item()
        psnr = math.inf if mse == 0 else -10 * math.log10(mse)
        found.rows.append({"precision": precision, "PSNR, dB": f"{psnr:.1f}", "least": LEAST_PSNR[precision]})
        if not psnr >= LEAST_PSNR[precision]:
            found.wrong.append(f"{precision}: {psnr:.1f} dB against the CPU's fp32")
    return found


def throughput(setup: Setup) -> Found:
    """Time a stream of frames, beside what the device's matrix products and memory allow."""
    found = Found()
    bandwidth = _bandwidth(setup)
    for precision in setup.precisions:
        peak = _peak(setup, HALF[precision])
        for width, height in setup.sizes:
            flop, traffic = _work(width, height)
            with _restorer(setup, precision) as restorer:
                seconds = _seconds_a_frame(restorer, Scene((width, height), 10**6), setup)
                scale = restorer.scale
            least = max(flop / peak, 0.0)
            found.rows.append(
                {
                    "input": f"{width}x{height}",
                    "output": f"{scale * width}x{scale * height}",
                    "precision": precision,
                    "ms a frame": f"{1e3 * seconds:.2f}",
                    "frames/s": f"{1 / seconds:.2f}",
                    "TFLOP/s": f"{flop / seconds / 1e12:.3f}",
                    "of peak": f"{100 * least / seconds:.1f} %",
                    "least ms by arithmetic": f"{1e3 * least:.2f}",
                    "ms by memory, unfused": f"{1e3 * traffic / bandwidth:.2f}",
                    "memory": _peak_memory(setup),
                }
            )
        found.notes.append(f"peak of a large matrix product in {precision}: {peak / 1e12:.2f} TFLOP/s")
    found.notes.append(f"bandwidth of a large copy: {bandwidth / 1e9:.0f} GB/s")
    found.notes.append("memory, unfused: if every operation of the twins read and wrote its tensors once")
    return found


def filters(setup: Setup) -> Found:
    """Run two restorers at once, in two threads and in turn with each other, against each alone."""
    found = Found()
    precision = setup.precisions[0]
    scenes = [Scene(setup.sizes[0], setup.frames, seed=seed) for seed in (1, 2)]
    alone, start = [], time.perf_counter()
    for scene in scenes:
        with _restorer(setup, precision) as restorer:
            alone.append(_film(restorer, scene))
    apart = time.perf_counter() - start
    together: dict[int, Tensor] = {}

    def run(number: int, restorer: Restorer) -> None:
        together[number] = _film(restorer, scenes[number])

    with _restorer(setup, precision) as one, _restorer(setup, precision) as other:
        start = time.perf_counter()
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.perf_counter() - start
    for number, expected in enumerate(alone):
        off = _difference(together[number], expected) if number in together else math.inf
        found.rows.append({"filter": number + 1, "difference": f"{off:.1e}"})
        if off != 0:
            found.wrong.append(f"filter {number + 1} is off by {off:.1e} beside another one")
    found.notes.append(f"{spent:.2f} s together, {apart:.2f} s one after the other, start included")
    return found


def memory(setup: Setup) -> Found:
    """Take memory away until the restorer has to save some, and compare its frames with those before.

    On the CPU a lack of memory is raised in the place of it.
    """
    found = Found()
    width, height = setup.sizes[0]
    scene = Scene((max(48, width), max(32, height)), setup.frames)  # large enough for tiles
    precision = setup.precisions[0]
    with _restorer(setup, precision) as restorer:
        expected = _film(restorer, scene)
    limits = _memory_limits(setup)
    for name, limited in limits:
        with _restorer(setup, precision) as restorer, _messages() as said, limited(restorer):
            try:
                off = _difference(_film(restorer, scene), expected)
            except Exception as error:  # that nothing fits is a result too, if the error says so
                if type(error).__name__ != "DeviceError":
                    raise
                found.rows.append({"memory": name, "result": f"refused: {error}"})
                continue
        found.rows.append({"memory": name, "result": f"off by {off:.1e}; " + ("; ".join(said) or "no step taken")})
        if off > KERNEL_TOLERANCE[HALF[precision]]:
            found.wrong.append(f"with {name} frames are off by {off:.1e}")
    steps = sum("from here on" in str(row["result"]) for row in found.rows)
    if not steps:
        found.wrong.append("memory was never short, or the restorer took no step")
    return found


def colour(setup: Setup) -> Found:
    """Convert frames to RGB and back on the device, against zimg."""
    if importlib.util.find_spec("vapoursynth") is None:
        raise LeftOut("zimg comes with VapourSynth, which is not installed: pip install vapoursynth")
    import numpy as np
    import vapoursynth as vs

    from vsfmanet.clips.colour import DeviceColour, check_clip, from_rgb, tag_colour, to_rgb

    found = Found()
    width, height = 64, 48
    with _restorer(setup, "fp32") as restorer:
        for format in (vs.YUV420P8, vs.YUV422P10, vs.YUV444P16, vs.RGB24, vs.GRAY8, vs.YUV410P8):
            blank = vs.core.std.BlankClip(format=format, width=width, height=height, length=1)
            limit = 2**blank.format.bits_per_sample

            def filled(n: int, f: vs.VideoFrame, limit: int = limit) -> vs.VideoFrame:
                frame, values = f.copy(), np.random.default_rng(0)
                for plane in range(frame.format.num_planes):
                    target = np.asarray(frame[plane])
                    target[:] = values.integers(0, limit, target.shape)
                return frame

            tagged = blank.std.SetFrameProps(_Matrix=0 if blank.format.color_family == vs.RGB else 1)
            clip = tag_colour(check_clip(tagged.std.ModifyFrame(tagged, filled)))
            source = clip.get_frame(0)
            path = DeviceColour(clip.format, clip.format, width, height, restorer.transfers)
            rgb = path.read(source, 0)
            restorer.transfers.wait()
            zimg = to_rgb(clip)
            theirs = torch.from_numpy(np.stack([np.array(zimg.get_frame(0)[plane]) for plane in range(3)]))
            off = float((rgb.cpu() - theirs).abs().max())
            encoded = restorer.transfers.download(path.encode(rgb, source, 0))
            restorer.transfers.wait()
            back, expected = path.write(encoded, source, 0), from_rgb(zimg, clip.format, clip.format).get_frame(0)
            apart = max(
                int(np.abs(np.asarray(back[plane], np.int64) - np.asarray(expected[plane], np.int64)).max())
                for plane in range(clip.format.num_planes)
            )
            found.rows.append({"format": clip.format.name, "RGB off by": f"{off:.1e}", "code values off by": apart})
            if not off <= 1e-5 or apart > 1:
                found.wrong.append(f"{clip.format.name}: RGB is off by {off:.1e}, code values by {apart}")
    return found


@torch.inference_mode()
def parts(setup: Setup) -> Found:
    """Time each part of the network, launched operation by operation, with a wait after each."""
    from vsfmanet.streams.levels import LevelStreams
    from vsfmanet.tiling import MemoryPlan
    from vsfmanet.weights import load_model

    found = Found()
    size = setup.sizes[-1]
    for precision in setup.precisions:
        network: Any = load_model(MODEL).network
        network.place(setup.torch_device, HALF[precision])
        timed = TimedParts(network.parts(), setup)
        with _restorer(setup, precision) as restorer:
            stream = LevelStreams(network, timed, restorer.transfers, plan=MemoryPlan()).open(Scene(size, 64), 0)
            for _ in range(2):
                next(stream)
            timed.spent.clear()
            count = 2 if setup.device == "cpu" else 8
            start = time.perf_counter()
            for _ in range(count):
                next(stream)
            _wait(setup)
            whole = time.perf_counter() - start
        rows = sorted(timed.spent.items(), key=lambda item: -item[1])
        rows.append(("the rest: copies, exposure", max(0.0, whole - sum(timed.spent.values()))))
        found.rows += [
            {
                "part": name,
                "precision": precision,
                "ms a frame": f"{1e3 * spent / count:.2f}",
                "share": f"{100 * spent / whole:.0f} %",
            }
            for name, spent in rows
        ]
    found.notes.append(f"{size[0]}x{size[1]}, without graphs")
    return found


def training(setup: Setup) -> Found:
    """Time a step of training FMA-Net++ `fast` in fp32 and under bf16, from forward pass to new weights."""
    from vsfmanet.networks.fmanetpp import FMANetPP, preset

    found = Found()
    batch, length, side = (1, 3, 16) if setup.device == "cpu" else (8, 5, 64)
    for name, autocast in (("fp32", False), ("bf16", True)):
        torch.manual_seed(0)
        network = FMANetPP(preset("fast")).to(setup.torch_device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        frames = torch.rand(batch, length, 3, side, side, device=setup.torch_device)
        target = torch.rand(batch, length, 3, 4 * side, 4 * side, device=setup.torch_device)
        exposure = torch.full((batch, length), 0.5, device=setup.torch_device)
        losses: list[float] = []

        def step() -> None:
            with torch.autocast(setup.device, dtype=torch.bfloat16, enabled=autocast):  # noqa: B023 (called at once)
                restored = network.restored(frames, exposure)  # noqa: B023
            loss = ((restored.float() - target).square() + 1e-6).sqrt().mean()  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            optimizer.zero_grad(set_to_none=True)  # noqa: B023
            losses.append(loss.item())  # noqa: B023

        seconds = _seconds(step, setup, most=8)
        row: dict[str, object] = {"type": name, "ms a step": f"{1e3 * seconds:.0f}", "memory": _peak_memory(setup)}
        row["loss"] = f"{losses[0]:.4f} -> {losses[-1]:.4f}"
        found.rows.append(row)
        if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
            found.wrong.append(f"{name}: the loss does not fall: {losses[0]:.4f}, then {losses[-1]:.4f}")
    found.notes.append(f"{batch} clips of {length} frames of {side}x{side}, x4")
    return found


type Section = Callable[[Setup], Found]

SECTIONS: Mapping[str, tuple[Section, int]] = {
    "machine": (machine, 30),
    "kernels": (kernels, 90),
    "sharing": (sharing, 20),
    "graphs": (graphs, 60),
    "film": (film, 80),
    "throughput": (throughput, 120),
    "filters": (filters, 45),
    "memory": (memory, 60),
    "colour": (colour, 30),
    "parts": (parts, 45),
    "training": (training, 60),
}
"""The sections, and the most seconds that each may take on a GPU."""


# What the sections use


class Scene:
    """A drawn clip that moves; a `FrameSource`."""

    def __init__(self, size: tuple[int, int], num_frames: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 2 + size[1] // 4, 2 + size[0] // 4, generator=generator)
        fine = torch.rand(1, 3, size[1], size[0], generator=generator)
        whole = torch.nn.functional.interpolate(coarse, size=(size[1], size[0]), mode="bicubic", align_corners=False)
        self._picture = (0.9 * whole + 0.1 * fine)[0].clamp(0, 1)
        self.num_frames = num_frames

    def frame(self, n: int) -> Tensor:
        """Return the picture, moved by n pixels."""
        return self._picture.roll((n, 2 * n), dims=(-2, -1))

    def exposure(self, n: int) -> float | None:
        """Return an exposure for every second frame."""
        return 0.5 if n % 2 else None

    def starts_scene(self, n: int) -> bool:
        """Return that there are no cuts."""
        return False


class TimedParts:
    """`Parts` that wait for the device after each part, and add up the time."""

    def __init__(self, parts: Any, setup: Setup) -> None:
        self._parts, self._setup = parts, setup
        self.spent: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        """Return a part that is timed."""
        part = getattr(self._parts, name)

        def timed(*args: Any) -> Any:
            _wait(self._setup)
            start = time.perf_counter()
            result = part(*args)
            _wait(self._setup)
            shown = f"level {args[0]}" if name == "level" else name.replace("_", " ")
            self.spent[shown] = self.spent.get(shown, 0.0) + time.perf_counter() - start
            return result

        return timed


def _arrays(setup: Setup) -> Any:
    """Return CuPy, which allocates by torch; NumPy for the CPU."""
    if setup.device == "cpu":
        import numpy

        return numpy
    from vsfmanet.devices import find_cupy

    cupy = find_cupy()
    if cupy is None:
        raise LeftOut("CuPy is not installed: pip install cupy-cuda13x, or cupy-cuda12x for CUDA 12")
    return cupy


def _restorer(setup: Setup, precision: Precision) -> Restorer:
    from vsfmanet.restorer import Restorer

    return Restorer(MODEL, device=setup.device, precision=precision)


def _film(restorer: Restorer, scene: Scene) -> Tensor:
    """Return all frames of a scene, (T, 3, H, W)."""
    return torch.stack([item.frame for item in restorer.restore(scene, 0, scene.num_frames)])


def _set_plan(restorer: Restorer, **changes: Any) -> None:
    """Change how a restorer computes, as it does by itself when memory is short."""
    restorer._plan = replace(restorer._plan, **changes)
    restorer._streams = restorer._make_streams()


def _seconds_a_frame(restorer: Restorer, scene: Scene, setup: Setup) -> float:
    """Time frames of a stream, once it flows."""
    step = 1 if setup.device == "cpu" else 4
    restorer.restore(scene, 0, 2 * step)
    done, start = 2 * step, time.perf_counter()
    while True:
        restorer.restore(scene, done, done + step)
        done += step
        spent = time.perf_counter() - start
        if spent > (0.5 if setup.device == "cpu" else 4.0) or done >= 400:
            return spent / (done - 2 * step)


def _seconds(run: Callable[[], object], setup: Setup, most: int = 50) -> float:
    """Return the mean time of a call, after one that does not count, from up to `most` calls in half a second."""
    run()
    _wait(setup)
    calls, start = 0, time.perf_counter()
    while calls < most and (calls < 2 or time.perf_counter() - start < 0.5):
        run()
        calls += 1
        if setup.device == "cpu" and time.perf_counter() - start > 0.05:
            break
    _wait(setup)
    return (time.perf_counter() - start) / calls


def _wait(setup: Setup) -> None:
    if setup.device == "cuda":
        torch.cuda.synchronize()


def _peak(setup: Setup, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product."""
    side = 256 if setup.device == "cpu" else 8192
    left, right = torch.rand(2, side, side, device=setup.torch_device).to(dtype)
    return 2 * side**3 / _seconds(lambda: torch.mm(left, right), setup)


def _bandwidth(setup: Setup) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    size = 2**22 if setup.device == "cpu" else 2**30
    source = torch.zeros(size, dtype=torch.uint8, device=setup.torch_device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), setup)


def _work(width: int, height: int) -> tuple[float, float]:
    """Return the floating-point operations of a frame, and about the bytes that they read and write in a half type."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from vsfmanet.networks.fmanetpp import FMANetPP, preset

    class Traffic(TorchDispatchMode):
        bytes = 0

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call, unused-ignore]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view:
                several = result if isinstance(result, tuple | list) else [result]
                tensors = [one for one in (*args, *several) if isinstance(one, Tensor)]
                self.bytes += sum(one.numel() * one.element_size() for one in tensors)
            return result

    with FakeTensorMode(), torch.inference_mode():
        network = FMANetPP(preset("fast"), deployed=True).eval()
        image = torch.empty(1, 1, 3, height, width)
        with FlopCounterMode(display=False) as counter, Traffic() as traffic:
            network(image)
    return float(counter.get_total_flops()), traffic.bytes / 2


def _peak_memory(setup: Setup) -> str:
    """Return the most device memory in use so far, and begin anew."""
    if setup.device == "cpu":
        return "-"
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return f"{most / 2**20:.0f} MiB"


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference over the largest value of `other`; infinite if one holds NaN."""
    off = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-6)
    return float(off) if off.isfinite() else math.inf


def _kernel_case(
    name: str, width: int, height: int, dtype: torch.dtype, device: torch.device
) -> tuple[Any, ...] | None:
    """Return the arguments of a kernel, as the networks call it; None for an unknown one."""
    from vsfmanet.ops.path import PathPlaces

    generator = torch.Generator().manual_seed(width * height)

    def like(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator).to(device, dtype)
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    channels, hidden = 64, 96
    x = like(1, channels, height, width)
    match name:
        case "warp_neighbours":
            flow = 2 * torch.randn(1, 24, height, width, generator=generator).to(device)
            return x, (like(*x.shape), like(*x.shape)), flow, 4, (0, 0)
        case "feed_forward":
            scaled = like(2 * hidden, channels, 1, 1) / 8, like(2 * hidden, 1, 3, 3) / 3
            return x, like(*x.shape), *scaled, like(channels, hidden, 1, 1) / 8
        case "squared_projection":
            return x, like(2 * channels, channels, 1, 1) / 8, like(2 * channels, 1, 3, 3) / 3, channels
        case "head_grams":
            return x, like(*x.shape), 4
        case "path_cells":
            images = torch.rand(3, 1, 3, 4 * height, 4 * width, generator=generator).to(device)
            motion = 4 * torch.randn(1, 6, height, width, generator=generator).to(device)
            places = PathPlaces(
                own_reach=3.0, own_count=13, neighbour_reach=2.0, neighbour_count=5, unit=4.0, grid=4, size=2
            )
            return (*images,), motion, places, (0, 0), dtype
        case "pixel_norm":
            return x, like(channels), like(channels), 1e-5
        case "add_product":
            return x, like(*x.shape), like(1, channels, channels) / 8
        case "add_skip":
            return torch.rand(1, 3, height, width, generator=generator).to(device), like(1, 48, height, width), 4, 4
        case "conv3x3":
            return [x, like(*x.shape)], like(channels, 2 * channels, 3, 3) / 24, like(channels), 1, 0.1, 1
    return None


def _pairs(ours: Any, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of two results that are to be compared."""
    if isinstance(ours, Tensor):
        return [(ours, theirs)]
    # Sums of squares may be kept in rows, which are added up later.
    return [
        (one.float().sum(0, keepdim=True) if one.shape != other.shape and one.ndim == 2 else one, other)
        for one, other in zip(ours, theirs, strict=True)
        if one.shape == other.shape or one.ndim == 2
    ]


def _memory_limits(setup: Setup) -> list[tuple[str, Callable[[Restorer], Any]]]:
    """Return ways to take memory away from a restorer, from mild to hard."""
    if setup.device == "cpu":
        return [(f"{count} failures", partial(_failing, count=count)) for count in (1, 2)]
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_reserved()
    parts = [(held + extra * 2**20) / total for extra in (192, 96, 48, 24)]
    return [(f"{part:.2%} of the device", partial(_fraction, part=part)) for part in parts]


@contextmanager
def _fraction(_: Restorer, part: float) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(part)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@contextmanager
def _failing(restorer: Restorer, count: int) -> Iterator[None]:
    """Let the first frames of a restorer fail for lack of memory."""
    advance: Any = restorer._advance
    left = count

    def fail_first(n: int) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise MemoryError("out of memory (a stand-in)")
        return advance(n)

    restorer._advance = fail_first  # type: ignore[method-assign]
    yield


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Collect the warnings of the package."""
    import logging

    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("vsfmanet"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _version(module: str) -> str:
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get(module, ())
    return version(names[0]) if names else "not installed"


# Running them, and the report


def _child(pipe: Connection, name: str, section: Section, setup: Setup) -> None:
    """Run a section, in a process of its own."""
    start = time.monotonic()
    try:
        found = section(setup)
        verdict: Verdict = "wrong" if found.wrong else "passed"
        reason = "; ".join(found.wrong)
    except LeftOut as error:
        found, verdict, reason = Found(), "left out", str(error)
    except BaseException as error:
        found, verdict = Found(notes=[traceback.format_exc()]), "crashed"
        reason = f"{type(error).__name__}: {error}"
    pipe.send(Outcome(name=name, verdict=verdict, seconds=time.monotonic() - start, reason=reason, found=found))


def run_section(name: str, section: Section, setup: Setup, limit: float) -> Outcome:
    """Run a section in a process of its own, for at most `limit` seconds."""
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload(["torch", "vsfmanet.restorer"])  # of no effect on Windows
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, name, section, setup))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            reason = f"no result within {limit:.0f} s"
            return Outcome(name=name, verdict="late", seconds=time.monotonic() - start, reason=reason)
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        process.join()
        reason = f"the process ended with {process.exitcode}"
        return Outcome(name=name, verdict="crashed", seconds=time.monotonic() - start, reason=reason)
    finally:
        process.kill()
        process.join()


def markdown(outcomes: Sequence[Outcome], setup: Setup, minutes: float) -> str:
    """Format the report."""
    lines = [
        "# Acceptance on " + ("a GPU" if setup.device == "cuda" else "the CPU, which stands in for a GPU"),
        "",
        f"{time.strftime('%d %B %Y')}, {minutes:.1f} minutes:"
        f" `python scripts/gpu_acceptance.py --device {setup.device}`",
        "",
        "| Section | Result | Seconds | Why |",
        "| --- | --- | --- | --- |",
        *(f"| {each.name} | {each.verdict} | {each.seconds:.0f} | {_cell(each.reason)} |" for each in outcomes),
    ]
    for each in outcomes:
        if not (each.found.rows or each.found.notes):
            continue
        lines += ["", f"## {each.name.capitalize()}", "", (SECTIONS[each.name][0].__doc__ or "").splitlines()[0]]
        if each.found.rows:
            heads = list(each.found.rows[0])
            lines += ["", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
            lines += ["| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |" for row in each.found.rows]
        for note in each.found.notes:
            lines += ["", f"```text\n{note.rstrip()}\n```" if "\n" in note else f"{note[:1].upper()}{note[1:]}."]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def write(out: Path, outcomes: Sequence[Outcome], setup: Setup, minutes: float) -> None:
    """Write the report, in the place of the one before."""
    table = {"setup": asdict(setup), "minutes": minutes, "sections": [asdict(each) for each in outcomes]}
    for path, text in (
        (out.with_suffix(".json"), json.dumps(table, indent=2) + "\n"),
        (out.with_suffix(".md"), markdown(outcomes, setup, minutes)),
    ):
        beside = path.with_name(f"{path.name}.part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


def read_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    width, height = map(int, text.split("x"))
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections, write the report after each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance"), help="the report, without its ending")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all sections together")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--sizes", nargs="+", type=read_size, metavar="WxH", help="of input frames")
    parser.add_argument("--frames", type=int, help="of a film")
    args = parser.parse_args(arguments)
    on_cpu = args.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; see `vsfmanet doctor`, or try --device cpu", file=sys.stderr)
        return NO_DEVICE
    usual = ((48, 32), (64, 36)) if on_cpu else ((320, 180), (640, 360), (960, 540))
    setup = Setup(device=args.device, sizes=tuple(args.sizes or usual), frames=args.frames or (3 if on_cpu else 24))
    start, outcomes = time.monotonic(), list[Outcome]()
    for name in args.only:
        left = 60 * args.minutes - (time.monotonic() - start)
        if left < 5:
            outcome = Outcome(name=name, verdict="late", seconds=0, reason="no time was left for it")
        else:
            section, limit = SECTIONS[name]
            outcome = run_section(name, section, setup, left if on_cpu else min(left, limit))
        outcomes.append(outcome)
        print(f"{name:11}{outcome.verdict:9}{outcome.seconds:5.0f} s  {outcome.reason}".rstrip(), flush=True)
        write(args.out, outcomes, setup, (time.monotonic() - start) / 60)
    print(f"report: {args.out.with_suffix('.md')}")
    return exit_code(outcomes)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return the exit code: that of the worst ending."""
    ended = {outcome.verdict for outcome in outcomes}
    return next(code for verdict, code in EXIT_CODES.items() if verdict in ended)


if __name__ == "__main__":
    sys.exit(main())
