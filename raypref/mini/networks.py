"""The architectures of the miniature checkpoints, in the classes of Diffusers, Transformers and open_clip."""

from __future__ import annotations

import pathlib

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raypref.mini.tokens import CONTEXT, write_tokenizer

LATENT_CHANNELS, LATENT_SIZE, IMAGE_SIZE = 16, 8, 64
TEXT_WIDTH = 64


def build_vae() -> AutoencoderKL:
    """f8: 64 x 64 px to 16 x 8 x 8 latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Two resolutions, 8 x 8 and 4 x 4, both with cross-attention. `attention_head_dim` is the number of heads."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def build_tokenizer(folder: pathlib.Path) -> CLIPTokenizer:
    """Write the tokenizer's files to `folder` and load them."""
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def build_pipeline(vae, text_encoder, tokenizer, unet) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def clip_config(kind: str, vocab_size: int) -> dict:
    """open_clip's model configuration: "scorer" has a ResNet, "clip" a vision transformer."""
    vision = {
        "scorer": {"layers": [1, 1, 2, 1], "width": 16, "head_width": 64},
        "clip": {"layers": 4, "width": 112, "head_width": 28, "patch_size": 8},
    }[kind]
    text = {"scorer": {"width": 96, "heads": 4, "layers": 3}, "clip": {"width": 80, "heads": 4, "layers": 3}}[kind]
    return {
        "embed_dim": 96,
        "vision_cfg": {"image_size": IMAGE_SIZE, **vision},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "local",  # any name: open_clip reads the tokenizer beside this file
            **text,
        },
    }
