"""The report of a run: `render` gives one self-contained HTML file, `table` the same result table for a terminal.

Both take plain data and read no files. Every section may be missing. Captions, configuration and names are untrusted
text (page.py).
"""

import base64
import io
import json
import math
from typing import NamedTuple

import matplotlib
import numpy as np
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from raypref.page import BLUE, DASH, GREEN, GREY, INK, ORANGE, PURPLE, decimals, fill, finite, style, svg

BINS = 100  # points a curve: bounds the file size whatever the number of steps
SMALL, LARGE = 256, 512  # px: smaller images pass unchanged, larger ones are shown at LARGE


class Column(NamedTuple):
    """A metric in the result table. better: 1 higher, -1 lower, 0 unknown, so without arrow and best mark."""

    label: str
    better: int = 0
    percent: bool = False
    meaning: str = ""


COLUMNS = {
    "preference_score": Column("Preference", 1, False, "mean score by the preference scorer"),
    "win_rate_vs_base": Column("Win rate", 1, True, "share of prompts that score higher than the base model's image"),
    "second_win_rate": Column("2nd win rate", 1, True, "win rate by the second preference scorer"),
    "frechet_distance": Column("Fréchet dist.", -1, False, "distance to real images in feature space"),
    "cmmd": Column("CMMD", -1, False, "distance to real images by a kernel on unit-length features, times 1000"),
    "clip_t": Column("CLIP-T", 1, False, "cosine of image and prompt features"),
    "dino": Column("DINO", 1, False, "mean cosine of DINO features of image and reference images"),
    "clip_i": Column("CLIP-I", 1, False, "mean cosine of CLIP features of image and reference images"),
    "likeness": Column("Likeness", 1, False, "mean cosine of features of image and reference images"),
    "attribute_accuracy": Column("Attributes", 1, True, "share of prompted attributes found in the image"),
    "color_drift": Column("Colour drift", -1, False, "shift of the mean RGB, in 8-bit levels"),
    "latent_mean_drift": Column("Latent drift", -1, False, "shift of the mean of the latent channels"),
    "preference_accuracy": Column("Pair accuracy", 1, True, "share of held-out pairs whose winner the model prefers"),
}


class Series(NamedTuple):
    """One line in a plot: a column of metrics.jsonl, less another one where `minus` names it."""

    label: str
    key: str
    color: str
    minus: str = ""
    dashed: bool = False


class Plot(NamedTuple):
    title: str
    note: str
    series: tuple[Series, ...]
    line: float | None = None


PLOTS = (
    Plot(
        "Loss",
        "dotted: ln 2, the preference loss where policy and reference agree",
        (Series("loss", "loss", BLUE),),
        math.log(2),
    ),
    Plot(
        "Preference accuracy",
        "dotted: chance",
        (Series("training", "rewards/accuracies", BLUE), Series("held out", "validation/accuracy", ORANGE)),
        0.5,
    ),
    Plot(
        "Implicit rewards",
        "the margin should grow",
        (
            Series("winner", "rewards/chosen", BLUE),
            Series("loser", "rewards/rejected", ORANGE),
            Series("margin", "rewards/margins", GREEN),
        ),
        0.0,
    ),
    Plot(
        "Error against the reference",
        "below 0: denoises better than it",
        (
            Series("winner", "error/winner", BLUE, "error/winner_reference"),
            Series("loser", "error/loser", ORANGE, "error/loser_reference"),
        ),
        0.0,
    ),
    Plot(
        "Denoising error",
        "mean squared error",
        (
            Series("winner", "error/winner", BLUE),
            Series("winner, reference", "error/winner_reference", BLUE, dashed=True),
            Series("loser", "error/loser", ORANGE),
            Series("loser, reference", "error/loser_reference", ORANGE, dashed=True),
        ),
    ),
    Plot(
        "Validation",
        "likeness and text, and their lambda-harmonic reward, which chooses the checkpoint",
        (
            Series("image similarity", "validation/s_img", BLUE),
            Series("text similarity", "validation/s_txt", ORANGE),
            Series("reward", "validation/reward", GREEN),
        ),
    ),
    Plot(
        "Reward by lambda_val",
        "each has its own best checkpoint",
        tuple(
            Series(f"{n / 10:g}", f"validation/reward_{n / 10:g}", matplotlib.colors.to_hex(color))
            for n, color in zip(range(1, 10), matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 9)), strict=True)
        ),
    ),
    Plot("Latent mean drift", "held down by the statistics loss", (Series("drift", "stat_drift", PURPLE),)),
    Plot("Gradient norm", "before clipping", (Series("norm", "grad_norm", GREY),)),
    Plot("Learning rate", "", (Series("learning rate", "lr", GREY),)),
    Plot("Throughput", "pairs a second", (Series("pairs/s", "pairs_per_s", GREY),)),
    Plot("Device memory", "MB", (Series("memory", "memory_mb", GREY),)),
)


def render(data: dict) -> str:
    """The HTML page of a run; the keys of `data` are the sections of report.html.j2, each optional."""
    tasks = data.get("tasks") or []
    config = data.get("config")
    stages = data.get("stages") or []
    derived = {
        "results": _results(stages),
        "described": _described(stages, data.get("real")),
        "plots": _plots(data.get("curves") or {}),
        "task_seconds": sum(task.get("seconds") or 0 for task in tasks),
        "longest_task": max((task.get("seconds") or 0 for task in tasks), default=0),
        # Through JSON, because YAML has no words for paths and enumerations
        "config_yaml": config
        and yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True),
    }
    optional = {key: data.get(key) or {} for key in ("versions", "grids", "pairs", "curves")}
    return fill("report.html.j2", data | optional | derived, picture, gap_plot)


def table(stages: list) -> str:
    """The result table as aligned text; `*` marks the best stage of a column."""
    results = _results(stages)
    if not results:
        return "no results"
    heads = ["stage"] + [f"{c['label']} {c['arrow']}".strip() for c in results["columns"]]
    rows = [[r["name"]] + [c["text"] + (" *" if c["best"] else "  ") for c in r["cells"]] for r in results["rows"]]
    heads[1:] = [head + "  " for head in heads[1:]]  # above the figures, not above the mark
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def _results(stages: list) -> dict:
    """{"columns": [{label, arrow, meaning}], "rows": [{name, cells: [{text, delta, good, best, interval}]}]}."""
    present = dict.fromkeys(name for stage in stages for name, value in stage["metrics"].items() if finite(value))
    present = [name for name in present if "/" not in name]  # those that describe have tables of their own
    names = [name for name in COLUMNS if name in present] + [name for name in present if name not in COLUMNS]
    if not names:
        return {}
    columns = {name: COLUMNS.get(name, Column(name.replace("_", " "))) for name in names}
    cells = [_cells(name, column, stages) for name, column in columns.items()]
    arrows = {1: "↑", -1: "↓", 0: ""}
    return {
        "columns": [{"label": c.label, "arrow": arrows[c.better], "meaning": c.meaning} for c in columns.values()],
        "intervals": any(stage.get("intervals") for stage in stages),
        "rows": [{"name": s["name"], "cells": row} for s, row in zip(stages, zip(*cells, strict=True), strict=True)],
    }


def _described(stages: list, real: dict | None) -> dict[str, dict]:
    """As `_results`, of each scorer whose columns describe images; the held-out real ones are the last row."""
    rows = [*stages, *([{"name": "real", "metrics": real}] if real else [])]
    scorers = dict.fromkeys(name.partition("/")[0] for row in stages for name in row["metrics"] if "/" in name)
    return {
        scorer: _results(
            [
                {
                    "name": row["name"],
                    "metrics": {
                        name.removeprefix(f"{scorer}/"): value
                        for name, value in row["metrics"].items()
                        if name.startswith(f"{scorer}/")
                    },
                }
                for row in rows
            ]
        )
        for scorer in scorers
    }


def _cells(name: str, column: Column, stages: list) -> list[dict]:
    """One column of the result table. Decimals are common to the column, so that its figures compare at a glance."""
    scale = 100 if column.percent else 1
    raw = [stage["metrics"].get(name) for stage in stages]
    values = [value * scale if finite(value) else None for value in raw]
    known = [value for value in values if value is not None]
    digits = 1 if column.percent else decimals(known)
    base = next((v for s, v in zip(stages, values, strict=True) if s["name"] == "base"), None)
    best = max(known, key=lambda value: value * column.better) if column.better and len(set(known)) > 1 else None
    cells = []
    for stage, value in zip(stages, values, strict=True):
        delta = None if value is None or base is None or stage["name"] == "base" else value - base
        interval = (stage.get("intervals") or {}).get(name)
        cells.append(
            {
                "text": DASH if value is None else f"{value:.{digits}f}" + (" %" if column.percent else ""),
                "delta": "" if delta is None else f"{delta:+.{digits}f}".replace("-", "−"),
                "good": (delta or 0) * column.better,
                "best": value is not None and value == best,
                "interval": interval and " … ".join(f"{end * scale:.{digits}f}" for end in interval if finite(end)),
            }
        )
    return cells


def picture(image: bytes | None, alt: str = "") -> Markup:
    """An <img> with its bytes inside; a dash if there are none or they cannot be read, since a report must not fail."""
    try:
        with Image.open(io.BytesIO(image or b"")) as opened:
            kind, (width, height) = opened.format.lower(), opened.size
            if max(width, height) > SMALL:
                opened.thumbnail((LARGE, LARGE))
                buffer = io.BytesIO()
                opened.convert("RGB").save(buffer, "WEBP", quality=85)
                image, kind, (width, height) = buffer.getvalue(), "webp", opened.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return Markup('<span class="none">{}</span>').format(DASH)
    source = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    tag = '<img class="{}" width="{}" height="{}" alt="{}" src="{}">'
    return Markup(tag).format("pixel" if max(width, height) <= 128 else "", width, height, alt, source)


def _plots(curves: dict[str, list[dict]]) -> list[dict]:
    """[{title, note, legend, svg}]: one small-multiples figure a metric group, one panel a stage with its own steps."""
    drawn = []
    for plot in PLOTS:
        panels = {
            stage: lines
            for stage, rows in curves.items()
            if (lines := [(s, *points) for s in plot.series if len((points := _points(rows, s))[0])])
        }
        if panels:
            shown = {series.label for lines in panels.values() for series, *_ in lines}
            legend = [s for s in plot.series if s.label in shown] if len(plot.series) > 1 else []
            drawn.append({"title": plot.title, "note": plot.note, "legend": legend, "svg": _curve_svg(plot, panels)})
    return drawn


def _points(rows: list[dict], series: Series) -> tuple[np.ndarray, np.ndarray]:
    keys = ["step", series.key] + ([series.minus] if series.minus else [])
    found = np.array([[row[k] for k in keys] for row in rows if all(finite(row.get(k)) for k in keys)], dtype=float)
    found = found.reshape(-1, len(keys))
    return found[:, 0], found[:, 1] - (found[:, 2] if series.minus else 0)


def _curve_svg(plot: Plot, panels: dict[str, list]) -> Markup:
    """Each line is the mean of up to BINS bins, within the band of their extremes so that spikes stay visible."""
    with style():
        figure = Figure(figsize=(5.6, 2.4), layout="constrained")
        figure.get_layout_engine().set(wspace=0.08, w_pad=0.01, h_pad=0.02)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (stage, lines) in zip(axes, panels.items(), strict=True):
            for series, steps, values in lines:
                chunks = min(BINS, len(steps))
                x = [part.mean() for part in np.array_split(steps, chunks)]
                y = [(part.mean(), part.min(), part.max()) for part in np.array_split(values, chunks)]
                mean, low, high = np.array(y).T
                marker = "o" if chunks < 12 else ""
                ax.plot(x, mean, marker + ("--" if series.dashed else "-"), color=series.color, lw=1.3, ms=2.5)
                if chunks < len(steps):
                    ax.fill_between(x, low, high, color=series.color, alpha=0.15, lw=0)
            if plot.line is not None:
                ax.axhline(plot.line, color=INK, lw=0.8, ls=":", alpha=0.6)
            ax.set_title(stage, parse_math=False)
            ax.xaxis.set_major_locator(MaxNLocator(max(1, 6 // len(panels)), integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(5))
        return svg(figure, plot.title)


def gap_plot(gaps: dict | None) -> Markup | str:
    """The histogram of a pair set's score gaps; empty text if there is none."""
    if not gaps or not sum(gaps["counts"]):
        return ""
    with style():
        figure = Figure(figsize=(4.2, 1.7), layout="constrained")
        ax = figure.subplots()
        ax.stairs(gaps["counts"], gaps["edges"], fill=True, color=BLUE, alpha=0.75)
        ax.set_xlabel("score of the winner less the loser's")
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return svg(figure, "Score gaps")
