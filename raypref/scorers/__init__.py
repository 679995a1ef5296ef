"""Scorers and feature models behind one protocol.

    scorer = load("open_clip", {"model": "ViT-B-32", "pretrained": "openai"}, device="cuda")
    scores = scorer(images, prompts)

`images`: float32 [B, 3, H, W] in [0, 1], any size; `prompts`: B strings. The result is float32 [B] (a score, higher is better)
or [B, D] (features). A class whose features each mean something names them in a tuple `columns`; named in
`evaluation.scorers`, each is a metric of its own, 'scorer/column'. A scorer that needs all candidates of a prompt gives [B, K]
and has `over_candidates(values_NK) -> N`, which `scoring.score_shard` calls. Each model owns its resize and normalisation. The
table is lazy: a worker imports what it uses and no more.
"""

from __future__ import annotations

import difflib
import importlib
import pickle
from collections.abc import Callable

from torch import Tensor

TABLE = {
    "open_clip": "raypref.scorers.clip:OpenClip",
    "open_clip_features": "raypref.scorers.clip:OpenClipFeatures",
    "open_clip_pair": "raypref.scorers.clip:OpenClipPair",
    "align_pair": "raypref.scorers.align:AlignPair",
    "dino": "raypref.scorers.dino:Dino",
    "pickscore": "raypref.scorers.pickscore:PickScore",
    "inception": "raypref.scorers.inception:Inception",
    "hpsv2": "raypref.scorers.hpsv2:HpsV2",
    "image_reward": "raypref.scorers.image_reward:ImageReward",
    "aesthetic": "raypref.scorers.aesthetic:Aesthetic",
    "clip_iqa": "raypref.scorers.clip_iqa:ClipIqa",
    "weighted_sum": "raypref.scorers.combined:WeightedSum",
    "rank_average": "raypref.scorers.combined:RankAverage",
    "http": "raypref.scorers.http:Http",
    "color_statistics": "raypref.scorers.color:ColorStatistics",
    "athec": "raypref.scorers.athec:Athec",
    "mini_attributes": "raypref.scorers.mini:Attributes",
    "mini_features": "raypref.scorers.mini:Features",
}


def find(kind: str) -> type:
    """The class of a scorer's kind: a name of TABLE, or 'package.module:Class'. Raises ValueError saying what there is."""
    if kind not in TABLE and ":" not in kind:
        close = difflib.get_close_matches(kind, TABLE, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(TABLE)}, or package.module:Class"
        raise ValueError(f"scorer kind {kind!r} is unknown; {hint}")
    module, _, name = TABLE.get(kind, kind).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"scorer kind {kind!r} cannot be imported: {error}; the workers need its module on their "
            "PYTHONPATH (ray job submit --working-dir)"
        ) from error


def load(kind: str, args: dict, device: str = "cpu") -> Callable[[Tensor, list[str]], Tensor]:
    """A scorer, ready to call. Raises ValueError naming the kind and its arguments when it cannot be made."""
    scorer = find(kind)
    try:
        return scorer(**args, device=device)
    except (TypeError, OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"scorer {kind!r} with arguments {args}: {error}") from error
