"""Stored values of a model's images, by prompt and number of the image: what metrics and comparisons are computed from."""

from __future__ import annotations

from typing import Any

import numpy as np

from raypref import metrics
from raypref.artifacts import Store, iter_rows

Key = tuple[str, int]  # prompt id and number of the image
REASON = "rejected.parquet in the scores' folder says why"


def read(store: Store, path: str, images: int) -> dict[Key, np.ndarray]:
    """The values [width] of the first `images` images of each prompt in a scores artifact; NaN where there is no score."""
    return {
        (row["prompt_id"], number): np.array(value)
        for row in iter_rows(store, path)
        for number, value in enumerate(row["values"][:images])
    }


def table(values: dict[Key, Any]) -> np.ndarray:
    """Those of the images that have some: [N] scores or [N, D] features. Raises ValueError when there is none."""
    # an image without a score has one NaN, whatever the width
    found = np.array([value for value in values.values() if np.isfinite(value).all()])
    if not len(found):
        raise ValueError(f"no evaluation image has a finite score; {REASON}")
    return found[:, 0] if found.shape[1] == 1 else found


def aligned(a: dict[Key, Any], b: dict[Key, Any]) -> tuple[list[Key], np.ndarray, np.ndarray]:
    """What both have: keys, and values [N, ...] of each. Raises ValueError when they share none."""
    keys = [key for key in a if key in b and np.isfinite(a[key]).all() and np.isfinite(b[key]).all()]
    if not keys:
        raise ValueError(f"no evaluation prompt has a score of both models; {REASON}")
    return keys, np.array([a[key] for key in keys]), np.array([b[key] for key in keys])


def outcomes(mine: dict[Key, Any], other: dict[Key, Any]) -> dict[Key, float]:
    """1 where the model's image has the higher score, 0 where the other's of the same prompt and number has, .5 at a tie."""
    keys, scores, reference = aligned(mine, other)
    return dict(zip(keys, metrics.win_outcomes(scores[:, 0], reference[:, 0]), strict=True))


def mean(values: dict[Key, float]) -> float:
    return float(np.mean(list(values.values())))


def interval(values: dict[Key, Any]) -> tuple[float, float]:
    """95 %, of the mean; bootstrapped over prompts, since images of one prompt are alike."""
    prompts: dict[str, list[float]] = {}
    for (prompt, _), value in values.items():
        if np.isfinite(value).all():
            prompts.setdefault(prompt, []).append(float(np.mean(value)))
    return metrics.bootstrap_interval(np.array([np.mean(found) for found in prompts.values()]))
