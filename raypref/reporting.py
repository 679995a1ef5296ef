"""Gathers what a finished run left in its directory into summary.json and report.html."""

from __future__ import annotations

import json
import shlex
import sys
import time
from itertools import islice

import numpy as np
from PIL import Image

from raypref.artifacts import Store, iter_rows, read_manifest
from raypref.config import RunConfig
from raypref.images import MAX_PIXELS, decode, encode, grid
from raypref.report import render
from raypref.tasks import Task

EXAMPLES = 4  # pairs and rejected rows shown of each


def summarize(config: RunConfig, tasks: list[Task], run: Store, pools: Store, timing: dict, wall_s: float) -> dict:
    """Write summary.json and report.html; the summary. A run that only went over finished tasks keeps its first time."""
    stages = [
        {
            "name": task.model,
            **{key: value for key, value in read_manifest(run, task.path)["statistics"].items() if key != "real"},
        }
        for task in tasks
        if task.kind == "evaluate"
    ]
    worked = sum(item["seconds"] for item in timing.values())
    summary = {
        "recipe": config.recipe,
        "seed": config.seed,
        "wall_s": round(max(worked, wall_s), 1),
        "stages": stages,
        "real": _real(tasks, run),
        "loras": _outputs(config, tasks, "lora"),
    }
    if unets := _outputs(config, tasks, "unet"):
        summary["unets"] = unets
    chosen = {
        t.model: run.read_json(f"{t.path}/chosen.json")
        for t in tasks
        if t.kind == "train" and config.stages[t.model].validation
    }
    if chosen:
        summary["chosen"] = chosen
    if run.exists("summary.json"):
        old = run.read_json("summary.json")
        if {**old, "wall_s": 0} == json.loads(json.dumps({**summary, "wall_s": 0})):
            return old
    data = _report(config, tasks, run, pools, timing, summary)
    run.write("grid.png", contact_sheet(data["grids"]["columns"]))
    run.write("report.html", render(data).encode())
    run.write_json("summary.json", summary)  # last: it says that the others are there
    return summary


def _outputs(config: RunConfig, tasks: list[Task], kind: str) -> dict[str, str]:
    """Paths of what the stages have made of one kind (Stage.output), by stage."""
    trained = [task for task in tasks if task.kind == "train" and config.stages[task.model].output == kind]
    return {task.model: f"{task.path}/{kind}" for task in trained}


def contact_sheet(columns: list[dict]) -> bytes:
    """PNG with a row of images for each model, the same prompt below the same prompt; small images are enlarged."""
    rows = []
    for column in columns:
        missing = Image.new("RGB", (64, 64), "grey")  # an image that was set aside
        pictures = [decode(i, MAX_PIXELS, min_side=1) if i is not None else missing for i in column["images"]]
        scale = max(1, 128 // max(map(max, (p.size for p in pictures))))
        rows.append(
            [np.array(p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)) for p in pictures]
        )
    return encode(grid(rows, 2), "png")


def _real(tasks: list[Task], run: Store) -> dict | None:
    first = next(task for task in tasks if task.kind == "evaluate")
    return read_manifest(run, first.path)["statistics"].get("real")


def _report(config: RunConfig, tasks: list[Task], run: Store, pools: Store, timing: dict, summary: dict) -> dict:
    """The data of the report's template (report.render)."""
    return {
        "title": f"raypref {config.recipe}",
        "recipe": config.recipe,
        "seed": config.seed,
        "wall_s": summary["wall_s"],
        "created": time.strftime("%Y-%m-%d %H:%M"),
        "versions": run.read_json("env.json")["versions"],
        "stages": summary["stages"],
        "real": summary["real"],
        "baseline_notes": _notes(summary, config) + cautions(tasks, tasks, config, run, pools),
        "curves": {
            task.model: [json.loads(line) for line in run.read(f"{task.path}/metrics.jsonl").splitlines()]
            for task in tasks
            if task.kind == "train"
        },
        "grids": _grids(config, tasks, pools),
        "pairs": {task.name: _pairs(task, run) for task in tasks if task.kind == "pairs"},
        "rejected": [row for task in tasks for row in _rejected(task, pools if task.shared else run)],
        "tasks": [{**item, "state": "done"} for item in timing.values()],
        "config": json.loads(config.model_dump_json()),
        "command": shlex.join(["python", *sys.argv]),
        "run_dir": run.uri,
    }


def _notes(summary: dict, config: RunConfig) -> list[str]:
    notes = [
        "Every model draws the same held-out prompts from the same noise. Preference accuracy is that of the last "
        "step, measured against the base model on held-out pairs of the base model's images."
    ]
    if summary["real"]:
        values = ", ".join(f"{name} {value:.3f}" for name, value in summary["real"].items() if "/" not in name)
        notes.append(f"Held-out real images for comparison: {values}.")
    if sizes := next((sizes for stage in summary["stages"] if (sizes := stage.get("sizes"))), None):
        notes.append(distances_note(sizes, config.scorers[config.evaluation.features].kind))
    notes += [f"{stage}: {words}." for stage, words in choices(summary).items()]
    return notes


def cautions(made: list[Task], tasks: list[Task], config: RunConfig, run: Store, pools: Store) -> list[str]:
    """What to know about artifacts that were made, a sentence each. `tasks`: of the whole run."""
    found = {task.spec["set"]: _truncated(task, pools) for task in made if task.kind == "pool"}
    batches = {task.spec["pairs"]: config.stages[task.model].batch_size for task in tasks if task.kind == "train"}
    found |= {task.path: _too_rare(task, run, batches[task.path]) for task in made if task.path in batches}
    return [sentence for sentence in found.values() if sentence]


def _truncated(task: Task, pools: Store) -> str:
    """Of prompts that are longer than the text encoders read."""
    cut = read_manifest(pools, task.path)["statistics"].get("truncated")
    if not cut:
        return ""
    example = cut["example"]
    return (
        f"{cut['prompts']} prompts of {task.spec['set']} are longer than the text encoder reads. Their ends have no effect on "
        f"images, though scorers may read them; that of {example['id']} is '{example['unread']}'."
    )


def _too_rare(task: Task, run: Store, batch_size: int) -> str:
    """Of pairs whose image size is too rare to fill a batch."""
    shapes = read_manifest(run, task.path)["statistics"].get("shapes", {})
    rare = {shape: rows for shape, rows in shapes.items() if rows < batch_size}
    if len(shapes) < 2 or not rare:
        return ""
    return (
        f"{sum(rare.values())} of {sum(shapes.values())} pairs of {task.name} are of image sizes with fewer than "
        f"batch_size={batch_size} pairs and are not trained on (latents {', '.join(rare)})."
    )


def distances_note(sizes: dict, kind: str) -> str:
    """What the distances to the real images are over, and what small sets do to them."""
    few = min(sizes["images"], sizes["real"])
    singular = (
        f", by more since there are fewer than the {sizes['features']} features" if few < sizes["features"] else ""
    )
    return (
        f"Fréchet distance and CMMD: features of {kind}, {sizes['images']} generated and {sizes['real']} real images. Small sets "
        f"raise the Fréchet distance{singular}, so it compares only with others of the same numbers; CMMD's estimate is unbiased."
    )


def choices(summary: dict) -> dict[str, str]:
    """Of each stage with a validation, which checkpoint was chosen and where training ended."""
    return {
        stage: f"checkpoint of step {c['step']} chosen, reward {c['reward']:.4f} at lambda_val {c['lambda_val']:g}; trained to "
        f"step {c['ended']}"
        for stage, c in summary.get("chosen", {}).items()
    }


def _grids(config: RunConfig, tasks: list[Task], pools: Store) -> dict:
    """The first images of every model on the same prompts and seeds, beside held-out real ones."""
    evaluations = [task for task in tasks if task.kind == "evaluate"]
    prompts, columns = [], []
    for task in evaluations:
        rows = list(
            islice(iter_rows(pools, task.spec["pools"]["images"], ["prompt", "images"]), config.evaluation.grid)
        )
        prompts = [row["prompt"] for row in rows]
        columns.append({"name": task.model, "images": [row["images"][0] for row in rows]})
    real = evaluations[0].spec["pools"].get("real")
    if real:
        rows = islice(iter_rows(pools, real, ["images"]), config.evaluation.grid)
        columns.append({"name": "real", "images": [row["images"][0] for row in rows]})
    return {"prompts": prompts, "columns": columns}


def _pairs(task: Task, run: Store) -> dict:
    manifest = read_manifest(run, task.path)
    statistics = manifest["statistics"]
    columns = ["prompt", "winner", "loser", "winner_score", "loser_score"]
    return {
        "rows": manifest["rows"],
        "gap_histogram": statistics.get("gap_histogram"),
        "mean_gap": statistics.get("mean_gap"),
        "winner_sources": statistics.get("winner_sources", {}),
        "loser_sources": statistics.get("loser_sources", {}),
        "examples": list(islice(iter_rows(run, task.path, columns), EXAMPLES)),
    }


def _rejected(task: Task, store: Store) -> list[dict]:
    manifest = read_manifest(store, task.path)
    dropped = [
        {"artifact": task.path, "reason": reason, "count": count, "examples": []}
        for reason, count in manifest["statistics"].get("dropped", {}).items()
    ]
    reasons = manifest.get("rejected", {}).get("reasons", {})
    if not reasons:
        return dropped
    rows = store.read_table(f"{task.path}/rejected.parquet").to_pylist()
    return dropped + [
        {
            "artifact": task.path,
            "reason": reason,
            "count": count,
            "examples": [f"{r['id']}: {r['detail']}" for r in rows if r["reason"] == reason][:EXAMPLES],
        }
        for reason, count in reasons.items()
    ]
