"""A LoRA as kohya's sd-scripts write it, which ComfyUI and A1111 read, too.

Layers are called by their path with underscores, after `lora_unet` or the text encoder's prefix. The U-Net's paths are those
of Diffusers for Stable Diffusion 1.x and 2.x, and those of the original code (input_blocks, middle_block, output_blocks) for
SDXL. The tensors are those of PEFT: alpha is written beside them, and readers scale by alpha / rank as PEFT does.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from raypref.config import Model
from raypref.exports import cards
from raypref.mini import locate
from raypref.models import load_pipeline, read_adapter

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished

Adapters = dict[str, tuple[dict, dict[str, Tensor]]]  # module -> its PEFT settings and state, as of models.read_adapter


@dataclass(frozen=True)
class Base:
    """What the names and the metadata depend on in a base model."""

    sdxl: bool = False
    v2: bool = False  # Stable Diffusion 2.x
    velocity: bool = False  # predicts v
    layers_per_block: int = 2  # of the U-Net


def write(finished: Finished, folder: Path, options: Options) -> None:
    """RECIPE_STAGE.safetensors and its card."""
    with finished.weights("lora") as source:
        settings, state = read_adapter(source)
    adapters = {module: (settings[module], state[module]) for module in settings}
    base = read_base(finished.config.model)
    tensors = convert(adapters, base, getattr(torch, options.dtype))
    save_file(tensors, folder / f"{finished.title}.safetensors", metadata(adapters, base) | _about(finished, options))
    cards.write_model_card(finished, folder, options, "kohya")


def convert(adapters: Adapters, base: Base, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Of each layer NAME.lora_down.weight [r, in, ...], .lora_up.weight [out, r, ...] and .alpha (a float32 scalar).

    Raises ValueError for tensors and layers that the format has no name for.
    """
    tensors = {}
    for module, (settings, state) in adapters.items():
        for key, value in state.items():
            match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key)
            if match is None:
                raise ValueError(f"{module}: kohya's format has no place for {key}; export it as diffusers or peft")
            name = layer_name(module, match[1], base)
            tensors[f"{name}.lora_{'down' if match[2] == 'A' else 'up'}.weight"] = value.to(dtype).contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(float(settings["lora_alpha"]))
    return tensors


def layer_name(module: str, path: str, base: Base) -> str:
    """Name of a layer: `down_blocks.0.resnets.1.conv1` of SDXL's unet is `lora_unet_input_blocks_2_0_in_layers_2`."""
    if module == "unet":
        prefix, path = "lora_unet", original_path(path, base.layers_per_block) if base.sdxl else path
    else:
        prefix = {"text_encoder": "lora_te1" if base.sdxl else "lora_te", "text_encoder_2": "lora_te2"}[module]
        if (
            path != "text_projection"
        ):  # Transformers 5 calls the layers of some of its text encoders without `text_model`
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
    match = re.fullmatch(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", path)
    if path in _OUTSIDE or match is None:
        if path not in _OUTSIDE:
            raise ValueError(f"unet: kohya's format has no name for {path}; export it as diffusers or peft")
        return _OUTSIDE[path]
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


def metadata(adapters: Adapters, base: Base) -> dict[str, str]:
    """What sd-scripts tell of a network and of its base model. Ranks and alphas that differ are 'Dynamic', as there."""
    told = {key: {settings[key] for settings, _ in adapters.values()} for key in ("r", "lora_alpha")}
    rank, alpha = (
        str(kind(*values)) if len(values) == 1 else "Dynamic"
        for kind, values in zip((int, float), told.values(), strict=True)
    )
    settings, state = adapters.get("unet", ({}, {}))
    kernels = any(value.ndim == 4 and value.shape[2] > 1 for value in state.values())
    convolutions = {"conv_dim": str(settings["r"]), "conv_alpha": str(float(settings["lora_alpha"]))} if kernels else {}
    version = "sdxl_base_v1-0" if base.sdxl else f"sd_v{2 if base.v2 else 1}{'_v' if base.velocity else ''}"
    second = "stable-diffusion-v2-768-v" if base.velocity else "stable-diffusion-v2-512"
    architecture = "stable-diffusion-xl-v1-base" if base.sdxl else second if base.v2 else "stable-diffusion-v1"
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(convolutions),
        "ss_v2": str(base.v2),
        "ss_base_model_version": version,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if base.sdxl else "diffusers",
        "modelspec.prediction_type": "v" if base.velocity else "epsilon",
    }


def _about(finished: Finished, options: Options) -> dict[str, str]:
    """What the metadata says of this run alone."""
    config = finished.config
    told = {
        "ss_output_name": finished.title,
        "ss_sd_model_name": cards.public_name(config.model.base),
        "ss_seed": str(config.seed),
        "modelspec.title": finished.title,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{config.model.resolution}x{config.model.resolution}",
        "modelspec.license": options.license,
        "modelspec.trigger_phrase": config.data.token,
    }
    return {key: value for key, value in told.items() if value}


def read_base(model: Model) -> Base:
    """From the configuration files of a base model, or from all of it where it is one file.

    Raises ValueError when it is not where the run had it.
    """
    name = locate(model.base)
    if Path(name).is_file():
        pipeline = load_pipeline(model)
        unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    else:
        try:
            unet = UNet2DConditionModel.load_config(name, subfolder="unet", revision=model.revision)
            scheduler = DDPMScheduler.load_config(name, subfolder="scheduler", revision=model.revision)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.base={model.base!r} cannot be read ({str(error).splitlines()[0]}); kohya's names and metadata depend "
                "on it: give --base, where it is now"
            ) from error
    return Base(
        sdxl=unet.get("addition_embed_type") == "text_time",
        v2=unet.get("cross_attention_dim") == 1024,
        velocity=scheduler.get("prediction_type") == "v_prediction",
        layers_per_block=unet["layers_per_block"],
    )
