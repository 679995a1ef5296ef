"""Metrics of generated images and of preference training: pure functions of arrays.

Every function takes NumPy arrays, lists or tensors, computes in float64 and returns plain floats. Each docstring says
which direction is better. Shape suffixes: N, M images; P prompts or pairs; S seeds; B batch; C channels; D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from raypref.rewards import unit

if TYPE_CHECKING:
    import torch

    Values = np.ndarray | torch.Tensor | Sequence[float]
CONFIDENCE = 0.95


def frechet_distance(features_a: Values, features_b: Values) -> float:
    """Fréchet distance of two feature sets, each taken as a Gaussian. Squared feature units; lower is better.

        |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

    With Inception-v3 pool features this is FID (Heusel et al. 2017, arXiv 1706.08500). The last trace is the sum of the
    singular values of R_a R_b^T for any factors S = R^T R, so no root of a matrix is taken and nothing turns complex;
    the factors come from a QR decomposition of the centred features, which is small when there are few images.

    Bias: finite sets overestimate the distance, by tr(S_a) / N + tr(S_b) / M through the means alone and by more when
    N < D, where the covariance is singular. Compare only values from sets of the same sizes.
    """
    a_ND, b_MD = _feature_sets(features_a, features_b)
    root_a, root_b = (np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r") for x in (a_ND, b_MD))
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    shift = np.square(a_ND.mean(0) - b_MD.mean(0)).sum()
    distance = shift + np.square(root_a).sum() + np.square(root_b).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding can leave -1e-13 for equal sets


def cmmd(features_a: Values, features_b: Values, sigma: float = 10.0, block: int = 1024) -> float:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603): 1000 x the squared maximum mean discrepancy of two feature sets
    under the kernel exp(-|x - y|^2 / (2 sigma^2)). Lower is better.

    The unbiased estimate, which is the paper's formula: 0 on average for sets of one distribution, so a little below 0 at
    times, whatever their sizes. The published code has the biased one, higher by at most 1000 (1/N + 1/M) (1 - mean kernel):
    0.01 for two sets of 1000 CLIP features with a mean cosine of 0.5.

    Features are put at unit length first, as CLIP's are in the paper, so sigma means the same for every extractor; values are
    those of the literature only with the image features of OpenAI's CLIP ViT-L/14 at 336 px. Kernels of `block` x `block`
    are held at a time.
    """
    a_ND, b_MD = (unit(x) for x in _feature_sets(features_a, features_b))
    n, m = len(a_ND), len(b_MD)

    def total(x: np.ndarray, y: np.ndarray) -> float:
        """Sum of kernel - 1, which keeps the digits that a sum of numbers near 1 would lose."""
        found = 0.0
        for p in (x[i : i + block] for i in range(0, len(x), block)):
            for q in (y[j : j + block] for j in range(0, len(y), block)):
                halves = (np.square(p).sum(1)[:, None] + np.square(q).sum(1)) / 2 - p @ q.T  # |p - q|^2 / 2
                found += np.expm1(-np.maximum(halves, 0) / sigma**2).sum()
        return found

    # an image with itself has kernel - 1 = 0, so that only the divisor leaves it out
    within = total(a_ND, a_ND) / (n * (n - 1)) + total(b_MD, b_MD) / (m * (m - 1))
    return float(1000 * (within - 2 * total(a_ND, b_MD) / (n * m)))


def win_outcomes(scores_a: Values, scores_b: Values) -> np.ndarray:
    """[P]: 1 where a scores higher than b, 0.5 on a tie, 0 where lower. The values to bootstrap a win rate from."""
    a_P, b_P = _flat(scores_a, "scores_a"), _flat(scores_b, "scores_b")
    if a_P.shape != b_P.shape:
        raise ValueError(f"scores must be paired, got {len(a_P)} and {len(b_P)}")
    return (np.sign(a_P - b_P) + 1) / 2


def bootstrap_interval(
    values: Values, statistic: Callable = np.mean, n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval (low, high) of a statistic of independent values; same unit as the statistic.

    Percentile, not BCa: BCa has no answer for values that are all equal. One value has no spread: (nan, nan).
    """
    values = _flat(values, "values")
    if len(values) < 2:
        return float("nan"), float("nan")
    interval = stats.bootstrap(  # batches bound the memory: n x len(values) at once is gigabytes for an evaluation set
        (values,), statistic, n_resamples=n, batch=100, method="percentile", confidence_level=CONFIDENCE, rng=seed
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_interval(values: Values) -> tuple[float, float]:
    """(mean, half width of the 95 % Student-t interval) over S repeats, usually seeds. One repeat: half width nan."""
    values = _flat(values, "values")
    if len(values) < 2:
        return float(values[0]), float("nan")
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def color_statistics(images_BCHW: torch.Tensor) -> torch.Tensor:
    """[B, 8] colour statistics of RGB images in [0, 1]; descriptive, no direction is better.

    Columns: mean R, G, B; standard deviation over pixels R, G, B (population); mean HSV saturation,
    (max - min) / max with 0 for black; mean luminance, Rec. 709 weights on the encoded sRGB values (luma).
    """
    import torch  # here: reading stored values needs none

    if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {tuple(images_BCHW.shape)}")
    x = images_BCHW.detach().float()
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):  # also refuses NaN
        raise ValueError(f"images must lie in [0, 1], got [{x.min():.3g}, {x.max():.3g}]")
    mean_BC, std_BC = x.mean((2, 3)), x.std((2, 3), correction=0)
    high, low = x.amax(1), x.amin(1)
    saturation_B = ((high - low) / high.clamp_min(1e-8)).mean((1, 2))
    luminance_B = mean_BC @ torch.tensor([0.2126, 0.7152, 0.0722], device=x.device)
    return torch.cat([mean_BC, std_BC, saturation_B[:, None], luminance_B[:, None]], dim=1)


def color_drift(stats_a: Values, stats_b: Values) -> float:
    """Colour shift between two image sets: 255 x Euclidean distance of their mean RGB, in 8-bit levels.

    Takes the rows of `color_statistics`, [N, 8]. Lower is better: preference tuning is known to tint images.
    """
    a, b = (_array(x, name) for x, name in ((stats_a, "stats_a"), (stats_b, "stats_b")))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != 8 or b.shape[1] != 8 or not len(a) or not len(b):
        raise ValueError(f"colour statistics must be [N, 8] with N >= 1, got {a.shape} and {b.shape}")
    return float(255 * np.linalg.norm(a[:, :3].mean(0) - b[:, :3].mean(0)))


def latent_mean_drift(latents_a: Values, latents_b: Values) -> float:
    """mean over channels of |mean over N, H, W of a - the same of b|, in units of the scaled latent. Lower is better.

    What HG-DPO's statistics loss (arXiv 2405.20216) holds down, measured on final latents instead of estimates.
    """
    a, b = (_array(x, name) for x, name in ((latents_a, "latents_a"), (latents_b, "latents_b")))
    if a.ndim != 4 or b.ndim != 4 or a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ValueError(f"latents must be [N, C, H, W] with equal C, got {a.shape} and {b.shape}")
    return float(np.abs(a.mean((0, 2, 3)) - b.mean((0, 2, 3))).mean())


def _array(values: Values, name: str) -> np.ndarray:
    """float64 on the CPU, finite."""
    if hasattr(values, "detach"):  # a tensor; told apart without loading torch
        import torch

        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    return array


def _feature_sets(features_a: Values, features_b: Values) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] and [M, D], of two images or more each."""
    a_ND, b_MD = _array(features_a, "features_a"), _array(features_b, "features_b")
    for name, x in (("features_a", a_ND), ("features_b", b_MD)):
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"{name} must be [N, D] with N >= 2, got shape {x.shape}")
    if a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"feature sizes differ: {a_ND.shape[1]} and {b_MD.shape[1]}; use the same extractor for both")
    return a_ND, b_MD


def _flat(values: Values, name: str) -> np.ndarray:
    array = _array(values, name)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a list of at least one number, got shape {array.shape}")
    return array
