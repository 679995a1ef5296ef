"""The result page of a sweep over hyper-parameters: `render` turns plain data into one self-contained HTML file.

The data is what JSON can hold. A trial is one run with its own parameters; a candidate is one checkpoint of a finished
trial, which has several where its validations choose by several lambda_val. Names and errors are untrusted text
(page.py).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from raypref import coordinates, pareto
from raypref.page import BLUE, GREY, INK, ORANGE, PURPLE, cut, decimals, fill, finite, style, svg

SCALE = (BLUE, PURPLE, ORANGE)  # lines of finished trials, from the worst to the best first metric
COLORS = LinearSegmentedColormap.from_list("trials", SCALE)
DASHES = {"finished": "-", "stopped": "--", "failed": ":"}
FEW, SOME = 12, 40  # candidates in a plot up to which all are labelled: with their trials, with lambda_val alone
CORNERS = [(5, 4, "left", "bottom"), (5, -4, "left", "top"), (-5, 4, "right", "bottom"), (-5, -4, "right", "top")]


def render(data: dict) -> str:
    """The HTML page; every key of `data` may be missing or None.

    title, recipe, command, created, seconds
    space: {path: text}; rule: how the best was chosen; best_yaml: where its overlay is ("best.yaml")
    objective: [{metric, mode: "min" or "max", meaning}]
    trials: [{trial, state: "finished", "stopped" or "failed", parameters: {path: value}, metrics: {metric: value},
              rungs, seconds, error, run_dir}]
    points: the candidates, [{trial, lambda_val, step, values: {metric: value}, front, best}]
    curves: {trial: [{rung, metric: value, ...}]}
    """
    optional = {"space": {}, "objective": [], "trials": [], "points": [], "curves": {}}
    data = data | {key: data.get(key) or empty for key, empty in optional.items()}
    objective, points = data["objective"], data["points"]
    best = next((point for point in points if point.get("best")), {})
    trials = _ordered(data["trials"], objective, best)
    paths = list(dict.fromkeys([*data["space"], *(path for t in trials for path in _parameters(t))]))
    names = dict(zip(paths, suffixes(paths), strict=True))
    parameters = [
        coordinates.axis(name, [_parameters(t).get(path, math.nan) for t in trials]) for path, name in names.items()
    ]
    results = [_metric_axis(o, trials) for o in objective]
    looks = _looks(trials, results[0].heights if results else [], best)
    derived = {
        "best": best,
        "best_trial": next((t for t in trials if t["trial"] == best.get("trial")), {}),
        "front": sorted((p for p in points if p.get("front")), key=lambda p: _rank(p["values"], objective)),
        "trials": trials,
        "counts": {state: n for state in DASHES if (n := sum(t["state"] == state for t in trials))},
        "names": names,
        "digits": _digits(objective, [_metrics(t) for t in trials] + [p["values"] for p in points]),
        "heads": {o["metric"]: head(o) for o in objective},
        "lines": _lines(parameters + results, looks),
        "choices": _choices(points, objective),
        "learning": _learning(data["curves"], objective, looks),
        "colors": {"scale": ", ".join(SCALE), "grey": GREY, "front": BLUE, "best": ORANGE},
    }
    return fill("sweep.html.j2", data | derived, coordinates.shown, lambdas)


def suffixes(paths: Sequence[str]) -> list[str]:
    """Each dotted path by the fewest of its last parts in which no other path ends."""
    split = [path.split(".") for path in paths]
    shortest = []
    for parts in split:
        alone = (n for n in range(1, len(parts)) if sum(other[-n:] == parts[-n:] for other in split) == 1)
        shortest.append(".".join(parts[-next(alone, len(parts)) :]))
    return shortest


def head(objective: dict) -> str:
    """A metric's name with an arrow to its better values."""
    return f"{objective['metric']} {'↓' if objective['mode'] == 'min' else '↑'}"


def _parameters(trial: dict) -> dict:
    return trial.get("parameters") or {}


def _metrics(trial: dict) -> dict:
    return trial.get("metrics") or {}


def _digits(objective: list[dict], found: list[dict]) -> dict[str, int]:
    """Metrics, those of the objective first, with the decimals that their figures have."""
    names = dict.fromkeys([o["metric"] for o in objective])
    names |= dict.fromkeys(name for values in found for name, value in values.items() if finite(value))
    return {name: decimals([v for values in found if finite(v := values.get(name))]) for name in names}


def _rank(values: dict, objective: list[dict]) -> list[float]:
    """A sort key: the best first metric first, missing values last."""
    found = [(values.get(o["metric"]), pareto.SIGN[o["mode"]]) for o in objective]
    return [-value * sign if finite(value) else math.inf for value, sign in found]


def _ordered(trials: list[dict], objective: list[dict], best: dict) -> list[dict]:
    """The best trial, then the finished, stopped and failed ones, each from the best first metric down."""
    order = {state: i for i, state in enumerate(DASHES)}

    def key(trial: dict) -> tuple:
        state = order.get(trial["state"], len(order))
        return trial["trial"] != best.get("trial"), state, _rank(_metrics(trial), objective)

    return sorted(trials, key=key)


def _metric_axis(objective: dict, trials: list[dict]) -> coordinates.Axis:
    values = [_metrics(t).get(objective["metric"]) for t in trials]
    values = [value if finite(value) else math.nan for value in values]
    return coordinates.numeric(head(objective), values, down=objective["mode"] == "min", log_from=math.inf)


def _looks(trials: list[dict], heights: list[float], best: dict) -> dict[str, dict]:
    """How the line of each trial is drawn; heights: those of the first metric."""
    looks = {}
    for trial, height in zip(trials, heights or [math.nan] * len(trials), strict=True):
        look = {"color": GREY, "ls": DASHES.get(trial["state"], ":"), "lw": 1.1, "alpha": 0.8, "zorder": 2}
        if trial["state"] == "finished" and finite(height):
            look |= {"color": to_hex(COLORS(height)), "lw": 1.4, "zorder": 3 + height}
        if trial["trial"] == best.get("trial"):
            look |= {"lw": 3.6, "alpha": 1, "zorder": 5}
        looks[trial["trial"]] = look
    return looks


def _lines(axes: list[coordinates.Axis], looks: dict[str, dict]) -> dict | None:
    """Parallel coordinates as {svg, least, most: px of width}; None where fewer than two axes have a value."""
    axes = [axis for axis in axes if axis.ticks]
    if len(axes) < 2:
        return None
    width, height = max(5.6, min(13, 1.8 * len(axes)), 1.3 * len(axes)), 3.9
    titles = [_wrapped(axis.title) for axis in axes]
    # Inches around the lines: for the ticks of the first axis, half the last title, and the lines of the titles
    left, right = max(0.7, 0.2 + 0.07 * max(len(label) for _, label in axes[0].ticks)), 0.7
    top, bottom = 0.15 + 0.17 * max(title.count("\n") + 1 for title in titles), 0.15
    across, along = width - left - right, height - top - bottom
    with style():
        figure = Figure(figsize=(width, height))
        ax = figure.add_axes((left / width, bottom / height, across / width, along / height))
        ax.set_axis_off()
        ax.set(xlim=(0, len(axes) - 1), ylim=(0, 1))
        for look, heights in zip(looks.values(), zip(*(axis.heights for axis in axes), strict=True), strict=True):
            ax.plot(heights, marker=".", ms=3, clip_on=False, **look)
        for x, (axis, title) in enumerate(zip(axes, titles, strict=True)):
            ax.text(x, 1.04, title, ha="center", va="bottom", parse_math=False)
            _upright(ax, x, axis.ticks, tick=0.06 * (len(axes) - 1) / across)
        # Its text is readable between these widths; a narrower screen scrolls
        least, most = round(width * 66) if width > 7 else 0, round(width * 100)
        return {"svg": svg(figure, "Parallel coordinates"), "least": least, "most": most}


def _upright(ax: Axes, x: float, ticks: list[tuple[float, str]], tick: float) -> None:
    line = {"color": INK, "lw": 0.8, "alpha": 0.5, "zorder": 6, "clip_on": False}
    ax.vlines(x, 0, 1, **line)
    ax.hlines([y for y, _ in ticks], x - tick, x, **line)
    for y, label in ticks:
        ax.text(x - tick, y, f"{label} ", ha="right", va="center", size=8.5, parse_math=False, zorder=7)


def _choices(points: list[dict], objective: list[dict]) -> list[dict]:
    """[{title, svg}]: the candidates by each pair of metrics; by trial where there is one metric alone."""
    if len(objective) == 1:
        plots = {head(objective[0]): _dots(points, objective[0])}
    else:
        plots = {f"{head(a)} and {head(b)}": _trade_off(points, a, b) for a, b in combinations(objective, 2)}
    return [{"title": title, "svg": plot} for title, plot in plots.items() if plot]


def _trade_off(points: list[dict], first: dict, second: dict) -> Markup | None:
    points = _complete(points, first, second)
    if not points:
        return None
    with style():
        figure, ax = _panel(3.8)
        places = np.array([[p["values"][first["metric"]], p["values"][second["metric"]]] for p in points])
        on_front = places[[bool(p.get("front")) for p in points]]
        # Of three metrics the front is no line in two of them: its stairs join the points that lead in these two
        stairs = on_front[pareto.front(on_front, [first["mode"], second["mode"]])]
        ax.plot(*stairs.T, color=BLUE, lw=1.3, alpha=0.7, drawstyle="steps-post")
        _markers(ax, places, points)
        ax.margins(0.12)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _name(ax.xaxis, first)
        _name(ax.yaxis, second)
        _label(ax, places, _texts(points, with_trial=True))
        return svg(figure, f"{first['metric']} and {second['metric']}")


def _dots(points: list[dict], objective: dict) -> Markup | None:
    """A row a trial, the best on top."""
    points = _complete(points, objective)
    if not points:
        return None
    rows = list(dict.fromkeys(p["trial"] for p in sorted(points, key=lambda p: _rank(p["values"], [objective]))))
    with style():
        figure, ax = _panel(0.9 + 0.2 * len(rows))
        places = np.array([[p["values"][objective["metric"]], rows.index(p["trial"])] for p in points])
        _markers(ax, places, points)
        ax.margins(x=0.08)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [cut(name, 24) for name in rows], parse_math=False, size=8.5)
        _name(ax.xaxis, objective)
        _label(ax, places, _texts(points, with_trial=False))
        return svg(figure, objective["metric"])


def _learning(curves: dict[str, list[dict]], objective: list[dict], looks: dict[str, dict]) -> list[dict]:
    """[{title, svg}]: one a metric, in it a line a trial."""
    drawn = []
    for o in objective:
        with style():
            figure, ax = _panel(2.7)
            for trial, look in looks.items():
                rows = [(row.get("rung"), row.get(o["metric"])) for row in curves.get(trial) or []]
                rows = [row for row in rows if all(map(finite, row))]
                if rows:
                    ax.plot(*zip(*rows, strict=True), marker=".", ms=4, **look)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(5))
            ax.set_xlabel("rung")
            if ax.lines:
                drawn.append({"title": head(o), "svg": svg(figure, f"{o['metric']} over rungs")})
    return drawn


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    ax = figure.subplots()
    ax.ticklabel_format(useOffset=False)
    return figure, ax


def _complete(points: list[dict], *objective: dict) -> list[dict]:
    """The candidates that have these metrics, in the order in which they get labels: the best, the front, others."""
    found = [p for p in points if all(finite(p["values"].get(o["metric"])) for o in objective)]
    return sorted(found, key=lambda p: (not p.get("best"), not p.get("front")))


def _markers(ax: Axes, places: np.ndarray, points: list[dict]) -> None:
    for (x, y), point in zip(places, points, strict=True):
        if point.get("best"):
            ax.plot(x, y, "*", color=ORANGE, ms=15, mec=INK, mew=0.8, zorder=5)
        elif point.get("front"):
            ax.plot(x, y, "o", color=BLUE, ms=6, mew=0, zorder=4)
        else:
            ax.plot(x, y, "o", color=GREY, ms=4.5, mew=0, alpha=0.6, zorder=3)
    ax.xaxis.set_major_locator(MaxNLocator(5))


def _name(axis: XAxis | YAxis, objective: dict) -> None:
    """Title an axis of a plot and turn it so that better values are to the right or on top."""
    axis.set_label_text(cut(head(objective), 40), parse_math=False)
    axis.set_inverted(objective["mode"] == "min")


def _texts(points: list[dict], with_trial: bool) -> list[str]:
    """What stands at each candidate; only the best and the front have a text where there are many."""
    texts = []
    for point in points:
        lam = lambdas(point)
        name = cut(point["trial"], 18) if with_trial and (not lam or len(points) <= FEW) else ""
        matters = point.get("front") or point.get("best") or len(points) <= (SOME if lam else FEW)
        texts.append(" · ".join(filter(None, (name, lam))) if matters else "")
    return texts


def lambdas(point: dict) -> str:
    """Every lambda_val that chooses this candidate's checkpoint."""
    found = point.get("lambdas") or [point.get("lambda_val")]
    return ", ".join(f"{value:.3g}" for value in found if value is not None)


def _label(ax: Axes, places: np.ndarray, texts: list[str]) -> None:
    """Write each text at a corner of its point where it covers no other point or text; nowhere if there is none."""
    ax.figure.draw_without_rendering()  # places the axes, so that the size of a text is known
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in ax.transData.transform(places)]
    for place, text in zip(places, texts, strict=True):
        for x, y, across, along in CORNERS if text else []:
            corner = {"xytext": (x, y), "textcoords": "offset points", "ha": across, "va": along}
            label = ax.annotate(text, place, size=9, parse_math=False, in_layout=False, zorder=6, **corner)
            box = label.get_window_extent()
            if ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and not box.count_overlaps(taken):
                taken.append(box)
                break
            label.remove()


def _wrapped(title: str) -> str:
    """A long title on several lines, broken after an underscore where there is one."""
    return "\n".join(textwrap.wrap(cut(title, 42).replace("_", "_ "), 16)).replace("_ ", "_")
