"""CLIP-IQA: the look of an image by a pair of opposite prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from raypref.scorers.clip import OpenClip

PAIRS = {"quality": ("Good photo.", "Bad photo."), "sharpness": ("Sharp photo.", "Blurry photo.")}


class ClipIqa(OpenClip):
    """Wang et al. 2022, arXiv 2207.12396: the probability of the first of two prompts, 0 to 1. The prompt of the image does
    not matter.

    `prompts`: quality, sharpness, or [positive, negative]. `model`, `pretrained`: as of `open_clip`, with the preprocessing
    of that model (the paper has an RN50 without position embeddings, which sees images at full size).
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        prompts: str | list[str] = "quality",
        device: str = "cpu",
    ):
        pair = PAIRS.get(prompts, ()) if isinstance(prompts, str) else prompts
        if len(pair) != 2 or not all(isinstance(prompt, str) for prompt in pair):
            raise ValueError(f"prompts: {prompts!r} must be one of {', '.join(PAIRS)}, or [positive, negative]")
        super().__init__(model, pretrained, device=device)
        with torch.inference_mode():
            self.anchors = self.text_features(list(pair))

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        logits = self.model.logit_scale.exp() * self.features(images) @ self.anchors.T
        return logits.softmax(1)[:, 0]
