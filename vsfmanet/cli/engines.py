"""`vsfmanet engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from vsfmanet.cli.options import one_word, read_tile
from vsfmanet.cli.terminal import tell
from vsfmanet.errors import ConfigError
from vsfmanet.settings import DEFAULT_MODEL, Precision

if TYPE_CHECKING:
    from vsfmanet.networks.description import LevelNetwork, SequenceNetwork

BUILD_NOTES = """\
A job with `--backend tensorrt` builds what it needs by itself; this command does it before, on any machine. Engines are
kept in the user's cache folder, and are used for the same weights, size, precision and versions. For another machine,
copy the folder `vsfmanet/engines` of the cache as a whole: the key in it proves that the engines are yours.

Example:

    vsfmanet engines build --size 640x360 --arch sm_89
"""

app = App(name="engines")


@app.command(help_epilogue=BUILD_NOTES)
def build(
    *,
    size: Annotated[tuple[int, int], one_word(read_tile, "WxH")],
    arch: Annotated[str, Parameter(metavar="sm_NN")],
    model: str = DEFAULT_MODEL,
    precision: Precision = "auto",
) -> int:
    """Build TensorRT-RTX engines for a GPU that need not be here.

    Args:
        size: Width and height of the frames, pixels.
        arch: Architecture of the GPU: sm_75 for GeForce RTX 20, sm_86 for 30, sm_89 for 40, sm_120 for 50.
        model: A name from `vsfmanet models`, or the path of a .safetensors file.
        precision: Data type of the network's features. "auto" is bf16, for sm_75 fp16.
    """
    from torch import device

    from vsfmanet.caches import cache_folder
    from vsfmanet.devices import PRECISIONS
    from vsfmanet.engines.cache import EngineCache
    from vsfmanet.engines.tensorrt import build_ahead, find_library
    from vsfmanet.weights import load_model

    find_library(arch, ahead=True)
    named = ("fp16" if arch == "sm_75" else "bf16") if precision == "auto" else precision
    loaded = load_model(model)
    network: LevelNetwork = loaded.network.streamed(levels=lambda network: network, windows=_refuse)
    network.place(device("cpu"), PRECISIONS[named])
    width, height = size
    cache = EngineCache(cache_folder("engines"))
    for built in build_ahead(
        network, weights_sha256=loaded.sha256, cache=cache, height=height, width=width, architecture=arch
    ):
        tell(f"{built.part}: " + (f"built in {built.seconds:.1f} s" if built.seconds else "in the cache already"))
    tell(f"{loaded.name} is ready for {width}x{height} in {named} on {arch}")
    return 0


def _refuse(network: SequenceNetwork) -> LevelNetwork:
    raise ConfigError(f"engines are for FMA-Net++, got a model of kind {network.kind!r}; choose another model")
