"""A plan executed in this process, one task after the other, by the functions that Ray's workers call."""

from __future__ import annotations

import json
from pathlib import Path

from raypref import evaluation, listing, models, pairing, pools, scorers, scoring
from raypref.artifacts import Store, digest, finalize, read_manifest, shard_name, write_manifest, write_shard
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.tasks import Task
from raypref.trainer import train_stage
from raypref.workers import Alone, Job, TorchEngine


def run(config: RunConfig, folder: Path, until: str = "") -> dict[str, Task]:
    """Everything that is not done yet; tasks by 'kind name'. `until`: the first task that is left undone."""
    store, done = Store(str(folder)), {}
    for task in plan(config):
        done[f"{task.kind} {task.name}"] = task
        if f"{task.kind} {task.name}" == until:
            break
        if read_manifest(store, task.path, task.fields) is None:
            _DO[task.kind](task, store, config)
    return done


def _index(task, store, config):
    count = listing.write_index(store, task.path, task.fields, digest(task.fields))
    finalize(store, task.path, "index", task.fields, count)


def _pool(task, store, config):
    path = store.local / task.spec["weights"] if "weights" in task.spec else None
    weights = {path.name: path} if path else models.starting_lora(config.model)
    pipeline = models.load_pipeline(config.model, "cpu", **weights)

    def make(number):
        index = store.read_table(f"{task.parents[0]}/{shard_name(number)}.parquet").to_pylist()
        real = "real" in task.spec and store.read_table(f"{task.spec['real']}/{shard_name(number)}.parquet").to_pylist()
        return pools.pool_shard(pipeline, config, task.spec, index, real)

    _shards(task, store, task.parents[0], make)


def _score(task, store, config):
    settings = task.spec["settings"]
    scorer = scorers.load(settings["kind"], settings["args"])

    def make(number):
        pool = store.read_table(f"{task.spec['pool']}/{shard_name(number)}.parquet")
        return scoring.score_shard(scorer, pool, settings["batch_size"], settings.get("token"))

    _shards(task, store, task.spec["pool"], make)


def _pairs(task, store, config):
    number = pairing.count_shards(task.spec, store)
    for k in range(number):
        table, statistics = pairing.make_shard(task.spec, store, k)
        write_shard(store, task.path, k, table, digest(task.fields), statistics=statistics)
    finalize(store, task.path, "pairs", task.fields, number)


def _train(task, store, config):
    spec = task.spec
    job = Job(
        config, spec["stage"], task.path, spec["pairs"], spec["held_out"], spec["start"], store.uri, store.uri,
        spec["validation"],
    )  # fmt: skip
    train_stage(job, Alone(), TorchEngine)
    rows = [json.loads(line) for line in store.read(f"{task.path}/metrics.jsonl").splitlines()]
    write_manifest(store, task.path, task.kind, task.fields, len(rows), rows[-1])


def _evaluate(task, store, config):
    result = evaluation.evaluate(task.spec, config.evaluation, store, store)
    write_manifest(store, task.path, task.kind, task.fields, 1, result)


def _shards(task, store, parent, make):
    number = len(read_manifest(store, parent)["files"])
    for k in range(number):
        table, rejected = make(k)
        write_shard(store, task.path, k, table, digest(task.fields), rejected)
    finalize(store, task.path, task.kind, task.fields, number)


_DO = {"index": _index, "pool": _pool, "score": _score, "pairs": _pairs, "train": _train, "evaluate": _evaluate}
