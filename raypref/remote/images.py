"""Ray Data streams that make pools of images and their scores.

A row of the stream is one shard. Painters (actors with the pipeline) write pool shards and hand the encoded images on to
scoring actors, which write score shards; the driver sees one small summary a shard. A shard that exists is not made
again, so a killed job goes on where it was, and at-least-once execution gives exactly-once data.

Models are imported inside the actors: the driver loads no torch.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache, cached_property, partial
from pathlib import Path

import pyarrow as pa
import ray

from raypref.artifacts import Store, digest, finalize, finished_shards, read_manifest, shard_name, write_shard
from raypref.config import RunConfig
from raypref.remote.cluster import Share, quick_imports, share, wait_for
from raypref.remote.tables import Report, check_share
from raypref.tasks import Task, images_a_row

SUMMARY = pa.schema(
    [
        ("pool", pa.string()),
        ("shard", pa.int64()),
        ("table", pa.binary()),
        (
            "made",
            pa.list_(
                pa.struct(
                    [("path", pa.string()), ("kind", pa.string()), ("images", pa.int64()), ("rejected", pa.int64())]
                )
            ),
        ),
    ]
)


def build_images(
    tasks: list[Task], store: Store, run: Store, config: RunConfig, report: Report, painter: type | None = None
) -> None:
    """Make pools of one model and scores on pools, all in one stream. `painter`: another class in the place of Painter.

    Raises TooManyRejected as soon as an artifact cannot end within `data.max_rejected`.
    """
    pools = {task.path: task for task in tasks if task.kind == "pool"}
    scores = [task for task in tasks if task.kind == "score"]
    items, sizes, expected = [], {}, {}
    for path in dict.fromkeys([*pools, *(task.spec["pool"] for task in scores)]):
        source = read_manifest(store, pools[path].parents[0] if path in pools else path)
        sizes[path] = len(source["files"])
        fields = pools[path].fields if path in pools else source["fields"]
        expected[path] = source["rows"] * images_a_row(fields)
        painted = finished_shards(store, path, digest(fields))
        missing = {s.path: finished_shards(store, s.path, digest(s.fields)) for s in scores if s.spec["pool"] == path}
        expected |= dict.fromkeys(missing, expected[path])
        items += [
            {"pool": path, "shard": k}
            for k in range(sizes[path])
            if k not in painted or any(k not in done for done in missing.values())
        ]
    if items:
        _stream(items, _Work(config, store.uri, run.uri, pools, scores), expected, report, painter or Painter)
    for task in tasks:
        finalize(
            store,
            task.path,
            task.kind,
            task.fields,
            sizes[task.spec.get("pool", task.path)],
            lambda bad, _, path=task.path: check_share(path, bad, expected[path], config),
        )


class _Work:
    """What the actors of a stream need; plain values, sent once to each."""

    def __init__(self, config: RunConfig, store: str, run: str, pools: dict[str, Task], scores: list[Task]):
        self.config, self.store, self.run, self.pools, self.scores = config, store, run, pools, scores


def _stream(items: list[dict], work: _Work, expected: dict[str, int], report: Report, painter: type) -> None:
    config, total = work.config, ray.cluster_resources()
    # one block a shard: Ray Data runs blocks side by side, and rows of one block after another
    stream = ray.data.from_items(items, override_num_blocks=len(items))
    used = []
    if work.pools:
        used.append(share(config, "generate", total))
        stream = _actors(stream, painter, used[-1], len(items), (work, used[-1]))
    if work.scores:
        used.append(share(config, "score", total))
        stream = _actors(stream, Scoring, used[-1], len(items), (work, used[-1]))
    wait_for(used, "building images", config)
    bad: dict[str, int] = {}
    for row in stream.iter_rows():
        for entry in row["made"]:
            bad[entry["path"]] = bad.get(entry["path"], 0) + entry["rejected"]
            check_share(entry["path"], bad[entry["path"]], expected[entry["path"]], config)
            report(entry["images"])


def _actors(stream, kind: type, part: Share, items: int, arguments: tuple):
    return stream.map_batches(
        kind,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=min(part.actors, items), max_size=min(part.most or part.actors, items)
        ),
        num_cpus=part.cpus,
        num_gpus=part.gpus,
        fn_constructor_args=arguments,
        zero_copy_batch=True,
    )


class Painter:
    """An actor that holds the wave's model and makes pool shards."""

    def __init__(self, work: _Work, part: Share):
        with quick_imports():
            import torch

            from raypref.models import load_pipeline, starting_lora
            from raypref.pools import pool_shard, truncation

        torch.set_num_threads(part.threads)
        self.make, self.truncation = pool_shard, truncation
        self.load, self.starting = partial(load_pipeline, device=part.device), starting_lora
        self.work, self.store = work, Store(work.store)

    @cached_property
    def pipeline(self):
        """Loaded with the first shard: what cannot be loaded is an error of the stream, not of an actor that Ray starts anew."""
        model = self.work.config.model
        weights = next(iter(self.work.pools.values())).spec.get("weights")
        with tempfile.TemporaryDirectory() as folder:
            trained = self.starting(model)
            if weights:
                Store(self.work.run).pull(weights, folder)
                trained = {weights.rpartition("/")[2]: Path(folder)}
            return self.load(model, **trained)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._shard(row) for row in batch.to_pylist()], SUMMARY)

    def paint(self, task: Task, index: list[dict], real: list[dict] | None) -> tuple[pa.Table, list[dict]]:
        """Content of one pool shard, and what was set aside."""
        return self.make(self.pipeline, self.work.config, task.spec, index, real)

    def _shard(self, row: dict) -> dict:
        task = self.work.pools.get(row["pool"])
        name = shard_name(row["shard"])
        if task is None or self.store.exists(f"{row['pool']}/{name}.json"):
            return row | {"table": b"", "made": []}
        index = self.store.read_table(f"{task.parents[0]}/{name}.parquet").to_pylist()
        real = self.store.read_table(f"{task.spec['real']}/{name}.parquet").to_pylist() if "real" in task.spec else None
        table, rejected = self.paint(task, index, real)
        statistics = self.truncation(self.pipeline, table)
        write_shard(self.store, task.path, row["shard"], table, digest(task.fields), rejected, statistics)
        images = sum(map(len, table["images"].to_pylist()))
        made = {"path": task.path, "kind": "pool", "images": images, "rejected": len(rejected)}
        return row | {"table": _pack(table.select(["prompt_id", "prompt", "images"])), "made": [made]}


class Scoring:
    """An actor that holds the scorers of a wave (each loaded when first needed) and makes score shards."""

    def __init__(self, work: _Work, part: Share):
        with quick_imports():
            import torch

            from raypref.scorers import find, load
            from raypref.scoring import score_shard

            for task in work.scores:
                find(task.spec["settings"]["kind"])

        torch.set_num_threads(part.threads)
        self.make = score_shard
        self.work, self.store = work, Store(work.store)
        self.scorer = cache(lambda kind, args: load(kind, json.loads(args), part.device))

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._shard(row) for row in batch.to_pylist()], SUMMARY)

    def _shard(self, row: dict) -> dict:
        name = shard_name(row["shard"])
        made = row.get("made") or []
        table = _unpack(row["table"]) if row.get("table") else None
        for task in self.work.scores:
            if task.spec["pool"] != row["pool"] or self.store.exists(f"{task.path}/{name}.json"):
                continue
            if table is None:
                table = self.store.read_table(f"{row['pool']}/{name}.parquet", ["prompt_id", "prompt", "images"])
            settings = task.spec["settings"]
            scorer = self.scorer(settings["kind"], json.dumps(settings["args"]))
            scores, rejected = self.make(scorer, table, settings["batch_size"], settings.get("token"))
            write_shard(self.store, task.path, row["shard"], scores, digest(task.fields), rejected)
            images = sum(map(len, scores["values"].to_pylist()))
            made.append({"path": task.path, "kind": "score", "images": images, "rejected": len(rejected)})
        return {"pool": row["pool"], "shard": row["shard"], "made": made}


def _pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
