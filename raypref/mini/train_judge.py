"""Training of the judge."""

from __future__ import annotations

import pathlib

import torch
from torch.nn import functional as F

from raypref.metrics import frechet_distance
from raypref.mini.data import HELD_OUT_SEED, TRAIN_SEED, Pool, corrupt, make_pool, recolour
from raypref.mini.judge import Judge, save_judge
from raypref.mini.training import Progress, optimizer_and_schedule


def judge_loss(
    judge: Judge, images_BCHW: torch.Tensor, labels_BA: torch.Tensor, realism_B: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of all attributes plus squared error of the realism."""
    logits, realism = judge(images_BCHW)
    attributes = sum(F.cross_entropy(v, labels_BA[:, i], label_smoothing=0.05) for i, v in enumerate(logits.values()))
    return attributes + 3 * F.mse_loss(realism, realism_B)


def train_judge(out: pathlib.Path, seed: int, steps: int, pool_size: int, device: str) -> dict[str, float]:
    """Train, save to `out`, return figures on held-out people."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = make_pool(TRAIN_SEED, pool_size)
    judge = Judge().to(device)
    optimizer, schedule = optimizer_and_schedule(judge, 2e-3, steps)
    progress = Progress("judge", steps)
    for step in range(steps):
        index_B = torch.randint(len(pool), (64,), generator=generator)
        realism_B = torch.rand(64, generator=generator)
        vivid_B = torch.empty(64).uniform_(-0.5, 0.5, generator=generator)
        images = corrupt(recolour(pool.images(index_B, realism_B), vivid_B), generator).to(device)
        loss = judge_loss(judge, images, pool.labels_NA[index_B].to(device), realism_B.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step, loss=loss)
    judge.eval()
    save_judge(judge, out)
    return judge_figures(judge, make_pool(HELD_OUT_SEED, min(pool_size, 1024)), device)


def judge_figures(judge: Judge, pool: Pool, device: str) -> dict[str, float]:
    """Accuracy by realism and Frechet distances to real images."""
    half = len(pool) // 2
    first, second = torch.arange(half), torch.arange(half, 2 * half)
    figures, features = {}, {}
    with torch.no_grad():
        reference = judge.features(pool.images(first, torch.ones(half)).to(device))
        for realism in (1.0, 0.8, 0.4, 0.0):
            images = pool.images(second, torch.full((half,), realism)).to(device)
            captions = [pool.captions[i] for i in second]
            figures[f"accuracy_{realism:g}"] = float(judge.attribute_accuracy(images, captions).mean())
            features[realism] = judge.features(images)
            figures[f"fd_{realism:g}_to_real"] = frechet_distance(features[realism], reference)
    return figures
