"""PickScore v1: a CLIP ViT-H tuned on human choices (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from transformers import AutoProcessor, CLIPModel

from raypref.scorers.resizing import crop


class PickScore:
    """Cosine times the learned scale, as in the paper (about 15 to 25 for natural images; some repositories divide by 100)."""

    def __init__(self, model: str = "yuvalkirstain/PickScore_v1", processor: str | None = None, device: str = "cpu"):
        self.model = CLIPModel.from_pretrained(model, use_safetensors=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(processor or "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        settings = self.processor.image_processor
        pixels = crop(images.to(self.device), self.model.config.vision_config.image_size)
        pixels = T.normalize(pixels, settings.image_mean, settings.image_std)
        tokens = self.processor.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        image = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        text = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return self.model.logit_scale.exp() * (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum(1)
