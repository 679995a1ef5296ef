"""The metrics of one model from stored images, scores and features; nothing is generated or scored here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from raypref import metrics, rewards
from raypref.artifacts import Store, iter_rows, read_manifest
from raypref.config import Evaluation
from raypref.curriculum import COLORS


def evaluate(spec: dict, evaluation: Evaluation, store: Store, run: Store) -> dict:
    """{"metrics", "intervals", "real"} of one model on the held-out prompts. `spec`: of an evaluate task (curriculum.py).

    The first `evaluation.images` images of each prompt count. Values whose score is missing in either model of a
    comparison are left out.
    """
    count = {"images": evaluation.images, "base": evaluation.images, "real": 1}
    values = {
        role: {name: _values(store, path, count[role]) for name, path in paths.items()}
        for role, paths in spec["scores"].items()
    }
    mine, base, real = values["images"], values["base"], values.get("real")
    is_base, preference = spec["model"] == "base", evaluation.preference
    # a preference scorer that is also reported under its own name is reported once
    named = preference if preference in evaluation.scorers else "preference_score"
    outcomes = {} if is_base else _outcomes(mine[preference], base[preference])
    result = {
        named: float(_clean(mine[preference]).mean()),
        "win_rate_vs_base": None if is_base else _mean(outcomes),
        **{name: float(_clean(mine[name]).mean()) for name in evaluation.scorers},
        "color_drift": None if is_base else metrics.color_drift(*_aligned(mine[COLORS], base[COLORS])[1:]),
    }
    intervals = {named: _interval(mine[preference])}
    if not is_base:
        intervals["win_rate_vs_base"] = _interval(outcomes)
        if evaluation.second:
            second = _outcomes(mine[evaluation.second], base[evaluation.second])
            result["second_win_rate"], intervals["second_win_rate"] = _mean(second), _interval(second)
        drawn, reference = (_latents(store, spec["pools"][role], evaluation.images) for role in ("images", "base"))
        result["latent_mean_drift"] = metrics.latent_mean_drift(*_aligned(drawn, reference)[1:])
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
            named: float(_clean(real[preference]).mean()),
            **{name: float(_clean(real[name]).mean()) for name in evaluation.scorers},
        }
    # a single prompt has no interval, and JSON no NaN
    intervals = {name: ends for name, ends in intervals.items() if np.isfinite(ends).all()}
    # plain JSON values throughout
    return json.loads(json.dumps({"metrics": result, "intervals": intervals, "real": measured}, default=float))


Key = tuple[str, int]  # prompt id and number of the image


def _values(store: Store, path: str, images: int) -> dict[Key, list[float]]:
    return {
        (row["prompt_id"], number): value
        for row in iter_rows(store, path)
        for number, value in enumerate(row["values"][:images])
    }


def _outcomes(mine: dict[Key, list[float]], base: dict[Key, list[float]]) -> dict[Key, float]:
    """1 where the model's image has the higher score, 0 where the base's of the same noise has, .5 at a tie."""
    keys, scores, reference = _aligned(mine, base)
    return dict(zip(keys, metrics.win_outcomes(scores[:, 0], reference[:, 0]), strict=True))


def _mean(values: dict[Key, float]) -> float:
    return float(np.mean(list(values.values())))


def _interval(values: dict[Key, float | list[float]]) -> tuple[float, float]:
    """Bootstrapped over prompts, since images of one prompt are alike."""
    prompts: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        if np.isfinite(value).all():
            prompts.setdefault(prompt, []).append(float(np.mean(value)))
    return metrics.bootstrap_interval(np.array([np.mean(found) for found in prompts.values()]))


def _clean(values: dict[Key, list[float]]) -> np.ndarray:
    # an image without a score has one NaN, whatever the width
    table = np.array([value for value in values.values() if np.isfinite(value).all()])
    if not len(table):
        raise ValueError("no evaluation image has a finite score; rejected.parquet in the scores' folder says why")
    return table[:, 0] if table.shape[1] == 1 else table


def _aligned(a: dict[Key, Any], b: dict[Key, Any]) -> tuple[list[Key], np.ndarray, np.ndarray]:
    """What both have: keys, and values [N, ...] of each."""
    keys = [key for key in a if key in b and np.isfinite(a[key]).all() and np.isfinite(b[key]).all()]
    if not keys:
        raise ValueError(
            "no evaluation prompt has a score of both models; rejected.parquet in the scores' folder says why"
        )
    return keys, np.array([a[key] for key in keys]), np.array([b[key] for key in keys])


def _latents(store: Store, path: str, images: int) -> dict[Key, np.ndarray]:
    """Of the images that were not set aside: float16 [C, H, W]."""
    return {
        (row["prompt_id"], number): np.frombuffer(row["latents"][number], np.float16).reshape(row["latent_shape"])
        for row in iter_rows(store, path, ["prompt_id", "images", "latents", "latent_shape"])
        for number, image in enumerate(row["images"][:images])
        if image is not None  # not finite
    }
