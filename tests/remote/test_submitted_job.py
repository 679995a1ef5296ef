"""`ray job submit --working-dir .` on a cluster that was started by `ray start --head`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from raypref.artifacts import Store
from tests.remote import world


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def client(short, tmp_path):
    folder = short()
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
    )
    ports = dict(zip((*names, "ray-client-server-port", "runtime-env-agent-port"), free_ports(7), strict=True))
    env = {key: value for key, value in world.environment(folder).items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    command = [
        *(f"{os.path.dirname(sys.executable)}/ray start --head --block --num-cpus=4 --include-dashboard=true").split(),
        "--object-store-memory=200000000",
        f"--temp-dir={folder}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    with open(tmp_path / "head.log", "wb") as log:
        head = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield world.wait(lambda: reach(ports["dashboard-port"], head), 60, "the dashboard", every=0.5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def reach(port: int, head: subprocess.Popen) -> JobSubmissionClient | None:
    assert head.poll() is None
    try:
        client = JobSubmissionClient(f"http://127.0.0.1:{port}")
        client.list_jobs()
    except (ConnectionError, RuntimeError):
        return None
    return client


def test_a_submitted_job_uses_the_cluster_and_the_uploaded_modules(client, finished, tiny, tmp_path):
    """It finds a run that lacks a shard of images, its scores and the last evaluation."""
    run = shutil.copytree(finished.run, tmp_path / "run")
    overlay = tmp_path / "small.yaml"
    overlay.write_text(json.dumps(world.overlay(tiny, finished.photos)))
    pool = next(t for t in world.tasks_of(finished.config, "pool") if t.model == "hard")
    evaluation = world.tasks_of(finished.config, "evaluate")[-1]
    for task in (pool, *(t for t in world.tasks_of(finished.config, "score") if t.spec["pool"] == pool.path)):
        for name in ("manifest.json", "00001.json", "00001.parquet"):
            (run / task.path / name).unlink()
    for name in (f"{evaluation.path}/manifest.json", "summary.json", "report.html"):
        (run / name).unlink()
    job = client.submit_job(
        entrypoint=f"{sys.executable} jobs/hgdpo.py --config {overlay} --run-dir {run}",
        runtime_env={
            "working_dir": str(world.REPO),
            "excludes": [".git", ".venv", "runs", "benchmarks", "raypref/mini/weights", "*.log"],
            "env_vars": {"RAY_AUTH_MODE": "disabled"},
        },
    )
    ends = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
    world.wait(lambda: client.get_job_status(job) in ends, 180, "the job's end", every=0.5)
    logs = client.get_job_logs(job)
    assert client.get_job_status(job) == JobStatus.SUCCEEDED, logs
    assert "images of hard" in logs and "report:" in logs
    world.same_as(finished.run, run, "pools", "scores")
    assert Store(str(run)).read_json("summary.json")["stages"] == finished.summary["stages"]
