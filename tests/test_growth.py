"""A larger network that begins as a smaller one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.test_networks import TINY, awake
from training.growth import GROWING, grown
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, deploy, start_from

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
    model = deploy(awake(MATCHED))
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
    start_from(training, grown(deploy(awake(MATCHED)), config))
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
    with pytest.raises(ConfigError, match="grown: "):
        grown(deploy(awake(MATCHED)), replace(MATCHED, **change))  # type: ignore[arg-type]
