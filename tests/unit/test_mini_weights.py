"""The checkpoints that ship with the package: they load with their own libraries and do what the README says."""

import pathlib

import numpy as np
import pytest
import torch

import raypref.mini
from raypref.mini import renderer

WEIGHTS = pathlib.Path(raypref.mini.__file__).parent / "weights"


def batch(count=48, realism=1.0, seed=5):
    people = [renderer.person(seed, i, realism) for i in range(count)]
    images = torch.from_numpy(np.stack([image for _, image in people])).permute(0, 3, 1, 2).float() / 255
    return [text for text, _ in people], images


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline")


@pytest.fixture(scope="module")
def judge():
    from raypref.mini.judge import load_judge

    return load_judge(WEIGHTS / "judge")


def test_size_and_format():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]


def test_autoencoder_reconstructs_real_people(pipeline):
    _, images = batch(32)
    with torch.no_grad():
        latents = pipeline.vae.encode(2 * images - 1).latent_dist.mean
        output = pipeline.vae.decode(latents).sample / 2 + 0.5
    assert latents.shape == (32, 16, 8, 8)
    assert (latents * pipeline.vae.config.scaling_factor).std() == pytest.approx(1.0, abs=0.2)  # 1 over all realisms
    assert -10 * (output.clamp(0, 1) - images).square().mean().log10() > 22


def test_pipeline_draws_what_the_caption_says(pipeline, judge):
    from raypref.mini.train_base import sample

    captions, real = batch(24)
    images = sample(pipeline, captions, seed=0)
    assert images.shape == (24, 3, 64, 64)
    assert judge.attribute_accuracy(images, captions).mean() > 0.7
    assert judge.realism(images).mean() < judge.realism(real).mean() - 0.2


def test_every_word_is_one_token(pipeline):
    tokenizer = pipeline.tokenizer
    for word in renderer.VOCABULARY:
        assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer(batch(8)[0], padding="max_length").input_ids
    assert {len(row) for row in ids} == {tokenizer.model_max_length}
    assert tokenizer.eos_token_id == len(tokenizer) - 1 and all(row.count(tokenizer.eos_token_id) == 1 for row in ids)


def test_judge(judge):
    captions, images = batch(64)
    assert judge.features(images).shape[0] == 64
    assert judge.attribute_accuracy(images, captions).mean() > 0.9
    assert judge.attribute_accuracy(images, captions[1:] + captions[:1]).mean() < 0.5
    assert {k: v.shape[1] for k, v in judge.attribute_logits(images).items()} == {
        k: len(v) for k, v in renderer.ATTRIBUTES.items()
    }
    assert judge.realism(images).mean() > judge.realism(batch(64, 0.4)[1]).mean() + 0.3


@pytest.mark.parametrize("kind", ["scorer", "clip"])
def test_open_clip_models(kind):
    import open_clip

    name = f"local-dir:{WEIGHTS / kind}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(batch()[0])
    model.eval()

    def scores(images, tokens):
        with torch.no_grad():
            normalised = torch.stack([preprocess(to_pil(image)) for image in images])
            image = model.encode_image(normalised, normalize=True)
            return model.logit_scale.exp() * image @ model.encode_text(tokens, normalize=True).T

    right = scores(batch()[1], tokens)
    assert (right.argmax(1) == torch.arange(48)).float().mean() > 0.6
    if kind == "scorer":
        degraded = scores(batch(realism=0.4)[1], tokens).diagonal()
        assert (right.diagonal() > degraded).float().mean() > 0.9


def to_pil(image):
    from PIL import Image

    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
