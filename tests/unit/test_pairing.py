"""Joining pools and scores into pairs, on tables of a few rows."""

import math

import numpy as np
import pyarrow as pa
import pytest

from raypref.artifacts import PAIRS, POOL, SCORES, parquet_bytes
from raypref.pairing import pair_shard, reward_shard
from raypref.stages import PairRule, RewardRule

BEST_WORST = PairRule(scorer="s")
RANDOM = PairRule(winner="random", loser="random")


def side(rows: dict[str, list], scores: dict[str, list] | None, source="pool", first=None) -> dict:
    """A pool whose images are b'<source><prompt id><number>' (or None) and the scores of its prompts."""
    pool = [
        {
            "prompt_id": id,
            "prompt": f"prompt {id}",
            "images": [f"{source}{id}{i}".encode() if there else None for i, there in enumerate(present)],
            "latents": [np.full((1, 1, 2), i, np.float16).tobytes() for i in range(len(present))],
            "latent_shape": [1, 1, 2],
            "sizes": [[8, 16, i, 0, 8, 16] for i in range(len(present))],
            "seeds": list(range(len(present))),
            "strengths": [1.0] * len(present),
        }
        for id, present in rows.items()
    ]
    if scores is not None:
        table = [{"prompt_id": id, "values": [[v] for v in values]} for id, values in scores.items()]
        scores = pa.Table.from_pylist(table, SCORES)
    return {"pool": pa.Table.from_pylist(pool, POOL), "scores": scores, "source": source, "first": first}


def winners_and_losers(table: pa.Table) -> list[tuple]:
    return [(row["pair_id"], row["winner"], row["loser"]) for row in table.to_pylist()]


def test_a_pair_holds_all_that_training_needs():
    pool = side({"a": [1, 1, 1]}, {"a": [0.5, 0.25, 0.75]})
    table, statistics = pair_shard(BEST_WORST, pool, pool, 0, same=True)
    assert table.schema == PAIRS
    assert table.to_pylist() == [
        {
            "pair_id": "a#0",
            "prompt_id": "a",
            "prompt": "prompt a",
            "loser_prompt": "prompt a",
            "winner": b"poola2",
            "loser": b"poola1",
            "winner_latent": np.full(2, 2, np.float16).tobytes(),
            "loser_latent": np.full(2, 1, np.float16).tobytes(),
            "latent_shape": [1, 1, 2],
            "winner_size": [8, 16, 2, 0, 8, 16],
            "loser_size": [8, 16, 1, 0, 8, 16],
            "winner_source": "pool",
            "loser_source": "pool",
            "winner_score": 0.75,
            "loser_score": 0.25,
            "label": 1.0,
        }
    ]
    assert statistics == {
        "dropped": {},
        "winner_sources": {"pool": 1},
        "loser_sources": {"pool": 1},
        "shapes": {"1x1x2": 1},
    }


def test_prompts_are_joined_by_id_not_by_place():
    winner = side({"a": [1], "b": [1], "c": [1]}, None, "real")
    loser = side({"c": [1], "a": [1]}, None, "drawn")  # b was set aside, and the order is another
    table, statistics = pair_shard(RANDOM, winner, loser, 0, same=False)
    assert winners_and_losers(table) == [("a#0", b"reala0", b"drawna0"), ("c#0", b"realc0", b"drawnc0")]
    assert statistics == {
        "dropped": {"no loser for the prompt": 1},
        "winner_sources": {"real": 2},
        "shapes": {"1x1x2": 2},
        "loser_sources": {"drawn": 2},
    }


def test_only_the_first_images_are_used():
    pool = {"a": [1] * 5}, {"a": [3.0, 1.0, 2.0, 9.0, 0.0]}
    for first, expected in ((None, ("a#0", b"poola3", b"poola4")), (3, ("a#0", b"poola0", b"poola1"))):
        one = side(*pool, first=first)
        table, _ = pair_shard(BEST_WORST, one, one, 0, same=True)
        assert winners_and_losers(table) == [expected]


def test_each_side_has_its_own_first():
    winner = side({"a": [1, 1]}, {"a": [1.0, 9.0]}, "w", first=1)
    loser = side({"a": [1, 1]}, {"a": [0.0, -9.0]}, "l")
    assert winners_and_losers(pair_shard(BEST_WORST, winner, loser, 0, same=False)[0]) == [("a#0", b"wa0", b"la1")]


def test_missing_images_and_scores_are_passed_over():
    pool = side({"a": [1, None, 1, 1]}, {"a": [2.0, 9.0, 1.0, math.nan]})
    table, _ = pair_shard(BEST_WORST, pool, pool, 0, same=True)
    assert winners_and_losers(table) == [("a#0", b"poola0", b"poola2")]


def test_prompts_without_a_pair_are_counted_by_reason():
    rows = {"a": [1, 1], "b": [1, 1], "c": [1, None], "d": [1, 1], "e": [1, 1]}
    scores = {"a": [1.0, 1.0], "b": [2.0, 1.0], "c": [1.0, 2.0], "d": [1.0, 1.2]}  # e was never scored
    pool = side(rows, scores)
    table, statistics = pair_shard(PairRule(scorer="s", min_gap=0.5), pool, pool, 0, same=True)
    assert winners_and_losers(table) == [("b#0", b"poolb0", b"poolb1")]
    assert statistics["dropped"] == {"tie": 1, "no usable candidates": 2, "gap below min_gap": 1}


def test_several_pairs_a_prompt_have_their_own_ids():
    pool = side({"a": [1] * 4}, {"a": [1.0, 2.0, 3.0, 4.0]})
    table, _ = pair_shard(PairRule(winner="top", loser="bottom", k=2, scorer="s"), pool, pool, 0, same=True)
    assert winners_and_losers(table) == [("a#0", b"poola3", b"poola0"), ("a#1", b"poola2", b"poola1")]


def test_random_pairs_depend_on_seed_and_prompt_alone():
    ids = [f"p{i}" for i in range(30)]
    whole = side(dict.fromkeys(ids, [1] * 4), None)
    table, _ = pair_shard(RANDOM, whole, whole, 3, same=True)
    assert parquet_bytes(table) == parquet_bytes(pair_shard(RANDOM, whole, whole, 3, same=True)[0])
    part = side(dict.fromkeys(ids[10:20], [1] * 4), None)
    assert winners_and_losers(pair_shard(RANDOM, part, part, 3, same=True)[0]) == winners_and_losers(table)[10:20]
    assert winners_and_losers(pair_shard(RANDOM, whole, whole, 4, same=True)[0]) != winners_and_losers(table)
    numbers = {(winner[-1:], loser[-1:]) for _, winner, loser in winners_and_losers(table)}
    assert len(numbers) > 6  # prompts do not all get the same choice, of 12 that there are


def test_an_empty_shard_gives_no_pairs():
    empty = side({}, {})
    table, statistics = pair_shard(BEST_WORST, empty, empty, 0, same=True)
    assert table.num_rows == 0 and table.schema == PAIRS
    assert statistics["dropped"] == {}


@pytest.mark.parametrize("rule", [BEST_WORST, RANDOM])
def test_a_winner_is_never_its_own_loser(rule):
    pool = side({f"p{i}": [1] * 2 for i in range(50)}, {f"p{i}": [float(i % 3), 1.0] for i in range(50)})
    table, _ = pair_shard(rule, pool, pool, 0, same=True)
    assert table.num_rows > 20
    assert all(row["winner"] != row["loser"] for row in table.to_pylist())


# rewards (RPO)


def reward_side(images: dict[str, list], source: str, first=None) -> dict:
    """Pools whose images have the given (image, text) features, two numbers each."""
    pool = side({id: [1] * len(features) for id, features in images.items()}, None, source)["pool"]
    rows = [
        {"prompt_id": id, "values": [[*image, *text] for image, text in features]} for id, features in images.items()
    ]
    return {"pool": pool, "scores": pa.Table.from_pylist(rows, SCORES), "source": source, "first": first}


REFERENCES = reward_side({"r": [((1, 0), (9, 9))], "s": [((0, 1), (9, 9))]}, "real")


def test_every_reference_meets_every_negative():
    losers = reward_side({"a": [((1, 0), (1, 0)), ((0, 1), (1, 0))], "b": [((1, 1), (0, 1))]}, "drawn")
    table, statistics = reward_shard(RewardRule(features="f"), REFERENCES, losers)
    assert table.schema == PAIRS
    rows = table.to_pylist()
    assert [row["pair_id"] for row in rows] == ["r~a#0", "s~a#0", "r~a#1", "s~a#1", "r~b#0", "s~b#0"]
    assert {row["prompt"] for row in rows} == {"prompt r", "prompt s"}
    assert [row["loser_prompt"] for row in rows] == ["prompt a"] * 4 + ["prompt b"] * 2
    assert [row["loser"] for row in rows] == [b"drawna0"] * 2 + [b"drawna1"] * 2 + [b"drawnb0"] * 2
    assert statistics == {
        "dropped": {},
        "winner_sources": {"real": 6},
        "loser_sources": {"drawn": 6},
        "shapes": {"1x1x2": 6},
    }
    few = reward_side({"a": [((1, 0), (1, 0)), ((0, 1), (1, 0))], "b": [((1, 1), (0, 1))]}, "drawn", first=1)
    assert reward_shard(RewardRule(features="f"), REFERENCES, few)[0].num_rows == 4


def test_labels_by_hand():
    """Image (1, 0) under the text (1, 0): s_txt 1, s_img (1 + .5) / 2; reference s: s_txt .5, s_img the same."""
    losers = reward_side({"a": [((1, 0), (1, 0))]}, "drawn")
    rows = reward_shard(RewardRule(features="f"), REFERENCES, losers)[0].to_pylist()
    assert [(row["winner_score"], row["loser_score"]) for row in rows] == [
        (1, 1),
        (0.5, 1),
    ]  # lambda_train 0: text alone
    assert [row["label"] for row in rows] == pytest.approx([0.5, 1 / (1 + math.exp(0.5))])
    rule = RewardRule(features="f", lambda_train=0.5, temperature=0.1)
    (_, row) = reward_shard(rule, REFERENCES, losers)[0].to_pylist()
    mine, other = 1 / (0.5 / 0.75 + 0.5 / 0.5), 1 / (0.5 / 0.75 + 0.5 / 1)
    assert (row["winner_score"], row["loser_score"]) == pytest.approx((mine, other))
    assert row["label"] == pytest.approx(1 / (1 + math.exp((other - mine) / 0.1)))


def test_negatives_without_features_are_counted():
    losers = reward_side({"a": [((math.nan, 0), (1, 0)), ((0, 1), (1, 0))]}, "drawn")
    table, statistics = reward_shard(RewardRule(features="f"), REFERENCES, losers)
    assert table.num_rows == 2 and statistics["dropped"] == {"no usable candidates": 1}


def test_references_without_features_are_left_out():
    references = reward_side({"r": [((1, 0), (9, 9))], "s": [((math.nan, 1), (9, 9))]}, "real")
    rows = reward_shard(RewardRule(features="f"), references, reward_side({"a": [((1, 0), (1, 0))]}, "drawn"))[
        0
    ].to_pylist()
    assert [row["pair_id"] for row in rows] == ["r~a#0"] and rows[0]["loser_score"] == 1
