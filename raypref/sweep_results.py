"""What a sweep's trials came to, read from their run directories: the candidates, the best, and the files that say so."""

from __future__ import annotations

import csv
import io
import shlex
import sys
import time
from functools import reduce

import numpy as np
import yaml

from raypref import pareto, sweep_page
from raypref.artifacts import Store, read_manifest
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.looks import by_lambda, read_looks
from raypref.overlays import assignment, merge
from raypref.report import COLUMNS
from raypref.sweep import Sweep, assignments, watching
from raypref.tasks import Task

NOTHING = {"finished": False, "seconds": 0, "curve": [], "points": [], "values": {}, "held_out": {}}


def outcome(sweep: Sweep, config: RunConfig, run: Store) -> dict:
    """{"finished", "seconds", "curve", "points", "values", "held_out"} of one trial's run directory.

    "curve": the objective's metrics after each validation or stage; "points": candidates, one for each checkpoint that some
    lambda_val chooses, or one; "values": of the checkpoint that the run exports, or the newest; "held_out": all metrics of
    the last model on the evaluation prompts.
    """
    finished = run.exists("summary.json")
    timing = run.read_json("tasks.json") if run.exists("tasks.json") else {}
    stage = watching(sweep.objective, config)
    curve, points = _stages(sweep, config, run) if stage is None else _looks(sweep, config, stage, run)
    exported = points[-1:]
    if stage is not None:
        select = config.stages[stage].validation.select
        exported = [point for point in points if select in point["lambdas"]]
    values = exported[0]["values"] if exported else curve[-1] if curve else {}
    return {
        "finished": finished,
        "seconds": round(sum(item["seconds"] for item in timing.values()), 1),
        "curve": curve,
        "points": points if finished else [],
        "values": {metric: values.get(metric) for metric in sweep.objective},
        "held_out": run.read_json("summary.json")["stages"][-1]["metrics"] if finished else {},
    }


def _stages(sweep: Sweep, config: RunConfig, run: Store) -> tuple[list[dict], list[dict]]:
    tasks = [task for task in tasks_of(config, "evaluate") if task.model != "base"]
    found = [manifest for task in tasks if (manifest := read_manifest(run, task.path, task.fields))]
    curve = [
        {"rung": rung} | {metric: row["statistics"]["metrics"].get(metric) for metric in sweep.objective}
        for rung, row in enumerate(found, 1)
    ]
    if not curve:
        return [], []
    last = {metric: curve[-1][metric] for metric in sweep.objective}
    train = tasks_of(config, "train")[-1]
    weights = f"{train.path}/{train.spec['weights']}"
    return curve, [{"lambda_val": None, "lambdas": [], "step": None, "values": last, "weights": weights}]


def _looks(sweep: Sweep, config: RunConfig, stage: str, run: Store) -> tuple[list[dict], list[dict]]:
    [path] = [task.path for task in tasks_of(config, "train") if task.model == stage]
    looks, settings = read_looks(run, path), config.stages[stage].validation
    curve = [
        {"rung": rung} | {metric: _finite(np.mean(look[metric])) for metric in sweep.objective}
        for rung, look in enumerate(looks, 1)
    ]
    chosen: dict[int, list[dict]] = {}
    for row in by_lambda(looks, sorted({settings.select, *settings.lambdas})):
        chosen.setdefault(row["step"], []).append(row)
    points = []
    for step, rows in chosen.items():
        lambdas = [row["lambda_val"] for row in rows]
        values = {metric: _finite(rows[0][metric]) for metric in sweep.objective}
        weights = f"{path}/validation/step_{step:06d}/{config.stages[stage].output}"
        # in the middle of those that choose the same checkpoint
        middle = lambdas[len(lambdas) // 2]
        points.append({"lambda_val": middle, "lambdas": lambdas, "step": step, "values": values, "weights": weights})
    return curve, points


def tasks_of(config: RunConfig, kind: str) -> list[Task]:
    return [task for task in plan(config) if task.kind == kind]


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return float(value) if np.isfinite(value) else None


def summarize(sweep: Sweep, trials: list[dict], run: Store, seconds: float) -> dict:
    """Write results.json, results.csv, best.yaml and sweep.html; the results.

    `trials`: {"trial", "state", "error", "parameters", **outcome}. Without a finished trial there is no best.yaml.
    """
    points = [{"trial": row["trial"]} | point for row in trials for point in row["points"]]
    table = np.array([[_number(point["values"][m]) for m in sweep.objective] for point in points])
    table = table.reshape(len(points), len(sweep.objective))
    modes = list(sweep.objective.values())
    front, best = pareto.front(table, modes), pareto.knee(table, modes)
    for number, point in enumerate(points):
        point |= {"front": number in front, "best": number == best}
        point["weights"] = f"trials/{point['trial']}/{point['weights']}"
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "recipe": sweep.recipe if isinstance(sweep.recipe, str) else sweep.recipe["recipe"],
        "space": {path: f"{kind}{tuple(arguments)}" for path, (kind, arguments) in sweep.space.items()},
        "objective": sweep.objective,
        "rule": pareto.RULE,
        "seconds": round(seconds, 1),
        "trials": [{k: v for k, v in row.items() if k not in ("points", "finished")} for row in trials],
        "points": points,
        "best": points[best] if best is not None else None,
    }
    if best is not None:
        run.write("best.yaml", best_yaml(sweep, results).encode())
    run.write("results.csv", _csv(sweep, trials).encode())
    run.write("sweep.html", _page(sweep, results).encode())
    run.write_json("results.json", results)  # last: it says that the others are there
    return results


def best_yaml(sweep: Sweep, results: dict) -> str:
    """The best trial's parameters, and its lambda_val where there is one, as an overlay for --config.

    A run with it stops by the patience of that lambda_val, where the trial stopped by its own, so it may train longer or
    shorter; the very checkpoint is at `weights`.
    """
    best = results["best"]
    [trial] = [row for row in results["trials"] if row["trial"] == best["trial"]]
    parameters = dict(trial["parameters"])
    if best["lambda_val"] is not None:
        stage = watching(sweep.objective, sweep.config(parameters))
        parameters[f"stages.{stage}.validation.select"] = best["lambda_val"]
    tree = reduce(merge, map(assignment, assignments(parameters)), {})
    values = ", ".join(f"{metric} {value:.4g}" for metric, value in best["values"].items())
    command = " ".join(results["command"].split())
    head = f"# trial {best['trial']} of: {command}\n# {values}; its weights: {best['weights']}\n"
    return head + yaml.safe_dump(tree, sort_keys=False)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _csv(sweep: Sweep, trials: list[dict]) -> str:
    """One row a trial: state, parameters, the objective's metrics of what it exports, held-out metrics."""
    held_out = list(dict.fromkeys(metric for row in trials for metric in row["held_out"]))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = ["trial", "state", "seconds", *sweep.space, *sweep.objective, *(f"held_out/{name}" for name in held_out)]
    writer.writerow([*names, "error"])
    for row in trials:
        parameters = [row["parameters"].get(path) for path in sweep.space]
        values = [row["values"].get(metric) for metric in sweep.objective]
        others = [row["held_out"].get(metric) for metric in held_out]
        writer.writerow([row["trial"], row["state"], row["seconds"], *parameters, *values, *others, row["error"]])
    return stream.getvalue()


def _page(sweep: Sweep, results: dict) -> str:
    objective = [
        {"metric": metric, "mode": mode, "meaning": COLUMNS[metric].meaning if metric in COLUMNS else ""}
        for metric, mode in sweep.objective.items()
    ]
    trials = [
        {**row, "metrics": row["values"], "rungs": len(row["curve"]), "run_dir": f"trials/{row['trial']}"}
        for row in results["trials"]
    ]
    return sweep_page.render(
        results
        | {
            "title": f"sweep of {results['recipe']}",
            "created": time.strftime("%Y-%m-%d %H:%M"),
            "objective": objective,
            "trials": trials,
            "curves": {row["trial"]: row["curve"] for row in results["trials"]},
        }
    )
