"""What is wrong with --run-dir is one message and exit status 1; nothing of the folder is changed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from raypref import cli
from tests.remote import world


@pytest.fixture
def job(local_ray, finished, tiny, tmp_path, capfd, monkeypatch):
    """jobs/hgdpo.py in this process, with the configuration of `finished`: (exit status, stderr)."""
    spec = importlib.util.spec_from_file_location("hgdpo_job", world.REPO / "jobs/hgdpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    overlay = tmp_path / "small.yaml"
    overlay.write_text(json.dumps(world.overlay(tiny, finished.photos)))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hgdpo.py", "--config", str(overlay), *arguments])
        capfd.readouterr()
        return cli.guarded(module.main), capfd.readouterr().err

    return run


def one_message(err: str) -> str:
    # Ray's core says so when its log level is set by the environment
    err = "".join(line for line in err.splitlines(keepends=True) if "Set ray log level" not in line)
    assert "Traceback" not in err
    assert err.count("error:") == 1, err
    message = err.strip()
    assert message.startswith("error: "), err
    return message


def test_another_configuration_names_the_field(job, finished):
    before = world.files(finished.run)
    status, err = job("--run-dir", str(finished.run), "--set", "seed=6", "--set", "training.log_every=2")
    assert status == 1
    message = one_message(err)
    assert "seed: 5 -> 6" in message and str(finished.run) in message and "another --run-dir" in message
    assert "log_every" not in message  # how a run works may change
    assert world.files(finished.run) == before


def test_how_a_run_works_may_change(job, finished):
    status, err = job("--run-dir", str(finished.run), "--set", "training.workers=1", "--set", "resources.wait_s=5")
    assert status == 0, err


def test_a_folder_of_something_else_is_refused(job, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("mine")
    status, err = job("--run-dir", str(tmp_path / "letters"))
    assert status == 1 and "not empty" in one_message(err) and "dear.txt" in err
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["dear.txt"]


@pytest.mark.parametrize("kind", ["below a file", "a file", "unwritable"])
def test_a_folder_that_cannot_be_is_one_message(job, tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    path = {
        "below a file": str(tmp_path / "file/run"),
        "a file": str(tmp_path / "file"),
        "unwritable": "/proc/raypref",
    }[kind]
    status, err = job("--run-dir", path)
    assert status == 1
    message = one_message(err)
    assert path in message and "--run-dir" in message, message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_that_is_not_there_is_one_message(job, tmp_path):
    status, err = job("--run-dir", str(tmp_path / "run"), "--set", f"model.base={tmp_path}/nowhere")
    assert status == 1
    message = one_message(err)
    assert message == f"error: model.base='{tmp_path}/nowhere': there is no such file or folder on this machine"


def test_a_damaged_config_is_named(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text('{"recipe": "mi')
    status, err = job("--run-dir", str(tmp_path / "run"))
    assert status == 1 and "config.json" in one_message(err)


def test_a_full_disk_is_one_message_and_with_space_the_job_goes_on(local_ray, finished, tiny, short, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "raypref", str(disk)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        config, run = world.small(tiny), disk / "run"
        overlay = tmp_path / "small.yaml"
        overlay.write_text(json.dumps(world.overlay(tiny)))
        driver = world.Driver(short(), tmp_path / "log", "--config", str(overlay), "--run-dir", str(run))
        assert driver.end(200) == 1
        message = one_message(driver.stderr)
        assert "No space left on device" in message and "free space" in message and str(run) in message
        assert len(message.splitlines()) == 1, message
        kept = world.files(run, "pools/*/*.parquet")
        assert kept, "the disk was too small for this test to say anything"
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        world.walk(config, run)
        world.same_as(finished.run, run, "sources", "pools", "scores")
        assert not list(run.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
