"""Pair shards: a pure join of pools and scores, which generates and scores nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pyarrow as pa

from raypref.artifacts import PAIRS
from raypref.config import PairRule
from raypref.seeds import seed_of
from raypref.selection import select


def pair_shard(rule: PairRule, winner: dict, loser: dict, seed: int, same: bool) -> tuple[pa.Table, dict]:
    """Pairs of one shard and their statistics. `winner`, `loser`: {"pool": table, "scores": table or None, "source":
    domain's name, "first": images to use or None}; rows are joined by prompt id."""
    losers = dict(_candidates(loser))
    rows: list[dict] = []
    dropped: dict[str, int] = {}
    for id, (w, w_scores) in _candidates(winner):
        if id not in losers:
            dropped["no loser for the prompt"] = dropped.get("no loser for the prompt", 0) + 1
            continue
        other, l_scores = losers[id]
        choices, reason = select(w_scores, l_scores, rule, seed_of(seed, "pairs", id), same)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        rows += [
            _pair_row(f"{id}#{n}", w, other, choice, w_scores, l_scores, winner["source"], loser["source"])
            for n, choice in enumerate(choices)
        ]
    sources_of = {role: _counts([row[f"{role}_source"] for row in rows]) for role in ("winner", "loser")}
    return pa.Table.from_pylist(rows, PAIRS), {
        "dropped": dropped,
        "winner_sources": sources_of["winner"],
        "loser_sources": sources_of["loser"],
    }


def _candidates(side: dict) -> Iterator[tuple[str, tuple[dict, list[float]]]]:
    """Of each prompt its pool row and the scores of the usable candidates (0 without a scorer, NaN for a missing image)."""
    scores = {}
    if side["scores"] is not None:
        scores = {row["prompt_id"]: [value[0] for value in row["values"]] for row in side["scores"].to_pylist()}
    for row in side["pool"].to_pylist():
        found = scores.get(row["prompt_id"], [0.0] * len(row["images"]) if side["scores"] is None else [])
        found = [math.nan if file is None else s for s, file in zip(found, row["images"], strict=False)]
        yield row["prompt_id"], (row, found[: side["first"]])


def _pair_row(id: str, w: dict, l: dict, choice, w_scores, l_scores, w_source: str, l_source: str) -> dict:  # noqa: E741
    return {
        "pair_id": id,
        "prompt_id": w["prompt_id"],
        "prompt": w["prompt"],
        "winner": w["images"][choice.winner],
        "loser": l["images"][choice.loser],
        "winner_latent": w["latents"][choice.winner],
        "loser_latent": l["latents"][choice.loser],
        "latent_shape": w["latent_shape"],
        "winner_source": w_source,
        "loser_source": l_source,
        "winner_score": w_scores[choice.winner],
        "loser_score": l_scores[choice.loser],
        "label": 1.0,
    }


def _counts(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
