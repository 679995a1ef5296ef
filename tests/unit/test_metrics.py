"""Metrics against values worked by hand."""

import math

import numpy as np
import pytest
import torch

from raypref import metrics

SQUARE = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # mean 0, covariance 4/3 I


def test_frechet_distance_of_equal_sets_is_zero():
    a = np.random.default_rng(0).normal(size=(50, 8))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_a_shift_is_its_square():
    a = np.random.default_rng(0).normal(size=(30, 4))
    assert metrics.frechet_distance(a, a + np.array([3, 4, 0, 0])) == pytest.approx(25, abs=1e-9)


def test_frechet_distance_of_scaled_gaussians():
    # Both covariances are diagonal: sum over axes of (sigma_a - sigma_b)^2 = 4/3 ((1 - 2)^2 + (1 - 5)^2)
    assert metrics.frechet_distance(SQUARE, SQUARE * [2, 5]) == pytest.approx(4 / 3 * 17)


def test_frechet_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3)), rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    cross = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert metrics.frechet_distance(a, b) == pytest.approx(expected)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_frechet_distance_with_fewer_images_than_features():
    a = np.random.default_rng(2).normal(size=(5, 64))
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(a, a[:3] + 1) > 0


def test_frechet_distance_accepts_half_precision_tensors():
    a = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert metrics.frechet_distance(a, a + 1) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.zeros((1, 4)), np.zeros((9, 4)), "N >= 2"),
        (np.zeros((9, 4)), np.zeros((9, 5)), "feature sizes differ"),
        (np.zeros((9, 4)), np.full((9, 4), np.nan), "36 values that are not finite"),
        (np.zeros(9), np.zeros((9, 4)), "features_a"),
    ],
)
def test_frechet_distance_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics.frechet_distance(a, b)


def test_win_rate_counts_ties_half():
    a, b = [3, 1, 2, 5], [1, 3, 2, 4]  # win, loss, tie, win
    assert metrics.win_outcomes(a, b).tolist() == [1, 0, 0.5, 1]
    with pytest.raises(ValueError, match="paired"):
        metrics.win_outcomes([1, 2], [1])
    with pytest.raises(ValueError, match="at least one"):
        metrics.win_outcomes([], [])


def test_bootstrap_interval_covers_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        low, high = metrics.bootstrap_interval(rng.normal(2.0, 1.0, 40), n=300, seed=seed)
        hits += low <= 2.0 <= high
    assert 85 <= hits <= 100  # 95 % nominal


def test_bootstrap_interval_is_seeded_and_takes_any_statistic():
    values = np.random.default_rng(3).exponential(size=60)
    assert metrics.bootstrap_interval(values, seed=5) == metrics.bootstrap_interval(values, seed=5)
    assert metrics.bootstrap_interval(values, seed=5) != metrics.bootstrap_interval(values, seed=6)
    low, high = metrics.bootstrap_interval(values, lambda x: sorted(x)[30], n=200)
    assert low <= sorted(values)[30] <= high
    assert metrics.bootstrap_interval([1, 1, 1]) == (1, 1)
    assert all(map(math.isnan, metrics.bootstrap_interval([1])))


def test_mean_interval_by_hand():
    mean, half = metrics.mean_interval([1, 2, 3])  # t(0.975, 2) = 4.30265, s = 1
    assert mean == 2
    assert half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    mean, half = metrics.mean_interval([7.0])
    assert mean == 7 and math.isnan(half)


def test_color_statistics_by_hand():
    image = torch.zeros(2, 3, 2, 2)
    image[0, 0] = 0.5  # plain dark red: fully saturated
    image[1, :, 0] = 1.0  # upper half white, lower half black: no saturation
    red, grey = metrics.color_statistics(image)
    assert red.tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0, 1, 0.5 * 0.2126])
    assert grey.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0.5], abs=1e-6)


@pytest.mark.parametrize("bad", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.full((1, 3, 8, 8), -1.0)])
def test_color_statistics_refuses(bad):
    with pytest.raises(ValueError, match="images must"):
        metrics.color_statistics(bad)


def test_color_drift_is_in_8_bit_levels():
    a, b = torch.zeros(4, 8), torch.zeros(3, 8)
    b[:, 0], b[:, 1], b[:, 6] = 3 / 255, 4 / 255, 0.9  # saturation does not count
    assert metrics.color_drift(a, b) == pytest.approx(5)
    assert metrics.color_drift(b, b) == 0
    with pytest.raises(ValueError, match=r"\[N, 8\]"):
        metrics.color_drift(a[:, :3], b)


def test_latent_mean_drift_is_per_channel():
    a, b = torch.zeros(3, 2, 4, 4), torch.zeros(5, 2, 4, 4)
    b[:, 0], b[:, 1] = 1.0, -2.0  # must not cancel
    assert metrics.latent_mean_drift(a, b) == pytest.approx(1.5)
    assert metrics.latent_mean_drift(b, b) == 0
    with pytest.raises(ValueError, match="equal C"):
        metrics.latent_mean_drift(a, b[:, :1])


def naive_cmmd(a, b, sigma=10.0):
    def kernel(x, y):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / (2 * sigma**2))

    def within(x):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        return sum(kernel(x[i], x[j]) for i, j in pairs) / len(pairs)

    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return 1000 * (within(a) + within(b) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b)))


def test_cmmd_by_hand():
    # both sets are one point each, at a right angle: 1 + 1 - 2 exp(-2 / 200)
    a, b = np.array([[1.0, 0]] * 2), np.array([[0, 3.0]] * 3)
    assert metrics.cmmd(a, b) == pytest.approx(2000 * (1 - math.exp(-0.01)))
    # a has both points, b one: (k + 1 - (1 + k)) without an image's likeness to itself
    assert metrics.cmmd([[1, 0], [0, 1]], [[1, 0], [1, 0]]) == pytest.approx(0, abs=1e-12)
    assert metrics.cmmd([[1, 0], [0, 1]], [[1, 0], [0, 1]]) == pytest.approx(-1000 * (1 - math.exp(-0.01)))


@pytest.mark.parametrize("block", [1, 3, 7, 1024])
def test_cmmd_equals_a_double_loop_in_blocks_of_any_size(block):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 5)), 3 + rng.normal(size=(7, 5))
    assert metrics.cmmd(a, b, block=block) == pytest.approx(naive_cmmd(a, b), abs=1e-9)
    assert metrics.cmmd(a, b, sigma=0.5, block=block) == pytest.approx(naive_cmmd(a, b, 0.5), abs=1e-9)


def test_cmmd_is_unbiased_and_the_same_for_features_of_any_length():
    rng = np.random.default_rng(1)
    small = [metrics.cmmd(*rng.normal(size=(2, 6, 8))) for _ in range(400)]
    low, high = metrics.bootstrap_interval(small)
    assert low < 0 < high and min(small) < 0  # the biased estimate would be 3 on average
    a, b = rng.normal(size=(40, 8)), 1 + rng.normal(size=(30, 8))
    assert metrics.cmmd(a, b) == pytest.approx(metrics.cmmd(b, a))
    assert metrics.cmmd(a * 7, b) == pytest.approx(metrics.cmmd(a, b))
    assert metrics.cmmd(a, b) > metrics.cmmd(a, b - 0.5) > 0


def test_cmmd_refuses_what_the_frechet_distance_refuses():
    with pytest.raises(ValueError, match="N >= 2"):
        metrics.cmmd(np.ones((1, 4)), np.ones((9, 4)))
    with pytest.raises(ValueError, match="feature sizes differ"):
        metrics.cmmd(np.ones((3, 4)), np.ones((3, 5)))
