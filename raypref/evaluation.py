"""The metrics of one model from stored images, scores and features; nothing is generated or scored here."""

from __future__ import annotations

import json

import numpy as np

from raypref import metrics, rewards, values
from raypref.artifacts import Store, iter_rows, read_manifest
from raypref.config import Evaluation
from raypref.curriculum import COLORS


def evaluate(spec: dict, evaluation: Evaluation, store: Store, run: Store) -> dict:
    """{"metrics", "intervals", "sizes", "real"} of one model on the held-out prompts. `spec`: of an evaluate task
    (curriculum.py).

    The first `evaluation.images` images of each prompt count. Values whose score is missing in either model of a
    comparison are left out. "sizes": over how many images and features the distances to the real images are.
    """
    count = {"images": evaluation.images, "base": evaluation.images, "real": 1}
    found = {
        role: {name: values.read(store, path, count[role]) for name, path in paths.items()}
        for role, paths in spec["scores"].items()
    }
    mine, base, real = found["images"], found["base"], found.get("real")
    is_base, preference = spec["model"] == "base", evaluation.preference
    named = preference_metric(evaluation)
    outcomes = {} if is_base else values.outcomes(mine[preference], base[preference])
    result = {
        named: float(values.table(mine[preference]).mean()),
        "win_rate_vs_base": None if is_base else values.mean(outcomes),
        **_means(spec, "images", mine, evaluation, store),
        "color_drift": None if is_base else metrics.color_drift(*values.aligned(mine[COLORS], base[COLORS])[1:]),
    }
    intervals = {named: values.interval(mine[preference])}
    if not is_base:
        intervals["win_rate_vs_base"] = values.interval(outcomes)
        if evaluation.second:
            second = values.outcomes(mine[evaluation.second], base[evaluation.second])
            result["second_win_rate"], intervals["second_win_rate"] = values.mean(second), values.interval(second)
        drawn, reference = (_latents(store, spec["pools"][role], evaluation.images) for role in ("images", "base"))
        result["latent_mean_drift"] = metrics.latent_mean_drift(*values.aligned(drawn, reference)[1:])
    for name in evaluation.likeness if real else ():
        result[name] = float(rewards.cosines(values.table(mine[name]), values.table(real[name])).mean())
    distances, sizes = _distances(mine, real, evaluation.features)
    result |= distances
    if spec["training"]:
        result["preference_accuracy"] = read_manifest(run, spec["training"])["statistics"].get("validation/accuracy")
    measured = None
    if real:
        measured = {
            named: float(values.table(real[preference]).mean()),
            **_means(spec, "real", real, evaluation, store),
        }
    # a single prompt has no interval, and JSON no NaN
    intervals = {name: ends for name, ends in intervals.items() if np.isfinite(ends).all()}
    # plain JSON values throughout
    content = {"metrics": result, "intervals": intervals, "sizes": sizes, "real": measured}
    return json.loads(json.dumps(content, default=float))


def preference_metric(evaluation: Evaluation) -> str:
    """What the preference scorer's mean is called: one that is also reported under its own name is reported once."""
    return evaluation.preference if evaluation.preference in evaluation.scorers else "preference_score"


def _means(spec: dict, role: str, found: dict[str, dict], evaluation: Evaluation, store: Store) -> dict[str, float]:
    """Mean of each reported scorer; of a descriptive one with named columns that of each column, as 'scorer/column'."""
    result = {}
    for name in evaluation.scorers:
        table = values.table(found[name])
        columns = column_names(store, spec["scores"][role][name]) if table.ndim > 1 else ()
        if columns:
            result |= {f"{name}/{column}": float(mean) for column, mean in zip(columns, table.mean(0), strict=True)}
        else:
            result[name] = float(table.mean())
    return result


def column_names(store: Store, path: str) -> tuple[str, ...]:
    """Names of the columns of stored values, which their scorer's class says; () when it says nothing."""
    from raypref.scorers import find  # here: most evaluations need no torch

    return getattr(find(read_manifest(store, path)["fields"]["scorer"]["kind"]), "columns", ())


def _distances(mine: dict, real: dict | None, features: str | None) -> tuple[dict, dict]:
    """Distances to the real images, and over how many images and features they are."""
    if not (features and real):
        return {}, {}
    tables = values.table(mine[features]), values.table(real[features])
    if min(map(len, tables)) < 2:  # a single image has no covariance
        return {}, {}
    found = {"frechet_distance": metrics.frechet_distance(*tables), "cmmd": metrics.cmmd(*tables)}
    return found, {"images": len(tables[0]), "real": len(tables[1]), "features": tables[0].shape[1]}


def _latents(store: Store, path: str, images: int) -> dict[values.Key, np.ndarray]:
    """Of the images that were not set aside: means of the latent's channels [C, 1, 1]."""
    return {
        (row["prompt_id"], number): _channel_means(row["latents"][number], row["latent_shape"])
        for row in iter_rows(store, path, ["prompt_id", "images", "latents", "latent_shape"])
        for number, image in enumerate(row["images"][:images])
        if image is not None  # not finite
    }


def _channel_means(latent: bytes, shape: list[int]) -> np.ndarray:
    """[C, 1, 1], which is all that the drift asks of latents, whose sizes may differ."""
    return np.frombuffer(latent, np.float16).reshape(shape).mean((1, 2), np.float64, keepdims=True)
