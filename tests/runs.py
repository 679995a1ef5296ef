"""A run directory as a finished run leaves it, written by the functions of a run; only training itself is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raypref import images
from raypref.adapters import adapter_state, export, export_unet
from raypref.artifacts import PAIRS, Store, digest, finalize, write_shard
from raypref.config import RunConfig
from raypref.curriculum import plan
from raypref.denoiser import Denoiser, add_adapters
from raypref.models import load_pipeline
from raypref.noising import gaussian
from raypref.reporting import contact_sheet
from raypref.rundir import claim
from raypref.seeds import seed_of
from raypref.stages import Loras
from tests.conftest import CAPTIONS, LATENT, make_config

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
RANK, ALPHA = 4, 12
STAGES = (
    f"stages.easy.lora.unet={{rank: {RANK}, alpha: {ALPHA}, targets: [{', '.join(UNET_TARGETS + CONVOLUTIONS)}]}}",
    f"stages.hard.lora.unet={{rank: {RANK}, alpha: {ALPHA}, targets: [{', '.join(UNET_TARGETS + CONVOLUTIONS)}]}}",
    f"stages.text_encoder.lora.text_encoder={{rank: 2, alpha: 7, targets: [{', '.join(TEXT_TARGETS)}]}}",
)


def config_of(base: Path, *assignments: str) -> RunConfig:
    """The stages easy, hard and text_encoder, with adapters on attention, feed-forward layers and convolutions."""
    return make_config(base, *STAGES, *assignments)


def adapters(base: Path, *modules: str) -> tuple[dict[str, dict], dict[str, dict]]:
    """Settings and state of LoRAs that act, as training holds them."""
    settings, state = {}, {}
    for module in modules:
        denoiser = Denoiser(load_pipeline(config_of(base).model))
        lora = {"rank": RANK, "alpha": ALPHA, "targets": UNET_TARGETS + CONVOLUTIONS}
        if module == "text_encoder":
            lora = {"rank": 2, "alpha": 7, "targets": TEXT_TARGETS}
        settings |= add_adapters(denoiser, Loras.model_validate({module: lora}), 0)
        for name, p in denoiser.named_parameters():
            if "lora_B" in name:
                p.data = 0.1 * gaussian(tuple(p.shape), [seed_of(name)])[0]
        state |= adapter_state(denoiser, {module: settings[module]})
    return settings, state


def write_run(folder: Path, config: RunConfig, trained: tuple[str, ...], paired: tuple[str, ...] = ()) -> Store:
    """A run with some stages trained and some whose pairs are made; its summary and its grid."""
    store = Store(str(folder))
    claim(config, store)
    for task in plan(config):
        if task.kind == "train" and task.model in (*trained, *paired):
            write_pairs(store, task.spec["pairs"])
        if task.kind == "train" and task.model in trained:
            _write_weights(store, task, config)
            finalize(store, task.path, "train", task.fields, 0)
    store.write("grid.png", contact_sheet([{"name": "base", "images": [image_of(i) for i in range(3)]}]))
    metrics = {name: {"preference_score": 11.0 + i} for i, name in enumerate(("base", *trained))}
    rows = [{"name": name, "metrics": values} for name, values in metrics.items()]
    store.write_json("summary.json", {"recipe": config.recipe, "stages": rows})
    return store


def _write_weights(store: Store, task, config: RunConfig) -> None:
    base = Path(config.model.base)
    if config.stages[task.model].output == "unet":
        unet = load_pipeline(config.model).unet
        values = {
            f"unet.{name}": p + 0.02 * gaussian(tuple(p.shape), [seed_of(name)])[0]
            for name, p in unet.named_parameters()
        }
        return export_unet(store.local / task.path / "unet", unet, values)
    modules = ("unet", "text_encoder") if task.model == "text_encoder" else ("unet",)
    settings, state = adapters(base, *modules)
    export(store.local / task.path / "lora", state, settings, str(base))


def image_of(number: int) -> bytes:
    return images.encode(np.full((16, 16, 3), number % 256, np.uint8), "png")


def write_pairs(store: Store, path: str, shards: int = 3, rows: int = 30, scored: bool = True) -> None:
    """Two pairs a prompt. Every fifth label is a probability; an image that wins also loses against another one."""
    for shard in range(shards):
        found = []
        for i in range(shard * rows, (shard + 1) * rows):
            prompt = CAPTIONS[i // 2 % len(CAPTIONS)]
            found.append(
                {
                    "pair_id": f"p{i // 2}#{i % 2}",
                    "prompt_id": f"p{i // 2}",
                    "prompt": prompt,
                    "loser_prompt": prompt,
                    "winner": image_of(i),
                    "loser": image_of(i + 1),
                    "winner_latent": b"",
                    "loser_latent": b"",
                    "latent_shape": list(LATENT),
                    "winner_size": [16, 16, 0, 0, 16, 16],
                    "loser_size": [16, 16, 0, 0, 16, 16],
                    "winner_source": "base-generated-prompts",
                    "loser_source": "base-generated-prompts",
                    "winner_score": 1.0 + i / 100 if scored else None,
                    "loser_score": 0.5 if scored else None,
                    "label": 0.75 if i % 5 == 0 else 1.0,
                }
            )
        write_shard(
            store, path, shard, pa.Table.from_pylist(found, PAIRS), digest("pairs"), statistics={"dropped": {"tie": 1}}
        )
    finalize(store, path, "pairs", {}, shards)
