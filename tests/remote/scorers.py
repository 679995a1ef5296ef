"""Scorers that are quick and whose answer a test can work out; the workers import them by this module's name."""

from __future__ import annotations

import torch
from torch import Tensor


class Brightness:
    """Mean of the pixels."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3))


class Darkness(Brightness):
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return -images.mean((1, 2, 3))


class Patchy(Brightness):
    """Brightness, but NaN where a pixel hash says so: about a third of the images, each always the same."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        values = images.mean((1, 2, 3))
        odd = (images * 255).round().sum((1, 2, 3)).long() % 3 == 0
        return torch.where(odd, torch.nan, values)
