"""Pools do not depend on who makes them, in how many goes, or on who dies meanwhile."""

from __future__ import annotations

import signal
import threading

import pytest

from raypref.artifacts import Store
from raypref.remote import pipeline
from tests.remote import world


@pytest.fixture(scope="module")
def pool(local_ray, finished, tiny, tmp_path_factory):
    """Images of the base model made by two painters and two scorers where `finished` had one of each."""
    config = world.small(tiny, "resources.generate.actors=2", "resources.score.actors=2")
    run = tmp_path_factory.mktemp("pool") / "run"
    world.walk(config, run)
    return config, run


def test_any_number_of_actors_makes_the_same_bytes(pool, finished):
    config, run = pool
    assert world.same_as(finished.run, run, "sources", "pools", "scores") > 2 * 12 * 4
    shards = {task.path: len(world.manifest(run, task)["files"]) for task in world.tasks_of(config, "pool")[:2]}
    assert sorted(shards.values()) == [2, 12]


def test_what_is_missing_is_made_again_and_nothing_else(pool, finished):
    config, run = pool
    task = next(t for t in world.tasks_of(config, "pool") if t.spec["set"] == "prompts")
    score = next(t for t in world.tasks_of(config, "score") if t.spec["pool"] == task.path)
    before = world.files(run)
    removed = [
        f"{task.path}/manifest.json",
        f"{task.path}/00001.json",
        f"{task.path}/00001.parquet",
        f"{task.path}/00004.json",  # as if killed between the shard and its sidecar
        f"{score.path}/manifest.json",
        f"{score.path}/00001.json",
        f"{score.path}/00001.parquet",
        f"{score.path}/00007.json",
        f"{score.path}/00007.parquet",
    ]
    for name in removed:
        (run / name).unlink()
    (run / task.path / "00001.parquet.0a1b2c3d.tmp").write_bytes(b"half of a shard")
    world.walk(config, run)
    world.same_as(finished.run, run, "sources", "pools", "scores")
    after = world.files(run)
    made = {name for name in after if before.get(name) != after[name]}
    assert made == {*removed, f"{task.path}/00004.parquet"}


def test_a_killed_painter_costs_no_image(local_ray, finished, tiny, tmp_path):
    config, run, killed = world.small(tiny), tmp_path / "run", []
    task = next(t for t in world.tasks_of(config, "pool") if t.spec["set"] == "prompts")

    earlier = {process.pid for process in world.workers(local_ray, "Painter")}  # of other tests, about to end

    def kill() -> None:
        def painters() -> list:
            return [process for process in world.workers(local_ray, "Painter") if process.pid not in earlier]

        [painter] = world.wait(painters, 120, "a painter")
        world.wait(lambda: list((run / task.path).glob("*.parquet")), 120, "the first shard", every=0.001)
        painter.send_signal(signal.SIGKILL)
        killed.append(len(list((run / task.path).glob("*.json"))))

    thread = threading.Thread(target=kill)
    thread.start()
    world.walk(config, run)
    thread.join()
    assert killed and killed[0] < 12, "the painter was killed too late for this test to say anything"
    world.same_as(finished.run, run, "sources", "pools", "scores")


def test_more_actors_than_there_is_room_for_is_an_error_and_no_hang(local_ray, finished, tiny, tmp_path):
    config = world.small(tiny, "resources.generate.cpus=64", "resources.wait_s=1")
    with pytest.raises(RuntimeError, match=r"building images needs 64.2 CPU \(there are 4\).*wait_s=1 s.*resources"):
        world.walk(config, tmp_path / "run")
    assert not (tmp_path / "run/pools").exists()
    config = world.small(tiny, "resources.train.cpus=3", "resources.wait_s=1")
    store = Store(str(finished.run))
    [task] = world.tasks_of(config, "train")
    with pytest.raises(RuntimeError, match=r"training easy needs 6 CPU \(there are 4\)"):
        pipeline._run([task], store, store, config, None)
