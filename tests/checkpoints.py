"""Small checkpoints of the real classes with random weights, in the layouts of the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from raypref.mini import locate
from raypref.mini.renderer import VOCABULARY

SIDE = 24  # pixels
_SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip(folder: Path) -> str:
    """CLIPModel with a processor: PickScore is one."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = AutoTokenizer.from_pretrained(locate("mini:pipeline") + "/tokenizer")
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    vision = {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=_SIZE | text, vision_config=_SIZE | vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return str(folder)


def align(folder: Path) -> str:
    """AlignModel (a BERT and an EfficientNet) with its processor."""
    from transformers import AlignConfig, AlignModel, AlignProcessor, BertTokenizerFast, EfficientNetImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(0)
    vision = {
        "image_size": SIDE, "hidden_dim": 24, "in_channels": [32, 8], "out_channels": [8, 24], "kernel_sizes": [3, 3],
        "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": [],
        "width_coefficient": 1.0, "depth_coefficient": 1.0, "pooling_type": "mean",
    }  # fmt: skip
    config = AlignConfig(text_config=_SIZE | {"vocab_size": len(tokenizer)}, vision_config=vision, projection_dim=24)
    AlignModel(config).save_pretrained(folder)
    images = EfficientNetImageProcessor(
        size={"height": 28, "width": 28}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=True
    )
    AlignProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def dino(folder: Path) -> str:
    """ViTModel with its image processor, as facebook/dino-vits16."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **_SIZE)).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)
