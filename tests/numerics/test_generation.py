"""Sampling and SDRecon: the noise belongs to the image, and the result is Diffusers' own."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from raypref import generation
from raypref.config import Sampling
from raypref.models import decode_latents, encode_images, load_pipeline, token_ids
from raypref.noising import gaussian
from tests.conftest import CAPTIONS, LATENT, make_config

SEEDS = list(range(10, 18))


@pytest.fixture(scope="module", params=["tiny", "tiny_epsilon"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_pipeline(make_config(folder).model)


def draw(pipeline, prompts, seeds, clean=None, strengths=None, **sampling):
    sampling = Sampling(**{"steps": 4, "guidance": 2.0, "batch_size": 8} | sampling)
    return generation.sample(pipeline, prompts, seeds, sampling, LATENT, clean, strengths)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_any_batch_size_gives_the_same_images(pipeline, guidance):
    whole = draw(pipeline, CAPTIONS[:8], SEEDS, guidance=guidance)
    for size in (1, 3):
        part = draw(pipeline, CAPTIONS[:8], SEEDS, batch_size=size, guidance=guidance)
        torch.testing.assert_close(part, whole, atol=1e-4, rtol=0)
    alone = draw(pipeline, CAPTIONS[5:6], SEEDS[5:6], guidance=guidance)
    torch.testing.assert_close(alone[0], whole[5], atol=1e-4, rtol=0)
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_seed_and_prompt_decide_the_image(pipeline):
    images = draw(pipeline, [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]], [1, 2, 1])
    assert (images[0] - images[1]).abs().max() > 0.1
    assert (images[0] - images[2]).abs().max() > 1e-3
    assert torch.equal(images, draw(pipeline, [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]], [1, 2, 1]))


@pytest.mark.parametrize("steps, guidance", [(4, 1.0), (5, 3.0)])
def test_sampling_equals_diffusers(pipeline, folder, steps, guidance):
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        CAPTIONS[:3],
        latents=gaussian(LATENT, SEEDS[:3]),
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    found = draw(pipeline, CAPTIONS[:3], SEEDS[:3], steps=steps, guidance=guidance)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("folder", ["tiny"], indirect=True)
def test_rescaled_guidance_equals_diffusers(pipeline, folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        CAPTIONS[:3],
        latents=gaussian(LATENT, SEEDS[:3]),
        num_inference_steps=4,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        output_type="latent",
    ).images
    found = draw(pipeline, CAPTIONS[:3], SEEDS[:3], guidance=5.0, guidance_rescale=0.7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - draw(pipeline, CAPTIONS[:3], SEEDS[:3], guidance=5.0)).abs().max() > 0.01


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_reconstruction_equals_image_to_image_of_diffusers(pipeline, folder, strength):
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    clean = 0.5 * gaussian(LATENT, [99])
    expected = pipe(
        CAPTIONS[0],
        image=clean,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(SEEDS[0]),
        output_type="latent",
    ).images
    found = draw(pipeline, CAPTIONS[:1], SEEDS[:1], clean, [strength], steps=10)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_reconstruction_is_near_at_a_small_strength_and_far_at_a_large_one(pipeline):
    strengths = [0.05, 0.3, 0.6, 1.0]
    clean = 0.5 * gaussian(LATENT, [99]).repeat(4, 1, 1, 1)
    found = draw(pipeline, CAPTIONS[:1] * 4, SEEDS[:1] * 4, clean, strengths, steps=20, guidance=1.0)
    near, *_, far = distances = (found - clean).square().mean((1, 2, 3)).sqrt().tolist()
    assert distances == sorted(distances)
    assert near < 0.3  # about the noise at 5 % of the schedule, which a network without training leaves there
    assert far > 3 * near


def test_mixed_strengths_keep_their_order(pipeline):
    strengths = [0.8, 0.2, 0.8, 0.5, 0.2]
    clean = 0.5 * gaussian(LATENT, list(range(5)))
    together = draw(pipeline, CAPTIONS[:5], SEEDS[:5], clean, strengths, batch_size=3)
    for i in range(5):
        one = draw(pipeline, CAPTIONS[i : i + 1], SEEDS[i : i + 1], clean[i : i + 1], strengths[i : i + 1])
        torch.testing.assert_close(together[i], one[0], atol=1e-4, rtol=0)


def test_latents_and_images_go_back_and_forth_by_the_scaling_factor(pipeline):
    vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = encode_images(pipeline, images)
        torch.testing.assert_close(latents, vae.encode(2 * images - 1).latent_dist.mean * factor)
        decoded = decode_latents(pipeline, latents)
        torch.testing.assert_close(decoded, (vae.decode(latents / factor).sample / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(generation.encode(pipeline, images, 2), latents, atol=1e-5, rtol=1e-5)
    assert generation.latent_shape(pipeline, 16) == LATENT


def test_token_ids_fill_the_tokenizers_length(pipeline):
    ids = token_ids(pipeline, ["", CAPTIONS[0], " ".join(CAPTIONS[:4])])
    assert ids.shape == (3, 1, pipeline.tokenizer.model_max_length)
    assert (ids[:, 0, 0] == pipeline.tokenizer.bos_token_id).all()
    assert ids[0, 0, 1] == pipeline.tokenizer.eos_token_id
