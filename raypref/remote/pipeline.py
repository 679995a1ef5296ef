"""Executes a plan: each wave of tasks in turn, skipping what exists; then the summary and the report."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from importlib.metadata import version

import ray

from raypref import reporting
from raypref.artifacts import SCHEMA_VERSION, Store, differences, digest, read_manifest
from raypref.config import RunConfig
from raypref.curriculum import Task, images_a_row, plan, waves
from raypref.progress import Progress
from raypref.remote import cluster, tables
from raypref.remote.images import build_images
from raypref.remote.train import train

PACKAGES = ("raypref", "ray", "torch", "deepspeed", "diffusers", "transformers", "peft", "open_clip_torch", "pyarrow")
# Fields that a run may change when it goes on: how it runs, not what it makes.
FREE = (
    "resources",
    "training.workers",
    "training.zero_stage",
    "training.micro_batch",
    "training.trackers",
    "training.max_failures",
    "training.log_every",
    "training.validate_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.gradient_checkpointing",
    "evaluation.grid",
    "data.max_rejected",
    "sampling.batch_size",
)


def execute(config: RunConfig, run: Store, pools: Store) -> dict:
    """Run everything that is not done yet; the content of `summary.json`.

    Raises ValueError when the run directory belongs to another configuration.
    """
    started = time.time()
    _claim(config, run)
    tasks = plan(config)
    timing = run.read_json("tasks.json") if run.exists("tasks.json") else {}
    for wave in waves(tasks):
        todo = [task for task in wave if read_manifest(pools if task.shared else run, task.path, task.fields) is None]
        if not todo:
            continue
        cluster.connect()  # not before there is something to do
        clock = time.monotonic()
        items, unit = size(wave, config, pools)
        name = (
            f"images of {wave[0].model}"
            if wave[0].shared and wave[0].kind != "index"
            else f"{wave[0].kind} {wave[0].name}"
        )
        with Progress(name, items, unit) as progress:
            _run(todo, run, pools, config, progress)
        seconds = time.monotonic() - clock
        timing[wave[0].path] = {
            "name": name,
            "kind": wave[0].kind,
            "seconds": seconds,
            "items": progress.done,
            "unit": unit,
        }
        run.write_json("tasks.json", timing)
        run.write_json("env.json", environment())
    return reporting.summarize(config, tasks, run, pools, timing, time.time() - started)


def _run(tasks: list[Task], run: Store, pools: Store, config: RunConfig, progress: Progress) -> None:
    task = tasks[0]
    if task.kind in ("pool", "score"):
        build_images(tasks, pools, run, config, progress.add)
    elif task.kind == "index":
        progress.add(tables.build_index(task, pools, config))
    elif task.kind == "pairs":
        tables.build_pairs(task, pools, run, progress.add)
    elif task.kind == "train":
        train(task, run, pools, config, lambda row: progress.add(row["step"] - progress.done, _note(row)))
    else:
        _evaluate(task, pools, run, config)
        progress.add(1)


def _note(row: dict) -> str:
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "validation/accuracy": "held-out accuracy"}
    return ", ".join(f"{label} {row[key]:.3f}" for key, label in shown.items() if key in row)


def _evaluate(task: Task, pools: Store, run: Store, config: RunConfig) -> None:
    result = ray.get(_measure.options(num_cpus=0.5).remote(task.spec, config.evaluation, pools, run))
    run.write_json(
        f"{task.path}/manifest.json",
        {
            "kind": "evaluate",
            "schema_version": SCHEMA_VERSION,
            "fingerprint": digest(task.fields),
            "fields": task.fields,
            "rows": 1,
            "files": [],
            "statistics": result,
        },
    )


@ray.remote
def _measure(*arguments) -> dict:
    with cluster.quick_imports():
        from raypref.evaluation import evaluate  # in the task: the driver loads no torch

    return evaluate(*arguments)


def size(wave: list[Task], config: RunConfig, pools: Store) -> tuple[int, str]:
    """Items of a wave and their unit, as far as they are known: images made and scored, steps, or rows."""
    task = wave[0]
    if task.kind == "train":
        return config.stages[task.spec["stage"]].steps, "steps"
    if task.kind == "pairs":
        return read_manifest(pools, task.spec["winner"]["pool"])["rows"] * task.spec["rule"].get("k", 1), "pairs"
    if task.kind not in ("pool", "score"):
        return (0, "rows") if task.kind == "index" else (1, "models")
    total = 0
    for task in wave:
        pool = next((t for t in wave if t.path == task.spec.get("pool", task.path)), None)
        source = read_manifest(pools, pool.parents[0] if pool else task.spec["pool"])
        fields = pool.fields if pool else source["fields"]
        total += source["rows"] * images_a_row(fields) if source else 0
    return total, "images"


def _claim(config: RunConfig, run: Store) -> None:
    """Write config.json and env.json of a new run directory; check those of an old one."""
    new = json.loads(config.model_dump_json())
    try:
        names = run.names()
    except OSError as error:
        raise ValueError(f"--run-dir {run.uri} cannot be read as a folder ({error}); choose another") from None
    if "config.json" in names:
        changed = [line for line in differences(run.read_json("config.json"), new) if not line.startswith(FREE)]
        if changed:
            raise ValueError(
                f"--run-dir {run.uri} belongs to a run with another configuration:\n  "
                + "\n  ".join(changed)
                + "\nUse another --run-dir (with --pools to take over what can be), or set the fields back."
            )
    elif names := [name for name in names if not name.endswith(".log")]:
        raise ValueError(
            f"--run-dir {run.uri} is not empty and holds no config.json ({', '.join(names[:3])}); use another"
        )
    else:
        run.write_json("config.json", new)


def environment() -> dict:
    """Versions and hardware, for the record."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5).stdout.strip()
    except OSError:
        sha = ""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "git": sha or None,
        "cluster": {key: value for key, value in ray.cluster_resources().items() if ":" not in key},
    }
