"""Rewards of RPO against hand values and properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref import rewards

SIMILARITY = st.floats(0, 1)
LAMBDA = st.floats(0, 1)


def test_hand_values():
    # 1 / (0.5 / 0.8 + 0.5 / 0.4) = 1 / (0.625 + 1.25)
    assert rewards.harmonic(0.8, 0.4, 0.5) == pytest.approx(1 / 1.875)
    assert rewards.harmonic(0.8, 0.4, 0.25) == pytest.approx(1 / (0.3125 + 1.875))


@given(SIMILARITY, SIMILARITY, LAMBDA)
def test_between_its_parts(s_img, s_txt, lam):
    reward = float(rewards.harmonic(s_img, s_txt, lam))
    assert min(s_img, s_txt) - 1e-12 <= reward <= max(s_img, s_txt) + 1e-12


@given(SIMILARITY, SIMILARITY)
def test_ends_are_exact(s_img, s_txt):
    assert rewards.harmonic(s_img, s_txt, 0) == s_txt
    assert rewards.harmonic(s_img, s_txt, 1) == s_img


@given(st.floats(1e-300, 1), st.floats(1e-300, 1), LAMBDA, LAMBDA)
def test_monotone_in_lambda(s_img, s_txt, a, b):
    low, high = (float(rewards.harmonic(s_img, s_txt, lam)) for lam in sorted((a, b)))
    assert high >= low - 1e-12 if s_img >= s_txt else high <= low + 1e-12


@given(LAMBDA)
def test_zero_similarity_divides_by_nothing(lam):
    reward = rewards.harmonic(np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]), lam)
    assert np.isfinite(reward).all() and reward[0] == 0


def test_nan_stays_nan():
    assert np.isnan(rewards.harmonic(np.array([np.nan]), np.array([0.5]), 0.3)).all()


def test_lambda_outside_is_refused():
    with pytest.raises(ValueError, match=r"lambda=1.5 must be in \[0, 1\]"):
        rewards.harmonic(0.5, 0.5, 1.5)


def test_similarity_of_features():
    a = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    b = np.array([[3.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(rewards.cosines(a, b), [[1, -1], [0, 0], [0, 0]])
    np.testing.assert_allclose(rewards.similarity(np.array([1.0, -1.0, 0.0])), [1, 0, 0.5])


def test_label_probability():
    assert rewards.preference(0.6, 0.6) == 0.5
    assert rewards.preference(1.0, 0.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert rewards.preference(0.6, 0.4, 0.1) == pytest.approx(1 / (1 + math.exp(-2)))
    assert rewards.preference(0.3, 0.7) + rewards.preference(0.7, 0.3) == pytest.approx(1)


@pytest.mark.parametrize(
    ("curve", "chosen"),
    [([0.1, 0.3, 0.2], 1), ([0.3, 0.3], 0), ([math.nan, 0.1], 1), ([math.nan], None), ([], None)],
)
def test_best_checkpoint(curve, chosen):
    assert rewards.best(curve) == chosen


@pytest.mark.parametrize(
    ("curve", "patience", "stops"),
    [
        ([0.1, 0.2, 0.3], 1, False),  # still rising
        ([0.1, 0.3, 0.2], 2, False),  # one look without a new best
        ([0.1, 0.3, 0.2, 0.25], 2, True),
        ([0.3, 0.3, 0.3], 2, True),  # a plateau is no improvement
        ([0.1, 0.9, 0.2, 0.3, 0.4], 3, True),  # after a spike
        ([math.nan, math.nan], 2, True),  # never a number
        ([0.5, math.nan], 2, False),
        ([], 1, False),
    ],
)
def test_stopping(curve, patience, stops):
    assert rewards.stalled(curve, patience) is stops
