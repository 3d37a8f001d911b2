"""A larger network that begins as a smaller one: it restores alike, and has more to learn with.

Source: Net2Net (Chen et al., arXiv 1511.05641), for the idea; the rules for warps, gates and levels are ours.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vsfmanet.errors import ConfigError
from vsfmanet.networks.blocks import ChannelAttention, GatedFeedForward, ResidualDenseBlock, zero_init
from vsfmanet.networks.description import SequenceNetwork
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, HRBABlock

GROWING = ("num_blocks", "num_flows", "feed_forward_width", "dense_layers")
"""Sizes that may differ; the first two by a whole factor."""

LARGEST_EMBED = 1.0
"""Largest value of the kernel embeddings after `start_from`. Embeddings that solve for a guide can reach 1e5, where an
optimizer cannot move them and their product with the kernel head does not fit fp16."""


@torch.no_grad()
def start_from(network: FMANetPP, model: FMANetPP) -> list[str]:
    """Start a training form with the weights of a deployed network.

    Tensors of the same name and shape are copied. The folded guide is taken apart into the network's kernel head, which
    stays as it is, and the kernel embeddings whose product with it is the guide (see `_unfolded`), divided by a number
    where they are large, so that a network of the same configuration restores as `model` does. On a coarser grid than
    that of a `model` on pixels, the stems read the mean of each cell.

    Args:
        network: Training form; changed in place.
        model: Deployed form. Its scale may be another.

    Returns:
        Names of the tensors that exist in one of the networks only, or differ in shape; they start afresh.

    Raises:
        ConfigError: `network` is deployed, or `model` is not.
    """
    head, embeds = network.degradation.to_kernels, network.restoration.kernel_embeds
    guide = model.restoration.guide
    if head is None or embeds is None or guide is None:
        raise ConfigError("a training form must start from a deployed form; call deployed_form() on the model")
    own, theirs = network.state_dict(), model.state_dict()
    if model.config.grid == 1 < network.config.grid:
        for name in ("degradation.stem.0.weight", "restoration.stem.0.weight"):
            theirs[name] = _spread(theirs[name], own[name].shape[1], network.config.grid)
    taken = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    if model.scale != network.scale:  # what one scale adds to the bilinear image would be wrong for another
        taken = {name: value for name, value in taken.items() if not name.startswith("restoration.upsampler.2.")}
    network.load_state_dict(taken, strict=False)
    left = {name for name in (*own, *theirs) if name not in taken and not name.startswith("degradation.image_flow")}
    solved = _unfolded(guide, head, len(embeds))
    if solved is not None:
        factor = 1.0
        if network.config.guidance == "attention":  # which normalises its queries: their scale does not matter
            factor = min(1.0, LARGEST_EMBED / max(float(value.abs().max()) for value in solved))
        for target, value in zip(embeds.parameters(), solved, strict=True):
            target.copy_(factor * value)
        folded = ("restoration.guide", "restoration.kernel_embeds", "degradation.to_kernels")
        left = {name for name in left if not name.startswith(folded)}
    return sorted(left)


@torch.no_grad()
def grown(model: FMANetPP, config: FMANetPPConfig) -> FMANetPP:
    """Build a network of another configuration that restores as `model` does, up to rounding.

    Flows are repeated, and share the channels of the one that they come from; hidden channels and dense layers are
    added whose outputs nothing reads yet; between the levels come new ones that return what they are given.

    Args:
        model: Deployed form.
        config: As that of `model`, but for larger sizes `GROWING`; the scale is not looked at.

    Returns:
        Deployed form, at the scale of `model`.

    Raises:
        ConfigError: The configurations differ in more than that, or a size is smaller or no multiple.
    """
    old = model.config
    config = replace(config, scale=old.scale)
    small, large = ({name: getattr(size, name) for name in GROWING} for size in (old, config))
    if replace(config, **small) != old:
        raise ConfigError(f"only {', '.join(GROWING)} may differ, got {old} and {config}")
    whole = config.num_blocks % old.num_blocks == 0 and config.num_flows % old.num_flows == 0
    if not whole or any(large[name] < small[name] for name in GROWING):
        raise ConfigError(
            f"blocks and flows must be multiples, and no size smaller, got {large} from {small}; start afresh"
        )
    if config.width % config.num_flows or config.fuse_convs != 1:
        raise ConfigError(f"num_flows must divide the width and fuse_convs be 1, got {config}")
    network = FMANetPP(config, deployed=True).to(next(model.parameters()).device)
    own, theirs = network.state_dict(), model.state_dict()
    levels = ("degradation.blocks.", "restoration.blocks.")
    same = {
        name: value
        for name, value in theirs.items()
        if not name.startswith(levels) and name in own and own[name].shape == value.shape
    }
    network.load_state_dict(same, strict=False)
    factor = config.num_blocks // old.num_blocks
    for part, source in ((network.degradation, model.degradation), (network.restoration, model.restoration)):
        _grow_dense(part.stem[2], source.stem[2])
        for number, block in enumerate(part.blocks):
            if number % factor:
                _pass_through(block)
            else:
                _grow_block(block, source.blocks[number // factor])
    guide, known = network.restoration.guide, model.restoration.guide
    assert guide is not None
    assert guide.bias is not None
    assert known is not None
    assert known.bias is not None
    for values, given in ((guide.weight, known.weight), (guide.bias, known.bias)):
        of_blocks = given.unflatten(0, (old.num_blocks, -1)).repeat_interleave(factor, dim=0)
        values.copy_(of_blocks.flatten(0, 1))
    return network.eval()


@torch.no_grad()
def begin_as(network: SequenceNetwork, model: nn.Module) -> None:
    """Let a network for deblurring restore as a trained one does.

    Args:
        network: Of the kind and sizes of `model`; an M2AENet may be deeper, and its new blocks return what they get.
        model: What it begins as.

    Raises:
        ConfigError: Kinds or sizes differ in more than that.
    """
    own, theirs = network.state_dict(), model.state_dict()
    fits = type(model) is type(network) and all(
        name in own and own[name].shape == value.shape for name, value in theirs.items()
    )
    added = [name for name in own if name not in theirs]
    if not fits or (added and network.kind != "m2aenet"):
        kind, sizes = getattr(model, "kind", type(model).__name__), getattr(model, "config", None)
        raise ConfigError(
            f"--start-from needs {network.kind} of the sizes that --preset and its options give, "
            f"{network.config}, got {kind} of {sizes}; choose those, or another model"
        )
    network.load_state_dict(theirs, strict=False)
    for name in added:
        if ".second." in name:  # the end of a residual branch
            own[name].zero_()


def _spread(weight: Tensor, channels: int, grid: int) -> Tensor:
    """Convert a stem's weights from reading pixels to reading the mean of each cell.

    Args:
        weight: (C, K + 3, 3, 3), for K features and the 3 channels of a pixel.
        channels: Channels that the converted stem reads: K features, 3*g^2 of a cell, then those of a detail branch.
        grid: g, side of a cell in pixels.

    Returns:
        (C, channels, 3, 3); the weights for the detail branch are zero.
    """
    feat, pixel = weight.split([weight.shape[1] - 3, 3], dim=1)
    cell = pixel.repeat_interleave(grid**2, dim=1) / grid**2
    taken = torch.cat([feat, cell], dim=1)
    return torch.cat([taken, taken.new_zeros(len(taken), channels - taken.shape[1], 3, 3)], dim=1)


def _unfolded(guide: nn.Conv2d, head: nn.Conv2d, count: int) -> list[Tensor] | None:
    """Find the kernel embeddings whose product with a kernel head (see `NetR.folded_guide`) is nearest to a guide.

    Nearest in least squares; exact if the head has at least as many outputs as each output of the guide has weights.

    Args:
        guide: Convolution C to M*C with bias.
        head: Convolution C to 3*kd^2 with bias.
        count: M, the number of blocks.

    Returns:
        M weights (C, 3*kd^2, 1, 1); None if head and guide read different shapes.
    """
    assert head.bias is not None
    assert guide.bias is not None
    product = torch.cat([guide.weight.flatten(1), guide.bias[:, None]], dim=1).double()  # (M*C, C*k*k + 1)
    taps = torch.cat([head.weight.flatten(1), head.bias[:, None]], dim=1).double()  # (3*kd^2, C*k*k + 1)
    if product.shape[1] != taps.shape[1] or len(product) != count * head.in_channels:
        return None
    solved = torch.linalg.lstsq(taps.T, product.T).solution.T.float()
    return [part[:, :, None, None] for part in solved.chunk(count)]


def _grow_block(block: nn.Module, source: nn.Module) -> None:
    """Give a level the function of a smaller one."""
    assert isinstance(block, HRBABlock)
    assert isinstance(source, HRBABlock)
    own, theirs = block.state_dict(), source.state_dict()
    same = {name: value for name, value in theirs.items() if own[name].shape == value.shape}
    block.load_state_dict(same, strict=False)
    if block.flow_feat is not None and source.flow_feat is not None:
        block.flow_feat.weight.copy_(_shared(source.flow_feat.weight, block.num_flows, source.num_flows))
    if block.flow_update is not None and source.flow_update is not None:
        first, last = (_conv(block.flow_update.body[at]) for at in (0, 2))
        first_source, last_source = (_conv(source.flow_update.body[at]) for at in (0, 2))
        width = first_source.weight.shape[1] - 6 * source.num_flows
        features, flows = first_source.weight.split((width, 6 * source.num_flows), dim=1)
        flows = _shared(flows, block.num_flows, source.num_flows)
        first.weight.copy_(_repeated(torch.cat([features, flows], dim=1), block.num_flows, source.num_flows))
        shared = _shared(last_source.weight, block.num_flows, source.num_flows)
        last.weight.copy_(_repeated(shared, block.num_flows, source.num_flows))
        for layer, given in ((first, first_source), (last, last_source)):
            assert layer.bias is not None
            assert given.bias is not None
            layer.bias.copy_(_repeated(given.bias, block.num_flows, source.num_flows))
    for stage, smaller in zip(block.stages, source.stages, strict=True):
        _grow_gate(stage.feed_forward, smaller.feed_forward)


def _repeated(values: Tensor, num_flows: int, given: int) -> Tensor:
    """Rows (6n, ...), in the order [direction, pair, (dx, dy, mask)], of more pairs: each as often as needed."""
    by_pair = values.unflatten(0, (2, given, 3)).repeat_interleave(num_flows // given, dim=1)
    return by_pair.flatten(0, 2)


def _shared(weight: Tensor, num_flows: int, given: int) -> Tensor:
    """Columns (out, 6n, k, k) for more pairs, each with its part of the weight of the one that it repeats."""
    return _repeated(weight.transpose(0, 1), num_flows, given).transpose(0, 1) * (given / num_flows)


def _grow_gate(gate: GatedFeedForward, source: GatedFeedForward) -> None:
    """Give a feed-forward network the function of one with fewer hidden channels."""
    hidden = source.reduce.weight.shape[1]
    for layer, given in zip(gate.expand, source.expand, strict=True):
        halves = _conv(layer).weight.unflatten(0, (2, -1))
        halves[:, :hidden] = _conv(given).weight.unflatten(0, (2, -1))
    zero_init(gate.reduce)
    gate.reduce.weight[:, :hidden] = source.reduce.weight


def _grow_dense(block: nn.Module, source: nn.Module) -> None:
    """Give a dense block the function of one with fewer layers."""
    assert isinstance(block, ResidualDenseBlock)
    assert isinstance(source, ResidualDenseBlock)
    for layer, given in zip(block.convs, source.convs, strict=False):
        layer.load_state_dict(given.state_dict())
    zero_init(block.last)
    block.last.weight[:, : source.last.weight.shape[1]] = source.last.weight
    assert block.last.bias is not None
    assert source.last.bias is not None
    block.last.bias.copy_(source.last.bias)


def _pass_through(block: nn.Module) -> None:
    """Make a level return the features and the flow that it is given; those of the neighbours count for nothing yet."""
    assert isinstance(block, HRBABlock)
    fuse = _conv(block.fuse[0])
    zero_init(fuse)
    nn.init.dirac_(fuse.weight[:, : fuse.out_channels])
    for part in block.modules():
        if isinstance(part, ChannelAttention):
            nn.init.zeros_(part.to_out.weight)
        elif isinstance(part, GatedFeedForward):
            zero_init(part.reduce)


def _conv(layer: nn.Module) -> nn.Conv2d:
    """The layer as what it is."""
    assert isinstance(layer, nn.Conv2d)
    return layer
