"""Sweeps on Ray Tune. A trial is an ordinary run in trials/<name>, with pools and scores that all trials share.

Random trials are drawn before anything runs, so that they can be listed, and an interrupted sweep ends with the same ones.
Tune starts, compares, stops and retries trials; what they came to is read from their run directories (sweep_results.py).
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from raypref import cli
from raypref.artifacts import Store
from raypref.curriculum import plan
from raypref.progress import Progress
from raypref.remote import cluster, pipeline
from raypref.sweep import Sweep, rungs, watching
from raypref.sweep_results import NOTHING, outcome, summarize
from raypref.tasks import Task

RETRIES = 1  # of a failed trial, which goes on from its newest checkpoint
EXPERIMENT = "tune"  # Tune's own state, below the sweep's folder


def draw(sweep: Sweep, trials: int) -> dict[str, dict[str, Any]]:
    """The parameters of a random search's trials by name: the same for the same seed of the recipe."""
    random = np.random.RandomState(sweep.seed)
    found, space = {}, sorted(domains(sweep).items())  # whatever the order in the file
    for number in range(trials):
        values = {path: domain.sample(random_state=random) for path, domain in space}
        found[f"{number:02d}"] = {path: getattr(value, "item", lambda v=value: v)() for path, value in values.items()}
    return found


def domains(sweep: Sweep) -> dict[str, Any]:
    return {
        path: tune.choice(arguments) if kind == "choice" else getattr(tune, kind)(*arguments)
        for path, (kind, arguments) in sweep.space.items()
    }


def run_sweep(sweep: Sweep, drawn: dict, trials: int, halt: bool, run: Store, pools: Store) -> dict:
    """Run (or go on with) a sweep and write results.json, results.csv, best.yaml and sweep.html; the results.

    `drawn`: parameters by trial (of `draw`), or none for Optuna to propose. `halt`: stop trials early by ASHA.
    """
    started = time.monotonic()
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # which would make results of half a sweep
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose boxes and paths appear whatever the verbosity
    if not os.environ.get("RAYPREF_DEBUG"):
        logging.getLogger("ray.tune").setLevel(
            logging.CRITICAL
        )  # traces of failed trials, whose messages are in the table
    cluster.connect()
    for parameters in drawn.values() or ({},):
        config = sweep.config(parameters)
        shared = [task for task in plan(config) if task.shared and task.model in (None, "base")]
        pipeline.work(config, shared, run, pools)
    with Progress("trials", trials, "trials") as progress:
        ended = {name for name in run.names("trials") if run.exists(f"trials/{name}/summary.json")}
        _Count.progress, _Count.ended = progress, ended
        progress.add(len(ended))
        grid = _tuner(sweep, drawn, trials, halt, run, pools).fit()
    rows = sorted((_row(sweep, drawn, result, run) for result in grid), key=lambda row: row["trial"])
    return summarize(sweep, rows, run, time.monotonic() - started)


def _row(sweep: Sweep, drawn: dict, result: tune.Result, run: Store) -> dict:
    """One trial: what it was, how it ended, what it came to."""
    name = result.config["trial"] if drawn else os.path.basename(result.path)
    parameters = drawn.get(name, result.config)
    error = cli.root(result.error) if result.error else None
    try:
        found = outcome(sweep, sweep.config(parameters), Store(run.join(f"trials/{name}")))
    except ValueError as problem:  # parameters that Optuna proposed and that do not go together
        found, error = NOTHING, error or str(problem)
    state = "failed" if error else "finished" if found["finished"] else "stopped"
    return {"trial": name, "state": state, "error": error, "parameters": parameters, **found}


def _tuner(sweep: Sweep, drawn: dict, trials: int, halt: bool, run: Store, pools: Store) -> tune.Tuner:
    trial = tune.with_resources(
        tune.with_parameters(_trial, sweep=sweep, drawn=drawn, run=run, pools=pools),
        # it waits for actors and workers, which ask for their own; `room` keeps the number of trials to what fits
        tune.PlacementGroupFactory([{"CPU": 0.01}]),
    )
    space = {"trial": tune.grid_search(list(drawn))} if drawn else domains(sweep)
    storage = run.uri if "://" in run.uri else str(run.local)
    path = run.join(EXPERIMENT)
    if tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trial, resume_unfinished=True, resume_errored=True, param_space=space)
    configs = [sweep.config(parameters) for parameters in drawn.values() or ({},)]
    metric, mode = next(iter(sweep.objective.items()))
    most = max(rungs(sweep.objective, config) for config in configs)
    # the first quarter of the way says little
    grace = max(1, most // 4)
    asha = ASHAScheduler("rung", metric=metric, mode=mode, max_t=most + 1, grace_period=grace, reduction_factor=3)
    return tune.Tuner(
        trial,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=1 if drawn else trials,
            max_concurrent_trials=min(map(cluster.room, configs)),
            scheduler=asha if halt else None,
            search_alg=None if drawn else _optuna(sweep),
            # names of parameters hold dots and are long: the folders of Tune's own files are called by trial
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=storage,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_Count()],
            verbose=0,
        ),
    )


def _optuna(sweep: Sweep):
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(metric=list(sweep.objective), mode=list(sweep.objective.values()), seed=sweep.seed)


class _Count(tune.Callback):
    """Tells how many trials have ended. Tune saves and restores callbacks, so what they count with is the class's."""

    progress: Progress
    ended: set[str]  # a trial that Tune restores may end once more

    def on_trial_complete(self, iteration, trials, trial, **_):
        self._count(trial, "")

    def on_trial_error(self, iteration, trials, trial, **_):
        self._count(trial, "failed")

    def _count(self, trial, note: str) -> None:
        name = trial.config.get("trial", trial.trial_id)
        self.progress.add(name not in self.ended, note)
        self.ended.add(name)


def _trial(point: dict, sweep: Sweep, drawn: dict, run: Store, pools: Store) -> None:
    name = point["trial"] if drawn else tune.get_context().get_trial_id()
    config = sweep.config(drawn.get(name, point))
    objective, stage = sweep.objective, watching(sweep.objective, config)
    order = list(config.stages)

    def observe(task: Task, row: dict) -> None:
        if stage is not None and task.kind == "train" and task.model == stage:
            rung = -(-row["step"] // config.stages[stage].validation.every)
            found = {metric: row.get(f"validation/{metric}") for metric in objective}
        elif stage is None and task.kind == "evaluate" and task.model != "base":
            rung, found = 1 + order.index(task.model), {metric: row["metrics"].get(metric) for metric in objective}
        else:
            return
        _tell(rung, found)

    own = Store(run.join(f"trials/{name}"))
    pipeline.execute(config, own, pools, observe)
    # a trial that was done before the sweep was interrupted has told Tune nothing this time
    _tell(rungs(objective, config), outcome(sweep, config, own)["values"])


def _tell(rung: int, values: dict[str, float | None]) -> None:
    if all(value is not None and np.isfinite(value) for value in values.values()):
        tune.report({"rung": rung, **values})
