"""The metrics of one model from stored images, scores and features; nothing is generated or scored here."""

from __future__ import annotations

import json

import numpy as np

from raypref import metrics, rewards
from raypref.artifacts import Store, iter_rows, read_manifest
from raypref.config import Evaluation
from raypref.curriculum import COLORS


def evaluate(spec: dict, evaluation: Evaluation, store: Store, run: Store) -> dict:
    """{"metrics", "intervals", "real"} of one model on the held-out prompts. `spec`: of an evaluate task (curriculum.py).

    The first image of each prompt counts. Values whose score is missing in either model of a comparison are left out.
    """
    values = {
        role: {name: _values(store, path) for name, path in paths.items()} for role, paths in spec["scores"].items()
    }
    mine, base, real = values["images"], values["base"], values.get("real")
    scores, reference = _aligned(mine[evaluation.preference], base[evaluation.preference])
    outcomes = metrics.win_outcomes(scores, reference)
    is_base = spec["model"] == "base"
    result = {
        "preference_score": float(scores.mean()),
        "win_rate_vs_base": None if is_base else float(outcomes.mean()),
        **{name: float(_clean(mine[name]).mean()) for name in evaluation.scorers},
        "color_drift": None if is_base else metrics.color_drift(*_aligned_rows(mine[COLORS], base[COLORS])),
    }
    intervals = {"preference_score": metrics.bootstrap_interval(scores)}
    if not is_base:
        intervals["win_rate_vs_base"] = metrics.bootstrap_interval(outcomes)
        drawn, reference = (_latents(store, spec["pools"][role]) for role in ("images", "base"))
        both = [id for id in drawn if id in reference]
        result["latent_mean_drift"] = metrics.latent_mean_drift(
            *(np.stack([z[i] for i in both]) for z in (drawn, reference))
        )
    for name in evaluation.likeness if real else ():
        result[name] = float(rewards.cosines(_clean(mine[name]), _clean(real[name])).mean())
    if evaluation.features and real:
        features = _clean(mine[evaluation.features]), _clean(real[evaluation.features])
        if min(map(len, features)) > 1:  # a single image has no covariance
            result["frechet_distance"] = metrics.frechet_distance(*features)
    if spec["training"]:
        result["preference_accuracy"] = read_manifest(run, spec["training"])["statistics"].get("validation/accuracy")
    measured = None
    if real:
        measured = {
            "preference_score": float(_clean(real[evaluation.preference]).mean()),
            **{name: float(_clean(real[name]).mean()) for name in evaluation.scorers},
        }
    # a single image has no interval, and JSON no NaN
    intervals = {name: ends for name, ends in intervals.items() if np.isfinite(ends).all()}
    # plain JSON values throughout
    return json.loads(json.dumps({"metrics": result, "intervals": intervals, "real": measured}, default=float))


def _values(store: Store, path: str) -> dict[str, list[float]]:
    """Of each prompt the values of its first image."""
    return {row["prompt_id"]: row["values"][0] for row in iter_rows(store, path)}


def _clean(values: dict[str, list[float]]) -> np.ndarray:
    # an image without a score has one NaN, whatever the width
    table = np.array([value for value in values.values() if np.isfinite(value).all()])
    if not len(table):
        raise ValueError("no evaluation image has a finite score; rejected.parquet in the scores' folder says why")
    return table[:, 0] if table.shape[1] == 1 else table


def _aligned_rows(a: dict, b: dict) -> tuple[np.ndarray, np.ndarray]:
    both = [(a[id], b[id]) for id in a if id in b]
    pairs = np.array([pair for pair in both if all(np.isfinite(side).all() for side in pair)])
    if not len(pairs):
        raise ValueError(
            "no evaluation prompt has a score of both models; rejected.parquet in the scores' folder says why"
        )
    return pairs[:, 0], pairs[:, 1]


def _aligned(a: dict, b: dict) -> tuple[np.ndarray, np.ndarray]:
    left, right = _aligned_rows(a, b)
    return left[:, 0], right[:, 0]


def _latents(store: Store, path: str) -> dict[str, np.ndarray]:
    """Of the first image of every prompt that has one: float16 [C, H, W]."""
    found = {}
    for row in iter_rows(store, path, ["prompt_id", "images", "latents", "latent_shape"]):
        if row["images"][0] is not None:  # set aside: not finite
            found[row["prompt_id"]] = np.frombuffer(row["latents"][0], np.float16).reshape(row["latent_shape"])
    return found
