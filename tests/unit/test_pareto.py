"""The Pareto front and the choice from it: what they promise, for any points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypref import pareto

# Few distinct whole numbers: ties, duplicates and equal metrics are common, and affine maps by them are exact
VALUES = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([float("nan"), float("inf"), float("-inf")]))


@st.composite
def clouds(draw, values=VALUES):
    """(points [N, M], modes)"""
    modes = draw(st.lists(st.sampled_from(["min", "max"]), min_size=1, max_size=4))
    rows = draw(st.lists(st.lists(values, min_size=len(modes), max_size=len(modes)), max_size=14))
    return np.array(rows, float).reshape(-1, len(modes)), modes


def dominates(a, b, modes) -> bool:
    """a is nowhere worse than b and somewhere better, written out."""
    pairs = [(x, y) if mode == "max" else (y, x) for x, y, mode in zip(a, b, modes, strict=True)]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@given(clouds())
def test_front_is_what_nothing_dominates_and_what_covers_the_rest(cloud):
    points, modes = cloud
    front = pareto.front(points, modes)
    finite = [i for i in range(len(points)) if np.isfinite(points[i]).all()]
    assert set(front) <= set(finite) and len(set(front)) == len(front)
    for i in finite:
        assert not (i in front and any(dominates(points[j], points[i], modes) for j in finite))
        covered = any(
            dominates(points[j], points[i], modes) or (j < i and (points[i] == points[j]).all()) for j in front
        )
        assert covered == (i not in front)


@given(clouds())
def test_front_starts_at_the_best_first_metric(cloud):
    points, modes = cloud
    firsts = points[pareto.front(points, modes), 0].tolist()
    assert firsts == sorted(firsts, reverse=modes[0] == "max")


@given(clouds(), st.data())
def test_scaling_shifting_and_flipping_change_neither(cloud, data):
    points, modes = cloud
    moved, turned = points.copy(), list(modes)
    for m, mode in enumerate(modes):
        moved[:, m] = moved[:, m] * 2.0 ** data.draw(st.integers(-3, 3)) + data.draw(st.integers(-9, 9))
        if data.draw(st.booleans()):
            moved[:, m], turned[m] = -moved[:, m], {"min": "max", "max": "min"}[mode]
    assert pareto.front(moved, turned) == pareto.front(points, modes)
    assert pareto.knee(moved, turned) == pareto.knee(points, modes)


@given(clouds(st.floats(-1e6, 1e6)))
def test_knee_is_on_the_front_and_nearest_to_the_ideal_point(cloud):
    points, modes = cloud
    front, knee = pareto.front(points, modes), pareto.knee(points, modes)
    assert (knee is None) == (not front)
    if front:
        assert knee in front
        distance = dict.fromkeys(front, 0.0)
        for column, mode in zip(points[front].T, modes, strict=True):
            ideal, spread = max(column) if mode == "max" else min(column), max(column) - min(column)
            for i, value in zip(front, column, strict=True):
                distance[i] += ((value - ideal) / spread) ** 2 if spread else 0
        assert distance[knee] <= min(distance.values()) + 1e-6


@given(clouds())
def test_one_metric_gives_its_best_value(cloud):
    points, modes = cloud[0][:, :1], cloud[1][:1]
    finite = points[np.isfinite(points)]
    knee = pareto.knee(points, modes)
    assert (knee is None) == (len(finite) == 0)
    if knee is not None:
        assert points[knee, 0] == (max(finite) if modes == ["max"] else min(finite))
        assert pareto.front(points, modes) == [knee] == [int(np.flatnonzero(points[:, 0] == points[knee, 0])[0])]


def test_examples():
    points = [[0.0, 1.0], [0.6, 0.7], [1.0, 0.0], [0.5, 0.5], [0.6, 0.7], [float("nan"), 9.0]]
    assert pareto.front(points, ["max", "max"]) == [2, 1, 0]
    assert pareto.knee(points, ["max", "max"]) == 1
    assert pareto.front(points, ["max", "min"]) == [2]
    assert pareto.knee([[0, 1], [1, 0]], ["max", "max"]) == 0  # equally near: the first
    assert pareto.front([], ["max", "min"]) == [] and pareto.knee([], ["max", "min"]) is None


def test_a_wrong_mode_or_width_is_an_error():
    with pytest.raises(KeyError):
        pareto.front([[1.0]], ["up"])
    with pytest.raises(ValueError):
        pareto.front([[1.0, 2.0]], ["max"])
