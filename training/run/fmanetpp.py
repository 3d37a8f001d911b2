"""The start of a training of FMA-Net++, and the description in its checkpoints."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.run.architectures import build
from training.run.checkpoint import load_checkpoint
from training.run.growth import grown, start_from
from training.run.options import FMANetPPOptions
from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import zero_init
from vsfmanet.networks.exposure_extractor import ExposureExtractor
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, preset
from vsfmanet.weights import load_fmanetpp

GRID = ("grid", "path_width", "path_grid")
"""Fields of the configuration that have an option each."""


def configuration(options: FMANetPPOptions) -> FMANetPPConfig:
    """Return the configuration that the options describe.

    Raises:
        ConfigError: There is no such field, or it does not take the value.
    """
    asked = {name: getattr(options, name) for name in GRID} | dict(map(setting, options.settings))
    values: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    known = [field.name for field in fields(FMANetPPConfig)]
    if unknown := values.keys() - known:
        raise ConfigError(f"--set needs {', '.join(known)}, got {', '.join(sorted(unknown))}; name one of them")
    return replace(preset(options.preset, options.scale), **values)


def setting(text: str) -> tuple[str, Any]:
    """Read FIELD=VALUE; the value is a number, true, false or a word."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def start_network(options: FMANetPPOptions, device: str) -> FMANetPP:
    """Build the network on `device`, in training mode, with the weights that the options name.

    Raises:
        ConfigError: An extractor is needed and none is named, or the model to start from cannot grow into the network.
        WeightsError: The model cannot be loaded.
    """
    config = configuration(options)
    network = build(config, options.architecture)
    network.to(device).to(memory_format=torch.channels_last).train()
    for part in network.modules():
        if isinstance(part, ExposureExtractor):  # torch 2.15 writes out of bounds in its backward pass on CPUs
            part.to(memory_format=torch.contiguous_format)
    if options.start_from is not None:
        model = load_fmanetpp(options.start_from).to(device)
        same = {name: getattr(model.config, name) for name in ("scale", *GRID)}
        if replace(config, **same) != model.config:
            model = grown(model, replace(config, **same))
        afresh = start_from(network, model)
        print(f"from {options.start_from}; afresh: {', '.join(afresh) or 'nothing'}")
    elif network.extractor is not None:
        if options.extractor is None:
            raise ConfigError("an exposure-aware network needs --extractor or --start-from; name one of them")
        if options.extractor.endswith(".pt"):
            stage_1 = load_checkpoint(Path(options.extractor), device)
            network.extractor.load_state_dict(stage_1["extractor"])
            network.anchors.copy_(stage_1["anchors"])
            network.reading_temperature.copy_(stage_1["reading_temperature"])
        else:
            lender = load_fmanetpp(options.extractor).state_dict()
            names = [name for name in lender if name.startswith(("extractor.", "anchors", "reading_"))]
            network.load_state_dict({name: lender[name] for name in names}, strict=False)
    if network.extractor is not None:
        network.extractor.requires_grad_(False)
    return network


def take_part(network: FMANetPP, path: Path) -> None:
    """Load the path branch, or its estimate of exposures, from a checkpoint of training.train_path.

    Raises:
        ConfigError: The checkpoint is of another training, or of other sizes.
    """
    state = load_checkpoint(path)
    part = {"branch": "restoration.path.", "exposure": "restoration.blur_path.shutter."}.get(state.get("part", ""))
    own = network.state_dict()
    learned = {name: value for name, value in state["averaged"].items() if part and name.startswith(part)}
    if not learned or any(name not in own or own[name].shape != value.shape for name, value in learned.items()):
        raise ConfigError(f"--take needs a checkpoint of training.train_path of the same sizes, got {path}; train one")
    network.load_state_dict(learned, strict=False)


def begin_beside_levels(network: FMANetPP) -> None:
    """Have the path branch add nothing at first, if the levels make an image already; what it has learned stays."""
    branch = network.restoration.path
    if branch is not None and network.restoration.upsampler is not None:
        *_, last, _ = branch.body  # before the pixel shuffle
        assert isinstance(last, nn.Conv2d)
        zero_init(last)


def about_network(options: FMANetPPOptions, network: FMANetPP) -> dict[str, Any]:
    """Return the plain values of a checkpoint by which the network is built again."""
    return {
        "kind": network.kind,
        "preset": options.preset,
        "scale": options.scale,
        "config": asdict(network.config),
        "architecture": options.architecture,
    }
