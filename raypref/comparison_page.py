"""A comparison (comparison.py) as one self-contained HTML page, and its table for a terminal."""

from __future__ import annotations

import time

from raypref.page import DASH, decimals, fill, finite
from raypref.report import COLUMNS, Column, picture
from raypref.reporting import distances_note

ARROWS = {1: "↑", -1: "↓", 0: ""}


def render(result: dict, samples: list[dict], kind: str | None) -> str:
    """The page. `samples`: prompts with the images of both; `kind`: of the feature model behind the distances."""
    a, b = (f"{result[side]['label']} ({result[side]['run']})" for side in ("a", "b"))
    notes = [
        f"Images: {result['images']} of each of {result['prompts']} held-out prompts; a pair is of one prompt and number, drawn "
        f"from {'the same' if result['same_noise'] else 'different'} noise. Win rate: share of pairs in which A scores higher, "
        "ties half. Intervals: 95 %, bootstrapped over prompts. The metrics 'win rate', drift and pair accuracy compare each "
        "model with the base model of its own run."
    ]
    if result["sizes"]:
        notes.append(distances_note(result["sizes"], kind))
    tables = rows(result)
    derived = {
        "title": f"{result['a']['model']} against {result['b']['model']}",
        "created": time.strftime("%Y-%m-%d %H:%M"),
        "names": {"A": a, "B": b},
        "measured": [row for row in tables if "/" not in row["name"]],
        "described": [row for row in tables if "/" in row["name"]],
        "notes": notes,
        "samples": samples,
    }
    return fill("comparison.html.j2", result | derived, picture)


def rows(result: dict) -> list[dict]:
    """One a metric that either model has, in the report's order: texts of its cells, and which side is better."""
    found = result["metrics"]
    known = [name for name, row in found.items() if finite(row["a"]) or finite(row["b"])]
    real = result["real"] or {}
    return [
        _row(name, found[name] | {"real": real.get(name)}, result["wins"].get(name))
        for name in sorted(known, key=_place)
    ]


def _place(name: str) -> int:
    return list(COLUMNS).index(name) if name in COLUMNS else len(COLUMNS)


def _row(name: str, row: dict, win: dict | None) -> dict:
    column = COLUMNS.get(name, Column(name.replace("_", " "), better=1 if win else 0))
    scale = 100 if column.percent else 1
    values = [row[key] * scale for key in ("a", "b", "real") if finite(row[key])]
    digits = 1 if column.percent else decimals(values)

    def text(value: float | None, sign: str = "") -> str:
        if not finite(value):
            return DASH
        shown = f"{value * scale:{sign}.{digits}f}"
        return (shown if float(shown) else shown.lstrip("+-")).replace("-", "−")

    unit = " %" if column.percent else ""
    gap = (row["difference"] or 0) * column.better
    return {
        "name": name,
        "label": column.label,
        "arrow": ARROWS[column.better],
        "meaning": column.meaning,
        **{key: text(row[key]) + (unit if finite(row[key]) else "") for key in ("a", "b", "real")},
        "difference": text(row["difference"], "+"),
        "interval": " … ".join(text(end, "+") for end in row.get("interval") or ()),
        "better": "" if text(row["a"]) == text(row["b"]) else "a" if gap > 0 else "b" if gap < 0 else "",
        "rate": 100 * win["rate"] if win else None,
        "rate_interval": " … ".join(f"{100 * end:.1f}" for end in (win or {}).get("interval") or ()),
    }


def table(result: dict) -> str:
    """The metrics as aligned text."""
    lines = [["", "A", "B", "A − B", "95 %", "win rate of A", "95 %"]]
    for row in rows(result):
        rate = "" if row["rate"] is None else f"{row['rate']:.1f} %"
        cells = [row["a"], row["b"], row["difference"], row["interval"], rate, row["rate_interval"]]
        lines.append([f"{row['label']} {row['arrow']}".strip(), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )
