"""One local Ray cluster for all tests here, and one undisturbed run that the others are held against."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from raypref.artifacts import Store
from raypref.remote import cluster, pipeline
from tests.remote import world


@pytest.fixture(scope="session")
def short():
    """Makes folders with short paths, since a Ray cluster keeps its sockets there."""
    made = []

    def make() -> str:
        made.append(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
        return made[-1]

    yield make
    for folder in made:
        world.end_cluster(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray(short):
    """A cluster with 4 logical CPUs whatever the machine has; its temporary folder, by which its processes are found."""
    folder = short()
    env = cluster.WORKER_ENV | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "PYTHONPATH": str(world.REPO),
    }
    before = dict(os.environ)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update({key: value for key, value in env.items() if key.startswith("RAY")})
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=200_000_000,
        _temp_dir=folder,
        runtime_env={"env_vars": env},
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    yield folder
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def finished(local_ray, tiny, tmp_path_factory) -> SimpleNamespace:
    """The whole small run with stages easy and hard, never disturbed. Tests must not change its folder."""
    root: Path = tmp_path_factory.mktemp("finished")
    config = world.small(tiny, real=world.real_folder(root / "photos"))
    run = root / "run"
    clock = time.monotonic()
    summary = pipeline.execute(config, Store(str(run)), Store(str(run)))
    return SimpleNamespace(
        config=config, run=run, summary=summary, seconds=time.monotonic() - clock, photos=root / "photos"
    )
