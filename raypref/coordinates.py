"""Axes of parallel coordinates: how high on an axis the value of each trial lies, and which ticks it has."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from raypref.page import DASH, cut

LOG_FROM = 20  # an axis of positive values is logarithmic where the largest is more than this times the smallest
CHOICES = 6  # up to so many round values are ticks themselves
MISSING = math.nan


class Axis(NamedTuple):
    """Heights in [0, 1], one a trial, NaN where it has no value; without ticks where no trial has one."""

    title: str
    heights: list[float]
    ticks: list[tuple[float, str]]


def axis(title: str, values: list) -> Axis:
    """By value where all values are numbers, else by category, of which None is one. MISSING: no value."""
    return numeric(title, values) if all(map(_is_number, values)) else categorical(title, values)


def numeric(title: str, values: list[float], down: bool = False, log_from: float = LOG_FROM) -> Axis:
    """down: the smallest value is on top."""
    values = np.array(values, float)
    values[np.isinf(values)] = MISSING
    known = np.unique(values[~np.isnan(values)])
    if not len(known):
        return Axis(title, values.tolist(), [])
    low, high = known[0], known[-1]
    log, equal = low > 0 and high > low * log_from, math.isclose(low, high)

    def heights(values: np.ndarray) -> list[float]:
        values, bottom, top = (np.log(v) if log else v for v in (values, low, high))
        up = values * 0 + 0.5 if equal else (values - bottom) / (top - bottom)
        return (1 - up if down else up).tolist()

    ticks = np.array([low] if equal else _ticks(known, log))
    return Axis(title, heights(values), _spaced(heights(ticks), [f"{tick:.6g}" for tick in ticks]))


def categorical(title: str, values: list) -> Axis:
    """Equal distances: numbers by value, then everything else by name."""
    keys = [json.dumps(value, default=str, sort_keys=True) for value in values]
    present = {key: value for key, value in zip(keys, values, strict=True) if not _is_nan(value)}
    order = sorted(present, key=lambda k: (0, present[k], k) if _is_number(present[k]) else (1, 0, k))
    heights = dict(zip(order, np.linspace(0, 1, len(order)) if len(order) > 1 else [0.5], strict=False))
    labels = [cut(shown(present[key]), 16) for key in order]
    return Axis(title, [float(heights.get(key, MISSING)) for key in keys], _spaced(heights.values(), labels))


def shown(value: object) -> str:
    """A parameter's value: a number in few figures, a string as it is, everything else as in JSON."""
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else DASH
    return value if isinstance(value, str) and value.strip() else json.dumps(value, default=str, ensure_ascii=False)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _ticks(known: np.ndarray, log: bool) -> Sequence[float]:
    """The values themselves where they are few and round, as those of a choice are; else round ones between them."""
    if len(known) <= CHOICES and all(float(f"{value:.3g}") == value for value in known):
        return known
    low, high = known[0], known[-1]
    locator = LogLocator(10, (1, 2, 5)) if log else MaxNLocator(5)
    inside = [tick for tick in locator.tick_values(low, high) if low <= tick <= high]
    return inside if len(inside) > 1 else (low, high)


def _spaced(heights: Sequence[float], labels: list[str]) -> list[tuple[float, str]]:
    """Ticks from below, without those whose labels would lie on the one before."""
    kept: list[tuple[float, str]] = []
    for height, label in sorted(zip(map(float, heights), labels, strict=True)):
        if not kept or height - kept[-1][0] > 0.05:
            kept.append((height, label))
    return kept
