"""Sampling of pools and SDRecon. Noise belongs to the image, not to the batch or the worker that draws it."""

from __future__ import annotations

import math

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from raypref.config import Sampling
from raypref.models import Pipeline, embed, encode_images, predict, scale_factor, token_ids
from raypref.noising import gaussian


def latent_shape(pipeline: Pipeline, resolution: int) -> tuple[int, int, int]:
    """C, H, W of the latents of square images of `resolution` pixels."""
    side = resolution // scale_factor(pipeline)
    return pipeline.unet.config.in_channels, side, side


def bucket_sizes(pipeline: Pipeline, resolution: int) -> list[tuple[int, int]]:
    """(height, width) in pixels, from upright to wide, of about resolution x resolution pixels and at most 1:2, which the VAE and
    the U-Net halve without a rest."""
    step = scale_factor(pipeline) * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    found = {(resolution, resolution)}
    for short in range(step, resolution, step):
        long = resolution**2 // short // step * step
        if long <= 2 * short:
            found |= {(short, long), (long, short)}
    return sorted(found, reverse=True)


def nearest_size(sizes: list[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """The size whose aspect ratio is nearest to that of an image."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(height / width)))


@torch.inference_mode()
def sample(
    pipeline: Pipeline,
    prompts: list[str],
    seeds: list[int],
    sampling: Sampling,
    shape: tuple[int, int, int],
    clean: Tensor | None = None,
    strengths: list[float] | None = None,
) -> Tensor:
    """Final scaled latents float32 [B, C, H, W], one image a (prompt, seed).

    With `clean` (scaled latents of real images, [B, C, H, W]) and `strengths` this is SDRecon (HG-DPO): the latent is noised
    to that share of the schedule and denoised back under its caption. Batches of up to `sampling.batch_size` images;
    images of one strength go together. Equal inputs give equal images whatever the batch, up to rounding.
    """
    noise = gaussian(shape, seeds)
    latents = torch.empty_like(noise)
    strengths = strengths or [1.0] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: strengths[i])
    start = 0
    while start < len(order):
        rows = [i for i in order[start : start + sampling.batch_size] if strengths[i] == strengths[order[start]]]
        part = None if clean is None else clean[rows]
        latents[rows] = (
            _denoise(pipeline, [prompts[i] for i in rows], noise[rows], sampling, part, strengths[rows[0]])
            .float()
            .cpu()
        )
        start += len(rows)
    return latents


def _denoise(
    pipeline: Pipeline,
    prompts: list[str],
    noise: Tensor,
    sampling: Sampling,
    clean: Tensor | None,
    strength: float,
) -> Tensor:
    """One batch through the solver, guidance in one forward pass of 2B rows."""
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(sampling.steps, device=device)
    steps = scheduler.timesteps
    latents = noise.to(device) * scheduler.init_noise_sigma
    if clean is not None:
        # as Diffusers' image-to-image: skip the first (1 - strength) of the steps
        first = sampling.steps - max(1, min(sampling.steps, round(sampling.steps * strength)))
        steps = steps[first * scheduler.order :]
        scheduler.set_begin_index(first * scheduler.order)
        latents = scheduler.add_noise(clean.to(device, torch.float32), noise.to(device), steps[:1].repeat(len(prompts)))
    guided = sampling.guidance > 1
    text = _texts(pipeline, prompts, guided, device, dtype)
    sizes = plain_sizes(pipeline, noise).to(device).repeat(1 + guided, 1)
    for t in steps:
        rows = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        output = predict(pipeline.unet, rows, t, text, sizes)
        if guided:
            output = _guide(output, sampling)
        latents = scheduler.step(output, t, latents).prev_sample
    return latents


def _texts(pipeline: Pipeline, prompts: list[str], guided: bool, device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Embeddings of the prompts, with those of the empty prompt before them for classifier-free guidance."""
    zeros = guided and getattr(pipeline.config, "force_zeros_for_empty_prompt", False)  # SDXL's convention
    texts = [""] * len(prompts) + prompts if guided and not zeros else prompts
    text = {name: value.to(dtype) for name, value in embed(pipeline, token_ids(pipeline, texts).to(device)).items()}
    return {name: torch.cat([torch.zeros_like(value), value]) for name, value in text.items()} if zeros else text


def _guide(output: Tensor, sampling: Sampling) -> Tensor:
    """Classifier-free guidance of the outputs for the empty prompt and the prompt; rescaled as in Lin et al. 2023
    (arXiv 2305.08891, equations 15 and 16) to the contrast of the latter by `guidance_rescale`."""
    unconditional, conditional = output.chunk(2)
    guided = unconditional + sampling.guidance * (conditional - unconditional)
    if not sampling.guidance_rescale:
        return guided
    scale = conditional.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return guided * (sampling.guidance_rescale * scale + 1 - sampling.guidance_rescale)


def plain_sizes(pipeline: Pipeline, latents: Tensor) -> Tensor:
    """int64 [B, 6] (see `models.predict`) of images that were drawn as large as they are."""
    height, width = (side * scale_factor(pipeline) for side in latents.shape[2:])
    return torch.tensor([[height, width, 0, 0, height, width]] * len(latents))


@torch.inference_mode()
def encode(pipeline: Pipeline, images_BCHW: Tensor, batch_size: int) -> Tensor:
    """Scaled latents float32 [B, C, h, w] of images in [0, 1], a batch at a time."""
    return torch.cat([encode_images(pipeline, part).cpu() for part in images_BCHW.split(batch_size)])
