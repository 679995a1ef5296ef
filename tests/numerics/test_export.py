"""The files that a user takes away: they load in Diffusers and PEFT and draw what the trained model draws."""

import json

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from raypref.adapters import read_adapter
from raypref.denoiser import BASE, POLICY, active
from raypref.generation import sample
from raypref.models import LORA_FILE, load_pipeline
from raypref.noising import gaussian
from tests.conftest import CAPTIONS, LATENT, make_config, make_job, train

SEEDS = [1, 2, 3]
TARGETS = "[to_q, to_k, to_v, to_out.0, ff.net.0.proj, conv1, proj_in]"


@pytest.fixture(scope="module", params=["alpha as rank", "other alpha", "text encoder"])
def trained(request, tmp_path_factory, tiny):
    """(configuration, folder of the exported LoRA, the engine that trained it)."""
    run = tmp_path_factory.mktemp("run")
    lora = (
        f"{{lora: {{unet: {{rank: 4, alpha: {4 if request.param == 'alpha as rank' else 12}, targets: {TARGETS}}}}}}}"
    )
    config = make_config(
        tiny, f"stages={{easy: {lora}, hard: {lora}}}", "stages.text_encoder.lora.text_encoder.alpha=7"
    )
    job = make_job(run, config)
    engine = train(job)
    if request.param == "text encoder":
        job = make_job(run, config, "text_encoder", job.path, "train/text")
        engine = train(job)
    return config, run / job.path / "lora", engine


def drawn_in_training(config, engine, which: str) -> torch.Tensor:
    pipeline = load_pipeline(config.model)
    pipeline.unet, pipeline.text_encoder = engine.denoiser.unet, engine.denoiser.text_encoder
    engine.denoiser.eval()
    with active(engine.denoiser, which):
        return sample(pipeline, CAPTIONS[:3], SEEDS, config.sampling, LATENT)


def drawn_by_diffusers(config, pipe) -> torch.Tensor:
    """Diffusers' own call, which shares no code with ours."""
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        CAPTIONS[:3],
        latents=gaussian(LATENT, SEEDS),
        num_inference_steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance,
        output_type="latent",
    ).images


def test_diffusers_draws_what_the_trained_model_draws(trained, tiny):
    config, folder, engine = trained
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    base = drawn_by_diffusers(config, pipe)
    pipe.load_lora_weights(folder)
    expected = drawn_in_training(config, engine, POLICY)
    torch.testing.assert_close(drawn_by_diffusers(config, pipe), expected, atol=1e-4, rtol=1e-4)
    assert (base - expected).abs().max() > 0.02  # the adapter does something
    torch.testing.assert_close(base, drawn_in_training(config, engine, BASE), atol=1e-4, rtol=1e-4)


def test_own_loader_draws_the_same(trained):
    config, folder, engine = trained
    loaded = sample(load_pipeline(config.model, lora=folder), CAPTIONS[:3], SEEDS, config.sampling, LATENT)
    torch.testing.assert_close(loaded, drawn_in_training(config, engine, POLICY), atol=1e-4, rtol=1e-4)


def test_adapter_composes_with_others(trained, tiny):
    """Loaded twice, at half the weight each: as one."""
    config, folder, engine = trained
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    pipe.load_lora_weights(folder, adapter_name="preference")
    pipe.load_lora_weights(folder, adapter_name="identity")
    pipe.set_adapters(["preference", "identity"], [0.5, 0.5])
    expected = drawn_in_training(config, engine, POLICY)
    torch.testing.assert_close(drawn_by_diffusers(config, pipe), expected, atol=1e-4, rtol=1e-4)
    pipe.set_adapters(["preference"], [0.0])
    base = drawn_in_training(config, engine, BASE)
    torch.testing.assert_close(drawn_by_diffusers(config, pipe), base, atol=1e-4, rtol=1e-4)


def test_peft_loads_the_same_state(trained, tiny):
    _, folder, engine = trained
    unet = UNet2DConditionModel.from_pretrained(tiny / "unet")
    model = PeftModel.from_pretrained(unet, folder / "peft" / "unet")
    state = get_peft_model_state_dict(model)
    stored = load_file(folder / "peft" / "unet" / "adapter_model.safetensors")
    assert state.keys() == stored.keys()
    for name, value in state.items():
        assert torch.equal(value, stored[name]), name
    z, t, ids = gaussian(LATENT, SEEDS), torch.tensor([5, 500, 900]), torch.ones(3, 8, dtype=torch.long)
    with torch.no_grad():
        text = engine.denoiser.text_encoder(ids)[0]
        with active(engine.denoiser, POLICY):
            expected = engine.denoiser.unet(z, t, text).sample
        torch.testing.assert_close(model(z, t, text).sample, expected, atol=1e-5, rtol=1e-5)


def test_files_agree_and_are_not_zero(trained):
    config, folder, _ = trained
    settings, state = read_adapter(folder)
    for module, stage in (("unet", "easy"), ("text_encoder", "text_encoder")):
        lora = config.stages[stage].lora.modules[module]
        if module in settings:
            assert (settings[module]["r"], settings[module]["lora_alpha"]) == (lora.rank, lora.alpha)
    diffusers = load_file(folder / LORA_FILE)
    inner = {"unet": "", "text_encoder": "text_model."}  # as other tools call the layers of a CLIPTextModel
    flat = {f"{module}.{inner[module]}{name}": value for module in state for name, value in state[module].items()}
    assert diffusers.keys() == flat.keys()
    assert all(torch.equal(diffusers[name], flat[name]) for name in flat)
    assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in flat.values())
    for module in settings:
        card = json.loads((folder / "peft" / module / "adapter_config.json").read_text())
        assert card["base_model_name_or_path"] == config.model.base
        assert card["lora_alpha"] == settings[module]["lora_alpha"]
    assert settings["unet"]["target_modules"] == sorted(TARGETS.strip("[]").split(", "))


def test_a_folder_without_an_adapter_is_said(tmp_path):
    with pytest.raises(ValueError, match="no adapter found; expected"):
        read_adapter(tmp_path)
