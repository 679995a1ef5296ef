"""Objectives as pure functions of per-image errors and estimates, in float32; each returns (loss, metrics).

Errors are the mean over C, H, W of (prediction - target)^2, so beta belongs to the mean: an implementation that sums
has beta_sum = beta / (C H W), and the same beta is 4 times weaker at 1024 px than at 512 px in that form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def denoising_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image, float32 [B], whatever the dtype of [B, C, H, W] inputs.

    Reduced in float32 because reference errors in half precision put noise on the preference logit (0.15 at k = 2500).
    """
    return (output.float() - target.float()).square().mean(dim=(1, 2, 3))


def dpo(
    winner_B: Tensor,
    loser_B: Tensor,
    winner_ref_B: Tensor,
    loser_ref_B: Tensor,
    beta: float,
    label_B: Tensor | float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14) with k = beta / 2, as in the authors' code; Diffusers' SD1.5 script uses
    k = beta.

    All errors are [B] (see `denoising_error`). `label_B`: probability that the winner is preferred (1 = certain);
    with soft labels this is the cross-entropy of the Bradley-Terry model. Policy = reference gives ln 2.
    Rewards are implicit: -k (err_policy - err_reference).
    """
    k = beta / 2
    chosen = -k * (winner_B - winner_ref_B)
    rejected = -k * (loser_B - loser_ref_B)
    margin = chosen - rejected
    label = torch.as_tensor(label_B, dtype=margin.dtype, device=margin.device)
    loss = -(label * F.logsigmoid(margin) + (1 - label) * F.logsigmoid(-margin)).mean()
    metrics = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        # equal rewards count half: at the start policy = reference, and chance is 0.5
        "rewards/accuracies": (margin > 0).float() + 0.5 * (margin == 0).float(),
        "error/winner": winner_B,
        "error/loser": loser_B,
        "error/winner_reference": winner_ref_B,
        "error/loser_reference": loser_ref_B,
    }
    return loss, {name: value.detach().mean() for name, value in metrics.items()}


def sft(winner_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Supervised fine-tuning: the denoising error of the winners alone, [B] -> scalar."""
    return winner_B.mean(), {"error/winner": winner_B.detach().mean()}


def dreambooth(winner_B: Tensor, loser_B: Tensor, prior: float) -> tuple[Tensor, dict[str, Tensor]]:
    """DreamBooth with prior preservation (arXiv 2208.12242, eq. 2): errors [B] of the subject's photos (winners) and, with
    the weight `prior`, of images of its class (losers) -> scalar."""
    loss = winner_B.mean() + prior * loser_B.mean()
    return loss, {"error/winner": winner_B.detach().mean(), "error/loser": loser_B.detach().mean()}


def channel_statistics(z0: Tensor, match: str) -> Tensor:
    """Spatial statistics of each latent [B, C, H, W]: mean [B, C]; mean_std [B, 2C]; covariance [B, C + C*C]."""
    flat = z0.float().flatten(2)
    mean = flat.mean(2)
    if match == "mean":
        return mean
    if match == "mean_std":
        return torch.cat([mean, flat.var(2, correction=0).add(1e-8).sqrt()], dim=1)
    if match == "covariance":
        centred = flat - mean.unsqueeze(2)
        return torch.cat([mean, (centred @ centred.transpose(1, 2) / flat.shape[2]).flatten(1)], dim=1)
    raise ValueError(f"match {match!r}: one of mean, mean_std, covariance")


def statistics(z0: Tensor, z0_reference: Tensor, match: str = "mean") -> tuple[Tensor, dict[str, Tensor]]:
    """Statistics matching (HG-DPO, L_stat): mean over images and channels of the squared difference between the channel
    statistics of two one-step estimates [B, C, H, W]; the reference gets no gradient."""
    difference = channel_statistics(z0, match) - channel_statistics(z0_reference, match).detach()
    loss = difference.square().mean()
    return loss, {"stat_loss": loss.detach(), "stat_drift": difference.detach().mean(0).abs().mean()}
