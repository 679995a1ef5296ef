"""lambda-harmonic reward of RPO (arXiv 2407.12164), Bradley-Terry labels, and which checkpoint to keep: pure functions.

`s_img` is how much an image looks like the reference images, `s_txt` how well it fits its prompt; both are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def similarity(cosine: np.ndarray) -> np.ndarray:
    """(cos + 1) / 2: cosines of features as similarities in [0, 1], of any shape."""
    return (np.clip(cosine, -1, 1) + 1) / 2


def cosines(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """[N, M] cosines of two sets of features; a feature of length zero is similar to nothing (0)."""
    return unit(a_ND) @ unit(b_MD).T


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Features at length one; those of length zero stay zero."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def harmonic(s_img: np.ndarray, s_txt: np.ndarray, lam: float) -> np.ndarray:
    """r = 1 / (lambda / s_img + (1 - lambda) / s_txt): 1 counts the image similarity alone, 0 the text similarity.

    A part that counts and is 0 makes the reward 0.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lambda={lam} must be in [0, 1]")
    s_img, s_txt = np.asarray(s_img, np.float64), np.asarray(s_txt, np.float64)
    if lam in (0, 1):
        return s_img if lam else s_txt
    # both sides times s_img s_txt, so that nothing is divided by a similarity of 0
    weight = lam * s_txt + (1 - lam) * s_img
    return np.divide(s_img * s_txt, weight, out=np.where(np.isnan(weight), np.nan, 0.0), where=weight > 0)


def preference(reward: float, other: float, temperature: float = 1.0) -> float:
    """Bradley-Terry probability that the image with the first reward is preferred: sigmoid((r - r') / temperature).

    Rewards lie in [0, 1], so labels at temperature 1 (the paper) are close to coin flips; below 1 they are surer.
    """
    return 1 / (1 + math.exp((other - reward) / temperature))


def best(curve: Sequence[float]) -> int | None:
    """Index of the highest reward, the first of equals; None when there is none that is a number."""
    found = [(-value, i) for i, value in enumerate(curve) if not math.isnan(value)]
    return min(found)[1] if found else None


def stalled(curve: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` values (NaN among them) brought no new highest reward."""
    top = best(curve)
    return len(curve) - 1 - (-1 if top is None else top) >= patience
