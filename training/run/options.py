"""The options that trainings share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from training.losses.degradation import WARP_WEIGHT
from training.options import FLAT, SEVERAL
from training.run.architectures import Architecture
from vsfmanet.errors import ConfigError

PresetName = Literal["paper", "base", "fast", "path"]


@FLAT
@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A training run in a folder."""

    out: Path
    """Folder for checkpoints and curves."""
    steps: int = 300000
    """Length of the run."""
    max_minutes: float = float("inf")
    """Stop and save after this many minutes; the same command continues."""
    learning_rate: float = 2e-4
    """Learning rate of Adam."""
    muon: float | None = None
    """Train matrices by Muon, at this learning rate, and the rest by Adam."""
    warmup: int = 500
    """Steps of rising learning rate."""
    decay: float = 0.3
    """Last part of the run, in [0, 1], over which the rates fall to 0."""
    halve_at: Annotated[tuple[float, ...], SEVERAL] = ()
    """Parts of the run, in [0, 1], after each of which the rates are halved: 0.7 0.85 0.95 in FMA-Net++."""
    max_norm: float = 1.0
    """Largest norm of the gradient; longer ones are clipped."""
    save_minutes: float = 4
    """Minutes between checkpoints."""
    seed: int = 0
    """Seed of weights and batches."""
    device: str = "cpu"
    """cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class ClipOptions(RunOptions):
    """A training run on clips of a pool."""

    pool: Path
    """Folder that training.render_pool or training.prepare_* wrote."""
    pool_on_device: bool = False
    """Hold the pool in the memory of the device, and draw batches there."""
    clips: int = 8
    """Clips per batch and process."""
    frames: int = 8
    """Frames per clip."""
    crop: int = 64
    """Side of a crop in pixels of the input."""
    exposure_mode: Literal["constant", "walk", "mixed"] = "mixed"
    """Exposure within a clip: constant, changing (Algorithm S1), or half of the clips each."""
    degrade: float = 0.0
    """Part of the clips with noise, halos and compression, in [0, 1]."""
    bars: float = 0.0
    """Part of the clips with a bar of one colour, in [0, 1]."""
    compile: bool = False
    """Compile the network: minutes at the start, then faster steps."""


@dataclass(frozen=True, kw_only=True)
class FMANetPPOptions(ClipOptions):
    """A training of FMA-Net++, or of its NetD alone.

    Raises:
        ConfigError: Both `extractor` and `start_from` are named.
    """

    extractor: Annotated[str | None, Parameter(metavar="FILE")] = None
    """Checkpoint of training.train_extractor, or a model that lends its extractor."""
    start_from: Annotated[str | None, Parameter(metavar="MODEL")] = None
    """Model or .safetensors file to begin with, its extractor included."""
    preset: PresetName = "fast"
    """Sizes of the network."""
    scale: Literal[4, 2, 1] = 4
    """HR size over LR size."""
    known_exposure: float = 0.2
    """Part of the clips whose exposure is given to the network, in [0, 1]."""
    degradation_frames: int = 1
    """Frames per batch that the dynamic filter rebuilds; 0 for all, as in the paper."""
    flow_weight: float = 0.01
    """Weight of the flow loss, per LR pixel (lambda2 of Eq. 9)."""
    warp_weight: float = WARP_WEIGHT
    """lambda1 of Eq. 9."""
    grid: Literal[1, 2, 4] | None = None
    """Side of a cell of the network in input pixels, if not the preset's."""
    path_width: int | None = None
    """Channels of the path branch, if not the preset's."""
    path_grid: Literal[1, 2, 4] | None = None
    """Side of a cell of the path branch in input pixels, if not the preset's."""
    architecture: Architecture | None = None
    """Architecture that the paper compares with, of the same sizes; it cannot be exported."""
    settings: Annotated[tuple[str, ...], SEVERAL, Parameter(name="--set", metavar="FIELD=VALUE")] = ()
    """Other fields of the network's configuration (FMANetPPConfig): num_flows=1 guidance=sft exposure_aware=false."""

    def __post_init__(self) -> None:
        if self.extractor is not None and self.start_from is not None:
            raise ConfigError("--extractor and --start-from exclude each other; name one of them")


@dataclass(frozen=True, kw_only=True)
class DeblurringOptions(ClipOptions):
    """A training of a deblurring network of scale 1."""

    start_from: Annotated[str | None, Parameter(metavar="MODEL")] = None
    """Model, .safetensors file or checkpoint of the same sizes to begin with."""
    decibels: float | None = None
    """Minimise the logarithm of the squared error instead of l1; errors beyond this PSNR hardly count."""
    speed: tuple[float, float] | None = None
    """Draw only sequences whose median motion lies between these two, pixels per frame."""
