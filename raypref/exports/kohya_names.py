"""The names of layers in kohya's files: their path with underscores, after `lora_unet` or the text encoder's prefix.

The U-Net's paths are those of Diffusers for Stable Diffusion 1.x and 2.x, and those of the original code (input_blocks,
middle_block, output_blocks) for SDXL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Base:
    """What the names and the metadata depend on in a base model."""

    sdxl: bool = False
    v2: bool = False  # Stable Diffusion 2.x
    velocity: bool = False  # predicts v
    layers_per_block: int = 2  # of the U-Net


def layer_name(module: str, path: str, base: Base) -> str:
    """Name of a layer: `down_blocks.0.resnets.1.conv1` of SDXL's unet is `lora_unet_input_blocks_2_0_in_layers_2`."""
    if module == "unet":
        prefix, path = "lora_unet", original_path(path, base.layers_per_block) if base.sdxl else path
    else:
        prefix = {"text_encoder": "lora_te1" if base.sdxl else "lora_te", "text_encoder_2": "lora_te2"}[module]
        if path != "text_projection":  # Transformers 5 calls some text encoders' layers without `text_model`
            path = f"text_model.{path.removeprefix('text_model.')}"
    return f"{prefix}_{path.replace('.', '_')}"


_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def original_path(path: str, layers_per_block: int) -> str:
    """Path of a layer of Diffusers' U-Net in the original code of SDXL, whose blocks are counted through.

    Raises ValueError for a layer that the original U-Net lacks.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    match = re.fullmatch(
        r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)",
        path,
    )
    if match is None:
        raise ValueError(f"unet: kohya's format has no name for {path}; export it as diffusers or peft")
    side, block, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    per_block = layers_per_block + 1
    if kind == "downsamplers":
        return f"input_blocks.{per_block * (block + 1)}.0.op"
    if kind == "upsamplers":  # after resnet and attention, which every block of SDXL that has one has, too
        return f"output_blocks.{per_block * block + layers_per_block}.2.conv"
    inner = {"resnets": 0, "attentions": 1}[kind]
    place = {
        "down_blocks": f"input_blocks.{per_block * block + index + 1}.{inner}",
        "mid_block": f"middle_block.{2 * index + inner}",
        "up_blocks": f"output_blocks.{per_block * block + index}.{inner}",
    }[side]
    return f"{place}.{_RESNET[rest] if kind == 'resnets' else rest}"
