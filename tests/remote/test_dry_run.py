"""--dry-run and --list-recipes: what is there and what is to do, without Ray and without a change."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from raypref.recipes import RECIPES
from tests.remote import world

# the job, and then whether anything heavy was loaded
CODE = """
import runpy, sys
try:
    runpy.run_path("jobs/hgdpo.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"ray", "torch", "diffusers", "deepspeed"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def dry(finished, tiny, tmp_path):
    overlay = tmp_path / "small.yaml"
    overlay.write_text(json.dumps(world.overlay(tiny, finished.photos)))

    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", CODE, "--config", str(overlay), *arguments]
        result = subprocess.run(command, cwd=world.REPO, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    return run


def test_before_a_run_everything_is_to_do_and_nothing_is_made(dry, finished, tmp_path):
    lines = dry("--dry-run", "--run-dir", str(tmp_path / "new"))
    tasks = world.tasks_of(finished.config)
    assert len(lines) == len(tasks) + 1
    assert all(line.endswith("to do") for line in lines[:-1])
    assert lines[-1].startswith(f"{len(tasks)} tasks, 0 done") and "32 training steps" in lines[-1]
    assert not (tmp_path / "new").exists()


def test_after_a_run_everything_is_done(dry, finished):
    before = world.files(finished.run)
    lines = dry("--dry-run", "--run-dir", str(finished.run))
    assert all(line.endswith("done") for line in lines[:-1])
    assert "to do: 0 images, 0 scores, 0 training steps" in lines[-1]
    assert world.files(finished.run) == before


def test_in_the_middle_of_a_run_it_says_how_far_it_is(dry, finished, tmp_path):
    run = shutil.copytree(finished.run, tmp_path / "run")
    tasks = world.tasks_of(finished.config)
    pool = next(t for t in tasks if t.kind == "pool" and t.spec["set"] == "prompts")
    train = next(t for t in tasks if t.kind == "train")
    for name in (f"{pool.path}/manifest.json", f"{pool.path}/00003.json", f"{train.path}/manifest.json"):
        (run / name).unlink()
    lines = dry("--dry-run", "--run-dir", str(run))
    states = dict(zip([task.path for task in tasks], lines, strict=False))
    assert states[pool.path].endswith("to do, 11 shards exist")
    assert states[train.path].endswith("to do, from step 16")
    assert sum(line.endswith("done") for line in lines[:-1]) == len(tasks) - 2
    assert "to do: 192 images, 0 scores, 16 training steps" in lines[-1]


def test_the_recipes_are_listed(dry):
    lines = dry("--list-recipes")
    assert [line.split()[0] for line in lines] == list(RECIPES)


def test_without_stages_there_is_the_base_to_evaluate(dry, tmp_path):
    lines = dry(
        "--dry-run", "--run-dir", str(tmp_path / "base"), "--set", "stages=null", "--set", "model.lora=x.safetensors"
    )
    assert "0 training steps" in lines[-1] and any("evaluate" in line for line in lines)
