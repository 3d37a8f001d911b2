"""The network in onnxruntime, on the CPU or on whatever an execution provider computes on."""

from __future__ import annotations

import functools
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vsfmanet.engines.cache import EngineCache
from vsfmanet.engines.graph import GraphEngine, Run
from vsfmanet.errors import ConfigError
from vsfmanet.networks.description import ExportPart, LevelNetwork
from vsfmanet.settings import Provider

_log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProviderSpec:
    """How onnxruntime comes to an execution provider."""

    name: str
    """Name in onnxruntime."""
    remedy: str
    """What to do where it is missing."""
    plugin: str | None = None
    """Module of the wheel that brings it as a library for any onnxruntime; None if onnxruntime is built with it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Its options: full fp32, so that results agree with torch's."""


_INSTEAD = "pip uninstall onnxruntime, then pip install "
PROVIDERS: Mapping[str, ProviderSpec] = {
    "cuda": ProviderSpec(
        name="CUDAExecutionProvider",
        remedy=f"{_INSTEAD}onnxruntime-gpu[cuda,cudnn]",
        options={"use_tf32": "0"},
    ),
    "migraphx": ProviderSpec(
        name="MIGraphXExecutionProvider", remedy=f"on Linux with ROCm: {_INSTEAD}onnxruntime-migraphx"
    ),
    "directml": ProviderSpec(name="DmlExecutionProvider", remedy=f"on Windows: {_INSTEAD}onnxruntime-directml"),
    "coreml": ProviderSpec(
        name="CoreMLExecutionProvider",
        remedy="it comes with onnxruntime for macOS",
        options={"ModelFormat": "MLProgram"},
    ),
    "openvino": ProviderSpec(
        name="OpenVINOExecutionProvider",
        remedy="pip install onnxruntime-ep-openvino, and Intel's driver",
        plugin="onnxruntime_ep_openvino",
    ),
    "webgpu": ProviderSpec(
        name="WebGpuExecutionProvider",
        remedy="pip install onnxruntime-ep-webgpu, and on Linux libvulkan1 with a driver for Vulkan",
        plugin="onnxruntime_ep_webgpu",
    ),
    "cpu": ProviderSpec(name=_CPU, remedy="pip install onnxruntime"),
}
"""Execution providers; "auto" takes the first that works."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """The execution provider that computes."""

    provider: str
    """Key of `PROVIDERS`."""
    missing: str = ""
    """Why it is not the one that was asked for; empty if it is."""


class ProviderMissing(Exception):
    """An execution provider cannot be used; the text states why."""


def pick_provider(name: Provider) -> Picked:
    """Return the execution provider that the user named, "auto" being the first that works, or the CPU without it.

    Raises:
        ConfigError: onnxruntime or what exports for it is missing.
    """
    _onnxruntime()
    missing = ""
    for provider in PROVIDERS if name == "auto" else (name,):
        reason = _why_missing(provider)
        if not reason:
            return Picked(provider=provider)
        missing = f"{reason}; {PROVIDERS[provider].remedy}"
    return Picked(provider="cpu", missing=missing)


def finds_gpu(provider: str) -> bool:
    """Return whether an execution provider works, and on a GPU if it has a choice; the doctor asks."""
    try:
        picked = pick_provider(provider)  # type: ignore[arg-type]
        plugin = PROVIDERS[provider].plugin
        if picked.missing or plugin is None:
            return not picked.missing
        return bool(
            _plugin_device(plugin, PROVIDERS[provider].name).device.type == _onnxruntime().OrtHardwareDeviceType.GPU
        )
    except ConfigError:
        return False


@functools.cache
def _why_missing(provider: str) -> str:
    """Return why an execution provider cannot run a small graph; "" if it can."""
    from onnx import TensorProto, helper

    shape = [1, 1, 2, 2]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "trial", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    try:
        session = open_session(model.SerializeToString(), provider)
        [y] = session.run(["y"], {"x": torch.full(shape, 3.0).numpy()})
    except ProviderMissing as error:
        return str(error)
    except Exception as error:  # whatever a driver may raise
        return f"it fails: {str(error).strip().partition('\n')[0]}"
    return "" if y.min() == y.max() == 9 else f"it computes 3 x 3 as {y.ravel().tolist()}"


def open_session(model: bytes, provider: str) -> Any:
    """Open a session of onnxruntime on an execution provider.

    Args:
        model: An ONNX model.
        provider: Key of `PROVIDERS`.

    Raises:
        ProviderMissing: onnxruntime has no such provider, or the provider no device.
    """
    runtime, spec = _onnxruntime(), PROVIDERS[provider]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if provider == "directml":  # it works without these only
        options.enable_mem_pattern = False
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    if spec.plugin is not None:
        device = _plugin_device(spec.plugin, spec.name)
        given = dict(spec.options)
        if provider == "openvino":
            given["load_config"] = json.dumps({device.ep_metadata["ov_device"]: {"INFERENCE_PRECISION_HINT": "f32"}})
        options.add_provider_for_devices([device], given)
        session = runtime.InferenceSession(model, options)
    else:
        if spec.name not in runtime.get_available_providers():
            raise ProviderMissing(f"this onnxruntime is built without {spec.name}")
        chosen = [(spec.name, dict(spec.options))]
        session = runtime.InferenceSession(model, options, providers=[*chosen, _CPU] if spec.name != _CPU else chosen)
    if session.get_providers()[0] != spec.name:  # onnxruntime goes on with the CPU
        raise ProviderMissing(f"onnxruntime cannot start {spec.name}: its libraries or its device are missing")
    return session


def _plugin_device(module: str, name: str) -> Any:
    """Return the device of an execution provider in a library of its own: a GPU, or the CPU without one.

    Raises:
        ProviderMissing: The library is not installed or not usable, or finds no device.
    """
    _register(module)
    kinds = _onnxruntime().OrtHardwareDeviceType
    found = [device for device in _onnxruntime().get_ep_devices() if device.ep_name == name]
    for kind in (kinds.GPU, kinds.CPU):
        for device in found:
            if device.device.type == kind:
                return device
    raise ProviderMissing(f"{name} finds no device")


@functools.cache
def _register(module: str) -> None:
    """Register the library of an execution provider with onnxruntime.

    Raises:
        ProviderMissing: It is not installed, or onnxruntime does not take it.
    """
    try:
        path = importlib.import_module(module).get_library_path()
    except ImportError as error:
        raise ProviderMissing(f"{module.replace('_', '-')} is not installed") from error
    register = getattr(_onnxruntime(), "register_execution_provider_library", None)
    if register is None:
        raise ProviderMissing("onnxruntime 1.23 or newer is needed")
    try:
        register(module, path)
    except Exception as error:  # onnxruntime names no type
        raise ProviderMissing(f"{module.replace('_', '-')} cannot be loaded ({error})") from error


def _onnxruntime() -> Any:
    """Import onnxruntime, after checking for what torch exports with.

    Raises:
        ConfigError: A package is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch exports with it)
    except ImportError as error:
        raise ConfigError(
            f'backend="onnx" needs onnx, onnxscript and onnxruntime, got none ({error}); pip install vsfmanet[onnx]'
        ) from error
    return onnxruntime


def onnx_engine(
    network: LevelNetwork, *, weights_sha256: str, cache: EngineCache, provider: Provider = "auto"
) -> GraphEngine:
    """Return an engine that runs a network's parts in onnxruntime; logs which provider computes.

    Args:
        network: Deployed form, fp32, on the CPU.
        weights_sha256: Sha256 of the weights file, in hexadecimal.
        cache: Cache of exported graphs.
        provider: The execution provider. The CPU, with a warning, takes the place of one that is missing.

    Raises:
        ConfigError: A package is missing.
    """
    picked = pick_provider(provider)
    if picked.missing:
        _log.warning("no provider %r, the CPU computes in its place: %s", provider, picked.missing)
    else:
        _log.info("onnxruntime computes with %s", PROVIDERS[picked.provider].name)

    def load(part: ExportPart, data: bytes) -> Run:
        session = open_session(data, picked.provider)
        _warn_of_leftovers(session, part.name, picked.provider)
        read, written = tuple(part.inputs), list(part.outputs)  # not the examples, which take memory

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = {name: tensor.contiguous().numpy() for name, tensor in zip(read, inputs, strict=True)}
            return [torch.from_numpy(array) for array in session.run(written, given)]

        return run

    return GraphEngine(
        network,
        weights_sha256=weights_sha256,
        cache=cache,
        runtime=f"onnxruntime {_onnxruntime().__version__}",
        device="any",  # the cache holds graphs, which onnxruntime builds when it loads them
        build=lambda model: model,
        load=load,
    )


def _warn_of_leftovers(session: Any, part: str, provider: str) -> None:
    """Warn if operations of a part run on the CPU, because the execution provider lacks them."""
    if provider == "cpu" or not hasattr(session, "get_provider_graph_assignment_info"):  # before onnxruntime 1.24
        return
    nodes = {_CPU: 0}
    for group in session.get_provider_graph_assignment_info():
        nodes[group.ep_name] = nodes.get(group.ep_name, 0) + len(group.get_nodes())
    if nodes[_CPU]:
        _log.warning(
            "%d of %d operations of %s run on the CPU, because %s lacks them",
            nodes[_CPU], sum(nodes.values()), part, PROVIDERS[provider].name,
        )  # fmt: skip
