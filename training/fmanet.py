"""How training begins FMA-Net++, describes it in checkpoints, and builds it from them again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from training import loop
from training.growth import grown
from vsfmanet.networks.description import RestorationNetwork
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, preset, start_from
from vsfmanet.weights import load_fmanetpp


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that the training of NetD and of the whole network share, those of the grid among them."""
    loop.add_run_arguments(parser)
    add = parser.add_argument
    add("--grid", type=int, default=1, choices=(1, 2, 4), help="side of a cell of the network (default: %(default)s)")
    add("--detail-width", type=int, default=0, help="channels of the detail branch (default: %(default)s)")
    add("--detail-grid", type=int, default=1, choices=(1, 2), help="side of its cells (default: %(default)s)")


def start_network(args: argparse.Namespace, device: str) -> FMANetPP:
    """Build the network on `device`, in training mode, with what the options of `add_run_arguments` start it from."""
    grid = {"grid": args.grid, "detail_width": args.detail_width, "detail_grid": args.detail_grid}
    config = replace(preset(args.preset, args.scale), **grid)
    network = FMANetPP(config)
    network.to(device).to(memory_format=torch.channels_last).train()
    assert network.extractor is not None
    if args.start_from:
        model = load_fmanetpp(args.start_from).to(device)
        same = {name: getattr(model.config, name) for name in ("scale", *grid)}
        if replace(config, **same) != model.config:
            model = grown(model, replace(config, **same))
        afresh = start_from(network, model)
        print(f"from {args.start_from}; afresh: {', '.join(afresh) or 'nothing'}")
    else:
        stage_1 = loop.load_checkpoint(args.extractor, device)
        network.extractor.load_state_dict(stage_1["extractor"])
        network.anchors.copy_(stage_1["anchors"])
        network.reading_temperature.copy_(stage_1["reading_temperature"])
    return network


def about_network(args: argparse.Namespace, network: FMANetPP) -> dict[str, Any]:
    """What a checkpoint holds besides weights: plain values by which the network can be built again."""
    return {"kind": network.kind, "preset": args.preset, "scale": args.scale, "config": asdict(network.config)}


def trained_network(state: Mapping[str, Any]) -> RestorationNetwork:
    """The averaged network of a checkpoint of `Run`, in eval mode; FMA-Net++ in its training form."""
    if state.get("kind") != FMANetPP.kind:
        return loop.trained_network(state)
    network = FMANetPP(FMANetPPConfig(**state["config"]))
    network.load_state_dict(state["averaged"])
    return network.eval().requires_grad_(False)
