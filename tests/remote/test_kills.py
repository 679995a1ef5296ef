"""Processes that die by SIGKILL: the same command, or the job by itself, ends with the bits of an undisturbed run."""

from __future__ import annotations

import json
import signal
import threading

from raypref.artifacts import Store
from tests.remote import world

SETTINGS = ("time", "memory_mb", "pairs_per_s")  # what metrics say of the machine


def rows(root, stage: str) -> list[dict]:
    [path] = (root / "train").glob(f"*-{stage}-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in SETTINGS} for row in rows]


def same_training(reference, run) -> None:
    assert world.lora(run, "easy") == world.lora(reference, "easy")
    assert len(world.lora(run, "easy")) == 2
    assert numbers(rows(run, "easy")) == numbers(rows(reference, "easy"))
    assert [row["step"] for row in rows(run, "easy")] == list(range(1, 17))


def test_a_killed_train_worker_changes_no_bit_of_the_lora(local_ray, finished, tiny, tmp_path):
    config, run, killed = world.small(tiny), tmp_path / "run", []
    [task] = world.tasks_of(config, "train")

    def kill() -> None:
        workers = world.wait(
            lambda: len(found := world.workers(local_ray, "RayTrainWorker")) == 2 and found, 120, "workers"
        )
        world.wait((run / task.path / "checkpoints/step_000004/complete.json").exists, 120, "a checkpoint", every=0.001)
        workers[1].send_signal(signal.SIGKILL)
        killed.append((run / task.path / "lora").exists())
        killed.append((run / task.path / "metrics/00000000.jsonl").read_bytes())

    thread = threading.Thread(target=kill)
    thread.start()
    world.walk(config, run, finished.run, until="train")
    thread.join()
    assert killed[0] is False, "the worker was killed too late for this test to say anything"
    assert (run / task.path / "metrics/00000000.jsonl").read_bytes() == killed[1], (
        "began from the start, not the checkpoint"
    )
    same_training(finished.run, run)


def test_the_same_command_goes_on_after_the_driver_is_killed(finished, tiny, short, tmp_path):
    """Once while images are made, once while a stage trains, then to the end."""
    config, run = world.small(tiny), tmp_path / "run"
    overlay = tmp_path / "small.yaml"
    overlay.write_text(json.dumps(world.overlay(tiny)))
    arguments = ("--config", str(overlay), "--run-dir", str(run))
    [task] = world.tasks_of(config, "train")
    pool = next(t for t in world.tasks_of(config, "pool") if t.spec["set"] == "prompts")

    first = world.Driver(short(), tmp_path / "first", *arguments)
    first.kill_when(lambda: list((run / pool.path).glob("*.json")), 200, "the first shard")
    done = {path.stem for path in (run / pool.path).glob("*.json")}
    assert 0 < len(done) < 12 and not (run / pool.path / "manifest.json").exists()
    kept = {name: value for name, value in world.files(run / pool.path).items() if name.partition(".")[0] in done}

    second = world.Driver(short(), tmp_path / "second", *arguments)
    second.kill_when((run / task.path / "checkpoints/step_000004/complete.json").exists, 300, "a checkpoint")
    world.end_cluster(first.folder)
    assert not (run / task.path / "lora").exists()
    world.same_as(finished.run, run, "sources", "pools", "scores", "pairs")
    assert kept.items() <= world.files(run / pool.path).items(), "a finished shard was made again"
    before = world.files(run / "pools")
    steps = (run / task.path / "metrics/00000000.jsonl").read_bytes()

    third = world.Driver(short(), tmp_path / "third", *arguments)
    assert third.end(300) == 0, third.stderr
    world.end_cluster(second.folder)
    assert "Traceback" not in third.stderr
    assert before.items() <= world.files(run / "pools").items()
    assert (run / task.path / "metrics/00000000.jsonl").read_bytes() == steps, (
        "began from the start, not the checkpoint"
    )
    same_training(finished.run, run)
    world.same_as(finished.run, run, "sources", "pools", "scores", "pairs")
    mine, reference = (Store(str(root)).read_json("summary.json") for root in (run, finished.run))
    assert mine["stages"][1]["metrics"]["preference_score"] == reference["stages"][1]["metrics"]["preference_score"]
    assert "LoRA: " in third.stdout
