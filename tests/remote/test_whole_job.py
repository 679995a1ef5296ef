"""The whole job on a small configuration: what it leaves, and that it does nothing twice."""

from __future__ import annotations

import json
import math
import time

import ray
import torch
from diffusers import StableDiffusionPipeline

from raypref.artifacts import Store
from raypref.mini import renderer
from raypref.remote import pipeline
from tests.remote import world


def test_summary_has_every_stage_with_its_metrics(finished):
    summary = json.loads((finished.run / "summary.json").read_text())
    assert summary == json.loads(json.dumps(finished.summary))
    assert summary["recipe"] == "mini" and summary["seed"] == 5 and 0 < summary["wall_s"] <= finished.seconds + 1
    assert [stage["name"] for stage in summary["stages"]] == ["base", "easy", "hard"]
    for stage in summary["stages"]:
        metrics = stage["metrics"]
        missing = {name for name, value in metrics.items() if value is None}
        assert missing == ({"win_rate_vs_base", "color_drift"} if stage["name"] == "base" else set())
        assert all(math.isfinite(value) for value in metrics.values() if value is not None), stage
        assert {"preference_score", "frechet_distance"} <= set(metrics)


def test_report_shows_stages_and_rejected_files(finished):
    page = (finished.run / "report.html").read_text()
    for text in ("easy", "hard", "cut short", *world.BAD.values()):
        assert text in page, text
    assert len(page) > 20_000


def test_loras_load_into_the_base_pipeline_and_act(finished, tiny):
    prompts = [renderer.person(9, 0)[0]]
    images = []
    for path in [None, *finished.summary["loras"].values()]:
        pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        if path:
            pipe.load_lora_weights(finished.run / path)
        generator = torch.Generator().manual_seed(0)
        result = pipe(prompts, num_inference_steps=2, generator=generator, height=16, width=16, output_type="pt")
        images.append(result.images)
    assert len(images) == 3
    assert all(not torch.equal(a, b) for a, b in ((images[0], images[1]), (images[1], images[2])))


def test_a_second_execute_does_nothing_and_gives_the_same_summary(finished):
    before = world.files(finished.run)
    clock = time.monotonic()
    store = Store(str(finished.run))
    summary = pipeline.execute(finished.config, store, store)
    assert time.monotonic() - clock < 5
    assert json.loads(json.dumps(summary)) == json.loads(json.dumps(finished.summary))
    after = world.files(finished.run)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"config.json", "env.json"}


def test_training_gives_its_cpus_back(finished):
    world.wait(lambda: ray.available_resources().get("CPU", 0) == 4, 20, "4 free CPUs", every=0.2)
