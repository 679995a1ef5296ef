"""Several scorers as one entry of a configuration."""

import math
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypref import cli, images, scorers, scoring, sweep
from raypref.config import Scorer
from raypref.recipes import configure
from raypref.scorers.combined import RankAverage

MODULE = """
class Red:
    def __init__(self, gain=1.0, device='cpu'):
        self.gain = gain
    def __call__(self, images, prompts):
        values = self.gain * (images[:, 0].mean((1, 2)) * 255).round()
        values[values == 7] = float('nan')
        return values
class Green:
    def __init__(self, device='cpu'):
        pass
    def __call__(self, images, prompts):
        return (images[:, 1].mean((1, 2)) * 255).round()
class Both:
    def __init__(self, device='cpu'):
        pass
    def __call__(self, images, prompts):
        return images[:, :2].mean((2, 3))
"""
PARTS = [{"kind": "colour_parts:Red", "args": {"gain": 2.0}}, {"kind": "colour_parts:Green"}]
CLIP = {"kind": "open_clip", "args": {"model": "mini:clip"}}


@pytest.fixture(autouse=True)
def colours(tmp_path, monkeypatch):
    (tmp_path / "colour_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("colour_parts", None)


def picture(red: int, green: int) -> bytes:
    return images.encode(np.full((16, 16, 3), (red, green, 0), np.uint8), "png")


def pool(rows: dict[str, list]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"prompt_id": id, "prompt": f"prompt {id}", "images": [pair and picture(*pair) for pair in pairs]}
            for id, pairs in rows.items()
        ]
    )


def test_weighted_sum_is_one_score():
    parts = [part | {"weight": weight} for part, weight in zip(PARTS, (0.5, -3), strict=True)]
    scorer = scorers.load("weighted_sum", {"parts": parts})
    batch = torch.stack(
        [torch.tensor([r, g, 0.0]).view(3, 1, 1).expand(3, 16, 16) / 255 for r, g in ((10, 1), (20, 5))]
    )
    assert scorer(batch, ["a", "b"]).tolist() == [0.5 * 20 - 3, 0.5 * 40 - 15]


def test_rank_average_is_the_mean_rank_among_the_candidates_of_a_prompt():
    scorer = scorers.load("rank_average", {"parts": PARTS})
    rows = {
        "a": [(10, 9), (20, 5), (30, 1)],  # ranks of red 0, 1, 2 and of green 2, 1, 0
        "b": [(200, 9), (100, 9), (100, 250)],  # ties share their mean rank: 2, .5, .5 and .5, .5, 2
        "c": [(5, 5)],  # nothing to compare with
        "d": [(30, 1), (20, 9), (10, 0)],
    }
    expected = {"a": [0.5, 0.5, 0.5], "b": [0.625, 0.25, 0.625], "c": [0.5], "d": [0.75, 0.75, 0]}
    for batch_size in (1, 2, 64):  # of which a prompt's candidates are never one
        table, rejected = scoring.score_shard(scorer, pool(rows), batch_size)
        assert {row["prompt_id"]: [v for (v,) in row["values"]] for row in table.to_pylist()} == expected
        assert not rejected


def test_candidates_without_a_score_take_no_rank():
    scorer = scorers.load("rank_average", {"parts": [{"kind": "colour_parts:Red"}, PARTS[1]]})
    rows = {"a": [(10, 1), None, (7, 5), (30, 2)], "b": [(7, 7)], "c": [None]}
    table, rejected = scoring.score_shard(scorer, pool(rows), 2)
    values = {row["prompt_id"]: row["values"] for row in table.to_pylist()}
    assert [values["a"][i] for i in (0, 3)] == [[0], [1]]
    assert all(
        len(v) == 1 and math.isnan(v[0]) for v in (values["a"][1], values["a"][2], values["b"][0], values["c"][0])
    )
    assert [row["id"] for row in rejected] == ["a/2", "b/0"]


def test_ranks_do_not_depend_on_scale_or_order():
    values = np.random.default_rng(0).normal(size=(9, 3))
    ranks = RankAverage.over_candidates(values)
    assert np.array_equal(ranks, RankAverage.over_candidates(np.exp(5 * values) * [1, 10, 100]))
    assert np.array_equal(ranks[::-1], RankAverage.over_candidates(values[::-1]))
    assert np.array_equal(RankAverage.over_candidates(np.sort(values, axis=0)), np.linspace(0, 1, 9))


@pytest.mark.parametrize(
    ("kind", "parts", "message"),
    [
        ("weighted_sum", [], r"parts: \[\] must be a list of one or more scorers"),
        ("weighted_sum", {"kind": "dino"}, r"parts: .* must be a list"),
        ("weighted_sum", [CLIP | {"weight": 1}, {"kind": "pickscor", "weight": 1}], r"parts\[1\]: .*mean 'pickscore'"),
        ("weighted_sum", [CLIP], r"parts\[0\].weight: None must be a finite number"),
        ("weighted_sum", [CLIP | {"weight": math.nan}], r"parts\[0\].weight: nan must be a finite number"),
        ("weighted_sum", [CLIP | {"weight": "1"}], r"parts\[0\].weight: '1' must be a finite number"),
        ("weighted_sum", [CLIP | {"weight": True}], r"parts\[0\].weight: True must be a finite number"),
        ("weighted_sum", [CLIP | {"wieght": 1}], r"parts\[0\]: .* may have args, kind, weight"),
        ("rank_average", [CLIP | {"weight": 1}], r"parts\[0\]: .* may have args, kind"),
        ("rank_average", ["dino"], r"parts\[0\]: 'dino' must have a kind"),
        (
            "rank_average",
            [{"kind": "rank_average", "args": {"parts": [CLIP]}}],
            r"parts\[0\]: a rank_average needs all",
        ),
    ],
)
def test_parts_that_cannot_be_used(kind, parts, message):
    with pytest.raises(ValueError, match=rf"scorer '{kind}' with arguments .*{message}"):
        scorers.load(kind, {"parts": parts})


@pytest.mark.parametrize("kind", ["weighted_sum", "rank_average"])
def test_features_are_no_part(kind):
    weight = {"weight": 1} if kind == "weighted_sum" else {}
    scorer = scorers.load(kind, {"parts": [{"kind": "colour_parts:Both"} | weight]})
    with pytest.raises(ValueError, match=r"parts\[0\]: gives features \[2, 2\]; a part gives one score an image"):
        scorer(torch.zeros(2, 3, 16, 16), ["a", "b"])


# in a configuration

RANKS = {"scorers": {"ranks": {"kind": "rank_average", "args": {"parts": [CLIP]}}}}


def test_ranks_pick_pairs_of_one_domain():
    config = configure("mini", [RANKS, {"stages": {"easy": {"pairs": {"scorer": "ranks"}}}}])
    assert config.stages["easy"].pairs.scorer == "ranks"


@pytest.mark.parametrize(
    ("recipe", "change", "where"),
    [
        ("mini", {"evaluation": {"preference": "ranks"}}, "evaluation.preference"),
        ("mini", {"evaluation": {"second": "ranks"}}, "evaluation.second"),
        ("mini", {"evaluation": {"features": "ranks"}}, "evaluation.features"),
        ("mini", {"evaluation": {"scorers": ["clip_t", "ranks"]}}, "evaluation.scorers"),
        ("mini", {"evaluation": {"likeness": ["ranks"]}}, "evaluation.likeness"),
        ("mini", {"stages": {"normal": {"pairs": {"scorer": "ranks"}}}}, "stages.normal.pairs"),
        ("rpo_mini", {"stages": {"rpo": {"pairs": {"features": "ranks"}}}}, "stages.rpo.pairs"),
        ("rpo_mini", {"stages": {"rpo": {"validation": {"features": "ranks"}}}}, "stages.rpo.validation.features"),
    ],
)
def test_ranks_compare_no_models_and_no_domains(recipe, change, where):
    with pytest.raises(
        ValueError, match=rf"{where}: 'ranks' is a rank_average, which orders the candidates of one prompt"
    ):
        configure(recipe, [RANKS, change])


def test_a_sweep_sees_the_models_within(tmp_path):
    weighted = {"kind": "weighted_sum", "args": {"parts": [CLIP | {"weight": 1}, {"kind": "dino", "weight": 2}]}}
    assert set(sweep._identities(weighted)) == {("mini:clip", None), ("dino", None)}
    services = [Scorer(kind="http", args={"url": f"http://host/{name}"}).model_dump() for name in "ab"]
    assert not set(sweep._identities(services[0])) & set(sweep._identities(services[1]))
    change = {"scorers": {"both": weighted}, "evaluation": {"second": "both"}}
    config = configure("mini", [change, {"scorers": {"preference": CLIP}}])
    problems = list(sweep.objective_problems({"second_win_rate": "max"}, config))
    assert len(problems) == 1 and "is measured by scorers.both, the model that stages." in problems[0]


def test_local_files_of_parts_are_absolute_for_workers_in_other_directories(tmp_path, monkeypatch):
    for name in ("hps.pt", "dino"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    part = {"kind": "dino", "args": {"weights": "hps.pt"}}
    config = cli.absolute(
        configure("mini", [{"scorers": {"ranks": {"kind": "rank_average", "args": {"parts": [part]}}}}])
    )
    # a kind stays what it is, whatever files there are
    assert config.scorers["ranks"].args == {"parts": [{"kind": "dino", "args": {"weights": str(tmp_path / "hps.pt")}}]}
