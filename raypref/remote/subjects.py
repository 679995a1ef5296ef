"""Several subjects in one job: each is an ordinary run in a folder of its own, and one that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ray

from raypref import cli
from raypref.artifacts import Store
from raypref.config import RunConfig
from raypref.progress import Progress
from raypref.remote import cluster


def execute_all(configs: dict[str, RunConfig], run: Store, pools: Store | None = None) -> dict:
    """Run every subject; writes summary.json.

    Returns {"subjects": {name: summary or {"error": message}}, "mean": {stage: {metric: mean over subjects}}}.
    """
    results = each(_execute, configs, run, pools)
    summary = {"subjects": results, "mean": means(list(results.values()))}
    run.write_json("summary.json", summary)
    return summary


def each(
    work: Callable[[RunConfig, Store, Store], dict], configs: dict[str, RunConfig], run: Store, pools: Store | None
) -> dict[str, dict]:
    """`work(config, run, pools)` of every subject in `subjects/<name>`, as many at once as the cluster has room for.

    `pools`: a pool store that all share; none: each its own. Returns {name: result, or {"error": message}}.
    """
    cluster.connect()
    waiting, running, results = list(configs), {}, {}
    room = min(cluster.room(config) for config in configs.values())
    with Progress("subjects", len(configs), "subjects") as progress:
        while waiting or running:
            while waiting and len(running) < room:
                name = waiting.pop(0)
                own = Store(run.join(f"subjects/{name}"))
                running[_one.remote(work, configs[name], own, pools or own)] = name
            (done, *_), _ = ray.wait(list(running))
            name = running.pop(done)
            try:
                results[name] = ray.get(done)
            except ray.exceptions.RayError as error:  # the task's own process was lost
                results[name] = {"error": cli.root(error)}
            progress.add(1, results[name].get("error", "").split("\n")[0])
    return {name: results[name] for name in configs}


def _execute(config: RunConfig, run: Store, pools: Store) -> dict:
    from raypref.remote.pipeline import execute

    return execute(config, run, pools)


@ray.remote(num_cpus=0)  # it only waits: what works inside asks for its own
def _one(work: Callable, config: RunConfig, run: Store, pools: Store) -> dict:
    try:
        return work(config, run, pools)
    except Exception as error:  # whatever it is, the other subjects go on, and the message is in the summary
        return {"error": cli.root(error)}


def means(summaries: list[dict]) -> dict[str, dict[str, float]]:
    """Of each stage the mean of every metric over the subjects that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for summary in summaries:
        for stage in summary.get("stages", ()):
            for metric, value in stage["metrics"].items():
                if value is not None:
                    found.setdefault(stage["name"], {}).setdefault(metric, []).append(value)
    return {stage: {m: float(np.mean(v)) for m, v in metrics.items()} for stage, metrics in found.items()}
