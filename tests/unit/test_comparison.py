"""Two finished models side by side: run directories made by the real functions, figures worked out again by hand."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raypref import comparison, comparison_page
from raypref.artifacts import POOL, Store, digest, finalize, iter_rows, read_manifest, write_shard
from raypref.config import build
from raypref.curriculum import plan
from raypref.remote.evaluate import evaluate_job
from tests import serial
from tests.conftest import make_config
from tests.unit.test_report import Checker

SETTINGS = (
    "stages.hard=null",
    "stages.text_encoder=null",
    "stages.easy.steps=3",
    "stages.easy.optim.warmup=1",
    "stages.easy.batch_size=4",
    "data.prompts.count=4",
    "data.eval_prompts={kind: renderer, seed: 2, count: 5}",
    "data.real={kind: renderer, seed: 3, count: 4}",
    "data.eval_real={kind: renderer, seed: 4, count: 6}",
    "scorers.preference={kind: open_clip, args: {model: 'mini:scorer'}}",
    "scorers.features={kind: mini_features}",
    "scorers.looks={kind: athec}",
    "evaluation={features: features, scorers: [looks], likeness: [features], images: 2, grid: 3}",
)


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Run directories `one` and `two`, whose stage has learned faster."""
    root = tmp_path_factory.mktemp("runs")
    for name, settings in (("one", ()), ("two", ("stages.easy.optim.lr=0.05",))):
        config = make_config(tiny, *SETTINGS, *settings)
        if name == "two":
            shutil.copytree(root / "one", root / "two")  # the base model's images and scores are the same
        serial.run(config, root / name)
        Store(str(root / name)).write_json("config.json", json.loads(config.model_dump_json()))
    return root


@pytest.fixture
def models(folders):
    return tuple(comparison.find(Store(str(folders / name)), None, None, "--model") for name in ("one", "two"))


def stored(model: comparison.Model, name: str, role: str = "images") -> dict[str, np.ndarray]:
    """Values [images, width] by prompt."""
    rows = iter_rows(model.pools, model.task.spec["scores"][role][name])
    return {row["prompt_id"]: np.array(row["values"][:2]) for row in rows}


def test_wins_and_differences_are_those_of_the_stored_scores(models):
    result = comparison.compare(*models)
    one, two = (stored(m, "preference") for m in models)
    pairs = [(x[0], y[0]) for id in one for x, y in zip(one[id], two[id], strict=True)]
    assert len(pairs) == 10 and len({x > y for x, y in pairs}) == 2  # won and lost
    row, win = result["metrics"]["preference_score"], result["wins"]["preference_score"]
    assert win["rate"] == np.mean([1.0 if x > y else 0.0 if x < y else 0.5 for x, y in pairs])
    assert row["difference"] == pytest.approx(np.mean([x - y for x, y in pairs]))
    assert row["a"] - row["b"] == pytest.approx(row["difference"])
    for low, middle, high in ((*win["interval"], win["rate"]), (*row["interval"], row["difference"])):
        assert low <= high and (low <= middle or high <= middle)
    assert result["prompts"] == 5 and result["images"] == 2 and result["same_noise"]
    # likeness: the mean cosine of an image with every real one decides
    real = [v[0] for v in stored(models[0], "features", "real").values()]

    def likeness(x):
        return np.mean([x @ r / np.sqrt((x @ x) * (r @ r)) for r in real])

    one, two = (stored(m, "features") for m in models)
    wins = [likeness(x) > likeness(y) for id in one for x, y in zip(one[id], two[id], strict=True)]
    assert result["wins"]["features"]["rate"] == np.mean(wins)
    assert set(result["wins"]) == {"preference_score", "features"}  # columns that describe say not which is better


def test_other_metrics_are_those_of_the_runs(models):
    result = comparison.compare(*models)
    for side, model in zip("ab", models, strict=True):
        statistics = read_manifest(model.run, model.task.path)["statistics"]
        assert statistics["metrics"]["preference_accuracy"] is not None
        for name, value in statistics["metrics"].items():
            assert result["metrics"][name][side] == pytest.approx(value), name
        assert {"cmmd", "frechet_distance", "looks/saturation"} <= set(statistics["metrics"])
        assert (result["real"], result["sizes"]) == (statistics["real"], statistics["sizes"])
    assert result["differences"] == ["stages.easy.optim.lr: 0.005 -> 0.05"]


def test_the_other_way_round_everything_turns(models):
    forth, back = comparison.compare(*models), comparison.compare(*models[::-1])
    for name, row in forth["metrics"].items():
        assert back["metrics"][name]["difference"] == pytest.approx(-row["difference"]), name
    for name, win in forth["wins"].items():
        assert back["wins"][name]["rate"] == pytest.approx(1 - win["rate"])


# which models


def test_models_are_found_by_name_and_the_last_stage_without_one(folders):
    run = Store(str(folders / "one"))
    assert comparison.find(run, None, None, "").name == "easy"
    assert comparison.find(run, None, "base", "").task.spec["training"] is None
    with pytest.raises(ValueError, match=r"--model 'hard': .*/one has no such model; it has base, easy"):
        comparison.find(run, None, "hard", "--model")


def test_a_folder_without_a_run_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run \(config\.json\)$"):
        comparison.find(Store(str(tmp_path)), None, None, "")
    shutil.copytree(folders / "one", tmp_path / "subjects/dog")
    with pytest.raises(ValueError, match=r"runs of subjects: name one of \S+/subjects/dog$"):
        comparison.find(Store(str(tmp_path)), None, None, "")


@pytest.mark.parametrize("kind", ["eval", "train", "scores", "pools"])
def test_a_run_that_is_not_finished_is_refused_with_the_command_that_finishes_it(folders, tmp_path, kind):
    run = Store(str(shutil.copytree(folders / "one", tmp_path / "run")))
    manifests = [path for path in (tmp_path / "run" / kind).rglob("manifest.json") if "easy" in str(path)]
    assert manifests
    for path in manifests:
        path.unlink()
    command = rf"python jobs/hgdpo\.py --config {run.uri}/config\.json --run-dir {run.uri}"
    with pytest.raises(ValueError, match=rf"easy is not evaluated to its end \(there is no {kind}/.*{command}"):
        comparison.find(run, None, None, "")


def test_shared_pools_and_scores_are_found_by_their_store(folders, models, tmp_path):
    run, shared = tmp_path / "one", tmp_path / "shared"
    shutil.copytree(folders / "one", run)
    shared.mkdir()
    for name in ("pools", "scores", "sources"):
        shutil.move(run / name, shared / name)
    with pytest.raises(ValueError, match="give the --pools that the run had"):
        comparison.find(Store(str(run)), None, None, "")
    pools = Store(str(shared))
    apart = comparison.find(Store(str(run)), pools, None, "")
    own = comparison.find(Store(str(folders / "two")), pools, None, "")  # which holds its own
    assert (apart.pools, own.pools) == (pools, own.run)
    assert comparison.compare(apart, own)["metrics"] == comparison.compare(*models)["metrics"]


# what does not compare


def changed(model: comparison.Model, *assignments: str) -> comparison.Model:
    """The model as a run with other settings would have evaluated it."""
    tree = json.loads(model.config.model_dump_json())
    config = build(tree, None, list(assignments))
    [task] = [t for t in plan(config) if t.kind == "evaluate" and t.model == model.name]
    return replace(model, config=config, task=replace(model.task, fields=task.fields))


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        (
            "scorers.preference.args.model='mini:clip'",
            r"scorers\.preference\.args\.model: 'mini:scorer' -> 'mini:clip'",
        ),
        ("evaluation.images=1", r"evaluation\.images: 2 -> 1"),
        ("evaluation.likeness=[]", r"evaluation\.likeness: \['features'\] -> \[\]"),
    ],
)
def test_models_that_were_evaluated_by_other_scorers_are_refused(models, assignment, line):
    with pytest.raises(ValueError, match=rf"one/easy and two/easy were not evaluated alike, .*:\n  {line}$"):
        comparison.compare(models[0], changed(models[1], assignment))


def test_how_a_scorer_runs_is_no_difference(models):
    comparison.check(models[0], changed(models[1], "scorers.preference.batch_size=3", "evaluation.grid=1"))


def with_pool(model: comparison.Model, role: str, folder, change) -> comparison.Model:
    """The model with a changed pool."""
    path = model.task.spec["pools"][role]
    rows, fields = list(iter_rows(model.pools, path)), read_manifest(model.pools, path)["fields"]
    name = f"pools/changed-{digest(str(folder))}"
    table = pa.Table.from_pylist([change(row, number) for number, row in enumerate(rows)], POOL)
    write_shard(model.pools, name, 0, table, "changed")
    finalize(model.pools, name, "pool", fields | {"index": fields["index"] | {"limit": 7}}, 1)
    spec = model.task.spec | {"pools": model.task.spec["pools"] | {role: name}}
    return replace(model, task=replace(model.task, spec=spec))


@pytest.mark.parametrize(
    ("role", "words"), [("images", "evaluation prompts: 5 and 5, 4"), ("real", "real images: 6 and 6, 5")]
)
def test_models_of_other_prompts_or_real_images_are_refused(models, tmp_path, role, words):
    def other(row, number):
        return row | {"prompt": "another prompt"} if number == 2 else row

    with pytest.raises(ValueError, match=rf"{words} of them the same \(limit: 1000 -> 7\)"):
        comparison.compare(models[0], with_pool(models[1], role, tmp_path, other))


def test_other_noise_is_said(models, tmp_path):
    other = with_pool(models[1], "images", tmp_path, lambda row, number: row | {"seeds": [1, 2]})
    result = comparison.compare(models[0], other)
    assert not result["same_noise"]
    assert "drawn from different noise" in comparison_page.render(result, [], "mini_features")


# the page and the job


def test_the_page_holds_figures_and_images_of_both(models):
    result, samples = comparison.compare(*models), comparison.samples(*models)
    rows = list(iter_rows(models[1].pools, models[1].task.spec["pools"]["images"]))[:3]
    assert [(s["prompt"], s["b"]) for s in samples] == [(row["prompt"], row["images"][0]) for row in rows]
    assert all(s["a"] != s["b"] for s in samples)
    samples[0]["prompt"] = "<script>alert(1)</script>"
    page = comparison_page.render(result, samples, "mini_features")
    checker = Checker(page)
    assert checker.open == [] and checker.tags.count("img") == 6
    assert all(link.startswith(("#", "data:image/")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert "<script" not in page and "&lt;script&gt;" in page
    for text in ("easy against easy", "stages.easy.optim.lr: 0.005 -> 0.05", "10 generated and 6 real", "looks/thirds"):
        assert text in checker.text, text
    assert "None" not in checker.text and "nan" not in checker.text


def result_of(**rows) -> dict:
    metrics = {name: {"a": a, "b": b, "difference": None if b is None else a - b} for name, (a, b) in rows.items()}
    metrics["clip_t"]["interval"] = [-0.3, 0.1]
    wins = {"clip_t": {"rate": 0.25, "interval": [0.125, 0.5]}}
    return {"metrics": metrics, "wins": wins, "real": {"clip_t": 0.75}}


def test_rows_say_which_is_better_in_the_direction_of_the_metric():
    rows = result_of(mine=(2.0, 1.0), cmmd=(0.5, 1.0), clip_t=(0.25, 0.5), color_drift=(1.0, None), gone=(None, None))
    found = comparison_page.rows(rows)
    assert [(row["name"], row["better"]) for row in found] == [
        ("cmmd", "a"),
        ("clip_t", "b"),
        ("color_drift", ""),
        ("mine", ""),
    ]
    lines = comparison_page.table(rows).splitlines()
    assert " ".join(lines[3].split()) == "CLIP-T ↑ 0.2500 0.5000 −0.2500 −0.3000 … +0.1000 25.0 % 12.5 … 50.0"
    assert " ".join(lines[4].split()) == "Colour drift ↓ 1.000 – –"
    assert found[1]["real"] == "0.7500"


def job(monkeypatch, run, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run-dir", str(run), *arguments])
    evaluate_job("a job")


def test_the_job_leaves_page_and_figures_and_needs_no_ray(folders, tmp_path):
    run = shutil.copytree(folders / "one", tmp_path / "one")
    arguments = ["evaluate.py", "--run-dir", str(run), "--against", str(folders / "two")]
    program = (
        f"import sys; sys.argv = {arguments}; from raypref.remote.evaluate import evaluate_job; evaluate_job('a job');"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["A: one/easy", "B: two/easy"] and lines[-1] == "False"
    folder = run / "comparisons/easy-against-two-easy"
    assert f"page: {folder}/comparison.html" in lines
    assert {path.name for path in folder.iterdir()} == {"comparison.html", "comparison.json"}
    result = json.loads((folder / "comparison.json").read_text())
    assert (result["a"], result["b"]["run"]) == (
        {"run": str(run), "model": "easy", "label": "one/easy"},
        str(folders / "two"),
    )


def test_without_another_run_the_base_model_is_the_other_side(folders, tmp_path, monkeypatch, capsys):
    run = folders / "one"
    before = sorted(run.rglob("*"))
    job(monkeypatch, run, "--dry-run")
    assert f"would be in {run}/comparisons/easy-against-base" in capsys.readouterr().out
    job(monkeypatch, run, "--out", str(tmp_path / "out"))
    assert sorted(run.rglob("*")) == before
    result = json.loads((tmp_path / "out/comparison.json").read_text())
    assert (result["a"]["model"], result["b"]["model"]) == ("easy", "base")
    easy = comparison.find(Store(str(run)), None, "easy", "")
    metrics = read_manifest(easy.run, easy.task.path)["statistics"]["metrics"]
    assert result["wins"]["preference_score"]["rate"] == metrics["win_rate_vs_base"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "base"], "one/base would be compared with itself; give --model"),
        (["--set", "seed=1"], "--set: is for an evaluation by a protocol: add --protocol dreambench"),
        (["--recipe", "mini"], "--recipe: is for an evaluation by a protocol"),
        (["--protocol", "dreambench", "--against-model", "easy"], "--against-model: compares finished models, without"),
    ],
)
def test_options_that_make_no_sense_are_refused(folders, monkeypatch, arguments, message):
    with pytest.raises(ValueError, match=message):
        job(monkeypatch, folders / "one", *arguments)
