"""RPO on Ray: two workers validate together, and several subjects are one job."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from raypref import rewards
from raypref.artifacts import Store
from raypref.looks import read_looks, reward_curve
from raypref.mini import renderer
from raypref.models import read_adapter
from raypref.recipes import configure
from raypref.remote.subjects import execute_all

SMALL = (
    "model.resolution=16", "sampling.steps=2", "training.micro_batch=2", "training.checkpoint_every=4",
    "training.log_every=1", "training.validate_pairs=4", "stages.rpo.steps=4", "stages.rpo.batch_size=4",
    "stages.rpo.lora.targets=[to_q, to_v]", "stages.rpo.optim.warmup=0", "stages.rpo.optim.lr=0.02",
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
    assert summary["mean"]["rpo"].keys() >= {"clip_i", "likeness", "preference_score"}
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
