"""Which of several candidates is best when metrics disagree: pure functions of an array [N candidates, M metrics]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RULE = (
    "The best candidate is the one on the Pareto front that is nearest to the ideal point, where every metric is scaled"
    " to [0, 1] over the front and one that is equal over the front counts 0; of equally near ones it is the first."
)
SIGN = {"max": 1, "min": -1}


def front(points: np.ndarray, modes: Sequence[str]) -> list[int]:
    """Indices of the points that no other dominates, from the best to the worst first metric.

    Of equal points only the first is kept. A point with a value that is no finite number is never on the front.
    """
    gain_NM = _gain(points, modes)
    kept: list[int] = []
    # In this order, whatever dominates a point or equals it comes before it
    for i in sorted(np.flatnonzero(np.isfinite(gain_NM).all(1)).tolist(), key=lambda i: (*-gain_NM[i], i)):
        if not (gain_NM[kept] >= gain_NM[i]).all(1).any():
            kept.append(i)
    return kept


def knee(points: np.ndarray, modes: Sequence[str]) -> int | None:
    """Index of the best point by RULE (with one metric: of its best value), or None where there is no front."""
    indices = front(points, modes)
    if not indices:
        return None
    gain_FM = _gain(points, modes)[indices]
    loss_FM = gain_FM.max(0) - gain_FM
    spread_M = loss_FM.max(0)
    distance_F = np.linalg.norm(loss_FM / np.where(spread_M > 0, spread_M, 1), axis=1)
    # Rounded, so that the last bits of a distance settle no tie
    return min(zip(distance_F.round(9).tolist(), indices, strict=True))[1]


def _gain(points: np.ndarray, modes: Sequence[str]) -> np.ndarray:
    """The points with every metric turned so that more is better."""
    return np.asarray(points, float).reshape(len(points), len(modes)) * [SIGN[mode] for mode in modes]
