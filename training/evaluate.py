"""Score networks and plain resizing on a benchmark built by `training.build_benchmark` or `training.prepare_*`.

    python -m training.evaluate BENCHMARK --model NAME_OR_PATH --exposure given --json scores.json --report report.html
    python -m training.evaluate BENCHMARK --model runs/fast/latest.pt --guidance
    python -m training.evaluate BENCHMARK --model NAME_OR_PATH --csv frames.csv

PSNR, SSIM, tOF and OPW for every exposure level, for changing exposure (RE), and for the frames of RE at which the
exposure changes. Tables hold means over the frames of a clip, then over clips. `--csv` writes PSNR and SSIM of every
frame, for means of other kinds: FMA-Net's, over all frames, are printed where clips differ in length; MMP-RNN's leave
out the two frames at each end of a clip. `--guidance` repeats the paper's own tests of exposure awareness (Tables 6 and
7, Fig. 7b).
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal, cast

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from training.data.benchmark import load_benchmark, load_clip
from training.evaluation import guidance, report
from training.evaluation.cost import cost_note
from training.evaluation.methods import baselines, load_networks, run_network, score_scene
from training.metrics.frames import opw_by_pair
from training.metrics.scoring import FrameScore, load_truth
from training.options import command
from vsfmanet.errors import ConfigError
from vsfmanet.networks.fmanetpp import FMANetPP


def evaluate(
    benchmark: Path,
    /,
    *,
    model: tuple[str, ...] = (),
    exposure: Literal["auto", "given"] = "auto",
    guided: Annotated[bool, Parameter(name="--guidance")] = False,
    device: str = "cpu",
    scores_file: Annotated[Path | None, Parameter(name="--json")] = None,
    frames_file: Annotated[Path | None, Parameter(name="--csv")] = None,
    page: Annotated[Path | None, Parameter(name="--report")] = None,
) -> None:
    """Score every method on every clip, print one table a metric, and write scores and report if they are named.

    Args:
        benchmark: Folder that training.build_benchmark or training.prepare_* wrote.
        model: Name, weights file or checkpoint; may be repeated.
        exposure: Let the network estimate the exposure, or give it the true one.
        guided: Restore under right and wrong exposures too (slow).
        device: cpu or cuda.
        scores_file: JSON file for the score of every clip; that of --guidance goes beside it.
        frames_file: CSV file for PSNR and SSIM of every frame.
        page: HTML file for tables, plots and pictures.
    """
    record = load_benchmark(benchmark)
    networks = load_networks(model, record.scale, device)
    fmanets = {name: cast(FMANetPP, network) for name, network in networks.items() if network.kind == FMANetPP.kind}
    if guided and len(fmanets) < len(networks):
        others = ", ".join(name for name in networks if name not in fmanets)
        raise ConfigError(f"--guidance is for FMA-Net++ alone, got {others}; leave one of them out")
    methods = baselines(record.scale) | {
        name: partial(run_network, network=network, give_exposure=exposure == "given")
        for name, network in networks.items()
    }
    scores, frames, pictures, floor = [], [], [], []
    for scene in record.scenes:
        folder = benchmark / scene.name
        truth = load_truth(folder)
        floor.append(mean(opw_by_pair(truth.frames, truth.frames, truth.flow, truth.visible)))
        for name, restore in methods.items():
            by_clip, by_frame, outputs = score_scene(name, restore, scene, folder, truth)
            scores += by_clip
            frames += by_frame
            if page:
                pictures += report.crops(name, scene.name, outputs, truth.frames)
            print(f"{scene.name}: {name} done", flush=True)
    kind = "exact flow of the scenes" if truth.exact else "Farneback flow on truth"
    notes = [f"OPW by the {kind}; of truth itself {mean(floor):.3f}.", *report.frame_means(scores)]
    example = record.scenes[0]
    clip = torch.from_numpy(load_clip(benchmark / example.name / next(reversed(example.exposure))))[None] / 255
    notes += [cost_note(name, network, clip) for name, network in networks.items()]
    if scores_file:
        scores_file.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    if frames_file:
        write_frames(frames, frames_file)
    tested = guidance.run(fmanets, record, benchmark) if guided else []
    if scores_file and tested:
        rows = [asdict(test) for test in tested]
        scores_file.with_suffix(".guidance.json").write_text(json.dumps(rows, indent=1) + "\n")
    notes += [line for test in tested for line in test.verdicts()]
    tables = [*report.score_tables(scores), *(table for test in tested for table in test.tables())]
    print_tables(tables)
    print("\n".join(notes))
    if page:
        line = "python -m training.evaluate " + " ".join(sys.argv[1:])
        page.write_text(report.page(record, scores, tables, pictures, [*notes, line]), encoding="utf-8")
        print(f"report: {page}")


def write_frames(frames: Sequence[FrameScore], path: Path) -> None:
    """Write the scores of frames as CSV with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(FrameScore)])
        rows.writeheader()
        rows.writerows(asdict(frame) for frame in frames)


def print_tables(tables: Sequence[report.TextTable]) -> None:
    """Print tables to the terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    for table in tables:
        printed = Table(*table.header, title=table.title)
        for row in table.rows:
            printed.add_row(*row)
        console.print(printed)


main = command(evaluate, __doc__)

if __name__ == "__main__":
    main()
