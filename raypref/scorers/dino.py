"""DINO and DINOv2: image features for the likeness of subjects."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel


class Dino:
    """The CLS token of the last layer [B, D] of DINO (Caron et al. 2021, arXiv 2104.14294) or DINOv2 (Oquab et al. 2023, arXiv
    2304.07193; facebook/dinov2-base, say). With ViT-S/16 the DINO score of DreamBench is the cosine of two of them."""

    def __init__(self, model: str = "facebook/dino-vits16", device: str = "cpu"):
        self.model = AutoModel.from_pretrained(model, use_safetensors=True).to(device).eval()
        self.processor, self.device = AutoImageProcessor.from_pretrained(model), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = self.processor((images * 255).round().byte(), return_tensors="pt").pixel_values
        return self.model(pixel_values=pixels.to(self.device)).last_hidden_state[:, 0].float()
