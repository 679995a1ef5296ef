"""Executes a plan: each wave of tasks in turn, skipping what exists; then the summary and the report."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import ray

from raypref import __version__, reporting
from raypref.artifacts import Store, digest, finished_shards, read_manifest, write_manifest
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.progress import Progress
from raypref.remote import cluster, tables
from raypref.remote.images import build_images
from raypref.remote.train import train
from raypref.rundir import claim
from raypref.selection import pairs_a_prompt
from raypref.tasks import Task, images_a_row, waves

PACKAGES = ("ray", "torch", "deepspeed", "diffusers", "transformers", "peft", "open_clip_torch", "pyarrow")


Observe = Callable[[Task, dict], None]


def _nobody(task: Task, row: dict) -> None:
    pass


def execute(config: RunConfig, run: Store, pools: Store, observe: Observe = _nobody) -> dict:
    """Run everything that is not done yet; the content of `summary.json`. `observe` sees what `work` tells.

    Raises ValueError when the run directory belongs to another configuration.
    """
    started = time.time()
    claim(config, run)
    tasks = plan(config)
    timing = work(config, tasks, run, pools, observe)
    return reporting.summarize(config, tasks, run, pools, timing, time.time() - started)


def work(config: RunConfig, tasks: list[Task], run: Store, pools: Store, observe: Observe = _nobody) -> dict:
    """Run those of a plan's tasks that are not done; how long each wave took, earlier ones included.

    `observe` is called with each new row of a training's metrics and with each evaluation's result.
    """
    timing = run.read_json("tasks.json") if run.exists("tasks.json") else {}
    for path, record in make(config, tasks, run, pools, observe):
        timing[path] = record
        run.write_json("tasks.json", timing)
        run.write_json("env.json", environment())
    return timing


def make(
    config: RunConfig, tasks: list[Task], run: Store, pools: Store, observe: Observe = _nobody
) -> Iterator[tuple[str, dict]]:
    """As `work`, without a record in the run directory: of each wave its first task's path, and what it took."""
    for wave in waves(tasks):
        todo = [task for task in wave if read_manifest(pools if task.shared else run, task.path, task.fields) is None]
        if not todo:
            continue
        cluster.connect()  # not before there is something to do
        clock = time.monotonic()
        items, unit = size(todo, wave, config, pools)
        name = (
            f"images of {wave[0].model}"
            if wave[0].shared and wave[0].kind != "index"
            else f"{wave[0].kind} {wave[0].name}"
        )
        with Progress(name, items, unit) as progress:
            _run(todo, run, pools, config, progress, observe)
        for sentence in reporting.cautions(todo, tasks, config, run, pools):
            print(f"warning: {sentence}", flush=True)
        took = {"seconds": time.monotonic() - clock, "items": progress.done, "unit": unit}
        yield wave[0].path, {"name": name, "kind": wave[0].kind, **took}


def _run(
    tasks: list[Task], run: Store, pools: Store, config: RunConfig, progress: Progress, observe: Observe = _nobody
) -> None:
    task = tasks[0]
    if task.kind in ("pool", "score"):
        build_images(tasks, pools, run, config, progress.add)
    elif task.kind == "index":
        progress.add(tables.build_index(task, pools, config))
    elif task.kind == "pairs":
        tables.build_pairs(task, pools, run, progress.add)
    elif task.kind == "train":

        def follow(row: dict) -> None:
            progress.add(row["step"] - progress.done, _note(row))
            observe(task, row)

        train(task, run, pools, config, follow)
    else:
        observe(task, _evaluate(task, pools, run, config))
        progress.add(1)


def _note(row: dict) -> str:
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "validation/accuracy": "held-out accuracy"}
    return ", ".join(f"{label} {row[key]:.3f}" for key, label in shown.items() if key in row)


def _evaluate(task: Task, pools: Store, run: Store, config: RunConfig) -> dict:
    result = ray.get(_measure.remote(task.spec, config.evaluation, pools, run))
    write_manifest(run, task.path, task.kind, task.fields, 1, result)
    return result


@ray.remote(num_cpus=0.5, scheduling_strategy="SPREAD")  # said, since a sweep's trial would keep it in its own share
def _measure(*arguments) -> dict:
    with cluster.quick_imports():
        from raypref.evaluation import evaluate  # in the task: the driver loads no torch

    return evaluate(*arguments)


def size(todo: list[Task], wave: list[Task], config: RunConfig, pools: Store) -> tuple[int, str]:
    """Items that a wave's tasks have to make, and their unit: images made and scored, steps, or rows."""
    task = todo[0]
    if task.kind == "train":
        return config.stages[task.spec["stage"]].steps, "steps"
    if task.kind == "pairs":
        winner, loser = (read_manifest(pools, task.spec[side]["pool"]) for side in ("winner", "loser"))
        if task.spec["rule"]["kind"] == "reward":
            return winner["rows"] * loser["rows"] * (task.spec["loser"]["first"] or 1), "pairs"
        candidates = task.spec["winner"]["first"] or images_a_row(winner["fields"])
        return winner["rows"] * pairs_a_prompt(task.spec["rule"], candidates), "pairs"
    if task.kind not in ("pool", "score"):
        return (0, "rows") if task.kind == "index" else (1, "models")
    total = 0
    for task in todo:
        pool = next((t for t in wave if t.path == task.spec.get("pool", task.path)), None)
        source = read_manifest(pools, pool.parents[0] if pool else task.spec["pool"])
        fields = pool.fields if pool else source["fields"]
        done = finished_shards(pools, task.path, digest(task.fields))
        rows = sum(file["rows"] for shard, file in enumerate(source["files"]) if shard not in done)
        total += rows * images_a_row(fields)
    return total, "images" if all(task.kind == "pool" for task in todo) else "images and scores"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict:
    """Versions and hardware, for the record."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5).stdout.strip()
    except OSError:
        sha = ""
    return {
        "versions": {"raypref": __version__} | {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git": sha or None,
        "cluster": {key: value for key, value in ray.cluster_resources().items() if ":" not in key},
    }
