"""A whole pipeline with what a stage has trained in it, for `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
        pipeline = load_pipeline(model, dtype=torch.float32, **{kind: source})
        if kind == "lora":
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()  # leaves the fused weights in the plain layers
        pipeline.to(dtype=getattr(torch, options.dtype)).save_pretrained(folder, safe_serialization=True)
    cards.write_model_card(finished, folder, options, "pipeline")
