"""ALIGN (Jia et al. 2021, arXiv 2102.05918): the feature model of RPO's rewards."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T
from transformers import AlignModel, AutoProcessor


class AlignPair:
    """Unit-length features of image and text side by side [B, 2D]; cosines of the two halves are ALIGN-T."""

    def __init__(self, model: str = "kakaobrain/align-base", device: str = "cpu"):
        self.model = AlignModel.from_pretrained(model, use_safetensors=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(model)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        settings = self.processor.image_processor
        height, width = settings.size["height"], settings.size["width"]
        crop = settings.crop_size["height"], settings.crop_size["width"]
        pixels = T.resize(images.to(self.device), [height, width], T.InterpolationMode.BICUBIC, antialias=True)
        pixels = T.normalize(T.center_crop(pixels.clamp(0, 1), crop), settings.image_mean, settings.image_std)
        tokens = self.processor.tokenizer(
            prompts, padding="max_length", max_length=64, truncation=True, return_tensors="pt"
        ).to(self.device)
        image = self.model.get_image_features(pixel_values=pixels).pooler_output
        text = self.model.get_text_features(**tokens).pooler_output
        return torch.cat([F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)], dim=1)
