"""Pairs of another rule or another scorer come from the pools that are there; no image is made for them."""

from __future__ import annotations

import shutil

from raypref.artifacts import Store, iter_rows
from tests.remote import world


def parts(config) -> tuple:
    pool = next(t for t in world.tasks_of(config, "pool") if t.spec["set"] == "prompts")
    return pool, next(t for t in world.tasks_of(config, "pairs") if t.name == "1-easy")


def by_prompt(root, pairs) -> dict[str, dict]:
    return {row["prompt_id"]: row for row in iter_rows(Store(str(root)), pairs.path)}


def test_of_fewer_candidates(local_ray, finished, tiny, tmp_path):
    config = world.small(tiny, "stages.easy.pairs.first=2")
    before = world.files(finished.run)
    world.walk(config, tmp_path / "run", finished.run, until="1-easy")
    assert world.files(finished.run) == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["eval", "pairs"]
    pool, pairs = parts(config)
    made, all_four = by_prompt(tmp_path / "run", pairs), by_prompt(finished.run, parts(finished.config)[1])
    images = {row["prompt_id"]: row["images"] for row in iter_rows(Store(str(finished.run)), pool.path)}
    assert set(made) == set(images) and len(made) == 48
    for id, pair in made.items():
        assert {pair["winner"], pair["loser"]} == set(images[id][:2])
        assert pair["winner_score"] > pair["loser_score"]
    assert any(made[id]["winner"] != all_four[id]["winner"] for id in made)


def test_by_another_scorer(local_ray, finished, tiny, tmp_path):
    for name in ("sources", "pools", "scores"):
        shutil.copytree(finished.run / name, tmp_path / "shared" / name)
    changes = {
        "scorers": {"dark": {"kind": f"{world.SCORERS}:Darkness"}},
        "stages": {"easy": {"pairs": {"scorer": "dark"}}},
    }
    config = world.small(tiny, changes=changes)
    before = world.files(tmp_path / "shared")
    world.walk(config, tmp_path / "run", tmp_path / "shared", until="1-easy")
    after = world.files(tmp_path / "shared")
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"scores"}
    dark, bright = by_prompt(tmp_path / "run", parts(config)[1]), by_prompt(finished.run, parts(finished.config)[1])
    assert {id: pair["winner"] for id, pair in dark.items()} == {id: pair["loser"] for id, pair in bright.items()}
