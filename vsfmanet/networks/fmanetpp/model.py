"""FMA-Net++: joint super-resolution and deblurring, aware of motion and of per-frame exposure.

Source: Youk, Oh, Kim, "FMA-Net++", arXiv 2512.04390 v2. Written from the paper alone; where the paper is silent, the
docstring of the module concerned states the choice.

Every level of the network (M blocks of NetD, then M of NetR) reads the level below of a frame and of its two
neighbours, and nothing else. So a frame depends on 2M frames to each side, and a whole sequence (`forward`) and a
stream of single frames (`parts`) have the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vsfmanet.errors import ShapeError
from vsfmanet.networks.blocks import channels_last
from vsfmanet.networks.description import ExportPart, LevelNetwork, Parts, SequenceNetwork
from vsfmanet.networks.exposure_extractor import LEVELS, ExposureExtractor, anchor_embedding, read_exposure
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.networks.fmanetpp.degradation import NetD
from vsfmanet.networks.fmanetpp.export import export_parts
from vsfmanet.networks.fmanetpp.parts import EagerParts, TiledParts
from vsfmanet.networks.fmanetpp.path import CHANNELS, MIX_WIDTH, Frames
from vsfmanet.networks.fmanetpp.restoration import NetR
from vsfmanet.segments import Reach
from vsfmanet.tiling import MemoryPlan

MIN_SIDE = 8
"""Smallest height and width of an input frame, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """The results of NetD's half of a pass, for B clips of T frames; N = B*T."""

    feat: Tensor
    """(N, C, H/g, W/g), features of NetD's last block."""
    flow: Tensor
    """(N, 6n, H/g, W/g), fp32, of NetD's last block."""
    embed: Tensor | None
    """(N, U) exposure embeddings; None for a network without them."""
    neighbours: tuple[Tensor, Tensor]
    """(N,) each: numbers of the next and of the previous frame, see `neighbour_index`."""
    image_flow: Tensor | None
    """See `FMANetPPOutput`."""
    kernel_feat: Tensor
    """See `FMANetPPOutput`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FMANetPPOutput:
    """The results of one pass."""

    frames: Tensor
    """(B, T, 3, s*H, s*W) RGB, fp32, nominal range [0, 1], not clamped."""
    image_flow: Tensor | None
    """(B, T, 2, 3, H, W), fp32: direction (next, previous), flow dx, dy in LR pixels and mask logit, between sharp
    frames; None when deployed."""
    motion: Tensor | None
    """(B, T, 6, H/g, W/g), fp32: motion of each cell, see `BlurPath.forward`; None without a path branch."""
    exposure: Tensor | None
    """(B, T), fp32: estimated exposures, also where they are known; None without a path branch."""
    kernel_feat: Tensor
    """(B, T, C, H/g, W/g): h_K, from which `NetD.kernels` computes the logits of the degradation kernels."""


class FMANetPP(LevelNetwork):
    """FMA-Net++ as a whole: exposure extractor (ETE), degradation network (NetD), restoration network (NetR).

    Args:
        config: Sizes.
        deployed: Build the folded form that `deployed_form` returns and the shipped weights hold.
    """

    kind = "fmanetpp"
    exact_tiles = True
    has_parts = True
    anchors: Tensor
    """(5, U), the extractor's mean embeddings of levels 5:1 ... 5:5."""
    reading_temperature: Tensor
    """Scalar, see `read_exposure`."""

    def __init__(self, config: FMANetPPConfig, *, deployed: bool = False) -> None:
        super().__init__()
        self.config: FMANetPPConfig = config
        self.deployed = deployed
        self.scale = config.scale
        self.reach = Reach(before=config.context, after=config.context)
        self.takes_exposure = config.exposure_aware
        self.num_levels, self.bridge_level = 2 * config.num_blocks, config.num_blocks
        self.extractor = (
            ExposureExtractor(config.extractor_width, config.extractor_blocks) if config.exposure_aware else None
        )
        embed_width = self.extractor.embed_width if self.extractor is not None else 0
        self.degradation = NetD(config, embed_width=embed_width, deployed=deployed)
        self.restoration = NetR(config, embed_width=embed_width, deployed=deployed)
        self.exposure_embeds: nn.Parameter | None = None
        if config.learned_exposures and embed_width:
            self.exposure_embeds = nn.Parameter(torch.eye(LEVELS, embed_width))
        if self.extractor is not None:
            self.register_buffer("anchors", F.normalize(torch.ones(LEVELS, embed_width), dim=1))
            self.register_buffer("reading_temperature", torch.tensor(0.1))

    def train(self, mode: bool = True) -> FMANetPP:
        """Switch modes; the extractor stays in eval mode, where its statistics do not mix the exposures of a batch."""
        super().train(mode)
        if self.extractor is not None:
            self.extractor.eval()
        return self

    @property
    def blocks(self) -> list[nn.Module]:
        """The 2M levels in order: those of NetD, then those of NetR."""
        return [*self.degradation.blocks, *self.restoration.blocks]

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `RestorationNetwork`. The extractor stays in fp32: it is cheap, and exposure levels differ by little."""
        self.to(device)
        if self.extractor is not None:
            self.extractor.fold()
            channels_last(self.extractor)
        for part in (self.degradation, self.restoration):
            channels_last(part.to(dtype))

    def memory_needed(self, height: int, width: int, dtype: torch.dtype, plan: MemoryPlan) -> int:
        """See `RestorationNetwork`; counted, without weights, and compared with the tensors that live in the tests."""
        config = self.config
        size, channels, levels, grid = dtype.itemsize, config.width, self.num_levels, config.grid
        # All counts are bytes per cell, which is a pixel where the grid is 1.
        feat, flow, image = channels * size, 6 * config.num_flows * 4, 3 * 4 * grid**2
        guides = config.num_blocks * feat
        # A level keeps three frames and their flows, which the first has not; NetR's levels also keep the guides.
        held = 3 * feat + 3 * flow + 2 * image
        waiting = held if plan.offload else levels * held - 3 * flow + (config.num_blocks + 2) * guides
        wide = max(8 * channels, 4 * channels + 3 * config.feed_forward_width, guides // size + 2 * channels) * size
        if config.upsampler == "two_stage":
            last = 3 * 64 * 16 * size + 2 * image * config.scale**2
        else:
            last = (2 * channels + 2 * 3 * (config.scale * grid) ** 2) * size + 2 * image * config.scale**2
        if config.path_width:  # samples of the frame in fp32 with their places, and twice more; the branch's features
            last += 2 * CHANNELS * grid**2 * (4 + size)
            last += (MIX_WIDTH + 3 * config.path_width) * (grid // config.path_grid) ** 2 * size
        sums = 4 * (3 * channels + channels**2 // config.heads) // 1024 + 1  # of squares and products, on CUDA
        working = max(wide, last) + 2 * feat + flow + sums
        if plan.graphs and plan.tile is None:  # slots for results, and memory of graphs beside that of other launches
            waiting += levels * flow + 3 * (feat + guides + image)
            working *= 2
        rows, columns = -(-height // grid), -(-width // grid)
        if plan.tile is None:
            return rows * columns * (waiting + working)
        margin = 2 * (config.dense_layers + 2)
        tile_rows, tile_columns = (-(-side // grid) + margin for side in plan.tile)
        part = min(rows, tile_rows) * min(columns, tile_columns)
        # Features and flow are assembled beside those that are read.
        return rows * columns * (waiting + 3 * feat + 2 * flow) + part * working

    def streamed[T](self, *, levels: Callable[[LevelNetwork], T], windows: Callable[[SequenceNetwork], T]) -> T:
        """See `RestorationNetwork`."""
        return levels(self)

    def parts(self, tile: tuple[int, int] | None = None) -> Parts:
        """See `LevelNetwork`."""
        whole = EagerParts(self.degradation, self.restoration)
        return whole if tile is None else TiledParts(whole, self.config, tile)

    def export_parts(self, height: int, width: int) -> Iterator[ExportPart]:
        """See `LevelNetwork`."""
        embed_width = 0 if self.extractor is None else self.extractor.embed_width
        return export_parts(self.degradation, self.restoration, self.config, embed_width, height, width)

    @property
    def dtype(self) -> torch.dtype:
        """See `LevelNetwork`."""
        return next(self.degradation.parameters()).dtype

    def embed(self, lr: Tensor, exposure: Tensor | None = None) -> Tensor | None:
        """See `LevelNetwork`. An `exposure` on the CPU does not make the host wait for the device."""
        if self.extractor is None:
            return None
        if exposure is None:
            return self._with_exposure(self._read(lr), None)
        known = ~exposure.isnan()
        levels = self.anchors if self.exposure_embeds is None else F.normalize(self.exposure_embeds.float(), dim=1)
        # A pageable copy this small does not block the host.
        given = anchor_embedding(levels, exposure.to(lr.device, non_blocking=True).nan_to_num(1.0))
        on_device = known[:, None].to(lr.device, non_blocking=True)
        if not known.all():
            given = torch.where(on_device, given, self._read(lr))
        return self._with_exposure(given, exposure)

    def _read(self, lr: Tensor) -> Tensor:
        """Run the extractor on frames (N, 3, H, W), without a graph where it is frozen; returns (N, U)."""
        assert self.extractor is not None
        frozen = not any(value.requires_grad for value in self.extractor.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.extractor(lr)

    def _with_exposure(self, embed: Tensor, exposure: Tensor | None) -> Tensor:
        """Append `EXPOSURE_CHANNELS` to embeddings (N, U), if there is a path branch that reads them."""
        if not self.config.path_width:
            return embed
        if exposure is None:
            exposure = torch.full((len(embed),), torch.nan)
        values = torch.stack([exposure.float().nan_to_num(0.0), (~exposure.isnan()).float()], dim=1)
        return torch.cat([embed, values.to(embed.device, non_blocking=True)], dim=1)

    def read_exposure(self, embed: Tensor) -> tuple[Tensor, Tensor]:
        """See `LevelNetwork`."""
        return read_exposure(self.anchors, embed[:, : self.anchors.shape[1]], self.reading_temperature)

    def folded_guide(self) -> tuple[Tensor, Tensor]:
        """Multiply kernel head and kernel embeddings; returns weight (M*C, C, k, k) and bias (M*C,)."""
        return self.restoration.folded_guide(self.degradation.to_kernels)

    def restored(self, frames: Tensor, exposure: Tensor | None = None, *, scene_starts: Sequence[int] = ()) -> Tensor:
        """See `RestorationNetwork`."""
        output: FMANetPPOutput = self(frames, exposure, scene_starts=scene_starts)
        return output.frames

    def forward(
        self,
        lr: Tensor,
        exposure: Tensor | None = None,
        *,
        embed: Tensor | None = None,
        scene_starts: Sequence[int] = (),
    ) -> FMANetPPOutput:
        """Restore whole sequences at once.

        Args:
            lr: (B, T, 3, H, W) in [0, 1].
            exposure: (B, T) open-shutter time over frame interval, in (0, 1]; where it is NaN or None, the extractor
                estimates it.
            embed: (B, T, U), replaces all embeddings.
            scene_starts: Numbers t > 0 of the frames before which a cut lies; frames on two sides of a cut do not see
                each other.

        Returns:
            Frames, and what the losses read.

        Raises:
            ShapeError: `lr` is not (B, T, 3, H, W) with T >= 1 and H, W >= 8.
        """
        begun = self.run_degradation(lr, exposure, embed=embed, scene_starts=scene_starts)
        following, previous = begun.neighbours
        flat = lr.flatten(0, 1)
        guides = self.restoration.guides(begun.kernel_feat.flatten(0, 1), self.degradation.to_kernels)
        feat = self.restoration.enter(flat.to(self.dtype).contiguous(memory_format=torch.channels_last), begun.feat)
        feat, flow = self.run_levels(self.restoration, feat, begun.flow, begun.neighbours, begun.embed, guides)
        whole = Frames.of(flat, (flat[following], flat[previous]), self.config.grid)
        motion, estimate = self.restoration.motion(whole, feat, flow, begun.embed)
        restored = self.restoration.finish(whole, feat, motion)
        restored = restored[..., : self.scale * lr.shape[-2], : self.scale * lr.shape[-1]]
        clips = lr.shape[:2]
        return FMANetPPOutput(
            frames=restored.unflatten(0, clips),
            motion=None if motion is None else motion.unflatten(0, clips),
            exposure=None if estimate is None else estimate.unflatten(0, clips),
            image_flow=begun.image_flow,
            kernel_feat=begun.kernel_feat,
        )

    def run_degradation(
        self,
        lr: Tensor,
        exposure: Tensor | None = None,
        *,
        embed: Tensor | None = None,
        scene_starts: Sequence[int] = (),
    ) -> Degradation:
        """Run NetD's half of `forward`, with the same arguments.

        Raises:
            ShapeError: `lr` is not (B, T, 3, H, W) with T >= 1 and H, W >= 8.
        """
        if lr.dim() != 5 or lr.shape[2] != 3 or min(lr.shape[-2:]) < MIN_SIDE or not lr.shape[1]:
            raise ShapeError(
                f"lr must be (B, T >= 1, 3, H >= {MIN_SIDE}, W >= {MIN_SIDE}), got {tuple(lr.shape)}; pad the frames"
            )
        clips, flat = lr.shape[:2], lr.flatten(0, 1)
        neighbours = neighbour_index(clips[0], clips[1], scene_starts, lr.device)
        known = exposure.flatten() if exposure is not None else None
        guidance = embed.flatten(0, 1) if embed is not None else self.embed(flat, known)
        following, previous = neighbours
        feat = self.degradation.enter(flat.to(self.dtype).contiguous(memory_format=torch.channels_last))
        flow = self.degradation.initial_flow(flat, (flat[following], flat[previous]))
        feat, flow = self.run_levels(
            self.degradation, feat, flow, neighbours, guidance, [None] * self.config.num_blocks
        )
        image_flow = None
        if not self.deployed:
            of_frames = self.degradation.sharp_flow(flow)[..., : lr.shape[-2], : lr.shape[-1]]
            image_flow = rearrange(of_frames, "(b t) (d c) h w -> b t d c h w", b=clips[0], d=2)
        return Degradation(
            feat=feat,
            flow=flow,
            embed=guidance,
            neighbours=neighbours,
            image_flow=image_flow,
            kernel_feat=self.degradation.kernel_feat(feat).unflatten(0, clips),
        )

    def run_levels(
        self,
        part: NetD | NetR,
        feat: Tensor,
        flow: Tensor,
        neighbours: tuple[Tensor, Tensor],
        embed: Tensor | None,
        guides: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Run the levels of NetD or NetR for N frames.

        Args:
            part: NetD or NetR.
            feat: (N, C, H/g, W/g), that the first of them reads.
            flow: (N, 6n, H/g, W/g), fp32, alike.
            neighbours: Numbers (N,) of the next and of the previous frame.
            embed: (N, U) exposure embeddings; None without exposure awareness.
            guides: The guide (N, C, H/g, W/g) of each level; None in NetD.

        Returns:
            Features and flow of the last of them.
        """
        following, previous = neighbours
        for block, guide in zip(part.blocks, guides, strict=True):
            update_flow = block is not self.restoration.blocks[-1]
            feat, flow = block(feat, (feat[following], feat[previous]), flow, embed, guide, update_flow=update_flow)
        return feat, flow

    @torch.no_grad()
    def deployed_form(self) -> FMANetPP:
        """Return the form that is run and shipped: kernel head and embeddings folded, training-only heads dropped.

        Exact up to rounding; the product is computed in fp64.

        Returns:
            A new network in eval mode on the same device, fp32, that shares no memory with this one; this network
            itself if it is deployed already.
        """
        head = self.degradation.to_kernels
        if head is None:
            return self
        out = FMANetPP(self.config, deployed=True).to(head.weight.device)
        wanted = out.state_dict()
        state = {name: value for name, value in self.state_dict().items() if name in wanted}
        weight, bias = self.restoration.folded_guide(deepcopy(head).double())
        state["restoration.guide.weight"], state["restoration.guide.bias"] = weight.float(), bias.float()
        out.load_state_dict(state)
        return out.eval()


def neighbour_index(
    clips: int, frames: int, scene_starts: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the numbers (B*T,) of the next and of the previous frame of each of B*T frames.

    Args:
        clips: B.
        frames: T.
        scene_starts: Numbers t > 0 of the frames before which a cut lies.
        device: Device of the results.

    Returns:
        Two tensors (B*T,), int64; where a frame has no neighbour, its own number.
    """
    starts = set(scene_starts) | {0, frames}
    following = torch.tensor([t if t + 1 in starts else t + 1 for t in range(frames)])
    previous = torch.tensor([t if t in starts else t - 1 for t in range(frames)])
    offset = (torch.arange(clips) * frames)[:, None]
    both = torch.stack([following + offset, previous + offset]).flatten(1).to(device, non_blocking=True)
    return both[0], both[1]
