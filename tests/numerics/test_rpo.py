"""RPO from photos to the chosen checkpoint, task after task in this process."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raypref import losses, reporting, rewards
from raypref.adapters import UNET_FILE, read_adapter
from raypref.artifacts import Store
from raypref.batches import drawn_label
from raypref.looks import read_looks, reward_curve
from raypref.recipes import configure
from raypref.remote import images
from raypref.remote.cluster import Share
from raypref.workers import TorchEngine
from tests import serial

SMALL = (
    "model.resolution=16", "sampling.steps=2", "data.image_format=png", "training.workers=1", "training.trackers=[]",
    "training.checkpoint_every=3", "training.log_every=1", "training.validate_pairs=4", "stages.rpo.steps=10",
    "stages.rpo.lora.unet.targets=[to_q, to_v]", "stages.rpo.optim.warmup=0", "stages.rpo.optim.lr=0.02",
    "stages.rpo.validation.every=2", "stages.rpo.validation.images=1", "stages.rpo.validation.patience=null",
)  # fmt: skip


def config(tiny, *assignments: str):
    return configure("rpo_mini", None, [f"model.base={tiny}", *SMALL, *assignments])


def train_path(tasks) -> str:
    return tasks["train 1-rpo"].path


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A finished run: its directory and its tasks."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, serial.run(config(tiny), folder)


def weights(folder) -> dict[str, torch.Tensor]:
    return read_adapter(folder)[1]["unet"]


def test_every_negative_meets_every_reference(whole):
    folder, tasks = whole
    table = [Store(str(folder)).read_table(f"{tasks['pairs 1-rpo'].path}/{k:05d}.parquet") for k in range(2)]
    assert sum(t.num_rows for t in table) == 8 * 4 * 5
    assert len({id for t in table for id in t["pair_id"].to_pylist()}) == 160
    assert all("sks" in prompt for t in table for prompt in t["loser_prompt"].to_pylist())


def test_looks_come_at_every_second_step(whole):
    folder, tasks = whole
    looks = read_looks(Store(str(folder)), train_path(tasks))
    assert [look["step"] for look in looks] == [2, 4, 6, 8, 10]
    assert all(len(look["s_img"]) == len(look["s_txt"]) == 4 for look in looks)
    assert len({tuple(look["s_img"]) for look in looks}) == 5  # the weights of the moment draw them


@pytest.mark.parametrize("select", [0.1, 0.5, 0.9])
def test_the_chosen_checkpoint_is_the_one_exported(whole, tiny, tmp_path, select):
    folder, tasks = whole
    looks = read_looks(Store(str(folder)), train_path(tasks))
    chosen = looks[rewards.best(reward_curve(looks, select))]["step"]
    if select != 0.5:
        folder = tmp_path
        tasks = serial.run(config(tiny, f"stages.rpo.validation.select={select}"), folder)
    path = folder / train_path(tasks)
    exported, kept = weights(path / "lora"), weights(path / f"validation/step_{chosen:06d}/lora")
    assert all(torch.equal(exported[name], kept[name]) for name in kept)


def test_only_checkpoints_that_are_best_for_a_lambda_are_kept(whole):
    folder, tasks = whole
    looks = read_looks(Store(str(folder)), train_path(tasks))
    best = {looks[rewards.best(reward_curve(looks, lam / 10))]["step"] for lam in range(1, 10)}
    found = {int(p.parent.name[5:]) for p in (folder / train_path(tasks) / "validation").glob("*/lora")}
    assert found == best


def test_stops_when_patience_runs_out(tiny, tmp_path):
    """At a vanishing learning rate every look is alike: the first stays the best, and two more are the patience."""
    slow = config(tiny, "stages.rpo.optim.lr=1e-12", "stages.rpo.validation.patience=2")
    tasks = serial.run(slow, tmp_path)
    store = Store(str(tmp_path))
    assert [look["step"] for look in read_looks(store, train_path(tasks))] == [2, 4, 6]
    rows = [json.loads(line) for line in store.read(f"{train_path(tasks)}/metrics.jsonl").splitlines()]
    assert rows[-1]["step"] == 6 and rows[-1]["validation/reward"] == rows[1]["validation/reward"]


def test_killed_and_resumed_equals_uninterrupted(whole, tiny, tmp_path, monkeypatch):
    class Dies(TorchEngine):
        steps = 0

        def step(self, lr):
            Dies.steps += 1
            if Dies.steps == 6:
                raise InterruptedError
            return super().step(lr)

    monkeypatch.setattr(serial, "TorchEngine", Dies)
    with pytest.raises(InterruptedError):
        serial.run(config(tiny), tmp_path)
    tasks = serial.run(config(tiny), tmp_path)
    folder, _ = whole
    looks = [read_looks(Store(str(f)), train_path(tasks)) for f in (folder, tmp_path)]
    assert looks[0] == looks[1]
    expected, found = (weights(f / train_path(tasks) / "lora") for f in (folder, tmp_path))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_metrics_of_the_subject(whole):
    folder, tasks = whole
    for name in ("evaluate 0-base", "evaluate 1-rpo"):
        metrics = json.loads((folder / tasks[name].path / "manifest.json").read_text())["statistics"]["metrics"]
        assert -1 <= metrics["clip_i"] <= 1 and -1 <= metrics["likeness"] <= 1


def test_the_whole_unet_is_validated_exported_and_drawn_with(tiny, tmp_path):
    tasks = serial.run(config(tiny, "stages.rpo.lora=null", "stages.rpo.optim.lr=1e-3"), tmp_path)
    path, store = tmp_path / train_path(tasks), Store(str(tmp_path))
    looks = read_looks(store, train_path(tasks))
    best = {looks[rewards.best(reward_curve(looks, lam / 10))]["step"] for lam in range(1, 10)}
    assert {int(p.parent.name[5:]) for p in (path / "validation").glob("*/unet")} == best
    assert not list(path.rglob("lora"))
    chosen = store.read_json(f"{train_path(tasks)}/chosen.json")["step"]
    exported, kept, base = (
        load_file(folder / UNET_FILE)
        for folder in (path / "unet", path / f"validation/step_{chosen:06d}/unet", tiny / "unet")
    )
    assert all(torch.equal(exported[name], kept[name]) and not torch.equal(kept[name], base[name]) for name in base)
    row = json.loads(store.read(f"{train_path(tasks)}/metrics.jsonl").splitlines()[0])
    assert row["loss"] == pytest.approx(math.log(2) + row["error/winner"], abs=1e-5)
    # what draws its evaluation images has these weights, and the summary says where they are
    pools = {task.path: task for task in tasks.values() if task.kind == "pool" and task.model == "rpo"}
    work = images._Work(config(tiny, "stages.rpo.lora=null"), store.uri, store.uri, pools, [])
    drawing = images.Painter(work, Share(actors=1, cpus=1, gpus=0)).pipeline.unet.state_dict()
    assert all(torch.equal(drawing[name], exported[name]) for name in exported)
    outputs = [reporting._outputs(work.config, list(tasks.values()), kind) for kind in ("lora", "unet")]
    assert outputs == [{}, {"rpo": f"{train_path(tasks)}/unet"}]


def test_label_frequencies():
    rows = [{"pair_id": f"p{i}", "label": 0.7} for i in range(4000)]
    first, second = ([drawn_label(row, 0, epoch)["label"] for row in rows] for epoch in (0, 1))
    for drawn in (first, second):
        assert set(drawn) == {0.0, 1.0}
        assert np.mean(drawn) == pytest.approx(0.7, abs=0.03)
    assert first != second
    assert first == [drawn_label(row, 0, 0)["label"] for row in rows]  # once a pair and epoch
    assert drawn_label({"pair_id": "p", "label": 1.0}, 0, 0)["label"] == 1


def test_dreambooth_loss_by_hand():
    loss, metrics = losses.dreambooth(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0]), prior=0.5)
    assert loss == 2 + 0.5 * 4
    assert (metrics["error/winner"], metrics["error/loser"]) == (2, 4)


def test_rpo_begins_at_ln_2_and_the_denoising_error(whole):
    """Policy = reference: the preference is ln 2 at any label, and the rest is the winners' error."""
    folder, tasks = whole
    row = json.loads(Store(str(folder)).read(f"{train_path(tasks)}/metrics.jsonl").splitlines()[0])
    assert row["loss"] == pytest.approx(math.log(2) + row["error/winner"], abs=1e-5)
