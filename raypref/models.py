"""Stable Diffusion pipelines: loading, and what goes through their text encoders and VAE.

A run's model is a Diffusers pipeline plus at most one LoRA, in Diffusers' own file, or with a U-Net in the place of its own.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from raypref.config import Model
from raypref.mini import locate

LORA_FILE = "pytorch_lora_weights.safetensors"
MODULES = ("unet", "text_encoder", "text_encoder_2")  # that can hold adapters; the last one is of Stable Diffusion XL
PICKLE = "is not a .safetensors file, and others (pickles) can run code when they are loaded; convert it to safetensors"
Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline
CLASSES = {kind.__name__: kind for kind in Pipeline.__args__}


def load_pipeline(
    model: Model,
    device: str = "cpu",
    lora: str | Path | None = None,
    dtype: torch.dtype | None = None,
    unet: str | Path | None = None,
) -> Pipeline:
    """The base pipeline (with `model.lora` in its weights, if that is merged) in evaluation mode, with the LoRA of a folder, or
    its U-Net, when one is given.

    Raises ValueError for what is not there, is no safetensors file, or is not Stable Diffusion 1.x, 2.x or XL.
    """
    dtype = dtype or getattr(torch, model.dtype)
    pipeline = _read(model, dtype)
    factor = scale_factor(pipeline)
    if model.resolution % factor:
        raise ValueError(f"model.resolution={model.resolution} is not a multiple of the VAE's factor {factor}")
    schedule = pipeline.scheduler.config
    if schedule.prediction_type == "epsilon" and schedule.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"model.base={model.base!r}: its scheduler has rescale_betas_zero_snr with prediction_type epsilon, from which no "
            "image follows where nothing but noise is left; set prediction_type to v_prediction if it was trained so, or "
            "rescale_betas_zero_snr to false, in scheduler/scheduler_config.json"
        )
    pipeline.set_progress_bar_config(disable=True)
    if model.lora and model.lora_mode == "merge":
        _merge_lora(pipeline, model.lora)
    if unet is not None:
        pipeline.unet = UNet2DConditionModel.from_pretrained(unet, dtype=dtype)
    if lora is not None:
        load_lora(pipeline, lora, "the run's LoRA")
    if dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.float()  # SDXL's VAE overflows in float16
    for module in (pipeline.vae, *parts(pipeline).values()):
        module.requires_grad_(False).eval()
    return pipeline.to(device)


def _check_path(field: str, name: str) -> None:
    """Raises ValueError for what is meant as a local path and is not there, which the hub would be asked for."""
    if name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists():
        raise ValueError(f"{field}={name!r}: there is no such file or folder on this machine")


def _said(error: Exception) -> str:
    """The first line of an error, as a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def load_lora(pipeline: Pipeline, source: str | Path, what: str, name: str | None = None) -> None:
    """Put a LoRA (Diffusers' or kohya's names) into a pipeline, as the adapter `name`.

    Raises ValueError, calling it `what`, when it is not there, no safetensors file, or not of this model.
    """
    _check_path(what, str(source))
    path, weights = Path(source), {}
    if path.is_file():
        path, weights = path.parent, {"weight_name": path.name}
    elif (path / LORA_FILE).is_file():
        weights = {"weight_name": LORA_FILE}
    if path.is_dir() and "weight_name" in weights and not weights["weight_name"].endswith(".safetensors"):
        raise ValueError(f"{what}={str(source)!r}: {PICKLE}")
    before = pipeline.get_list_adapters()
    try:
        pipeline.load_lora_weights(str(path), adapter_name=name, use_safetensors=True, **weights)
        if pipeline.get_list_adapters() == before:  # Diffusers passes over layers that it does not know
            raise ValueError("it holds no layer of this model.")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{what}={str(source)!r} cannot be loaded into this {type(pipeline).__name__}: {_said(error)} Give a "
            f"safetensors file with Diffusers' or kohya's names, a folder with {LORA_FILE}, or a hub id."
        ) from error


def _merge_lora(pipeline: Pipeline, source: str) -> None:
    # by what names weights were stored, which loading an adapter makes Transformers forget, and saving needs
    named = {m: m._weight_conversions for m in parts(pipeline).values() if hasattr(m, "_weight_conversions")}
    load_lora(pipeline, source, "model.lora")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for module, names in named.items():
        module._weight_conversions = names


def starting_lora(model: Model) -> dict[str, str]:
    """Argument of `load_pipeline` for the run's base model: the LoRA that it has beside its weights, if any."""
    return {"lora": model.lora} if model.lora and model.lora_mode == "continue" else {}


def _read(model: Model, dtype: torch.dtype) -> Pipeline:
    name = locate(model.base)
    _check_path("model.base", name)
    if Path(name).is_file():
        return _read_file(model, name, dtype)
    try:
        found = DiffusionPipeline.load_config(name, revision=model.revision)["_class_name"]
        if found not in CLASSES:
            raise ValueError(f"it is a {found}; raypref trains {' and '.join(CLASSES)} (1.x, 2.x and XL).")
        return CLASSES[found].from_pretrained(
            name,
            revision=model.revision,
            variant=model.variant,
            dtype=dtype,
            use_safetensors=True,
            **({"safety_checker": None} if found == "StableDiffusionPipeline" else {}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"model.base={model.base!r} cannot be loaded: {_said(error)} "
            "Give a hub id or a folder with model_index.json and safetensors weights."
        ) from error


def _read_file(model: Model, path: str, dtype: torch.dtype) -> Pipeline:
    """A checkpoint of one file with the names of the original code."""
    if not path.endswith(".safetensors"):
        raise ValueError(f"model.base={model.base!r}: {PICKLE}")
    try:
        with safe_open(path, "pt") as file:
            second = any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118
        kind = StableDiffusionXLPipeline if second else StableDiffusionPipeline
        return kind.from_single_file(path, config=model.config, dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        raise ValueError(
            f"model.base={model.base!r} cannot be loaded: {_said(error)} Give a checkpoint of Stable Diffusion "
            "1.x, 2.x or XL, and as model.config the folder or hub id of a pipeline of the same kind."
        ) from error


def parts(model: Pipeline | nn.Module) -> dict[str, nn.Module]:
    """The modules of MODULES that a pipeline or a denoiser has."""
    return {name: module for name in MODULES if (module := getattr(model, name, None)) is not None}


def scale_factor(pipeline: Pipeline) -> int:
    """Pixels a latent, along a side."""
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def token_ids(pipeline: Pipeline, prompts: list[str]) -> Tensor:
    """int64 [B, K, L] of K text encoders, padded and truncated to the tokenizers' length."""
    tokenizers = [pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None)]
    return torch.stack(
        [
            t(
                prompts, padding="max_length", max_length=t.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            for t in tokenizers
            if t is not None
        ],
        dim=1,
    )


def unread(pipeline: Pipeline, prompts: list[str]) -> list[str]:
    """The end of each prompt that the text encoders do not see, since their length is fixed; '' for one that fits."""
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    ids = tokenizer(prompts, truncation=False, verbose=False).input_ids if prompts else []
    return [tokenizer.decode(row[length - 1 : -1]).strip() if len(row) > length else "" for row in ids]


def embed(model: Pipeline | nn.Module, ids_BKL: Tensor) -> dict[str, Tensor]:
    """What the text encoders make of token ids: {"context": [B, L, D]}, for SDXL with {"pooled": [B, P]}."""
    second = getattr(model, "text_encoder_2", None)
    if second is None:
        return {"context": model.text_encoder(ids_BKL[:, 0])[0]}
    both = [encoder(ids_BKL[:, k], output_hidden_states=True) for k, encoder in enumerate((model.text_encoder, second))]
    context = torch.cat([output.hidden_states[-2] for output in both], dim=2)
    return {"context": context, "pooled": both[1].text_embeds}


def predict(unet: nn.Module, z_t: Tensor, t: Tensor, text: dict[str, Tensor], sizes: Tensor) -> Tensor:
    """The U-Net's output, float32 [B, C, H, W]. `text`: of `embed`.

    `sizes`: int64 [B, 6], height and width of the original image, top and left of the crop, height and width of the image,
    in pixels. SDXL is conditioned on them (Podell et al. 2023, arXiv 2307.01952, section 2.2), other models are not.
    """
    context = text["context"]
    added = {"text_embeds": text["pooled"], "time_ids": sizes} if "pooled" in text else None
    return unet(z_t.to(context.dtype), t, encoder_hidden_states=context, added_cond_kwargs=added).sample.float()


def encode_images(pipeline: Pipeline, images_BCHW: Tensor) -> Tensor:
    """Scaled latents (the posterior's mean) of images in [0, 1]: float32 [B, C, H/f, W/f]."""
    vae = pipeline.vae
    posterior = vae.encode((images_BCHW * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    return (posterior.mode().float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(pipeline: Pipeline, latents_BCHW: Tensor) -> Tensor:
    """Images float32 [B, 3, H, W] in [0, 1] of scaled latents."""
    vae = pipeline.vae
    latents = latents_BCHW.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return (vae.decode(latents.to(vae.device, vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)
