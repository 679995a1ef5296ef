"""CLIP models of open_clip: text-image similarity, and image features."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from raypref.mini import locate
from raypref.scorers.resizing import crop


class OpenClip:
    """Cosine of image and text features times the learned scale (`scale=True`: PickScore's convention, roughly 0 to 100;
    otherwise the cosine itself, as CLIP-T is reported). Radford et al. 2021, arXiv 2103.00020.

    `model`: an open_clip name with `pretrained`, `hf-hub:owner/name`, or a folder with open_clip_config.json and safetensors.
    """

    def __init__(self, model: str, pretrained: str | None = None, scale: bool = False, device: str = "cpu"):
        name = locate(model)
        if Path(name).is_dir():
            name = f"local-dir:{name}"
        # open_clip only warns where weights were trained with another activation than the name's, as OpenAI's were
        quick = open_clip.get_pretrained_cfg(name, pretrained or "").get("quick_gelu", False)
        self.model, _, _ = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, device=device, force_quick_gelu=quick
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self.scale, self.device = scale, device

    @property
    def size(self) -> int:
        """Side of the images that the model sees, pixels."""
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    def features(self, images: Tensor) -> Tensor:
        """Unit-length image features [B, D]. Resized (bicubic, antialiased) so that the short side fits, centre-cropped,
        normalised as the model's own preprocessing says."""
        config = self.model.visual.preprocess_cfg
        images = T.normalize(crop(images.to(self.device), self.size), config["mean"], config["std"])
        return F.normalize(self.model.encode_image(images).float(), dim=-1)

    def text_features(self, prompts: list[str]) -> Tensor:
        """Unit-length text features [B, D]."""
        return F.normalize(self.model.encode_text(self.tokenizer(prompts).to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        cosine = (self.features(images) * self.text_features(prompts)).sum(1)
        return cosine * self.model.logit_scale.exp() if self.scale else cosine


class OpenClipFeatures(OpenClip):
    """Image features [B, D], for a Frechet distance or a similarity."""

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.features(images)


class OpenClipPair(OpenClip):
    """Features of image and text side by side [B, 2D], for rewards of likeness and text alignment."""

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.cat([self.features(images), self.text_features(prompts)], dim=1)
