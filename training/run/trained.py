"""Networks out of checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.run.architectures import build
from training.run.checkpoint import load_checkpoint
from training.run.variants import VARIANTS
from vsfmanet.networks.description import RestorationNetwork, SequenceNetwork
from vsfmanet.networks.exposure_estimator import ExposureEstimator
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig
from vsfmanet.networks.mmpnet import BlurAnalyser, BlurConfig, MMPNet, fold
from vsfmanet.weights import MODELS, load_analyser, load_estimator, load_model


def trained_network(state: Mapping[str, Any]) -> RestorationNetwork:
    """The averaged network of a checkpoint of `Run`, in eval mode; FMA-Net++ in its training form."""
    network: FMANetPP | SequenceNetwork
    if state["kind"] == FMANetPP.kind:
        network = build(FMANetPPConfig(**state["config"]), state.get("architecture"))
    else:
        network = MODELS[state["kind"]](state["config"])
        if variant := state.get("variant"):
            network = VARIANTS[variant](network.config)
    network.load_state_dict(state["averaged"])
    return network.eval().requires_grad_(False)


def load_method(name_or_path: str) -> tuple[str, RestorationNetwork]:
    """Load a network in eval mode: a model's name, a .safetensors file, or a checkpoint of training (.pt).

    Returns:
        Name to show, and the network on the CPU.

    Raises:
        WeightsError: It cannot be loaded.
    """
    path = Path(name_or_path)
    if path.suffix != ".pt":
        model = load_model(name_or_path)
        return model.name, model.network
    state = load_checkpoint(path)
    return f"{path.parent.name} step {state['step']}", trained_network(state)


def trained_analyser(checkpoint: Path | None) -> BlurAnalyser:
    """The averaged weights of a checkpoint of training.train_blur, or the analyser that ships with the package."""
    if checkpoint is None:
        return load_analyser()
    state = load_checkpoint(checkpoint)
    analyser = BlurAnalyser(BlurConfig(**state["config"])).eval()
    analyser.load_state_dict(state["averaged"])
    with torch.no_grad():
        return fold(analyser)


def trained_prior(checkpoint: Path | None) -> MMPNet | BlurAnalyser:
    """The averaged weights of a checkpoint of training.train_blur, of either target; without one as for an analyser."""
    state = {} if checkpoint is None else load_checkpoint(checkpoint)
    if state.get("target") != "speed":
        return trained_analyser(checkpoint)
    prior = MMPNet(state["config"]["width"]).eval()
    prior.load_state_dict(state["averaged"])
    return prior


def trained_estimator(checkpoint: Path | None) -> ExposureEstimator:
    """The estimator in a checkpoint of training.train_shutter, or the one that ships with the package."""
    if checkpoint is None:
        return load_estimator()
    state = load_checkpoint(checkpoint)
    estimator = ExposureEstimator(**state["config"]).eval()
    estimator.load_state_dict(state["reader"])
    return estimator
