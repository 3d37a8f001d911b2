"""The network outside torch: exported graphs, and the cache of what is built from them."""

from __future__ import annotations

import hmac
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import vapoursynth as vs
from torch import Tensor

from tests.fakes import ListSource
from tests.tiny import CELLS, TINY, awake
from vsfmanet import restore
from vsfmanet.devices import pick_backend, pick_device, pick_precision
from vsfmanet.engines import graph, onnx
from vsfmanet.engines.cache import EngineCache, EngineSpec
from vsfmanet.engines.graph import GraphEngine, Run
from vsfmanet.errors import ConfigError, DeviceError
from vsfmanet.kernels.build import library
from vsfmanet.networks.description import ExportPart
from vsfmanet.networks.fmanetpp import FMANetPPConfig
from vsfmanet.restorer import Restorer
from vsfmanet.settings import Provider, RestoreSettings
from vsfmanet.weights import save_model

ON_CELLS = replace(CELLS, num_blocks=1, path_grid=2, scale=1, upsampler="path")
SMALL = replace(TINY, num_blocks=1, initial_flow="matching", flow_features=True)
SPEC = EngineSpec(
    part="stem", weights_sha256="ab", height=8, width=9, precision="float16", runtime="TensorRT 10.9",
    device="GPU, 9.0, driver 13000", versions="torch 2.6",
)  # fmt: skip
ENGINE = bytes(range(256)) + b"\nengine\n"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_model(awake(SMALL).deployed_form(), path)
    return path


class Builder:
    """Builds, and loads what it has built and nothing else: a stand-in for a deserialiser, which runs what it gets."""

    def __init__(self) -> None:
        self.built = 0
        self.fails = 0

    def build(self) -> bytes:
        self.built += 1
        return ENGINE

    def load(self, data: bytes) -> str:
        assert data == ENGINE, "something else was deserialised"
        if self.fails:
            self.fails -= 1
            raise RuntimeError("made for another version")
        return "ready"

    def fetch(self, cache: EngineCache, spec: EngineSpec = SPEC) -> int:
        """How often it had to build."""
        before = self.built
        assert cache.fetch(spec, self.build, self.load) == "ready"
        return self.built - before


# onnxruntime


@dataclass(frozen=True, kw_only=True)
class Home:
    """A folder for a network and its graphs."""

    weights: Path
    exported: list[str] = field(default_factory=list)
    """Names of the parts of which a graph was made."""


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[FMANetPPConfig], Home]:
    """One for each network and all tests: an export takes seconds."""

    @cache
    def home(config: FMANetPPConfig) -> Home:
        weights = tmp_path_factory.mktemp("home") / "small.safetensors"
        save_model(awake(config).deployed_form(), weights)
        return Home(weights=weights)

    return home


@pytest.fixture
def at_home(
    homes: Callable[[FMANetPPConfig], Home], monkeypatch: pytest.MonkeyPatch
) -> Callable[[FMANetPPConfig], Home]:
    """Returns a network's home, where its graphs are found from then on."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    real = graph.export

    def enter(config: FMANetPPConfig) -> Home:
        home = homes(config)

        def export(part: ExportPart) -> bytes:
            home.exported.append(part.name)
            return real(part)

        monkeypatch.setattr(graph, "export", export)
        library()  # from the usual cache: there is no need to compile the kernels again
        monkeypatch.setenv("XDG_CACHE_HOME", str(home.weights.parent))
        return home

    return enter


@pytest.mark.parametrize("config", [SMALL, ON_CELLS])
def test_onnxruntime_restores_what_torch_does_and_finds_its_graphs_again(
    config: FMANetPPConfig, at_home: Callable[[FMANetPPConfig], Home]
) -> None:
    home = at_home(config)
    source = ListSource(frames=list(torch.rand(4, 3, 19, 23)), cuts=(3,), exposures=[0.5, None, 1.0, None])
    with Restorer(str(home.weights), device="cpu", precision="fp32") as restorer:
        expected = torch.stack([item.frame for item in restorer.restore(source, 0, 4)])
    for _ in range(2):
        with Restorer(str(home.weights), backend="onnx", provider="cpu") as restorer:
            found = torch.stack([item.frame for item in restorer.restore(source, 0, 4)])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert home.exported == ["stem", "level 0", "level 1", "bridge", "finish"]  # once


def test_a_part_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = awake(SMALL).deployed_form()
    wrong = ""

    def load(part: ExportPart, data: bytes) -> Run:
        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch.inference_mode():
                out = part.module(*inputs)
            found = [out] if isinstance(out, Tensor) else list(out)
            return [tensor * (1.01 if part.name == wrong else 1) for tensor in found]

        return run

    def engine() -> GraphEngine:
        return GraphEngine(
            network, weights_sha256="ab", cache=EngineCache(tmp_path), runtime="Stub 1", device="none",
            build=lambda model: model, load=load,
        )  # fmt: skip

    monkeypatch.setattr(graph, "export", lambda part: part.name.encode())
    lr = torch.rand(1, 3, 12, 16)
    with torch.inference_mode():
        torch.testing.assert_close(engine().stem(lr), network.parts().stem(lr))
    wrong = "level 1"
    with pytest.raises(
        DeviceError, match=r'Stub 1 must agree .* feat_out of level 1 is off by .*; use backend="torch"'
    ):
        engine().stem(lr)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_graphs_sample_in_fp32(dtype: torch.dtype) -> None:
    onnx = pytest.importorskip("onnx")  # shadows the engine
    pytest.importorskip("onnxscript")
    network = awake(SMALL).deployed_form()
    for part in (network.degradation, network.restoration):
        part.to(dtype)
    [level] = [part for part in network.export_parts(9, 11) if part.name == "level 1"]
    model = onnx.load_from_string(graph.export(level))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    sampled = [types[name] for node in inferred.node if node.op_type == "GridSample" for name in node.input]
    assert sampled
    assert set(sampled) == {onnx.TensorProto.FLOAT}
    half = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}[dtype]
    convolved = [types[node.input[0]] for node in inferred.node if node.op_type == "Conv"]
    assert convolved
    assert set(convolved) == {half}


# Execution providers


HAS_OPENVINO = sys.platform == "linux" and platform.machine() == "x86_64"
INTEL = HAS_OPENVINO and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
needs_openvino = pytest.mark.skipif(
    not INTEL, reason="the tests install OpenVINO on Linux, and it needs an Intel processor"
)
MISSING = {"directml"} if INTEL else {"directml", "openvino"}


@pytest.fixture
def small(at_home: Callable[[FMANetPPConfig], Home]) -> Callable[[Provider], Tensor]:
    """Restores a clip by a provider, with graphs that are exported once."""
    weights = at_home(SMALL).weights
    source = ListSource(frames=list(torch.rand(3, 3, 19, 23)), cuts=(), exposures=[0.5, None, 1.0])

    def restored(provider: Provider) -> Tensor:
        with Restorer(str(weights), backend="onnx", provider=provider) as restorer:
            assert restorer.resolved.provider == ("cpu" if provider in MISSING else provider)
            return torch.stack([item.frame for item in restorer.restore(source, 0, 3)])

    return restored


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The package's own warnings, not those of the exporter."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("vsfmanet")
    ]


@needs_openvino
def test_openvino_restores_what_the_cpu_does_and_a_provider_that_is_missing_is_told(
    small: Callable[[Provider], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    expected = small("cpu")
    with caplog.at_level(logging.INFO, "vsfmanet"):
        found = small("openvino")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert "onnxruntime computes with OpenVINOExecutionProvider" in caplog.text
    assert not warnings_of(caplog)
    caplog.clear()
    assert torch.equal(small("directml"), expected)
    [warning] = warnings_of(caplog)
    assert warning == (
        "no provider 'directml', the CPU computes in its place: this onnxruntime is built without "
        "DmlExecutionProvider; on Windows: pip uninstall onnxruntime, then pip install onnxruntime-directml"
    )


@pytest.mark.skipif(not HAS_OPENVINO or INTEL, reason="of OpenVINO on processors of others than Intel")
def test_openvino_finds_no_device_where_the_processor_is_not_intels(
    small: Callable[[Provider], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    assert torch.equal(small("openvino"), small("cpu"))
    [warning] = warnings_of(caplog)
    assert "the CPU computes in its place: OpenVINOExecutionProvider finds no device" in warning


@needs_openvino
def test_auto_is_the_first_provider_that_works() -> None:
    assert onnx.pick_provider("auto") == onnx.Picked(provider="openvino")
    assert onnx.pick_provider("cpu") == onnx.Picked(provider="cpu")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget which providers work, before and after."""
    caches = (onnx._why_missing, onnx._register)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_provider_that_computes_something_else_or_fails_or_is_left_out_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = onnx.open_session

    class Session:
        def run(self, names: list[str], given: dict[str, Any]) -> list[Any]:
            return [given["x"] * 2]

    def open_session(model: bytes, provider: str) -> Any:
        if provider == "cuda":
            raise RuntimeError("no device\nat line 3")
        return Session() if provider == "webgpu" else real(model, provider)

    monkeypatch.setattr(onnx, "open_session", open_session)
    assert "it fails: no device; " in onnx.pick_provider("cuda").missing
    assert "it computes 3 x 3 as [6.0, 6.0, 6.0, 6.0]; pip install" in onnx.pick_provider("webgpu").missing
    assert onnx.pick_provider("coreml") == onnx.Picked(
        provider="cpu",
        missing="this onnxruntime is built without CoreMLExecutionProvider; it comes with onnxruntime for macOS",
    )


@pytest.mark.usefixtures("fresh")
def test_onnxruntime_that_goes_on_with_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu does on a machine without CUDA's libraries."""
    runtime = onnx._onnxruntime()
    real = runtime.InferenceSession
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        runtime, "InferenceSession", lambda model, options, providers: real(model, options, providers=providers[-1:])
    )
    assert "onnxruntime cannot start CUDAExecutionProvider" in onnx.pick_provider("cuda").missing


def test_operations_that_a_provider_leaves_to_the_cpu_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    def group(name: str, nodes: int) -> SimpleNamespace:
        return SimpleNamespace(ep_name=name, get_nodes=lambda: [None] * nodes)

    info = [group("WebGpuExecutionProvider", 5), group("CPUExecutionProvider", 2)]
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: info)
    onnx._warn_of_leftovers(session, "level 1", "webgpu")
    onnx._warn_of_leftovers(SimpleNamespace(get_provider_graph_assignment_info=lambda: info[:1]), "stem", "webgpu")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 7 operations of level 1 run on the CPU, because WebGpuExecutionProvider lacks them"
    ]


def test_a_provider_is_for_onnx() -> None:
    assert {*onnx.PROVIDERS, "auto"} == set(get_args(Provider))
    with pytest.raises(ConfigError, match="provider is for backend 'onnx', got backend 'auto'; leave one of them out"):
        RestoreSettings(provider="cuda")
    with pytest.raises(ConfigError, match=r"provider must be one of 'auto', 'cpu', 'cuda', .*, got 'rocm'"):
        RestoreSettings(backend="onnx", provider="rocm")  # type: ignore[arg-type]
    assert RestoreSettings.from_json(RestoreSettings(backend="onnx", provider="webgpu").to_json()).provider == "webgpu"


# The cache


def test_an_engine_is_built_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    builder, folder = Builder(), tmp_path / "engines"
    assert builder.fetch(EngineCache(folder)) == 1
    assert builder.fetch(EngineCache(folder)) == 0
    assert len(list(folder.iterdir())) == 2  # the engine and the key: nothing half-made is left
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


@pytest.mark.parametrize("harm", ["cut", "emptied", "flipped", "longer", "planted", "of another key"])
def test_an_engine_that_is_not_whole_and_ours_is_built_anew_and_never_loaded(tmp_path: Path, harm: str) -> None:
    builder, cache = Builder(), EngineCache(tmp_path / "engines")
    builder.fetch(cache)
    [path] = (tmp_path / "engines").glob("*.engine")
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[-9] ^= 4
    elif harm == "of another key":
        other = EngineCache(tmp_path / "other")
        other.fetch(SPEC, lambda: b"evil", lambda data: data)
        content = bytearray((tmp_path / "other" / path.name).read_bytes())
    else:
        content = {
            "cut": content[:-5], "emptied": bytearray(), "longer": content + b"x",
            "planted": bytearray(32) + SPEC.text() + b"\nevil",
        }[harm]  # fmt: skip
    path.write_bytes(content)
    assert builder.fetch(cache) == 1
    assert builder.fetch(cache) == 0


@pytest.mark.parametrize(
    "change",
    [{"runtime": "TensorRT 10.10"}, {"device": "GPU, 8.9, driver 13000"}, {"weights_sha256": "cd"}, {"width": 10}],
)
def test_an_engine_for_something_else_is_not_taken_even_under_the_right_name(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    builder, cache, other = Builder(), EngineCache(tmp_path), replace(SPEC, **change)
    builder.fetch(cache, other)
    assert builder.fetch(cache) == 1
    (tmp_path / f"{other.digest()}.engine").replace(tmp_path / f"{SPEC.digest()}.engine")
    assert builder.fetch(cache) == 1


@pytest.mark.parametrize("key", [b"", b"x" * 16, b"y" * 33])
def test_a_key_that_was_not_written_whole_is_replaced_and_nothing_signed_with_it_is_loaded(
    tmp_path: Path, key: bytes
) -> None:
    builder, path = Builder(), tmp_path / f"{SPEC.digest()}.engine"
    (tmp_path / "key").write_bytes(key)
    body = SPEC.text() + b"\nevil"
    path.write_bytes(hmac.digest(key, body, "sha256") + body)
    (tmp_path / "key").chmod(0o600)
    path.chmod(0o600)
    assert builder.fetch(EngineCache(tmp_path)) == 1
    assert builder.fetch(EngineCache(tmp_path)) == 0
    assert len((tmp_path / "key").read_bytes()) == 32


def test_an_engine_that_does_not_load_is_built_anew_once(tmp_path: Path) -> None:
    builder, cache = Builder(), EngineCache(tmp_path)
    builder.fetch(cache)
    builder.fails = 1
    assert builder.fetch(cache) == 1
    builder.fails = 2
    with pytest.raises(RuntimeError, match="made for another version"):
        builder.fetch(cache)


def test_two_who_build_at_once_both_get_a_whole_engine(tmp_path: Path) -> None:
    builder = Builder()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: builder.fetch(EngineCache(tmp_path)), range(24)))
    assert builder.fetch(EngineCache(tmp_path)) == 0
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="a folder that you alone may write to") as caught:
        EngineCache(tmp_path)
    assert caught.value.exit_code == 2


# Which backend


def test_backends_go_with_devices_and_precisions_that_they_know() -> None:
    cpu = torch.device("cpu")
    assert pick_backend("auto") == "torch"
    assert pick_device("auto", backend="onnx") == cpu
    assert pick_precision("auto", cpu, backend="onnx") == torch.float32
    with pytest.raises(ConfigError, match="backend must be one of 'auto', 'torch', 'onnx', 'tensorrt', got 'ncnn'"):
        pick_backend("ncnn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="one on which backend 'onnx' runs, got 'cuda'"):
        pick_device("cuda", backend="onnx")
    with pytest.raises(ConfigError, match="one on which backend 'tensorrt' runs, got 'cpu'"):
        pick_device("cpu", backend="tensorrt")
    with pytest.raises(ConfigError, match="must be 'fp32' with backend 'onnx', got 'bf16'"):
        pick_precision("bf16", cpu, backend="onnx")


def test_what_a_backend_lacks_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    clip = vs.core.std.BlankClip(format=vs.RGBS, width=16, height=16, length=1)
    with pytest.raises(vs.Error, match=r"needs onnx, onnxscript and onnxruntime.*pip install vsfmanet\[onnx\]"):
        restore(clip, model=str(weights), backend="onnx")
    with pytest.raises(vs.Error, match="tile is for backend 'torch', got 'onnx'"):
        restore(clip, model=str(weights), backend="onnx", tile=(64, 64))
    if not torch.cuda.device_count():
        with pytest.raises(vs.Error, match="must name one of 0 CUDA devices"):
            restore(clip, model=str(weights), backend="tensorrt")
