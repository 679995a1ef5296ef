"""Validations as they are stored: reading them, and what each lambda_val makes of them. No torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raypref import rewards
from raypref.artifacts import Store


def read_looks(store: Store, path: str) -> list[dict]:
    """The looks of a training artifact in order of steps."""
    folders = [name for name in store.names(f"{path}/validation") if name.startswith("step_")]
    files = [f"{path}/validation/{name}/look.json" for name in folders]
    return [store.read_json(file) for file in files if store.exists(file)]


def by_lambda(history: list[dict], lambdas: Sequence[float]) -> list[dict]:
    """Of each lambda_val its best look: {"lambda_val", "step", "reward", "s_img", "s_txt", and the means of what is watched}."""
    rows = []
    for lam in lambdas:
        curve = reward_curve(history, lam)
        chosen = rewards.best(curve)
        if chosen is not None:
            means = {name: float(np.mean(values)) for name, values in history[chosen].items() if name != "step"}
            rows.append({"lambda_val": lam, "step": history[chosen]["step"], "reward": curve[chosen]} | means)
    return rows


def reward_curve(history: list[dict], lam: float) -> list[float]:
    """Mean lambda-harmonic reward of every look."""
    return [float(np.mean(rewards.harmonic(look["s_img"], look["s_txt"], lam))) for look in history]
