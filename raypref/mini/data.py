"""Pools of rendered people for training the miniature models."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from raypref.mini import renderer

TRAIN_SEED, HELD_OUT_SEED = 0, 1  # worlds: the weights have seen only the first


@dataclasses.dataclass
class Pool:
    """N scenes; images are kept as uint8 and blended when a batch is taken."""

    captions: list[str]
    labels_NA: torch.Tensor  # int64, index of each attribute's value, in the order of ATTRIBUTES
    real_NCHW: torch.Tensor  # uint8
    degraded_NCHW: torch.Tensor  # uint8

    def __len__(self) -> int:
        return len(self.captions)

    def images(self, index_B: torch.Tensor, realism_B: torch.Tensor) -> torch.Tensor:
        """Blended images, float32 BCHW in [0, 1]."""
        w = realism_B.view(-1, 1, 1, 1)
        return (w * self.real_NCHW[index_B].float() + (1 - w) * self.degraded_NCHW[index_B].float()) / 255


def labels_of(attributes: dict[str, str]) -> list[int]:
    """Index of every attribute's value; -1 where the text says nothing about it."""
    return [words.index(attributes[name]) if name in attributes else -1 for name, words in renderer.ATTRIBUTES.items()]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 HWC arrays -> uint8 NCHW."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def make_pool(seed: int, count: int, first: int = 0) -> Pool:
    """Persons `first` ... `first + count - 1` of the world `seed`."""
    indices = range(first, first + count)
    return _pool([(renderer.sample_attributes(seed, i), renderer.nuisance_seed(seed, i)) for i in indices])


def make_altered_pool(seed: int, count: int, first: int = 0) -> Pool:
    """For each person of `make_pool` another image: 0 to 3 attributes and all nuisances differ."""
    scenes = []
    for i in range(first, first + count):
        attributes = renderer.sample_attributes(seed, i)
        rng = np.random.default_rng([seed, i, 3])
        for name in rng.permutation(list(renderer.ATTRIBUTES))[: int(rng.integers(4))]:
            attributes[name] = str(rng.choice([word for word in renderer.ATTRIBUTES[name] if word != attributes[name]]))
        scenes.append((attributes, int(rng.integers(2**31))))
    return _pool(scenes)


def _pool(scenes: list[tuple[dict[str, str], int]]) -> Pool:
    pairs = [renderer.render_pair(attributes, nuisance_seed) for attributes, nuisance_seed in scenes]
    return Pool(
        captions=[renderer.caption(attributes) for attributes, _ in scenes],
        labels_NA=torch.tensor([labels_of(attributes) for attributes, _ in scenes]),
        real_NCHW=to_tensor([real for real, _ in pairs]),
        degraded_NCHW=to_tensor([degraded for _, degraded in pairs]),
    )


def corrupt(images_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images get noise, half of the rest blur: what samples of a model may look like. [0, 1] in and out."""
    b = len(images_BCHW)
    u = torch.rand(b, 1, 1, 1, generator=generator)
    noise = torch.randn(images_BCHW.shape, generator=generator) * 0.06 * torch.rand(b, 1, 1, 1, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(images_BCHW, 3, 1, 1, count_include_pad=False)
    mix = torch.rand(b, 1, 1, 1, generator=generator)
    softer = mix * blurred + (1 - mix) * images_BCHW
    return torch.where(u < 0.5, images_BCHW + noise, torch.where(u < 0.75, softer, images_BCHW)).clamp(0, 1)


def recolour(images_BCHW: torch.Tensor, vivid_B: torch.Tensor) -> torch.Tensor:
    """Saturation and contrast up (vivid > 0) or down (< 0); about 40 % at 1. [0, 1] in and out."""
    k = 1 + 0.4 * vivid_B.view(-1, 1, 1, 1)
    grey = images_BCHW.mean(1, keepdim=True)
    coloured = grey + k * (images_BCHW - grey)
    mean = coloured.mean((1, 2, 3), keepdim=True)
    return (mean + (0.5 + 0.5 * k) * (coloured - mean)).clamp(0, 1)
