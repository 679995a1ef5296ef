"""Stable Diffusion pipelines with random weights: XL in miniature, single files, and 1.5 at its real size."""

from __future__ import annotations

from pathlib import Path

import torch

from raypref.mini import locate
from tests.checkpoints import SIZE, words


def sdxl(folder: Path) -> Path:
    """A 16 px Stable Diffusion XL: two text encoders of different width, pooled embeddings and sizes as conditions."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from tests.conftest import fill

    tokenizer, text = words()
    second, _ = words()
    second.pad_token = second.convert_ids_to_tokens(5)  # another one than the first tokenizer's, as SDXL's "!" is
    wide = {**SIZE, **text, "hidden_size": 24, "projection_dim": 12}
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1, latent_channels=4, norm_num_groups=4, mid_block_add_attention=False, sample_size=16,
        scaling_factor=0.13025,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, transformer_layers_per_block=(1, 2),
        cross_attention_dim=16 + 24, attention_head_dim=(1, 2), norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 12,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=fill(vae, 1),
        text_encoder=fill(CLIPTextModel(CLIPTextConfig(**SIZE, **text)), 2),
        text_encoder_2=fill(CLIPTextModelWithProjection(CLIPTextConfig(**wide)), 4),
        tokenizer=tokenizer,
        tokenizer_2=second,
        unet=fill(unet, 3),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def single_file(folder: Path, path: Path) -> Path:
    """A pipeline of ours (one resnet a down block) in one file, with the names of the original code."""
    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    pipeline = DiffusionPipeline.from_pretrained(folder)
    second = getattr(pipeline, "text_encoder_2", None)
    first = "conditioner.embedders.0.transformer." if second else "cond_stage_model.transformer."
    unet = pipeline.unet.state_dict()
    upsampler = f"output_blocks.1.{1 + any(key.startswith('up_blocks.0.attentions') for key in unet)}"
    state = {f"model.diffusion_model.{_unet_name(k, upsampler)}": v for k, v in unet.items()}
    state |= {f"first_stage_model.{_vae_name(k)}": v for k, v in pipeline.vae.state_dict().items()}
    state |= {first + _prefixed(k): v for k, v in pipeline.text_encoder.state_dict().items()}
    if second:
        state |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(second.state_dict()).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _prefixed(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _unet_name(name: str, upsampler: str) -> str:
    fixed = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "up_blocks.0.upsamplers.0": upsampler,
    }  # fmt: skip
    for block in range(2):
        fixed |= {f"down_blocks.{block}.{part}.0": f"input_blocks.{1 + 2 * block}.{k}" for k, part in _PARTS}
        for layer in range(2):
            fixed |= {
                f"up_blocks.{block}.{part}.{layer}": f"output_blocks.{2 * block + layer}.{k}" for k, part in _PARTS
            }
    return _renamed(name, fixed)


_PARTS = ((0, "resnets"), (1, "attentions"))


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for ours, theirs in prefixes.items():
        if name.startswith(f"{ours}."):
            name = f"{theirs}.{name.removeprefix(ours + '.')}"
            break
    for ours, theirs in _RESNET.items():
        parts = name.split(".")
        if ours in parts and "transformer_blocks" not in parts:
            return name.replace(f".{ours}.", f".{theirs}.")
    return name


def _vae_name(name: str) -> str:
    fixed = {}
    for side, block in (("encoder", "down"), ("decoder", "up")):
        fixed |= {f"{side}.mid_block.resnets.{k}": f"{side}.mid.block_{k + 1}" for k in range(2)}
        fixed[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for i in range(2):
            other = i if block == "down" else 1 - i
            fixed |= {f"{side}.{block}_blocks.{i}.resnets.{k}": f"{side}.{block}.{other}.block.{k}" for k in range(2)}
            fixed[f"{side}.{block}_blocks.{i}.{block}samplers.0"] = f"{side}.{block}.{other}.{block}sample"
    for ours, theirs in fixed.items():
        if name.startswith(f"{ours}."):
            name = name.replace(ours, theirs)
    return name.replace("conv_shortcut", "nin_shortcut")


def _open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's names of a CLIPTextModelWithProjection: queries, keys and values in one matrix."""
    found, state = {}, {k.removeprefix("text_model."): v for k, v in state.items()}
    found["text_projection"] = state.pop("text_projection.weight").T
    for name, value in state.items():
        if name.startswith("embeddings.") and name.endswith(".weight"):
            kind = name.split(".")[1]
            found["token_embedding.weight" if kind == "token_embedding" else "positional_embedding"] = value
        elif name.startswith("final_layer_norm."):
            found[name.replace("final_layer_norm", "ln_final")] = value
        elif "q_proj" in name:
            parts = [state[name.replace("q_proj", f"{k}_proj")] for k in "qkv"]
            new = name.replace("encoder.layers", "transformer.resblocks").replace("self_attn.q_proj.", "attn.in_proj_")
            found[new] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name and "layers" in name:
            new = name.replace("encoder.layers", "transformer.resblocks")
            for ours, theirs in _CLIP.items():
                new = new.replace(f".{ours}.", f".{theirs}.")
            found[new] = value
    return found


def sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5 at full size with random weights, and the miniature's tokenizer padded to 77 tokens."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    tokenizer = AutoTokenizer.from_pretrained(locate("mini:pipeline") + "/tokenizer", model_max_length=77)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=512,
    )  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder
