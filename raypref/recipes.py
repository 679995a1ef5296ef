"""Recipes: named functions that give a whole run as plain data, validated by config.build.

Where a value comes from stands beside it: (paper), (code) for an author's published code, (ours).
"""

from __future__ import annotations

from collections.abc import Callable

from raypref import dreambench
from raypref.config import RunConfig, build
from raypref.overlays import merge

EASY = {
    "winner": {"kind": "generated"},
    "loser": {"kind": "generated"},
    "pairs": {"winner": "best", "loser": "worst", "scorer": "preference"},
}
NORMAL = {
    "winner": {"kind": "reconstructed"},
    "loser": {"kind": "generated", "prompts": "real", "count": 1},
    "pairs": {"winner": "random", "loser": "random"},
}
HARD = {
    "winner": {"kind": "real"},
    "loser": {"kind": "generated", "prompts": "real", "count": 1},
    "pairs": {"winner": "random", "loser": "random"},
}


def mini() -> dict:
    """HG-DPO on the miniature world that ships with raypref: minutes on a laptop, no GPU and no download."""
    lora = {
        "rank": 8,
        "targets": [
            "to_q",
            "to_k",
            "to_v",
            "to_out.0",
            "conv1",
            "conv2",
            "ff.net.0.proj",
            "ff.net.2",
            "proj_in",
            "proj_out",
        ],
    }
    training = {"steps": 100, "batch_size": 16, "module": "unet", "lora": lora}
    optim = {"lr": 5e-4, "warmup": 5, "weight_decay": 0.0}
    losers = {"kind": "generated", "prompts": "real", "count": 1}
    return {
        "model": {"base": "mini:pipeline", "resolution": 64},
        "data": {
            "prompts": {"kind": "renderer", "seed": 2, "count": 192},
            "real": {"kind": "renderer", "seed": 3, "count": 384},
            "eval_prompts": {"kind": "renderer", "seed": 4, "count": 256},
            "eval_real": {"kind": "renderer", "seed": 5, "count": 512},
            "eval_limit": 512,
            "shard_size": 32,
        },
        "sampling": {"steps": 10, "guidance": 2.0, "batch_size": 32},
        "scorers": {
            "preference": {"kind": "open_clip", "args": {"model": "mini:scorer", "scale": True}},
            "clip_t": {"kind": "open_clip", "args": {"model": "mini:clip"}},
            "attribute_accuracy": {"kind": "mini_attributes"},
            "features": {"kind": "mini_features"},
        },
        "stages": {
            "easy": {
                **EASY,
                **training,
                "optim": optim,
                "objective": {"kind": "dpo", "beta": 500, "statistics": {"weight": 3.0}},
            },
            "normal": {
                "winner": {"kind": "reconstructed", "strengths": [0.4]},
                "loser": losers,
                "pairs": NORMAL["pairs"],
                **training,
                "optim": optim,
                "objective": {"kind": "dpo", "beta": 500},
            },
            "hard": {
                "winner": {"kind": "real"},
                "loser": losers,
                "pairs": HARD["pairs"],
                **training,
                "optim": optim,
                "objective": {"kind": "dpo", "beta": 300},
            },
            "text_encoder": {
                **EASY,
                "winner": {"kind": "generated", "model": "base"},
                "loser": {"kind": "generated", "model": "base"},
                "module": "text_encoder",
                "steps": 40,
                "batch_size": 16,
                "optim": {"lr": 1e-4, "warmup": 5, "weight_decay": 0.0},
                "lora": {"rank": 64, "targets": ["q_proj", "k_proj", "v_proj", "out_proj"]},
                "objective": {"kind": "dpo", "beta": 500},
            },
        },
        "evaluation": {
            "preference": "preference",
            "second": "clip_t",
            "features": "features",
            "scorers": ["clip_t", "attribute_accuracy"],
        },
        "training": {
            "workers": 2,
            "zero_stage": 2,
            "micro_batch": 8,
            "checkpoint_every": 50,
            "log_every": 5,
            "validate_every": 50,
            "sample_every": 50,
            "validate_pairs": 96,
        },
        "resources": {
            # networks this small are no faster on a GPU
            "generate": {"actors": 2, "cpus": 0.7, "gpus": 0},
            "score": {"actors": 1, "cpus": 0.5, "gpus": 0},
            "train": {"cpus": 0.9, "gpus": 0},
            "wait_s": 60,
        },
    }


_MINI_SCENES = [
    f"{pose} {place}"
    for pose in ("standing", "waving", "cheering", "posing")
    for place in ("in the park", "on the beach", "in the street", "in a room", "in the snow")
]
_MINI_SCENES = [_MINI_SCENES[7 * i % 20] for i in range(20)]  # poses and places mixed


def _subject_mini(stages: dict) -> dict:
    """One drawn person with the rare token sks: 5 reference images, prompts that share no pose and place."""

    def prompts(scenes: list[str], *kinds: str) -> dict:
        return {"kind": "list", "prompts": [f"a {kind} of a sks person {s}" for kind in kinds for s in scenes]}

    photos = {"kind": "renderer", "seed": 6, "count": 5, "identity": 0, "caption": "a photo of a sks person"}
    evaluation = prompts(_MINI_SCENES[12:], "photo", "portrait", "picture")
    evaluation["prompts"].append("a portrait of a sks person")
    return mini() | {
        "data": {
            "token": "sks",
            "real": photos,
            "eval_real": photos,
            "prompts": prompts(_MINI_SCENES[:8], "photo"),
            "validation_prompts": prompts(_MINI_SCENES[8:12], "photo"),
            "eval_prompts": evaluation,
            "shard_size": 4,
        },
        "scorers": {
            "reward": {"kind": "open_clip_pair", "args": {"model": "mini:clip"}},
            "clip_t": {"kind": "open_clip", "args": {"model": "mini:scorer"}},
            "clip_i": {"kind": "open_clip_features", "args": {"model": "mini:scorer"}},
            "likeness": {"kind": "mini_features"},
        },
        "stages": stages,
        "evaluation": {
            "preference": "clip_t",
            "scorers": ["clip_t"],
            "likeness": ["clip_i", "likeness"],
            "images": 4,
        },
        "training": {**mini()["training"], "micro_batch": 4},
    }


def rpo_mini() -> dict:
    """RPO on one person of the miniature world: 5 reference images, 8 prompts, 32 negatives; minutes on a laptop."""
    easy = mini()["stages"]["easy"]
    return _subject_mini(
        {
            "rpo": {
                "winner": {"kind": "real"},
                "loser": {"kind": "generated", "count": 4},
                "pairs": {"kind": "reward", "features": "reward"},
                "objective": {"kind": "rpo"},
                "steps": 200,
                "batch_size": 8,
                "lora": easy["lora"],
                "optim": {"lr": 1e-3, "warmup": 5, "weight_decay": 0.0},
                "validation": {
                    "features": "reward",
                    "every": 10,
                    "images": 4,
                    "patience": 5,
                    "watch": ["likeness", "clip_t"],
                },
            }
        }
    )


def dreambooth_mini() -> dict:
    """DreamBooth-LoRA on the same person: prior preservation instead of a preference, no checkpoint chosen."""
    stage = rpo_mini()["stages"]["rpo"]
    recipe = _subject_mini({"dreambooth": stage | {"objective": {"kind": "dreambooth"}, "validation": None}})
    recipe["stages"]["dreambooth"]["loser"] = {"kind": "generated", "count": 32}
    recipe["data"]["prompts"] = {"kind": "list", "prompts": ["a photo of a person"]}
    return recipe


def _sd15(stages: dict) -> dict:
    """What the Stable Diffusion 1.5 recipes share; data.prompts and data.real are the user's to give."""
    return {
        "model": {"base": "stable-diffusion-v1-5/stable-diffusion-v1-5", "resolution": 512, "dtype": "bfloat16"},
        "data": {},
        "sampling": {"steps": 25, "guidance": 7.5, "batch_size": 16},  # (ours)
        "scorers": {
            "preference": {"kind": "pickscore", "batch_size": 32},  # (paper)
            "clip_t": {"kind": "open_clip", "args": {"model": "ViT-B-16", "pretrained": "openai"}},
            "features": {"kind": "open_clip_features", "args": {"model": "ViT-L-14", "pretrained": "openai"}},
        },
        "stages": stages,
        "evaluation": {"preference": "preference", "second": "clip_t", "features": "features", "scorers": ["clip_t"]},
        "training": {"workers": 1, "zero_stage": 2, "precision": "bfloat16", "micro_batch": 4, "sample_every": 2000},
    }


_TRAIN = {
    "batch_size": 64,
    "lora": {"rank": 8},  # rank (paper)
    "optim": {"lr": 1e-5, "warmup": 500},
}  # (ours)
_DPO = {"kind": "dpo", "beta": 2500}  # (paper)


def hgdpo_sd15() -> dict:
    """HG-DPO for Stable Diffusion 1.5 at 512 px: easy, normal, hard, text encoder (needs data.real, best data.prompts)."""
    return _sd15(
        {
            "easy": {
                **EASY,
                **_TRAIN,
                "steps": 300_000,
                "objective": {**_DPO, "statistics": {"weight": 1.0}},
            },  # steps (paper)
            "normal": {**NORMAL, **_TRAIN, "steps": 20_000, "objective": _DPO},  # (paper)
            "hard": {**HARD, **_TRAIN, "steps": 20_000, "objective": _DPO},  # (paper)
            "text_encoder": {
                **EASY,
                **_TRAIN,
                "winner": {"kind": "generated", "model": "base"},
                "loser": {"kind": "generated", "model": "base"},
                "module": "text_encoder",
                "steps": 20_000,
                "lora": {"rank": 64, "targets": ["q_proj", "k_proj", "v_proj", "out_proj"]},  # rank (paper)
                "objective": _DPO,
            },
        }
    )


def diffusion_dpo_sd15() -> dict:
    """Diffusion-DPO baseline: one stage, two generated images a prompt, best against worst."""
    pair = {"kind": "generated", "count": 2}
    return _sd15(
        {
            "dpo": {
                **EASY,
                **_TRAIN,
                "winner": pair,
                "loser": pair,
                "steps": 2000,
                "objective": {"kind": "dpo", "beta": 5000},
            }
        }
    )  # (code)


def naive_real_sd15() -> dict:
    """HG-DPO's ablation: real winners against generated losers from the start, without a curriculum."""
    return _sd15({"naive": {**HARD, **_TRAIN, "steps": 340_000, "objective": _DPO}})


def sft_sd15() -> dict:
    """Supervised fine-tuning on the real images, as a baseline."""
    return _sd15({"sft": {**HARD, **_TRAIN, "loser": None, "steps": 20_000, "objective": {"kind": "sft"}}})


def _subject_sd15(stages: dict) -> dict:
    """What the subject-driven recipes for Stable Diffusion 1.5 share; data.subject is the user's to give."""
    return dreambench.laid_over(_sd15(stages) | {"scorers": {"reward": {"kind": "align_pair"}}})  # (paper)


_SUBJECT = {"steps": 400, "batch_size": 4, "lora": {"rank": 8}, "optim": {"lr": 1e-4}}  # steps (paper); the rest (ours)


def rpo_sd15() -> dict:
    """RPO for Stable Diffusion 1.5 as a LoRA of the U-Net (needs data.subject, a folder of a subject's photos)."""
    return _subject_sd15(
        {
            "rpo": {
                "winner": {"kind": "real"},
                "loser": {"kind": "generated", "count": 4},  # x 8 prompts (paper)
                "pairs": {"kind": "reward", "features": "reward"},  # lambda_train 0, temperature 1 (paper)
                "objective": {"kind": "rpo"},
                **_SUBJECT,
                "validation": {"features": "reward", "every": 40, "watch": ["dino", "clip_t"]},  # every (paper)
            }
        }
    )


def dreambooth_sd15() -> dict:
    """DreamBooth-LoRA with prior preservation for Stable Diffusion 1.5 (needs data.subject), RPO's baseline."""
    return _subject_sd15(
        {
            "dreambooth": {
                "winner": {"kind": "real"},
                "loser": {"kind": "generated", "count": 125},  # x 8 prompts: about 1,000 class images (paper)
                "pairs": {"kind": "reward", "features": "reward"},
                "objective": {"kind": "dreambooth"},
                **_SUBJECT,
            }
        }
    )


_WHOLE = {"lora": None, "batch_size": 1, "optim": {"lr": 5e-6}}  # batch size, learning rate (paper: RPO's)


def rpo_full_sd15() -> dict:
    """RPO for Stable Diffusion 1.5 as in the paper: all of the U-Net is trained (needs data.subject)."""
    stage = {**_WHOLE, "validation": {"lambdas": [0.3, 0.5, 0.7]}}  # of the paper's table; each keeps 3.4 GB
    return merge(rpo_sd15(), {"stages": {"rpo": stage}, "training": {"micro_batch": 1}})


def dreambooth_full_sd15() -> dict:
    """DreamBooth with prior preservation for Stable Diffusion 1.5: all of the U-Net is trained (needs data.subject)."""
    return merge(dreambooth_sd15(), {"stages": {"dreambooth": _WHOLE}, "training": {"micro_batch": 1}})


def dreambench_sd15() -> dict:
    """Nothing is trained: Stable Diffusion 1.5, or model.base=FOLDER, as it is, for jobs/evaluate.py (needs data.subject)."""
    return _subject_sd15({})


RECIPES: dict[str, Callable[[], dict]] = {
    f.__name__: f
    for f in (
        mini,
        rpo_mini,
        dreambooth_mini,
        hgdpo_sd15,
        diffusion_dpo_sd15,
        naive_real_sd15,
        sft_sd15,
        rpo_sd15,
        dreambooth_sd15,
        rpo_full_sd15,
        dreambooth_full_sd15,
        dreambench_sd15,
    )
}


def configure(
    recipe: str | dict, overlays: list[dict] | None = None, assignments: list[str] | None = None
) -> RunConfig:
    """The validated configuration of a recipe (its name, or the fields of a whole run) with overlays and `path=value`
    assignments laid over it.

    Raises ValueError with every problem at once.
    """
    if isinstance(recipe, dict):
        return build(recipe, overlays, assignments)
    return build(fields(recipe), overlays, assignments)


def fields(recipe: str) -> dict:
    """The fields of a recipe by its name. Raises ValueError."""
    if recipe not in RECIPES:
        raise ValueError(f"--recipe {recipe!r}: there are {', '.join(RECIPES)}")
    return {"recipe": recipe, **RECIPES[recipe]()}
