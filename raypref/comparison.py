"""Two evaluated models side by side, from what their runs have stored: nothing is generated, scored or trained.

Their runs must have the same evaluation prompts, real images and scorers; then every image of one model meets the image of
the same prompt and number of the other.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass

import numpy as np

from raypref import rewards, values
from raypref.artifacts import Store, differences, iter_rows, read_manifest
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.evaluation import evaluate, preference_metric
from raypref.overlays import names
from raypref.rundir import read_config
from raypref.tasks import Task


@dataclass(frozen=True)
class Model:
    """An evaluated model of a run: the base model, or what a stage made."""

    name: str
    run: Store
    pools: Store  # where its images and scores are: the run directory, or a store that several runs share
    config: RunConfig
    task: Task  # its evaluation

    @property
    def label(self) -> str:
        own = self.config.model.lora if self.name == "base" else None
        begun = f" + {own.rpartition('/')[2]}" if own else ""
        return f"{self.run.uri.partition('?')[0].rstrip('/').rpartition('/')[2]}/{self.name}{begun}"


def find(run: Store, pools: Store | None, name: str | None, option: str) -> Model:
    """A model of a run, the last stage's where no name is given. `option`: where the name comes from.

    Raises ValueError when there is no run or no such model, or when something of its evaluation is not stored.
    """
    config = read_config(run)
    tasks = {task.model: task for task in plan(config) if task.kind == "evaluate"}
    name = name or list(tasks)[-1]
    if name not in tasks:
        raise ValueError(f"{option} {name!r}: {run.uri} has no such model; it has {names(tasks)}")
    task = tasks[name]
    shared = [*task.spec["pools"].values(), *task.parents]
    lacking = {store: [path for path in shared if read_manifest(store, path) is None] for store in (run, pools or run)}
    store = min(lacking, key=lambda found: len(lacking[found]))
    own = [path for path in (task.path, task.spec["training"]) if path and read_manifest(run, path) is None]
    if missing := own + lacking[store]:
        raise ValueError(
            f"{run.uri}: {name} is not evaluated to its end (there is no {missing[0]}); give the --pools that the run had, "
            f"or finish it with: python jobs/hgdpo.py --config {run.join('config.json')} --run-dir {run.uri}"
        )
    return Model(name, run, store, config, task)


def check(a: Model, b: Model) -> None:
    """Raises ValueError, with everything that differs, when two models were not evaluated alike."""
    problems = list(differences(_measured(a), _measured(b)))
    for role, words in (("images", "evaluation prompts"), ("real", "held-out real images")):
        (mine, source), (other, its) = (_prompts(m, role) for m in (a, b))
        if mine != other:
            why = "; ".join(differences(source, its))
            problems.append(f"{words}: {len(mine)} and {len(other)}, {len(mine & other)} of them the same ({why})")
    if problems:
        lines = "\n  ".join(textwrap.shorten(problem, 200, placeholder=" ...") for problem in problems)
        raise ValueError(f"{a.label} and {b.label} were not evaluated alike, so nothing compares:\n  {lines}")


def _prompts(model: Model, role: str) -> tuple[set[tuple[str, str]], dict]:
    """Ids and prompts of a pool, and what they were listed from; nothing where the run has no such pool."""
    path = model.task.spec["pools"].get(role)
    if path is None:
        return set(), {}
    rows = iter_rows(model.pools, path, ["prompt_id", "prompt"])
    return {(row["prompt_id"], row["prompt"]) for row in rows}, read_manifest(model.pools, path)["fields"]["index"]


def _measured(model: Model) -> dict:
    fields = {name: model.task.fields[name] for name in ("evaluation", "scorers")}
    if real := model.task.spec["pools"].get("real"):
        pool = read_manifest(model.pools, real)["fields"]
        fields["real images"] = {name: pool.get(name) for name in ("resolution", "buckets")}
    return json.loads(json.dumps(fields))


def compare(a: Model, b: Model) -> dict:
    """The content of comparison.json. Raises ValueError as `check`.

    "metrics": {name: {"a", "b", "difference"}} and, of scores that every image has, the "interval" of the difference; "wins":
    {name: {"rate", "interval"}}, the share of images for which `a` scores higher, ties half; "real", "sizes": as
    of `evaluation.evaluate`; "differences": settings in which the runs differ; "same_noise": whether the images of a pair are
    drawn from the same noise.
    """
    check(a, b)
    mine, other = (evaluate(m.task.spec, m.config.evaluation, m.pools, m.run) for m in (a, b))
    rows = {
        name: _row(mine["metrics"].get(name), other["metrics"].get(name)) for name in mine["metrics"] | other["metrics"]
    }
    wins, scores = {}, (_scores(a), _scores(b))
    for name in scores[0]:
        keys, x, y = values.aligned(*(found[name] for found in scores))
        gaps = dict(zip(keys, x - y, strict=True))
        rows[name] = _row(float(x.mean()), float(y.mean())) | {"interval": _finite(values.interval(gaps))}
        outcomes = values.outcomes(*(found[name] for found in scores))
        wins[name] = {"rate": values.mean(outcomes), "interval": _finite(values.interval(outcomes))}
    changed = differences(*(json.loads(m.config.model_dump_json()) for m in (a, b)))
    return {
        **{side: {"run": m.run.uri, "model": m.name, "label": m.label} for side, m in (("a", a), ("b", b))},
        "prompts": read_manifest(a.pools, a.task.spec["pools"]["images"])["rows"],
        "images": a.config.evaluation.images,
        "metrics": rows,
        "wins": wins,
        "real": mine["real"],
        "sizes": mine["sizes"],
        "differences": list(changed),
        "same_noise": _seeds(a) == _seeds(b),
    }


def _row(a: float | None, b: float | None) -> dict:
    return {"a": a, "b": b, "difference": None if a is None or b is None else a - b}


def _scores(model: Model) -> dict[str, dict]:
    """Of every scorer and likeness the value of each image, as [1]; higher is better."""
    evaluation, paths = model.config.evaluation, model.task.spec["scores"]

    def read(name: str, role: str = "images") -> dict:
        return values.read(model.pools, paths[role][name], evaluation.images if role == "images" else 1)

    roles = {preference_metric(evaluation): evaluation.preference, evaluation.second: evaluation.second}
    roles |= {name: name for name in evaluation.scorers}
    found = {metric: read(name) for metric, name in roles.items() if name}
    # a model that describes images by several columns says not which image is better
    found = {metric: scores for metric, scores in found.items() if values.table(scores).ndim == 1}
    for name in evaluation.likeness if "real" in paths else ():
        references = values.table(read(name, "real"))
        found[name] = {
            key: rewards.cosines(value[None], references).mean(1) if np.isfinite(value).all() else np.array([np.nan])
            for key, value in read(name).items()
        }
    return found


def _seeds(model: Model) -> dict[str, list[int]]:
    path, images = model.task.spec["pools"]["images"], model.config.evaluation.images
    return {row["prompt_id"]: row["seeds"][:images] for row in iter_rows(model.pools, path, ["prompt_id", "seeds"])}


def _finite(ends: tuple[float, float]) -> list[float] | None:
    """JSON knows no NaN; a single prompt has no interval."""
    return list(ends) if np.isfinite(ends).all() else None


def samples(a: Model, b: Model) -> list[dict]:
    """The first `evaluation.grid` prompts: {"prompt", "a", "b"} with the encoded first image of each model, or None."""
    columns = ["prompt_id", "prompt", "images"]
    mine, other = (iter_rows(m.pools, m.task.spec["pools"]["images"], columns) for m in (a, b))
    first = {row["prompt_id"]: row for row, _ in zip(mine, range(a.config.evaluation.grid), strict=False)}
    found = {}
    for row in other:
        if row["prompt_id"] in first:
            found[row["prompt_id"]] = row["images"][0]
        if len(found) == len(first):
            break
    return [{"prompt": row["prompt"], "a": row["images"][0], "b": found[id]} for id, row in first.items()]
