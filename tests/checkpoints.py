"""Small checkpoints of the real classes with random weights, in the layouts of the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from raypref.mini import locate
from raypref.mini.renderer import VOCABULARY

SIDE = 24  # pixels
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def words() -> tuple:
    """The miniature's tokenizer, and what a CLIPTextConfig says of it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate("mini:pipeline") + "/tokenizer")
    return tokenizer, {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def clip(folder: Path) -> str:
    """CLIPModel with a processor: PickScore is one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer, text = words()
    torch.manual_seed(0)
    vision = {"image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=SIZE | text, vision_config=SIZE | vision, projection_dim=8)
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
    config = AlignConfig(text_config=SIZE | {"vocab_size": len(tokenizer)}, vision_config=vision, projection_dim=24)
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
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **SIZE)).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


def dinov2(folder: Path) -> str:
    """Dinov2Model with its image processor, as facebook/dinov2-small."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    # weights of the hub are of another size than the crop, so positions are interpolated there and here
    Dinov2Model(Dinov2Config(image_size=48, patch_size=8, **sizes)).save_pretrained(folder)
    crop = {"height": SIDE, "width": SIDE}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=crop, image_mean=mean, image_std=std).save_pretrained(
        folder
    )
    return str(folder)


def hpsv2(file: Path) -> str:
    """A checkpoint of open_clip's CLIP, here of the architecture mini:clip, laid out as HPS_v2.1_compressed.pt."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{locate('mini:clip')}", load_weights=False)
    for name, p in model.named_parameters():
        if "class_embedding" in name or "positional" in name:
            torch.nn.init.normal_(p)
    torch.save({"epoch": 1, "name": "hps", "state_dict": model.state_dict()}, file)
    return str(file)


def head(width: int) -> dict[str, torch.Tensor]:
    """The layers of LAION's predictor, which are ImageReward's too; numbers are left out for dropout."""
    sizes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    return {
        key: value
        for number, (rows, columns) in sizes.items()
        for key, value in _linear(f"layers.{number}", rows, columns).items()
    }


def aesthetic(file: Path, width: int) -> str:
    """As sac+logos+ava1-l14-linearMSE.pth."""
    torch.manual_seed(0)
    torch.save(head(width), file)
    return str(file)


def image_reward(file: Path) -> str:
    """As ImageReward.pt, in BLIP's own names: a ViT of two layers and three heads of 64, a text encoder of two and two."""
    torch.manual_seed(0)
    state = _vision(192, patch=8, tokens=1 + (SIDE // 8) ** 2) | _text(128, 192, len(VOCABULARY) + 5)
    state |= {f"mlp.{key}": value for key, value in head(128).items()}
    # of BLIP's pre-training, in the file but of no use to the reward
    state |= _linear("blip.vision_proj", 256, 192) | _linear("blip.text_proj", 256, 128)
    torch.save(state, file)
    return str(file)


def bert_tokenizer(folder: Path) -> str:
    """As google-bert/bert-base-uncased, with the words of the miniature world."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def _linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns) / columns**0.5, f"{name}.bias": torch.randn(rows) / 10}


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": 1 + torch.randn(width) / 10, f"{name}.bias": torch.randn(width) / 10}


def _vision(width: int, patch: int, tokens: int) -> dict[str, torch.Tensor]:
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, tokens, width) / 2,
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch) / patch,
        "patch_embed.proj.bias": torch.randn(width) / 10,
    }
    for i in range(2):
        state |= _norm(f"blocks.{i}.norm1", width) | _norm(f"blocks.{i}.norm2", width)
        state |= _linear(f"blocks.{i}.attn.qkv", 3 * width, width) | _linear(f"blocks.{i}.attn.proj", width, width)
        state |= _linear(f"blocks.{i}.mlp.fc1", 4 * width, width) | _linear(f"blocks.{i}.mlp.fc2", width, 4 * width)
    return {f"blip.visual_encoder.{key}": value for key, value in (state | _norm("norm", width)).items()}


def _text(width: int, image_width: int, words: int) -> dict[str, torch.Tensor]:
    state = {
        "embeddings.word_embeddings.weight": torch.randn(words, width),
        "embeddings.position_embeddings.weight": torch.randn(64, width) / 2,
        "embeddings.position_ids": torch.arange(64)[None],
    } | _norm("embeddings.LayerNorm", width)
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for part, source in (("attention", width), ("crossattention", image_width)):
            state |= _linear(f"{layer}.{part}.self.query", width, width)
            state |= _linear(f"{layer}.{part}.self.key", width, source)
            state |= _linear(f"{layer}.{part}.self.value", width, source)
            state |= _linear(f"{layer}.{part}.output.dense", width, width)
            state |= _norm(f"{layer}.{part}.output.LayerNorm", width)
        state |= _linear(f"{layer}.intermediate.dense", 4 * width, width)
        state |= _linear(f"{layer}.output.dense", width, 4 * width) | _norm(f"{layer}.output.LayerNorm", width)
    return {f"blip.text_encoder.{key}": value for key, value in state.items()}
