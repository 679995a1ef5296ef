"""Stable Diffusion XL: two text encoders, pooled embeddings and sizes, in Diffusers' own pipeline and in ours."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

from raypref.adapters import read_adapter
from raypref.denoiser import BASE, POLICY, REFERENCE, Denoiser
from raypref.generation import sample
from raypref.models import load_pipeline, token_ids
from raypref.noising import gaussian
from tests import pipelines
from tests.conftest import CAPTIONS, LATENT, make_config, make_job, train

SEEDS = [1, 2, 3]
BOTH = "{rank: 4, alpha: 8, targets: [q_proj, v_proj]}"
TOGETHER = (
    f"stages.text_encoder.lora={{unet: {{rank: 4}}, text_encoder: {BOTH}, text_encoder_2: {BOTH}}}",
    "stages.text_encoder.objective.statistics.weight=0.5",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipelines.sdxl(tmp_path_factory.mktemp("sdxl"))


def drawn_by_diffusers(config, pipe, **options) -> torch.Tensor:
    """Diffusers' own call, which shares no code with ours."""
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": config.sampling.steps, "guidance_scale": config.sampling.guidance} | options
    latents = gaussian(LATENT, SEEDS)
    return pipe(CAPTIONS[:3], latents=latents, height=16, width=16, output_type="latent", **given).images


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("zeros", [True, False])
def test_sampling_equals_diffusers(folder, guidance, zeros):
    config = make_config(folder, f"sampling.guidance={guidance}")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    ours = load_pipeline(config.model)
    ours.register_to_config(force_zeros_for_empty_prompt=zeros)
    found = sample(ours, CAPTIONS[:3], SEEDS, config.sampling, LATENT)
    torch.testing.assert_close(found, drawn_by_diffusers(config, pipe), atol=1e-4, rtol=1e-4)


def test_each_image_is_conditioned_on_its_own_size(folder):
    pipeline = load_pipeline(make_config(folder).model)
    sizes = torch.tensor([[640, 480, 0, 4, 16, 16], [16, 16, 0, 0, 16, 16], [1023, 999, 7, 0, 16, 16], [16] * 6])
    z, t = gaussian(LATENT, [1, 2, 3, 4]), torch.tensor([10, 400, 10, 400])
    found = Denoiser(pipeline)(z, t, token_ids(pipeline, CAPTIONS[:2]), sizes, POLICY)
    context, _, pooled, _ = pipeline.encode_prompt(CAPTIONS[:2], device="cpu", do_classifier_free_guidance=False)
    for i in range(4):
        added = {"text_embeds": pooled[i % 2][None], "time_ids": sizes[i][None].float()}
        text = context[i % 2][None]
        expected = pipeline.unet(z[i][None], t[i], encoder_hidden_states=text, added_cond_kwargs=added).sample[0]
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)
    assert (
        found[0] - Denoiser(pipeline)(z, t, token_ids(pipeline, CAPTIONS[:2]), sizes.flip(0), POLICY)[0]
    ).abs().max() > 1e-4


def test_unet_and_both_text_encoders_train_together_and_load_in_diffusers(folder, tmp_path):
    config = make_config(folder, *TOGETHER)
    job = make_job(tmp_path, config, "text_encoder")
    engine = train(job)
    settings, state = read_adapter(tmp_path / job.path / "lora")
    assert set(settings) == {"unet", "text_encoder", "text_encoder_2"}
    unused = "layers.1."  # of text_encoder: its last layer comes after the hidden state that the U-Net sees
    still = [f"{m}.{name}" for m in state for name, value in state[m].items() if not value.abs().max() > 0]
    assert still and all(name.startswith("text_encoder.") and unused in name for name in still)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    base = drawn_by_diffusers(config, pipe)
    pipe.load_lora_weights(tmp_path / job.path / "lora")
    drawn = drawn_by_diffusers(config, pipe)
    ours = sample(
        load_pipeline(config.model, lora=tmp_path / job.path / "lora"), CAPTIONS[:3], SEEDS, config.sampling, LATENT
    )
    torch.testing.assert_close(ours, drawn, atol=1e-4, rtol=1e-4)
    assert (drawn - base).abs().max() > 0.01
    sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 3)
    inputs = gaussian(LATENT, SEEDS), torch.tensor([10, 400, 900]), token_ids(pipe, CAPTIONS[:3]), sizes
    engine.denoiser.eval()
    with torch.no_grad():
        policy, reference, bare = (engine.denoiser(*inputs, which) for which in (POLICY, REFERENCE, BASE))
    torch.testing.assert_close(reference, bare)
    assert (policy - bare).abs().max() > 1e-3


def test_a_stage_goes_on_with_the_adapters_of_another(folder, tmp_path):
    """A U-Net trained first is kept as it was beside the text encoders that come after."""
    both = f"stages.text_encoder.lora={{text_encoder: {BOTH}, text_encoder_2: {BOTH}}}"
    config = make_config(folder, both)
    first = make_job(tmp_path, config)
    train(first)
    second = make_job(tmp_path, config, "text_encoder", first.path, "train/text")
    train(second)
    _, before = read_adapter(tmp_path / first.path / "lora")
    _, after = read_adapter(tmp_path / second.path / "lora")
    assert set(before) == {"unet"} and set(after) == {"unet", "text_encoder", "text_encoder_2"}
    assert all(torch.equal(before["unet"][name], after["unet"][name]) for name in before["unet"])


def test_a_module_that_the_model_lacks_is_said(tiny, tmp_path):
    job = make_job(tmp_path, make_config(tiny, "stages.easy.lora.text_encoder_2.rank=4"))
    with pytest.raises(
        ValueError, match=r"lora\.text_encoder_2: this model has no text_encoder_2; it has unet, text_encoder"
    ):
        train(job)
