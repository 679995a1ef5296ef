"""A sweep over any fields of a recipe with Ray Tune: trials share pools and scores, the best is an overlay for --config.

python jobs/tune.py --recipe rpo_mini --space jobs/spaces/rpo_mini.yaml --trials 6 --run-dir runs/sweep
python jobs/tune.py --recipe hgdpo_sd15 --config mine.yaml --space space.yaml --trials 20 --search optuna --run-dir runs/sweep
"""

import argparse
import sys
import warnings
from importlib.util import find_spec

from raypref import cli
from raypref.artifacts import Store, differences
from raypref.rundir import contents
from raypref.sweep import Sweep, check, load

RECORD = "sweep.json"  # what a sweep is: it goes on only as the same


def parse() -> argparse.Namespace:
    options = cli.parser(__doc__.splitlines()[0], "rpo_mini")
    options.add_argument("--space", metavar="FILE", help="YAML: space (paths and distributions) and objective")
    options.add_argument("--trials", type=int, default=8, help="how many")
    options.add_argument("--search", choices=("random", "optuna"), default="random", help="how parameters are proposed")
    options.add_argument(
        "--scheduler", choices=("asha", "none"), default="asha", help="stop trials that fall behind early, or never"
    )
    options.add_argument("--resume", action="store_true", help="go on with the sweep of --run-dir")
    return options.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.list_recipes:
        return cli.list_recipes()
    for name in ("run_dir", "space"):
        if not getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} is required")
    if arguments.trials < 1:
        raise ValueError(f"--trials {arguments.trials}: must be 1 or more")
    sweep = load(arguments.space, *cli.read_overlays(arguments), arguments.assignments)
    run = Store(cli.location(arguments.run_dir))
    pools = Store(cli.location(arguments.pools)) if arguments.pools else run
    if arguments.search == "optuna" and not find_spec("optuna"):
        raise ValueError("--search optuna needs the package optuna: pip install 'raypref[optuna]'")
    from raypref.remote.sweep import draw, run_sweep

    drawn = draw(sweep, arguments.trials) if arguments.search == "random" else {}
    check(sweep, drawn)
    record = {key: getattr(arguments, key) for key in ("trials", "search", "scheduler")} | {
        "recipe": sweep.recipe,
        "overlays": sweep.overlays,
        "assignments": sweep.assignments,
        "space": {path: [kind, values] for path, (kind, values) in sweep.space.items()},
        "objective": sweep.objective,
    }
    known = claim(run, record, arguments.resume or arguments.dry_run)
    if arguments.dry_run:
        return show(sweep, drawn, arguments)
    if not known:
        run.write_json(RECORD, record)
    results = run_sweep(sweep, drawn, arguments.trials, arguments.scheduler == "asha", run, pools)
    print("\n" + summary(sweep, results))
    print(f"table: {run.join('results.csv')}\npage: {run.join('sweep.html')}")
    if not results["best"]:
        raise ValueError("no trial was finished, so there is no best one; results.csv has the errors")
    print(f"best: {run.join('best.yaml')}")


def claim(run: Store, record: dict, resume: bool) -> bool:
    """Whether the folder holds this sweep already. Raises ValueError when it holds something else, or --resume is missing."""
    if RECORD not in contents(run, RECORD):
        return False
    if changed := list(differences(run.read_json(RECORD), record)):
        lines = "\n  ".join(changed)
        raise ValueError(
            f"--run-dir {run.uri} holds another sweep:\n  {lines}\nUse another --run-dir, or set these back."
        )
    if not resume:
        raise ValueError(f"--run-dir {run.uri} holds this sweep already; add --resume to go on with it")
    return True


def show(sweep: Sweep, drawn: dict, arguments: argparse.Namespace) -> None:
    print("objective: " + ", ".join(f"{metric} ({mode})" for metric, mode in sweep.objective.items()))
    if arguments.search != "random":
        return print(f"{arguments.trials} trials, proposed by {arguments.search} as the sweep goes")
    for name, parameters in drawn.items():
        print(f"trial {name}: " + ", ".join(f"{path}={value}" for path, value in parameters.items()))


def summary(sweep: Sweep, results: dict) -> str:
    """A line a trial, and the best."""
    lines = []
    for row in results["trials"]:
        values = ", ".join(f"{m} {v:.4g}" for m, v in row["values"].items() if v is not None)
        lines.append(f"trial {row['trial']}  {row['state']:<8}  {row['error'] or values}")
    if best := results["best"]:
        values = ", ".join(f"{metric} {value:.4g}" for metric, value in best["values"].items())
        chosen = "" if best["lambda_val"] is None else f" at lambda_val {best['lambda_val']:g} (step {best['step']})"
        lines.append(f"best: trial {best['trial']}{chosen}: {values}. {results['rule']}")
        lines.append(f"its weights: {best['weights']}")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(cli.guarded(main, "the same command with --resume"))
