"""Claims about models over repeats (seeds, subjects): means, intervals, verdicts, as JSON, Markdown and a plot."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from raypref.metrics import mean_interval

SIDE_BY_SIDE = yaml.safe_load((Path(__file__).parents[1] / "jobs/two_at_once.yaml").read_text())
RESULTS = Path(__file__).parent / "results"
# (claim, metric, left, right): it holds when left is above right, repeat by repeat, with a 95 % interval above zero
Claim = tuple[str, str, str, str]
Values = dict[str, dict[str, list[float]]]  # {model: {metric: a value of each repeat}}


def ended(results: dict[str, dict]) -> list[dict]:
    """What each repeat came to. Raises RuntimeError naming those that failed; the others are kept for the next try."""
    if errors := {name: result["error"] for name, result in results.items() if "error" in result}:
        raise RuntimeError(f"of {len(results)} repeats there failed {errors}")
    return list(results.values())


def judge(values: Values, claims: tuple[Claim, ...]) -> dict:
    """Means with 95 % intervals of every model and metric, and of every claim's difference over the repeats."""
    judged = []
    for text, metric, left, right in claims:
        pairs = zip(values[left][metric], values[right][metric], strict=True)
        mean, half = mean_interval([a - b for a, b in pairs])
        verdict = "holds" if mean - half > 0 else "fails" if mean + half < 0 else "not shown"
        judged.append({"claim": text, "metric": metric, "left": left, "right": right, "difference": mean, "half": half,
                       "verdict": verdict})  # fmt: skip
    table = {name: {m: mean_interval(v) for m, v in metrics.items()} for name, metrics in values.items()}
    return {"values": values, "table": table, "claims": judged}


def write(result: dict, name: str, command: str, repeats: str, out: Path) -> str:
    """Write `name`.json, .md and .png into a folder; the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(result)
    (out / f"{name}.json").write_text(json.dumps({"command": command, **result}, indent=1) + "\n")
    (out / f"{name}.md").write_text(f"`{command}`\n\n{text}")
    plot(result, repeats, out / f"{name}.png")
    return text


def _metrics(result: dict) -> list[str]:
    return list(dict.fromkeys(metric for metrics in result["table"].values() for metric in metrics))


def markdown(result: dict) -> str:
    metrics = _metrics(result)
    lines = ["| model | " + " | ".join(m.replace("_", " ") for m in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, found in result["table"].items():
        cells = [f"{found[m][0]:.3f} ± {found[m][1]:.3f}" if m in found else "–" for m in metrics]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| claim | difference (95 % interval) | verdict |", "|---|---|---|"]
    for claim in result["claims"]:
        what = f"{claim['metric'].replace('_', ' ')}: {claim['left']} − {claim['right']}"
        lines.append(
            f"| {claim['claim']} | {what} = {claim['difference']:.3f} ± {claim['half']:.3f} | **{claim['verdict']}** |"
        )
    return "\n".join(lines) + "\n"


def plot(result: dict, repeats: str, path: Path) -> None:
    from matplotlib.figure import Figure

    metrics = _metrics(result)
    rows = -(-len(metrics) // 3)
    figure = Figure(figsize=(12, 2.75 * rows), layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes, metrics, strict=False):
        names = [name for name in result["table"] if metric in result["table"][name]]
        means, halves = zip(*(result["table"][name][metric] for name in names), strict=True)
        axis.errorbar(means, range(len(names)), xerr=halves, fmt="o", color="#3b82f6", capsize=3)
        for y, name in enumerate(names):
            values = result["values"][name][metric]
            axis.plot(values, [y] * len(values), ".", color="#8a8f98", alpha=0.6)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(metric.replace("_", " "), fontsize=10)
    figure.suptitle(f"{repeats}: mean and 95 % interval, each a dot", fontsize=10)
    figure.savefig(path, dpi=110)
