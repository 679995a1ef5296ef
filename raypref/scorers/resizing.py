"""Resizes that several models share."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional as T


def crop(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, size, size]: bicubic, antialiased, so that the short side fits; the centre of it."""
    images = T.resize(images, [size], T.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    return T.center_crop(images, [size])


def pad(images: Tensor, size: int) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, 3, size, size]: bicubic, antialiased, so that the long side fits; black around it."""
    height, width = images.shape[2:]
    scale = size / max(height, width)
    height, width = round(height * scale), round(width * scale)
    images = T.resize(images, [height, width], T.InterpolationMode.BICUBIC, antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    return T.pad(images, [left, top, size - width - left, size - height - top])
