"""Training all of the U-Net, without a LoRA, against a frozen copy of it."""

import math

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from raypref import checkpoints
from raypref.artifacts import Store
from raypref.denoiser import BASE, POLICY, REFERENCE
from raypref.generation import sample
from raypref.models import load_pipeline
from raypref.noising import gaussian
from tests.conftest import CAPTIONS, LATENT, make_config, make_job, read_rows, train
from tests.numerics.test_export import SEEDS, drawn_by_diffusers, drawn_in_training
from tests.numerics.test_training import Counts, Dies, Watched, assert_close, assert_same

WHOLE = (
    "stages.easy.lora=null", "stages.easy.optim.lr=1e-3", "stages.hard.start=base", "stages.text_encoder.start=base"
)  # fmt: skip


def config(tiny, *assignments: str):
    return make_config(tiny, *WHOLE, *assignments)


def exported(job) -> dict[str, torch.Tensor]:
    """The U-Net as Diffusers loads it, under the names that its parameters had in training."""
    unet = UNet2DConditionModel.from_pretrained(Store(job.run).local / job.path / "unet")
    return {f"unet.{name}": value for name, value in unet.state_dict().items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def plain(run, tiny):
    """An uninterrupted run: (job, the engine that trained it)."""
    job = make_job(run, config(tiny), path="train/plain")
    return job, train(job, engine=Watched)


@pytest.fixture(scope="module")
def base(tiny):
    return UNet2DConditionModel.from_pretrained(tiny / "unet").state_dict()


def test_starts_at_ln_2_and_learns(plain):
    rows = read_rows(plain[0])
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/accuracies"] == 0.5 and rows[0]["stat_drift"] == 0
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["validation/accuracy"] > 0.9


def test_all_of_the_unet_changes_and_nothing_else(plain, base):
    _, engine = plain
    changed = {n for n, p in engine.denoiser.named_parameters() if not torch.equal(p, engine.first[n])}
    assert changed == set(engine.parameters) == {f"unet.{name}" for name in base}
    assert_same(engine.denoiser.reference.state_dict(), base)
    assert not [n for n, p in engine.denoiser.named_parameters() if p.grad is not None and n not in changed]
    assert all(flags == engine.flags[0] for flags in engine.flags)


def test_the_reference_and_the_base_are_the_copy(plain, tiny):
    _, engine = plain
    z, t, ids = gaussian(LATENT, SEEDS), torch.tensor([5, 500, 900]), torch.ones(3, 1, 8, dtype=torch.long)
    sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 3)
    unet = UNet2DConditionModel.from_pretrained(tiny / "unet").eval()
    with torch.no_grad():
        expected = unet(z, t, engine.denoiser.text_encoder(ids[:, 0])[0]).sample
        for which in (REFERENCE, BASE):
            torch.testing.assert_close(engine.denoiser(z, t, ids, sizes, which), expected)
        assert (engine.denoiser(z, t, ids, sizes, POLICY) - expected).abs().max() > 0.01


def test_diffusers_and_own_loader_draw_what_the_trained_model_draws(plain, tiny):
    job, engine = plain
    assert_same(exported(job), engine.whole())
    folder = Store(job.run).local / job.path
    assert not (folder / "lora").exists()
    expected = drawn_in_training(job.config, engine, POLICY)
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    assert (drawn_by_diffusers(job.config, pipe) - expected).abs().max() > 0.02
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    pipe = StableDiffusionPipeline.from_pretrained(tiny, unet=unet, safety_checker=None)
    torch.testing.assert_close(drawn_by_diffusers(job.config, pipe), expected, atol=1e-4, rtol=1e-4)
    own = load_pipeline(job.config.model, unet=folder / "unet")
    assert not any(p.requires_grad for p in own.unet.parameters())
    drawn = sample(own, CAPTIONS[:3], SEEDS, job.config.sampling, LATENT)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-4)


def test_a_loaded_unet_has_the_models_dtype(plain, tiny):
    job, _ = plain
    half = config(tiny, "model.dtype=bfloat16").model
    pipeline = load_pipeline(half, unet=Store(job.run).local / job.path / "unet")
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_resumed_run_equals_an_uninterrupted_one(run, tiny, plain, ema):
    settings = config(tiny, f"stages.easy.optim.ema={ema}")
    whole = plain[0]
    if ema != "null":
        whole = make_job(run, settings, path="train/average")
        train(whole)
        assert max((exported(whole)[n] - v).abs().max() for n, v in plain[1].whole().items()) > 1e-4  # the average's
    job = make_job(run, settings, path=f"train/stopped_{ema}")
    with pytest.raises(InterruptedError):
        train(job, engine=Dies)
    assert checkpoints.complete(Store(job.run), job.path) == [3]
    resumed = train(job, engine=Counts)
    assert resumed.steps == 3
    assert_same(resumed.whole(), plain[1].whole())  # an average does not touch what it is of
    assert_same(exported(job), exported(whole))
    rows = [[(row["step"], row["loss"], row.get("validation/accuracy")) for row in read_rows(j)] for j in (job, whole)]
    assert rows[0] == rows[1]


def test_gradient_checkpointing_changes_nothing(run, tiny, plain):
    engine = train(make_job(run, config(tiny, "training.gradient_checkpointing=true"), path="train/recompute"))
    assert engine.denoiser.unet.is_gradient_checkpointing
    assert_close(engine.whole(), plain[1].whole(), 2e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_bfloat16_keeps_the_policy_in_float32(run, tiny, plain, recompute):
    """Steps of 1e-6 are lost on a bfloat16 weight of 0.1; policy and frozen copy compute alike, so training starts at ln 2."""
    half = ("training.precision=bfloat16", "stages.easy.optim.lr=1e-6", "training.sample_every=3")
    settings = config(tiny, *half, f"training.gradient_checkpointing={str(recompute).lower()}")
    job = make_job(run, settings, path=f"train/half_{recompute}")
    engine = train(job, engine=Watched)
    assert {p.dtype for p in engine.denoiser.reference.parameters()} == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in engine.whole().values())
    assert min((value != engine.first[name]).float().mean() for name, value in engine.whole().items()) > 0.8
    first, expected = read_rows(job)[0], read_rows(plain[0])[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["error/winner"] == pytest.approx(expected["error/winner"], rel=0.02)


@pytest.mark.parametrize("kind", ["sft", "dreambooth"])
def test_objectives_without_a_reference(run, tiny, kind):
    """The copy stays for the held-out accuracy."""
    job = make_job(run, config(tiny, f"stages.easy.objective={{kind: {kind}}}"), path=f"train/{kind}")
    engine = train(job)
    rows = read_rows(job)
    assert "rewards/margins" not in rows[0] and 0 <= rows[-1]["validation/accuracy"] <= 1
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert_same(exported(job), engine.whole())
