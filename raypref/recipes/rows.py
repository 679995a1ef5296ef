"""HG-DPO's rows of the curriculum: where the winners and losers of a stage come from, and how they are paired."""

EASY = {
    "winner": {"kind": "generated"},
    "loser": {"kind": "generated"},
    "pairs": {"kind": "score", "winner": "best", "loser": "worst", "scorer": "preference"},
}
NORMAL = {
    "winner": {"kind": "reconstructed"},
    "loser": {"kind": "generated", "prompts": "real", "count": 1},
    "pairs": {"kind": "score", "winner": "random", "loser": "random"},
}
HARD = {
    "winner": {"kind": "real"},
    "loser": {"kind": "generated", "prompts": "real", "count": 1},
    "pairs": {"kind": "score", "winner": "random", "loser": "random"},
}
