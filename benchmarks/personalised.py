"""Does a HG-DPO adapter raise the quality of a personalised model that was trained without it, and keep the person?

    python benchmarks/personalised.py --identities runs/rpo_miniature --curricula runs/orderings

HG-DPO's claim (arXiv 2405.20216): its adapter and a DreamBooth-LoRA are loaded side by side (Diffusers' `set_adapters`), with no
further training. Identities are the DreamBooth-LoRAs of benchmarks/rpo_miniature.py, HG-DPO adapters the hard stages of
benchmarks/miniature_orderings.py. Writes benchmarks/results/personalised.{json,md,png} and personalised_grid.png.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import claims
import diffusers
import numpy as np
import torch
from torch import Tensor

from raypref import cli, generation, images, metrics, rewards, scorers
from raypref.config import RunConfig
from raypref.mini.renderer import person
from raypref.models import decode_latents, load_lora, load_pipeline
from raypref.recipes import configure
from raypref.scoring import without_token
from raypref.seeds import seed_of

# weights of the two adapters, by model
MODELS = {"base": {}, "HG-DPO": {"hg": 1.0}, "identity": {"id": 1.0}, "identity + HG-DPO": {"id": 1.0, "hg": 1.0}}
IMAGES = 4  # a prompt
REAL = 256  # pictures of the person in other poses and places than the photos of the recipe (seed 6)
CLAIMS = (
    ("the identity adapter shows the person", "likeness", "identity", "base"),
    ("with HG-DPO beside it the likeness rises, too", "likeness", "identity + HG-DPO", "identity"),
    ("HG-DPO raises the preference for personalised images", "preference", "identity + HG-DPO", "identity"),
    ("HG-DPO makes personalised images more realistic", "frechet_distance", "identity", "identity + HG-DPO"),
)


def draw(pipeline, config: RunConfig, weights: dict[str, float]) -> tuple[list[str], Tensor]:
    """Prompts and images [B, 3, H, W] of the recipe's evaluation prompts, the same noise for every model."""
    prompts = [prompt for prompt in config.data.eval_prompts.prompts for _ in range(IMAGES)]
    seeds = [seed_of("personalised", number) for number in range(len(prompts))]
    pipeline.disable_lora()
    if weights:
        pipeline.enable_lora()
        pipeline.set_adapters(list(weights), list(weights.values()))
    shape = generation.latent_shape(pipeline, config.model.resolution)
    latents = generation.sample(pipeline, prompts, seeds, config.sampling, shape)
    with torch.inference_mode():
        drawn = torch.cat([decode_latents(pipeline, part) for part in latents.split(config.sampling.batch_size)])
    return prompts, drawn


def measure(identity: int, adapters: dict[str, Path]) -> tuple[dict[str, dict[str, float]], list[list[np.ndarray]]]:
    """Metrics of every model for one person, and a row of images of each."""
    config = configure("rpo_mini", None, [f"data.{name}.identity={identity}" for name in ("real", "eval_real")])
    pipeline = load_pipeline(config.model)
    for name, folder in adapters.items():
        load_lora(pipeline, folder, name, name)
    features, preference = (
        scorers.load("mini_features", {}),
        scorers.load("open_clip", {"model": "mini:scorer", "scale": True}),
    )
    real = features(
        images.to_tensor([person(6, 100 + index, identity=identity)[1] for index in range(REAL)]), [""] * REAL
    ).numpy()
    found, rows = {}, []
    for model, weights in MODELS.items():
        prompts, drawn = draw(pipeline, config, weights)
        texts = [without_token(prompt, config.data.token) for prompt in prompts]
        seen = features(drawn, texts).numpy()
        found[model] = {
            "likeness": float(rewards.cosines(seen, real).mean()),
            "preference": float(preference(drawn, texts).mean()),
            "frechet_distance": metrics.frechet_distance(seen, real),
        }
        rows.append(images.to_uint8(drawn[:: 3 * IMAGES]))
    return found, rows


def newest(run: Path, stage: str) -> Path:
    """The LoRA of a finished stage. Raises ValueError when there is none."""
    found = sorted(run.glob(f"train/*-{stage}-*/lora"))
    if not found:
        raise ValueError(f"{run}: there is no finished stage {stage}; run the benchmark that makes it (see --help)")
    return found[-1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--identities", type=Path, default=Path("runs/rpo_miniature"))
    options.add_argument("--curricula", type=Path, default=Path("runs/orderings"))
    options.add_argument("--subjects", type=int, default=5)
    options.add_argument("--out", type=Path, default=claims.RESULTS)
    arguments = options.parse_args()
    values: claims.Values = {}
    for subject in range(arguments.subjects):
        adapters = {
            "id": newest(arguments.identities / f"subjects/{subject}/dreambooth", "dreambooth"),
            "hg": newest(arguments.curricula / f"subjects/seed-{subject}", "hard"),
        }
        found, rows = measure(subject, adapters)
        for model, of_metric in found.items():
            for metric, value in of_metric.items():
                values.setdefault(model, {}).setdefault(metric, []).append(value)
        if subject == 0:
            picture = images.encode(images.grid(rows, 2), "png")
    result = claims.judge(values, CLAIMS)
    command = f"python benchmarks/personalised.py --subjects {arguments.subjects}"
    print(claims.write(result, "personalised", command, f"{arguments.subjects} people", arguments.out))
    (arguments.out / "personalised_grid.png").write_bytes(picture)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    sys.exit(cli.guarded(main))
