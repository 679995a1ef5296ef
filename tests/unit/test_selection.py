"""Pair rules on scores small enough to work by hand."""

import math
from collections import Counter

import pytest

from raypref.selection import Choice, pairs_a_prompt, select
from raypref.stages import PairRule

NAN = math.nan
BEST_WORST = PairRule(scorer="s")
RANDOM = PairRule(winner="random", loser="random")


def indices(choices):
    return [(c.winner, c.loser) for c in choices]


def top(k, **others):
    return PairRule(winner="top", loser="bottom", k=k, scorer="s", **others)


def test_best_against_worst_within_one_domain():
    scores = [3.0, 9.0, 1.0, 5.0]
    assert select(scores, scores, BEST_WORST, 0, same=True) == ([Choice(1, 2, 8.0)], "")


def test_best_against_worst_of_two_domains():
    assert select([3.0, 9.0], [5.0, 4.0, 6.0], BEST_WORST, 0, same=False) == ([Choice(1, 1, 5.0)], "")


def test_equal_scores_go_to_the_lower_index():
    scores = [1.0, 2.0, 2.0, 1.0]
    assert indices(select(scores, scores, BEST_WORST, 0, same=True)[0]) == [(1, 0)]


def test_a_tie_within_one_domain_is_no_preference():
    assert select([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], BEST_WORST, 0, same=True) == ([], "tie")
    # whatever the gap that is asked for
    assert select([2.0, 2.0], [2.0, 2.0], PairRule(scorer="s", min_gap=-1), 0, same=True) == ([], "tie")


def test_a_tie_of_two_domains_is_a_pair():
    assert select([2.0], [2.0], BEST_WORST, 0, same=False) == ([Choice(0, 0, 0.0)], "")


@pytest.mark.parametrize("same", [True, False])
def test_min_gap(same):
    for min_gap, expected in ((2.0, [(0, 1)]), (2.1, [])):
        scores = [3.0, 1.0]
        pairs, reason = select(scores, scores, PairRule(scorer="s", min_gap=min_gap), 0, same)
        assert indices(pairs) == expected
        assert reason == ("" if expected else "gap below min_gap")


def test_top_k_against_bottom_k():
    scores = [4.0, 1.0, 6.0, 2.0, 5.0, 3.0]
    pairs, reason = select(scores, scores, top(3), 0, same=True)
    assert indices(pairs) == [(2, 1), (4, 3), (0, 5)]  # 6-1, 5-2, 4-3
    assert [c.gap for c in pairs] == [5.0, 3.0, 1.0]
    assert reason == ""


def test_top_k_with_too_few_candidates_never_pairs_an_image_with_itself_or_a_winner():
    scores = [4.0, 1.0, 3.0]
    pairs, reason = select(scores, scores, top(2), 0, same=True)
    assert indices(pairs) == [(0, 1)]
    assert reason == "fewer candidates than k pairs need"
    pairs, reason = select(scores, [0.0], top(2), 0, same=False)
    assert indices(pairs) == [(0, 0)]
    assert reason == "fewer candidates than k pairs need"


def test_min_gap_drops_single_pairs_of_top_k():
    scores = [6.0, 1.0, 4.0, 3.0]
    pairs, reason = select(scores, scores, top(2, min_gap=2.0), 0, same=True)
    assert indices(pairs) == [(0, 1)]
    assert reason == "gap below min_gap"


def test_unusable_candidates_are_passed_over():
    scores = [NAN, 2.0, NAN, 7.0, 5.0]
    assert indices(select(scores, scores, BEST_WORST, 0, same=True)[0]) == [(3, 1)]
    assert indices(select([NAN, 1.0], [0.0, NAN], BEST_WORST, 0, same=False)[0]) == [(1, 0)]


@pytest.mark.parametrize(
    "winners, losers, same",
    [
        ([], [], True),
        ([1.0], [1.0], True),
        ([NAN, 1.0], [NAN, 1.0], True),
        ([NAN], [1.0], False),
        ([1.0], [NAN], False),
        ([1.0], [], False),
    ],
)
def test_too_few_candidates(winners, losers, same):
    for rule in (BEST_WORST, RANDOM, top(2)):
        assert select(winners, losers, rule, 0, same) == ([], "no usable candidates")


def test_random_is_uniform_seeded_and_never_one_image_twice():
    zeros = [0.0] * 3
    counts = Counter()
    for seed in range(600):
        pairs, reason = select(zeros, zeros, RANDOM, seed, same=True)
        assert (pairs, reason) == select(zeros, zeros, RANDOM, seed, same=True)
        assert reason == ""
        counts[indices(pairs)[0]] += 1
    assert set(counts) == {(i, j) for i in range(3) for j in range(3) if i != j}
    assert min(counts.values()) > 60  # 100 expected, standard deviation 9


def test_random_of_two_domains_reaches_every_combination():
    found = {indices(select([0.0] * 2, [0.0] * 2, RANDOM, seed, same=False)[0])[0] for seed in range(64)}
    assert found == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_random_passes_over_unusable_candidates():
    for seed in range(20):
        assert indices(select([0.0, NAN, 0.0], [NAN, 0.0], RANDOM, seed, same=False)[0])[0] in ((0, 1), (2, 1))


def test_best_against_random():
    scores = [3.0, 9.0, 1.0]
    rule = PairRule(loser="random", scorer="s")
    found = {indices(select(scores, scores, rule, seed, same=True)[0])[0] for seed in range(64)}
    assert found == {(1, 0), (1, 2)}


def test_random_winner_below_its_loser_is_dropped():
    rule = PairRule(winner="random", loser="worst", scorer="s")
    outcomes = [select([1.0, 2.0], [1.5], rule, seed, same=False) for seed in range(64)]
    assert {tuple(indices(pairs)) for pairs, _ in outcomes} == {(), ((1, 0),)}
    assert {reason for _, reason in outcomes} == {"", "gap below min_gap"}
    # within one domain even where a negative gap is allowed
    rule = PairRule(winner="random", loser="random", scorer="s", min_gap=-5)
    outcomes = [select([1.0, 2.0], [1.0, 2.0], rule, seed, same=True) for seed in range(64)]
    assert {tuple(indices(pairs)) for pairs, _ in outcomes} == {(), ((1, 0),)}


def test_ranks_pair_every_two_images_that_are_as_far_apart():
    scores = [3.0, 9.0, 1.0, 5.0]  # in order: 1, 3, 0, 2
    for ranks, expected in (((3, 3), [(1, 2)]), ((2, 3), [(1, 0), (1, 2), (3, 2)]), ((1, 1), [(1, 3), (3, 0), (0, 2)])):
        pairs, reason = select(scores, scores, PairRule(scorer="s", ranks=ranks), 0, same=True)
        assert (indices(pairs), reason) == (expected, "")
        assert all(c.gap == scores[c.winner] - scores[c.loser] > 0 for c in pairs)
        assert len(pairs) == pairs_a_prompt({"ranks": ranks, "k": 1}, 4)
    assert pairs_a_prompt({"ranks": None, "k": 3}, 8) == 3


def test_ranks_leave_out_ties_small_gaps_and_images_that_are_set_aside():
    scores = [2.0, NAN, 2.0, 1.0]
    found = select(scores, scores, PairRule(scorer="s", ranks=(1, 3)), 0, same=True)
    assert (indices(found[0]), found[1]) == ([(0, 3), (2, 3)], "tie or gap below min_gap")
    assert select(scores, scores, PairRule(scorer="s", ranks=(1, 3), min_gap=1.5), 0, same=True)[0] == []
    found = select(scores, scores, PairRule(scorer="s", ranks=(3, 5)), 0, same=True)
    assert found == ([], "too few candidates for the ranks")
