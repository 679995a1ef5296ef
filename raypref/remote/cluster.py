"""Joining a Ray cluster, and what each kind of task may have of it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources

from raypref.config import Resource, RunConfig

# Of every worker process: one thread, since actors and workers are processes already.
WORKER_ENV = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a worker without GPUs sees none: torch and DeepSpeed ask for themselves
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the controller's poll: a report takes 2 s at the default
}


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does), or start Ray on this machine."""
    debug = bool(os.environ.get("RAYPREF_DEBUG"))
    if not ray.is_initialized():
        _join(debug)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # what fails in an actor ends the job with one message (cli.root); Ray Data would log it three times before that
    logging.getLogger("ray.data").setLevel(logging.ERROR if debug else logging.CRITICAL)


def _join(debug: bool) -> None:
    # "local", since without an address Ray joins whatever cluster was started last on this machine, dead or alive
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # a Ray of our own listens on this machine only; with tokens, 2.60 would leave one in the home directory that
        # switches authentication on for every later `ray start`
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", WORKER_ENV["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"])
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's core prints warnings for developers as errors
    ray.init(address=address, runtime_env={"env_vars": WORKER_ENV}, logging_level=logging.WARNING, log_to_driver=debug)


def room(config: RunConfig) -> int:
    """How many such runs fit side by side: none may hold half of what it needs while another holds the rest."""
    total = ray.cluster_resources()
    together = [("generate", "score"), *([("train",)] if config.stages else [])]
    shares = [[share(config, kind, total) for kind in kinds] for kinds in together]
    needs = {
        "CPU": max(sum(s.actors * s.cpus for s in group) for group in shares),
        "GPU": max(sum(s.actors * s.gpus for s in group) for group in shares),
    }
    return max(1, min(int(total.get(name, 0) / need) for name, need in needs.items() if need))


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries without collecting garbage, and keep what they made out of later collections.

    Collecting while torch, Diffusers and PEFT are imported, and once more at exit, is half of a process's start and end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@dataclass(frozen=True)
class Share:
    """What one kind of task gets: actors of so many CPUs and GPUs, and `most` of them where their number may grow."""

    actors: int
    cpus: float
    gpus: float
    most: int | None = None

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def threads(self) -> int:
        """Of torch, in each actor."""
        return max(1, int(self.cpus))


def share(config: RunConfig, kind: str, total: dict[str, float]) -> Share:
    """Resolve `resources.<kind>` against what the cluster has in all.

    Training workers take a whole GPU each, generators three quarters and scorers one quarter, so that both fit on one;
    without GPUs, CPUs. A given number of actors share what there is. Without a number, generators fill three quarters of
    the cluster and scorers one. Pure.
    """
    wanted: Resource = getattr(config.resources, kind)
    gpus = total.get("GPU", 0)
    part = {"generate": 0.75, "score": 0.25}.get(kind)
    if kind == "train":
        return Share(config.training.workers, wanted.cpus, float(bool(gpus)) if wanted.gpus is None else wanted.gpus)
    least, most = wanted.actors if isinstance(wanted.actors, tuple) else (wanted.actors, None)
    each = min(part, gpus * part / (least or 1)) if wanted.gpus is None else wanted.gpus
    room = gpus * part / each if each else total.get("CPU", 1) * part / wanted.cpus
    return Share(least or max(1, int(room)), wanted.cpus, each, most)


def wait_for(shares: list[Share], kind: str, config: RunConfig) -> None:
    """Return when the cluster could hold all these actors at once; an autoscaler is asked to bring nodes up.

    Raises RuntimeError after `resources.wait_s`, saying what is asked for and what there is.
    """
    need = {"CPU": sum(s.actors * s.cpus for s in shares), "GPU": sum(s.actors * s.gpus for s in shares)}
    if not (lacking := _lacking(need)):
        return
    request_resources(bundles=[{"CPU": s.cpus, "GPU": s.gpus} for s in shares for _ in range(s.actors)])
    deadline = time.monotonic() + config.resources.wait_s
    try:
        while lacking := _lacking(need):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{kind} needs {' and '.join(lacking)}, and none came within resources.wait_s="
                    f"{config.resources.wait_s:g} s; lower resources.*.actors, .cpus, .gpus or training.workers, "
                    "or add nodes"
                )
            time.sleep(1)
    finally:
        request_resources(num_cpus=0)  # the actors themselves keep the nodes from now on


def _lacking(need: dict[str, float]) -> list[str]:
    total = ray.cluster_resources()
    return [
        f"{amount:g} {name} (there are {total.get(name, 0):g})"
        for name, amount in need.items()
        if amount > total.get(name, 0) + 1e-9
    ]
