"""Sampling of pools and SDRecon. Noise belongs to the image, not to the batch or the worker that draws it."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor

from raypref.config import Sampling
from raypref.models import encode_images, token_ids
from raypref.noising import gaussian


def latent_shape(pipeline: StableDiffusionPipeline, resolution: int) -> tuple[int, int, int]:
    """C, H, W of the latents of square images of `resolution` pixels."""
    side = resolution // 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    return pipeline.unet.config.in_channels, side, side


@torch.inference_mode()
def sample(
    pipeline: StableDiffusionPipeline,
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
    pipeline: StableDiffusionPipeline,
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
    texts = [""] * len(prompts) + prompts if guided else prompts
    embeddings = pipeline.text_encoder(token_ids(pipeline, texts).to(device))[0].to(dtype)
    for t in steps:
        rows = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
        output = pipeline.unet(rows.to(dtype), t, encoder_hidden_states=embeddings).sample.float()
        if guided:
            unconditional, conditional = output.chunk(2)
            output = unconditional + sampling.guidance * (conditional - unconditional)
        latents = scheduler.step(output, t, latents).prev_sample
    return latents


@torch.inference_mode()
def encode(pipeline: StableDiffusionPipeline, images_BCHW: Tensor, batch_size: int) -> Tensor:
    """Scaled latents float32 [B, C, h, w] of images in [0, 1], a batch at a time."""
    return torch.cat([encode_images(pipeline, part).cpu() for part in images_BCHW.split(batch_size)])
