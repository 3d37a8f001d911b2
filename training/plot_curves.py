"""Draw the losses of a training, of several runs one after the other, as an SVG for a model's card.

    python -m training.plot_curves runs/first runs/second --out models/fmanetpp_x4_fast.svg

What TensorBoard shows, for those who have no run at hand: every loss by itself, in grey as recorded (means of 100
steps, of clips drawn at random), in black the mean of the last `SMOOTHED` points. A vertical line begins a run.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.options import command
from vsfmanet.errors import SourceError

SMOOTHED = 10
"""Points that a black one is the mean of; fewer at the start of a run."""
NOT_LOSSES = {"norm", "learning_rate"}

type Curves = dict[str, NDArray[np.float64]]
"""Name of each loss to its steps and values, (2, N)."""


def plot(runs: tuple[Path, ...], /, *, out: Path) -> None:
    """Read and draw.

    Args:
        runs: Folders that trainings wrote to (their --out), in order.
        out: SVG file to write.
    """
    figure = draw([read_curves(run) for run in runs])
    out.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vsfmanet"}):  # small, and the same every time
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})


def read_curves(run: Path) -> Curves:
    """Read the curves of a run; steps that were repeated after a stop count once.

    Raises:
        SourceError: Nothing is recorded there.
    """
    events = EventAccumulator(str(run))
    if any(run.glob("events.*")):
        events.Reload()
    names = [name for name in events.Tags()["scalars"] if name not in NOT_LOSSES]
    if not names:
        raise SourceError(f"a folder with the curves of a training is needed, got {run}; name its --out")
    return {name: np.array([(event.step, event.value) for event in events.Scalars(name)]).T for name in names}


def draw(runs: list[Curves]) -> Figure:
    """Draw the losses of runs, one panel for each, the steps of a run counted on from the run before."""
    names = list(dict.fromkeys(name for curves in runs for name in curves))
    figure = Figure(figsize=(4 * len(names), 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        begun = 0.0
        for curves in runs:
            if begun:
                axes.axvline(begun, color="tab:blue", linewidth=0.8)
            if name in curves:
                steps, values = curves[name]
                axes.plot(begun + steps, values, color="0.75", linewidth=0.8)
                axes.plot(begun + steps, smoothed(values), color="black", linewidth=1.2)
            begun += max(steps[-1] for steps, _ in curves.values())
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("steps", fontsize=9)
        axes.grid(alpha=0.3)
    return figure


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value (N,) and those before it, `SMOOTHED` at most."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTHED)
    return (sums[ends] - sums[starts]) / (ends - starts)


main = command(plot, __doc__)

if __name__ == "__main__":
    main()
