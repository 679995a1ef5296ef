"""Do HG-DPO's claims hold in the miniature world? Ablations over several seeds, with intervals and a verdict a claim.

    python benchmarks/miniature_orderings.py --seeds 5 --run-dir runs/orderings

Writes benchmarks/results/miniature_orderings.{json,md,png}. Evaluated on prompts and real images that no setting was
chosen on (other renderer seeds than the recipe's). Every seed is one ordinary run whose stages start from `base` where
an ablation does; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import claims

from raypref import cli
from raypref.artifacts import Store
from raypref.config import RunConfig
from raypref.recipes import configure, mini
from raypref.remote.subjects import execute_all

METRICS = (
    "preference_score",
    "win_rate_vs_base",
    "attribute_accuracy",
    "frechet_distance",
    "color_drift",
    "latent_mean_drift",
)
CLAIMS = (
    ("easy is preferred to base", "preference_score", "easy", "base"),
    ("a pool of 8 beats a pool of 2", "preference_score", "easy", "easy_n2"),
    ("L_stat lowers the drift of the latent mean", "latent_mean_drift", "easy_no_stat", "easy"),
    ("L_stat lowers the colour shift", "color_drift", "easy_no_stat", "easy"),
    ("easy is more realistic than base", "frechet_distance", "base", "easy"),
    ("normal is more realistic than easy", "frechet_distance", "easy", "normal"),
    ("hard is more realistic than normal", "frechet_distance", "normal", "hard"),
    ("hard is more realistic than base", "frechet_distance", "base", "hard"),
    ("the curriculum is more realistic than real winners from the start", "frechet_distance", "naive", "hard"),
    ("the curriculum is preferred to real winners from the start", "preference_score", "hard", "naive"),
    ("the curriculum is preferred to SFT on the real images", "preference_score", "hard", "sft"),
    ("the curriculum is more realistic than SFT on the real images", "frechet_distance", "sft", "hard"),
)


def configuration(seed: int, scale: float) -> RunConfig:
    """The mini recipe with its ablations as further stages; `scale` < 1 makes everything smaller, for a smoke run."""
    stages = mini()["stages"]
    total = sum(stages[name]["steps"] for name in ("easy", "normal", "hard"))
    easy, hard = stages["easy"], stages["hard"]
    real = {**hard["loser"], "model": "base"}
    stages = {
        "easy": easy,
        "normal": stages["normal"],
        "hard": hard,
        "easy_no_stat": {**easy, "start": "base", "objective": {**easy["objective"], "statistics": None}},
        "easy_n2": {**easy, "start": "base", "pairs": {**easy["pairs"], "first": 2}},
        "naive": {**hard, "start": "base", "steps": total, "loser": real},
        "sft": {**hard, "start": "base", "steps": total, "loser": real, "objective": {"kind": "sft"}},
    }
    for stage in stages.values():
        stage["steps"] = max(6, int(stage["steps"] * scale))
    data = {
        "eval_prompts": {"kind": "renderer", "seed": 1003, "count": int(384 * scale)},
        "eval_real": {"kind": "renderer", "seed": 1004, "count": int(512 * scale)},
    }
    if scale < 1:
        data |= {name: {**mini()["data"][name], "count": int(192 * scale)} for name in ("prompts", "real")}
    nothing = {"stages": dict.fromkeys(mini()["stages"])}
    return configure("mini", [nothing, claims.SIDE_BY_SIDE, {"seed": seed, "data": data, "stages": stages}])


def measure(seeds: int, run_dir: str, scale: float) -> list[dict]:
    """Run every seed, as many at once as there is room for; a list of summaries."""
    configs = {f"seed-{seed}": configuration(seed, scale) for seed in range(seeds)}
    return claims.ended(execute_all(configs, Store(cli.location(run_dir)))["subjects"])


def values_of(summaries: list[dict]) -> claims.Values:
    values: claims.Values = {stage["name"]: {} for stage in summaries[0]["stages"]}
    for summary in summaries:
        for stage in summary["stages"]:
            for metric in METRICS:
                value = stage["metrics"].get(metric)
                if value is not None:
                    values[stage["name"]].setdefault(metric, []).append(value)
    return values


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--run-dir", default="runs/orderings")
    options.add_argument("--scale", type=float, default=1.0, help="below 1: a smaller smoke run")
    options.add_argument("--out", type=Path, default=claims.RESULTS)
    arguments = options.parse_args()
    if arguments.seeds < 2:
        raise ValueError("--seeds must be 2 or more: an interval needs them")
    summaries = measure(arguments.seeds, arguments.run_dir, arguments.scale)
    command = f"python benchmarks/miniature_orderings.py --seeds {arguments.seeds} --scale {arguments.scale:g}"
    result = claims.judge(values_of(summaries), CLAIMS)
    print(claims.write(result, "miniature_orderings", command, f"{arguments.seeds} seeds", arguments.out))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
