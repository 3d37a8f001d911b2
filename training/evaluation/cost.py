"""Parameters and multiply-adds of a network."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsfmanet.networks.description import Features, LevelNetwork, RestorationNetwork, SequenceNetwork, State
from vsfmanet.weights import parameter_count


def cost_note(name: str, network: RestorationNetwork, clip: Tensor) -> str:
    """Describe what a network costs in one line: parameters, and multiply-adds of convolutions and matrix products.

    Args:
        name: To show.
        network: Not compiled.
        clip: (1, T, 3, h, w) in [0, 1]; the cost depends on its content where a network skips sharp areas.
    """
    clip = clip.to(next(network.parameters()).device)
    kernels = os.environ.get("VSFMANET_NO_KERNELS", "0")
    os.environ["VSFMANET_NO_KERNELS"] = "1"  # they cannot be counted
    with torch.inference_mode():
        run = network.streamed(levels=partial(_one_of_levels, clip), windows=partial(_one_of_sequence, clip))
        with FlopCounterMode(display=False) as counter:
            run()
    os.environ["VSFMANET_NO_KERNELS"] = kernels
    height, width = clip.shape[-2:]
    cost = counter.get_total_flops() / 2e9
    return (
        f"{name}: {parameter_count(network) / 1e6:.2f} M parameters, {cost:.2f} GMAC a frame of {width}x{height}, "
        f"in proportion {cost * 1280 * 720 / (width * height):.0f} at 1280x720."
    )


def _one_of_levels(clip: Tensor, network: LevelNetwork) -> Callable[[], object]:
    """Return a function that restores one frame of a clip (1, T, 3, h, w)."""
    return lambda: network.restored(clip[:, :1])


def _one_of_sequence(clip: Tensor, network: SequenceNetwork) -> Callable[[], object]:
    """Return a function that restores one frame in the middle of a clip (1, T, 3, h, w), after those before it."""
    state: State | None = None
    features: list[Features] = []
    for t in range(sum(network.window)):
        encoded, state = network.encode(clip[:, t % clip.shape[1]], state)
        features.append(encoded)

    def run() -> None:
        encoded, _ = network.encode(clip[:, len(features) % clip.shape[1]], state)
        network.decode([*features, encoded])

    return run
