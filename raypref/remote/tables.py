"""Ray tasks over rows: listing sources, selecting pairs. They load no model and import no torch, so they start at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import ray

from raypref import listing, pairing
from raypref.artifacts import Store, digest, finalize, finished_shards, write_shard
from raypref.config import RunConfig
from raypref.tasks import Task

Report = Callable[[int], None]  # how many more are made


class TooManyRejected(ValueError):
    """More rows are bad than `data.max_rejected` allows."""


def build_index(task: Task, store: Store, config: RunConfig) -> int:
    """List a source (in a Ray task, since the driver need not see its files); how many rows it has."""
    fingerprint = digest(task.fields)
    write = ray.remote(listing.write_index).options(num_cpus=0.1, scheduling_strategy="SPREAD")
    count = ray.get(write.remote(store, task.path, task.fields, fingerprint))
    manifest = finalize(
        store,
        task.path,
        task.kind,
        task.fields,
        count,
        lambda bad, good: check_share(task.path, bad, bad + good, config),
    )
    return manifest["rows"]


def check_share(path: str, bad: int, total: int, config: RunConfig) -> None:
    if bad > config.data.max_rejected * total:
        raise TooManyRejected(
            f"{path}: {bad} of {total} rows are bad, more than data.max_rejected={config.data.max_rejected:g}. "
            f"The shards' .json files in {path} list them with the reasons; mend the source, or "
            "raise data.max_rejected"
        )


def build_pairs(task: Task, store: Store, run: Store, report: Report) -> None:
    """Select pairs shard by shard from pools and scores; nothing is generated.

    Raises ValueError when no pair is left, with the counts of why.
    """
    number = pairing.count_shards(task.spec, store)
    done = finished_shards(run, task.path, digest(task.fields))
    items = [{"shard": k} for k in range(number) if k not in done]
    if items:
        stream = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _select, batch_size=1, batch_format="pyarrow", num_cpus=0.25, fn_args=(task, store, run)
        )
        for row in stream.iter_rows():
            report(row["pairs"])
    manifest = finalize(run, task.path, task.kind, task.fields, number)
    if not manifest["rows"]:
        raise ValueError(
            f"{task.path}: no pairs; of the prompts, {manifest['statistics'].get('dropped')}. Loosen "
            "pairs.min_gap, raise the pool's count, or choose another scorer"
        )
    _describe(task, run, manifest)


def _select(batch: pa.Table, task: Task, store: Store, run: Store) -> pa.Table:
    counts = []
    for shard in batch["shard"].to_pylist():
        table, statistics = pairing.make_shard(task.spec, store, shard)
        write_shard(run, task.path, shard, table, digest(task.fields), statistics=statistics)
        counts.append(table.num_rows)
    return pa.table({"pairs": pa.array(counts, pa.int64())})


def _describe(task: Task, run: Store, manifest: dict) -> None:
    """Add to the manifest the distribution of score gaps and the prompts at its ends."""
    if task.spec["winner"]["scores"] is None:
        return
    gaps, ends = [], []
    for file in manifest["files"]:
        table = run.read_table(f"{task.path}/{file['file']}", ["prompt", "winner_score", "loser_score"])
        gap = table["winner_score"].to_numpy() - table["loser_score"].to_numpy()
        gaps.append(gap)
        order = np.argsort(gap, kind="stable")
        # of a file only its ends, so that memory grows by four bytes a pair
        ends += [{"prompt": table["prompt"][int(i)].as_py(), "gap": float(gap[i])} for i in {*order[:5], *order[-5:]}]
        ends = sorted(ends, key=lambda end: (end["gap"], end["prompt"]))
        ends = ends if len(ends) <= 10 else ends[:5] + ends[-5:]
    gap = np.concatenate(gaps)
    counts, edges = np.histogram(gap, bins=40)
    manifest["statistics"] |= {
        "mean_gap": float(gap.mean(dtype=np.float64)),
        "gap_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "gap_by_prompt": {"smallest": ends[:5], "largest": ends[:-6:-1]},
    }
    run.write_json(f"{task.path}/manifest.json", manifest)
