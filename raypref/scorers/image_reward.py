"""ImageReward: BLIP with a reward head, tuned on human rankings."""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as T
from transformers import AutoTokenizer, BlipTextConfig, BlipTextModel

from raypref.scorers import weights as files
from raypref.scorers.aesthetic import published_head
from raypref.scorers.resizing import crop

HEAD_WIDTH = 64  # of an attention head, in BLIP's image and text encoders alike
TOKENS = 35  # of a prompt
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of rewards, as published


class ImageReward:
    """Xu et al. 2023, arXiv 2304.05977: the reward, standardised as published (mean 0 and deviation 1 over the authors'
    images, mostly -2 to 2).

    `weights`: ImageReward.pt, as a file or owner/name/file of the hub; the sizes of the networks are read from it.
    `tokenizer`: that of BERT (uncased), a folder or hub id.
    """

    def __init__(
        self,
        weights: str = "THUDM/ImageReward/ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        device: str = "cpu",
    ):
        state = files.read(weights)
        try:
            self.vision = vision_encoder(files.part(state, "blip.visual_encoder.")).to(device).eval()
            self.text = text_encoder(files.part(state, "blip.text_encoder.")).to(device).eval()
            head = files.part(state, "mlp.layers.")
            self.head = files.fill(published_head(head["0.weight"].shape[1]), head).to(device).eval()
        except KeyError as error:
            raise ValueError(f"weights {weights!r}: {error} is missing; these are not ImageReward's weights") from error
        self.tokenizer, self.device = AutoTokenizer.from_pretrained(tokenizer), device

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels = crop(images.to(self.device), self.vision.patch_embed.img_size[0])
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        seen = self.vision(T.normalize(pixels, PIXEL_MEAN, PIXEL_STD))
        read = self.text(
            tokens.input_ids, attention_mask=tokens.attention_mask, encoder_hidden_states=seen
        ).last_hidden_state
        return (self.head(read[:, 0].float()).squeeze(1) - MEAN) / STD


def vision_encoder(state: dict[str, Tensor]) -> VisionTransformer:
    """BLIP's image encoder, which is timm's ViT and has its names: [B, 3, H, W] -> tokens [B, N, D]."""
    _, _, patch, _ = state["patch_embed.proj.weight"].shape
    _, tokens, width = state["pos_embed"].shape
    model = VisionTransformer(
        img_size=math.isqrt(tokens - 1) * patch,
        patch_size=patch,
        embed_dim=width,
        depth=_depth(state, "blocks."),
        num_heads=width // HEAD_WIDTH,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    return files.fill(model, state)


def text_encoder(state: dict[str, Tensor]) -> BlipTextModel:
    """BLIP's text encoder with cross-attention to the image's tokens; transformers kept its names."""
    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_depth(state, "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
    )
    return files.fill(BlipTextModel(config, add_pooling_layer=False), state)


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.partition(".")[0] for key in files.part(state, prefix)})
