"""A LoRA as kohya's sd-scripts write it, which ComfyUI and A1111 read, too.

The names are in kohya_names.py. The tensors are those of PEFT: alpha is written beside them, and readers scale by
alpha / rank as PEFT does.
"""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from raypref.adapters import read_adapter
from raypref.config import Model
from raypref.exports import cards
from raypref.exports.kohya_names import Base, layer_name
from raypref.mini import locate
from raypref.models import load_pipeline

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished

Adapters = dict[
    str, tuple[dict, dict[str, Tensor]]
]  # module -> its PEFT settings and state, as of adapters.read_adapter


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
            tensors[f"{name}.alpha"] = torch.tensor(_alpha(settings, match[1]))
    return tensors


def _alpha(settings: dict, layer: str) -> float:
    """By which kohya's scale, alpha / rank, is PEFT's."""
    alphas, ranks = settings.get("alpha_pattern", {}), settings.get("rank_pattern", {})
    alpha = float(alphas.get(get_pattern_key(alphas, layer), settings["lora_alpha"]))
    rank = ranks.get(get_pattern_key(ranks, layer), settings["r"])
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


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
