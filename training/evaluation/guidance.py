"""The paper's own tests of exposure awareness: what restoration and kernels do under right and wrong exposures.

The input stays as it is; the exposure embedding changes, in two ways: `read` is the extractor's embedding of the same
frame at another level, as in the paper, and `given` the embedding of a known exposure, as a user gives it. A network
with a path branch does not restore by the extractor; there `read` is its estimate from the frame at the other level.

Source: FMA-Net++ (arXiv 2512.04390), Tables 6 and 7, Fig. 7b.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.benchmark import Benchmark, BenchmarkScene, load_clip
from training.data.render import to_bytes
from training.evaluation.report import TextTable
from training.metrics.scoring import TRANSITIONS, Score, load_truth, score_clip
from vsfmanet.errors import ConfigError
from vsfmanet.networks.exposure_extractor import LEVELS
from vsfmanet.networks.fmanetpp import FMANetPP

SOURCES = ("read", "given")
SEED = 2512
"""Of the wrong and the shuffled guidance of scene k, together with k."""
CHANGES = ("true", "all 5:5", "shuffled", "random wrong")
"""Guidance of Table 6, for inputs of changing exposure."""
PAPER_SPREAD = "paper: 5.29 and 18.17; 12.28 and 37.89"


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidedScore:
    """The score of a clip restored under some guidance."""

    source: str
    """One of `SOURCES`."""
    guidance: str
    """One of `CHANGES` for changing exposure, "5:1" to "5:5" for inputs of 5:5."""
    score: Score
    """Its scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Width of the degradation kernels, mean over all scenes."""

    source: str
    """One of `SOURCES`."""
    level: int
    """Exposure of the input, 1..5."""
    guidance: int
    """Exposure given to the network, 1..5."""
    spread: float
    """HR pixels squared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceTest:
    """Results of one network."""

    model: str
    """Name to show."""
    scores: list[GuidedScore]
    """Of every clip under every guidance."""
    spreads: list[Spread]
    """Empty for a network without kernels."""

    def tables(self) -> list[TextTable]:
        """Tables 6 and 7 and Fig. 7b."""
        header = ["exposure", "PSNR", "tOF", "PSNR at changes", "tOF at changes"]
        rows = [
            [f"{source}: {told}", *self._cells(source, told, "re"), *self._cells(source, told, TRANSITIONS)]
            for source in SOURCES
            for told in CHANGES
        ]
        sixth = TextTable(title=f"{self.model}: inputs of changing exposure (Table 6)", header=header, rows=rows)
        levels = [f"5:{level}" for level in range(LEVELS, 0, -1)]
        rows = [[f"{source}: {level}", *self._cells(source, level, "5_5")] for source in SOURCES for level in levels]
        seventh = TextTable(title=f"{self.model}: inputs of 5:5 (Table 7)", header=header[:3], rows=rows)
        if not self.spreads:
            return [sixth, seventh]
        rows = []
        for source in SOURCES:
            for level in (1, LEVELS):
                own = [s.spread for s in self.spreads if (s.source, s.level) == (source, level)]
                rows.append([f"{source}: input 5:{level}", *(f"{value:.2f}" for value in own)])
        title = f"{self.model}: spread of the kernels in HR pixels squared (Fig. 7b, {PAPER_SPREAD})"
        return [sixth, seventh, TextTable(title=title, header=["", "told 5:1", "told 5:5"], rows=rows)]

    def verdicts(self) -> list[str]:
        """State for each source whether the true exposure is best, and whether a longer one makes kernels wider."""
        read, given = (self._mean(source, "true", "re", "psnr") for source in SOURCES)
        lines = [f"{self.model}: giving the true exposure instead of having it read gains {given - read:+.3f} dB"]
        for source in SOURCES:
            psnr = [self._mean(source, guidance, "re", "psnr") for guidance in CHANGES]
            best = "best" if psnr[0] == max(psnr) else "NOT best"
            lines.append(
                f"{self.model}, {source}: the true exposure is {best}; "
                f"a random wrong one costs {psnr[0] - psnr[CHANGES.index('random wrong')]:+.3f} dB"
            )
            for level in (1, LEVELS):
                own = [s.spread for s in self.spreads if (s.source, s.level) == (source, level)]
                if own:
                    change = "widens" if own[1] > own[0] else "does NOT widen"
                    lines.append(f"{self.model}, {source}: told 5:5, input 5:{level} {change} its kernels")
        return lines

    def _mean(self, source: str, guidance: str, condition: str, metric: str) -> float:
        """Mean over the scenes; NaN if there are none."""
        wanted = (source, guidance, condition)
        own = [getattr(s.score, metric) for s in self.scores if (s.source, s.guidance, s.score.condition) == wanted]
        return mean(own) if own else float("nan")

    def _cells(self, source: str, guidance: str, condition: str) -> list[str]:
        """PSNR and tOF of a row."""
        return [f"{self._mean(source, guidance, condition, metric):.3f}" for metric in ("psnr", "tof")]


def run(networks: Mapping[str, FMANetPP], benchmark: Benchmark, folder: Path) -> list[GuidanceTest]:
    """Test each network on every scene of the benchmark in `folder`.

    Raises:
        ConfigError: The benchmark lacks a level, or a network is not exposure-aware.
    """
    wanted = {"re", *(f"5_{level}" for level in range(1, LEVELS + 1))}
    lacking = wanted - set(benchmark.scenes[0].exposure)
    if lacking:
        raise ConfigError(
            f"guidance: a benchmark with all five levels and changing exposure is needed, {folder} lacks "
            f"{', '.join(sorted(lacking))}; take one of training.build_benchmark"
        )
    tests = []
    for name, network in networks.items():
        if network.extractor is None:
            raise ConfigError(f"guidance: an exposure-aware network is needed, {name} is none; leave it out")
        scores: list[GuidedScore] = []
        for number, scene in enumerate(benchmark.scenes):
            scores += score_scene(name, network, scene, folder / scene.name, np.random.default_rng([SEED, number]))
            print(f"{scene.name}: guidance of {name} done", flush=True)
        tests.append(GuidanceTest(model=name, scores=scores, spreads=spreads(network, benchmark, folder)))
    return tests


def score_scene(
    name: str, network: FMANetPP, scene: BenchmarkScene, folder: Path, generator: np.random.Generator
) -> list[GuidedScore]:
    """Restore the clip of changing exposure and that of 5:5 of a scene in `folder` under every guidance."""
    truth = load_truth(folder)
    by_path = network.config.path_width > 0
    reads = level_estimates(network, folder) if by_path else level_embeds(network, folder)
    true = np.rint(np.asarray(scene.exposure["re"]) * LEVELS).astype(np.int64)
    frames = np.arange(len(true))
    order = generator.permutation(len(true))
    wrong = (true - 1 + generator.integers(1, LEVELS, len(true))) % LEVELS + 1
    # Input, guidance, the levels that are told, and the frames whose embeddings are.
    cases = [
        ("re", "true", true, frames),
        ("re", "all 5:5", np.full_like(true, LEVELS), frames),
        ("re", "shuffled", true[order], order),
        ("re", "random wrong", wrong, frames),
    ]
    cases += [("5_5", f"5:{level}", np.full_like(true, level), frames) for level in range(1, LEVELS + 1)]
    done = []
    for condition, guidance, levels, taken in cases:
        lr = load_lr(folder, condition, reads.device)
        for source in SOURCES:
            told = reads[levels - 1, taken][None] if source == "read" else exposures(levels, lr)
            with torch.inference_mode():
                output = (network(lr, embed=told) if source == "read" and not by_path else network(lr, told)).frames
            clip = to_bytes(output[0])
            scores, _ = score_clip(name, scene.name, condition, clip, truth, scene.exposure[condition], float("nan"))
            done += [GuidedScore(source=source, guidance=guidance, score=score) for score in scores]
    return done


@torch.inference_mode()
def level_estimates(network: FMANetPP, folder: Path) -> Tensor:
    """Exposures (5, T) that a network with a path branch estimates from the frames of a scene at every level."""
    device = next(network.parameters()).device
    found = [network(load_lr(folder, f"5_{level}", device)).exposure for level in range(1, LEVELS + 1)]
    return torch.cat([each for each in found if each is not None])


@torch.inference_mode()
def level_embeds(network: FMANetPP, folder: Path) -> Tensor:
    """Embeddings (5, T, U) that the extractor reads from the frames of a scene at every level."""
    assert network.extractor is not None
    device = next(network.parameters()).device
    clips = [load_lr(folder, f"5_{level}", device)[0] for level in range(1, LEVELS + 1)]
    return torch.stack([network.extractor(clip) for clip in clips])


def load_lr(folder: Path, condition: str, device: torch.device) -> Tensor:
    """LR clip (1, T, 3, h, w) in [0, 1]."""
    return (torch.from_numpy(load_clip(folder / condition))[None] / 255).to(device)


def exposures(levels: NDArray[np.int64], lr: Tensor) -> Tensor:
    """Levels (T,) as exposures (1, T) where `lr` is."""
    return torch.from_numpy(levels / LEVELS).float()[None].to(lr.device)


@torch.inference_mode()
def spreads(network: FMANetPP, benchmark: Benchmark, folder: Path) -> list[Spread]:
    """Measure the spread of the kernels for inputs of 5:1 and 5:5, given either; none for a deployed network.

    None for one with a path branch either: it restores without them.
    """
    if network.deployed or network.config.path_width:
        return []
    found: dict[tuple[str, int, int], list[float]] = {}
    for scene in benchmark.scenes:
        embeds = level_embeds(network, folder / scene.name)
        for level in (1, LEVELS):
            lr = load_lr(folder / scene.name, f"5_{level}", embeds.device)
            for guidance in (1, LEVELS):
                told = exposures(np.full(lr.shape[1], guidance), lr)
                embed = embeds[guidance - 1][None]
                for source in SOURCES:
                    out = network.run_degradation(lr, told, embed=embed if source == "read" else None)
                    found.setdefault((source, level, guidance), []).extend(
                        kernel_spread(network.degradation.kernels(feat[None]), network.config.kernel_size)
                        for feat in out.kernel_feat[0]
                    )
    return [
        Spread(source=source, level=level, guidance=guidance, spread=mean(values))
        for (source, level, guidance), values in sorted(found.items())
    ]


def kernel_spread(logits: Tensor, kernel_size: int) -> float:
    """Measure how wide degradation kernels are: the sum of weight times squared distance from the mean over taps.

    Args:
        logits: (N, 3*kd^2, H, W).
        kernel_size: kd.

    Returns:
        Mean over all pixels, HR pixels squared; a uniform kernel of 20 x 20 has 66.5.

    Source: FMA-Net++ (arXiv 2512.04390), Fig. 7b; the paper does not define its spread, this one fits its figures.
    """
    weight = logits.float().softmax(dim=1).unflatten(1, (3, kernel_size, kernel_size)).sum(dim=1)  # (N, kd, kd, H, W)
    axis = torch.arange(kernel_size, device=logits.device, dtype=torch.float32)
    total = torch.zeros(())
    for dim in (1, 2):
        marginal = weight.sum(dim=3 - dim)  # (N, kd, H, W)
        position = axis[:, None, None]
        centre = (marginal * position).sum(dim=1, keepdim=True)
        total = total + (marginal * (position - centre) ** 2).sum(dim=1).mean().cpu()
    return float(total)
