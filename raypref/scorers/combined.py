"""Several scorers as one: a weighted sum of scores, or the mean of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from raypref.scorers import load


class WeightedSum:
    """Sum of weight times score over `parts`: [{"kind", "args", "weight"}, ...]. Its scale is that of its parts, which
    differ (a PickScore is about 20, an HPS about 0.3), so weights carry the units."""

    def __init__(self, parts: list[dict], device: str = "cpu"):
        self.scorers = load_parts(parts, {"weight"}, device)
        for number, part in enumerate(parts):
            weight = part.get("weight")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"parts[{number}].weight: {weight!r} must be a finite number")
        self.weights = [float(part["weight"]) for part in parts]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return part_scores(self.scorers, images, prompts) @ torch.tensor(self.weights)


class RankAverage:
    """Mean rank over `parts`: [{"kind", "args"}, ...] among the candidates of one prompt: 0 (worst by all) to 1 (best by all).

    Called, it gives the scores of its parts [B, K]; `over_candidates` makes ranks of them where all candidates of a prompt
    are at hand (`scoring.score_shard`): all of a pool, of which `pairs.first` may then take a part. Ranks of different prompts,
    domains or models cannot be compared.
    """

    def __init__(self, parts: list[dict], device: str = "cpu"):
        self.scorers = load_parts(parts, set(), device)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return part_scores(self.scorers, images, prompts)

    @staticmethod
    def over_candidates(values_NK: np.ndarray) -> np.ndarray:
        """Mean ranks [N] of the N candidates of a prompt, in [0, 1]; ties share their mean rank; a single one has 0.5."""
        number = len(values_NK)
        ranks = rankdata(values_NK, axis=0) - 1
        return ranks.mean(1) / (number - 1) if number > 1 else np.full(number, 0.5)


def load_parts(parts: list[dict], extra: set[str], device: str) -> list[Callable[[Tensor, list[str]], Tensor]]:
    """The scorer of each part. Raises ValueError that names the part."""
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"parts: {parts!r} must be a list of one or more scorers")
    made = []
    for number, part in enumerate(parts):
        allowed = {"kind", "args"} | extra
        if not isinstance(part, dict) or "kind" not in part or set(part) - allowed:
            raise ValueError(f"parts[{number}]: {part!r} must have a kind, and may have {', '.join(sorted(allowed))}")
        try:
            scorer = load(part["kind"], part.get("args") or {}, device)
        except ValueError as error:
            raise ValueError(f"parts[{number}]: {error}") from error
        if hasattr(scorer, "over_candidates"):
            raise ValueError(f"parts[{number}]: a {part['kind']} needs all candidates of a prompt and cannot be a part")
        made.append(scorer)
    return made


def part_scores(scorers: list[Callable], images: Tensor, prompts: list[str]) -> Tensor:
    """Scores [B, K] of K scorers. Raises ValueError for one that gives features."""
    scores = [scorer(images, prompts).float().cpu() for scorer in scorers]
    for number, score in enumerate(scores):
        if score.ndim != 1:
            raise ValueError(f"parts[{number}]: gives features {list(score.shape)}; a part gives one score an image")
    return torch.stack(scores, dim=1)
