"""Do RPO's claims hold in the miniature world? Several subjects, with intervals and a verdict a claim.

    python benchmarks/rpo_miniature.py --subjects 5 --run-dir runs/rpo_miniature

Writes benchmarks/results/rpo_miniature.{json,md,png}. Likeness and text are measured on held-out prompts by models that
neither label pairs nor choose checkpoints. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from functools import partial
from pathlib import Path

import claims

from raypref import cli
from raypref.artifacts import Store
from raypref.config import RunConfig
from raypref.recipes import configure
from raypref.remote import pipeline
from raypref.remote.subjects import each

METRICS = ("likeness", "clip_i", "clip_t")
LAMBDAS = (0.3, 0.5, 0.7)
NEGATIVES = (8, 16, 64)  # beside the recipe's 32
CLAIMS = (
    ("RPO is more like the subject than the base model", "likeness", "rpo_0.5", "base"),
    ("lambda_val .5 is more like the subject than .3", "likeness", "rpo_0.5", "rpo_0.3"),
    ("lambda_val .7 is more like the subject than .5", "likeness", "rpo_0.7", "rpo_0.5"),
    ("lambda_val .3 fits the text better than .7", "clip_t", "rpo_0.3", "rpo_0.7"),
    ("RPO (.5) is more like the subject than DreamBooth-LoRA", "likeness", "rpo_0.5", "dreambooth"),
    ("RPO (.5) fits the text better than DreamBooth-LoRA", "clip_t", "rpo_0.5", "dreambooth"),
    ("early stopping keeps more likeness than the last step", "likeness", "rpo_0.5", "rpo_last"),
    ("32 negatives are better than 8 (likeness)", "likeness", "rpo_0.5", "rpo_8"),
    ("64 negatives are better than 32 (likeness)", "likeness", "rpo_64", "rpo_0.5"),
)


def configurations(subject: int, scale: float) -> dict[str, RunConfig]:
    """A subject's runs: RPO by lambda_val and number of negatives, to the last step, and DreamBooth-LoRA."""
    steps = max(10, int(200 * scale))
    who = claims.SIDE_BY_SIDE | {"data": {name: {"identity": subject} for name in ("real", "eval_real")}}

    def rpo(**validation) -> dict:
        return who | {"stages": {"rpo": {"steps": steps, "validation": validation}}}

    runs = {f"rpo_{lam:g}": configure("rpo_mini", [rpo(select=lam)]) for lam in LAMBDAS}
    for number in NEGATIVES:
        change = rpo()
        change["stages"]["rpo"]["loser"] = {"count": number // 8}
        runs[f"rpo_{number}"] = configure("rpo_mini", [change])
    last = rpo()
    last["stages"]["rpo"]["validation"] = None
    runs["rpo_last"] = configure("rpo_mini", [last])
    runs["dreambooth"] = configure("dreambooth_mini", [who | {"stages": {"dreambooth": {"steps": steps}}}])
    return runs


def measure(subjects: int, run_dir: str, scale: float) -> claims.Values:
    """Run everything, as many subjects at once as there is room for."""
    names = {str(subject): configurations(subject, scale)["rpo_0.5"] for subject in range(subjects)}
    found = each(partial(runs_of, scale=scale), names, Store(cli.location(run_dir)), None)
    values: claims.Values = {}
    for result in claims.ended(found):
        for model, metrics in result.items():
            for metric in METRICS:
                values.setdefault(model, {}).setdefault(metric, []).append(metrics[metric])
    return values


def runs_of(config: RunConfig, run: Store, pools: Store, scale: float) -> dict[str, dict[str, float]]:
    """Metrics of every model of one subject, whose runs share their pools. `config` says which subject."""
    found = {}
    for name, other in configurations(config.data.real.identity, scale).items():
        base, trained = pipeline.execute(other, Store(run.join(name)), Store(run.join("pools")))["stages"]
        found |= {"base": base["metrics"], name: trained["metrics"]}
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--subjects", type=int, default=5)
    options.add_argument("--run-dir", default="runs/rpo_miniature")
    options.add_argument("--scale", type=float, default=1.0, help="below 1: fewer steps, for a smoke run")
    options.add_argument("--out", type=Path, default=claims.RESULTS)
    arguments = options.parse_args()
    if arguments.subjects < 2:
        raise ValueError("--subjects must be 2 or more: an interval needs them")
    values = measure(arguments.subjects, arguments.run_dir, arguments.scale)
    command = f"python benchmarks/rpo_miniature.py --subjects {arguments.subjects} --scale {arguments.scale:g}"
    result = claims.judge(values, CLAIMS)
    print(claims.write(result, "rpo_miniature", command, f"{arguments.subjects} subjects", arguments.out))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main))
