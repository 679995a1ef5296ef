"""Recipes of Stable Diffusion 1.5. Where a value comes from stands beside it: (paper), (code) for an author's published
code, (ours)."""

from raypref import dreambench
from raypref.overlays import merge
from raypref.recipes.rows import EASY, HARD, NORMAL


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
    "lora": {"unet": {"rank": 8}},  # rank (paper)
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
                "steps": 20_000,
                "lora": {"text_encoder": {"rank": 64}},  # rank (paper)
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


def curriculum_dpo_sd15() -> dict:
    """Curriculum-DPO baseline (arXiv 2405.13637): pairs far apart in the ranking of a pool first, then ever closer ones too."""
    pool = {"kind": "generated", "count": 8}  # (ours), as are the ranks and steps
    stages = {}
    for name, ranks in (("far", [5, 7]), ("nearer", [3, 7]), ("all", [1, 7])):
        pairs = {"kind": "score", "ranks": ranks, "scorer": "preference"}
        domains = {"winner": pool | {"model": "base"}, "loser": pool | {"model": "base"}}
        stages[name] = {**domains, **_TRAIN, "pairs": pairs, "steps": 2000, "objective": {"kind": "dpo", "beta": 5000}}
    return _sd15(stages)


def naive_real_sd15() -> dict:
    """HG-DPO's ablation: real winners against generated losers from the start, without a curriculum."""
    return _sd15({"naive": {**HARD, **_TRAIN, "steps": 340_000, "objective": _DPO}})


def sft_sd15() -> dict:
    """Supervised fine-tuning on the real images, as a baseline."""
    return _sd15({"sft": {**HARD, **_TRAIN, "loser": None, "steps": 20_000, "objective": {"kind": "sft"}}})


def _subject_sd15(stages: dict) -> dict:
    """What the subject-driven recipes for Stable Diffusion 1.5 share; data.subject is the user's to give."""
    return dreambench.laid_over(_sd15(stages) | {"scorers": {"reward": {"kind": "align_pair"}}})  # (paper)


_SUBJECT = {
    "steps": 400,
    "batch_size": 4,
    "lora": {"unet": {"rank": 8}},
    "optim": {"lr": 1e-4},
}  # steps (paper); the rest (ours)


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


RECIPES = (
    hgdpo_sd15,
    diffusion_dpo_sd15,
    curriculum_dpo_sd15,
    naive_real_sd15,
    sft_sd15,
    rpo_sd15,
    dreambooth_sd15,
    rpo_full_sd15,
    dreambooth_full_sd15,
    dreambench_sd15,
)
