"""The evaluation as one HTML file that needs nothing else: tables, plots, side-by-side pictures."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.data.benchmark import Benchmark
from training.metrics.scoring import BASELINES, METRICS, TRANSITIONS, Score

CROP = 144
"""Side of the pictures, HR pixels; shown at twice the size."""

PICTURED = ("5_1", "5_5")
"""Conditions that are pictured, where the benchmark has them; else its first."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0 0 1.5em } caption { text-align: left; font-weight: 600; padding: .3em 0 }
th, td { border-bottom: 1px solid #ddd; padding: .2em .7em; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: 0 .6em .8em 0 } figcaption { font-size: 13px; color: #555 }
img { image-rendering: pixelated; display: block } svg { max-width: 100%; height: auto } code { font-size: 13px }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table, for the terminal and for the page."""

    title: str
    """What it shows."""
    header: list[str]
    """Names of the columns."""
    rows: list[list[str]]
    """Cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """The same part of a frame, by one method."""

    scene: str
    """Name of the scene."""
    condition: str
    """Exposure."""
    method: str
    """Who made it; "truth" is the sharp frame."""
    pixels: NDArray[np.uint8]
    """(3, CROP, CROP) or smaller, RGB."""


def score_tables(scores: list[Score]) -> list[TextTable]:
    """Put scores into a table a metric, methods by conditions: means over scenes; gains of PSNR below."""
    methods = list(dict.fromkeys(score.method for score in scores))
    conditions = list(dict.fromkeys(score.condition for score in scores))
    titles = [shown(name) for name in conditions]
    tables = []
    for metric, title in METRICS.items():
        digits = 4 if metric == "ssim" else 3
        rows, means = [], {}
        for method in methods:
            own = [score for score in scores if score.method == method]
            means[method] = [mean(getattr(s, metric) for s in own if s.condition == name) for name in conditions]
            cells = [f"{value:.{digits}f}" for value in means[method]]
            rows.append([method, *cells, f"{median(score.seconds for score in own):.3f}"])
        if metric == "psnr":
            for method in methods:
                if method not in BASELINES:
                    gains = [a - b for a, b in zip(means[method], means[methods[0]], strict=True)]
                    rows.append([f"{method} over {methods[0]}", *(f"{gain:+.3f}" for gain in gains), ""])
        tables.append(TextTable(title=title, header=["method", *titles, "s/frame"], rows=rows))
    return tables


def frame_means(scores: list[Score]) -> list[str]:
    """State PSNR and SSIM as means over all frames, where clips differ in length: FMA-Net's figures of GoPro are such.

    The tables hold means over the clips, each of which counts alike.
    """
    lines = []
    for method, condition in dict.fromkeys((score.method, score.condition) for score in scores):
        own = [score for score in scores if (score.method, score.condition) == (method, condition)]
        frames = [score.frames for score in own]
        if condition != TRANSITIONS and len(set(frames)) > 1:
            psnr, ssim = (np.average([getattr(s, name) for s in own], weights=frames) for name in ("psnr", "ssim"))
            lines.append(
                f"{method}, {shown(condition)}, mean over {sum(frames)} frames: {psnr:.3f} dB, SSIM {ssim:.4f}"
            )
    return lines


def shown(condition: str) -> str:
    """Name of a condition for a reader: 5_1 is 5:1, re is RE."""
    return {"re": "RE", TRANSITIONS: "RE changes"}.get(condition, condition.replace("_", ":"))


def crops(method: str, scene: str, outputs: dict[str, NDArray[np.uint8]], truth: NDArray[np.uint8]) -> list[Picture]:
    """Cut the most detailed square out of the middle frame of every pictured condition.

    Args:
        method: Who restored.
        scene: What.
        outputs: Restored clips (T, 3, H, W), by condition.
        truth: (T, 3, H, W), the sharp clip.
    """
    middle = len(truth) // 2
    top, left = detailed_square(truth[middle], CROP)
    part = (slice(None), slice(top, top + CROP), slice(left, left + CROP))
    conditions = [condition for condition in PICTURED if condition in outputs] or list(outputs)[:1]
    return [
        Picture(scene=scene, condition=condition, method=name, pixels=clip[middle][part])
        for condition in conditions
        for name, clip in ((method, outputs[condition]), ("truth", truth))
    ]


def detailed_square(frame: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels of a frame (3, H, W) with the largest mean gradient."""
    grey = frame.mean(axis=0, dtype=np.float32)
    detail = np.abs(cv2.Sobel(grey, -1, 1, 0)) + np.abs(cv2.Sobel(grey, -1, 0, 1))
    height, width = (min(side, size) for size in detail.shape)
    total = cv2.integral(detail)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


def page(
    benchmark: Benchmark, scores: list[Score], tables: Sequence[TextTable], pictures: list[Picture], notes: list[str]
) -> str:
    """Write the whole page.

    Args:
        benchmark: What was scored on.
        scores: Of every method and clip.
        tables: To show, in order.
        pictures: To show side by side; the truth may be there more than once.
        notes: Lines of plain text; the last is the command.
    """
    about = f"{len(benchmark.scenes)} scenes of {benchmark.frames} frames, "
    about += f"{benchmark.width} x {benchmark.height}, scale {benchmark.scale}"
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title>", f"<style>{STYLE}</style>"]
    parts += ["<h1>Evaluation</h1>", f"<p>{about}</p>", *(f"<p>{html.escape(note)}</p>" for note in notes[:-1])]
    parts += [f"<p><code>{html.escape(notes[-1])}</code></p>", "<h2>By exposure</h2>", level_plots(scores)]
    parts += ["<h2>By scene, at the longest exposure</h2>", scene_plot(scores)]
    parts += ["<h2>Tables</h2>", *(_table(table) for table in tables), "<h2>Pictures</h2>"]
    places = list(dict.fromkeys((picture.scene, picture.condition) for picture in pictures))
    for scene, condition in places:
        parts.append(f"<h3>{html.escape(scene)}, {shown(condition)}</h3>")
        own = {
            picture.method: picture for picture in pictures if (picture.scene, picture.condition) == (scene, condition)
        }
        ordered = [name for name in own if name != "truth"] + ["truth"]
        parts += [_figure(own[name], _psnr(scores, scene, condition, name)) for name in ordered]
    return "\n".join(parts) + "\n"


def level_plots(scores: list[Score]) -> str:
    """Plot every metric over the conditions, one line a method; SVG."""
    conditions = list(dict.fromkeys(score.condition for score in scores))
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, METRICS.items(), strict=True):
        for method in dict.fromkeys(score.method for score in scores):
            own = [score for score in scores if score.method == method]
            values = [mean(getattr(s, metric) for s in own if s.condition == name) for name in conditions]
            style = "--" if method in BASELINES else "-"
            axes.plot([shown(name) for name in conditions], values, style, marker="o", markersize=4, label=method)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return _svg(figure)


def scene_plot(scores: list[Score]) -> str:
    """Plot the PSNR of every scene at the longest constant exposure, one bar a method; SVG."""
    constant = [score for score in scores if score.condition not in ("re", TRANSITIONS)] or scores
    longest = [score for score in constant if score.condition == constant[-1].condition]
    scenes, methods = (list(dict.fromkeys(getattr(s, name) for s in longest)) for name in ("scene", "method"))
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        values = [_psnr(longest, scene, longest[0].condition, method) for scene in scenes]
        axes.bar(np.arange(len(scenes)) + number * width - 0.4 + width / 2, values, width, label=method)
    axes.set_xticks(range(len(scenes)), scenes, rotation=15, fontsize=8)
    axes.set_ylim(bottom=max(0.0, min(score.psnr for score in longest) - 2))
    axes.set_title(f"PSNR (dB) at {shown(longest[0].condition)}", fontsize=10)
    axes.legend(fontsize=8)
    return _svg(figure)


def _psnr(scores: list[Score], scene: str, condition: str, method: str) -> float:
    """PSNR of one clip; NaN for what was not scored."""
    wanted = (scene, condition, method)
    return next((s.psnr for s in scores if (s.scene, s.condition, s.method) == wanted), float("nan"))


def _svg(figure: Figure) -> str:
    """Figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _table(table: TextTable) -> str:
    """Table as HTML."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><caption>{html.escape(table.title)}</caption><tr>{head}</tr>{rows}</table>"


def _figure(picture: Picture, psnr: float) -> str:
    """Picture as HTML, the PNG inside, with the PSNR of its clip."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(picture.pixels[::-1].transpose(1, 2, 0)))
    source = base64.b64encode(data.tobytes()).decode()
    width = 2 * picture.pixels.shape[-1]
    name = html.escape(picture.method) + ("" if np.isnan(psnr) else f", {psnr:.2f} dB")
    image = f'<img width={width} src="data:image/png;base64,{source}" alt="{name}">'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"
