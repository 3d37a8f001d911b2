"""Weights files and the networks in them: safetensors that hold their configuration.

A file holds the deployed form in fp16. Its metadata names the network and its configuration, so a file alone suffices:
`{"vsfmanet": '{"network": "fmanetpp", "config": {...}, ...}'}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.overrides import TorchFunctionMode

from vsfmanet.atomic import replacing
from vsfmanet.errors import ConfigError, WeightsError
from vsfmanet.manifest import file_sha256, find_model, find_shipped
from vsfmanet.networks.description import RestorationNetwork, SequenceNetwork
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig
from vsfmanet.networks.jffra import JFFRA, JFFRAConfig
from vsfmanet.networks.m2aenet import M2AENet, M2AENetConfig
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig
from vsfmanet.networks.mmprnn import MMPRNN, MMPRNNConfig

METADATA_KEY = "vsfmanet"


def _fmanetpp(config: Mapping[str, Any]) -> FMANetPP:
    return FMANetPP(FMANetPPConfig(**config), deployed=True)


MODELS: Mapping[str, Callable[[Mapping[str, Any]], FMANetPP | SequenceNetwork]] = {
    "fmanetpp": _fmanetpp,
    "mmprnn": lambda config: MMPRNN(MMPRNNConfig(**config)),
    "jffra": lambda config: JFFRA(JFFRAConfig(**config)),
    "m2aenet": lambda config: M2AENet(M2AENetConfig(**config)),
}
"""Builders of the networks that restore, by the name in a weights file; they take its configuration."""

_COUNTS = ("blocks", "layers", "depth")
"""Endings of the names of sizes that count modules; each module has at least one tensor in the file."""

_NOT_NEGATIVE = ("running_var",)
_POSITIVE = ("reading_temperature", "spread")
"""Endings of the names of tensors that must not be negative, or must be positive: the network divides by them."""

_FLOATS = ("F16", "BF16", "F32")
"""Data types of weights in a file, as safetensors names them."""

_SHOWN = 3
"""Names of tensors that an error message lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel[N: RestorationNetwork]:
    """A network with its weights."""

    name: str
    """Name in the manifest, or the file's stem."""
    sha256: str
    """Sha256 of the weights file, in hexadecimal."""
    scale: int
    """Output size over input size."""
    network: N
    """Deployed form, fp32, in eval mode, on the CPU."""


def load_model(name_or_path: str) -> LoadedModel[RestorationNetwork]:
    """Read, check and build a model.

    The sha256 of a shipped file is checked before it is parsed; names, shapes, types and values of all tensors are
    checked before the network is returned. Nothing in a weights file is executed.

    Args:
        name_or_path: A model of the manifest, or the path of a safetensors file with our metadata.

    Raises:
        WeightsError: The file is missing, damaged, of another architecture, or holds values that are not finite.
    """
    return _load(name_or_path, MODELS)


def load_fmanetpp(name_or_path: str) -> FMANetPP:
    """Read, check and build a model of FMA-Net++.

    Args:
        name_or_path: As for `load_model`.

    Raises:
        WeightsError: As for `load_model`, or the model is another network.
    """
    return _load(name_or_path, {"fmanetpp": _fmanetpp}).network


def _load[N: RestorationNetwork](
    name_or_path: str, kinds: Mapping[str, Callable[[Mapping[str, Any]], N]]
) -> LoadedModel[N]:
    """Do as `load_model`, for some kinds of networks."""
    name, path, expected = find_model(name_or_path)
    _, digest = _checked(path, expected)
    network = _read(path, kinds)
    return LoadedModel(name=name, sha256=digest, scale=network.scale, network=network)


def load_analyser() -> BlurAnalyser:
    """Read, check and build the blur analyser that ships with the package; see `load_model`.

    Returns:
        Folded form, fp32, in eval mode, on the CPU.

    Raises:
        WeightsError: The manifest lists none, or its file is missing, damaged or of another kind.
    """
    path = _checked(*find_shipped("analyser"))[0]
    return _read(path, {"blur": lambda config: BlurAnalyser(BlurConfig(**config), folded=True)})


def load_estimator() -> ExposureEstimator:
    """Read, check and build the network that estimates exposures; see `load_model`."""
    path = _checked(*find_shipped("estimator"))[0]
    return _read(path, {"shutter": lambda config: ExposureEstimator(**config)})


def _checked(path: Path, expected: str | None) -> tuple[Path, str]:
    """Return a weights file and its sha256.

    Args:
        path: The file.
        expected: Sha256 that it must have; None if any will do.

    Raises:
        WeightsError: The file cannot be read, or has another sha256.
    """
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path.name} is needed, and cannot be read ({error}); reinstall vsfmanet") from error
    if expected is not None and digest != expected:
        raise WeightsError(f"{path.name} must have sha256 {expected}, got {digest}; reinstall vsfmanet")
    return path, digest


def _read[Network: torch.nn.Module](path: Path, kinds: Mapping[str, Callable[[Mapping[str, Any]], Network]]) -> Network:
    """Read the network in a weights file.

    The file's header decides whether it is read at all: the network is first built without memory, and the names,
    shapes and types of its tensors are compared with those in the header.

    Args:
        path: A safetensors file.
        kinds: Builders of the networks that are accepted, by the name in the file.

    Returns:
        The network in fp32 and eval mode, on the CPU, with finite values; it asks for no gradients.

    Raises:
        WeightsError: The file is damaged, of another kind, or its tensors do not fit its configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise WeightsError(f"{path.name} must carry our metadata, got a file without; is it a model?")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            shapes = {name: (list(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
            build = _builder(path, text, kinds, len(shapes))
            _check_tensors(path, build, shapes)
            state = {name: file.get_tensor(name) for name in shapes}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.name} must be a whole safetensors file, got {error}") from error
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{path.name} must hold finite values, got NaN or infinity in {name}")
        least = value.min()
        if (name.endswith(_NOT_NEGATIVE) and least < 0) or (name.endswith(_POSITIVE) and least <= 0):
            raise WeightsError(f"{path.name} must hold positive values in {name}, got {float(least)}")
    network = build()
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _builder[Network: torch.nn.Module](
    path: Path, text: str, kinds: Mapping[str, Callable[[Mapping[str, Any]], Network]], num_tensors: int
) -> Callable[[], Network]:
    """Return what builds the network that a file's metadata describe.

    Raises:
        WeightsError: The metadata are not ours, name another network, or ask for more parts than there are tensors.
    """
    try:
        description = json.loads(text)
        kind, config = description["network"], dict(description["config"])
        if kind not in kinds:
            raise WeightsError(
                f"{path.name} holds the network {kind!r} where one of {', '.join(map(repr, kinds))} is needed; "
                "choose another file, or update vsfmanet"
            )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"the metadata of {path.name} must describe a network, got {error!r}") from error
    for name, value in config.items():
        if name.endswith(_COUNTS) and isinstance(value, int | float) and value > num_tensors:
            raise WeightsError(
                f"the tensors of {path.name} must fit its configuration; it has {num_tensors}, too few for a {name} of "
                f"{value}"
            )
    return partial(kinds[kind], config)


def _check_tensors(
    path: Path, build: Callable[[], torch.nn.Module], found: Mapping[str, tuple[list[int], str]]
) -> None:
    """Compare the tensors of a file with those of its network, which is built without memory.

    Args:
        path: The file, for messages.
        build: Builds the network.
        found: Shape and safetensors' type of each tensor in the file.

    Raises:
        WeightsError: The configuration is none, or names, shapes or types differ.
    """
    try:
        with torch.device("meta"), _WithoutValues():
            wanted = {
                name: (list(value.shape), _FLOATS if value.is_floating_point() else ("I64",))
                for name, value in build().state_dict().items()
            }
    except (ConfigError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"the configuration in {path.name} must be complete, got {reason}") from error
    wrong = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted
        or name not in found
        or found[name][0] != wanted[name][0]
        or found[name][1] not in wanted[name][1]
    )
    if wrong:
        shown = ", ".join(f"{name} {found.get(name, ('missing',))[0]}" for name in wrong[:_SHOWN])
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WeightsError(
            f"the tensors of {path.name} must fit its configuration, got {shown}{more}; is the file of another version?"
        )


def save_model(network: RestorationNetwork, path: Path, *, about: Mapping[str, Any] | None = None) -> None:
    """Write a network as fp16 safetensors, whole or not at all.

    Args:
        network: Deployed form.
        path: File that ends in .safetensors.
        about: Further metadata: data, command, step.

    Raises:
        ConfigError: The network is not in deployed form.
        WeightsError: A value does not fit fp16.
    """
    if not network.deployed:
        raise ConfigError("the network must be in deployed form; call deployed_form() first")
    _save(network, path, {"network": network.kind, "config": asdict(network.config), **(about or {})})


def save_analyser(analyser: BlurAnalyser, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write a folded blur analyser; arguments and errors are those of `save_model`."""
    if not analyser.folded:
        raise ConfigError("the analyser must be in folded form; call fold() first")
    _save(analyser, path, {"network": "blur", "config": asdict(analyser.config), **about})


def save_estimator(estimator: ExposureEstimator, path: Path, *, about: Mapping[str, Any]) -> None:
    """Write an exposure estimator; arguments and errors are those of `save_model`."""
    config = {"inputs": estimator.hidden.in_features, "hidden": estimator.hidden.out_features}
    _save(estimator, path, {"network": "shutter", "config": config, **about})


_KEEPING_SHAPE = (
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.functional.normalize,
    torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.kaiming_uniform_,
)  # fmt: skip


class _WithoutValues(TorchFunctionMode):
    """Leaves initial values out and computes tables of indices on the CPU.

    On the meta device either imports torch's compiler, which takes seconds.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _KEEPING_SHAPE:
            return args[0] if args else (kwargs or {})["tensor"]
        if function is torch.eye:
            return torch.empty(*args)
        if function is torch.arange:
            return function(*args, **{"device": "cpu"} | (kwargs or {}))
        return function(*args, **(kwargs or {}))


def _save(network: torch.nn.Module, path: Path, description: Mapping[str, Any]) -> None:
    """Write the values of a network as fp16, with its description, whole or not at all."""
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"values must fit fp16, got larger ones or NaN in {name}")
    with replacing(path) as file:
        file.write(save(state, metadata={METADATA_KEY: json.dumps(description, sort_keys=True)}))


def parameter_count(network: torch.nn.Module) -> int:
    """Return the number of trained values."""
    return sum(value.numel() for value in network.parameters())
