"""Training of the autoencoder: first part of the pipeline."""

from __future__ import annotations

import copy
import math
import pathlib

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from raypref.mini.data import HELD_OUT_SEED, TRAIN_SEED, Pool, make_pool
from raypref.mini.judge import Judge, load_judge
from raypref.mini.networks import build_vae
from raypref.mini.training import Average, Progress, halve_weights, optimizer_and_schedule

BATCH = 16
LATENT_STD = 2.0  # of every channel after training, so the scaling factor is 1 / 2: forgetting it would show


def reconstruction_loss(output_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """L1 of pixels, of their differences (edges: faces and patterns) and of two coarser scales (colours).

    The middle columns, where the person stands, count up to three times as much as the scenery beside.
    """
    x_W = torch.linspace(-1, 1, target_BCHW.shape[-1], device=target_BCHW.device)
    error = (output_BCHW - target_BCHW) * (0.5 + torch.exp(-((x_W / 0.45) ** 2)))
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = F.avg_pool2d(error, 4).abs().mean() + F.avg_pool2d(error, 2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges + 0.5 * coarse


def perceptual_loss(judge: Judge, output_BCHW: torch.Tensor, target_BCHW: torch.Tensor) -> torch.Tensor:
    """Distance of the judge's early features (three layers, 16 x 16), images in [-1, 1]."""
    early = judge.body[:9]
    with torch.no_grad():
        wanted = early(target_BCHW)
    return F.l1_loss(early(output_BCHW), wanted)


def train_vae(
    out: pathlib.Path, seed: int, steps: int, pool_size: int, device: str, judge_path: pathlib.Path | None = None
) -> dict[str, float]:
    """Train, save to `out`, return figures on held-out people. Starts from `out` if an autoencoder is there."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = make_pool(TRAIN_SEED, pool_size)
    judge = load_judge(judge_path, device) if judge_path and (judge_path / "model.safetensors").is_file() else None
    vae = build_vae().to(device, memory_format=torch.channels_last)
    average = Average(vae)
    optimizer, schedule = optimizer_and_schedule(vae, 6e-3, steps)
    progress = Progress("vae", steps)
    for step in range(steps):
        index_B = torch.randint(len(pool), (BATCH,), generator=generator)
        # Half of the images are real, the others any blend: the base model is trained on blends.
        realism_B = torch.rand(BATCH, generator=generator).mul(2).clamp(max=1)
        images = (2 * pool.images(index_B, realism_B) - 1).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        output = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(output, images) + 1e-3 * kl
        if judge is not None:
            loss = loss + 0.1 * perceptual_loss(judge, output, images)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(vae)
        progress(step, loss=loss, kl=kl, l1=(output - images).abs().mean())
    vae = average.module
    standardise_latents(vae, pool, device)
    vae.save_pretrained(out, safe_serialization=True)
    halve_weights(out)
    return vae_figures(vae, make_pool(HELD_OUT_SEED, min(pool_size, 512)), device)


def train_decoder(
    out: pathlib.Path, seed: int, steps: int, pool_size: int, device: str, judge_path: pathlib.Path
) -> dict[str, float]:
    """Go on with the decoder of the autoencoder in `out`; latents stay, so the base model may be trained meanwhile."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool, judge = make_pool(TRAIN_SEED, pool_size), load_judge(judge_path, device)
    vae = AutoencoderKL.from_pretrained(out).to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    average, progress = Average(vae), Progress("decoder", steps)
    optimizer, schedule = optimizer_and_schedule(vae, 4e-3, steps)
    for step in range(steps):
        index_B = torch.randint(len(pool), (BATCH,), generator=generator)
        realism_B = torch.rand(BATCH, generator=generator).mul(2).clamp(max=1)
        images = (2 * pool.images(index_B, realism_B) - 1).to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
            # Some noise: latents from a sampler are never quite on the encoder's manifold.
            latents = posterior.sample() + 0.05 * LATENT_STD * torch.randn_like(posterior.mean)
        output = vae.decode(latents).sample
        loss = reconstruction_loss(output, images) + 0.1 * perceptual_loss(judge, output, images)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(vae)
        progress(step, loss=loss, l1=(output - images).abs().mean())
    average.module.save_pretrained(out, safe_serialization=True)
    halve_weights(out)
    return vae_figures(average.module, make_pool(HELD_OUT_SEED, min(pool_size, 512)), device)


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pool: Pool, device: str) -> None:
    """Fold an affine map into the 1 x 1 convolutions around the latent: each channel gets mean 0 and LATENT_STD.

    Images do not change. Pipelines know one scaling factor only, and channels of unequal size train badly.
    """
    index = torch.arange(min(len(pool), 1024))
    realism = torch.linspace(0, 1, len(index))
    images = (2 * pool.images(index, realism) - 1).to(device)
    latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in images.split(128)])
    mean_C, std_C = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    grow_C = LATENT_STD / std_C
    channels = len(mean_C)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[:channels] *= grow_C.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean_C) * grow_C
    before.bias[channels:] += 2 * grow_C.log()  # second half: log-variance
    after.bias += after.weight[:, :, 0, 0] @ mean_C
    after.weight /= grow_C.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1 / LATENT_STD)


@torch.no_grad()
def vae_figures(vae: AutoencoderKL, pool: Pool, device: str) -> dict[str, float]:
    """PSNR in dB by realism, and what the latents look like."""
    vae = copy.deepcopy(vae).eval()
    figures = {}
    index = torch.arange(len(pool))
    for realism in (1.0, 0.4):
        images = (2 * pool.images(index, torch.full((len(index),), realism)) - 1).to(device)
        errors, latents = [], []
        for chunk in images.split(128):
            mean = vae.encode(chunk).latent_dist.mean
            errors.append(((vae.decode(mean).sample.clamp(-1, 1) - chunk) / 2).square().mean((1, 2, 3)))
            latents.append(mean)
        figures[f"psnr_{realism:g}"] = -10 * math.log10(float(torch.cat(errors).mean()))
        figures[f"latent_std_{realism:g}"] = float(torch.cat(latents).std() * vae.config.scaling_factor)
    return figures
