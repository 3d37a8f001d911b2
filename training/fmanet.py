"""How training begins FMA-Net++, describes it in checkpoints, and builds it from them again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from training.growth import grown
from training.loop import add_loop_arguments, load_checkpoint
from training.losses import WARP_WEIGHT
from vsfmanet.networks.description import RestorationNetwork, SequenceNetwork
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, preset, start_from
from vsfmanet.weights import MODELS, load_fmanetpp


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the training of NetD and of the whole network share, those of the grid among them."""
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument(
        "--extractor",
        metavar="FILE",
        help="checkpoint of training.train_extractor, or a model that lends its extractor",
    )
    start.add_argument("--start-from", metavar="MODEL", help="a model or .safetensors file, its extractor included")
    add_loop_arguments(parser)
    add = parser.add_argument
    add("--preset", default="fast", choices=("paper", "base", "fast", "path"), help="default: %(default)s")
    add("--scale", type=int, default=4, choices=(4, 2, 1), help="default: %(default)s")
    add("--known-exposure", type=float, default=0.2, help="part of the clips given their exposure (%(default)s)")
    add("--degradation-frames", type=int, default=1, help="frames per batch that are rebuilt (default: %(default)s)")
    add("--flow-weight", type=float, default=0.01, help="weight of the flow loss, per LR pixel (default: %(default)s)")
    add("--warp-weight", type=float, default=WARP_WEIGHT, help="lambda1 of Eq. 9 (default: %(default)s)")
    add("--grid", type=int, choices=(1, 2, 4), help="side of a cell of the network, pixels (default: the preset's)")
    add("--path-width", type=int, help="channels of the path branch (default: the preset's)")
    add("--path-grid", type=int, choices=(1, 2, 4), help="side of its cells (default: the preset's)")


def start_network(args: argparse.Namespace, device: str) -> FMANetPP:
    """Build the network on `device`, in training mode, with what the options of `add_run_arguments` start it from."""
    asked = {"grid": args.grid, "path_width": args.path_width, "path_grid": args.path_grid}
    grid = {name: value for name, value in asked.items() if value is not None}
    config = replace(preset(args.preset, args.scale), **grid)
    network = FMANetPP(config)
    network.to(device).to(memory_format=torch.channels_last).train()
    assert network.extractor is not None
    if args.start_from:
        model = load_fmanetpp(args.start_from).to(device)
        same = {name: getattr(model.config, name) for name in ("scale", *asked)}
        if replace(config, **same) != model.config:
            model = grown(model, replace(config, **same))
        afresh = start_from(network, model)
        print(f"from {args.start_from}; afresh: {', '.join(afresh) or 'nothing'}")
    elif args.extractor.endswith(".pt"):
        stage_1 = load_checkpoint(Path(args.extractor), device)
        network.extractor.load_state_dict(stage_1["extractor"])
        network.anchors.copy_(stage_1["anchors"])
        network.reading_temperature.copy_(stage_1["reading_temperature"])
    else:
        lender = load_fmanetpp(args.extractor)
        names = [name for name in lender.state_dict() if name.startswith(("extractor.", "anchors", "reading_"))]
        network.load_state_dict({name: lender.state_dict()[name] for name in names}, strict=False)
    return network


def about_network(args: argparse.Namespace, network: FMANetPP) -> dict[str, Any]:
    """What a checkpoint holds besides weights: plain values by which the network can be built again."""
    return {"kind": network.kind, "preset": args.preset, "scale": args.scale, "config": asdict(network.config)}


def trained_network(state: Mapping[str, Any]) -> RestorationNetwork:
    """The averaged network of a checkpoint of `Run`, in eval mode; FMA-Net++ in its training form."""
    network: FMANetPP | SequenceNetwork
    if state["kind"] == FMANetPP.kind:
        network = FMANetPP(FMANetPPConfig(**state["config"]))
    else:
        network = MODELS[state["kind"]](state["config"])
    network.load_state_dict(state["averaged"])
    return network.eval().requires_grad_(False)
