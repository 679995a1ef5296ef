"""A whole pipeline with what a stage has trained in it, for `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from peft import PeftModel

from raypref.exports import cards
from raypref.models import load_pipeline

if TYPE_CHECKING:
    from raypref.exports import Options
    from raypref.exports.finished import Finished


def write(finished: Finished, folder: Path, options: Options) -> None:
    """The base model with the LoRA added to its weights, or with the trained U-Net, as safetensors.

    Weights are added in float32 and rounded once.
    """
    model, kind = finished.config.model, finished.stage.output
    with finished.weights(kind) as source:
        pipeline = load_pipeline(model, dtype=torch.float32, **({"unet": source} if kind == "unet" else {}))
        if kind == "lora":
            _merge(pipeline, source / "peft")
        if options.dtype != "float32":
            pipeline.to(dtype=getattr(torch, options.dtype))
        pipeline.save_pretrained(folder, safe_serialization=True)
    cards.write_model_card(finished, folder, options, "pipeline")


def _merge(pipeline: DiffusionPipeline, adapters: Path) -> None:
    """Add a LoRA to the weights. By PEFT, since a text encoder into which Diffusers has loaded one forgets by what names its
    weights were stored, and would be saved without the `text_model.` that other tools look for."""
    for folder in adapters.iterdir():
        module = getattr(pipeline, folder.name)
        setattr(pipeline, folder.name, PeftModel.from_pretrained(module, folder).merge_and_unload())
