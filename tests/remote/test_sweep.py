"""jobs/tune.py as a user runs it: killed in the middle, resumed, one trial that fails, and an overlay of the best."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

from raypref import pareto
from raypref.artifacts import Store
from raypref.looks import read_looks
from raypref.recipes import configure
from raypref.remote.sweep import draw
from raypref.sweep import load
from tests.remote import world
from tests.remote.test_rpo import SMALL

SPACE = {
    "space": {
        "stages.rpo.objective.beta": {"loguniform": [0.3, 3]},
        "stages.rpo.optim.lr": [0.02, 1e30],  # of which one gives a loss that is no number
    }
}
TRIALS = 2


@pytest.fixture(scope="module")
def arguments(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    assignments = [
        f"model.base={tiny}",
        *SMALL,
        "training.workers=1",
        "seed=1",
        "training.max_failures=0",
        "resources.train.cpus=0.9",
    ]
    sweep = load(str(folder / "space.yaml"), "rpo_mini", [], assignments)
    return folder, sweep, assignments


@pytest.fixture(scope="module")
def finished_sweep(arguments, short):
    """A sweep that was killed after its first trial and resumed; (folder, sweep, output, files at the kill)."""
    folder, sweep, assignments = arguments
    run = folder / "run"
    command = ["--recipe", "rpo_mini", "--space", str(folder / "space.yaml"), "--trials", str(TRIALS)]
    command += ["--scheduler", "none", "--run-dir", str(run), *(word for a in assignments for word in ("--set", a))]
    first = world.Driver(short(), folder / "first", *command, job="jobs/tune.py")
    first.kill_when(lambda: list(run.glob("trials/*/summary.json")), 300, "a finished trial")
    world.end_cluster(first.folder)
    before = world.files(run / "trials", "*/summary.json") | world.files(run / "pools")
    assert not (run / "results.json").exists()
    refused = world.Driver(short(), folder / "refused", *command, job="jobs/tune.py")
    assert refused.end(60) == 1 and "add --resume to go on" in refused.stderr
    other = world.Driver(short(), folder / "other", *command, "--resume", "--set", "seed=9", job="jobs/tune.py")
    assert other.end(60) == 1 and "holds another sweep" in other.stderr and "seed=9" in other.stderr
    second = world.Driver(short(), folder / "second", *command, "--resume", job="jobs/tune.py")
    assert second.end(500) == 0, second.stderr
    return run, sweep, second.stdout, before


def test_a_killed_sweep_ends_with_the_same_trials(finished_sweep):
    run, sweep, _, before = finished_sweep
    results = json.loads((run / "results.json").read_text())
    assert {row["trial"]: row["parameters"] for row in results["trials"]} == draw(sweep, TRIALS)
    after = world.files(run / "trials", "*/summary.json") | world.files(run / "pools")
    assert before.items() <= after.items(), "something that was done was done again"


def test_a_trial_that_fails_is_reported_and_loses_no_other(finished_sweep):
    run, *_ = finished_sweep
    results = json.loads((run / "results.json").read_text())
    for row in results["trials"]:
        failing = row["parameters"]["stages.rpo.optim.lr"] > 1
        assert row["state"] == ("failed" if failing else "finished")
        assert ("no validation has a finite reward" in row["error"] or "loss is" in row["error"]) if failing else True
    assert {row["state"] for row in results["trials"]} == {"finished", "failed"}


def test_points_are_the_checkpoints_that_lambdas_choose(finished_sweep):
    run, sweep, *_ = finished_sweep
    results = json.loads((run / "results.json").read_text())
    finished = [row for row in results["trials"] if row["state"] == "finished"]
    assert {point["trial"] for point in results["points"]} == {row["trial"] for row in finished}
    for point in results["points"]:
        own = Store(str(run / "trials" / point["trial"]))
        [train] = [name for name in own.names("train") if "rpo" in name]
        [look] = [look for look in read_looks(own, f"train/{train}") if look["step"] == point["step"]]
        mean = sum(look["likeness"]) / len(look["likeness"])
        assert point["values"]["likeness"] == pytest.approx(mean)
    values = [[point["values"][metric] for metric in sweep.objective] for point in results["points"]]
    assert results["best"] == results["points"][pareto.knee(values, list(sweep.objective.values()))]


def test_the_best_is_an_overlay_and_the_table_has_every_trial(finished_sweep, arguments):
    run, _, output, _ = finished_sweep
    results = json.loads((run / "results.json").read_text())
    [best] = [row for row in results["trials"] if row["trial"] == results["best"]["trial"]]
    config = configure("rpo_mini", [yaml.safe_load((run / "best.yaml").read_text())], arguments[2])
    stage = config.stages["rpo"]
    assert stage.objective.beta == best["parameters"]["stages.rpo.objective.beta"]
    assert stage.validation.select == results["best"]["lambda_val"]
    with open(run / "results.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert (run / results["best"]["weights"] / "pytorch_lora_weights.safetensors").is_file()
    assert [row["trial"] for row in rows] == [f"{i:02d}" for i in range(TRIALS)]
    assert "best: trial" in output and "sweep.html" in output
    assert best["trial"] in (run / "sweep.html").read_text()
    summary = json.loads((run / "trials" / best["trial"] / "summary.json").read_text())
    assert [row["lambda_val"] for row in summary["chosen"]["rpo"]["lambdas"]] == [i / 10 for i in range(1, 10)]
