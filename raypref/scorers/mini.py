"""The miniature world's judge, which is never the scorer: attribute accuracy, and features for the Frechet distance."""

from __future__ import annotations

import torch
from torch import Tensor

from raypref.mini import locate
from raypref.mini.judge import load_judge


class Attributes:
    """Share of the caption's attributes that a classifier sees in the image: 0 to 1."""

    def __init__(self, model: str = "mini:judge", device: str = "cpu"):
        self.judge, self.device = load_judge(locate(model), device), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        try:
            return self.judge.attribute_accuracy(images.to(self.device), prompts)
        except ValueError as error:
            raise ValueError(
                f"mini_attributes reads captions of the miniature world only: {error}. Leave its entry out of "
                "evaluation.scorers"
            ) from None


class Features(Attributes):
    """The classifier's penultimate features [B, D]."""

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.judge.features(images.to(self.device))
