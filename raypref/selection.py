"""Which image wins and which loses: pure functions of scores, so that pairs can be selected again at no cost."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from raypref.stages import PairRule


@dataclass(frozen=True)
class Choice:
    """One pair of a prompt: indices into the candidates of the winner's and of the loser's domain."""

    winner: int
    loser: int
    gap: float


def select(
    winners: list[float], losers: list[float], rule: PairRule, seed: int, same: bool
) -> tuple[list[Choice], str]:
    """Pairs of one prompt, and why there are fewer than asked for ('' when there are not).

    `winners`, `losers`: scores of the candidates, NaN for one that is unusable (and, without a scorer, 0.0). `same`:
    both are one domain, so that index i is the same image in both and a tie is no preference.
    """
    w = [i for i, score in enumerate(winners) if not math.isnan(score)]
    l = [i for i, score in enumerate(losers) if not math.isnan(score)]  # noqa: E741
    if not w or not l or (same and len(w) < 2):
        return [], "no usable candidates"
    if rule.ranks is not None:
        return _ranked(w, winners, rule)
    rng = random.Random(seed)
    w = _ordered(w, winners, rule.winner == "random", rng, best_first=True)
    l = _ordered(l, losers, rule.loser == "random", rng, best_first=False)  # noqa: E741
    pairs, reason = [], "fewer candidates than k pairs need"
    for i, j in zip(w[: rule.k], _distinct(w, l, same, rule.k), strict=False):
        gap = winners[i] - losers[j]
        if same and rule.scorer is not None and gap <= 0:
            reason = "tie" if gap == 0 else "random loser scores above the winner"
        elif rule.scorer is not None and gap < rule.min_gap:
            reason = "gap below min_gap"
        else:
            pairs.append(Choice(i, j, gap))
    return pairs, "" if len(pairs) == rule.k else reason


def pairs_a_prompt(rule: dict, candidates: int) -> int:
    """The most pairs that a rule (as JSON) picks from one prompt."""
    if rule.get("ranks") is None:
        return rule.get("k", 1)
    least, most = rule["ranks"]
    return sum(max(0, candidates - apart) for apart in range(least, most + 1))


def _ranked(indices: list[int], scores: list[float], rule: PairRule) -> tuple[list[Choice], str]:
    """Every two images whose ranks differ by `rule.ranks` (Croitoru et al. 2024, arXiv 2405.13637)."""
    order, (least, most) = sorted(indices, key=lambda i: (-scores[i], i)), rule.ranks
    both = [(i, j) for place, i in enumerate(order) for j in order[place + least : place + most + 1]]
    pairs = [Choice(i, j, scores[i] - scores[j]) for i, j in both]
    kept = [pair for pair in pairs if pair.gap > 0 and pair.gap >= rule.min_gap]
    if not pairs:
        return [], "too few candidates for the ranks"
    return kept, "" if len(kept) == len(pairs) else "tie or gap below min_gap"


def _ordered(indices: list[int], scores: list[float], shuffle: bool, rng: random.Random, best_first: bool) -> list[int]:
    if shuffle:
        return rng.sample(indices, len(indices))
    # equal scores: the lower index first, so that the choice does not depend on the sort
    return sorted(indices, key=lambda i: (-scores[i] if best_first else scores[i], i))


def _distinct(w: list[int], l: list[int], same: bool, k: int) -> list[int]:  # noqa: E741
    """Losers that are none of the winners, where both come from one domain."""
    return [j for j in l if not (same and j in w[:k])][:k]
