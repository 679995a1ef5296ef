"""A stage's training on Ray Train: a group of workers, restarted from the newest complete checkpoint when one is lost."""

from __future__ import annotations

import json
import logging
import threading
import traceback
import uuid
from collections.abc import Callable

import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig

from raypref.artifacts import Store, write_manifest
from raypref.config import RunConfig
from raypref.journal import read_parts
from raypref.remote.cluster import quick_imports, share, wait_for
from raypref.tasks import Task

FAILURE = "failure.json"


class RayContext:
    """The training loop's Context inside a Ray Train worker."""

    def __init__(self):
        from ray.train.torch import get_device

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = str(get_device())

    def barrier(self) -> None:
        import torch.distributed as dist

        dist.barrier()

    def mean(self, values: list[float]) -> list[float]:
        from raypref.remote.zero import mean

        return mean(values)


def _worker(arguments: dict) -> None:
    with quick_imports():
        import torch

        from raypref.remote.zero import ZeroEngine
        from raypref.trainer import train_stage
        from raypref.workers import Job

    torch.set_num_threads(arguments["threads"])
    job = Job(config=RunConfig.model_validate(arguments["config"]), **arguments["job"])
    failure, run = f"{job.path}/{FAILURE}", Store(job.run)
    if run.exists(failure):
        return  # an earlier attempt met an error that trying again cannot mend; the driver reads it
    try:
        train_stage(job, RayContext(), ZeroEngine)
    except (ValueError, TypeError, KeyError, AttributeError, FloatingPointError) as error:
        run.write_json(failure, {"error": type(error).__name__, "message": str(error), "trace": traceback.format_exc()})
        raise  # ends the whole group, whose other workers may wait in a collective


def train(task: Task, run: Store, pools: Store, config: RunConfig, report: Callable[[dict], None]) -> None:
    """Run a stage to its end and write its manifest. `report` gets each new row of metrics.

    Raises RuntimeError with the worker's message on an error that a restart cannot mend (such as a loss that is not finite).
    """
    run.remove(f"{task.path}/{FAILURE}")
    from ray.train.torch import TorchConfig, TorchTrainer  # loads torch, which a dry run and a finished run do not need

    part = share(config, "train", ray.cluster_resources())
    wait_for([part], f"training {task.model}", config)
    job = {
        "stage": task.spec["stage"],
        "path": task.path,
        "pairs": task.spec["pairs"],
        "held_out": task.spec["held_out"],
        "start": task.spec["start"],
        "run": run.uri if "://" in run.uri else str(run.local),
        "pools": pools.uri,
        "validation": task.spec["validation"],
    }
    scratch = f"{task.path}/ray"  # Ray asks for storage that all machines see; nothing of ours is in it
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "job": job, "threads": part.threads},
        torch_config=TorchConfig(backend="nccl" if part.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=part.actors,
            use_gpu=part.gpus > 0,
            resources_per_worker={"CPU": part.cpus, **({"GPU": part.gpus} if part.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex,
            storage_path=Store(job["run"]).join(scratch),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
        ),
    )
    try:
        _fit(trainer, run, task.path, report)
    finally:
        if run.exists(scratch):
            run.delete(scratch)
    if run.exists(f"{task.path}/{FAILURE}"):
        failure = run.read_json(f"{task.path}/{FAILURE}")
        raise RuntimeError(
            f"training {task.model}: {failure['message']} ({failure['error']}; trace in {task.path}/{FAILURE})"
        )
    rows = [json.loads(line) for line in run.read(f"{task.path}/metrics.jsonl").splitlines()]
    write_manifest(run, task.path, task.kind, task.fields, len(rows), rows[-1])


def _fit(trainer, run: Store, path: str, report: Callable[[dict], None]) -> None:
    """Fit while following the metrics files, which are there whichever machine rank 0 is on."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    ended = threading.Event()

    def follow() -> None:
        seen, last = -1, False
        while not last:
            last = ended.wait(1.0)  # one more look after the end, for the last rows
            try:
                rows = read_parts(run, path, since=seen)
            except OSError:
                continue  # object storage does that now and then; the next look sees the same rows
            for line in rows.splitlines():
                row = json.loads(line)
                if row["step"] > seen:
                    seen = row["step"]
                    report(row)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        trainer.fit()
    finally:
        ended.set()
        thread.join()
