"""DeepSpeed on two processes against plain torch on one: the same training, whatever the ZeRO stage.

Two processes over gloo run every scenario once (starting them costs more than training); the tests look at what they
left in the run directory.
"""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from raypref.adapters import UNET_FILE, read_adapter
from raypref.artifacts import Store
from raypref.checkpoints import complete
from tests import pipelines
from tests.conftest import make_config, make_job, read_rows, train

LR = 5e-3
WIDE = "stages={easy: {lora: LORA}, hard: {lora: LORA}}".replace("LORA", "{unet: {rank: 4096, targets: [ff.net.2]}}")
SHORT = ("stages.easy.steps=4", "training.checkpoint_every=2", "training.validate_every=4", "training.validate_pairs=4")
TEXT = ("stages.text_encoder.steps=2", "stages.text_encoder.optim.warmup=0", "training.validate_pairs=2")
EMA = (*SHORT, "stages.easy.optim.ema=0.5")
WHOLE = (*SHORT, "stages.easy.lora=null", "stages.hard.start=base", "stages.text_encoder.start=base")
TWO = ("training.workers=2", "training.micro_batch=4")
BOTH = "{rank: 2, targets: [q_proj, v_proj]}"
XL = (
    *TEXT,
    "stages.text_encoder.start=base",
    f"stages.text_encoder.lora={{unet: {{rank: 2}}, text_encoder: {BOTH}, text_encoder_2: {BOTH}}}",
)
SCENARIOS = {
    "zero0": ("easy", *SHORT, *TWO, "training.zero_stage=0"),
    "zero1": ("easy", *SHORT, *TWO, "training.zero_stage=1", "training.micro_batch=1"),
    "zero2": ("easy", *EMA, *TWO, "training.zero_stage=2", "training.micro_batch=2"),
    "stopped2": ("easy", *EMA, *TWO, "training.zero_stage=2", "training.micro_batch=2"),
    "zero3": ("easy", *EMA, *TWO, "training.zero_stage=3"),
    "stopped3": ("easy", *EMA, *TWO, "training.zero_stage=3"),
    "bfloat16": ("easy", *EMA, *TWO, "training.zero_stage=2", "training.precision=bfloat16"),
    "whole2": ("easy", *WHOLE, *TWO, "training.zero_stage=2"),
    "stopped_whole2": ("easy", *WHOLE, *TWO, "training.zero_stage=2"),
    "whole3": ("easy", *WHOLE, *TWO, "training.zero_stage=3"),
    # the adapter is larger than what DeepSpeed never shards
    "text3": ("text_encoder", *TEXT, *TWO, "training.zero_stage=3", WIDE),
    # Stable Diffusion XL, whose first text encoder has a last layer that gets no gradient
    "xl2": ("text_encoder", *XL, *TWO, "training.zero_stage=2"),
    "xl3": ("text_encoder", *XL, *TWO, "training.zero_stage=3"),
}


class Gloo:
    """The training loop's Context over torch.distributed alone."""

    device = "cpu"

    def __init__(self):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def barrier(self):
        dist.barrier()

    def mean(self, values):
        from raypref.remote.zero import mean

        return mean(values)


def work(rank: int, run, pipeline) -> None:
    """What each of the two processes does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{run}/rendezvous", rank=rank, world_size=2)
    from raypref.remote.zero import ZeroEngine

    class Dies(ZeroEngine):
        steps = 0

        def step(self, lr):
            self.steps += 1
            if self.steps == 3:
                raise InterruptedError
            return super().step(lr)

    for name, (stage, *assignments) in SCENARIOS.items():
        config = make_config(run / "xl" if name.startswith("xl") else pipeline, *assignments)
        start = "train/wide" if name == "text3" else None
        job = make_job(run, config, stage, start, f"train/{name}")
        if name.startswith("stopped"):
            with pytest.raises(InterruptedError):
                train(job, Gloo(), Dies)
            dist.barrier()
        engine = train(job, Gloo(), ZeroEngine)
        flags = {n for n, p in engine.engine.module.named_parameters() if p.requires_grad}
        assert flags == set(engine.parameters)
    with pytest.raises(ValueError, match=r"written by 1 worker\(s\) with .* and cannot be read by 2"):
        train(make_job(run, make_config(pipeline, *SHORT, *TWO), path="train/plain"), Gloo(), ZeroEngine)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """A run directory with the plain runs and all scenarios."""
    run = tmp_path_factory.mktemp("run")
    wide = (WIDE, "stages.easy.steps=3")
    for name, settings in (("plain", SHORT), ("plain_ema", EMA), ("plain_whole", WHOLE), ("wide", wide)):
        train(make_job(run, make_config(tiny, *settings), path=f"train/{name}"))
    train(make_job(run, make_config(tiny, *TEXT, WIDE), "text_encoder", "train/wide", "train/plain_text"))
    train(make_job(run, make_config(pipelines.sdxl(run / "xl"), *XL), "text_encoder", path="train/plain_xl"))
    mp.spawn(work, (run, tiny), nprocs=2)
    return run


def adapter(run, name: str) -> dict[str, torch.Tensor]:
    _, state = read_adapter(run / "train" / name / "lora")
    return {f"{module}.{key}": value for module in state for key, value in state[module].items()}


def rows(run, name: str, tiny) -> list[dict]:
    return read_rows(make_job(run, make_config(tiny), path=f"train/{name}"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_on_two_workers_equals_plain_torch_on_one(run, tiny, stage):
    expected, found = adapter(run, "plain_ema" if stage >= 2 else "plain"), adapter(run, f"zero{stage}")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-3 * LR, rtol=0)
    for mine, theirs in zip(rows(run, f"zero{stage}", tiny), rows(run, "plain", tiny), strict=True):
        for name in ("loss", "rewards/margins", "grad_norm", "validation/accuracy"):
            if name in mine:
                assert mine[name] == pytest.approx(theirs[name], abs=5e-5), (name, mine["step"])
        assert mine["lr"] == theirs["lr"]
        assert "loss" in mine and ("validation/accuracy" in mine) == ("validation/accuracy" in theirs)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_the_whole_unet_as_plain_torch_does(run, tiny, stage):
    expected, found = (load_file(run / "train" / n / "unet" / UNET_FILE) for n in ("plain_whole", f"whole{stage}"))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-3 * LR, rtol=0)
    for mine, theirs in zip(rows(run, f"whole{stage}", tiny), rows(run, "plain_whole", tiny), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=5e-5)
        assert mine.get("validation/accuracy") == theirs.get("validation/accuracy")


def test_resumed_zero_run_of_the_whole_unet_equals_an_uninterrupted_one(run):
    expected, found = (load_file(run / "train" / n / "unet" / UNET_FILE) for n in ("whole2", "stopped_whole2"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stage", [2, 3])
def test_resumed_zero_run_equals_an_uninterrupted_one(run, tiny, stage):
    expected, found = adapter(run, f"zero{stage}"), adapter(run, f"stopped{stage}")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    losses = [[(row["step"], row["loss"]) for row in rows(run, f"{name}{stage}", tiny)] for name in ("zero", "stopped")]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4]
    assert complete(Store(str(run)), f"train/stopped{stage}") == [2, 4]


def test_bfloat16_under_zero_stays_near_float32(run, tiny):
    for mine, theirs in zip(rows(run, "bfloat16", tiny), rows(run, "plain", tiny), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=0.02)
        assert mine["error/winner"] == pytest.approx(theirs["error/winner"], rel=0.02)
    # Adam turns rounding of small gradients into full steps, so single weights differ; B begins at 0
    flat = [
        torch.cat([v.flatten() for k, v in adapter(run, n).items() if "lora_B" in k]) for n in ("plain_ema", "bfloat16")
    ]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.9


def test_text_encoder_stage_under_zero_3_exports_the_frozen_part_whole(run):
    found, start, expected = adapter(run, "text3"), adapter(run, "wide"), adapter(run, "plain_text")
    assert found.keys() == expected.keys()
    for name, value in start.items():
        assert found[name].shape == value.shape, name
        assert torch.equal(found[name], value), name
    for name in expected.keys() - start.keys():
        torch.testing.assert_close(found[name], expected[name], atol=2e-3 * LR, rtol=0)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_both_text_encoders_of_sdxl_with_the_unet(run, stage):
    expected, found = adapter(run, "plain_xl"), adapter(run, f"xl{stage}")
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-3 * LR, rtol=0)


def test_every_run_ends_with_samples(run):
    for name in SCENARIOS:
        (samples,) = (run / "train" / name / "samples").iterdir()
        assert samples.stat().st_size > 100
