"""Procedural people, 64 x 64 px, with captions: the data of the miniature world.

Everything is a pure function of its arguments. `realism` 1 is the full rendering, 0 the same geometry without details
(eyes, mouth, buttons, belt, fingers, shadow, texture), desaturated and blurred; values between blend the two.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from raypref.mini.drawing import ARMS, BOTTOMS, HAIR, SCALE, SHIRT, SIZE, SKIN, Nuisance, draw_person
from raypref.mini.scenery import BACKGROUNDS, HORIZON, draw_background, ground_texture

# No word belongs to two attributes, so a caption can be read back word by word.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": tuple(SKIN),
    "hair_style": ("short", "long", "curly", "tied"),
    "hair_color": tuple(HAIR),
    "shirt_pattern": ("plain", "striped", "dotted", "checked"),
    "shirt_color": tuple(SHIRT),
    "bottoms": tuple(BOTTOMS),
    "accessory": ("nothing", "scarf", "cap", "headphones"),
    "pose": tuple(ARMS),
    "background": BACKGROUNDS,
}
_TEMPLATE = (
    "a photo of a person with {skin} skin and {hair_style} {hair_color} hair "
    "wearing a {shirt_pattern} {shirt_color} shirt with {bottoms} and {accessory} {pose} {background}"
)
_PHRASES = {
    "skirt": "a skirt",
    "nothing": "nothing else",
    "scarf": "a scarf",
    "cap": "a cap",
    "park": "in the park",
    "beach": "on the beach",
    "street": "in the street",
    "room": "in a room",
    "snow": "in the snow",
}
_WORD_MEANS = {word: (name, word) for name, words in ATTRIBUTES.items() for word in words}
# Words for prompts of one's own: other subjects, rare tokens for personalisation, connecting words.
_MORE_WORDS = ("portrait", "picture", "man", "woman", "child", "an", "at", "sks", "ohwx", "zwx")
VOCABULARY: tuple[str, ...] = tuple(
    sorted(
        {word for word in _TEMPLATE.split() if not word.startswith("{")}
        | {word for phrase in _PHRASES.values() for word in phrase.split()}
        | set(_WORD_MEANS)
        | set(_MORE_WORDS)
    )
)


def sample_attributes(seed: int, index: int) -> dict[str, str]:
    """Uniform and independent attributes of person `index` of the world `seed`."""
    rng = np.random.default_rng([seed, index, 1])
    return {name: words[int(rng.integers(len(words)))] for name, words in ATTRIBUTES.items()}


def caption(attributes: dict[str, str]) -> str:
    """The caption, a function of the attributes alone."""
    return _TEMPLATE.format(**{name: _PHRASES.get(word, word) for name, word in attributes.items()})


def parse_caption(text: str) -> dict[str, str]:
    """Attributes named in a text, in the order of `ATTRIBUTES`; words that mean nothing here are ignored."""
    found = dict(_WORD_MEANS[word] for word in text.lower().replace(",", " ").split() if word in _WORD_MEANS)
    if not found:
        raise ValueError(f"no attribute of the miniature world in {text!r}; words it knows: {sorted(_WORD_MEANS)}")
    return {name: found[name] for name in ATTRIBUTES if name in found}


def _shift(array: np.ndarray, dy: int, dx: int) -> np.ndarray:
    return np.roll(array, (dy, dx), (0, 1))


def _real(attributes: dict[str, str], nuisance: Nuisance) -> np.ndarray:
    """Full rendering, float32 [64, 64, 3] in [0, 255]."""
    background = draw_background(attributes["background"], nuisance, detail=True)
    shadow = Image.new("L", background.size, 0)
    x, y = nuisance.x - nuisance.side * 4, nuisance.y - 0.4
    box = ((x - 13) * SCALE, (y - 2.6) * SCALE, (x + 13) * SCALE, (y + 2.6) * SCALE)
    ImageDraw.Draw(shadow).ellipse(box, fill=120)
    background.paste((24, 20, 44), (0, 0), shadow)
    empty = np.asarray(background.reduce(SCALE), np.float32)
    draw_person(background, attributes, nuisance, detail=True)
    image = np.asarray(background.reduce(SCALE), np.float32)
    person_HW1 = (np.abs(image - empty).max(-1, keepdims=True) > 6).astype(np.float32)
    # Roundness: the edge towards the light is brighter, the other edge darker.
    side = int(nuisance.side)
    lit = person_HW1 - person_HW1 * _shift(person_HW1, 1, -2 * side)
    dim = person_HW1 - person_HW1 * _shift(person_HW1, 0, 2 * side)
    rng = np.random.default_rng(nuisance.texture_seed)
    oy, ox = rng.integers(0, 64, 2)
    ground = ground_texture(attributes["background"])[oy : oy + SIZE, ox : ox + SIZE, None].copy()
    ground[: int(HORIZON) + 1] = 0
    cloth = rng.normal(size=(SIZE, SIZE, 1)).astype(np.float32)
    image = image * (1 + 0.10 * lit - 0.20 * dim) + 10 * ground * (1 - person_HW1) + 1.5 * cloth
    return image


def _degraded(attributes: dict[str, str], nuisance: Nuisance) -> np.ndarray:
    """The same geometry without details, desaturated and blurred, float32 [64, 64, 3] in [0, 255]."""
    large = draw_background(attributes["background"], nuisance, detail=False)
    draw_person(large, attributes, nuisance, detail=False)
    image = np.asarray(large.reduce(SCALE), np.float32)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    image = 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
    grey = image.mean(-1, keepdims=True)
    return 0.85 * (grey + 0.6 * (image - grey)) + 22


def render_pair(attributes: dict[str, str], nuisance_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(real, degraded) of the same scene, uint8 [64, 64, 3] each: training blends them by weight."""
    nuisance = Nuisance.sample(nuisance_seed)
    tint = nuisance.light * np.array([1 + 0.05 * nuisance.warmth, 1, 1 - 0.05 * nuisance.warmth], np.float32)
    both = (_real(attributes, nuisance), _degraded(attributes, nuisance))
    return tuple(np.clip(image * tint, 0, 255).round().astype(np.uint8) for image in both)


def blend(real: np.ndarray, degraded: np.ndarray, realism: float) -> np.ndarray:
    """Mix of two uint8 images, uint8; `realism` 1 gives the first and 0 the second, exactly."""
    if not 0.0 <= realism <= 1.0:
        raise ValueError(f"realism must be in [0, 1], got {realism}")
    mixed = realism * real.astype(np.float32) + (1 - realism) * degraded.astype(np.float32)
    return mixed.round().astype(np.uint8)


def render(attributes: dict[str, str], nuisance_seed: int, realism: float = 1.0) -> np.ndarray:
    """An image, uint8 [64, 64, 3]."""
    return blend(*render_pair(attributes, nuisance_seed), realism)


def nuisance_seed(seed: int, index: int) -> int:
    """The nuisances of person `index` of the world `seed`."""
    return int(np.random.default_rng([seed, index, 2]).integers(2**31))


def person_attributes(seed: int, index: int, identity: int | None = None) -> dict[str, str]:
    """Attributes of person `index`; with `identity` those of that person, in the pose and place of person `index`."""
    attributes = sample_attributes(seed, index)
    if identity is None:
        return attributes
    return sample_attributes(seed, identity) | {name: attributes[name] for name in ("pose", "background")}


def person(seed: int, index: int, realism: float = 1.0, identity: int | None = None) -> tuple[str, np.ndarray]:
    """(caption, image uint8 [64, 64, 3]) of person `index` of the world `seed` (see `person_attributes`)."""
    attributes = person_attributes(seed, index, identity)
    return caption(attributes), render(attributes, nuisance_seed(seed, index), realism)
