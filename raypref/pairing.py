"""Pair shards: a pure join of pools and scores, which generates and scores nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from raypref import rewards
from raypref.artifacts import PAIRS, Store, read_manifest, shard_name
from raypref.seeds import seed_of
from raypref.selection import Choice, select
from raypref.stages import PairRule, RewardRule


def count_shards(spec: dict, store: Store) -> int:
    """Shards of a pairs task (`spec` of curriculum.py): those of the winners, or, for rewards, of the losers."""
    return len(read_manifest(store, spec["loser" if spec["rule"]["kind"] == "reward" else "winner"]["pool"])["files"])


def make_shard(spec: dict, store: Store, shard: int) -> tuple[pa.Table, dict]:
    """Content and statistics of one shard of a pairs task, from the stored pools and scores."""
    winner, loser = spec["winner"], spec["loser"]
    if spec["rule"]["kind"] == "reward":  # every winner against every loser, so that only the losers are split
        everyone = range(len(read_manifest(store, winner["pool"])["files"]))
        rule = RewardRule.model_validate(spec["rule"])
        return reward_shard(rule, _side(winner, store, everyone), _side(loser, store, [shard]))
    if spec["rule"]["kind"] == "given":
        index = store.read_table(f"{winner['index']}/{shard_name(shard)}.parquet")
        return given_shard(_side(winner, store, [shard]), index)
    sides = (_side(side, store, [shard]) for side in (winner, loser))
    return pair_shard(PairRule.model_validate(spec["rule"]), *sides, spec["seed"], spec["same"])


def _side(spec: dict, store: Store, shards: Iterable[int]) -> dict:
    """A side of a pair with the rows of some shards of its pool and scores."""

    def rows(path: str | None) -> pa.Table | None:
        return path and pa.concat_tables(store.read_table(f"{path}/{shard_name(shard)}.parquet") for shard in shards)

    return spec | {"pool": rows(spec["pool"]), "scores": rows(spec["scores"])}


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
        if other["latent_shape"] != w["latent_shape"]:
            dropped["sizes differ"] = dropped.get("sizes differ", 0) + 1
            continue
        choices, reason = select(w_scores, l_scores, rule, seed_of(seed, "pairs", id), same)
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        rows += [
            _pair_row(f"{id}#{n}", w, other, choice, w_scores, l_scores, winner["source"], loser["source"])
            | ({} if winner["scores"] is not None else {"winner_score": None, "loser_score": None})
            for n, choice in enumerate(choices)
        ]
    sources_of = {role: _counts([row[f"{role}_source"] for row in rows]) for role in ("winner", "loser")}
    return shard_of(rows, {"dropped": dropped, **{f"{role}_sources": found for role, found in sources_of.items()}})


def shard_of(rows: list[dict], statistics: dict) -> tuple[pa.Table, dict]:
    """Pairs of one size after those of another, which the statistics count in that order: batches are of one size."""
    rows = sorted(rows, key=lambda row: row["latent_shape"])
    sizes = ["x".join(map(str, row["latent_shape"])) for row in rows]
    shapes = {size: sizes.count(size) for size in dict.fromkeys(sizes)}
    return pa.Table.from_pylist(rows, PAIRS), statistics | {"shapes": shapes}


def given_shard(side: dict, index: pa.Table) -> tuple[pa.Table, dict]:
    """The pairs that the user brings: image 0 of each row of the pool against image 1, with the label of the index's row."""
    labels = {row["id"]: json.loads(row["ref"])["label"] for row in index.select(["id", "ref"]).to_pylist()}
    source, none = side["source"], (None, None)
    rows = [
        _pair_row(f"{row['prompt_id']}#0", row, row, Choice(0, 1, 0.0), none, none, source, source)
        | {"label": labels[row["prompt_id"]]}
        for row in side["pool"].to_pylist()
    ]
    counts = {f"{role}_sources": {source: len(rows)} for role in ("winner", "loser")}
    return shard_of(rows, {"dropped": {}, **counts})


def reward_shard(rule: RewardRule, winner: dict, loser: dict) -> tuple[pa.Table, dict]:
    """RPO's pairs of one shard of losers: every winner (a reference image of the subject) against every loser.

    Sides as in `pair_shard`; `winner` holds the whole pool, and scores are features of image and text side by side.
    Both images of a pair are rewarded under the loser's prompt; the label is the winner's Bradley-Terry probability.
    """
    references = [item for item in _features(winner) if np.isfinite(item[2]).all()]
    reference_images = np.array([image for _, _, image, _ in references])
    rows, dropped = [], {}
    for row, number, image, text in _features(loser):
        both = np.array([*reference_images, image])
        s_img = rewards.similarity(rewards.cosines(both, reference_images)).mean(1)
        s_txt = rewards.similarity(rewards.cosines(both, np.array([text])))[:, 0]
        *of_references, reward = rewards.harmonic(s_img, s_txt, rule.lambda_train).tolist()
        if not math.isfinite(reward):
            dropped["no usable candidates"] = dropped.get("no usable candidates", 0) + 1
            continue
        for (w, index, _, _), w_reward in zip(references, of_references, strict=True):
            choice = Choice(index, number, w_reward - reward)
            scores = ({index: w_reward}, {number: reward})
            pair = _pair_row(
                f"{w['prompt_id']}~{row['prompt_id']}#{number}",
                w,
                row,
                choice,
                *scores,
                winner["source"],
                loser["source"],
            )
            rows.append(pair | {"label": rewards.preference(w_reward, reward, rule.temperature)})
    counts = {f"{role}_sources": {side["source"]: len(rows)} for role, side in (("winner", winner), ("loser", loser))}
    return shard_of(rows, {"dropped": dropped, **counts})


def _features(side: dict) -> list[tuple[dict, int, np.ndarray, np.ndarray]]:
    """Of each image of a side its pool row, its number in it, its features and those of its prompt."""
    found = {row["prompt_id"]: row["values"] for row in side["scores"].to_pylist()}
    items = []
    for row in side["pool"].to_pylist():
        for number, file in enumerate(row["images"][: side["first"]]):
            if file is not None:
                items.append((row, number, *np.split(np.array(found[row["prompt_id"]][number]), 2)))
    return items


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
        "loser_prompt": l["prompt"],
        "winner": w["images"][choice.winner],
        "loser": l["images"][choice.loser],
        "winner_latent": w["latents"][choice.winner],
        "loser_latent": l["latents"][choice.loser],
        "latent_shape": w["latent_shape"],
        "winner_size": w["sizes"][choice.winner],
        "loser_size": l["sizes"][choice.loser],
        "winner_source": w_source,
        "loser_source": l_source,
        "winner_score": w_scores[choice.winner],
        "loser_score": l_scores[choice.loser],
        "label": 1.0,
    }


def _counts(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
