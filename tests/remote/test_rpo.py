"""RPO on Ray: two workers validate together, and several subjects are one job."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from raypref import rewards
from raypref.adapters import read_adapter
from raypref.artifacts import Store, iter_rows
from raypref.looks import read_looks, reward_curve
from raypref.mini import renderer
from raypref.recipes import configure
from raypref.remote.evaluate import evaluate_job
from raypref.remote.subjects import execute_all
from tests import checkpoints
from tests.remote import world

SMALL = (
    "model.resolution=16", "sampling.steps=2", "training.micro_batch=2", "training.checkpoint_every=4",
    "training.log_every=1", "training.validate_pairs=4", "stages.rpo.steps=4", "stages.rpo.batch_size=4",
    "stages.rpo.lora.unet.targets=[to_q, to_v]", "stages.rpo.optim.warmup=0", "stages.rpo.optim.lr=0.02",
    "stages.rpo.validation.every=2", "stages.rpo.validation.images=1", "resources.generate.cpus=0.3",
    "resources.score.cpus=0.2", "resources.train.cpus=0.3", "data.prompts.prompts=[a sks toy, a red sks toy]",
    "data.validation_prompts.prompts=[a sks toy in a box, a sks toy on a shelf, a blue sks toy]",
    "data.eval_prompts.prompts=[a sks toy in the snow, a wet sks toy]",
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome(local_ray, tiny, tmp_path_factory):
    """A job of two subjects, of which one has no photo that can be read: (run directory, summary)."""
    folder = tmp_path_factory.mktemp("subjects")
    for name in ("person", "broken"):
        (folder / name).mkdir()
        for i in range(4):
            _, pixels = renderer.person(6, i, identity=0)
            Image.fromarray(np.asarray(pixels)).save(folder / name / f"{i}.png")
    for file in (folder / "broken").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    (folder / "person" / "odd.jpg").write_bytes(b"no image")  # one of five is set aside
    configs = {
        name: configure(
            "rpo_mini", None,
            [f"model.base={tiny}", *SMALL, f"data.subject={folder / name}", "data.class_noun=toy", "data.max_rejected=0.3"],
        )
        for name in ("broken", "person")
    }  # fmt: skip
    run = tmp_path_factory.mktemp("run")
    return run, execute_all(configs, Store(str(run)))


def test_one_subject_that_fails_does_not_lose_the_other(outcome):
    run, summary = outcome
    assert "4 of 4 rows are bad" in summary["subjects"]["broken"]["error"]
    assert [stage["name"] for stage in summary["subjects"]["person"]["stages"]] == ["base", "rpo"]
    assert summary["mean"]["rpo"].keys() >= {"clip_i", "likeness", "clip_t"}
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_both_workers_validate_and_the_best_checkpoint_is_exported(outcome):
    run, summary = outcome
    lora = run / "subjects/person" / summary["subjects"]["person"]["loras"]["rpo"]
    path = lora.parent
    looks = read_looks(Store(str(path.parent.parent)), f"train/{path.name}")
    assert [look["step"] for look in looks] == [2, 4]
    assert all(len(look["s_img"]) == 3 for look in looks)  # three prompts on two workers
    chosen = looks[rewards.best(reward_curve(looks, 0.5))]["step"]
    exported, kept = (read_adapter(f)[1]["unet"] for f in (lora, path / f"validation/step_{chosen:06d}/lora"))
    assert all(torch.equal(exported[name], kept[name]) for name in kept)


def test_the_report_shows_the_rewards(outcome):
    page = (outcome[0] / "subjects/person/report.html").read_text()
    assert "Reward by lambda_val" in page and "no image" not in page and "unsupported" in page


# evaluation by DreamBench's protocol

POOLS = {"base": "base-generated-eval_prompts", "rpo": "rpo-generated-eval_prompts", "real": "real-eval_real"}
BY_THE_MINIATURE = ("scorers.clip_i.args.model=mini:scorer", "scorers.clip_t.args.model=mini:scorer")


def job(monkeypatch, run, *arguments: str) -> None:
    """jobs/evaluate.py in this process."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--protocol", "dreambench", "--run-dir", str(run), *arguments])
    evaluate_job("a job")


def settings(*assignments: str) -> list[str]:
    return [text for assignment in assignments for text in ("--set", assignment)]


@pytest.fixture(scope="module")
def evaluated(outcome, tmp_path_factory):
    """The job on a copy of the finished subjects, with fewer images a prompt than they have: (run directory, files before, its
    error, its options)."""
    run = shutil.copytree(outcome[0], tmp_path_factory.mktemp("evaluated") / "run")
    before = world.files(run, "**/*")
    dino = checkpoints.dino(tmp_path_factory.mktemp("dino"))
    options = settings(*BY_THE_MINIATURE, f"scorers.dino.args.model={dino}", "evaluation.images=3")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as caught:
        job(patch, run, *options)
    return run, before, str(caught.value), options


def test_evaluation_trains_nothing_and_leaves_the_run_as_it_was(evaluated):
    run, before, _, _ = evaluated
    after = world.files(run, "**/*")
    assert {name: after[name] for name in before} == before
    new = {name for name in after if name not in before} - {"dreambench.json", "dreambench.md"}
    folders = {"/".join(name.split("/")[2:4]).rpartition("-")[0] for name in new}
    drawn = {f"pools/{POOLS['base']}", f"pools/{POOLS['rpo']}"}
    assert folders == {"eval/0-base", "eval/1-rpo", *(f"scores/{pool}" for pool in POOLS.values())} | drawn
    scorers = {name.split("/")[4].rpartition("-")[0] for name in new if f"scores/{POOLS['real']}" in name}
    assert scorers == {"dino", "clip_i", "clip_t"}


def test_images_are_those_of_the_trained_weights(evaluated):
    run, *_ = evaluated
    own = Store(str(run / "subjects/person"))
    for model in ("base", "rpo"):
        folders = [name for name in own.names("pools") if name.startswith(POOLS[model])]
        rows = [list(iter_rows(own, f"pools/{folder}", ["prompt", "latents"])) for folder in folders]
        few, many = sorted(rows, key=lambda found: len(found[0]["latents"]))
        assert [len(row["latents"]) for row in few + many] == [3, 3, 4, 4]
        for a, b in zip(few, many, strict=True):
            mine, its = (np.frombuffer(b"".join(row["latents"][:3]), np.float16) for row in (a, b))
            np.testing.assert_allclose(mine, its, atol=0.02)


def test_a_subject_that_is_not_trained_is_named_with_the_command_and_stops_no_other(evaluated):
    run, _, error, _ = evaluated
    assert error.startswith("1 of 2 subjects failed:\n  broken: ")
    assert f"python jobs/rpo.py --config {run}/subjects/broken/config.json --run-dir {run}/subjects/broken" in error
    result = json.loads((run / "dreambench.json").read_text())
    assert list(result["failed"]) == ["broken"]
    assert [(row["subject"], row["model"]) for row in result["subjects"]] == [("person", "base"), ("person", "rpo")]


def test_figures_are_means_of_the_stored_features(evaluated):
    run, before, *_ = evaluated
    own = run / "subjects/person"

    def values(pool: str, scorer: str) -> np.ndarray:
        found = [
            str(path.parent.relative_to(own)) for path in own.glob(f"scores/{POOLS[pool]}-*/{scorer}-*/manifest.json")
        ]
        [folder] = [path for path in found if f"subjects/person/{path}/manifest.json" not in before]
        return np.array([value for row in iter_rows(Store(str(own)), folder) for value in row["values"]], np.float64)

    result = json.loads((run / "dreambench.json").read_text())
    for row, mean in zip(result["subjects"], result["means"], strict=True):
        assert (row["prompts"], row["references"], mean["subjects"]) == (2, 4, 1)
        for name in ("dino", "clip_i"):
            a, b = values(row["model"], name), values("real", name)
            assert len(a) == 6 and len(b) == 4
            cosines = [x @ y / np.sqrt((x @ x) * (y @ y)) for x in a for y in b]
            assert row[name] == mean[name] == pytest.approx(sum(cosines) / 24, abs=1e-6)
        assert row["clip_t"] == pytest.approx(values(row["model"], "clip_t").mean(), abs=1e-6)
    for departure in (
        "Subjects: 1 instead of 30.",
        "Prompts a subject: 2 instead of 25.",
        "Images a prompt: 3 instead of 4.",
    ):
        assert departure in result["notes"]


def test_evaluating_again_makes_nothing(evaluated, monkeypatch):
    run, _, _, options = evaluated
    texts = [(run / name).read_bytes() for name in ("dreambench.json", "dreambench.md")]
    before = world.files(run, "subjects/**/*")
    with pytest.raises(ValueError, match="1 of 2 subjects failed"):
        job(monkeypatch, run, *options)
    assert world.files(run, "subjects/**/*") == before
    assert [(run / name).read_bytes() for name in ("dreambench.json", "dreambench.md")] == texts


def test_a_model_as_it_is_is_evaluated_without_stages(outcome, tiny, tmp_path, monkeypatch, capsys):
    photos = json.loads((outcome[0] / "subjects/person/config.json").read_text())["data"]["real"]["path"]
    own = [text for text in SMALL if not text.startswith("stages")]
    options = ["--recipe", "rpo_mini", "--pools", str(outcome[0] / "subjects/person"), *settings(
        *own, f"model.base={tiny}", "stages.rpo=null", f"data.subject={photos}", "data.class_noun=toy",
        "data.max_rejected=0.3", *BY_THE_MINIATURE, "scorers.dino.kind=mini_features",
    )]  # fmt: skip
    run = tmp_path / "as_it_is"
    job(monkeypatch, run, *options, "--dry-run")
    assert not run.exists() and "0 training steps" in capsys.readouterr().out
    job(monkeypatch, run, *options)
    result = json.loads((run / "dreambench.json").read_text())
    person = next(s for s in outcome[1]["subjects"]["person"]["stages"] if s["name"] == "base")["metrics"]
    [row] = result["subjects"]
    assert (row["subject"], row["model"]) == ("as_it_is", "base")
    # the same network as its own evaluation's `likeness`
    assert (row["dino"], row["clip_i"]) == pytest.approx((person["likeness"], person["clip_i"]))
    assert json.loads((run / "config.json").read_text())["stages"] == {}
    with pytest.raises(ValueError, match=r"--recipe rpo_mini: trains rpo; run it with jobs/rpo\.py"):
        job(monkeypatch, run, "--recipe", "rpo_mini")


def test_a_folder_without_runs_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"holds no run \(config\.json, or subjects/\*/config\.json\)"):
        job(monkeypatch, tmp_path)
