"""What a user brings: pipelines in folders and single files, schedules, a LoRA to begin with; and what is refused."""

import json
import pickle
import shutil

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from raypref import noising
from raypref.adapters import read_adapter, take_adapter
from raypref.denoiser import BASE, POLICY, REFERENCE, Denoiser
from raypref.generation import sample
from raypref.models import LORA_FILE, load_pipeline, token_ids, unread
from raypref.noising import gaussian
from tests import pipelines
from tests.conftest import CAPTIONS, LATENT, make_config, make_job, make_pipeline, train

SEEDS = [1, 2, 3]
ALL = "stages.easy.lora={unet: {rank: 4, alpha: 8}, text_encoder: {rank: 2, alpha: 1, targets: [q_proj, v_proj]}}"


def draw(config, pipeline=None, **weights):
    pipeline = pipeline or load_pipeline(config.model, **weights)
    return sample(pipeline, CAPTIONS[:3], SEEDS, config.sampling, LATENT)


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny):
    """Folder of a LoRA of U-Net and text encoder that someone has trained."""
    run = tmp_path_factory.mktemp("first")
    job = make_job(
        run,
        make_config(
            tiny,
            ALL,
            "stages.hard.lora.text_encoder={rank: 2, alpha: 1, targets: [q_proj, v_proj]}",
            "stages.hard.lora.unet.alpha=8",
            "stages.text_encoder=null",
        ),
    )
    train(job)
    return run / job.path / "lora"


def begun(tiny, lora, mode: str, *assignments):
    """A run whose base has a LoRA from the start, and that trains the U-Net alone."""
    given = (
        f"model.lora={lora}",
        f"model.lora_mode={mode}",
        "stages.easy.lora.unet.alpha=8",
        "stages.hard.lora.unet.alpha=8",
    )
    return make_config(tiny, "stages.text_encoder=null", *given, *assignments)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_merged_lora_is_part_of_the_base(tiny, first, what):
    config = begun(tiny, first if what == "folder" else first / LORA_FILE, "merge")
    merged = load_pipeline(config.model)
    assert not any("lora" in name for name, _ in merged.unet.named_parameters())
    expected = draw(make_config(tiny), lora=first)
    torch.testing.assert_close(draw(config, merged), expected, atol=1e-4, rtol=1e-4)
    assert (expected - draw(make_config(tiny))).abs().max() > 0.01


def test_a_stage_on_a_merged_lora_begins_at_the_merged_weights(tiny, first, tmp_path):
    config = begun(tiny, first, "merge")
    job = make_job(tmp_path, config)
    engine = train(job)
    settings, _ = read_adapter(tmp_path / job.path / "lora")
    assert set(settings) == {"unet"}
    z, t, sizes = gaussian(LATENT, SEEDS), torch.tensor([10, 400, 900]), torch.tensor([[16, 16, 0, 0, 16, 16]] * 3)
    pipeline = load_pipeline(make_config(tiny).model, lora=first)
    inputs = z, t, token_ids(pipeline, CAPTIONS[:3])
    with torch.no_grad():
        expected = pipeline.unet(z, t, pipeline.text_encoder(inputs[2][:, 0])[0]).sample
        for which in (REFERENCE, BASE):
            found = engine.denoiser.eval()(*inputs, sizes, which)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert (engine.denoiser(*inputs, sizes, POLICY) - expected).abs().max() > 1e-3


def test_a_continued_lora_is_the_start_and_the_whole_of_it_comes_out(tiny, first, tmp_path):
    config = begun(tiny, first, "continue")
    job = make_job(tmp_path, config)
    engine = train(job)
    _, before = read_adapter(first)
    settings, after = read_adapter(tmp_path / job.path / "lora")
    assert set(settings) == {"unet", "text_encoder"} and settings["unet"]["lora_alpha"] == 8
    assert after["unet"].keys() == before["unet"].keys()
    assert all(torch.equal(after["text_encoder"][k], before["text_encoder"][k]) for k in before["text_encoder"])
    change = max((after["unet"][k] - before["unet"][k]).abs().max() for k in before["unet"])
    assert 0 < change < 10 * 6 * 5e-3  # six steps of Adam from where it was, not from nothing
    z, t, sizes = gaussian(LATENT, SEEDS), torch.tensor([10, 400, 900]), torch.tensor([[16, 16, 0, 0, 16, 16]] * 3)
    pipeline = load_pipeline(make_config(tiny).model, lora=first)
    ids = token_ids(pipeline, CAPTIONS[:3])
    with torch.no_grad():
        expected = pipeline.unet(z, t, pipeline.text_encoder(ids[:, 0])[0]).sample
        for which in (REFERENCE, BASE):  # preference accuracy is measured against the base with its LoRA
            torch.testing.assert_close(engine.denoiser.eval()(z, t, ids, sizes, which), expected, atol=1e-5, rtol=1e-4)
    second = make_job(tmp_path, config, "hard", job.path, "train/hard")
    engine = train(second)
    with torch.no_grad():
        torch.testing.assert_close(engine.denoiser.eval()(z, t, ids, sizes, BASE), expected, atol=1e-5, rtol=1e-4)
        assert (engine.denoiser(z, t, ids, sizes, REFERENCE) - expected).abs().max() > 1e-3


def test_a_lora_of_another_rank_cannot_be_continued(tiny, first, tmp_path):
    job = make_job(tmp_path, begun(tiny, first, "continue", "stages.easy.lora.unet.rank=2", "stages.hard=null"))
    with pytest.raises(
        ValueError, match=r"lora\.unet\.rank: 2, but the LoRA that is continued has 4; set that \(or model\.lora_mode"
    ):
        train(job)


def test_whole_unet_and_a_continued_lora_do_not_go_together(tiny, first):
    with pytest.raises(ValueError, match=r"stages\.easy\.lora: none trains all .* set model\.lora_mode=merge"):
        begun(tiny, first, "continue", "stages.easy.lora=null", "stages.hard=null")


def test_a_whole_unet_trained_on_a_merged_lora_is_drawn_with_the_merged_text_encoder(tiny, first, tmp_path):
    config = begun(tiny, first, "merge", "stages.easy.lora=null", "stages.hard=null")
    job = make_job(tmp_path, config)
    engine = train(job)
    pipeline = load_pipeline(config.model, unet=tmp_path / job.path / "unet")
    trained = {k.removeprefix("unet."): v for k, v in engine.whole().items()}
    assert all(torch.equal(value, trained[name]) for name, value in pipeline.unet.state_dict().items())
    merged = load_pipeline(config.model).text_encoder.state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in pipeline.text_encoder.state_dict().items())


@pytest.mark.parametrize(
    "name, content, expected",
    [
        (
            "lora.bin",
            b"x",
            r"model\.lora: '.*lora\.bin' is not a \.safetensors file, and others \(pickles\) can run code",
        ),
        ("lora.safetensors", b"x", r"model\.lora='.*' cannot be loaded into this StableDiffusionPipeline: "),
        (None, None, r"model\.lora='.*nowhere': there is no such file or folder on this machine"),
    ],
)
def test_a_lora_that_cannot_be_read_is_said(tiny, tmp_path, name, content, expected):
    path = tmp_path / (name or "nowhere")
    if name:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        load_pipeline(begun(tiny, path, "merge").model)


def test_a_lora_of_another_model_is_said(tiny, tmp_path):
    wrong = {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(4, 99),
             "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.zeros(99, 4)}  # fmt: skip
    save_file(wrong, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=r"model\.lora='.*' cannot be loaded into this StableDiffusionPipeline"):
        load_pipeline(begun(tiny, tmp_path, "merge").model)


@pytest.mark.parametrize("mode", ["merge", "continue"])
def test_a_lora_of_which_no_layer_is_found_is_said(tiny, first, mode):
    """Diffusers passes over names that it does not know, such as PEFT's own."""
    config = begun(tiny, first / "peft" / "unet", mode)
    with pytest.raises(ValueError, match=r"model\.lora='.*unet' cannot be loaded .* no layer of this model"):
        take_adapter(load_pipeline(config.model), config.model)


def test_a_merged_lora_leaves_the_names_of_weights(tiny, first, tmp_path):
    load_pipeline(begun(tiny, first, "merge").model).text_encoder.save_pretrained(tmp_path)
    names, expected = (load_file(folder / "model.safetensors").keys() for folder in (tmp_path, tiny / "text_encoder"))
    assert names == expected


def test_the_projection_of_sdxl_is_exported_by_its_name(tmp_path):
    folder = pipelines.sdxl(tmp_path / "xl")
    lora = (
        "stages.text_encoder.lora={text_encoder: null, text_encoder_2: {rank: 2, targets: [q_proj, text_projection]}}"
    )
    config = make_config(folder, lora, "stages.text_encoder.start=base")
    job = make_job(tmp_path, config, "text_encoder")
    train(job)
    _, state = read_adapter(tmp_path / job.path / "lora")
    assert any(name.startswith("text_projection.") for name in state["text_encoder_2"])
    names = load_file(tmp_path / job.path / "lora" / LORA_FILE).keys()
    assert "text_encoder_2.text_projection.lora_A.weight" in names
    assert "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in names


# schedules


def with_schedule(tiny, folder, **changes):
    shutil.copytree(tiny, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_zero_terminal_snr_of_v_models(tiny, tmp_path):
    """No signal is left at the last timestep (Lin et al. 2023): the target is the image, and sampling begins there."""
    folder = with_schedule(tiny, tmp_path / "zero", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    config = make_config(folder, "sampling.guidance_rescale=0.7")
    denoiser = Denoiser(load_pipeline(config.model))
    alpha, sigma = noising.alpha_sigma(denoiser.alphas_cumprod, torch.tensor([999]))
    assert (alpha.item(), sigma.item()) == (0, 1)
    z0, noise = gaussian(LATENT, [1]), gaussian(LATENT, [2])
    target = noising.target(z0, noise, alpha, sigma, denoiser.prediction)
    torch.testing.assert_close(target, -z0)
    estimate = noising.clean_estimate(noise, target, alpha, sigma, denoiser.prediction, 4.0)
    torch.testing.assert_close(estimate, z0)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    expected = pipe(
        CAPTIONS[:3],
        latents=gaussian(LATENT, SEEDS),
        num_inference_steps=config.sampling.steps,
        guidance_scale=config.sampling.guidance,
        guidance_rescale=0.7,
        output_type="latent",
    ).images
    found = draw(config)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - draw(make_config(tiny, "sampling.guidance_rescale=0.7"))).abs().max() > 0.01


def test_zero_terminal_snr_of_epsilon_models_is_refused(tiny, tmp_path):
    folder = with_schedule(tiny, tmp_path / "zero", rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(
        ValueError, match=r"rescale_betas_zero_snr with prediction_type epsilon.*scheduler_config\.json"
    ):
        load_pipeline(make_config(folder).model)


def test_a_stage_trains_on_a_zero_terminal_snr_schedule(tiny, tmp_path):
    folder = with_schedule(tiny, tmp_path / "zero", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    job = make_job(tmp_path, make_config(folder, "stages.easy.objective.statistics.weight=1"))
    engine = train(job)
    assert all(value.isfinite().all() for value in engine.whole().values())


# single files


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_single_file_is_the_folder_that_it_was_made_from(tmp_path, kind):
    folder = pipelines.sdxl(tmp_path / kind) if kind == "sdxl" else make_pipeline(tmp_path / kind, "epsilon")
    path = pipelines.single_file(folder, tmp_path / "model.safetensors")
    config = make_config(path, f"model.config={folder}")
    torch.testing.assert_close(draw(config), draw(make_config(folder)), atol=1e-5, rtol=1e-5)


def test_a_single_file_that_lacks_a_part_is_said(tmp_path):
    folder = make_pipeline(tmp_path / "sd", "epsilon")
    path = pipelines.single_file(folder, tmp_path / "model.safetensors")
    save_file({k: v for k, v in load_file(path).items() if "cond_stage" not in k}, path)
    with pytest.raises(
        ValueError, match=r"model\.base='.*' cannot be loaded: .* Give a checkpoint of Stable Diffusion"
    ):
        load_pipeline(make_config(path, f"model.config={folder}").model)


@pytest.mark.parametrize("field", ["revision", "variant"])
def test_what_a_single_file_does_not_have_is_said(field):
    with pytest.raises(ValueError, match=rf"model\.{field}: is of pipelines on the hub"):
        make_config("model.safetensors", f"model.{field}=x")


def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path):
    path, planted = tmp_path / "model.ckpt", tmp_path / "planted"

    class Bad:
        def __reduce__(self):
            return (open, (str(planted), "w"))

    path.write_bytes(pickle.dumps(Bad()))
    with pytest.raises(
        ValueError, match=r"model\.base: '.*model\.ckpt' is not a \.safetensors file, and others \(pickles\)"
    ):
        load_pipeline(make_config(path).model)
    path.rename(tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model\.base='.*' cannot be loaded: .* Give a checkpoint of Stable Diffusion"
    ):
        load_pipeline(make_config(tmp_path / "model.safetensors").model)
    assert not planted.exists()


def test_a_folder_of_pickles_is_refused(tiny, tmp_path):
    folder = tmp_path / "pickles"
    shutil.copytree(tiny, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*safetensors.*Give a hub id or a folder"):
        load_pipeline(make_config(folder).model)


def test_another_pipeline_is_refused(tiny, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(tiny, folder)
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "FluxPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match="it is a FluxPipeline; raypref trains StableDiffusionPipeline and StableDiffusionXL"
    ):
        load_pipeline(make_config(folder).model)


def test_config_without_a_single_file_is_said(tiny):
    with pytest.raises(ValueError, match=r"model\.config: is for a base that is a \.safetensors file"):
        make_config(tiny, "model.config=somewhere")


# prompts


def test_the_unread_end_of_a_long_prompt(tiny):
    pipeline = load_pipeline(make_config(tiny).model)
    long = " ".join(CAPTIONS[0].split() * 20)
    short, cut = unread(pipeline, [CAPTIONS[0], long])
    assert short == ""
    assert cut and long.endswith(cut[-20:])
    kept = long[: -len(cut)].strip()
    assert torch.equal(
        token_ids(pipeline, [long]), token_ids(pipeline, [f"{kept} person"])
    )  # what follows has no effect
    assert unread(pipeline, []) == []
