"""The forward process and its algebra. Pure: noise and timesteps are arguments, so equal inputs give equal losses.

Shapes: B images, C x H x W latents. alpha_t and sigma_t are of z_t = alpha_t z_0 + sigma_t eps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian(shape: tuple[int, ...], seeds: list[int]) -> Tensor:
    """One standard normal tensor a seed, made on the CPU so that every device sees the same: [len(seeds), *shape]."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def timesteps(seeds: list[int], total: int) -> Tensor:
    """Uniform training timesteps in [0, total), one a seed: int64 [B]."""
    return torch.cat([torch.randint(total, (1,), generator=torch.Generator().manual_seed(s)) for s in seeds])


def alpha_sigma(alphas_cumprod_T: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t as float32 [B, 1, 1, 1]."""
    product = alphas_cumprod_T.to(t_B.device, torch.float32)[t_B].view(-1, 1, 1, 1)
    return product.sqrt(), (1 - product).sqrt()


def add_noise(z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """z_t [B, C, H, W]."""
    return alpha * z0 + sigma * noise


def target(z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """What the network should predict: the noise (epsilon) or the velocity alpha eps - sigma z0 (v_prediction)."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return alpha * noise - sigma * z0
    raise ValueError(f"prediction_type {prediction!r} of the scheduler: epsilon and v_prediction are supported")


def clean_estimate(
    z_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor, prediction: str, max_gain: float
) -> Tensor:
    """One-step estimate of z_0 from the network's output.

    epsilon: (z_t - sigma eps) / alpha with alpha bounded below by sigma / max_gain, since the estimate amplifies errors
    by sigma/alpha, which has no limit as t -> T. v_prediction: alpha z_t - sigma v, always finite.
    """
    if prediction == "epsilon":
        return (z_t - sigma * output) / torch.maximum(alpha, sigma / max_gain)
    return alpha * z_t - sigma * output
