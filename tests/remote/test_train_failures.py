"""An error that a restart cannot mend ends a stage at once, with its cause."""

from __future__ import annotations

import shutil
import time

import pytest
import ray

from raypref import cli
from raypref.artifacts import Store, iter_rows
from raypref.remote import pipeline
from tests.remote import world


def attempts() -> int:
    return sum(actor["ActorClassName"] == "RayTrainWorker" for actor in ray._private.state.actors().values())


def test_a_loss_that_is_not_finite_names_step_and_pairs(local_ray, finished, tiny, tmp_path):
    config = world.small(tiny, "stages.easy.optim.lr=1e30", "stages.easy.optim.warmup=0", "training.max_failures=8")
    shutil.copytree(finished.run / "pairs", tmp_path / "run/pairs")
    run = Store(str(tmp_path / "run"))
    [task] = world.tasks_of(config, "train")
    before, clock = attempts(), time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        pipeline._run([task], run, Store(str(finished.run)), config, pipeline.Progress("train", 16, "steps"))
    message = cli.root(caught.value)
    assert "step 2" in message and "training easy" in message and "optim.lr" in message
    ids = {row["pair_id"] for row in iter_rows(run, task.spec["pairs"], ["pair_id"])}
    assert any(id in message for id in ids)
    assert attempts() - before <= 2 * 2, "tried again in vain"
    assert time.monotonic() - clock < 200
    assert not (tmp_path / "run" / task.path / "lora").exists()
