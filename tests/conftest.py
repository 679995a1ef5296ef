"""Shared by all tests: a tiny Stable Diffusion whose weights come from names and seeds, and a stage's inputs on disk.

Nothing here is trained, so no test that uses it changes when the weights of the miniature world do.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypref import artifacts, pairing
from raypref.artifacts import Store
from raypref.config import RunConfig, build
from raypref.mini import renderer
from raypref.noising import gaussian
from raypref.recipes import configure
from raypref.seeds import seed_of
from raypref.stages import PairRule
from raypref.workers import Alone, Job, TorchEngine

LATENT = (4, 8, 8)  # of the tiny pipeline's 16 px images
CAPTIONS = [renderer.caption(renderer.sample_attributes(7, i)) for i in range(40)]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/numerics/golden.json")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights as a function of (seed, parameter name): the same for every order of construction and library version."""
    for name, p in module.named_parameters():
        values = gaussian(tuple(p.shape), [seed_of(seed, name)])[0]
        if p.ndim >= 2:
            p.data = values / math.sqrt(p[0].numel())
        else:
            p.data = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module


def make_pipeline(folder: Path, prediction: str = "v_prediction") -> Path:
    """Save a random 16 px Stable Diffusion with the tokenizer of the miniature world in Diffusers' format."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from raypref.mini import networks

    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=LATENT[0],
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=LATENT[1],
        in_channels=LATENT[0],
        out_channels=LATENT[0],
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    tokenizer = networks.build_tokenizer(folder / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    modules = (fill(vae, 1), fill(text_encoder, 2), tokenizer, fill(unet, 3))
    pipeline = networks.build_pipeline(*modules)
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_epsilon(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("tiny_epsilon"), "epsilon")


def configured(recipe: str, *assignments: str) -> RunConfig:
    """A recipe with sources that need not exist where it leaves them to the user."""
    sources = [
        "data.real={kind: folder, path: photos}",
        "data.prompts={kind: prompts, path: prompts.txt}",
        "data.validation_prompts={kind: list, prompts: [a photo]}",
    ]
    return configure(recipe, None, [*([] if recipe.endswith("mini") else sources), *assignments])


def make_config(pipeline: Path | str, *assignments: str) -> RunConfig:
    """A run with the stages easy (U-Net), hard (U-Net, goes on with its adapter) and text_encoder."""
    stage = {
        "winner": {"kind": "generated"},
        "loser": {"kind": "generated"},
        "pairs": {"scorer": "preference"},
        "objective": {"kind": "dpo", "beta": 20.0},
        "lora": {"unet": {"rank": 4}},
        "optim": {"lr": 5e-3, "warmup": 2},
        "steps": 6,
        "batch_size": 8,
    }
    lora = {"text_encoder": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
    tree = {
        "recipe": "test",
        "seed": 5,
        "model": {"base": str(pipeline), "resolution": 16},
        "data": {"prompts": {"kind": "renderer", "seed": 1, "count": 40}},
        "sampling": {"steps": 3, "guidance": 2.0, "batch_size": 8},
        "scorers": {"preference": {"kind": "color_statistics"}},
        "stages": {"easy": stage, "hard": stage, "text_encoder": stage | {"lora": lora}},
        "training": {
            "micro_batch": 4,
            "checkpoint_every": 3,
            "log_every": 1,
            "validate_every": 3,
            "validate_pairs": 8,
            "trackers": [],
        },
    }
    return build(tree, None, list(assignments))


def make_pairs(run: Path, path: str, seed: int, rows: int = 40, latent: tuple[int, int, int] = LATENT) -> None:
    """A pairs artifact of two shards, selected by `pair_shard` from random latents whose score is their mean."""
    store, per_shard, tables = Store(str(run)), 24, []
    for shard, start in enumerate(range(0, rows, per_shard)):
        pool, scores = [], []
        for i in range(start, min(rows, start + per_shard)):
            latents = gaussian(latent, [seed_of(seed, i, j) for j in range(3)]).numpy()
            latents += np.array([-0.3, 0.0, 0.3], np.float32).reshape(3, 1, 1, 1)
            pool.append(
                {
                    "prompt_id": f"p{i}",
                    "prompt": CAPTIONS[i % len(CAPTIONS)],
                    "images": [b"an image"] * 3,
                    "latents": [z.astype(np.float16).tobytes() for z in latents],
                    "latent_shape": list(latent),
                    "sizes": [[16, 16, 0, 0, 16, 16]] * 3,
                    "seeds": [0, 1, 2],
                    "strengths": [1.0] * 3,
                }
            )
            scores.append({"prompt_id": f"p{i}", "values": [[float(z.mean())] for z in latents]})
        side = {
            "pool": pa.Table.from_pylist(pool, artifacts.POOL),
            "scores": pa.Table.from_pylist(scores, artifacts.SCORES),
            "source": "random",
            "first": None,
        }
        table, statistics = pairing.pair_shard(PairRule(scorer="preference"), side, side, seed, True)
        artifacts.write_shard(store, path, shard, table, "test", statistics=statistics)
        tables.append(table)
    artifacts.finalize(store, path, "pairs", {"seed": seed}, len(tables))


def make_job(
    run: Path, config: RunConfig, stage: str = "easy", start: str | None = None, path: str = "train/a", latent=LATENT
) -> Job:
    """A stage's job in a run directory, whose pairs are made when they are not there yet."""
    for name, seed, rows in (("pairs/train", 11, 40), ("pairs/held_out", 12, 8)):
        if not (run / name / "manifest.json").exists():
            make_pairs(run, name, seed, rows, latent)
    return Job(config, stage, path, "pairs/train", "pairs/held_out", start, str(run))


def train(job: Job, context=None, engine=TorchEngine):
    """Train a stage; the engine that did it (with `.denoiser`)."""
    from raypref.trainer import train_stage

    engines = []

    def make(*arguments):
        engines.append(engine(*arguments))
        return engines[-1]

    train_stage(job, context or Alone(), make)
    return engines[-1]


def read_rows(job: Job) -> list[dict]:
    """The metrics of a finished stage."""
    import json

    return [json.loads(line) for line in Store(job.run).read(f"{job.path}/metrics.jsonl").splitlines()]
