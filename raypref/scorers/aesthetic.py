"""LAION's improved aesthetic predictor: a linear head on CLIP features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raypref.scorers import weights as files
from raypref.scorers.clip import OpenClip


def published_head(width: int) -> nn.Sequential:
    """The head of LAION's predictor and of ImageReward: linear layers with dropout and, as published, no activation."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


class Aesthetic(OpenClip):
    """Schuhmann et al. 2022 (LAION-5B), arXiv 2210.08402: the mean rating that people would give, 1 to 10, mostly 4 to 7.
    The prompt does not matter.

    `weights`: sac+logos+ava1-l14-linearMSE.pth, as a file or owner/name/file of the hub. `model`, `pretrained`: the CLIP
    model of its features, as of `open_clip`.
    """

    def __init__(self, weights: str, model: str = "ViT-L-14", pretrained: str | None = "openai", device: str = "cpu"):
        state = files.part(files.read(weights), "layers.")
        super().__init__(model, pretrained, device=device)
        width = self.model.visual.output_dim
        self.head = files.fill(published_head(width), state).to(device).eval()

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.head(self.features(images)).squeeze(1)
