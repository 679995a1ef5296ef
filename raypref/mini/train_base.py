"""Training of text encoder and U-Net: second part of the pipeline, with a realism gap on purpose."""

from __future__ import annotations

import pathlib

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch.nn import functional as F

from raypref.metrics import frechet_distance
from raypref.mini.data import HELD_OUT_SEED, TRAIN_SEED, Pool, make_pool
from raypref.mini.judge import Judge, load_judge
from raypref.mini.networks import build_pipeline, build_scheduler, build_text_encoder, build_tokenizer, build_unet
from raypref.mini.training import Average, Progress, halve_weights, optimizer_and_schedule

BASE_REALISM = (0.0, 0.4, 0.8)  # the base model never sees a full rendering
CAPTION_DROPOUT = 0.1
BATCH = 32


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool, device: str) -> torch.Tensor:
    """Scaled latents [N, len(BASE_REALISM), C, H, W]."""
    columns = []
    for realism in BASE_REALISM:
        chunks = []
        for index in torch.arange(len(pool)).split(128):
            images = 2 * pool.images(index, torch.full((len(index),), realism)) - 1
            chunks.append(vae.encode(images.to(device)).latent_dist.mean * vae.config.scaling_factor)
        columns.append(torch.cat(chunks).half())
    return torch.stack(columns, 1)


def train_base(
    out: pathlib.Path, judge_path: pathlib.Path, seed: int, steps: int, pool_size: int, device: str
) -> dict[str, float]:
    """Train on the autoencoder in `out`, save the whole pipeline there, return figures on held-out captions."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(device)
    pool = make_pool(TRAIN_SEED, pool_size)
    latents = encode_pool(vae, pool, device)
    tokenizer = build_tokenizer(out / "tokenizer")
    tokens = tokenizer(["", *pool.captions], padding="max_length", truncation=True, return_tensors="pt").input_ids
    model = torch.nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(tokenizer)}).to(device).train()
    scheduler = build_scheduler()
    optimizer, schedule = optimizer_and_schedule(model, 4e-3, steps)
    average, progress = Average(model, 0.999), Progress("base", steps)
    for step in range(steps):
        index_B = torch.randint(len(pool), (BATCH,), generator=generator)
        domain_B = torch.randint(len(BASE_REALISM), (BATCH,), generator=generator)
        clean = latents[index_B.to(device), domain_B.to(device)].float()
        kept_B = torch.rand(BATCH, generator=generator) >= CAPTION_DROPOUT
        ids = tokens[torch.where(kept_B, index_B + 1, 0)].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        t_B = torch.randint(1000, (BATCH,), generator=generator).to(device)
        noisy = scheduler.add_noise(clean, noise, t_B)
        velocity = scheduler.get_velocity(clean, noise, t_B)
        loss = F.mse_loss(model["unet"](noisy, t_B, model["text"](ids).last_hidden_state).sample, velocity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(model)
        progress(step, loss=loss)
    pipeline = build_pipeline(vae, average.module["text"], tokenizer, average.module["unet"])
    pipeline.save_pretrained(out, safe_serialization=True)
    halve_weights(out)
    return base_figures(pipeline, load_judge(judge_path, device), make_pool(HELD_OUT_SEED, min(pool_size, 512)))


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline, captions: list[str], seed: int, steps: int = 10, guidance: float = 2.0
) -> torch.Tensor:
    """Images of the captions with DPM-Solver++, float32 BCHW in [0, 1]."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for first in range(0, len(captions), 64):
        chunk = captions[first : first + 64]
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + i) for i in range(len(chunk))]
        result = pipeline(
            chunk, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
        )
        images.append(result.images.float())
    return torch.cat(images)


def base_figures(pipeline: StableDiffusionPipeline, judge: Judge, pool: Pool) -> dict[str, float]:
    """Attribute accuracy, realism and Frechet distances at guidance 2, 10 steps."""
    device = pipeline.device
    half = len(pool) // 2
    reference = judge.features(pool.images(torch.arange(half), torch.ones(half)).to(device))
    other = judge.features(pool.images(torch.arange(half, 2 * half), torch.ones(half)).to(device))
    images = sample(pipeline, pool.captions[half : 2 * half], seed=1)
    return {
        "attribute_accuracy": float(judge.attribute_accuracy(images, pool.captions[half : 2 * half]).mean()),
        "realism": float(judge.realism(images).mean()),
        "fd_base_to_real": frechet_distance(judge.features(images), reference),
        "fd_real_to_real": frechet_distance(other, reference),
    }
