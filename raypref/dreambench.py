"""DreamBench's protocol (Ruiz et al. 2022, arXiv 2208.12242) as RPO (arXiv 2407.12164) uses it: settings, rows and means.

Each of 30 subjects has 25 prompts, for each of which a model draws 4 images. DINO and CLIP-I are the mean cosine of an image
with every reference photo, CLIP-T that with its prompt; all are averaged over references, images, prompts and subjects.
"""

from __future__ import annotations

import numpy as np

from raypref.artifacts import Store, read_manifest
from raypref.config import Evaluation, RunConfig
from raypref.curriculum import plan
from raypref.overlays import leaves
from raypref.tasks import Task, needed

SUBJECTS, PROMPTS = 30, 25
METRICS = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}  # higher is better, 1 at most
_CLIP = {"model": "ViT-B-16", "pretrained": "openai"}
SCORERS = {
    "dino": {"kind": "dino"},  # ViT-S/16
    "clip_i": {"kind": "open_clip_features", "args": _CLIP},
    "clip_t": {"kind": "open_clip", "args": _CLIP},
}
EVALUATION = {"preference": "clip_t", "scorers": ["clip_t"], "likeness": ["dino", "clip_i"], "images": 4}
CHANGES = ("scorers", "sampling", "resources", "evaluation.images", "data.max_rejected")  # that training cannot notice

SOURCE = "arXiv 2407.12164"
PUBLISHED = [
    {"model": f"RPO, lambda_val {lam}", "subjects": SUBJECTS, "dino": dino, "clip_i": clip_i, "clip_t": clip_t}
    for lam, dino, clip_i, clip_t in (
        (0.3, 0.581, 0.798, 0.329),
        (0.5, 0.652, 0.833, 0.314),
        (0.7, 0.679, 0.850, 0.304),
    )
]
NOTE = (
    f"Published rows: {SOURCE}, means over {SUBJECTS} subjects of the paper's base model with its whole U-Net trained. Other "
    f"rows compare with them only over all {SUBJECTS} subjects, from the same base model and by the same metric models."
)


def laid_over(tree: dict) -> dict:
    """A run's fields with the protocol's scorers and evaluation in the place of its own."""
    return tree | {"scorers": tree.get("scorers", {}) | SCORERS, "evaluation": EVALUATION}


def check_changes(changes: list[dict]) -> None:
    """Raises ValueError for a change of what a finished run was trained with."""
    for path in (path for change in changes for path in leaves(change)):
        if not any(f"{path}.".startswith(f"{allowed}.") for allowed in CHANGES):
            raise ValueError(
                f"--set or --config {path}: an evaluation takes over what the run was trained with; it can change "
                f"{', '.join(CHANGES)}"
            )


def tasks(config: RunConfig, own: RunConfig, run: Store, pools: Store) -> list[Task]:
    """What it takes to evaluate the base model and every stage that `own`, the run's configuration, has trained.

    `config`: that of the evaluation, without stages. Raises ValueError for a stage that is not finished, or another
    evaluation than the protocol's.
    """
    free = config.evaluation.model_dump(include={"images", "grid"})
    if config.evaluation != Evaluation(**EVALUATION | free):
        raise ValueError(f"evaluation: is the protocol's ({EVALUATION}); only evaluation.images can be changed")
    trained = {task.model: task for task in plan(own) if task.kind == "train"}
    for name, task in trained.items():
        if read_manifest(run, task.path, task.fields) is None:
            shared = f" --pools {pools.uri}" if pools != run else ""
            raise ValueError(
                f"{run.uri}: stage {name} is not trained to its end (there is no {task.path}); finish it with: "
                f"python jobs/rpo.py --config {run.join('config.json')} --run-dir {run.uri}{shared}"
            )
    return needed(plan(config, trained), "evaluate")


def rows(tasks: list[Task], subject: str, run: Store, pools: Store) -> list[dict]:
    """Of each evaluated model of a subject the metrics, and how many prompts and reference photos they are over."""
    found = []
    for task in tasks:
        if task.kind == "evaluate":
            metrics = read_manifest(run, task.path)["statistics"]["metrics"]
            prompts, references = (
                read_manifest(pools, task.spec["pools"][role])["rows"] for role in ("images", "real")
            )
            row = {"subject": subject, "model": task.model, **{name: metrics.get(name) for name in METRICS}}
            found.append(row | {"prompts": prompts, "references": references})
    return found


def means(rows: list[dict]) -> list[dict]:
    """Of each model the mean of every metric over its subjects, each of which counts the same."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        found.append({"model": model, "subjects": len(mine)})
        for name in METRICS:
            values = [row[name] for row in mine if row[name] is not None]
            found[-1][name] = float(np.mean(values)) if values else None
    return found


def summarize(rows: list[dict], configs: list[RunConfig], failed: dict[str, str]) -> dict:
    """The content of dreambench.json. `failed`: messages by subject."""
    config = configs[0]
    return {
        "protocol": "dreambench",
        "means": means(rows),
        "published": [row | {"source": SOURCE} for row in PUBLISHED],
        "notes": [NOTE, *departures(rows, configs)],
        "subjects": rows,
        "failed": failed,
        "settings": {
            "base": config.model.base,
            "resolution": config.model.resolution,
            "sampling": config.sampling.model_dump(include={"steps", "guidance", "guidance_rescale"}),
            "images": config.evaluation.images,
            "scorers": {name: _scorer(config.scorers[name].model_dump()) for name in METRICS},
        },
    }


def departures(rows: list[dict], configs: list[RunConfig]) -> list[str]:
    """In what an evaluation differs from the protocol, each as one sentence."""
    config, found = configs[0], []
    if (number := len({row["subject"] for row in rows})) != SUBJECTS:
        found.append(f"Subjects: {number} instead of {SUBJECTS}.")
    if others := sorted({row["prompts"] for row in rows} - {PROMPTS}):
        found.append(f"Prompts a subject: {', '.join(map(str, others))} instead of {PROMPTS}.")
    if config.evaluation.images != EVALUATION["images"]:
        found.append(f"Images a prompt: {config.evaluation.images} instead of {EVALUATION['images']}.")
    if any(config.data.eval_real is None for config in configs):
        found.append("References: a held-out share of data.real (data.holdout) instead of every photo.")
    if len(bases := sorted({config.model.base for config in configs})) > 1:
        found.append(f"Base models differ between subjects: {', '.join(bases)}.")
    for name, protocol in SCORERS.items():
        mine, wanted = _scorer(config.scorers[name].model_dump()), _scorer(protocol)
        if mine != wanted:
            found.append(f"{METRICS[name]}: by {_words(mine)} instead of {_words(wanted)}.")
    return found


def _scorer(scorer: dict) -> dict:
    """What decides a scorer's values. A folder or hub id has weights of its own, so that open_clip ignores `pretrained`."""
    args = dict(scorer.get("args", {}))
    if any(sign in str(args.get("model")) for sign in "/:"):
        args.pop("pretrained", None)
    return {"kind": scorer["kind"], "args": args}


def _words(scorer: dict) -> str:
    return " ".join(map(str, (scorer["kind"], *scorer["args"].values())))


def overview(result: dict) -> str:
    """Means and published figures as one Markdown table, and the notes. `result`: of `summarize`."""
    published = [row | {"model": f"{row['model']} ({row['source']})"} for row in result["published"]]
    table = _table(("model", "subjects", *METRICS), [*result["means"], *published])
    return "\n\n".join([table, *result["notes"]])


def markdown(result: dict) -> str:
    """The content of dreambench.md."""
    parts = ["# DreamBench", overview(result)]
    parts += ["## Subjects", _table(("subject", "model", *METRICS, "prompts", "references"), result["subjects"])]
    if result["failed"]:
        parts += ["## Failed", "\n".join(f"* {name}: {error}" for name, error in result["failed"].items())]
    return "\n\n".join(parts) + "\n"


def _table(names: tuple[str, ...], rows: list[dict]) -> str:
    lines = [[METRICS.get(name, name) for name in names], *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
