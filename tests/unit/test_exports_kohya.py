"""kohya files: the names that other tools look for, and weights that draw what the adapter draws."""

import copy
import re

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from raypref.adapters import export, read_adapter
from raypref.exports.kohya import convert, metadata, read_base
from raypref.exports.kohya_names import Base, layer_name, original_path
from raypref.noising import gaussian
from tests.conftest import CAPTIONS, LATENT, fill
from tests.runs import ALPHA, CONVOLUTIONS, TEXT_TARGETS, UNET_TARGETS, adapters

SDXL_TARGETS = [
    *UNET_TARGETS, *CONVOLUTIONS, "proj_out", "conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2",
    "add_embedding.linear_1", "add_embedding.linear_2",
]  # fmt: skip
SDXL = Base(sdxl=True)


def drawn(pipe) -> torch.Tensor:
    """Latents by Diffusers' own call."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        CAPTIONS[:2],
        latents=gaussian(LATENT, [1, 2]),
        num_inference_steps=3,
        guidance_scale=2.0,
        output_type="latent",
        height=16,
        width=16,
    ).images


def delta(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """alpha / rank * up @ down by hand, in the shape of the layer's weight."""
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    product = up.flatten(1) @ down.flatten(1)
    return tensors[f"{name}.alpha"] / down.shape[0] * product.view(up.shape[0], *down.shape[1:])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny):
    """(folder of the exported LoRA of both modules, file in kohya's format), of a Stable Diffusion 1.x."""
    folder = tmp_path_factory.mktemp("run")
    settings, state = adapters(tiny, "unet", "text_encoder")
    export(folder / "lora", state, settings, str(tiny))
    settings, state = read_adapter(folder / "lora")
    tensors = convert({name: (settings[name], state[name]) for name in settings}, Base(layers_per_block=1))
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "lora", folder / "kohya.safetensors"


def test_every_layer_has_one_name_and_three_tensors(exported):
    """Names of SD 1.x are Diffusers' paths: what a tool finds that walks over the modules of its own model."""
    folder, file = exported
    _, state = read_adapter(folder)
    expected = {f"lora_unet_{path.replace('.', '_')}" for path in paths(state["unet"])}
    expected |= {f"lora_te_text_model_{path.replace('.', '_')}" for path in paths(state["text_encoder"])}
    tensors = load_file(file)
    assert {key.partition(".")[0] for key in tensors} == expected
    assert len(tensors) == 3 * len(expected) and len(expected) == sum(len(paths(s)) for s in state.values())
    assert "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight" in tensors
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in tensors
    assert any(value.ndim == 4 and value.shape[2] == 3 for value in tensors.values())
    assert all(re.fullmatch(r"lora_(unet|te)_\w+\.(lora_(down|up)\.weight|alpha)", key) for key in tensors)


def paths(state: dict) -> set[str]:
    return {key.rpartition(".lora_")[0] for key in state}


def test_diffusers_draws_from_it_what_it_draws_from_the_adapter(exported, tiny):
    folder, file = exported
    pipes = [StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None) for _ in range(2)]
    base = drawn(pipes[0])
    pipes[0].load_lora_weights(folder)
    pipes[1].load_lora_weights(file.parent, weight_name=file.name)
    expected = drawn(pipes[0])
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(drawn(pipes[1]), expected, atol=1e-5, rtol=1e-5)


def test_merged_by_hand_as_by_peft(exported, tiny):
    folder, file = exported
    pipe = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    before = {name: copy.deepcopy(getattr(pipe, name).state_dict()) for name in ("unet", "text_encoder")}
    pipe.load_lora_weights(folder)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    tensors, changed = load_file(file), 0
    for module in before:
        after = getattr(pipe, module).state_dict()
        for key, weight in before[module].items():
            name = layer_name(module, key.removesuffix(".weight"), Base())
            expected = weight + delta(tensors, name) if f"{name}.alpha" in tensors else weight
            torch.testing.assert_close(after[key], expected, atol=1e-6, rtol=1e-5)
            changed += not torch.equal(after[key], weight)
    assert changed == len(tensors) / 3


def test_the_metadata_is_text_that_says_ranks_and_base(exported, tiny):
    folder, _ = exported
    settings, state = read_adapter(folder)
    both = {name: (settings[name], state[name]) for name in settings}
    found = metadata(both, Base())
    assert all(type(value) is str for value in found.values())
    assert (found["ss_network_module"], found["ss_base_model_version"]) == ("networks.lora", "sd_v1")
    assert found["ss_network_dim"] == found["ss_network_alpha"] == "Dynamic"  # the text encoder has another rank
    assert found["ss_network_args"] == '{"conv_dim": "4", "conv_alpha": "12.0"}'
    alone = metadata({"unet": both["unet"]}, Base(v2=True, velocity=True))
    assert (alone["ss_network_dim"], alone["ss_network_alpha"]) == ("4", str(float(ALPHA)))
    assert metadata({"text_encoder": both["text_encoder"]}, Base())["ss_network_args"] == "{}"
    assert (alone["ss_v2"], alone["ss_base_model_version"]) == ("True", "sd_v2_v")
    assert alone["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert alone["modelspec.prediction_type"] == "v"
    assert metadata(both, SDXL)["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata(both, SDXL)["ss_base_model_version"] == "sdxl_base_v1-0"


def test_what_the_format_cannot_hold_is_refused():
    settings = {"r": 2, "lora_alpha": 2}
    with pytest.raises(ValueError, match=r"no place for conv_in\.lora_magnitude_vector"):
        convert({"unet": (settings, {"conv_in.lora_magnitude_vector": torch.ones(2)})}, Base())
    with pytest.raises(ValueError, match="no name for class_embedding"):
        convert({"unet": (settings, {"class_embedding.linear_1.lora_A.weight": torch.ones(2, 2)})}, SDXL)


# SDXL, whose U-Net has the names of the original code


@pytest.mark.parametrize(
    ("path", "original"),
    [  # of the published sd_xl_base_1.0 file
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.4.1.transformer_blocks.0.attn1.to_q"),
        ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
        ("down_blocks.0.resnets.1.conv1", "input_blocks.2.0.in_layers.2"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj", "middle_block.1.transformer_blocks.9.ff.net.0.proj"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0", "output_blocks.2.1.transformer_blocks.9.attn2.to_out.0"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("up_blocks.2.resnets.2.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ],
)  # fmt: skip
def test_names_of_the_original_code(path, original):
    assert original_path(path, 2) == original


def test_every_layer_of_the_full_size_unet_comes_back_through_diffusers():
    """All of SDXL's U-Net, without its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    layers = [name for name, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert len(layers) > 700
    state = {}
    for number, layer in enumerate(layers):
        for side in "AB":
            state[f"{layer}.lora_{side}.weight"] = torch.full((1, 1), float(number))
    tensors = convert({"unet": ({"r": 1, "lora_alpha": 1}, state)}, SDXL)
    assert len(tensors) == 3 * len(layers)
    back, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(tensors, unet.config))
    for number, layer in enumerate(layers):
        stem = layer.replace("attn1.", "attn1.processor.").replace("attn2.", "attn2.processor.")
        stem = re.sub(r"(to_[qkv]|to_out)(\.0)?$", r"\1_lora", stem)
        name = f"unet.{stem}.down.weight" if stem.endswith("_lora") else f"unet.{stem}.lora.down.weight"
        assert back[name].item() == number, layer


def sdxl(tiny) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=LATENT[1],
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=2,
        cross_attention_dim=32,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=8,
    )
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(tiny / "vae"),
        text_encoder=fill(CLIPTextModel(config), 4).eval(),
        text_encoder_2=fill(CLIPTextModelWithProjection(config), 5).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=fill(unet, 6).eval(),
        scheduler=DDIMScheduler(),
        add_watermarker=False,
    )
    return pipe


def inject(pipe, module: str, targets: list[str], rank: int, alpha: float, seed: int) -> tuple[dict, dict]:
    """Put an adapter that acts into a module; its settings and state."""
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
    model = inject_adapter_in_model(LoraConfig(**settings), getattr(pipe, module))
    for name, p in model.named_parameters():
        if ".lora_" in name:
            p.data = 0.3 * gaussian(tuple(p.shape), [seed + len(name)])[0]
    return settings, {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}


@pytest.fixture(scope="module")
def xl(tmp_path_factory, tiny):
    """(what the adapters draw that live in the pipeline, they themselves, a fresh pipeline, the folder of the file)."""
    pipe, fresh = sdxl(tiny), sdxl(tiny)
    found = {
        "unet": inject(pipe, "unet", SDXL_TARGETS, 3, 5.0, 1),
        "text_encoder": inject(pipe, "text_encoder", TEXT_TARGETS, 2, 7.0, 2),
        "text_encoder_2": inject(pipe, "text_encoder_2", TEXT_TARGETS, 4, 2.0, 3),
    }
    folder = tmp_path_factory.mktemp("xl")
    save_file(convert(found, SDXL), folder / "kohya.safetensors", metadata(found, SDXL))
    return drawn(pipe), found, fresh, folder


def test_sdxl_file_has_the_names_of_kohya(xl):
    _, found, _, folder = xl
    with safe_open(folder / "kohya.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
    assert len(names) == sum(3 * len(state) // 2 for _, state in found.values())
    for name in names:
        assert re.fullmatch(
            r"lora_(te[12]_text_model_encoder_layers_\d_(self_attn|mlp)|unet_((in|out)put_blocks_\d_\d|middle_block_\d|time_embed"
            r"|label_emb|out_2))\w*\.(lora_(down|up)\.weight|alpha)",
            name,
        ), name
    for number, module in enumerate(("text_encoder", "text_encoder_2"), 1):
        assert sum(name.startswith(f"lora_te{number}_") for name in names) == 3 * len(found[module][1]) // 2


def test_diffusers_draws_from_an_sdxl_file_what_the_adapters_draw(xl):
    expected, _, pipe, folder = xl
    base = drawn(pipe)
    pipe.load_lora_weights(folder, weight_name="kohya.safetensors")
    assert (expected - base).abs().max() > 0.05
    torch.testing.assert_close(drawn(pipe), expected, atol=1e-4, rtol=1e-4)


def test_base_models_are_told_apart(tiny, tmp_path):
    from raypref.config import Model

    assert read_base(Model(base=str(tiny))) == Base(velocity=True, layers_per_block=1)
    sdxl(tiny).save_pretrained(tmp_path)
    assert read_base(Model(base=str(tmp_path))) == SDXL
    UNet2DConditionModel.from_config(tmp_path / "unet", cross_attention_dim=1024, addition_embed_type=None).save_config(
        tmp_path / "unet"
    )
    assert read_base(Model(base=str(tmp_path))).v2
    with pytest.raises(ValueError, match="give --base, where it is now"):
        read_base(Model(base=str(tmp_path / "gone")))


def test_alpha_of_layers_with_a_rank_of_their_own():
    """PEFT's patterns name layers by expressions; a rank-stabilised scale is alpha / sqrt(rank)."""
    state = {
        f"{layer}.lora_{side}.weight": torch.ones(2, 2) for layer in ("mid_block.a", "mid_block.b") for side in "AB"
    }
    settings = {"r": 4, "lora_alpha": 4, "rank_pattern": {"^mid_block.b": 2}, "alpha_pattern": {"^mid_block.b": 3}}
    found = convert({"unet": (settings, state)}, Base())
    assert [found[f"lora_unet_mid_block_{layer}.alpha"].item() for layer in "ab"] == [4, 3]
    found = convert({"unet": (settings | {"use_rslora": True}, state)}, Base())
    assert [found[f"lora_unet_mid_block_{layer}.alpha"].item() for layer in "ab"] == pytest.approx([8, 3 * 2**0.5])
