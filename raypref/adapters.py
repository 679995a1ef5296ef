"""The files that users take away: one LoRA in Diffusers' and in PEFT's form, or a whole U-Net."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypref.config import Model
from raypref.denoiser import POLICY, REFERENCE, Adapter, Denoiser
from raypref.models import LORA_FILE, MODULES, Pipeline, load_lora, parts

UNET_FILE = "diffusion_pytorch_model.safetensors"
SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")  # of PEFT that we use


def adapter_state(
    denoiser: Denoiser, settings: dict[str, dict], values: dict[str, Tensor] | None = None
) -> dict[str, dict[str, Tensor]]:
    """The LoRA as a user gets it: of each module the policy, or what the stage found where it trains nothing.

    `values`: whole parameters by name to take instead of those in the module (gathered or averaged ones).
    """
    tensors = {}
    for name in settings:
        module = getattr(denoiser, name)
        adapter = POLICY if POLICY in module.peft_config else REFERENCE
        full = dict(module.state_dict())
        full |= {key.removeprefix(f"{name}."): v for key, v in (values or {}).items() if key.startswith(f"{name}.")}
        state = get_peft_model_state_dict(module, state_dict=full, adapter_name=adapter)
        tensors[name] = {key: value.detach().float().cpu().contiguous() for key, value in state.items()}
    return tensors


def export(folder: str | Path, state: dict[str, dict[str, Tensor]], settings: dict[str, dict], base: str) -> None:
    """Write one LoRA in two forms: Diffusers (`pipe.load_lora_weights`) and PEFT (a folder a module)."""
    folder = Path(folder)
    metadata = {name: LoraConfig(**settings[name]).to_dict() for name in settings}
    layers = {f"{name}_lora_layers": _named(name, state[name]) for name in settings}
    kind = StableDiffusionXLPipeline if "text_encoder_2" in settings else StableDiffusionPipeline
    kind.save_lora_weights(
        folder,
        weight_name=LORA_FILE,
        **layers,
        **{f"{name}_lora_adapter_metadata": _jsonable(metadata[name]) for name in settings},
    )
    for name in settings:
        target = folder / "peft" / name
        LoraConfig(**settings[name], base_model_name_or_path=base, inference_mode=True).save_pretrained(target)
        save_file(
            {f"base_model.model.{key}": value for key, value in state[name].items()},
            target / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )


def _named(module: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names that other tools look for: Transformers 5 calls a CLIPTextModel's layers without `text_model`."""
    prefix = "text_model." if module.startswith("text_encoder") else ""
    outside = "text_projection."  # of the second text encoder of SDXL
    return {k if k.startswith(outside) else prefix + k.removeprefix(prefix): value for k, value in state.items()}


def export_unet(folder: str | Path, unet: UNet2DConditionModel, values: dict[str, Tensor]) -> None:
    """Write a U-Net for `UNet2DConditionModel.from_pretrained`. `values`: its whole parameters by name in the Denoiser."""
    unet.save_config(folder)
    state = {name.removeprefix("unet."): value.detach().float().cpu().contiguous() for name, value in values.items()}
    save_file(state, Path(folder) / UNET_FILE, metadata={"format": "pt"})


def read_adapter(folder: str | Path) -> Adapter:
    """Settings and weights of each module of an exported LoRA folder, from its PEFT form."""
    settings, state = {}, {}
    for name in MODULES:
        source = Path(folder) / "peft" / name
        if source.is_dir():
            config = json.loads((source / "adapter_config.json").read_text())
            settings[name] = {key: config[key] for key in SETTINGS if config.get(key)}
            settings[name]["target_modules"] = sorted(settings[name]["target_modules"])
            weights = load_file(source / "adapter_model.safetensors")
            state[name] = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    if not settings:
        raise ValueError(f"{folder}: no adapter found; expected {folder}/peft/unet/adapter_config.json")
    return settings, state


def take_adapter(pipeline: Pipeline, model: Model) -> Adapter | None:
    """Settings and weights of the LoRA that the run continues (`model.lora`), or None. The pipeline stays as it was.

    Raises ValueError as `models.load_lora` does.
    """
    if model.lora is None or model.lora_mode == "merge":
        return None
    load_lora(pipeline, model.lora, "model.lora", "start")
    settings, state = {}, {}
    for name, module in parts(pipeline).items():
        if config := getattr(module, "peft_config", {}).get("start"):
            settings[name] = {key: value for key in SETTINGS if (value := getattr(config, key))}
            settings[name]["target_modules"] = sorted(config.target_modules)
            weights = get_peft_model_state_dict(module, adapter_name="start")
            state[name] = {key: value.detach().clone() for key, value in weights.items()}
    pipeline.unload_lora_weights()
    return settings, state


def _jsonable(config: dict) -> dict:
    return json.loads(json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
