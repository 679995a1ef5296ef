"""Published reward models against their published formulas, on the same random weights."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from raypref import scorers
from raypref.mini import locate, renderer
from tests import checkpoints

CLIP = f"local-dir:{locate('mini:clip')}"  # sees 64 px
OPENAI = transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module")
def people():
    """(images float32 [4, 3, 64, 64] in [0, 1], captions)."""
    scenes = [renderer.person(5, i) for i in range(4)]
    images = torch.from_numpy(np.stack([image for _, image in scenes])).permute(0, 3, 1, 2).float() / 255
    return images, [caption for caption, _ in scenes]


def pictures(images):
    return [Image.fromarray((i.permute(1, 2, 0) * 255).round().byte().numpy()) for i in images]


def to_bytes(images):
    """Rounded to what a PIL image can hold."""
    return (images * 255).round() / 255


# HPS v2


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (100, 62), (31, 50)])
def test_hpsv2_is_the_cosine_of_padded_images(tmp_path, people, size):
    """The published code resizes a float tensor so that the long side fits and pads with zeros: the same to rounding."""
    weights = checkpoints.hpsv2(tmp_path / "hps.pt")
    images, prompts = to_bytes(F.interpolate(people[0], size)), people[1]
    model = open_clip.create_model(CLIP)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    scale = 64 / max(size)
    height, width = (round(side * scale) for side in size)
    left, top = (64 - width) // 2, (64 - height) // 2
    preprocess = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize((height, width), transforms.InterpolationMode.BICUBIC),
            transforms.Pad([left, top, 64 - width - left, 64 - height - top]),
            transforms.Normalize(model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"]),
        ]
    )
    with torch.no_grad():
        image, text, _ = model.eval()(
            torch.stack([preprocess(p) for p in pictures(images)]), open_clip.get_tokenizer(CLIP)(prompts)
        )
    expected = (image @ text.T).diagonal()
    scorer = scorers.load("hpsv2", {"weights": weights, "model": "mini:clip"})
    torch.testing.assert_close(scorer(images, prompts), expected, atol=1e-5, rtol=1e-4)
    plain = scorers.load("open_clip", {"model": "mini:clip"})(images, prompts)
    assert (scorer(images, prompts) - plain).abs().max() > 1e-2  # the folder's own weights are replaced


# ImageReward


def attend(query, keys, weights, names, heads, mask=None):
    """Multi-head attention from the weights of its four linear layers `names` (q, k, v, out)."""
    q, k, v = (
        linear(source, weights, name).unflatten(-1, (heads, -1)).transpose(1, 2)
        for source, name in zip((query, keys, keys), names, strict=False)
    )
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores - 10000 * (1 - mask[:, None, None].float())
    return linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), weights, names[3])


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x, weights, name, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def image_tokens(w, pixels):
    """BLIP's image encoder."""
    v = {key.removeprefix("blip.visual_encoder."): value for key, value in w.items()}
    x = F.conv2d(pixels, v["patch_embed.proj.weight"], v["patch_embed.proj.bias"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([v["cls_token"].expand(len(x), -1, -1), x], 1) + v["pos_embed"]
    for i in range(2):
        b = f"blocks.{i}"
        for j, part in enumerate("qkv"):
            for kind in ("weight", "bias"):
                v[f"{b}.{part}.{kind}"] = v[f"{b}.attn.qkv.{kind}"].chunk(3)[j]
        seen = norm(x, v, f"{b}.norm1", 1e-6)
        x = x + attend(seen, seen, v, (f"{b}.q", f"{b}.k", f"{b}.v", f"{b}.attn.proj"), 3)
        x = x + linear(F.gelu(linear(norm(x, v, f"{b}.norm2", 1e-6), v, f"{b}.mlp.fc1")), v, f"{b}.mlp.fc2")
    return norm(x, v, "norm", 1e-6)


def reward_by_hand(w, pixels, ids, mask):
    """The reward from BLIP's own names, without a class of any library."""
    image = image_tokens(w, pixels)
    t = {key.removeprefix("blip.text_encoder."): value for key, value in w.items()}
    x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x, t, "embeddings.LayerNorm", 1e-12)
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for part, source, hidden in (("attention", None, mask), ("crossattention", image, None)):
            names = [f"{layer}.{part}.{n}" for n in ("self.query", "self.key", "self.value", "output.dense")]
            read = attend(x, x if source is None else source, t, names, 2, hidden)
            x = norm(x + read, t, f"{layer}.{part}.output.LayerNorm", 1e-12)
        inner = F.gelu(linear(x, t, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, t, f"{layer}.output.dense"), t, f"{layer}.output.LayerNorm", 1e-12)
    y = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        y = linear(y, w, f"mlp.layers.{number}")
    return (y.squeeze(1) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_reward")
    return checkpoints.image_reward(folder / "ImageReward.pt"), checkpoints.bert_tokenizer(folder / "bert")


@pytest.mark.parametrize(("size", "tolerance"), [((24, 24), 1e-4), ((64, 48), 0.02)])
def test_image_reward_equals_the_published_formula(image_reward, people, size, tolerance):
    """PIL resizes whole numbers, torch floats: equal within their rounding, and exactly where nothing is resized."""
    from transformers import BertTokenizerFast

    weights, folder = image_reward
    images = to_bytes(F.interpolate(people[0], size, mode="bilinear"))
    prompts = [people[1][0], "a", "", " ".join(people[1] * 4)]  # the last is cut at 35 tokens
    tokens = BertTokenizerFast.from_pretrained(folder)(
        prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    assert tokens.input_ids.shape == (4, 35) and tokens.attention_mask.sum(1).tolist()[1:] == [3, 2, 35]
    preprocess = transforms.Compose(
        [
            transforms.Resize(24, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(24),
            transforms.ToTensor(),
            OPENAI,
        ]
    )
    pixels = torch.stack([preprocess(p) for p in pictures(images)])
    state = torch.load(weights, weights_only=True)
    expected = reward_by_hand(state, pixels, tokens.input_ids, tokens.attention_mask)
    scorer = scorers.load("image_reward", {"weights": weights, "tokenizer": folder})
    torch.testing.assert_close(scorer(images, prompts), expected, atol=tolerance, rtol=tolerance)
    assert expected.std() > 0.1


def test_image_rewards_encoders_have_the_published_sizes_for_the_published_weights():
    """BLIP with ViT-L at 224 px: sizes are read from the shapes of the weights, here without the weights themselves."""
    from raypref.scorers.image_reward import text_encoder, vision_encoder

    with torch.device("meta"):
        from timm.models.vision_transformer import VisionTransformer
        from transformers import BlipTextConfig, BlipTextModel

        large = VisionTransformer(img_size=224, patch_size=16, embed_dim=1024, depth=24, num_heads=16, num_classes=0)
        config = BlipTextConfig(encoder_hidden_size=1024, num_attention_heads=12)
        text = BlipTextModel(config, add_pooling_layer=False)
        vision, read = vision_encoder(large.state_dict()), text_encoder(text.state_dict())
    assert vision.patch_embed.img_size == (224, 224) and len(vision.blocks) == 24
    assert vision.blocks[0].attn.num_heads == 16 and vision.norm.eps == 1e-6
    assert read.config.num_attention_heads == 12 and read.config.num_hidden_layers == 12
    assert read.config.vocab_size == 30524 and read.config.encoder_hidden_size == 1024


# LAION's aesthetic predictor


def test_aesthetic_is_a_linear_function_of_the_normalised_features(tmp_path, people):
    weights = checkpoints.aesthetic(tmp_path / "sac+logos+ava1-l14-linearMSE.pth", 96)
    clip, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    state = torch.load(weights, weights_only=True)
    images, prompts = to_bytes(people[0]), people[1]
    with torch.no_grad():
        y = clip.eval().encode_image(torch.stack([preprocess(p) for p in pictures(images)]))
    y = y / y.norm(dim=1, keepdim=True)
    for number in (0, 2, 4, 6, 7):
        y = linear(y, state, f"layers.{number}")
    scorer = scorers.load("aesthetic", {"weights": weights, "model": "mini:clip", "pretrained": None})
    torch.testing.assert_close(scorer(images, prompts), y.squeeze(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(scorer(images, prompts), scorer(images, [""] * 4))


# CLIP-IQA


@pytest.mark.parametrize(
    ("prompts", "pair"),
    [
        ("quality", ["Good photo.", "Bad photo."]),
        ("sharpness", ["Sharp photo.", "Blurry photo."]),
        (["tall", "short"], ["tall", "short"]),
    ],
)
def test_clip_iqa_is_the_probability_of_the_first_prompt(people, prompts, pair):
    images = to_bytes(people[0])
    clip, _, preprocess = open_clip.create_model_and_transforms(CLIP)
    with torch.no_grad():
        image = F.normalize(clip.eval().encode_image(torch.stack([preprocess(p) for p in pictures(images)])), dim=1)
        good, bad = F.normalize(clip.encode_text(open_clip.get_tokenizer(CLIP)(pair)), dim=1)
        expected = torch.sigmoid(clip.logit_scale.exp() * (image @ good - image @ bad))  # a softmax over two
    scorer = scorers.load("clip_iqa", {"model": "mini:clip", "prompts": prompts})
    torch.testing.assert_close(scorer(images, [""] * 4), expected, atol=1e-5, rtol=1e-4)


def test_clip_iqa_equals_torchmetrics_where_the_scale_is_100(people):
    """The scale of OpenAI's models, which torchmetrics has as a constant."""
    iqa = pytest.importorskip("torchmetrics.functional.multimodal.clip_iqa")
    assert tuple(iqa._PROMPTS["quality"]) == ("Good photo.", "Bad photo.")
    assert tuple(iqa._PROMPTS["sharpness"]) == ("Sharp photo.", "Blurry photo.")
    scorer = scorers.load("clip_iqa", {"model": "mini:clip", "prompts": "sharpness"})
    with torch.no_grad():
        scorer.model.logit_scale.fill_(np.log(100))
        anchors = scorer.text_features(["Sharp photo.", "Blurry photo."])
        expected = iqa._clip_iqa_compute(scorer.features(people[0]), anchors, ["sharpness"])
    torch.testing.assert_close(scorer(*people), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", ["beauty", ["one"], [1, 2], []])
def test_clip_iqa_takes_a_known_name_or_two_prompts(prompts):
    with pytest.raises(ValueError, match=r"prompts: .* must be one of quality, sharpness, or \[positive, negative\]"):
        scorers.load("clip_iqa", {"model": "mini:clip", "prompts": prompts})


# DINOv2


def test_dino_v2_equals_transformers_by_hand(tmp_path, people):
    """PIL or torch on whole numbers resize there and here, whichever the processor is: equal to a grey level."""
    from transformers import BitImageProcessor, Dinov2Model

    folder = checkpoints.dinov2(tmp_path / "dinov2")
    model, processor = Dinov2Model.from_pretrained(folder).eval(), BitImageProcessor.from_pretrained(folder)
    plain = torch.tensor([0, 90, 255]).view(3, 1, 1, 1).expand(3, 3, 32, 40) / 255
    for images, tolerance in ((plain, 1e-4), (people[0], 0.05)):
        with torch.no_grad():
            outputs = model(**processor(images=pictures(images), return_tensors="pt"))
        features = scorers.load("dino", {"model": folder})(images, [""] * len(images))
        torch.testing.assert_close(features, outputs.pooler_output, atol=tolerance, rtol=tolerance)
