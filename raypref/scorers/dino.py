"""DINO (Caron et al. 2021, arXiv 2104.14294) and DINOv2: image features for the likeness of subjects."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from transformers import AutoImageProcessor, AutoModel


class Dino:
    """The CLS token of the last layer [B, D]; with ViT-S/16 the DINO score of DreamBench is the cosine of two of them."""

    def __init__(self, model: str = "facebook/dino-vits16", device: str = "cpu"):
        self.model = AutoModel.from_pretrained(model, use_safetensors=True).to(device).eval()
        self.processor, self.device = AutoImageProcessor.from_pretrained(model), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        size = self.model.config.image_size
        pixels = T.resize(images.to(self.device), [size], T.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        pixels = T.center_crop(pixels, [size])
        pixels = T.normalize(pixels, self.processor.image_mean, self.processor.image_std)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0].float()
