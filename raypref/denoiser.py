"""What a stage trains: U-Net and text encoders with a policy and a reference in the same layers.

While a LoRA trains, the adapter `policy` is trained, `reference` (the stage's start) is frozen, and so is `base` where the run
itself starts from a LoRA. Which of them acts is switched by name alone; `requires_grad` is set once and never touched in the
loop. Where all of the U-Net is trained, the reference is a frozen copy of it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from raypref.models import Pipeline, embed, parts, predict
from raypref.stages import Loras

POLICY, REFERENCE, BASE = "policy", "reference", "base"
Adapter = tuple[dict[str, dict], dict[str, dict[str, Tensor]]]  # settings and weights of a LoRA, by module


class Denoiser(nn.Module):
    """U-Net and text encoders as one module, which is what the engine wraps.

    forward(z_t [mB, C, H, W], t [mB], ids [B, K, L], sizes [mB, 6], which) -> network output [mB, C, H, W] float32; with
    m > 1 the rows are m blocks that share the B prompts. `which`: policy, reference or base (the run's base model).

    Prompts are embedded in every pass, whether their encoder trains or not: by torch's FLOP counter two passes of the text
    encoders are 0.5 % of a pair's work, for Stable Diffusion 1.5 at 512 px and XL at 1024 px, which no cache would repay.
    """

    def __init__(self, pipeline: Pipeline):
        super().__init__()
        for name, module in parts(pipeline).items():
            setattr(self, name, module)
        self.reference: nn.Module | None = None  # the U-Net as it was, where all of it is trained: reference and base
        schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.prediction = schedule.config.prediction_type
        self.timesteps = schedule.config.num_train_timesteps
        self.alphas_cumprod = schedule.alphas_cumprod  # float32 whatever the module's dtype: not a buffer

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor, sizes: Tensor, which: str) -> Tensor:
        with active(self, which):
            blocks = len(z_t) // len(ids)
            text = {name: value.repeat(blocks, *[1] * (value.ndim - 1)) for name, value in embed(self, ids).items()}
            unet = self.unet if which == POLICY or self.reference is None else self.reference
            return predict(unet, z_t, t, text, sizes)


@contextlib.contextmanager
def active(module: nn.Module, which: str) -> Iterator[None]:
    """Let the named adapters of every layer act for a while.

    A layer that has no adapter of the name `policy` falls back on `reference`: the part that this stage does not train
    stays as the stage found it.
    """
    wanted = {POLICY: (POLICY, REFERENCE), REFERENCE: (REFERENCE,), BASE: (BASE,)}[which]
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


def add_adapters(
    denoiser: Denoiser, loras: Loras, seed: int, start: Adapter | None = None, base: Adapter | None = None
) -> dict[str, dict]:
    """Put the frozen `reference` (when the stage starts from a LoRA) and the trainable `policy` into the layers.

    The policy of a module starts as a copy of the start's adapter, or as a new one that changes nothing (B = 0). `base`: the
    LoRA of the run's base model, if it has one. Returns the adapter settings of each module, for the export. Raises
    ValueError for a module or layers that are not there.
    """
    for role, adapter in ((BASE, base), (REFERENCE, start)):
        for name, settings in (adapter[0] if adapter else {}).items():
            _inject(denoiser, name, settings, role, adapter[1][name])
    settings, state = (dict(start[0]), start[1]) if start else ({}, {})
    torch.manual_seed(seed)
    for name, lora in loras.modules.items():
        new = {"r": lora.rank, "lora_alpha": lora.alpha or lora.rank, "target_modules": list(lora.targets)}
        settings.setdefault(name, new)
        for field, key in (("rank", "r"), ("alpha", "lora_alpha")):
            if settings[name][key] != new[key]:
                raise ValueError(
                    f"lora.{name}.{field}: {new[key]:g}, but the LoRA that is continued has {settings[name][key]:g}; set "
                    f"that{' (or model.lora_mode=merge)' if base else ''}"
                )
        _inject(denoiser, name, settings[name], POLICY, state.get(name))
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


def _inject(denoiser: Denoiser, name: str, settings: dict, role: str, state: dict[str, Tensor] | None) -> None:
    module = parts(denoiser).get(name)
    if module is None:
        raise ValueError(f"lora.{name}: this model has no {name}; it has {', '.join(parts(denoiser))}")
    try:
        inject_adapter_in_model(LoraConfig(**settings), module, adapter_name=role)
    except ValueError as error:
        raise ValueError(
            f"lora.{name}.targets={settings['target_modules']}: no such layers in {type(module).__name__} "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    if state is not None:
        outcome = set_peft_model_state_dict(module, state, adapter_name=role)
        if outcome.unexpected_keys:
            raise ValueError(f"the LoRA has layers that {type(module).__name__} lacks: {outcome.unexpected_keys[:3]}")


def trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
