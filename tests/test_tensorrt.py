"""TensorRT: engines built by TensorRT-RTX without a GPU; how they would be run, with a stand-in for a context."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import TINY, awake
from vsfmanet.cli import main
from vsfmanet.engines import tensorrt
from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.graph import Run, export
from vsfmanet.engines.tensorrt import (
    Library,
    Workspace,
    build_ahead,
    build_engine,
    find_library,
    keep_channels_last,
    runner,
    tensorrt_engine,
)
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.kernels.build import library
from vsfmanet.networks.description import ExportPart, LevelNetwork
from vsfmanet.networks.fmanetpp import FMANetPP, preset
from vsfmanet.weights import load_model

needs_wheels = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the tests install TensorRT-RTX on Linux x86-64"
)
CPU = torch.device("cpu")


@pytest.fixture
def rtx() -> Library:
    """TensorRT-RTX; a test fails if it is not installed."""
    return find_library("sm_89", ahead=True)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Modules that are found in place of those that are installed."""
    modules: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name in modules:
            return modules[name]
        raise ImportError(f"no {name}")

    monkeypatch.setattr(tensorrt, "importlib", SimpleNamespace(import_module=find, util=importlib.util))
    tensorrt._library.cache_clear()
    yield modules
    tensorrt._library.cache_clear()


def bindings(version: str, *capabilities: str) -> SimpleNamespace:
    return SimpleNamespace(
        __version__=version, ComputeCapability=SimpleNamespace(__members__=dict.fromkeys(["NONE", *capabilities]))
    )


# Building


@needs_wheels
@pytest.mark.timeout(1200)
def test_the_command_builds_every_part_of_fast_and_a_job_on_such_a_gpu_finds_them(
    rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library()  # from the usual cache: there is no need to compile the kernels again
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = ["engines", "build", "--size", "64x36", "--arch", "sm_89", "--precision", "bf16"]
    parts = ["stem", *(f"level {index}" for index in range(4)), "bridge", "finish"]
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert all(f"{part}: built in" in printed for part in parts)
    assert "fmanetpp_x4_fast is ready for 64x36 in bf16 on sm_89" in printed

    def refuse(*_: object) -> bytes:
        raise AssertionError("built again")

    monkeypatch.setattr(tensorrt, "build_engine", refuse)
    assert main(command) == 0
    assert capsys.readouterr().err.count("in the cache already") == len(parts)

    loaded: list[str] = []

    def in_torch(_: Library, engine: object, context: object, part: ExportPart, *__: object, **___: object) -> Run:
        loaded.append(part.name)
        return lambda inputs: [out] if isinstance(out := part.module(*inputs), Tensor) else list(out)

    class Runtime:
        def __init__(self, _: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> SimpleNamespace:
            assert len(data) > 10_000
            return SimpleNamespace(create_execution_context=lambda _: None)

    strategies = SimpleNamespace(USER_MANAGED=2)
    stand_in = SimpleNamespace(
        **{name: getattr(rtx.trt, name) for name in ("__version__", "DataType", "ComputeCapability", "ILogger")},
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=strategies,
    )
    monkeypatch.setattr(tensorrt, "_library", lambda *, rtx: Library(trt=stand_in, rtx=True) if rtx else None)
    monkeypatch.setattr(tensorrt, "runner", in_torch)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    card = SimpleNamespace(name="RTX 4090", major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    model = load_model("fmanetpp_x4_fast")
    model.network.place(CPU, torch.bfloat16)
    network = level_network(model.network)
    cache = EngineCache(tmp_path / "vsfmanet" / "engines")
    engine = tensorrt_engine(network, weights_sha256=model.sha256, cache=cache, device=CPU)
    with torch.inference_mode():
        engine.stem(torch.rand(1, 3, 36, 64))
    assert loaded == parts


@needs_wheels
@pytest.mark.timeout(1200)
def test_every_part_of_base_is_built(rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of levels that differ in their weights alone are exported once: each takes seconds."""
    model = load_model("fmanetpp_x4_base")
    model.network.place(CPU, torch.float16)
    graphs: dict[str, bytes] = {}

    def exported(part: ExportPart) -> bytes:
        form = f"{part.module} {part.inputs.keys()} {[value.shape for value in part.module.state_dict().values()]}"
        if form not in graphs:
            graphs[form] = export(part)
        return graphs[form]

    monkeypatch.setattr(tensorrt, "export", exported)
    built = build_ahead(
        level_network(model.network), weights_sha256=model.sha256, cache=EngineCache(tmp_path), height=36, width=64,
        architecture="sm_120",
    )  # fmt: skip
    assert [each.part for each in built] == ["stem", *(f"level {index}" for index in range(8)), "bridge", "finish"]
    assert len(list(tmp_path.glob("*.engine"))) == 11
    assert len(graphs) == 6  # levels of NetD, those of NetR, and the last, which leaves the flow as it is


@needs_wheels
@pytest.mark.timeout(1200)
def test_a_level_of_paper_is_built(rtx: Library) -> None:
    network = FMANetPP(preset("paper")).deployed_form()
    network.place(CPU, torch.float16)
    [level] = [part for part in network.export_parts(36, 64) if part.name == "level 4"]
    assert "guide" in level.inputs
    assert len(build_engine(export(level), rtx, "sm_89")) > 1_000_000


def level_network(network: Any) -> LevelNetwork:
    assert isinstance(network, LevelNetwork)
    return network


@needs_wheels
def test_a_graph_that_cannot_be_read_is_refused_with_the_reason(rtx: Library) -> None:
    with pytest.raises(DeviceError, match=r'TensorRT-RTX 1\.\S+ must read the network, got .+; use backend="torch"'):
        build_engine(b"no graph", rtx, "sm_89")


@needs_wheels
def test_half_precision_features_are_channels_last_where_that_needs_no_padding(rtx: Library) -> None:
    trt = rtx.trt
    builder = trt.Builder(tensorrt._logger(rtx))
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    half, single = trt.DataType.HALF, trt.DataType.FLOAT
    inputs = {"features": (half, 64), "of paper": (half, 108), "flow": (single, 24), "frame": (single, 3)}
    for name, (dtype, channels) in inputs.items():
        given = definition.add_input(name, dtype, (1, channels, 4, 6))
        definition.mark_output(definition.add_identity(given).get_output(0))
    keep_channels_last(trt, definition)
    last = 1 << int(trt.TensorFormat.HWC8)
    for ends in (definition.get_input, definition.get_output):
        assert [ends(index).allowed_formats == last for index in range(4)] == [True, False, False, False]


# Running


class Context:
    """Runs a module on the addresses that it is given, where `last` names the tensors that lie channels-last."""

    def __init__(self, part: ExportPart, last: set[str]) -> None:
        self.part, self.last = part, last
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.streams: list[int] = []
        self.works = True
        self.shapes = {name: tuple(given.shape) for name, given in part.inputs.items()}
        with torch.inference_mode():
            out = part.module(*part.inputs.values())
        self.shapes |= {name: tuple(each.shape) for name, each in zip(part.outputs, out, strict=True)}

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory is not None
        self.streams.append(stream)
        out = self.part.module(*(self.tensor(name).clone() for name in self.part.inputs))
        for name, value in zip(self.part.outputs, out, strict=True):
            self.tensor(name).copy_(value)
        ctypes.memset(self.memory[0], 255, self.memory[1])  # activations
        return self.works

    def tensor(self, name: str) -> Tensor:
        """The memory at an address, as TensorRT would read it."""
        n, c, h, w = self.shapes[name]
        raw = (ctypes.c_uint16 * (n * c * h * w)).from_address(self.addresses[name])
        flat = torch.frombuffer(raw, dtype=torch.float16)
        return flat.view(n, h, w, c).permute(0, 3, 1, 2) if name in self.last else flat.view(n, c, h, w)


class Engine:
    """What `runner` asks an engine."""

    def __init__(self, context: Context, size: int) -> None:
        self.context, self.device_memory_size_v2 = context, size

    def get_tensor_format(self, name: str) -> str:
        return "HWC8" if name in self.context.last else "LINEAR"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.context.shapes[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "HALF"


class Mixed(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * 2 + b.mean(1, keepdim=True), b.flip(3)


STAND_IN = Library(trt=SimpleNamespace(__version__="0", TensorFormat=SimpleNamespace(HWC8="HWC8")), rtx=False)


def part_of(a: Tensor, b: Tensor) -> ExportPart:
    return ExportPart(name="level 0", module=Mixed(), inputs={"a": a, "b": b}, outputs=("sum", "mirror"))


def runner_of(context: Context, workspace: Workspace, size: int) -> Run:
    return runner(
        STAND_IN, Engine(context, size), context, context.part, workspace, types={"HALF": torch.float16},
        stream=lambda: 7,
    )  # fmt: skip


@pytest.mark.parametrize("last", [set(), {"a", "sum"}, {"a", "b", "sum", "mirror"}], ids=["none", "some", "all"])
def test_tensors_are_handed_over_in_the_layout_that_the_engine_names(last: set[str]) -> None:
    a, b = torch.rand(2, 1, 8, 3, 5).half()
    context = Context(part_of(a, b), last)
    run = runner_of(context, Workspace(CPU), 100)
    channels_last = a.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = Mixed()(a, b)
    for given in (a, channels_last):
        found = run([given, b])
        for name, ours, theirs in zip(("sum", "mirror"), found, expected, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous(memory_format=torch.channels_last) == (name in last)
        if ("a" in last) == (given is channels_last):
            assert context.addresses["a"] == given.data_ptr()  # no copy
    assert context.streams == [7, 7]


def test_all_parts_keep_their_activations_in_one_block_as_large_as_the_largest() -> None:
    a, b = torch.rand(2, 1, 8, 3, 5).half()
    workspace = Workspace(CPU)
    contexts = [Context(part_of(a, b), set()) for _ in range(3)]
    runs = [runner_of(context, workspace, size) for context, size in zip(contexts, (100, 5000, 300), strict=True)]
    for run in runs:
        run([a, b])
    assert len({context.memory for context in contexts}) == 1
    memory = contexts[0].memory
    assert memory is not None
    assert memory[1] == 5000


def test_a_part_that_fails_is_named() -> None:
    a, b = torch.rand(2, 1, 8, 3, 5).half()
    context = Context(part_of(a, b), set())
    context.works = False
    with pytest.raises(DeviceError, match=r'TensorRT 0 must run level 0, but failed; use backend="torch"'):
        runner_of(context, Workspace(CPU), 1)([a, b])


# Which library


def test_rtx_is_taken_where_it_knows_the_gpu_and_tensorrt_elsewhere(installed: dict[str, Any]) -> None:
    installed["tensorrt_rtx"] = bindings("1.7", "CURRENT", "SM89", "SM120")
    installed["tensorrt"] = bindings("11.4")
    assert find_library("sm_89").runtime == "TensorRT-RTX 1.7"
    assert find_library("sm_120", ahead=True).runtime == "TensorRT-RTX 1.7"
    assert find_library("sm_90").runtime == "TensorRT 11.4"
    with pytest.raises(ConfigError, match=r"must be one of sm_89, sm_120 for TensorRT-RTX 1\.7, got 'sm_90'; choose"):
        find_library("sm_90", ahead=True)


def test_what_is_missing_is_named_with_its_command(installed: dict[str, Any]) -> None:
    message = r"sm_89 need TensorRT-RTX or TensorRT, got none .*vsfmanet\[tensorrt-rtx\], or .*vsfmanet\[tensorrt\]"
    with pytest.raises(ConfigError, match=message):
        find_library("sm_89")
    tensorrt._library.cache_clear()
    installed["tensorrt"] = bindings("11.4")
    assert find_library("sm_89").runtime == "TensorRT 11.4"
    with pytest.raises(ConfigError, match=r"need TensorRT-RTX, got none .*; pip install vsfmanet\[tensorrt-rtx\]$"):
        find_library("sm_89", ahead=True)


@needs_wheels
def test_the_command_refuses_what_it_cannot_build(
    rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["engines", "build", "--size", "64x36", "--arch", "sm_90"]) == 2
    assert "the architecture must be one of sm_75, " in capsys.readouterr().err
    assert main(["engines", "build", "--size", "64x36", "--arch", "sm_89", "--model", "mmprnn_x1"]) == 2
    assert "engines are for FMA-Net++" in capsys.readouterr().err


def test_a_network_of_another_type_is_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_library", lambda _, *, ahead: STAND_IN)
    monkeypatch.setattr(tensorrt, "export", lambda part: part.name.encode())
    monkeypatch.setattr(tensorrt, "build_engine", lambda model, *_: model)
    network, cache = awake(TINY).deployed_form(), EngineCache(tmp_path)

    def built(architecture: str) -> list[bool]:
        ahead = build_ahead(network, weights_sha256="ab", cache=cache, height=9, width=12, architecture=architecture)
        return [each.seconds > 0 for each in ahead]

    assert all(built("sm_89"))
    assert not any(built("sm_89"))
    assert all(built("sm_86"))
    network.place(CPU, torch.bfloat16)
    assert all(built("sm_89"))
