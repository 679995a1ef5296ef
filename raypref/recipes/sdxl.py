"""Recipes of Stable Diffusion XL: those of Stable Diffusion 1.5 at 1024 px, with LoRAs of both text encoders.

Each image is conditioned on its own original size and crop, winner and loser apart; images are drawn for their own size.
The papers tune Stable Diffusion 1.5 and their own models, so whatever differs from there is (ours).
"""

from raypref.overlays import merge
from raypref.recipes.sd15 import hgdpo_sd15, rpo_sd15

_SDXL = {
    "model": {"base": "stabilityai/stable-diffusion-xl-base-1.0", "resolution": 1024},
    "sampling": {"guidance": 5.0, "batch_size": 8},
    "training": {"micro_batch": 1},
}


def hgdpo_sdxl() -> dict:
    """HG-DPO for Stable Diffusion XL at 1024 px (needs data.real, best data.prompts)."""
    both = {"text_encoder": {"lora": {"text_encoder_2": {"rank": 64}}}}
    return merge(merge(hgdpo_sd15(), _SDXL), {"stages": both})


def rpo_sdxl() -> dict:
    """RPO for Stable Diffusion XL as a LoRA of the U-Net (needs data.subject, a folder of a subject's photos)."""
    return merge(rpo_sd15(), _SDXL)


RECIPES = (hgdpo_sdxl, rpo_sdxl)
