"""ALIGN (Jia et al. 2021, arXiv 2102.05918): the feature model of RPO's rewards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AlignModel, AutoProcessor


class AlignPair:
    """Unit-length features of image and text side by side [B, 2D]; cosines of the two halves are ALIGN-T."""

    def __init__(self, model: str = "kakaobrain/align-base", device: str = "cpu"):
        self.model = AlignModel.from_pretrained(model, use_safetensors=True).to(device).eval()
        self.processor, self.device = AutoProcessor.from_pretrained(model), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = self.processor.image_processor((images * 255).round().byte(), return_tensors="pt").pixel_values
        tokens = self.processor.tokenizer(
            prompts, padding="max_length", max_length=64, truncation=True, return_tensors="pt"
        ).to(self.device)
        image = self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output
        text = self.model.get_text_features(**tokens).pooler_output
        return torch.cat([F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)], dim=1)
