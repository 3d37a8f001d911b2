"""Networks that begin as others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.tiny import TINY, awake
from training.run.growth import GROWING, begin_as, grown, start_from
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig
from vsfmanet.networks.jffra import JFFRA
from vsfmanet.networks.jffra import PRESETS as JFFRA_PRESETS
from vsfmanet.networks.m2aenet import M2AENet, M2AENetConfig

MATCHED = replace(TINY, initial_flow="matching", flow_features=True, learned_exposures=True)
LARGER = {"num_blocks": 2, "num_flows": 2, "feed_forward_width": 5, "dense_layers": 3}


def larger(config: FMANetPPConfig) -> FMANetPPConfig:
    factor = {name: getattr(config, name) * LARGER[name] for name in ("num_blocks", "num_flows")}
    more = {name: getattr(config, name) + LARGER[name] for name in ("feed_forward_width", "dense_layers")}
    return replace(config, **factor, **more)


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 4, 3, 12, 14, generator=generator), torch.tensor([[0.3, torch.nan, 1.0, 0.5]])


def test_a_grown_network_restores_as_before_and_has_more_to_learn_with() -> None:
    model = awake(MATCHED).deployed_form()
    config = larger(MATCHED)
    network = grown(model, config)
    lr, exposure = clips()
    with torch.no_grad():
        before, after = (net(lr, exposure).frames for net in (model, network))
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert all(getattr(network.config, name) > getattr(model.config, name) for name in GROWING)
    training = FMANetPP(config).train()
    assert start_from(training, network) == []
    with torch.no_grad():
        torch.testing.assert_close(training(lr, exposure).frames, before, atol=1e-4, rtol=0)


def test_what_was_added_learns() -> None:
    config = larger(MATCHED)
    training = FMANetPP(config).train()
    start_from(training, grown(awake(MATCHED).deployed_form(), config))
    lr, exposure = clips()
    training(lr, exposure).frames.square().sum().backward()
    gradients = {name: value.grad for name, value in training.named_parameters()}
    for layer in ("fuse.0", "attention.to_out", "guided_feed_forward.reduce"):  # of a level that passes through
        gradient = gradients[f"restoration.blocks.1.{layer}.weight"]
        assert gradient is not None
        assert gradient.abs().max() > 0
    update = gradients["restoration.blocks.0.flow_update.body.2.weight"]
    assert update is not None
    assert not torch.equal(*update.unflatten(0, (2, -1, 3))[:, :2].unbind(1))  # two flows made of one part ways


@pytest.mark.parametrize(
    "change", [{"width": 24}, {"num_flows": 4}, {"feed_forward_width": 2}, {"flow_features": False}]
)
def test_other_changes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"(only .* may differ|must be multiples)"):
        grown(awake(MATCHED).deployed_form(), replace(MATCHED, **change))  # type: ignore[arg-type]


def small_m2aenet(depth: int, *, width: int = 8) -> M2AENet:
    network = M2AENet(M2AENetConfig(width=width, depth=depth, motion_width=4, blur_width=4, on_above=0, off_below=0))
    for value in network.restorer.leave.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return network


def test_a_deeper_m2aenet_begins_as_a_shallow_one_and_learns() -> None:
    torch.manual_seed(1)
    model, network = small_m2aenet(1), small_m2aenet(3)
    begin_as(network, model)
    frames = torch.rand(1, 3, 24, 32)
    extent, mask = torch.full((1, 1, 24, 32), 3.0), torch.ones(1, 1, 24, 32)
    before, after = (net.restore(frames, extent, mask).frames for net in (model, network))
    assert not torch.equal(before, frames)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    after.square().sum().backward()
    added = dict(network.restorer.named_parameters())["stages.2.second.5.weight"].grad
    assert added is not None
    assert added.abs().max() > 0


@pytest.mark.parametrize(
    "build", [lambda: small_m2aenet(1, width=10), lambda: small_m2aenet(3), lambda: JFFRA(JFFRA_PRESETS["xs"])]
)
def test_another_kind_or_size_is_no_beginning(build: Callable[[], torch.nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"--start-from needs m2aenet of the sizes .* got "):
        begin_as(small_m2aenet(2), build())
