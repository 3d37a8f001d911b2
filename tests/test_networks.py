"""FMA-Net++: its size, its start, its symmetries, and the equality of its forms."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import CELLS, TINY, awake, clip
from training.metrics.exposure import fit_temperature
from training.run.growth import start_from
from vsfmanet.errors import ConfigError, ShapeError
from vsfmanet.networks.blocks import ChannelAttention, ExposureModulation
from vsfmanet.networks.exposure_extractor import anchor_embedding, read_exposure
from vsfmanet.networks.fmanetpp import FMANetPP, FMANetPPConfig, preset
from vsfmanet.networks.fmanetpp.path import Frames, PathBranch
from vsfmanet.tiling import Box
from vsfmanet.weights import parameter_count

PAPER = preset("paper")
ONE_KNOWN = torch.tensor([[torch.nan, 0.4, torch.nan]])
"""Exposures of a clip of three frames."""


def as_specified(name: str, scale: int = 4) -> FMANetPPConfig:
    """Without what was changed later: flow features, embeddings of known exposures, the smaller extractor of `base`."""
    width = {"base": 16, "fast": 8}[name]
    return replace(preset(name, scale), flow_features=False, learned_exposures=False, extractor_width=width)


@pytest.mark.parametrize(
    ("config", "parameters", "deployed"),
    [
        (PAPER, 12_764_243, 11_364_275),
        (as_specified("base"), 3_709_974, 3_318_032),
        (as_specified("fast"), 1_567_486, 1_337_696),
        (as_specified("base", 2), 3_442_674, None),
        (as_specified("base", 1), 3_376_812, None),
        (as_specified("fast", 2), 1_398_490, None),
        (as_specified("fast", 1), 1_356_820, None),
        (preset("base"), 3_182_030, 2_790_088),
        (preset("fast"), 1_567_486 + 2 * (6 * 4 + 1) * 64 + 5 * 64, None),
        (replace(PAPER, num_blocks=1), 7_738_793, None),
        (replace(PAPER, num_blocks=2), 9_413_943, None),
        (replace(PAPER, num_flows=1), 11_946_947, None),
        (replace(PAPER, num_flows=5), 12_267_467, None),
        (replace(PAPER, exposure_aware=False), 9_770_707, None),
        (replace(PAPER, guidance="sft"), 13_196_003, None),
    ],
)
def test_parameter_counts_are_those_of_the_specification(
    config: FMANetPPConfig, parameters: int, deployed: int | None
) -> None:
    with torch.device("meta"):
        assert parameter_count(FMANetPP(config)) == parameters
        if deployed is not None:
            assert parameter_count(FMANetPP(config, deployed=True)) == deployed


def test_a_training_form_started_from_a_model_restores_as_it_does() -> None:
    model = awake(TINY).deployed_form()
    network = awake(TINY, seed=3)
    assert start_from(network, model) == []
    lr, exposure = clip(4), torch.tensor([[0.2, torch.nan, 0.7, 1.0]])
    with torch.inference_mode():
        torch.testing.assert_close(network(lr, exposure).frames, model(lr, exposure).frames, atol=1e-5, rtol=0)


def test_a_start_from_a_model_of_another_scale_keeps_all_but_the_output() -> None:
    model = awake(TINY).deployed_form()
    network = FMANetPP(replace(TINY, scale=1, flow_features=True, learned_exposures=True))
    afresh = start_from(network, model)
    assert {name.rpartition(".")[0] for name in afresh} == {
        "", "restoration.upsampler.2", *(f"degradation.blocks.{i}.flow_feat" for i in range(2))
    }  # fmt: skip
    guides = list(zip(network.folded_guide(), model.folded_guide(), strict=True))
    factor = max(1.0, float(guides[0][1].abs().max() / guides[0][0].abs().max()))
    for own, wanted in guides:
        torch.testing.assert_close(factor * own, wanted, atol=1e-5, rtol=1e-3)


def test_a_start_keeps_the_guide_small_enough_to_learn_and_to_be_stored() -> None:
    model = awake(TINY).deployed_form()
    guide = model.restoration.guide
    assert guide is not None
    assert guide.bias is not None
    with torch.no_grad():
        guide.weight *= 1e6
        guide.bias *= 1e6
    network = awake(TINY, seed=3)
    start_from(network, model)
    assert network.restoration.kernel_embeds is not None
    assert all(value.abs().max() <= 1 for value in network.restoration.kernel_embeds.parameters())
    lr = clip(4)
    with torch.inference_mode():
        torch.testing.assert_close(network(lr).frames, model(lr).frames, atol=1e-4, rtol=0)


def test_a_known_exposure_meets_the_flow_in_the_features() -> None:
    network = awake(replace(TINY, flow_features=True, learned_exposures=True, initial_flow="matching"))
    block = network.degradation.blocks[0]
    feat, flow = torch.rand(1, 12, 9, 9), torch.zeros(1, 18, 9, 9)
    flow[:, 2::3] = -40  # masks closed: the flow cannot show by what it warps
    embed = network.embed(torch.rand(1, 3, 9, 9), torch.tensor([0.4]))
    with torch.inference_mode():
        still, _ = block(feat, (feat, feat), flow, embed)
        flow[:, 0::3] = 3
        moving, _ = block(feat, (feat, feat), flow, embed)
    assert (still - moving).abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("config", "published_millions"),
    [
        (replace(PAPER, num_blocks=1), 7.7),
        (replace(PAPER, num_blocks=2), 9.4),
        (PAPER, 12.8),
        (replace(PAPER, num_flows=1), 11.9),
        (replace(PAPER, num_flows=5), 12.3),
        (replace(PAPER, exposure_aware=False), 9.8),
        (replace(PAPER, guidance="sft"), 13.2),
    ],
)
def test_parameter_counts_round_to_the_published_figures(config: FMANetPPConfig, published_millions: float) -> None:
    with torch.device("meta"):
        assert round(parameter_count(FMANetPP(config)) / 1e6, 1) == published_millions


@pytest.mark.parametrize("name", ["paper", "base", "fast"])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_fresh_network_returns_exactly_the_bilinear_image(name: str, frames: int) -> None:
    lr = clip(frames, 9, 13)
    with torch.inference_mode():
        out = FMANetPP(preset(name)).eval()(lr)
    bilinear = F.interpolate(lr[0], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.equal(out.frames[0], bilinear)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_every_scale_gives_frames_of_its_size(scale: int) -> None:
    with torch.inference_mode():
        out = awake(replace(TINY, scale=scale))(clip(2, 9, 13))
    assert out.frames.shape == (1, 2, 3, 9 * scale, 13 * scale)
    assert out.frames.isfinite().all()


@pytest.mark.parametrize("name", ["paper", "fast"])
def test_all_parameters_learn_but_the_flow_update_that_nothing_reads(name: str) -> None:
    network = awake(preset(name)).train()
    out = network(clip(3, 16, 20), ONE_KNOWN)
    assert out.image_flow is not None
    kernels = network.degradation.kernels(out.kernel_feat.flatten(0, 1))
    motion = 0 if out.motion is None or out.exposure is None else out.motion.square().mean() + out.exposure.mean()
    (motion + out.frames.square().mean() + out.image_flow.square().mean() + kernels.square().mean()).backward()
    idle = {key for key, value in network.named_parameters() if value.grad is None}
    unread = f"restoration.blocks.{network.config.num_blocks - 1}.flow_update"
    assert idle == {key for key, _ in network.named_parameters() if key.startswith(unread)}
    assert all(value.grad.isfinite().all() for value in network.parameters() if value.grad is not None)


CHANGES: dict[str, object] = {
    "scale": 2,
    "width": 16,
    "num_blocks": 1,
    "num_flows": 2,
    "heads": 3,
    "feed_forward_width": 8,
    "fuse_convs": 2,
    "dense_growth": 6,
    "dense_layers": 1,
    "extractor_width": 2,
    "extractor_blocks": 1,
    "modulation_width": 4,
    "kernel_head_size": 3,
    "upsampler": "two_stage",
    "initial_flow": "matching",
    "flow_features": True,
    "learned_exposures": True,
    "exposure_aware": False,
    "guidance": "sft",
    "grid": 2,
    "path_width": 8,
    "path_grid": 2,
    "path_blocks": 1,
}


@pytest.mark.parametrize("field", [field.name for field in fields(FMANetPPConfig)])
def test_every_setting_moves_the_network(field: str) -> None:
    if field == "last_flow_update":  # built for its parameter count alone
        assert parameter_count(FMANetPP(replace(TINY, last_flow_update=True))) > parameter_count(FMANetPP(TINY))
        return
    config = CELLS if field.startswith("path") else TINY
    with torch.inference_mode():
        before = awake(config)(clip(3), ONE_KNOWN).frames
        after = awake(
            replace(config, **{field: CHANGES[field]})  # type: ignore[arg-type]
        )(clip(3), ONE_KNOWN).frames
    assert before.shape != after.shape or not torch.allclose(before, after)


@pytest.mark.parametrize("scale", [4, 2, 1])
@pytest.mark.parametrize(
    "branch", [{"grid": 2}, {"grid": 4}, {"grid": 2, "path_width": 4}, {"grid": 4, "path_width": 4},
               {"grid": 4, "path_width": 4, "path_grid": 2, "upsampler": "path"}, {"grid": 1, "path_width": 4}],
)  # fmt: skip
def test_a_network_on_cells_takes_any_size_learns_whole_and_starts_at_the_bilinear_image(
    branch: dict[str, object], scale: int
) -> None:
    config = replace(CELLS, **{"path_width": 0, **branch}, scale=scale)  # type: ignore[arg-type]
    lr = clip(2, 9, 13)
    with torch.inference_mode():
        fresh = FMANetPP(config).eval()(lr)
        found = awake(config)(lr)
    bilinear = F.interpolate(lr[0], scale_factor=scale, mode="bilinear", align_corners=False)
    assert torch.equal(fresh.frames[0], bilinear)
    assert found.frames.shape == (1, 2, 3, 9 * scale, 13 * scale)
    assert found.image_flow is not None
    assert found.image_flow.shape == (1, 2, 2, 3, 9, 13)
    network = awake(config).train()
    out = network(clip(3, 16, 20), ONE_KNOWN)
    assert out.image_flow is not None
    kernels = network.degradation.kernels(out.kernel_feat.flatten(0, 1))
    assert kernels.shape[-2:] == (16, 20)
    motion = 0 if out.motion is None or out.exposure is None else out.motion.square().mean() + out.exposure.mean()
    (motion + out.frames.square().mean() + out.image_flow.square().mean() + kernels.square().mean()).backward()
    assert all(value.grad is not None for name, value in network.named_parameters() if "extractor" not in name)


def test_padding_to_whole_cells_is_that_of_a_frame_whose_border_is_repeated() -> None:
    network, lr = awake(CELLS), clip(3, 18, 13)
    padded = F.pad(lr[0], (0, 3, 0, 2), mode="replicate")[None]
    with torch.inference_mode():
        embed = network.embed(lr[0])
        assert embed is not None
        found, whole = (network(frames, embed=embed[None]).frames for frames in (lr, padded))
    torch.testing.assert_close(found, whole[..., : 4 * 18, : 4 * 13], atol=1e-5, rtol=0)


def test_the_flow_of_cells_is_told_in_pixels() -> None:
    texture = F.interpolate(
        torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0)), (80, 120), mode="bicubic"
    )
    frames = torch.stack([texture.roll(8 * t, dims=3)[0] for t in range(3)])[None]
    flows = []
    for config in (replace(CELLS, grid=1, path_width=0), CELLS):
        with torch.inference_mode():
            out = FMANetPP(config).eval()(frames)
        assert out.image_flow is not None
        flows.append(out.image_flow[0, 1, 0, :2, 20:60, 40:80].mean(dim=(1, 2)))
    torch.testing.assert_close(flows[1], torch.tensor([8.0, 0.0]), atol=0.5, rtol=0)
    torch.testing.assert_close(flows[0], flows[1], atol=0.5, rtol=0)


def test_a_start_from_a_model_on_pixels_keeps_the_levels() -> None:
    model = awake(replace(CELLS, grid=1, path_width=0)).deployed_form()
    network = FMANetPP(CELLS)
    afresh = {name.rpartition(".")[0] for name in start_from(network, model)}
    new = ("restoration.upsampler.2", "restoration.blur_path", "restoration.path")
    assert afresh
    assert all(name.startswith(new) for name in afresh)


@pytest.mark.parametrize("path_width", [0, 4])
def test_stems_started_from_those_of_pixels_read_the_mean_of_each_cell(path_width: int) -> None:
    model = awake(replace(CELLS, grid=1, path_width=0)).deployed_form()
    network = FMANetPP(replace(CELLS, path_width=path_width))
    start_from(network, model)
    lr, feat = clip(2, 16, 24)[0], torch.rand(2, CELLS.width, 4, 6)
    means = F.avg_pool2d(lr, CELLS.grid)
    with torch.inference_mode():
        torch.testing.assert_close(network.degradation.enter(lr), model.degradation.enter(means))
        torch.testing.assert_close(network.restoration.enter(lr, feat), model.restoration.enter(means, feat))


def test_a_window_with_its_context_equals_the_whole_sequence() -> None:
    network, lr = awake(TINY), clip(15)
    context = TINY.context
    with torch.inference_mode():
        whole = network(lr).frames
        window = network(lr[:, 5 - context : 8 + context]).frames
        short = network(lr[:, 5 - context + 1 : 8 + context]).frames
    torch.testing.assert_close(window[:, context : context + 3], whole[:, 5:8], atol=1e-5, rtol=0)
    # One frame less of context changes the first frame, so the context is all of it and no more.
    assert (short[:, context - 1] - whole[:, 5]).abs().max() > 1e-5


def test_clips_joined_at_a_cut_equal_the_clips_apart() -> None:
    network, lr = awake(TINY), clip(9)
    with torch.inference_mode():
        joined = network(lr, scene_starts=(4, 5)).frames
        apart = torch.cat([network(part).frames for part in lr.split([4, 1, 4], dim=1)], dim=1)
        unflagged = network(lr).frames
    torch.testing.assert_close(joined, apart, atol=1e-5, rtol=0)
    assert (joined - unflagged).abs().max() > 1e-5


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    network = awake(TINY)
    lr = torch.cat([clip(3, seed=1), clip(3, seed=2)])
    with torch.inference_mode():
        torch.testing.assert_close(network(lr).frames[1:], network(lr[1:]).frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [preset("fast"), preset("paper"), CELLS])
def test_the_deployed_form_equals_the_training_form(config: FMANetPPConfig) -> None:
    network = awake(config)
    lr = clip(2, 12, 16)
    with torch.inference_mode():
        torch.testing.assert_close(network.deployed_form()(lr).frames, network(lr).frames, atol=1e-5, rtol=0)


def test_the_deployed_form_of_a_deployed_network_is_itself() -> None:
    deployed = FMANetPP(TINY).deployed_form()
    assert deployed.deployed
    assert deployed.deployed_form() is deployed


def test_only_a_training_form_starts_from_a_deployed_one() -> None:
    training, deployed = FMANetPP(TINY), FMANetPP(TINY).deployed_form()
    for network, model in ((training, FMANetPP(TINY)), (deployed, deployed)):
        with pytest.raises(ConfigError, match="training form"):
            start_from(network, model)


def test_a_given_exposure_replaces_the_reading_frame_by_frame() -> None:
    network, lr = awake(TINY), clip(3)
    exposure = torch.tensor([[torch.nan, 0.3, torch.nan]])
    with torch.inference_mode():
        mixed = network(lr, exposure).frames
        reading = network.embed(lr[0])
        assert reading is not None
        embed = torch.stack([reading[0], anchor_embedding(network.anchors, torch.tensor(0.3)), reading[2]])
        torch.testing.assert_close(mixed, network(lr, embed=embed[None]).frames)
        assert not torch.allclose(mixed, network(lr).frames)
        assert not torch.allclose(network(lr, torch.full((1, 3), 0.2)).frames, network(lr, torch.ones(1, 3)).frames)


def test_anchors_are_met_at_their_levels_and_mixed_between() -> None:
    anchors = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    levels = torch.arange(1, 6) / 5
    torch.testing.assert_close(anchor_embedding(anchors, levels), anchors)
    torch.testing.assert_close(anchor_embedding(anchors, torch.tensor(0.01)), anchors[0])
    torch.testing.assert_close(
        anchor_embedding(anchors, torch.tensor(0.5)), F.normalize(anchors[1] + anchors[2], dim=0), atol=1e-6, rtol=0
    )


def test_an_exposure_is_read_back_from_its_own_anchor() -> None:
    anchors = F.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    given = torch.tensor([0.2, 0.4, 0.5, 0.8, 1.0])
    exposure, confidence = read_exposure(anchors, anchor_embedding(anchors, given), torch.tensor(0.02))
    torch.testing.assert_close(exposure, given, atol=0.02, rtol=0)
    assert ((confidence > 0.3) & (confidence <= 1)).all()


def test_an_extractor_that_sees_nothing_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors = F.normalize(torch.randn(5, 16, generator=generator), dim=1)
    embed = F.normalize(torch.randn(2000, 16, generator=generator), dim=1)
    temperature = fit_temperature(anchors, embed, torch.arange(5).repeat(400))
    exposure, confidence = read_exposure(anchors, embed, temperature)
    assert confidence.mean() < 0.1
    assert (exposure - 0.6).abs().mean() < 0.1
    clear = fit_temperature(anchors, anchors.repeat(9, 1), torch.arange(5).repeat(9))
    assert read_exposure(anchors, anchors, clear)[1].min() > 0.9


def test_channel_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    attention = ChannelAttention(6, 2, guided=False)
    with torch.no_grad():
        attention.temperature.copy_(torch.tensor([0.7, 3.0]))
    x = torch.randn(2, 6, 5, 4)
    query, key, value = (part.flatten(2) for part in attention.to_rest(x).chunk(3, dim=1))  # (N, C, HW)
    heads = []
    for head, tau in zip((slice(0, 3), slice(3, 6)), (0.7, 3.0), strict=True):
        q, k = F.normalize(query[:, head], dim=2), F.normalize(key[:, head], dim=2)
        heads.append((tau * q @ k.transpose(1, 2)).softmax(dim=2) @ value[:, head])
    expected = attention.to_out(torch.cat(heads, dim=1).view(2, 6, 5, 4))
    torch.testing.assert_close(attention(2 * x, x), 2 * x + expected, atol=1e-5, rtol=0)


def test_a_query_of_zeros_gives_uniform_attention_not_nan() -> None:
    attention = ChannelAttention(4, 2, guided=True)
    x = torch.randn(1, 4, 8, 8)
    assert attention(x, x, torch.zeros(1, 4, 8, 8)).isfinite().all()


def test_exposure_modulation_starts_as_the_identity() -> None:
    feat = torch.randn(3, 8, 4, 4)
    assert torch.equal(ExposureModulation(8, 16, 5)(feat, torch.randn(3, 16)), feat)


def test_kernels_start_as_an_anti_alias_filter() -> None:
    network = FMANetPP(preset("fast"))
    with torch.inference_mode():
        weight = network.degradation.kernels(torch.zeros(1, 64, 1, 1)).softmax(dim=1).view(3, 20, 20)
    assert weight[1].sum() > 0.7  # mostly the frame's own pixels
    side = torch.arange(20) - 9.5
    spread = (weight.sum(0) * (side[:, None] ** 2 + side**2)).sum()
    assert 4 < spread < 12  # 2 * sigma^2 = 8 for sigma = scale / 2; a flat window has 66.5


def test_the_extractor_stays_in_eval_while_the_rest_trains() -> None:
    network = FMANetPP(TINY).train()
    assert network.extractor is not None
    before = {key: value.clone() for key, value in network.extractor.state_dict().items()}
    network(clip(2))
    assert all(torch.equal(value, before[key]) for key, value in network.extractor.state_dict().items())


@pytest.mark.parametrize("size", [(24, 32), (21, 27), (9, 8)])
def test_a_placed_network_embeds_exposures_as_before(size: tuple[int, int]) -> None:
    network = FMANetPP(replace(TINY, extractor_width=8)).eval()
    assert network.extractor is not None
    for layer in network.extractor.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value, least in ((layer.weight.data, 0.5), (layer.bias.data, -0.5)):
                value.uniform_(least, least + 1)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2.0)
    frames = torch.rand(2, 3, *size)
    expected = network.extractor(frames)
    for _ in range(2):
        network.place(torch.device("cpu"), torch.bfloat16)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.extractor.modules())
        with torch.inference_mode():
            torch.testing.assert_close(network.extractor(frames), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 2, 3, 7, 16), (1, 2, 4, 16, 16), (2, 3, 16, 16), (1, 0, 3, 16, 16)])
def test_a_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"lr must be \(B, T >= 1, 3, H >= 8, W >= 8\)"):
        FMANetPP(TINY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 3}, "scale must be 4, 2 or 1"),
        ({"heads": 5}, "multiple of heads"),
        ({"num_flows": 0}, "num_flows must be"),
        ({"scale": 2, "upsampler": "two_stage"}, "two_stage makes scale 4"),
        ({"fuse_convs": 3}, "fuse_convs must be"),
        ({"grid": 3}, "grid must be"),
        ({"path_width": 8, "path_grid": 2}, "path_grid must be 1, 2 or 4, and at most grid"),
        ({"grid": 4, "path_width": 8, "path_grid": 3, "upsampler": "lr"}, "path_grid must be 1, 2 or 4"),
        ({"grid": 2, "upsampler": "two_stage"}, "two_stage is for grid 1"),
        ({"upsampler": "path"}, "upsampler path needs a path branch"),
    ],
)
def test_contradictory_settings_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="paper, base, fast or path"):
        preset("slow")


def test_cost_is_linear_in_pixels() -> None:
    def macs(height: int, width: int) -> int:
        total = 0

        def count(module: nn.Module, _: object, out: Tensor) -> None:
            nonlocal total
            assert isinstance(module, nn.Conv2d)
            total += out[0].numel() * module.weight[0].numel() * len(out)

        network = FMANetPP(TINY).eval()
        for module in network.restoration.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        with torch.inference_mode():
            network(clip(1, height, width))
        return total

    assert macs(32, 48) == 4 * macs(16, 24)


def test_the_path_branch_reads_where_the_blur_and_the_flow_lead() -> None:
    ramp = torch.arange(40.0).expand(1, 3, 30, 40) / 40
    branch = PathBranch(replace(CELLS, grid=2, path_grid=1, path_width=1))
    read: list[Tensor] = []
    branch.mix.register_forward_pre_hook(lambda _, parts: read.append(parts[1]))
    motion = torch.tensor([2.0, 0.0, 5.0, 0.0, -4.0, 0.0]).view(1, 6, 1, 1).expand(1, 6, 15, 20)
    frames = Frames(own=ramp, following=ramp, previous=ramp)
    branch(torch.zeros(1, CELLS.width, 15, 20), frames, motion, Box(top=0, left=0, bottom=15, right=20))
    samples = 40 * read[0][0, 6:, 15, 20]  # pixels from the middle of the ramp
    own = torch.linspace(-2 * 3, 2 * 3, 13)
    around = torch.linspace(-2 * 2, 2 * 2, 5)
    expected = torch.cat([own.repeat(3), (5 + around).repeat(3), (-4 + around).repeat(3)])
    torch.testing.assert_close(samples, expected, atol=1e-4, rtol=0)


def test_a_known_exposure_is_the_length_of_the_blur_and_an_unknown_one_is_estimated() -> None:
    network, lr = FMANetPP(CELLS).eval(), clip(3, 16, 24)
    with torch.inference_mode():
        motions = {name: network(lr, given).motion for name, given in (
            ("half", torch.full((1, 3), 0.5)), ("short", torch.full((1, 3), 0.01)), ("unknown", None),
        )}  # fmt: skip
    half, short, unknown = (motions[name] for name in ("half", "short", "unknown"))
    assert half is not None
    assert short is not None
    assert unknown is not None
    flows = half[:, :, 2:]
    torch.testing.assert_close(half[:, :, :2], 0.25 * (flows[:, :, :2] - flows[:, :, 2:]) / 2)
    torch.testing.assert_close(short[:, :, :2], 0.02 * half[:, :, :2])
    torch.testing.assert_close(unknown[:, :, :2], 1.2 * half[:, :, :2])  # a fresh network takes 0.6
