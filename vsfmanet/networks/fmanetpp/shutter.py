"""The exposure of a frame whose shutter time is unknown, from how sharp it is along the motion and across."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfmanet.networks.blocks import Conv3x3, Layers, cells, keep_scale, leaky_relu, zero_init
from vsfmanet.networks.fmanetpp.config import FMANetPPConfig
from vsfmanet.ops.warp import sample_path

FLOW_UNIT = 8.0  # pixels

SHUTTER_REACH, SHUTTER_COUNT = 1.5, 13
"""Places at which an unknown exposure is looked for: the farthest, in units of half the way to the next frame."""

_UNKNOWN = 0.6  # exposure that a fresh network takes where none is known: the middle of the levels
_WIDTH, _VERDICT_WIDTH = 48, 96
_FAINT = 2e-3  # contrast below which differences along the path are mostly noise

_LAGS = (1, 2, 3, 5, 8)
_EDGE = 0.03  # range of the samples through a place, of 1, from which on it counts as an edge
_STILL = 0.15  # half of the way to the next frame, pixels, below which nothing is seen of the exposure
SLOPES = 2 * (3 * len(_LAGS) + 1) + 2
"""Numbers that `edge_slopes` returns for a frame."""


class ShutterEstimate(nn.Module):
    """Estimate a frame's exposure from how it looks along the motion, and across: one number for all of the frame.

    Motion blurs along the motion alone. Every cell has a vote, read from samples along the path that a point takes from
    frame to frame and from samples across it, and a weight; a verdict on the weighted mean of the features that the
    votes are read from, and on how steep the frame's edges are (`edge_slopes`), corrects the mean vote.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FMANetPPConfig) -> None:
        super().__init__()
        self.grid, self.stride = config.grid, min(2, config.grid)
        places = (2 * SHUTTER_COUNT + 1) * (config.grid // self.stride) ** 2
        width = _WIDTH
        self.look = Layers(Conv3x3(places + 3, width), leaky_relu(), Conv3x3(width, width), leaky_relu())
        self.features = Layers(joint := Conv3x3(config.width + width, width), leaky_relu())
        self.vote = Conv3x3(width, 2)
        self.verdict = nn.Sequential(
            nn.Linear(width + SLOPES, _VERDICT_WIDTH), leaky_relu(), nn.Linear(_VERDICT_WIDTH, _VERDICT_WIDTH),
            leaky_relu(), last := nn.Linear(_VERDICT_WIDTH, 2),
        )  # fmt: skip
        keep_scale(self)
        for layer in (self.vote, last):
            zero_init(layer)
        with torch.no_grad():
            joint.weight[:, : config.width] = 0  # the samples can be learned from alone, before the levels
            assert self.vote.bias is not None
            self.vote.bias[0] = torch.tensor(_UNKNOWN).logit()

    def forward(self, feat: Tensor, image: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate exposures.

        Args:
            feat: (N, C, h, w), from the last block.
            image: (N, 3, g*h, g*w) in [0, 1], fp32, the frames.
            velocity: (N, 2, h, w), fp32, motion in pixels a frame interval.

        Returns:
            Open-shutter time over frame interval, fp32, in (0, 1), (N,) each: the estimate, and the exposure to restore
            by, which is learned from restored frames alone. It is the smaller where the estimate may be wrong, because
            blur that is there and stays costs less than blur that is undone and was not there.
        """
        path = velocity / 2
        if self.grid > self.stride:
            path = F.interpolate(path, scale_factor=self.grid // self.stride, mode="nearest")
        across = torch.stack([-path[:, 1], path[:, 0]], dim=1)
        green = image[:, 1:2]
        own = green[..., None, :: self.stride, :: self.stride]
        looks = [sample_path(green, way, SHUTTER_REACH, SHUTTER_COUNT, stride=self.stride) for way in (path, across)]
        slopes = edge_slopes([look[:, 0, :, ::2, ::2] for look in looks], path[..., ::2, ::2])
        seen = (torch.cat(looks, dim=2) - own).flatten(1, 2)
        contrast = seen.square().mean(dim=1, keepdim=True).add(_FAINT**2).sqrt()
        seen = torch.cat([seen / contrast, contrast.log() / 2 + 2], dim=1)
        seen = cells(seen.to(feat.dtype), self.grid // self.stride)
        length = velocity.square().sum(dim=1, keepdim=True).add(1e-2).log() / 2
        told = torch.cat([F.softsign(velocity / FLOW_UNIT), length], dim=1).to(feat.dtype)
        features = self.features(feat, self.look(seen, told.contiguous(memory_format=torch.channels_last)))
        vote, weight = self.vote(features).float().flatten(2).unbind(dim=1)
        weight = weight.softmax(dim=1)
        mean = (features.float().flatten(2) * weight[:, None]).sum(dim=2)
        verdict = self.verdict(torch.cat([mean, slopes], dim=1).to(feat.dtype))
        correction, caution = verdict.float().unbind(dim=1)
        logit = (vote * weight).sum(dim=1) + correction
        return logit.sigmoid(), (logit - caution).sigmoid()


def edge_slopes(looks: list[Tensor], path: Tensor) -> Tensor:
    """Measure how steep the edges of frames are along the motion and across it.

    While the shutter is open, an edge becomes a ramp as long as the blur. The steepest slope over a distance, as a part
    of the range of the samples, is therefore about that distance over the blur; across the motion it is what the scene
    and the lens allow. The means over the frame are of powers 1, 4 and 12: the higher, the more the steepest edges
    count.

    Args:
        looks: Samples along the motion, and across it, (N, P, h, w) each, in [0, 1], P places that lie evenly.
        path: (N, 2, h, w), half of the way to the next frame, pixels.

    Returns:
        (N, `SLOPES`), fp32, most of them in -3 ... 3: for each direction, the means for each distance and the logarithm
        of the part of the frame that has edges; then logarithms of the mean speed and of its root mean square.
    """
    speed = path.square().sum(dim=1, keepdim=True).sqrt()
    moving = (speed > _STILL).float()
    found = []
    for look in looks:
        spread = look.amax(dim=1, keepdim=True) - look.amin(dim=1, keepdim=True)
        weight = moving * (spread > _EDGE) + 1e-5
        total = weight.sum(dim=(1, 2, 3))
        for lag in _LAGS:
            slope = (look[:, lag:] - look[:, :-lag]).abs().amax(dim=1, keepdim=True) / (spread + _EDGE)
            fourth = slope.square().square()
            for power, part in ((1, slope), (4, fourth), (12, fourth**3)):
                mean = (part * weight).sum(dim=(1, 2, 3)) / total
                found.append(6 * mean.add(1e-12).pow(1 / power) - 3)
        found.append(weight.mean(dim=(1, 2, 3)).add(1e-3).log() / 2)
    mean, square = speed.mean(dim=(1, 2, 3)), speed.square().mean(dim=(1, 2, 3))
    found += [each.add(0.05).log() / 2 - 0.5 for each in (mean, square.sqrt())]
    return torch.stack(found, dim=1)
