"""The content of score shards: raw values of every image of a pool shard, by one scorer.

It imports no Diffusers: a scoring actor starts with its scorer's libraries alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from torch import Tensor

from raypref import images
from raypref.artifacts import SCORES
from raypref.listing import reject


def score_shard(
    scorer: Callable[[Tensor, list[str]], Tensor], pool: pa.Table, batch_size: int, token: str | None = None
) -> tuple[pa.Table, list[dict]]:
    """Raw values of every image of a pool shard, [images x width] a row; NaN (and set aside) where there is none.
    `token`: a subject's rare token, which the scorer does not see."""
    rows = pool.select(["prompt_id", "prompt", "images"]).to_pylist()
    flat = [
        (row["prompt_id"], number, row["prompt"], file) for row in rows for number, file in enumerate(row["images"])
    ]
    present = [item for item in flat if item[3] is not None]
    values: dict[tuple[str, int], list[float]] = {}
    for start in range(0, len(present), batch_size):
        part = present[start : start + batch_size]
        arrays = images.decode_many([item[3] for item in part], images.THREADS)
        for shape in sorted({array.shape for array in arrays}):
            same = [(item, array) for item, array in zip(part, arrays, strict=True) if array.shape == shape]
            prompts = [without_token(item[2], token) for item, _ in same]
            result = (
                scorer(images.to_tensor([array for _, array in same]), prompts).float().cpu().reshape(len(same), -1)
            )
            values |= {item[:2]: row for (item, _), row in zip(same, result.tolist(), strict=True)}
    rejected = [
        reject(f"{id}/{number}", "score is not finite", value)
        for (id, number), value in values.items()
        if not all(map(math.isfinite, value))
    ]
    if hasattr(scorer, "over_candidates"):
        values = _over_candidates(scorer.over_candidates, values)
    width = max(map(len, values.values()), default=1)
    for item in rejected:
        id, _, number = item["id"].rpartition("/")
        values[(id, int(number))] = [math.nan] * width
    table = [
        {
            "prompt_id": row["prompt_id"],
            "values": [
                values.get((row["prompt_id"], number), [math.nan] * width) for number in range(len(row["images"]))
            ],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(table, SCORES), rejected


def _over_candidates(combine: Callable[[np.ndarray], np.ndarray], values: dict) -> dict[tuple[str, int], list[float]]:
    """One value an image, from those of all finite candidates of its prompt."""
    prompts: dict[str, dict] = {}
    for key, row in values.items():
        if all(map(math.isfinite, row)):
            prompts.setdefault(key[0], {})[key] = row
    return {
        key: [value]
        for rows in prompts.values()
        for key, value in zip(rows, combine(np.array(list(rows.values()))).tolist(), strict=True)
    }


def without_token(prompt: str, token: str | None) -> str:
    """'a photo of sks dog' as 'a photo of dog': feature models do not know the rare token (RPO)."""
    return " ".join(word for word in prompt.split() if word.strip(",.!?") != token) if token else prompt
