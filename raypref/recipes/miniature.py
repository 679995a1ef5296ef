"""Recipes of the miniature world, which ships with raypref: minutes on a laptop, no GPU and no download."""

from raypref.recipes.rows import EASY, HARD, NORMAL


def mini() -> dict:
    """HG-DPO on the miniature world that ships with raypref: minutes on a laptop, no GPU and no download."""
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
        "stages": {"easy": _easy(), "normal": _normal(), "hard": _hard(), "text_encoder": _text_encoder()},
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


_LORA = {
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
_TRAIN = {
    "steps": 100,
    "batch_size": 16,
    "lora": {"unet": _LORA},
    "optim": {"lr": 5e-4, "warmup": 5, "weight_decay": 0.0},
}


def _easy() -> dict:
    return {**EASY, **_TRAIN, "objective": {"kind": "dpo", "beta": 500, "statistics": {"weight": 3.0}}}


def _normal() -> dict:
    winner = {"kind": "reconstructed", "strengths": [0.4]}
    return {**NORMAL, **_TRAIN, "winner": winner, "objective": {"kind": "dpo", "beta": 500}}


def _hard() -> dict:
    return {**HARD, **_TRAIN, "objective": {"kind": "dpo", "beta": 300}}


def _text_encoder() -> dict:
    return {
        **EASY,
        **_TRAIN,
        "winner": {"kind": "generated", "model": "base"},
        "loser": {"kind": "generated", "model": "base"},
        "steps": 40,
        "optim": {"lr": 1e-4, "warmup": 5, "weight_decay": 0.0},
        "lora": {"text_encoder": {}},  # rank 64
        "objective": {"kind": "dpo", "beta": 500},
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
    return _subject_mini(
        {
            "rpo": {
                "winner": {"kind": "real"},
                "loser": {"kind": "generated", "count": 4},
                "pairs": {"kind": "reward", "features": "reward"},
                "objective": {"kind": "rpo"},
                "steps": 200,
                "batch_size": 8,
                "lora": {"unet": _LORA},
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


RECIPES = (mini, rpo_mini, dreambooth_mini)
