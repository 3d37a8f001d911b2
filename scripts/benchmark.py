"""Time everything that claims to be fast, against what it is measured by, in turns and in one table.

    python scripts/benchmark.py [--size 180x320] [--presets fast base paper] [--threads N] [--rounds 3] [--sections ...]

Sections:
    presets    one frame by the streaming restorer, with the kernels and in plain torch, beside the network of
               vsbasicvsrpp (fp32, as it ships) if that package is installed
    kernels    each kernel against its twin in plain torch
    streaming  the streaming restorer against whole windows of a segment and its context
    doubling   the networks of scale 2
    deblurring every kind of network of scale 1; and M2AENet by the share of a frame that is blurred
    filter     vspipe, from 8-bit 4:2:0 to 8-bit 4:2:0, against the network alone
    scaling    cost and memory against frames and against pixels

Contenders of a section run in turns, so that a disturbance meets all of them, and medians count. Ratios are taken from
CPU seconds on a CPU (beside the peer by the clock too, with several threads), and from the clock on CUDA. Weights are
random: the cost does not depend on them. GMAC are counted over convolutions and matrix products; the peak is that of a
large matrix product in the same run and precision. Memory is what a process of its own takes at its peak beyond its
start.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vsfmanet import kernels
from vsfmanet.devices import Worker, pick_device, pick_precision
from vsfmanet.jobs.supervise import KEPT_BUFFERS
from vsfmanet.networks import jffra, m2aenet, mmprnn
from vsfmanet.networks.blocks import channels_last
from vsfmanet.networks.description import RestorationNetwork
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.networks.jffra import JFFRA
from vsfmanet.networks.m2aenet import M2AENet
from vsfmanet.networks.mmprnn import MMPRNN
from vsfmanet.ops.attention import head_grams_reference
from vsfmanet.ops.norm import pixel_norm_reference
from vsfmanet.ops.projection import feed_forward_reference, squared_projection_reference
from vsfmanet.ops.warp import warp_neighbours_reference
from vsfmanet.restorer import Restorer
from vsfmanet.settings import Device, Precision
from vsfmanet.weights import load_fmanetpp, save_model

PEER = "vsbasicvsrpp"
SEGMENT = 8
FULL = 5 * SEGMENT
"""Frames by which the filter's caches are full. Until then the restored take fresh memory, which the system clears."""
SCRIPT = """
import resource, sys, time, torch, vapoursynth as vs
from vsfmanet import restore
torch.set_num_threads(int(threads))
clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=int(width), height=int(height), length=int(length), keep=True)
clip = clip.std.SetFrameProps(_Matrix=1)
clip = restore(clip, model=model, device=device, precision=precision, segment=int(segment))

def stamp(n, f):
    if n + 1 in (int(first), int(last)):
        used = resource.getrusage(resource.RUSAGE_SELF)
        print("stamp", time.perf_counter(), used.ru_utime + used.ru_stime, file=sys.stderr)
    return f

clip.std.ModifyFrame(clip, stamp).set_output()
"""


class Noise:
    """A clip whose content does not matter."""

    def __init__(self, height: int, width: int, num_frames: int = 1 << 30) -> None:
        self.picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
        self.num_frames = num_frames

    def frame(self, n: int) -> Tensor:
        """The same picture, moved by n pixels."""
        return self.picture.roll(n, dims=-1)

    def exposure(self, n: int) -> None:
        """Unknown, so that the extractor runs too."""

    def starts_scene(self, n: int) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Medians of one contender."""

    wall: float
    """Seconds by the clock."""
    cpu: float
    """Seconds of all threads of the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What is to be measured, and where."""

    size: tuple[int, int]
    """Height and width of an input frame."""
    presets: list[str]
    precision: Precision
    device: torch.device
    threads: int
    rounds: int
    frames: int
    """Frames of one measurement."""
    peer_frames: int
    """Frames that the peer's network is given at once."""
    folder: Path
    """Where the weights are."""
    processes: ProcessPoolExecutor
    """Gives each task a process of its own."""

    @property
    def kind(self) -> Device:
        """Kind of the device."""
        return "cpu" if self.device.type == "cpu" else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Type of the network's features."""
        return pick_precision(self.precision, self.device)

    def weights(self, name: str) -> Path:
        """The file with random weights of a preset."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            save_model(FMANetPP(preset(name)).deployed_form(), path)
        return path

    def restorer(self, name: str) -> Restorer:
        """The streaming restorer with random weights."""
        return Restorer(str(self.weights(name)), device=self.kind, precision=self.precision)

    def cost(self, timing: Timing) -> float:
        """What ratios are taken from."""
        return timing.wall if self.device.type == "cuda" else timing.cpu


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, *, repeat: int = 1
) -> dict[str, Timing]:
    """Run contenders one after the other, `rounds` times after a round that does not count; medians of a call."""
    taken: dict[str, list[Timing]] = {name: [] for name in contenders}
    for turn in range(-1, rounds):
        for name, run in contenders.items():
            timing = once(run, device, repeat=repeat)
            if turn >= 0:
                taken[name].append(timing)
    return {name: middle(timings) for name, timings in taken.items()}


def once(run: Callable[[], object], device: torch.device, *, repeat: int = 1) -> Timing:
    """One call, timed: the mean of `repeat` of them."""

    def now() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime

    started = now()
    for _ in range(repeat):
        run()
    wall, cpu = (after - before for after, before in zip(now(), started, strict=True))
    return Timing(wall=wall / repeat, cpu=cpu / repeat)


def middle(timings: Sequence[Timing]) -> Timing:
    """The medians of several."""
    return Timing(wall=median(t.wall for t in timings), cpu=median(t.cpu for t in timings))


def row(
    what: str,
    timing: Timing | None = None,
    *,
    per: float = 1,
    ratio: str = "",
    gmac: float | None = None,
    speed: float | None = None,
    peak: float | None = None,
    memory: float | None = None,
) -> None:
    """Print one line of the table; times are divided by `per`."""
    wall = "" if timing is None else f"{timing.wall / per * 1e3:.2f}"
    cpu = "" if timing is None else f"{timing.cpu / per * 1e3:.2f}"
    work = "" if gmac is None else f"{gmac:.1f}"
    rate = "" if speed is None else f"{speed:.0f}"
    share = "" if speed is None or peak is None else f"{speed / peak:.0%}"
    taken = "" if memory is None else f"{memory:.0f}"
    print(f"{what:46} {wall:>9} {cpu:>9} {work:>7} {rate:>8} {share:>5} {taken:>6}  {ratio}".rstrip(), flush=True)


@cache
def gigamacs(name: str, height: int, width: int) -> float:
    """Multiply-adds of one frame through all of a preset, in 10^9: convolutions and matrix products."""
    with FakeTensorMode(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        FMANetPP(preset(name), deployed=True).eval()(torch.empty(1, 1, 3, height, width))
    return counter.get_total_flops() / 2e9


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], float]:
    """A large matrix product, and its work in GFLOP."""
    side = 1024 if device.type == "cpu" else 8192
    left, right = torch.rand(2, side, side, device=device).to(dtype)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out), 2e-9 * side**3


def peer_network(height: int, width: int) -> nn.Module | str:
    """The x4 network of vsbasicvsrpp (64 channels, 7 blocks, its default model), or why it is not there."""
    if min(height, width) < 64:
        return "not measured: it needs 64x64 pixels"
    try:
        network = importlib.import_module(f"{PEER}.basicvsr_plusplus_net").BasicVSRPlusPlusNet
    except ImportError as error:
        return f"not measured ({error}): pip install {PEER}"
    return network(mid_channels=64, num_blocks=7, is_low_res_input=True).eval()


def presets_section(bench: Bench) -> None:
    """Every preset with and without kernels, and the peer."""
    height, width = bench.size
    # One each, for what CUDA has recorded with the kernels runs with them from then on.
    restorers = {(name, fast): bench.restorer(name) for name in bench.presets for fast in (True, False)}
    source, position = Noise(height, width), dict.fromkeys(restorers, 0)

    def stream(name: str, *, fast: bool) -> None:
        os.environ["VSFMANET_NO_KERNELS"] = "0" if fast else "1"
        first = position[name, fast]
        restorers[name, fast].restore(source, first, first + bench.frames)
        position[name, fast] = first + bench.frames
        os.environ["VSFMANET_NO_KERNELS"] = "0"

    types = dict.fromkeys((bench.dtype, torch.float32))
    products = {f"matrix product {_short(dtype)}": matrix_product(dtype, bench.device) for dtype in types}
    contenders: dict[str, Callable[[], object]] = {name: product for name, (product, _) in products.items()}
    for name in bench.presets:
        contenders[f"{name} {_short(bench.dtype)}"] = partial(stream, name, fast=True)
        contenders[f"{name} {_short(bench.dtype)} plain torch"] = partial(stream, name, fast=False)
    peer = peer_network(height, width)
    if isinstance(peer, nn.Module):
        peer.to(bench.device)
        clip = torch.rand(1, bench.peer_frames, 3, height, width, device=bench.device)
        contenders[f"{PEER} fp32"] = lambda: peer(clip)
    with torch.inference_mode():
        timings = in_turns(contenders, bench.rounds, bench.device)
    for restorer in restorers.values():
        restorer.close()

    peaks = {name: work / bench.cost(timings[name]) for name, (_, work) in products.items()}
    for name, peak in peaks.items():
        row(name, timings[name], speed=peak)
    peak = peaks[f"matrix product {_short(bench.dtype)}"]
    theirs = timings.get(f"{PEER} fp32")
    for name in bench.presets:
        ours, plain = (timings[f"{name} {_short(bench.dtype)}{kind}"] for kind in ("", " plain torch"))
        work = gigamacs(name, height, width)
        for kind, timing in (("", ours), (" plain torch", plain)):
            ratios = [] if timing is plain else [f"{bench.cost(plain) / bench.cost(ours):.2f}x plain torch"]
            if theirs is not None:
                share = bench.frames / bench.peer_frames
                ratios.append(f"{share * bench.cost(theirs) / bench.cost(timing):.1f}x {PEER}")
                if bench.threads > 1 and bench.device.type == "cpu":
                    ratios.append(f"{share * theirs.wall / timing.wall:.1f}x by the clock")
            row(
                f"{name} {_short(bench.dtype)}{kind}",
                timing,
                per=bench.frames,
                gmac=work,
                speed=2 * work * bench.frames / bench.cost(timing),
                peak=peak,
                memory=None if timing is plain else _alone(bench, name, bench.size, _depth(name) + 2).memory,
                ratio=", ".join(ratios),
            )
    if theirs is None:
        row(f"{PEER}: {peer}")
    else:
        row(f"{PEER} fp32, {bench.peer_frames} frames at once", theirs, per=bench.peer_frames)


def kernels_section(bench: Bench) -> None:
    """Every kernel against its twin, at the sizes of `paper`."""
    if kernels.kernels_for(torch.empty(1, device=bench.device)) is None:
        row("kernels: not measured: they need a C++ compiler, on CUDA CuPy")
        return
    height, width = bench.size
    config = preset("paper")
    channels, hidden, flows = config.width, config.feed_forward_width, config.num_flows

    def like(channels: int) -> Tensor:
        made = torch.randn(1, channels, height, width).to(bench.device, bench.dtype)
        return made.contiguous(memory_format=torch.channels_last)

    def weight(outputs: int, inputs: int, side: int) -> Tensor:
        made = torch.randn(outputs, inputs, side, side).to(bench.device, bench.dtype)
        return made.contiguous(memory_format=torch.channels_last)

    feat, neighbours = like(channels), (like(channels), like(channels))
    coarse = torch.randn(1, 6 * flows, height // 16 + 1, width // 16 + 1) * 4  # motion is smooth
    flow = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    flow = flow.to(bench.device).contiguous(memory_format=torch.channels_last)
    gain = torch.randn(channels).to(bench.device, bench.dtype)
    aligned, fuse = like(3 * channels), weight(channels, 3 * channels, 3)
    reduce = weight(channels, hidden, 1)
    expand, query = ((weight(wide, channels, 1), weight(wide, 1, 3)) for wide in (2 * hidden, 3 * channels))
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "multi-flow warp": (
            lambda: kernels.warp_neighbours(feat, neighbours, flow, flows),
            lambda: warp_neighbours_reference(feat, neighbours, flow, flows),
        ),
        "3x3 convolution": (
            lambda: kernels.conv3x3([aligned], fuse, gain),
            lambda: nn.functional.conv2d(aligned, fuse, gain, padding=1),
        ),
        "gated feed-forward": (
            lambda: kernels.feed_forward(feat, feat, *expand, reduce),
            lambda: feed_forward_reference(feat, feat, *expand, reduce),
        ),
        "projection and squares": (
            lambda: kernels.squared_projection(feat, *query, 2 * channels),
            lambda: squared_projection_reference(feat, *query, 2 * channels),
        ),
        "products of heads": (
            lambda: kernels.head_grams(feat, neighbours[0], config.heads),
            lambda: head_grams_reference(feat, neighbours[0], config.heads),
        ),
        "pixel norm": (
            lambda: kernels.pixel_norm(feat, gain, gain, 1e-5),
            lambda: pixel_norm_reference(feat, gain, gain, 1e-5),
        ),
    }
    contenders = {f"{name}{kind}": run for name, both in pairs.items() for kind, run in zip(_KINDS, both, strict=True)}
    repeat = 5 if bench.device.type == "cpu" else 100  # what a launch takes is little beside so many
    timings = in_turns(contenders, bench.rounds, bench.device, repeat=repeat)
    for name in pairs:
        fast, slow = (timings[f"{name}{kind}"] for kind in _KINDS)
        row(f"{name} {_short(bench.dtype)}", fast, ratio=f"{bench.cost(slow) / bench.cost(fast):.1f}x plain torch")
        row(f"{name} {_short(bench.dtype)} plain torch", slow)


_KINDS = ("", " plain torch")


def streaming_section(bench: Bench) -> None:
    """Streaming against whole windows: a segment and its context through all levels, at half the size."""
    height, width = (max(8, side // 2) for side in bench.size)
    for name in bench.presets:
        network = load_fmanetpp(str(bench.weights(name)))
        network.place(bench.device, bench.dtype)
        source = Noise(height, width)
        length = SEGMENT + 2 * network.config.context
        window = torch.stack([source.frame(n) for n in range(length)])[None].to(bench.device)
        with bench.restorer(name) as restorer:
            position = 0

            def stream(restorer: Restorer = restorer, source: Noise = source) -> None:
                nonlocal position
                restorer.restore(source, position, position + SEGMENT)
                position += SEGMENT

            def whole(network: FMANetPP = network, window: Tensor = window) -> None:
                embed = network.embed(window[0])
                assert embed is not None
                network(window, embed=embed[None].to(bench.dtype)).frames.cpu()

            timings = in_turns({"stream": stream, "window": whole}, bench.rounds, bench.device)
        ours, theirs = timings["stream"], timings["window"]
        label = f"{name} {_short(bench.dtype)} {height}x{width}"
        row(f"{label} stream", ours, per=SEGMENT, ratio=f"{bench.cost(theirs) / bench.cost(ours):.2f}x the window")
        row(f"{label} window of {length} for {SEGMENT}", theirs, per=SEGMENT)


def streams(bench: Bench, networks: dict[str, RestorationNetwork]) -> None:
    """Networks of one scale, each as a stream; the first one is what the others are compared with."""
    restorers: dict[str, Restorer] = {}
    for name, network in networks.items():
        path = bench.folder / f"x{network.scale} {name}.safetensors"
        save_model(network, path)
        restorers[name] = Restorer(str(path), device=bench.kind, precision=bench.precision)
    source, position = Noise(*bench.size), dict.fromkeys(networks, 0)

    def stream(name: str) -> None:
        restorers[name].restore(source, position[name], position[name] + bench.frames)
        position[name] += bench.frames

    timings = in_turns({name: partial(stream, name) for name in networks}, bench.rounds, bench.device)
    first = next(iter(networks))
    for name, timing in timings.items():
        reach, ratio = restorers[name].reach, f"{bench.cost(timings[first]) / bench.cost(timing):.1f}x {first}"
        if reach.period > 1:
            ratio += f", state of {reach.before} frames anew every {reach.period}"
        row(f"x{networks[name].scale} {name} {_short(bench.dtype)}", timing, per=bench.frames, ratio=ratio)
        restorers[name].close()


def doubling_section(bench: Bench) -> None:
    """The networks of scale 2 in a stream."""
    streams(bench, {f"fmanetpp {name}": FMANetPP(preset(name, scale=2)).deployed_form() for name in ("fast", "path")})


def deblurring_section(bench: Bench) -> None:
    """Every kind of network of scale 1 in a stream, with all of the frame blurred; and what is spared where less is."""
    height, width = bench.size
    networks: dict[str, RestorationNetwork] = {
        "fmanetpp fast": FMANetPP(preset("fast", scale=1)).deployed_form(),
        "fmanetpp path": FMANetPP(preset("path", scale=1)).deployed_form(),
        "mmprnn a3b4c16": MMPRNN(mmprnn.PRESETS["a3b4c16"]),
        "jffra xs": JFFRA(jffra.PRESETS["xs"]),
        "m2aenet deep": M2AENet(replace(m2aenet.PRESETS["deep"], masked=False)),
    }
    streams(bench, networks)

    pruned = M2AENet(m2aenet.PRESETS["deep"]).eval().to(bench.device, bench.dtype)
    channels_last(pruned)
    frame = Noise(height, width).frame(0)[None].to(bench.device)
    extent = torch.zeros_like(frame[:, :1])
    finding = "m2aenet deep, blur found"
    parts: dict[str, Callable[[], object]] = {finding: partial(pruned.blur.extent, frame.to(bench.dtype))}
    for share in (1.0, 0.5, 0.25, 0.1, 0.0):
        mask = torch.zeros_like(extent)
        mask[..., : round(height * share), :] = 1
        parts[f"m2aenet deep, {share:.0%} restored"] = partial(pruned.restore, frame, extent, mask)
    timings = in_turns(parts, bench.rounds, bench.device)
    found = timings.pop(finding)
    row(finding, found)
    all_of_it = bench.cost(found) + bench.cost(timings["m2aenet deep, 100% restored"])
    for name, timing in timings.items():
        row(name, timing, ratio=f"{all_of_it / (bench.cost(found) + bench.cost(timing)):.2f}x all of it, with finding")


def filter_section(bench: Bench) -> None:
    """The whole filter in vspipe, from when its caches are full to the end of a segment: so no start is counted."""
    height, width = bench.size
    name = bench.presets[0]
    script = bench.folder / "benchmark.vpy"
    script.write_text(SCRIPT)
    vspipe = Path(sys.executable).with_name("vspipe")
    count = SEGMENT * max(2, bench.frames)
    given = {
        "model": bench.weights(name), "width": width, "height": height, "threads": bench.threads, "length": 1000,
        "device": bench.device.type, "precision": bench.precision, "segment": SEGMENT, "first": FULL,
        "last": FULL + count,
    }  # fmt: skip
    options = [part for key, value in given.items() for part in ("-a", f"{key}={value}")]

    def pipe() -> Timing:
        done = subprocess.run(
            [vspipe, *options, "-e", str(FULL + count - 1), script, "--"],
            check=False,
            capture_output=True,
            text=True,
        )
        stamps = [[float(value) for value in found] for found in re.findall(r"stamp (\S+) (\S+)", done.stderr)]
        if done.returncode or len(stamps) != 2:
            raise RuntimeError(f"benchmark: vspipe must stamp two frames, got: {done.stderr.strip()[-300:]}")
        (wall, cpu), (last_wall, last_cpu) = stamps
        return Timing(wall=last_wall - wall, cpu=last_cpu - cpu)

    source = Noise(height, width)
    with bench.restorer(name) as restorer:
        position = SEGMENT
        restorer.restore(source, 0, position)  # fills the levels

        def alone() -> None:
            nonlocal position
            restorer.restore(source, position, position + count)
            position += count

        network: list[Timing] = []
        whole: list[Timing] = []
        for _ in range(bench.rounds):  # in turns by hand: what another process uses it tells itself
            network.append(once(alone, bench.device))
            whole.append(pipe())
    own, piped = middle(network), middle(whole)
    row(f"{name} {_short(bench.dtype)} network alone", own, per=count)
    overhead = bench.cost(piped) / bench.cost(own) - 1
    row(
        f"{name} {_short(bench.dtype)} vspipe",
        piped,
        per=count,
        ratio=f"{overhead:+.1%} over the network, {count / piped.wall:.2f} frames/s",
    )


def scaling_section(bench: Bench) -> None:
    """A clip of more frames, and frames of more pixels: the cost should grow alike, and memory only with pixels."""
    name = bench.presets[0]
    height, width = (max(8, side // 2) for side in bench.size)
    counts = [count * _depth(name) for count in (2, 4, 8)]
    base: float | None = None
    for frames in counts:
        found = _alone(bench, name, (height, width), frames)
        cost = bench.cost(found.timing) / frames
        base = base or cost
        label = f"{name} {_short(bench.dtype)} {height}x{width}, {frames} frames"
        row(label, found.timing, per=frames, memory=found.memory, ratio=f"{cost / base:.2f} per frame")
    base = None
    for multiple in (1, 2, 3):
        tall, wide = height * multiple, width * multiple
        frames = counts[0]
        found = _alone(bench, name, (tall, wide), frames)
        cost = bench.cost(found.timing) / frames / multiple**2
        base = base or cost
        label = f"{name} {_short(bench.dtype)} {tall}x{wide}, {frames} frames"
        row(label, found.timing, per=frames, memory=found.memory, ratio=f"{cost / base:.2f} per pixel")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a process of its own has to tell."""

    timing: Timing
    memory: float
    """MiB at its peak, beyond what it had after its imports (on CUDA: what torch took of the device)."""


def _alone(bench: Bench, name: str, size: tuple[int, int], frames: int) -> Found:
    """Restore a clip of so many frames in a process of its own."""
    task = bench.processes.submit(
        _restore_clip, str(bench.weights(name)), bench.kind, bench.precision, bench.threads, size, frames
    )
    return task.result()


def _restore_clip(
    path: str, device: Device, precision: Precision, threads: int, size: tuple[int, int], frames: int
) -> Found:
    torch.set_num_threads(threads)
    kernels.kernels_for(torch.empty(1))
    before = _resident()
    with Restorer(path, device=device, precision=precision) as restorer:
        source = Noise(*size, num_frames=frames)

        def run() -> None:
            for n in range(frames):
                restorer.restore(source, n, n + 1)

        if restorer.device.type == "cuda":
            run()  # compiles, chooses and records
            timing = once(run, restorer.device)
            return Found(timing=timing, memory=torch.cuda.max_memory_reserved(restorer.device) / 2**20)
        timing = once(run, restorer.device)
    return Found(timing=timing, memory=_resident() - before)


def _resident() -> float:
    """Peak resident memory of this process, MiB."""
    try:  # not ru_maxrss, which on Linux a process inherits from the one that started it
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found:
        return int(found[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _depth(name: str) -> int:
    """Levels of a preset: frames until all of them work."""
    return preset(name).context


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "presets": presets_section,
    "kernels": kernels_section,
    "streaming": streaming_section,
    "doubling": doubling_section,
    "deblurring": deblurring_section,
    "filter": filter_section,
    "scaling": scaling_section,
}


def main(arguments: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=_size, default=(180, 320), metavar="HxW", help="of an input frame (180x320)")
    parser.add_argument("--presets", nargs="+", default=["fast", "base", "paper"], choices=["fast", "base", "paper"])
    parser.add_argument("--sections", nargs="+", default=[*SECTIONS], choices=[*SECTIONS])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (all cores)")
    parser.add_argument("--frames", type=int, default=2, help="of one measurement (2)")
    parser.add_argument("--peer-frames", type=int, default=3, help="that the peer gets at once (3)")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not; medians (3)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    device = pick_device(args.device)
    height, width = args.size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {args.threads} threads"
    print(f"{width}x{height} to {4 * width}x{4 * height}; {name}; torch {torch.__version__}; medians of {args.rounds}")
    headings = f"{'what':46} {'ms':>9} {'CPU ms':>9} {'GMAC':>7} {'GFLOP/s':>8} {'peak':>5} {'MiB':>6}  compared"
    print(headings, "-" * len(headings), sep="\n")
    spawn = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes,
    ):
        bench = Bench(
            size=args.size,
            presets=args.presets,
            precision=args.precision,
            device=device,
            threads=args.threads,
            rounds=args.rounds,
            frames=args.frames,
            peer_frames=args.peer_frames,
            folder=Path(folder),
            processes=processes,
        )
        worker = Worker(device)  # where all restorers of a CPU work: what is compared shares its threads
        for section in args.sections:
            worker.run(torch.inference_mode()(partial(SECTIONS[section], bench)))
    print(f"machine load {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


def _size(text: str) -> tuple[int, int]:
    """Read HxW."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"height x width is needed, such as 180x320, got {text!r}")
    return int(match[1]), int(match[2])


def _processor() -> str:
    """Name of the CPU."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


if __name__ == "__main__":
    if not sys.platform.startswith("linux") or os.environ.get("GLIBC_TUNABLES"):
        main()
    else:  # as the command line runs its jobs, for all contenders alike
        os.execve(sys.executable, [sys.executable, *sys.argv], KEPT_BUFFERS | os.environ)
