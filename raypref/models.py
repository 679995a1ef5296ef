"""Stable Diffusion pipelines, their adapters, and the files that users take away.

A run's model is a Diffusers pipeline plus at most one LoRA, in Diffusers' own file, or with a U-Net in the place of its own.
While a LoRA trains, two adapters live in the same layers: `policy` is trained and `reference` (the stage's start) is frozen.
Which of them acts is switched by name alone; `requires_grad` is set once and never touched in the loop. Where all of the
U-Net is trained, the reference is a frozen copy of it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raypref.config import Model
from raypref.mini import locate
from raypref.stages import Lora

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FILE = "diffusion_pytorch_model.safetensors"
MODULES = ("unet", "text_encoder")
POLICY, REFERENCE, BASE = "policy", "reference", "base"


def load_pipeline(
    model: Model,
    device: str = "cpu",
    lora: str | Path | None = None,
    dtype: torch.dtype | None = None,
    unet: str | Path | None = None,
) -> StableDiffusionPipeline:
    """The base pipeline in evaluation mode, with the LoRA of a folder, or its U-Net, when one is given.

    Raises ValueError for a folder or hub id that is not there and for pipelines that are not Stable Diffusion 1.x / 2.x.
    """
    name = locate(model.base)
    dtype = dtype or getattr(torch, model.dtype)
    trained = {} if unet is None else {"unet": UNet2DConditionModel.from_pretrained(unet, dtype=dtype)}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            name,
            revision=model.revision,
            variant=model.variant,
            dtype=dtype,
            use_safetensors=True,
            safety_checker=None,
            **trained,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.base={model.base!r} cannot be loaded: {str(error).splitlines()[0]} "
            "Give a hub id or a folder with model_index.json and safetensors weights."
        ) from error
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise ValueError(
            f"model.base={model.base!r} is a {type(pipeline).__name__}; raypref trains "
            "StableDiffusionPipeline models (Stable Diffusion 1.x and 2.x)"
        )
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    if model.resolution % factor:
        raise ValueError(f"model.resolution={model.resolution} is not a multiple of the VAE's factor {factor}")
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(str(lora), weight_name=LORA_FILE)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False).eval()
    return pipeline.to(device)


def token_ids(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """int64 [B, L], padded and truncated to the tokenizer's length."""
    tokenizer = pipeline.tokenizer
    return tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids


def encode_images(pipeline: StableDiffusionPipeline, images_BCHW: Tensor) -> Tensor:
    """Scaled latents (the posterior's mean) of images in [0, 1]: float32 [B, C, H/f, W/f]."""
    vae = pipeline.vae
    posterior = vae.encode((images_BCHW * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    return (posterior.mode().float() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def decode_latents(pipeline: StableDiffusionPipeline, latents_BCHW: Tensor) -> Tensor:
    """Images float32 [B, 3, H, W] in [0, 1] of scaled latents."""
    vae = pipeline.vae
    latents = latents_BCHW.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    return (vae.decode(latents.to(vae.device, vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


class Denoiser(nn.Module):
    """U-Net and text encoder as one module, which is what the engine wraps.

    forward(z_t [mB, C, H, W], t [mB], ids [B, L], which) -> network output [mB, C, H, W] float32; with m > 1 the rows are m
    blocks that share the B prompts. `which`: policy, reference or base (no adapter at all).
    """

    def __init__(self, pipeline: StableDiffusionPipeline):
        super().__init__()
        self.unet, self.text_encoder = pipeline.unet, pipeline.text_encoder
        self.reference: nn.Module | None = None  # the U-Net as it was, where all of it is trained: reference and base
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction = schedule.config.prediction_type
        self.timesteps = schedule.config.num_train_timesteps
        self.alphas_cumprod = schedule.alphas_cumprod  # float32 whatever the module's dtype: not a buffer

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor, which: str) -> Tensor:
        with active(self, which):
            embeddings = self.text_encoder(ids)[0]
            embeddings = embeddings.repeat(z_t.shape[0] // ids.shape[0], 1, 1)
            dtype = embeddings.dtype
            unet = self.unet if which == POLICY or self.reference is None else self.reference
            return unet(z_t.to(dtype), t, encoder_hidden_states=embeddings).sample.float()


@contextlib.contextmanager
def active(module: nn.Module, which: str) -> Iterator[None]:
    """Let the named adapters of every layer act for a while.

    A layer that has no adapter of the name `policy` falls back on `reference`: the part that this stage does not train
    stays as the stage found it.
    """
    wanted = {POLICY: (POLICY, REFERENCE), REFERENCE: (REFERENCE,), BASE: ()}[which]
    layers = [m for m in module.modules() if isinstance(m, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        # PEFT's own set_adapter would also flip requires_grad, which ZeRO's hooks and compiled graphs do not expect
        layer._active_adapter = [name for name in wanted if name in layer.lora_A][:1]
    try:
        yield
    finally:
        for layer, names in zip(layers, before, strict=True):
            layer._active_adapter = names


def add_adapters(denoiser: Denoiser, module: str, lora: Lora, start: str | Path | None, seed: int) -> dict[str, dict]:
    """Put the frozen `reference` (when the stage starts from a LoRA) and the trainable `policy` into the layers.

    The policy starts as a copy of the start's adapter, or as a new one that changes nothing (B = 0). Returns the adapter
    settings of each module, for the export. Raises ValueError when no layer matches `lora.targets`.
    """
    settings = {}
    if start is not None:
        settings, state = read_adapter(start)
        for name in settings:
            _inject(getattr(denoiser, name), settings[name], REFERENCE, state[name])
    if module not in settings:
        settings[module] = {"r": lora.rank, "lora_alpha": lora.alpha or lora.rank, "target_modules": list(lora.targets)}
        state = {module: None}
    torch.manual_seed(seed)
    _inject(getattr(denoiser, module), settings[module], POLICY, state[module])
    for name, parameter in denoiser.named_parameters():
        parameter.requires_grad_(f".{POLICY}." in name)
        if f".{POLICY}." in name:
            parameter.data = parameter.data.float()
    return settings


def train_whole(denoiser: Denoiser) -> None:
    """Make all of the U-Net trainable, in float32, beside a frozen copy of it.

    The copy stays whatever the objective: held-out preference accuracy is measured against the base model.
    """
    denoiser.requires_grad_(False)
    denoiser.reference = copy.deepcopy(denoiser.unet)
    denoiser.unet.requires_grad_(True).float()


def _inject(module: nn.Module, settings: dict, name: str, state: dict[str, Tensor] | None) -> None:
    try:
        inject_adapter_in_model(LoraConfig(**settings), module, adapter_name=name)
    except ValueError as error:
        raise ValueError(
            f"lora.targets={settings['target_modules']}: no such layers in {type(module).__name__} "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    if state is not None:
        outcome = set_peft_model_state_dict(module, state, adapter_name=name)
        if outcome.unexpected_keys:
            raise ValueError(f"the LoRA has layers that {type(module).__name__} lacks: {outcome.unexpected_keys[:3]}")


def trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


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
    layers = {f"{name}_lora_layers": state[name] for name in settings}
    StableDiffusionPipeline.save_lora_weights(
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


def export_unet(folder: str | Path, unet: UNet2DConditionModel, values: dict[str, Tensor]) -> None:
    """Write a U-Net for `UNet2DConditionModel.from_pretrained`. `values`: its whole parameters by name in the Denoiser."""
    unet.save_config(folder)
    state = {name.removeprefix("unet."): value.detach().float().cpu().contiguous() for name, value in values.items()}
    save_file(state, Path(folder) / UNET_FILE, metadata={"format": "pt"})


def read_adapter(folder: str | Path) -> tuple[dict[str, dict], dict[str, dict[str, Tensor]]]:
    """Settings and weights of each module of an exported LoRA folder, from its PEFT form."""
    settings, state = {}, {}
    for name in MODULES:
        source = Path(folder) / "peft" / name
        if source.is_dir():
            config = json.loads((source / "adapter_config.json").read_text())
            settings[name] = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
            settings[name]["target_modules"] = sorted(settings[name]["target_modules"])
            weights = load_file(source / "adapter_model.safetensors")
            state[name] = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
    if not settings:
        raise ValueError(f"{folder}: no adapter found; expected {folder}/peft/unet/adapter_config.json")
    return settings, state


def _jsonable(config: dict) -> dict:
    return json.loads(json.dumps(config, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))
