"""The page of a sweep: right for any number of trials, parameters and metrics, with whatever is missing."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache

import numpy as np
import pytest

from raypref import coordinates, pareto, sweep_page
from tests.unit.test_report import ATTACK, Checker

pytestmark = pytest.mark.filterwarnings("error")

METRICS = {"likeness": "max", "clip_t": "max", "drift": "min"}
PARAMETERS = {
    "stages.rpo.objective.beta": lambda i: 0.01 * 1.4**i,
    "stages.rpo.optim.lr": lambda i: (5e-4, 1e-3)[i % 2],
    "stages.easy.optim.lr": lambda i: 1e-3,
    "validation.select": lambda i: (None, 0.5, "all", True)[i % 4],
    "stages.rpo." + "a_very_long_name_" * 8: lambda i: f"choice {i % 3}",
}
STATES = ("finished", "finished", "stopped", "finished", "failed")


def trial(i: int, parameters: int, metrics: list[str], state: str) -> dict:
    return {
        "trial": f"t{i:03d}",
        "state": state,
        "parameters": {path: value(i) for path, value in list(PARAMETERS.items())[:parameters]},
        "metrics": {} if state == "failed" else {m: math.sin(i + k) for k, m in enumerate(metrics)} | {"more": 1.5},
        "rungs": 3,
        "seconds": 61.0,
        "error": "Traceback: first\nValueError: last" if state == "failed" else None,
        "run_dir": f"trials/t{i:03d}",
    }


def chosen(points: list[dict], metrics: list[str]) -> list[dict]:
    values = [[math.nan if p["values"][m] is None else p["values"][m] for m in metrics] for p in points]
    modes = [METRICS[m] for m in metrics]
    front, best = pareto.front(values, modes), pareto.knee(values, modes)
    return [p | {"front": i in front, "best": i == best} for i, p in enumerate(points)]


def sweep(trials: int = 5, parameters: int = 5, metrics: int = 2, lambdas=(0.3, 0.7), states=STATES) -> dict:
    names = list(METRICS)[:metrics]
    rows = [trial(i, parameters, names, states[i % len(states)]) for i in range(trials)]
    points = [
        {"trial": t["trial"], "lambda_val": lam, "step": 70, "values": {m: t["metrics"][m] + (lam or 0) for m in names}}
        for t in rows
        for lam in lambdas
        if t["state"] == "finished"
    ]
    return {
        "title": "sweep of rpo_mini",
        "recipe": "rpo_mini",
        "command": "python jobs/tune.py",
        "created": "2026-01-01",
        "seconds": 412.0,
        "space": dict.fromkeys(list(PARAMETERS)[:parameters], "loguniform(0.3, 3)"),
        "objective": [{"metric": m, "mode": METRICS[m], "meaning": f"meaning of {m}"} for m in names],
        "rule": pareto.RULE,
        "trials": rows,
        "points": chosen(points, names),
        "curves": {t["trial"]: [{"rung": r, **dict.fromkeys(names, r * 0.1)} for r in (1, 2, 3)] for t in rows},
    }


def with_metrics(change) -> dict:
    """The sweep with every value of the first metric changed, by index."""
    data = sweep(10)
    for i, found in enumerate([t["metrics"] for t in data["trials"]] + [p["values"] for p in data["points"]]):
        if "likeness" in found:
            found["likeness"] = change(i)
    return data | {"points": chosen(data["points"], ["likeness", "clip_t"])}


CASES = {
    "ordinary": sweep(),
    "one trial": sweep(1),
    "one trial, one metric, no parameter": sweep(1, 0, 1, (None,)),
    "no parameter": sweep(4, 0),
    "one parameter": sweep(4, 1),
    "one metric": sweep(6, 3, 1),
    "three metrics": sweep(8, 4, 3),
    "sixty": sweep(60, 5, 3, (0.1, 0.5, 0.9)),
    "sixty, one metric": sweep(60, 2, 1, (None,)),
    "no lambda": sweep(8, lambdas=(None,)),
    "all failed": sweep(3, states=("failed",)),
    "all stopped": sweep(3, states=("stopped",)),
    "NaN": with_metrics(lambda i: math.nan if i % 2 else 0.1 * i),
    "None": with_metrics(lambda i: None if i % 2 else 0.1 * i),
    "NaN alone": with_metrics(lambda i: math.nan),
    "equal": with_metrics(lambda i: 0.25),
    "nearly equal": with_metrics(lambda i: 0.25 + 1e-16 * i),
    "infinite": with_metrics(lambda i: math.inf if i % 2 else 0.1),
    "nothing": {},
    "no trials": sweep(0),
}


@cache
def page_of(case: str) -> str:
    return sweep_page.render(CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_self_contained(case):
    page = page_of(case)
    checker = Checker(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.links) <= {f"#{name}" for name in checker.ids}
    assert "default-src 'none'" in page and not re.search(r"https?://|@import", page)
    assert not re.search(r"\b(nan|inf|undefined)\b", checker.text)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing


@pytest.mark.parametrize("case", CASES)
def test_the_best_trial_is_marked(case):
    data, page = CASES[case], page_of(case)
    best = [p for p in data.get("points", []) if p["best"]]
    rows = re.findall(r'<tr class="best"><th>(.*?)</th>', page)
    if best:
        tables = 2 if len(data["objective"]) > 1 else 1  # trials, and the front where there is one
        assert rows == [best[0]["trial"]] * tables
        headline = page[page.index('id="best"') : page.index("</section>")]
        assert best[0]["trial"] in headline and "best.yaml" in headline
        assert all(path in headline for path in data["space"])
    else:
        assert rows == [] and "best.yaml" not in page


@pytest.mark.parametrize("missing", sweep())
def test_every_key_may_be_missing_or_none(missing):
    data = sweep(2, 1, 1)
    data.pop(missing)
    assert Checker(sweep_page.render(data)).open == []
    assert sweep_page.render(data | {missing: None}) == sweep_page.render(data)


def hostile() -> dict:
    """A sweep of one trial in which every text is an attack."""

    data = sweep(1, 1, 1)
    data["trials"][0] |= {"error": "x"}
    known = {*data, *data["trials"][0], *data["points"][0], *data["objective"][0], "rung"}

    def attacked(value):
        if isinstance(value, dict):
            return {key if key in known else ATTACK: attacked(v) for key, v in value.items()}
        if isinstance(value, list):
            return [attacked(v) for v in value]
        return ATTACK if isinstance(value, str) and value not in ("max", "finished") else value

    return attacked(data)


def test_untrusted_text_is_escaped():
    page = sweep_page.render(hostile())
    assert "<script" not in page and "script" not in Checker(page).tags
    assert page.count("&lt;script&gt;") >= 15  # and still shown


def test_dollars_in_names_are_no_mathematics():
    data = sweep(2, 1, 1, states=("finished",))
    for row in [*data["trials"], *data["points"]]:
        row["trial"] = "a$_x^$" + row["trial"]
    data["trials"][0]["parameters"] = {"b$^$": "$\\frac$"}
    assert sweep_page.render(data).count("a$_x^$t000") >= 2  # in the table and in the plot


def test_page_depends_on_the_data_alone():
    assert sweep_page.render(sweep()) == sweep_page.render(sweep())


def test_values_errors_and_rules_in_the_page():
    text = Checker(sweep_page.render(sweep())).text
    assert "5: 3 finished, 1 stopped, 1 failed" in text
    assert "Traceback: first\nValueError: last" in text
    assert "likeness ↑" in text and "meaning of clip_t" in text
    assert pareto.RULE in text and "python jobs/tune.py" in text and "6 min 52 s" in text
    assert "null" in text and "true" in text
    assert all(path in text for path in PARAMETERS)


def test_candidates_are_labelled_by_lambda_and_trial():
    def labels(data):
        page = sweep_page.render(data)
        return re.findall(r"<text.*?>([^<]*)</text>", page[page.index('id="candidates"') : page.index('id="learning"')])

    assert "t000 · 0.3" in labels(sweep())
    assert "0.7" in labels(sweep(60)) and not [text for text in labels(sweep(60)) if "·" in text]
    assert "t000" in labels(sweep(lambdas=(None,)))
    same = sweep(2, states=("finished",))
    for point in same["points"]:
        point |= {"values": {"likeness": float(point["trial"][1:]), "clip_t": 0.5}, "lambdas": [0.3, 0.7]}
    assert "t000 · 0.3, 0.7" in labels(same)


def test_suffixes_are_short_and_tell_paths_apart():
    paths = ["a.optim.lr", "b.optim.lr", "a.beta", "lr", "optim.lr", "x"]
    assert sweep_page.suffixes(paths) == ["a.optim.lr", "b.optim.lr", "beta", "lr", "optim.lr", "x"]
    assert sweep_page.suffixes(["a.b.lr", "a.c.lr"]) == ["b.lr", "c.lr"]


def test_axis_of_numbers():
    linear = coordinates.axis("a", [1, 3, 2, math.nan])
    assert linear.heights[:3] == [0, 1, 0.5] and math.isnan(linear.heights[3])
    assert linear.ticks == [(0, "1"), (0.5, "2"), (1, "3")]
    wide = coordinates.axis("a", [0.01, 0.1, 1])
    assert np.allclose(wide.heights, [0, 0.5, 1])
    assert np.allclose(coordinates.axis("a", [-0.01, 0.1, 1]).heights[1], 0.11 / 1.01)  # no logarithm below 0
    assert coordinates.numeric("a", [1, 3], down=True).heights == [1, 0]
    assert coordinates.axis("a", [7, 7]) == coordinates.Axis("a", [0.5, 0.5], [(0.5, "7")])
    assert coordinates.axis("a", [math.nan]).ticks == []
    assert len(coordinates.axis("a", list(range(60))).ticks) < 10


def test_axis_of_categories():
    mixed = coordinates.axis("a", ["b", None, 10, 9, True, math.nan])
    assert [label for _, label in mixed.ticks] == ["9", "10", "b", "null", "true"]
    assert mixed.heights[:5] == [0.5, 0.75, 0.25, 0, 1] and math.isnan(mixed.heights[5])
    assert coordinates.axis("a", ["b", "b"]).heights == [0.5, 0.5]
    assert len(coordinates.axis("a", [f"c{i}" for i in range(60)]).ticks) <= 20


def test_it_loads_neither_ray_nor_torch():
    program = "import sys, raypref.sweep_page; print({'ray', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "set()"
