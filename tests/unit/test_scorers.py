"""Scorers: one protocol, whatever is behind it."""

import math
import sys

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from raypref import scorers
from raypref.metrics import color_statistics
from raypref.mini import locate, renderer
from tests import checkpoints, reward_server

MINI = {
    "open_clip": {"model": "mini:scorer"},
    "open_clip scaled": {"model": "mini:scorer", "scale": True},
    "open_clip clip": {"model": "mini:clip"},
    "open_clip_features": {"model": "mini:clip"},
    "open_clip_pair": {"model": "mini:clip"},
    "clip_iqa": {"model": "mini:clip"},
    "clip_iqa sharpness": {"model": "mini:scorer", "prompts": "sharpness"},
    "mini_attributes": {},
    "mini_features": {},
    "color_statistics": {},
    "athec": {},
}
OWN_FILES = {"inception"}  # large
HUB = ["pickscore", "align_pair", "dino", "dino v2", "hpsv2", "image_reward", "aesthetic"]
NAMES = [*MINI, *HUB, "weighted_sum", "rank_average", "http"]
FEATURES = ("_features", "_pair", "color_statistics", "athec", "dino", "dino v2", "rank_average")


@pytest.fixture(scope="module")
def people():
    """(images float32 [6, 3, 64, 64] in [0, 1], captions)."""
    scenes = [renderer.person(3, i) for i in range(6)]
    images = torch.from_numpy(np.stack([image for _, image in scenes])).permute(0, 3, 1, 2).float() / 255
    return images, [caption for caption, _ in scenes]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Arguments of scorers with models of the hub: folders of small random ones."""
    folder = tmp_path_factory.mktemp("models")
    pickscore = checkpoints.clip(folder / "clip")
    hpsv2 = {"weights": checkpoints.hpsv2(folder / "hpsv2.pt"), "model": "mini:clip"}
    parts = [{"kind": "hpsv2", "args": hpsv2}, {"kind": "open_clip", "args": {"model": "mini:scorer", "scale": True}}]
    reward = checkpoints.image_reward(folder / "reward.pt")
    with reward_server.serve(reward_server.brightness) as (url, _):
        yield {
            "pickscore": {"model": pickscore, "processor": pickscore},
            "align_pair": {"model": checkpoints.align(folder / "align")},
            "dino": {"model": checkpoints.dino(folder / "dino")},
            "dino v2": {"model": checkpoints.dinov2(folder / "dinov2")},
            "hpsv2": hpsv2,
            "image_reward": {"weights": reward, "tokenizer": checkpoints.bert_tokenizer(folder / "bert")},
            "aesthetic": {"weights": checkpoints.aesthetic(folder / "aesthetic.pth", 96), "model": "mini:clip"},
            "weighted_sum": {
                "parts": [part | {"weight": weight} for part, weight in zip(parts, (2, 0.1), strict=True)]
            },
            "rank_average": {"parts": parts},
            "http": {"url": url},
        }


@pytest.fixture(scope="module")
def load(tiny):
    made = {}

    def load(name: str):
        if name not in made:
            made[name] = scorers.load(name.split()[0], tiny.get(name) or MINI[name])
        return made[name]

    return load


# the protocol


@pytest.mark.parametrize("kind", scorers.TABLE)
def test_every_kind_of_the_table_can_be_imported(kind):
    assert callable(scorers.find(kind))
    assert scorers.find(kind).__doc__


def test_every_kind_of_the_table_is_tested_here():
    assert {name.split()[0] for name in NAMES} | OWN_FILES == set(scorers.TABLE)


@pytest.mark.parametrize("name", NAMES)
def test_result_is_finite_float32_one_row_an_image(load, people, name):
    images, prompts = people
    values = load(name)(images, prompts)
    assert values.dtype == torch.float32
    assert values.shape[0] == 6
    assert values.ndim == (2 if name.endswith(FEATURES) else 1)
    assert values.isfinite().all()
    assert not values.requires_grad
    assert (values - values[:1]).abs().max() > 1e-4 or name == "mini_attributes"  # images and captions matter


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_one_value_in_any_batch_and_order(load, people, name):
    images, prompts = people
    whole = load(name)(images, prompts)
    for order in ([0], [4], [5, 4, 3, 2, 1, 0], [2, 2]):
        part = load(name)(images[order], [prompts[i] for i in order])
        torch.testing.assert_close(part, whole[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(96, 96), (40, 72)])
def test_images_of_any_size(load, people, name, size):
    images, prompts = people
    values = load(name)(F.interpolate(images, size), prompts)
    assert values.shape == load(name)(images, prompts).shape
    assert values.isfinite().all()


@pytest.mark.parametrize("name", ["open_clip", "open_clip clip", "pickscore", "hpsv2", "image_reward", "weighted_sum"])
def test_text_and_image_both_decide_the_score(load, people, name):
    images, prompts = people
    scores = load(name)(images, prompts)
    assert (load(name)(images, prompts[1:] + prompts[:1]) - scores).abs().max() > 1e-4
    assert (load(name)(images.roll(1, 0), prompts) - scores).abs().max() > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_not_changed(load, people, name):
    images, prompts = people[0].clone(), list(people[1])
    load(name)(images, prompts)
    assert torch.equal(images, people[0]) and prompts == people[1]


# against the libraries by hand


@pytest.mark.parametrize("model", ["mini:scorer", "mini:clip"])
@pytest.mark.parametrize("scale", [False, True])
def test_open_clip_equals_open_clip_by_hand(people, model, scale):
    images, prompts = people
    folder = f"local-dir:{locate(model)}"
    clip, _, preprocess = open_clip.create_model_and_transforms(folder)
    clip.eval()
    pictures = [Image.fromarray((i.permute(1, 2, 0) * 255).round().byte().numpy()) for i in images]
    with torch.no_grad():
        image = F.normalize(clip.encode_image(torch.stack([preprocess(p) for p in pictures])), dim=-1)
        text = F.normalize(clip.encode_text(open_clip.get_tokenizer(folder)(prompts)), dim=-1)
        expected = (image * text).sum(1) * (clip.logit_scale.exp() if scale else 1)
    scorer = scorers.load("open_clip", {"model": model, "scale": scale})
    torch.testing.assert_close(scorer(images, prompts), expected, atol=1e-4, rtol=1e-4)
    features = scorers.load("open_clip_features", {"model": model})(images, prompts)
    torch.testing.assert_close(features, image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(("pretrained", "quick"), [("openai", True), ("laion2b_s34b_b88k", False), (None, False)])
def test_open_clip_has_the_activation_that_its_weights_were_trained_with(monkeypatch, pretrained, quick):
    asked = {}

    def make(name, **options):
        asked.update(options)
        return torch.nn.Identity(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", make)
    scorers.load("open_clip", {"model": "ViT-B-16", "pretrained": pretrained})
    assert asked["force_quick_gelu"] is quick and asked["pretrained"] == pretrained


def test_open_clip_resizes_as_open_clip_does(people):
    """PIL resizes whole numbers, torch floats: equal within their rounding."""
    images, prompts = people
    large = F.interpolate(images, (150, 100), mode="bilinear")
    folder = f"local-dir:{locate('mini:clip')}"
    clip, _, preprocess = open_clip.create_model_and_transforms(folder)
    pictures = [Image.fromarray((i.permute(1, 2, 0) * 255).round().byte().numpy()) for i in large]
    with torch.no_grad():
        expected = F.normalize(clip.eval().encode_image(torch.stack([preprocess(p) for p in pictures])), dim=-1)
    features = scorers.load("open_clip_features", {"model": "mini:clip"})(large, prompts)
    assert (features * expected).sum(1).min() > 0.995


def test_pair_is_image_and_text_side_by_side(load, people):
    image, text = load("open_clip_pair")(*people).chunk(2, dim=1)
    torch.testing.assert_close(image, load("open_clip_features")(*people))
    torch.testing.assert_close((image * text).sum(1), load("open_clip clip")(*people))


def test_align_equals_transformers_by_hand(tiny, people):
    from transformers import AlignModel, AlignProcessor

    folder = tiny["align_pair"]["model"]
    model, processor = AlignModel.from_pretrained(folder).eval(), AlignProcessor.from_pretrained(folder)
    plain = [Image.fromarray(np.full((28, 28, 3), v, np.uint8)) for v in (0, 90, 255)]
    prompts = people[1][:3]
    inputs = processor(images=plain, text=prompts, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    images = torch.tensor([0, 90, 255]).view(3, 1, 1, 1).expand(3, 3, 28, 28) / 255
    image, text = scorers.load("align_pair", tiny["align_pair"])(images, prompts).chunk(2, dim=1)
    torch.testing.assert_close(image, outputs.image_embeds, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(text, outputs.text_embeds, atol=1e-4, rtol=1e-4)


def test_dino_equals_transformers_by_hand(tiny):
    from transformers import ViTImageProcessor, ViTModel

    folder = tiny["dino"]["model"]
    model, processor = ViTModel.from_pretrained(folder).eval(), ViTImageProcessor.from_pretrained(folder)
    plain = [Image.fromarray(np.full((24, 24, 3), v, np.uint8)) for v in (0, 90, 255)]
    with torch.no_grad():
        expected = model(**processor(images=plain, return_tensors="pt")).last_hidden_state[:, 0]
    images = torch.tensor([0, 90, 255]).view(3, 1, 1, 1).expand(3, 3, 24, 24) / 255
    torch.testing.assert_close(scorers.load("dino", tiny["dino"])(images, [""] * 3), expected, atol=1e-4, rtol=1e-4)


def test_pickscore_equals_transformers_by_hand(tiny, people):
    from transformers import CLIPModel, CLIPProcessor

    images, prompts = people
    folder = tiny["pickscore"]["model"]
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pictures = [Image.fromarray((i.permute(1, 2, 0) * 255).round().byte().numpy()) for i in images]
    inputs = processor(text=prompts, images=pictures, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_text.diagonal()
    scorer = scorers.load("pickscore", tiny["pickscore"])
    # 64 px are made 24 px: by PIL or on whole numbers there, on floats here
    torch.testing.assert_close(scorer(images, prompts), expected, atol=0.05, rtol=0.01)
    exact = [Image.fromarray(np.full((24, 24, 3), v, np.uint8)) for v in (0, 90, 255)]
    inputs = processor(text=prompts[:3], images=exact, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_text.diagonal()
    plain = torch.tensor([0, 90, 255]).view(3, 1, 1, 1).expand(3, 3, 24, 24) / 255
    torch.testing.assert_close(scorer(plain, prompts[:3]), expected, atol=1e-4, rtol=1e-4)


def test_color_statistics_are_those_of_the_metrics(load, people):
    images, prompts = people
    assert torch.equal(load("color_statistics")(images, prompts), color_statistics(images))


def test_attributes_are_a_share(load, people):
    values = load("mini_attributes")(*people)
    assert ((values >= 0) & (values <= 1)).all()
    with pytest.raises(ValueError, match=r"no attribute of the miniature world in 'a teapot'.*evaluation\.scorers"):
        load("mini_attributes")(people[0][:1], ["a teapot"])


# other classes, and what goes wrong


def test_own_class_by_module_and_name(tmp_path, monkeypatch, people):
    (tmp_path / "my_scorers.py").write_text(
        "class Brightness:\n"
        "    def __init__(self, gain=1.0, device='cpu'):\n"
        "        self.gain, self.device = gain, device\n"
        "    def __call__(self, images, prompts):\n"
        "        return self.gain * images.mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    scorer = scorers.load("my_scorers:Brightness", {"gain": 2.0}, "cpu")
    images, prompts = people
    torch.testing.assert_close(scorer(images, prompts), 2 * images.mean((1, 2, 3)))
    with pytest.raises(ValueError, match=r"cannot be imported: .*Darkness.*PYTHONPATH"):
        scorers.load("my_scorers:Darkness", {})
    sys.modules.pop("my_scorers")


@pytest.mark.parametrize(
    "kind, args, message",
    [
        ("pickscor", {}, "scorer kind 'pickscor' is unknown; did you mean 'pickscore'?"),
        ("zzz", {}, "'zzz' is unknown; one of open_clip, .*, or package.module:Class"),
        ("no_such_module:Class", {}, "cannot be imported: No module named 'no_such_module'; the workers need"),
        ("open_clip", {"model": "mini:nothing"}, "'mini:nothing' does not ship with raypref; there are mini:clip, "),
        ("open_clip", {"modell": "mini:clip"}, "scorer 'open_clip' with arguments {'modell': 'mini:clip'}: .*modell"),
        ("pickscore", {"model": "/no/such/folder"}, "scorer 'pickscore' with arguments {'model': '/no/such/folder'}"),
    ],
)
def test_mistakes_are_said(kind, args, message):
    with pytest.raises(ValueError, match=message):
        scorers.load(kind, args)


def test_a_new_import_of_the_table_loads_no_model_library():
    import json
    import subprocess

    program = "import raypref.scorers, sys, json; print(json.dumps([m in sys.modules for m in ('open_clip', 'transformers')]))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [False, False]


def test_scale_is_the_learned_one(people):
    scaled, plain = (scorers.load("open_clip", {"model": "mini:scorer", "scale": s}) for s in (True, False))
    ratio = scaled(*people) / plain(*people)
    torch.testing.assert_close(ratio, torch.full((6,), math.exp(scaled.model.logit_scale.item())), rtol=1e-4, atol=1e-4)
