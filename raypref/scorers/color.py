"""Colour statistics of images, for drift against the base model."""

from __future__ import annotations

from torch import Tensor

from raypref.metrics import color_statistics


class ColorStatistics:
    """Features [B, 8]: channel means, channel standard deviations, saturation, luminance (`metrics.color_statistics`)."""

    def __init__(self, device: str = "cpu"):
        self.device = device

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return color_statistics(images.to(self.device))
