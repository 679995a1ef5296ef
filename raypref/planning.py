"""The plan as text: every task, what exists already, how many images and steps. Starts no Ray."""

from __future__ import annotations

from raypref.artifacts import Store, digest, finished_shards, read_manifest
from raypref.checkpoints import complete
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.listing import count_rows
from raypref.rundir import check
from raypref.tasks import Task, images_a_row


def show(config: RunConfig, run: Store, pools: Store) -> str:
    """One line a task and a line of totals. Raises ValueError where the run would refuse the run directory."""
    check(config, run)
    return listing(plan(config), config, run, pools)


def listing(tasks: list[Task], config: RunConfig, run: Store, pools: Store) -> str:
    """Of each task a line, then one of totals."""
    rows: dict[str, int] = {}
    lines, totals = [], {"images": 0, "scores": 0, "steps": 0}
    for task in tasks:
        store = pools if task.shared else run
        manifest = read_manifest(store, task.path, task.fields)
        amount, unit = _amount(task, config, rows, manifest)
        state = "done" if manifest else _partial(task, store)
        if task.kind == "index" and not amount:
            state = "EMPTY: the run will stop here; see data.holdout"
        if not manifest and unit in totals:
            totals[unit] += amount
        lines.append(f"{task.kind:<9} {task.name:<48} {f'{amount:,} {unit}':>16}  {state}")
    done = sum(line.endswith("done") for line in lines)
    lines.append(
        f"{len(lines)} tasks, {done} done; to do: {totals['images']:,} images, {totals['scores']:,} scores, "
        f"{totals['steps']:,} training steps"
    )
    return "\n".join(lines)


def _amount(task: Task, config: RunConfig, rows: dict[str, int], manifest: dict | None) -> tuple[int, str]:
    """How much a task makes; `rows` remembers prompts and images by path, as far as sources tell before the run."""
    if task.kind == "index":
        rows[task.path] = manifest["rows"] if manifest else count_rows(task.fields)
        return rows[task.path], "rows"
    if task.kind == "pool":
        rows[task.path] = rows[task.parents[0]] * images_a_row(task.fields)
        return rows[task.path], "images"
    if task.kind == "score":
        return rows[task.spec["pool"]], "scores"
    if task.kind == "train":
        return config.stages[task.spec["stage"]].steps, "steps"
    return (
        (manifest["rows"], "pairs")
        if task.kind == "pairs" and manifest
        else (1, {"pairs": "list"}.get(task.kind, "model"))
    )


def _partial(task: Task, store: Store) -> str:
    if task.kind == "train":
        steps = complete(store, task.path)
        return f"to do, from step {steps[-1]}" if steps else "to do"
    shards = len(finished_shards(store, task.path, digest(task.fields)))
    return f"to do, {shards} shards exist" if shards else "to do"
