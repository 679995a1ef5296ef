"""Joining a Ray cluster, and what each kind of task may have of it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

import ray

from raypref.config import Resource, RunConfig

# Of every worker process: one thread, since actors and workers are processes already, and no start-up C++ build.
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does), or start Ray on this machine."""
    if ray.is_initialized():
        return
    # 2.60 switches token authentication on by itself for some ways of starting and not for others
    os.environ.setdefault(
        "RAY_AUTH_MODE", "disabled" if "RAY_ADDRESS" not in os.environ else os.environ.get("RAY_AUTH_MODE", "disabled")
    )
    env = {key: value for key, value in WORKER_ENV.items() if key != "DS_ACCELERATOR" or not _has_gpu()}
    os.environ.update({key: value for key, value in env.items() if key.startswith("RAY_")})
    ray.init(
        address=os.environ.get("RAY_ADDRESS"),
        runtime_env={"env_vars": env},
        logging_level=logging.WARNING,
        log_to_driver=bool(os.environ.get("RAYPREF_DEBUG")),
        configure_logging=True,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")


@dataclass(frozen=True)
class Share:
    """What one kind of task gets: actors of so many CPUs and GPUs."""

    actors: int
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def share(config: RunConfig, kind: str, total: dict[str, float]) -> Share:
    """Resolve `resources.<kind>` against what the cluster has in all.

    With GPUs, generators and training workers take a whole one and scorers a quarter; without, CPUs. Without a number of
    actors, generators take three quarters of the cluster and scorers the rest. Pure.
    """
    wanted: Resource = getattr(config.resources, kind)
    gpus = total.get("GPU", 0)
    each = wanted.gpus if wanted.gpus is not None else (0 if not gpus else 0.25 if kind == "score" else 1)
    if kind == "train":
        return Share(config.training.workers, wanted.cpus, each)
    part = 0.75 if kind == "generate" else 0.25
    room = gpus * part / each if each else total.get("CPU", 1) * part / wanted.cpus
    return Share(wanted.actors or max(1, int(room)), wanted.cpus, each)


def wait_for(shares: list[Share], kind: str, config: RunConfig) -> None:
    """Return when the cluster could hold all these actors at once; an autoscaler may be bringing nodes up.

    Raises RuntimeError after `resources.wait_s`, saying what is asked for and what there is.
    """
    need = {"CPU": sum(s.actors * s.cpus for s in shares), "GPU": sum(s.actors * s.gpus for s in shares)}
    deadline = time.monotonic() + config.resources.wait_s
    while True:
        total = ray.cluster_resources()
        lacking = [
            f"{amount:g} {name} (there are {total.get(name, 0):g})"
            for name, amount in need.items()
            if amount > total.get(name, 0) + 1e-9
        ]
        if not lacking:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{kind} needs {' and '.join(lacking)}, and none came within resources.wait_s="
                f"{config.resources.wait_s:g} s; lower resources.*.actors, .cpus, .gpus or training.workers, "
                "or add nodes"
            )
        time.sleep(1)
